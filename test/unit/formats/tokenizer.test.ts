import { cpSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { trainBytePairTokenizer } from '../../../src/formats/bpe-trainer.js';
import { checkVocabulary, createTokenizer, loadTokenizer } from '../../../src/formats/tokenizer.js';
import { cpuTimeMs } from '../../support/cpu-time.js';
import { nastyTexts } from '../../support/nasty-texts.js';
import { tokenizerKinds } from '../../support/tokenizer-kinds.js';
import { temporaryDirectory } from './temporary-directory.js';

const root = temporaryDirectory();
let count = 0;

function directoryWith(files: Record<string, string>): string {
  const directory = join(root, `case-${count++}`);
  mkdirSync(directory);
  for (const [name, text] of Object.entries(files)) writeFileSync(join(directory, name), text);
  return directory;
}

const trained = await trainBytePairTokenizer(['the cat sat on the mat '.repeat(9)], { vocabSize: 265 });
const kinds = await tokenizerKinds();
const VOCAB_TXT = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'the', 'cat', '##s', 'cafe', '!'].join('\n');

/** A small BPE tokenizer.json with parts replaced. */
function small(model: object = {}, rest: object = {}): object {
  return {
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false },
    post_processor: null,
    decoder: { type: 'ByteLevel' },
    model: { type: 'BPE', unk_token: null, vocab: { a: 0, b: 1, ab: 2 }, merges: ['a b'], ...model },
    ...rest,
  };
}

