/** A small tokenizer.json of each kind that the supported families use. */

import { trainBytePairTokenizer } from '../../src/formats/bpe-trainer.js';
import { byteAlphabet } from '../../src/formats/tokenizer/byte-level.js';
import { byteLevelJson, wordPieceTokenizerJson } from '../../src/formats/tokenizer-json.js';
import { characterMap } from './character-map.js';
import { nastyTexts } from './nasty-texts.js';

type Json = Record<string, unknown>;

export const QWEN_PATTERN =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
export const LLAMA3_PATTERN = QWEN_PATTERN.replace('|\\p{N}|', '|\\p{N}{1,3}|');
const TEKKEN_PATTERN =
  '[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+';
const GPT4O_PATTERN =
  "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

function token(id: number, content: string, rest: Json = {}): Json {
  return { id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true, ...rest };
}

const template = (before: [string, number][], after: [string, number][]) => ({
  type: 'TemplateProcessing',
  single: [
    ...before.map(([id]) => ({ SpecialToken: { id, type_id: 0 } })),
    { Sequence: { id: 'A', type_id: 0 } },
    ...after.map(([id]) => ({ SpecialToken: { id, type_id: 0 } })),
  ],
  pair: [{ Sequence: { id: 'A', type_id: 0 } }, { Sequence: { id: 'B', type_id: 1 } }],
  special_tokens: Object.fromEntries(
    [...before, ...after].map(([id, number]) => [id, { id, ids: [number], tokens: [id] }]),
  ),
});

const split = (regex: string) => ({
  type: 'Sequence',
  pretokenizers: [
    { type: 'Split', pattern: { Regex: regex }, behavior: 'Isolated', invert: false },
    { type: 'ByteLevel', add_prefix_space: false, trim_offsets: false, use_regex: false },
  ],
});

/** Pieces by falling frequency, with spaces as ▁: single characters, and ends, beginnings and middles of words. */
function pieces(texts: readonly string[], count: number): string[] {
  const counts = new Map<string, number>();
  for (const text of texts) {
    for (const word of text.toWellFormed().replaceAll(' ', '▁').split(/(?=▁)/)) {
      const characters = Array.from(word).slice(0, 30);
      for (let length = 1; length <= 5; length++) {
        for (let i = 0; i + length <= characters.length; i++) {
          const piece = characters.slice(i, i + length).join('');
          counts.set(piece, (counts.get(piece) ?? 0) + 1);
        }
      }
    }
  }
  return [...counts]
    .sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1))
    .slice(0, count)
    .map(([piece]) => piece);
}

/** As SentencePiece's pieces become merges: each way to make a piece from two, the likelier piece first. */
function mergesOf(list: readonly string[]): [string, string][] {
  const known = new Set(list);
  return list.flatMap((piece) => {
    const characters = Array.from(piece);
    return characters
      .map((_, i): [string, string] => [characters.slice(0, i).join(''), characters.slice(i).join('')])
      .filter(([left, right]) => known.has(left) && known.has(right));
  });
}