describe('loadTokenizer', () => {
  test('reads what save wrote', async () => {
    const tokenizer = createTokenizer(trained);
    const directory = join(directoryWith({}), 'saved');
    await tokenizer.save(directory);
    const again = await loadTokenizer(directory);
    const text = 'the café sat\n on <|endoftext|> 🎉';
    expect(again.encode(text)).toEqual(tokenizer.encode(text));
    expect(again.decode(again.encode(text))).toBe(text);
    expect(again).toMatchObject({ vocabSize: 265, eosTokenId: 0 });
    expect(again.padTokenId).toBeUndefined();
  });

  test('reads vocab.json and merges.txt of GPT-2', async () => {
    const { vocab, merges } = (trained as { model: { vocab: Record<string, number>; merges: string[] } }).model;
    const directory = directoryWith({
      'vocab.json': JSON.stringify(vocab),
      'merges.txt': `#version: 0.2\n${merges.join('\n')}\n`,
    });
    const tokenizer = await loadTokenizer(directory);
    expect(tokenizer.encode('the cat sat')).toEqual(createTokenizer(trained).encode('the cat sat'));
    expect(tokenizer.eosTokenId).toBe(0);
  });

  test('reads vocab.txt of BERT', async () => {
    const tokenizer = await loadTokenizer(directoryWith({ 'vocab.txt': `${VOCAB_TXT}\n` }));
    expect(tokenizer).toMatchObject({ vocabSize: 10, padTokenId: 0, maskTokenId: 4 });
    expect(tokenizer.encode('The cats, café [MASK]!')).toEqual([2, 5, 6, 7, 1, 8, 4, 9, 3]);
    expect(tokenizer.encode('the', { addSpecialTokens: false })).toEqual([5]);
    expect(tokenizer.decode([2, 5, 6, 7, 3], { skipSpecialTokens: true })).toBe('the cats');
  });

  test('keeps the case when tokenizer_config.json says so', async () => {
    const directory = directoryWith({ 'vocab.txt': VOCAB_TXT, 'tokenizer_config.json': '{"do_lower_case": false}' });
    expect((await loadTokenizer(directory)).encode('The the')).toEqual([2, 1, 5, 3]);
  });

  test('keeps accents and Chinese words when tokenizer_config.json says so', async () => {
    const read = (config: object) =>
      loadTokenizer(
        directoryWith({
          'vocab.txt': `${VOCAB_TXT}\ncaf\u00e9\n\u4e2d\u6587`,
          'tokenizer_config.json': JSON.stringify(config),
        }),
      );
    const ids = async (config: object) =>
      (await read(config)).encode('caf\u00e9 \u4e2d\u6587', { addSpecialTokens: false });
    expect(await ids({})).toEqual([8, 1, 1]);
    expect(await ids({ strip_accents: false })).toEqual([10, 1, 1]);
    expect(await ids({ tokenize_chinese_chars: false })).toEqual([8, 11]);
  });

  test.each<[string, Record<string, string>]>([
    ['RoBERTa', { 'vocab.json': '{"a": 0}', 'merges.txt': '', 'config.json': '{"model_type": "roberta"}' }],
    [
      'Qwen2',
      { 'vocab.json': '{"a": 0}', 'merges.txt': '', 'tokenizer_config.json': '{"tokenizer_class": "Qwen2Tokenizer"}' },
    ],
    [
      'Japanese',
      { 'vocab.txt': VOCAB_TXT, 'config.json': '{"model_type": "bert", "tokenizer_class": "BertJapaneseTokenizer"}' },
    ],
    [
      'a class that is no text',
      { 'vocab.txt': VOCAB_TXT, 'tokenizer_config.json': '{"tokenizer_class": {"toString": "BertTokenizer"}}' },
    ],
    ['a word-piece GPT-2', { 'vocab.txt': VOCAB_TXT, 'config.json': '{"model_type": "gpt2"}' }],
    ['added_tokens.json', { 'vocab.txt': VOCAB_TXT, 'added_tokens.json': '{"<new>": 10}' }],
    ['added_tokens.json', { 'vocab.txt': VOCAB_TXT, 'added_tokens.json': '{"[PAD]": 1}' }],
  ])('refuses the vocabulary files of %s', async (name, files) => {
    await expect(loadTokenizer(directoryWith(files))).rejects.toMatchObject({
      code: 'ERR_UNSUPPORTED_TOKENIZER',
      message: expect.stringContaining(name === 'added_tokens.json' ? name : 'vocabulary files of'),
    });
  });

  test('reads word pieces of a GPT-2 whose tokenizer is BERT\u2019s', async () => {
    const config = '{"model_type": "gpt2", "tokenizer_class": "BertTokenizerFast"}';
    const tokenizer = await loadTokenizer(directoryWith({ 'vocab.txt': VOCAB_TXT, 'config.json': config }));
    expect(tokenizer.encode('cats')).toEqual([2, 6, 7, 3]);
  });

  test.each(['{}', '{"[PAD]": 0}'])(
    'reads vocabulary files beside an added_tokens.json of %s, which adds none',
    async (json) => {
      const directory = directoryWith({ 'vocab.txt': VOCAB_TXT, 'added_tokens.json': json });
      expect((await loadTokenizer(directory)).encode('cats')).toEqual([2, 6, 7, 3]);
    },
  );

  test('lets a LlamaTokenizer put tokens around texts as tokenizer_config.json says, and keeps them', async () => {
    const { 'GPT-2': gpt2 } = kinds as Record<string, object>;
    const load = async (json: object | undefined, config: object) => {
      const files = { 'tokenizer.json': JSON.stringify(json), 'tokenizer_config.json': JSON.stringify(config) };
      return loadTokenizer(directoryWith(files));
    };
    const tokens = { bos_token: { content: '<|endoftext|>' }, eos_token: '<|endoftext|>' };
    const plain = (await load(gpt2, tokens)).encode('a b');
    const end = (await load(gpt2, tokens)).eosTokenId as number;
    for (const tokenizer_class of ['LlamaTokenizer', 'LlamaTokenizerFast']) {
      const config = { ...tokens, tokenizer_class };
      expect((await load(gpt2, config)).encode('a b')).toEqual(plain);
      expect((await load(gpt2, { ...config, add_bos_token: false })).encode('a b')).toEqual(plain);
      const first = await load(gpt2, { ...config, add_bos_token: true, add_eos_token: false });
      expect(first.encode('a b')).toEqual([end, ...plain]);
      const saved = directoryWith({});
      await first.save(saved);
      expect((await loadTokenizer(saved)).encode('a b')).toEqual([end, ...plain]);
      const both = await load(gpt2, { ...config, add_bos_token: true, add_eos_token: true });
      expect(both.encode('a b')).toEqual([end, ...plain, end]);
      expect((await load(both.json, { ...config, add_bos_token: false })).encode('a b')).toEqual(plain);
    }
    const others = [
      { add_bos_token: true },
      { add_bos_token: true, tokenizer_class: 'LlamaTokenizer', add_prefix_space: true },
    ];
    for (const config of others) {
      await expect(load(gpt2, { ...tokens, ...config })).rejects.toMatchObject({ code: 'ERR_UNSUPPORTED_TOKENIZER' });
    }
  });

  test('refuses a tokenizer_config.json that says otherwise than tokenizer.json', async () => {
    const { 'GPT-2': gpt2, 'Llama, prepended': llama, BERT: bert, RoBERTa: roberta } = kinds as Record<string, object>;
    const load = (json: object | undefined, config: object) =>
      loadTokenizer(
        directoryWith({ 'tokenizer.json': JSON.stringify(json), 'tokenizer_config.json': JSON.stringify(config) }),
      );
    const tokens = { bos_token: { content: '<s>' }, eos_token: '</s>' };
    for (const [json, config] of [
      [llama, { ...tokens, add_bos_token: true, add_eos_token: false }],
      [llama, { add_bos_token: false }], // of no token
      [
        gpt2,
        { bos_token: '<|endoftext|>', add_bos_token: false, add_prefix_space: false, split_special_tokens: false },
      ],
      [roberta, { ...tokens, add_bos_token: true, add_eos_token: true, add_prefix_space: true }],
      [bert, { do_lower_case: true, strip_accents: null, tokenize_chinese_chars: true }],
      [bert, { do_lower_case: false, tokenizer_class: 'PreTrainedTokenizerFast' }],
      [llama, { do_lower_case: true }],
    ] as const) {
      await expect(load(json, config)).resolves.toBeDefined();
    }
    for (const [json, config, key] of [
      [llama, { ...tokens, add_bos_token: false }, 'add_bos_token'],
      [gpt2, { add_bos_token: true }, 'add_bos_token'], // of no token
      [gpt2, { add_bos_token: true, tokenizer_class: 'LlamaTokenizer' }, 'add_bos_token'],
      [llama, { ...tokens, add_eos_token: true }, 'add_eos_token'],
      [gpt2, { add_prefix_space: true }, 'add_prefix_space'],
      [gpt2, { split_special_tokens: true }, 'split_special_tokens'],
      [bert, { do_lower_case: false }, 'do_lower_case'],
      [bert, { strip_accents: false }, 'strip_accents'],
      [bert, { tokenize_chinese_chars: false }, 'tokenize_chinese_chars'],
    ] as const) {
      await expect(load(json, config)).rejects.toMatchObject({
        code: 'ERR_UNSUPPORTED_TOKENIZER',
        message: expect.stringContaining(key),
      });
    }
  });

  test('takes special tokens from tokenizer_config.json, as text or object', async () => {
    const config = { eos_token: { content: 'ab' }, pad_token: 'a', model_max_length: 1e30 };
    const directory = directoryWith({
      'tokenizer.json': JSON.stringify(small()),
      'tokenizer_config.json': JSON.stringify(config),
    });
    expect(await loadTokenizer(directory)).toMatchObject({ eosTokenId: 2, padTokenId: 0 });
  });

  test('takes special tokens from special_tokens_map.json, unless tokenizer_config.json describes them', async () => {
    const map = { bos_token: 'b', eos_token: 'a', mask_token: { content: 'b' }, additional_special_tokens: ['<x>'] };
    const load = (config: object) =>
      loadTokenizer(
        directoryWith({
          'tokenizer.json': JSON.stringify(small()),
          'tokenizer_config.json': JSON.stringify({ eos_token: 'ab', pad_token: 'ab', ...config }),
          'special_tokens_map.json': JSON.stringify(map),
        }),
      );
    const expected = { bosTokenId: 1, eosTokenId: 0, padTokenId: 2, maskTokenId: 1, vocabSize: 4 };
    const tokenizer = await load({});
    expect(tokenizer).toMatchObject(expected);
    expect(tokenizer.encode('<x>')).toEqual([3]);
    const saved = directoryWith({});
    await tokenizer.save(saved);
    expect(await loadTokenizer(saved)).toMatchObject(expected);
    expect(await load({ extra_special_tokens: [] })).toMatchObject({ eosTokenId: 0, vocabSize: 3 });
    const described = await load({ added_tokens_decoder: {} });
    expect(described).toMatchObject({ eosTokenId: 2, vocabSize: 3 });
    expect(described.bosTokenId).toBeUndefined();
  });

  test('saves the names of usual tokens, unless they are plain pieces, which a name would cut out of texts', async () => {
    const added_tokens = ['</s>', '<mask>'].map((content, i) => ({ id: 4 + i, content, special: true }));
    const json = small({ vocab: { a: 0, b: 1, ab: 2, '<pad>': 3 } }, { added_tokens });
    const tokenizer = createTokenizer(json, { mask_token: null, model_max_length: 9 });
    expect(tokenizer).toMatchObject({ eosTokenId: 4, maskTokenId: 5, padTokenId: 3 });
    expect(tokenizer.config).toEqual({ eos_token: '</s>', mask_token: '<mask>', model_max_length: 9 });
    const saved = directoryWith({});
    await tokenizer.save(saved);
    expect((await loadTokenizer(saved)).config).toEqual(tokenizer.config);
    expect((await loadTokenizer(saved)).json).toEqual(json);
  });

  /** The ids are transformers'. */
  describe('adds the special tokens that tokenizer_config.json names', () => {
    const flags = { lstrip: false, rstrip: false, normalized: false, single_word: false };
    const lstrip = { ...flags, lstrip: true };
    const text = 'ab <s>ab<|end|> <x><y><|endoftext|>';
    const end = '<|endoftext|>';
    const vocabulary = Object.fromEntries(
      ['a', 'b', 'ab', '\u0120', ...'<>|/', ...'endotxsy', end, '<s>'].map((token, id) => [token, id]),
    );

    test.each<[string, object, number[], object]>([
      [
        'none',
        {},
        [2, 3, 4, 14, 5, 2, 4, 6, 8, 9, 10, 6, 5, 3, 4, 13, 5, 4, 15, 5, 16],
        { bosTokenId: 16, eosTokenId: 16 },
      ],
      [
        'add_bos_token',
        { add_bos_token: true },
        [16, 2, 3, 4, 14, 5, 2, 4, 6, 8, 9, 10, 6, 5, 3, 4, 13, 5, 4, 15, 5, 16],
        { bosTokenId: 16 },
      ],
      [
        'an eos_token that the vocabulary lacks',
        { eos_token: '<|end|>' },
        [2, 3, 4, 14, 5, 2, 18, 3, 4, 13, 5, 4, 15, 5, 16],
        { bosTokenId: 16, eosTokenId: 18 },
      ],
      [
        'lists of tokens, and a key of its own',
        { additional_special_tokens: ['<x>'], image_token: '<y>', pad_token: { ...lstrip, content: '<s>' } },
        [2, 17, 2, 4, 6, 8, 9, 10, 6, 5, 3, 19, 18, 16],
        { padTokenId: 17 },
      ],
      [
        'extra_special_tokens, named',
        { extra_special_tokens: { video_token: '<x>' }, eos_token: '<s>' },
        [2, 3, 17, 2, 4, 6, 8, 9, 10, 6, 5, 3, 18, 4, 15, 5, 16],
        { eosTokenId: 17 },
      ],
      [
        'added_tokens_decoder',
        {
          added_tokens_decoder: { 18: { content: '<y>', ...flags }, 19: { content: '<x>', ...lstrip, special: true } },
        },
        [2, 3, 4, 14, 5, 2, 4, 6, 8, 9, 10, 6, 5, 19, 18, 16],
        {},
      ],
      [
        'a token in two ways, of which the last counts, and none',
        { bos_token: '<x>', eos_token: { ...lstrip, content: '<x>' }, pad_token: '', mask_token: null },
        [2, 3, 4, 14, 5, 2, 4, 6, 8, 9, 10, 6, 5, 18, 4, 15, 5, 16],
        { bosTokenId: 18, eosTokenId: 18 },
      ],
    ])('to the vocabulary files of GPT-2: %s', async (_, config, ids, properties) => {
      const directory = directoryWith({
        'vocab.json': JSON.stringify(vocabulary),
        'merges.txt': 'a b\n',
        'tokenizer_config.json': JSON.stringify(config),
      });
      const tokenizer = await loadTokenizer(directory);
      expect(tokenizer.encode(text)).toEqual(ids);
      expect(tokenizer).toMatchObject(properties);
      const saved = directoryWith({});
      await tokenizer.save(saved);
      const again = await loadTokenizer(saved);
      expect(again.encode(text)).toEqual(ids);
      expect(again).toMatchObject(properties);
      expect(again.json).toEqual(tokenizer.json);
    });

    test.each<[string, object, number[], object]>([
      ['none', {}, [2, 5, 1, 1, 1, 1, 1, 1, 4, 3, 3], {}],
      ['cls and sep', { cls_token: '[u1]', sep_token: '[u2]' }, [10, 5, 10, 11, 4, 1, 1, 1, 11], {}],
      ['mask', { mask_token: { ...lstrip, content: '[u2]' } }, [2, 5, 1, 1, 1, 11, 1, 1, 1, 3, 3], { maskTokenId: 11 }],
      ['unk', { unk_token: '[u1]' }, [2, 5, 10, 10, 10, 10, 4, 3, 3], {}],
      ['pad', { pad_token: '[u1]' }, [2, 5, 10, 1, 1, 1, 4, 3, 3], { padTokenId: 10 }],
      [
        'added_tokens_decoder',
        { added_tokens_decoder: { 10: { content: '[u1]', ...flags, special: true } } },
        [2, 5, 10, 1, 1, 1, 4, 3, 3],
        {},
      ],
    ])('to the vocabulary file of BERT: %s', async (_, config, ids, properties) => {
      const directory = directoryWith({
        'vocab.txt': `${VOCAB_TXT}\n[u1]\n[u2]\n`,
        'tokenizer_config.json': JSON.stringify(config),
      });
      const tokenizer = await loadTokenizer(directory);
      expect(tokenizer.encode('the [u1] [u2] [MASK] [SEP]')).toEqual(ids);
      expect(tokenizer).toMatchObject(properties);
    });

    test('to a tokenizer.json: pieces of the vocabulary become special', async () => {
      const json = small({ vocab: { a: 0, b: 1, ab: 2, '</s>': 3, '<': 4, '/': 5, s: 6, '>': 7 } });
      const load = (config: object) =>
        loadTokenizer(
          directoryWith({ 'tokenizer.json': JSON.stringify(json), 'tokenizer_config.json': JSON.stringify(config) }),
        );
      expect((await load({})).encode('a</s>')).toEqual([0, 4, 5, 6, 7]);
      const tokenizer = await load({ eos_token: '</s>' });
      expect(tokenizer.encode('a</s>')).toEqual([0, 3]);
      expect(tokenizer.decode([0, 3], { skipSpecialTokens: true })).toBe('a');
    });

    test('with the flags of added_tokens_decoder, or else of tokenizer.json', async () => {
      const json = small(
        { vocab: { a: 0, b: 1, ab: 2, '\u0120': 3 } },
        { added_tokens: [{ id: 4, content: '<m>', ...flags }] },
      );
      const load = (config: object) =>
        loadTokenizer(
          directoryWith({ 'tokenizer.json': JSON.stringify(json), 'tokenizer_config.json': JSON.stringify(config) }),
        );
      const named = await load({ mask_token: { content: '<m>', ...lstrip } });
      expect(named.encode('a <m>')).toEqual([0, 3, 4]);
      expect(named.decode([0, 4], { skipSpecialTokens: true })).toBe('a');
      const described = await load({ added_tokens_decoder: { 4: { content: '<m>', ...lstrip } } });
      expect(described.encode('a <m>')).toEqual([0, 4]);
      expect(described.decode([0, 4], { skipSpecialTokens: true })).toBe('a<m>');
    });

    test('and refuses those that added_tokens_decoder has with another id', async () => {
      const load = (added_tokens_decoder: object) =>
        loadTokenizer(
          directoryWith({
            'tokenizer.json': JSON.stringify(small({}, { added_tokens: [{ id: 4, content: '<m>', ...flags }] })),
            'tokenizer_config.json': JSON.stringify({ added_tokens_decoder }),
          }),
        );
      for (const [id, content] of [
        [5, '<m>'],
        [4, '<new>'],
        [1, 'a'],
      ] as const) {
        await expect(load({ [id]: { content, ...flags } })).rejects.toMatchObject({
          code: 'ERR_UNSUPPORTED_TOKENIZER',
          message: expect.stringContaining(`added_tokens_decoder.${id} = '${content}'`),
        });
      }
      for (const wrong of [[], { 4: '<m>' }, { 4: {} }, { x: { content: '<m>' } }]) {
        await expect(load(wrong)).rejects.toMatchObject({ code: 'ERR_TOKENIZER' });
      }
    });
  });

  test.each([
    'GPT-2',
    'Qwen',
    'Llama 3',
    'RoBERTa',
    'Llama, prepended',
    'Mistral, first',
    'BERT',
    'XLM-R',
    'DeepSeek Coder',
  ])(
    'leaves a tokenizer.json of %s beside a tokenizer_config.json that describes the same tokens as it is',
    async (kind) => {
      const json = (kinds as Record<string, object>)[kind] as { added_tokens: { id: number; content: string }[] };
      const described = json.added_tokens.map(({ id, ...token }): [number, object] => [id, token]);
      const names = json.added_tokens.map(({ content }) => content);
      const name = (pattern: RegExp) => names.find((content) => pattern.test(content));
      const { id: _, ...mask } = json.added_tokens.find(({ content }) => /mask/i.test(content)) ?? {
        id: 0,
        content: '',
      };
      const config = {
        bos_token: name(/^<s>|CLS/) ?? null,
        eos_token: name(/<\/s>|endoftext|SEP/),
        unk_token: { __type: 'AddedToken', content: name(/unk/i) ?? '', lstrip: false, normalized: true },
        mask_token: { ...mask, __type: 'AddedToken' },
        additional_special_tokens: names.slice(0, 2),
        extra_special_tokens: {},
        model_max_length: 1e30,
        chat_template: '{{ messages }}',
        clean_up_tokenization_spaces: false,
      };
      for (const added_tokens_decoder of [Object.fromEntries(described), undefined]) {
        const directory = directoryWith({
          'tokenizer.json': JSON.stringify(json),
          'tokenizer_config.json': JSON.stringify({ ...config, added_tokens_decoder }),
        });
        expect((await loadTokenizer(directory)).json).toEqual(json);
      }
    },
  );

  test.each<[string, Record<string, string>, string]>([
    ['an empty folder', {}, 'ERR_FILE_NOT_FOUND'],
    ['vocab.json alone', { 'vocab.json': '{}' }, 'ERR_FILE_NOT_FOUND'],
    ['broken JSON', { 'tokenizer.json': '{' }, 'ERR_FILE_FORMAT'],
    ['a token twice', { 'tokenizer.json': '{"model": {"type": "BPE", "vocab": {"a": 0, "a": 1}}}' }, 'ERR_FILE_FORMAT'],
    ['a list', { 'tokenizer.json': '[]' }, 'ERR_TOKENIZER'],
    ['a config that is a list', { 'vocab.txt': VOCAB_TXT, 'tokenizer_config.json': '[]' }, 'ERR_TOKENIZER'],
    ['a map that is a list', { 'vocab.txt': VOCAB_TXT, 'special_tokens_map.json': '[]' }, 'ERR_TOKENIZER'],
    ['vocab.txt without [UNK]', { 'vocab.txt': '[CLS]\n[SEP]\na' }, 'ERR_TOKENIZER'],
    ['vocab.txt without [CLS]', { 'vocab.txt': '[UNK]\n[SEP]\na' }, 'ERR_TOKENIZER'],
    ['a list as vocab.json', { 'vocab.json': '[]', 'merges.txt': 'a b' }, 'ERR_TOKENIZER'],
    ['a merge of one token', { 'vocab.json': '{"a": 0, "b": 1}', 'merges.txt': 'a' }, 'ERR_TOKENIZER'],
  ])('refuses %s', async (_, files, code) => {
    await expect(loadTokenizer(directoryWith(files))).rejects.toMatchObject({ code });
  });
});

describe('createTokenizer', () => {
  test.each<[string, object]>([
    ['no model', {}],
    ['a model that is text', { model: 'BPE' }],
    ['pieces without scores', small({ type: 'Unigram' })],
    ['no vocabulary', small({ vocab: undefined })],
    ['a vocabulary that is a list', small({ vocab: ['a'] })],
    ['an empty vocabulary', small({ vocab: {}, merges: [] })],
    ['an id that is text', small({ vocab: { a: '0' }, merges: [] })],
    ['a negative id', small({ vocab: { a: -1 }, merges: [] })],
    ['a fractional id', small({ vocab: { a: 0.5 }, merges: [] })],
    ['a huge id', small({ vocab: { a: 2 ** 31 - 1 }, merges: [] })],
    ['an id twice', small({ vocab: { a: 0, b: 0 }, merges: [] })],
    ['an empty token', small({ vocab: { '': 0 }, merges: [] })],
    ['no merges', small({ merges: undefined })],
    ['a merge of an unknown token', small({ merges: ['a c'] })],
    ['a merge into an unknown token', small({ merges: ['b a'] })],
    ['a merge of three', small({ merges: ['a b a'] })],
    ['a merge that is a number', small({ merges: [1] })],
    ['added tokens that are an object', small({}, { added_tokens: {} })],
    ['an added token that is text', small({}, { added_tokens: ['a'] })],
    ['an added token without content', small({}, { added_tokens: [{ id: 3 }] })],
    ['an added token with a taken id', small({}, { added_tokens: [{ id: 0, content: 'x' }] })],
    ['a token with two ids', small({}, { added_tokens: [{ id: 7, content: 'a' }] })],
    ['a pre-tokenizer that is a number', small({}, { pre_tokenizer: 7 })],
    ['long words of WordPiece', { model: { type: 'WordPiece', vocab: { a: 0 }, max_input_chars_per_word: 100_000 } }],
  ])('refuses %s', (_, json) => {
    expect(() => createTokenizer(json)).toThrowError(expect.objectContaining({ code: 'ERR_TOKENIZER' }));
  });

  test.each<[string, string, object]>([
    ['WordLevel', 'another model', small({ type: 'WordLevel' })],
    ['continuing_subword_prefix', 'a subword prefix', small({ continuing_subword_prefix: '##' })],
    ['dropout', 'random merges', small({ dropout: 0.1 })],
    ['"Magic"', 'an unknown normalizer', small({}, { normalizer: { type: 'Magic' } })],
    ['"Magic"', 'an unknown pre-tokenizer', small({}, { pre_tokenizer: { type: 'Magic' } })],
    ['"Magic"', 'an unknown post-processor', small({}, { post_processor: { type: 'Magic' } })],
    ['"Magic"', 'an unknown decoder', small({}, { decoder: { type: 'Magic' } })],
    [
      '(a+)+$',
      'a quadratic pattern',
      small({}, { pre_tokenizer: { type: 'Split', pattern: { Regex: '(a+)+$' }, behavior: 'Isolated' } }),
    ],
    [
      '(a|a)*b',
      'a hidden pattern',
      small(
        {},
        {
          normalizer: {
            type: 'Sequence',
            normalizers: [{ type: 'Replace', pattern: { Regex: '(a|a)*b' }, content: '' }],
          },
        },
      ),
    ],
  ])('names %s when it meets %s', (name, _, json) => {
    expect(() => createTokenizer(json)).toThrowError(
      expect.objectContaining({ code: 'ERR_UNSUPPORTED_TOKENIZER', message: expect.stringContaining(name) }),
    );
  });

  test('counts added tokens, and ids with holes', () => {
    const tokenizer = createTokenizer(small({}, { added_tokens: [{ id: 9, content: '<s>', special: true }] }));
    expect(tokenizer.vocabSize).toBe(10);
    expect(tokenizer.encode('ab<s>a')).toEqual([2, 9, 0]);
    expect(() => tokenizer.decode([5])).toThrowError(expect.objectContaining({ code: 'ERR_TOKENIZER' }));
  });

  test('encodes and decodes nothing', () => {
    const tokenizer = createTokenizer(trained);
    expect(tokenizer.encode('')).toEqual([]);
    expect(tokenizer.decode([])).toBe('');
    expect(tokenizer.decode(new Int32Array(tokenizer.encode('cat')))).toBe('cat');
  });

  test('turns lone surrogates into replacement characters', () => {
    const tokenizer = createTokenizer(trained);
    expect(tokenizer.decode(tokenizer.encode('a\ud83cb'))).toBe('a\ufffdb');
  });

  describe.each([
    ['byte-level BPE', trained],
    ['sentence pieces', kinds['Llama, prepended'] as object],
    ['Unigram', kinds['XLM-R'] as object],
    ['WordPiece', kinds['BERT'] as object],
  ])('one word of 16,000 characters in %s', (_, json) => {
    const text = nastyTexts(6_000, 5).join(' ').slice(0, 16_000);
    const tokenizer = createTokenizer(json);
    tokenizer.encode(text); // warm
    const timeOf = async (input: string) => {
      const times: number[] = [];
      for (let i = 0; i < 3; i++) times.push(await cpuTimeMs(() => tokenizer.encode(input)));
      return Math.min(...times);
    };

    test.each(['a', 'the', ' ', '!', 'é', '\n ', 'e\u0301'])(
      '%j costs as much as a text of that length',
      async (unit) => {
        const word = unit.repeat(16_000 / unit.length);
        // A quadratic merge takes seconds; 20 ms are for the noise of a busy machine.
        expect(await timeOf(word)).toBeLessThan(15 * (await timeOf(text)) + 20);
      },
    );
  });

  test('one word of 16,000 characters comes back', () => {
    const tokenizer = createTokenizer(trained);
    expect(tokenizer.decode(tokenizer.encode('thé'.repeat(5_000)))).toBe('thé'.repeat(5_000));
  });

  test.each([
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
  ])('runs the pattern %s', (pattern) => {
    const split = { type: 'Split', pattern: { Regex: pattern }, behavior: 'Isolated', invert: false };
    const byteLevel = { type: 'ByteLevel', add_prefix_space: false, use_regex: false };
    const tokenizer = createTokenizer({
      ...trained,
      pre_tokenizer: { type: 'Sequence', pretokenizers: [split, byteLevel] },
    });
    const text = "The CAT'LL sit 12345 \n\n  on!!\n";
    expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
  });
});