const bytes = Array.from({ length: 256 }, (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`);
const ids = (tokens: readonly string[]) => Object.fromEntries(tokens.map((text, id) => [text, id]));

/** Few digits: Rust's JSON parser reads long ones a little off, which decides between ways of equal score. */
function score(rank: number, piece: string): number {
  return Math.round(1e4 * (-Math.log(rank + 3) - 1.5 / Array.from(piece).length)) / 1e4;
}

/** `name` → content of tokenizer.json. */
export async function tokenizerKinds(): Promise<Record<string, object>> {
  const corpus = nastyTexts(2000, 99);
  const trained = (await trainBytePairTokenizer(corpus, {
    vocabSize: 900,
    specialTokens: ['<|endoftext|>', '<s>', '</s>', '<pad>', '<unk>', '<mask>', '<|im_start|>'],
  })) as Json;
  const { vocab } = trained['model'] as { vocab: Record<string, number> };
  const size = Object.keys(vocab).length;
  const plain = pieces(corpus, 1500);
  const sentencePieces = [...new Set(['<unk>', '<s>', '</s>', ...bytes, ...plain])];
  const llama = (rest: Json, model: Json = {}): object => ({
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: [token(0, '<unk>'), token(1, '<s>'), token(2, '</s>', { normalized: true })],
    normalizer: null,
    pre_tokenizer: null,
    post_processor: template([['<s>', 1]], []),
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        { type: 'Strip', content: ' ', start: 1, stop: 0 },
      ],
    },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: '<unk>',
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: true,
      byte_fallback: true,
      vocab: ids(sentencePieces),
      merges: mergesOf(plain).map(([left, right]) => `${left} ${right}`),
      ...model,
    },
    ...rest,
  });
  const metaspace = (scheme: string, splits: boolean) => ({
    type: 'Metaspace',
    replacement: '▁',
    prepend_scheme: scheme,
    split: splits,
  });
  const unigramPieces = [
    '<unk>',
    '<s>',
    '</s>',
    '<pad>',
    ...plain.filter((piece) => !/^<(unk|s|pad)>$|^<\/s>$/.test(piece)),
  ];
  const unigram = (rest: Json): object => ({
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: [
      token(0, '<unk>'),
      token(1, '<s>'),
      token(2, '</s>'),
      token(3, '<pad>'),
      token(unigramPieces.length, '<mask>', { lstrip: true }),
    ],
    normalizer: null,
    pre_tokenizer: metaspace('always', true),
    post_processor: template([['<s>', 1]], [['</s>', 2]]),
    decoder: metaspace('always', true),
    model: {
      type: 'Unigram',
      unk_id: 0,
      byte_fallback: false,
      vocab: unigramPieces.map((piece, i) => [piece, i < 4 ? 0 : score(i, piece)]),
    },
    ...rest,
  });
  const words = pieces(corpus, 1200).filter((piece) => !piece.includes('▁'));
  const wordPieces = [
    ...new Set([
      '[PAD]',
      '[UNK]',
      '[CLS]',
      '[SEP]',
      '[MASK]',
      ...words,
      ...words.map((word) => word.toLowerCase()),
      ...words.map((word) => `##${word.toLowerCase()}`),
    ]),
  ].filter((word) => !/[\r\n]/.test(word));
  const wordPiece = (lowercase: boolean, rest: Json = {}): object => ({
    ...wordPieceTokenizerJson(wordPieces.join('\n'), lowercase),
    ...rest,
  });
  const addedContents = ['<|sep|>', '<Keep>', 'newword', '<É>', '<mask>', '<|endof', '<|endoftext|>'];
  const letters = [...new Set(['<unk>', ...byteAlphabet().characters, ...plain])].filter(
    (piece) => !addedContents.includes(piece),
  );
  /** Every word as its characters, so that only the words matter. */
  const wordsOnly = (normalizer: unknown, preTokenizer: unknown, added: Json[] = []): object => ({
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: [token(letters.length, '<|sep|>', { special: false, normalized: false }), ...added],
    normalizer,
    pre_tokenizer: preTokenizer,
    post_processor: null,
    decoder: { type: 'BPEDecoder', suffix: '</w>' },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: '<unk>',
      continuing_subword_prefix: null,
      end_of_word_suffix: '',
      fuse_unk: true,
      byte_fallback: false,
      vocab: ids(letters),
      merges: mergesOf(letters.slice(1)),
    },
  });
  const awkward = [
    token(letters.length + 1, '<Keep>', { special: false, normalized: true }),
    token(letters.length + 2, 'newword', { special: false, normalized: true, single_word: true }),
    token(letters.length + 3, '<É>', { special: false, normalized: true, rstrip: true }),
    token(letters.length + 4, '<mask>', { lstrip: true, rstrip: true }),
    token(letters.length + 5, '<|endof', { special: false }),
    token(letters.length + 6, '<|endoftext|>'),
  ];
  const sequence = (...pretokenizers: Json[]) => ({ type: 'Sequence', pretokenizers });
  const normalizers = (...list: Json[]) => ({ type: 'Sequence', normalizers: list });
  const precompiled = { type: 'Precompiled', precompiled_charsmap: characterMap() };

  return {
    'GPT-2': trained,
    Qwen: {
      ...trained,
      normalizer: { type: 'NFC' },
      pre_tokenizer: split(QWEN_PATTERN),
      decoder: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: false, use_regex: false },
    },
    'Llama 3': {
      ...trained,
      pre_tokenizer: split(LLAMA3_PATTERN),
      post_processor: {
        type: 'Sequence',
        processors: [
          { type: 'ByteLevel', add_prefix_space: true, trim_offsets: false, use_regex: true },
          template([['<s>', 1]], []),
        ],
      },
      model: { ...(trained['model'] as Json), ignore_merges: true },
    },
    'DeepSeek Coder': {
      ...trained,
      pre_tokenizer: sequence(
        ...['[\r\n]', '\\s?\\p{L}+', '\\s?\\p{P}+', '[一-龥ࠀ-一가-\ud7ff]+'].map((Regex) => ({
          type: 'Split',
          pattern: { Regex },
          behavior: 'Isolated',
          invert: false,
        })),
        { type: 'Digits', individual_digits: true },
        { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false },
      ),
    },
    Falcon: {
      ...trained,
      pre_tokenizer: sequence(
        { type: 'Punctuation', behavior: 'Contiguous' },
        { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
        { type: 'Digits', individual_digits: false },
        { type: 'Split', pattern: { Regex: '[0-9][0-9][0-9]' }, behavior: 'Isolated', invert: false },
      ),
    },
    Tekken: { ...trained, pre_tokenizer: split(TEKKEN_PATTERN) },
    'GPT-4o': { ...trained, pre_tokenizer: split(GPT4O_PATTERN) },
    RoBERTa: {
      ...byteLevelJson((trained['model'] as { vocab: Json }).vocab, (trained['model'] as { merges: string[] }).merges, [
        '<s>',
        '</s>',
        '<pad>',
        '<unk>',
      ]),
      added_tokens: [
        token(1, '<s>', { normalized: true }),
        token(2, '</s>'),
        token(3, '<pad>'),
        token(5, '<mask>', { lstrip: true }),
        token(vocab['newword'] ?? size, 'newword', { special: false, normalized: true, single_word: true }),
      ],
      pre_tokenizer: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
      post_processor: {
        type: 'RobertaProcessing',
        sep: ['</s>', 2],
        cls: ['<s>', 1],
        trim_offsets: true,
        add_prefix_space: true,
      },
    },
    'Llama, prepended': llama({
      normalizer: normalizers(
        { type: 'Prepend', prepend: '▁' },
        { type: 'Replace', pattern: { String: ' ' }, content: '▁' },
      ),
    }),
    'Mistral, first': llama({ pre_tokenizer: metaspace('first', false) }),
    'Llama, without bytes': llama({ pre_tokenizer: metaspace('always', true) }, { byte_fallback: false }),
    'Llama, separate unknowns': llama(
      { pre_tokenizer: metaspace('never', true) },
      { byte_fallback: false, fuse_unk: false },
    ),
    BERT: wordPiece(true),
    'BERT, cased': wordPiece(false, {
      post_processor: { type: 'BertProcessing', sep: ['[SEP]', 3], cls: ['[CLS]', 2] },
    }),
    'BERT, accents kept': wordPiece(true, {
      normalizer: {
        type: 'BertNormalizer',
        clean_text: false,
        handle_chinese_chars: false,
        strip_accents: false,
        lowercase: true,
      },
    }),
    'XLM-R': unigram({
      normalizer: normalizers(precompiled, { type: 'Replace', pattern: { Regex: ' {2,}' }, content: ' ' }),
    }),
    T5: unigram({
      normalizer: precompiled,
      pre_tokenizer: sequence({ type: 'WhitespaceSplit' }, metaspace('first', true)),
    }),
    ALBERT: unigram({
      normalizer: normalizers(
        { type: 'Replace', pattern: { String: '...' }, content: '' },
        { type: 'NFKD' },
        { type: 'StripAccents' },
        { type: 'Lowercase' },
        { type: 'Strip', strip_left: true, strip_right: true },
      ),
      pre_tokenizer: metaspace('first', false),
    }),
    'words by white space': wordsOnly({ type: 'NFKC' }, { type: 'Whitespace' }, awkward),
    'words by punctuation': wordsOnly(
      { type: 'Lowercase' },
      sequence({ type: 'WhitespaceSplit' }, { type: 'Punctuation', behavior: 'MergedWithPrevious' }),
      awkward,
    ),
    'words by digits': wordsOnly(
      { type: 'NFD' },
      sequence({ type: 'Digits', individual_digits: true }, { type: 'Punctuation' }),
      awkward,
    ),
    'words by runs of digits': wordsOnly(
      { type: 'Strip', strip_left: true, strip_right: false },
      sequence({ type: 'Digits', individual_digits: false }, { type: 'CharDelimiterSplit', delimiter: 'a' }),
    ),
    'words by what lies between': wordsOnly(
      { type: 'Nmt' },
      sequence(
        { type: 'Split', pattern: { Regex: '\\s+' }, behavior: 'MergedWithNext', invert: false },
        { type: 'Split', pattern: { String: 'at' }, behavior: 'Contiguous', invert: true },
      ),
    ),
    'bytes before words': wordsOnly(
      { type: 'ByteLevel' },
      { type: 'Split', pattern: { Regex: '\\p{N}{1,3}' }, behavior: 'Removed', invert: false },
    ),
  };
}