test('checkVocabulary wants a row for every token', () => {
  const tokenizer = createTokenizer(trained);
  expect(() => checkVocabulary(tokenizer, 265)).not.toThrow();
  expect(() => checkVocabulary(tokenizer, 50_257)).not.toThrow();
  expect(() => checkVocabulary(tokenizer, 264)).toThrowError(expect.objectContaining({ code: 'ERR_TOKENIZER' }));
});

/** A folder with `gpt2/` and `bert-uncased/` as published. */
const published = process.env['LIMBECK_TOKENIZERS'];

describe.skipIf(published === undefined)('published tokenizers (skipped without LIMBECK_TOKENIZERS=folder)', () => {
  const copy = (name: string) => {
    const directory = directoryWith({});
    cpSync(join(published as string, name), directory, { recursive: true });
    return loadTokenizer(directory);
  };

  test('GPT-2 gives the known ids', async () => {
    const tokenizer = await copy('gpt2');
    expect(tokenizer).toMatchObject({ vocabSize: 50_257, eosTokenId: 50_256 });
    expect(tokenizer.encode('Hello world')).toEqual([15496, 995]);
  });

  test('BERT gives the known ids', async () => {
    const tokenizer = await copy('bert-uncased');
    expect(tokenizer).toMatchObject({ vocabSize: 30_522, padTokenId: 0, maskTokenId: 103 });
    expect(tokenizer.encode('Hello World')).toEqual([101, 7592, 2088, 102]);
  });
});
