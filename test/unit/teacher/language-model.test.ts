import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import type { NativeEngine } from '../../../src/binding.js';
import { trainBytePairTokenizer } from '../../../src/formats/bpe-trainer.js';
import { createTokenizer, type Tokenizer } from '../../../src/formats/tokenizer.js';
import { withoutModelKeys } from '../../../src/formats/tokenizer-config.js';
import { wordPieceTokenizerJson } from '../../../src/formats/tokenizer-json.js';
import { extractKnowledge } from '../../../src/knowledge/extract.js';
import { LanguageModel } from '../../../src/teacher/language-model.js';
import { languageModelConfig, pretrainLanguageModel } from '../../../src/teacher/pretrain.js';
import { fitStaticEncoder } from '../../../src/teacher/static-encoder.js';
import { temporaryDirectory } from './fake-model.js';
import { createNativeEngine, TEXTS, TINY } from './texts.js';

const folder = temporaryDirectory();
let engine: NativeEngine;
let tokenizer: Tokenizer;
let maskedTokenizer: Tokenizer;
const models: LanguageModel[] = [];

beforeAll(async () => {
  engine = createNativeEngine();
  tokenizer = createTokenizer(await trainBytePairTokenizer(TEXTS, { vocabSize: 300 }));
  const special = { vocabSize: 300, specialTokens: ['[PAD]', '[MASK]'] };
  maskedTokenizer = createTokenizer(await trainBytePairTokenizer(TEXTS, special));
});
afterEach(() => {
  for (const model of models.splice(0)) model.dispose();
});
afterAll(() => {
  engine.dispose();
});

/** Untrained; the wide range of the weights makes its answers differ. */
function create(family: 'gpt2' | 'bert' = 'gpt2', tokens = family === 'gpt2' ? tokenizer : maskedTokenizer) {
  const config = languageModelConfig(family, tokens.vocabSize, TINY.architecture);
  const model = LanguageModel.create(engine, family, config, tokens, { seed: 4, initializerRange: 0.3 });
  models.push(model);
  return model;
}

async function load(directory: string): Promise<LanguageModel> {
  const model = await LanguageModel.load(engine, directory);
  models.push(model);
  return model;
}

const code = (value: string) => expect.objectContaining({ code: value });

/** −log softmax(row)[target], in double precision. */
function crossEntropy(row: Float32Array, target: number): number {
  const largest = Math.max(...row);
  return Math.log(row.reduce((sum, logit) => sum + Math.exp(logit - largest), 0)) + largest - (row[target] ?? 0);
}

describe('forward', () => {
  test('gives the tokens that were read and what was asked for about them', async () => {
    const model = create();
    const texts = TEXTS.slice(0, 3);
    const output = await model.forward(texts, { hiddenStates: [0, 2], attentions: [1], logits: 'dense' });
    const ids = texts.map((text) => tokenizer.encode(text));
    const tokens = ids.flat().length;
    expect(Array.from(output.inputIds)).toEqual(ids.flat());
    expect(Array.from(output.sequenceOffsets, (_, s) => ids.slice(0, s).flat().length)).toEqual(
      Array.from(output.sequenceOffsets),
    );
    expect(output.hiddenStates.map(({ length }) => length)).toEqual([tokens * 32, tokens * 32]);
    expect(output.attentions[0]).toHaveLength(ids.reduce((sum, { length }) => sum + 2 * length * length, 0));
    expect(output.logits).toHaveLength(tokens * tokenizer.vocabSize);
    expect(output.truncated).toBe(0);
  });

  test('takes token ids too, and a text does not see the others of its batch', async () => {
    const model = create();
    const inputIds = TEXTS.slice(0, 2).map((text) => tokenizer.encode(text));
    const together = await model.forward({ inputIds }, { hiddenStates: [2], pooling: 'last' });
    const alone = await model.forward([TEXTS[1] ?? ''], { hiddenStates: [2], pooling: 'last' });
    const [expected, found] = [alone.hiddenStates[0] ?? [], together.hiddenStates[0]?.slice(32) ?? []];
    expect(found).toHaveLength(32);
    for (const [i, value] of found.entries()) expect(value).toBeCloseTo(expected[i] ?? Number.NaN, 5);
  });

  test('reads the beginning of a text longer than the model, and counts such texts', async () => {
    const model = create();
    const long = Array.from({ length: 40 }, (_, i) => i + 1);
    const cut = await model.forward({ inputIds: [long, [1, 2]] }, { logits: 'dense' });
    expect(cut.truncated).toBe(1);
    expect(cut.sequenceOffsets).toEqual(Int32Array.of(0, 32, 34));
    expect(Array.from(cut.inputIds)).toEqual([...long.slice(0, 32), 1, 2]);
  });

  test('ends a text that is cut with what the tokenizer puts after every text', async () => {
    const vocabulary = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'a', 'cat'];
    const model = create('bert', createTokenizer(wordPieceTokenizerJson(vocabulary.join('\n'), true)));
    const [first, ...rest] = model.tokenizer.encode('a cat');
    const last = rest.at(-1);
    const { inputIds, sequenceOffsets, truncated } = model.encode(['a cat '.repeat(60), 'a cat']);
    expect(sequenceOffsets).toEqual(Int32Array.of(0, 32, 32 + 1 + rest.length));
    expect(truncated).toBe(1);
    expect([inputIds[0], inputIds[31]]).toEqual([first, last]);
    expect(inputIds.subarray(1, 31)).not.toContain(last);
  });

  test('refuses nothing, an empty text, an id outside the vocabulary, and an aborted signal', async () => {
    const model = create();
    await expect(model.forward([], {})).rejects.toThrow(code('ERR_EMPTY_DATA'));
    await expect(model.forward(['a cat', ''], {})).rejects.toThrow(/Text 1/);
    const outside = model.forward({ inputIds: [[0, tokenizer.vocabSize]] }, { logits: 'dense' });
    await expect(outside).rejects.toThrow(code('ERR_INVALID_ARGUMENT'));
    const aborted = model.forward(['a cat'], {}, { signal: AbortSignal.abort() });
    await expect(aborted).rejects.toThrow(code('ERR_ABORTED'));
  });

  const gaps: string[] = ['a cat'];
  gaps[2] = 'a dog';
  test('cuts texts to whole tokens, at most as many as it has positions', async () => {
    const model = create();
    const two = await model.tokenize(TEXTS, 2);
    expect(await model.tokenize(TEXTS, 2.7)).toEqual(two);
    expect(await model.tokenize(TEXTS, Number.POSITIVE_INFINITY)).toEqual(await model.tokenize(TEXTS));
    for (const [i, end] of two.offsets.entries()) if (i > 0) expect(end - (two.offsets[i - 1] ?? 0)).toBe(2);
  });

  test.each([
    ['no list', 'a cat'],
    ['nothing', undefined],
    ['null among texts', ['a cat', null]],
    ['gaps', gaps],
  ])('refuses %s for texts, whoever reads them', async (_, wrong) => {
    const model = create();
    const texts = wrong as readonly string[];
    const refusal = { name: 'LimbeckError', code: 'ERR_INVALID_ARGUMENT' };
    await expect(model.forward(texts, {})).rejects.toMatchObject(refusal);
    await expect(model.embed(texts)).rejects.toMatchObject(refusal);
    await expect(model.tokenize(texts)).rejects.toMatchObject(refusal);
    await expect(model.loss(texts)).rejects.toMatchObject(refusal);
    await expect(fitStaticEncoder(engine, texts)).rejects.toMatchObject(refusal);
    const corpus = { train: texts, validation: TEXTS };
    await expect(pretrainLanguageModel(engine, corpus)).rejects.toMatchObject(refusal);
    const options = { directory: join(folder, 'store'), hiddenStates: [1] };
    await expect(extractKnowledge(model, texts, options)).rejects.toMatchObject(refusal);
  });

  test.each([[1.5], [Number.NaN], ['3'], [2 ** 32], [null], [1n]])('refuses %s for a token id', async (wrong) => {
    const model = create();
    const ids = [1, wrong] as number[];
    const refusal = { name: 'LimbeckError', code: 'ERR_INVALID_ARGUMENT' };
    await expect(model.forward({ inputIds: [[1], ids] }, {})).rejects.toMatchObject(refusal);
    await expect(model.forward({ inputIds: wrong as never }, {})).rejects.toMatchObject(refusal);
    await expect(model.generateIds(ids, { maxNewTokens: 1 })).rejects.toMatchObject(refusal);
  });

  test('refuses a model that was disposed of', async () => {
    const model = create();
    model.dispose();
    await expect(model.forward(['a cat'], { logits: 'dense' })).rejects.toThrow(code('ERR_DISPOSED'));
  });
});

describe('loss', () => {
  test('is the mean cross-entropy of the next token, over all texts', async () => {
    const model = create();
    const texts = TEXTS.slice(0, 4);
    const { vocabSize, eosTokenId = Number.NaN } = tokenizer;
    let sum = 0;
    let count = 0;
    for (const text of texts) {
      const ids = [...tokenizer.encode(text), eosTokenId];
      const { logits = new Float32Array() } = await model.forward({ inputIds: [ids] }, { logits: 'dense' });
      for (let i = 0; i + 1 < ids.length; i++) {
        sum += crossEntropy(logits.subarray(i * vocabSize, (i + 1) * vocabSize), ids[i + 1] ?? 0);
        count++;
      }
    }
    const { loss, numTokens } = await model.loss(texts);
    expect(numTokens).toBe(count);
    expect(loss).toBeCloseTo(sum / count, 4);
  });

  test('of a masked language model is the same at every call', async () => {
    const model = create('bert');
    const first = await model.loss(TEXTS);
    expect(first.numTokens).toBeGreaterThan(TEXTS.length);
    expect(first.loss).toBeGreaterThan(0);
    expect(await model.loss(TEXTS)).toEqual(first);
  });

  test('of a masked language model is over what the texts say, not what the tokenizer puts around them', () => {
    const vocabulary = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'the', 'cat', 'sat'];
    const model = create('bert', createTokenizer(wordPieceTokenizerJson(vocabulary.join('\n'), true)));
    const batch = model.encode(['the cat [MASK] [UNK] [PAD]', 'sat']);
    for (let position = 0; position < 20; position++) {
      const { labels } = model.label(batch, { probability: 1 - 1e-9, seed: 1, position });
      expect(Array.from(labels)).toEqual([-100, 5, 6, -100, 1, -100, -100, -100, 7, -100]);
    }
  });

  test('of a bidirectional model without a mask token is ERR_TOKENIZER with a remedy', async () => {
    await expect(create('bert', tokenizer).loss(TEXTS)).rejects.toThrow(
      expect.objectContaining({ code: 'ERR_TOKENIZER', message: expect.stringMatching(/\[MASK\]/) }),
    );
  });

  test('refuses texts in which nothing can be predicted, and an aborted signal', async () => {
    const model = create();
    await expect(model.loss([])).rejects.toThrow(code('ERR_EMPTY_DATA'));
    await expect(model.loss([''])).rejects.toThrow(code('ERR_EMPTY_DATA'));
    await expect(model.loss(TEXTS, { signal: AbortSignal.abort() })).rejects.toThrow(code('ERR_ABORTED'));
  });
});

describe('embed', () => {
  test.each(['gpt2', 'bert'] as const)(
    'gives the pooled hidden states of each text alone, for a %s',
    async (family) => {
      const model = create(family);
      // More tokens than one batch holds.
      const texts = Array.from({ length: 600 }, (_, i) => TEXTS[i % TEXTS.length] ?? '');
      const width = model.config.hiddenSize;
      for (const options of [{}, { layer: 0 }, { layer: 1, pooling: 'last' }] as const) {
        const vectors = await model.embed(texts, options);
        expect(vectors.length).toBe(600 * width);
        for (const row of [0, 7, 599]) {
          const layer = 'layer' in options ? options.layer : model.numHiddenLayers;
          const { hiddenStates } = await model.forward([texts[row] ?? ''], { hiddenStates: [layer] });
          const [states = new Float32Array(0)] = hiddenStates;
          const length = states.length / width;
          const isLast = 'pooling' in options;
          for (let c = 0; c < width; c++) {
            let sum = 0;
            for (let i = 0; i < length; i++) sum += states[i * width + c] ?? 0;
            const expected = isLast ? states[(length - 1) * width + c] : sum / length;
            expect(vectors[row * width + c]).toBeCloseTo(expected ?? Number.NaN, 4);
          }
        }
      }
    },
  );

  test('refuses no text, a layer that is not there, and an aborted signal', async () => {
    const model = create();
    await expect(model.embed([])).rejects.toThrow(code('ERR_EMPTY_DATA'));
    await expect(model.embed(TEXTS, { layer: 99 })).rejects.toThrow(code('ERR_INVALID_ARGUMENT'));
    await expect(model.embed(TEXTS, {}, { signal: AbortSignal.abort() })).rejects.toThrow(code('ERR_ABORTED'));
  });
});

describe('generate', () => {
  test('with temperature 0 takes the best next token, again and again', async () => {
    const model = create();
    const ids = tokenizer.encode('the cat');
    const expected: number[] = [];
    for (let i = 0; i < 6; i++) {
      const inputIds = [[...ids, ...expected]];
      const { logits = new Float32Array() } = await model.forward({ inputIds }, { logits: 'dense' });
      const last = logits.subarray(-tokenizer.vocabSize);
      expected.push(last.indexOf(Math.max(...last)));
    }
    expect(expected).not.toContain(tokenizer.eosTokenId);
    expect(await model.generateIds(ids, { maxNewTokens: 6 })).toEqual(expected);
    expect(await model.generate('the cat', { maxNewTokens: 6 })).toBe(tokenizer.decode(expected));
  });

  test.each(['config.json', 'generation_config.json'])(
    'ends at each token that %s names, and saves them',
    async (file) => {
      const directory = join(folder, `ends-${file}`);
      const saved = `${directory}-saved`;
      await create().save(directory);
      const draw = (model: LanguageModel, seed: number, minNewTokens = 0) =>
        model.generateIds([60, 70], { maxNewTokens: 30, minNewTokens, temperature: 3, seed });
      const [first = [], second = []] = await Promise.all([1, 2].map((seed) => draw(create(), seed)));
      const ends = [first[5] as number, second[9] as number];
      const path = join(directory, file);
      const json = file === 'config.json' ? JSON.parse(readFileSync(path, 'utf8')) : {};
      // What is no token of the model is never drawn.
      writeFileSync(
        path,
        JSON.stringify({ ...json, eos_token_id: file === 'config.json' ? ends : [...ends, 10 ** 9] }),
      );
      const model = await load(directory);
      await model.save(saved);
      for (const again of [model, await load(saved)]) {
        for (const [seed, whole] of [first, second].entries()) {
          const end = whole.findIndex((id) => ends.includes(id));
          expect(await draw(again, seed + 1)).toEqual(whole.slice(0, end));
          const late = await draw(again, seed + 1, 30);
          expect(late.length).toBe(30);
          for (const id of [0, ...ends]) expect(late).not.toContain(id);
        }
      }
      const written = JSON.parse(readFileSync(join(saved, 'config.json'), 'utf8'));
      expect(written).toMatchObject({ bos_token_id: 0, eos_token_id: [0, ...new Set(ends)] });
    },
  );

  test('ends at no row that only fills up the vocabulary, which could not be opened again', async () => {
    const directory = join(folder, 'padded');
    const config = languageModelConfig('gpt2', tokenizer.vocabSize + 8, TINY.architecture);
    const padded = LanguageModel.create(engine, 'gpt2', config, tokenizer, { seed: 4 });
    models.push(padded);
    await padded.save(directory);
    const ends = JSON.stringify({ eos_token_id: [tokenizer.eosTokenId, 65, tokenizer.vocabSize + 3] });
    writeFileSync(join(directory, 'generation_config.json'), ends);
    await (await load(directory)).save(join(directory, 'saved'));
    await load(join(directory, 'saved'));
    const written = JSON.parse(readFileSync(join(directory, 'saved', 'config.json'), 'utf8'));
    expect(written.eos_token_id).toEqual([tokenizer.eosTokenId, 65]);
  });

  test('draws by its seed', async () => {
    const model = create();
    const draw = (seed: number) => model.generateIds([60, 70], { maxNewTokens: 12, temperature: 1, seed });
    const first = await draw(1);
    expect(await draw(1)).toEqual(first);
    expect(await draw(2)).not.toEqual(first);
    expect(await model.generateIds([60, 70], { maxNewTokens: 12, temperature: 1, topK: 1, seed: 1 })).toEqual(
      await model.generateIds([60, 70], { maxNewTokens: 12 }),
    );
  });

  test('refuses numbers out of range', async () => {
    const model = create();
    for (const wrong of [{ maxNewTokens: -1 }, { maxNewTokens: 2, temperature: -1 }, { maxNewTokens: 2, topK: -1 }]) {
      await expect(model.generateIds([60], wrong)).rejects.toThrow(code('ERR_INVALID_ARGUMENT'));
    }
    await expect(model.generateIds([], { maxNewTokens: 2 })).rejects.toThrow(/ERR_|./);
    await expect(model.generate(null as never, { maxNewTokens: 2 })).rejects.toThrow(code('ERR_INVALID_ARGUMENT'));
  });
});

describe('a directory', () => {
  test.each(['gpt2', 'bert'] as const)('a %s that was saved and loaded gives the same logits', async (family) => {
    const model = create(family);
    const directory = join(folder, family);
    await model.save(directory);
    expect(readdirSync(directory).toSorted()).toEqual([
      'config.json',
      'model.safetensors',
      'tokenizer.json',
      'tokenizer_config.json',
    ]);
    const again = await load(directory);
    expect(again).toMatchObject({ family, config: model.config, numParameters: model.numParameters });
    const before = await model.forward(TEXTS.slice(0, 5), { logits: 'dense' });
    const after = await again.forward(TEXTS.slice(0, 5), { logits: 'dense' });
    expect(after.inputIds).toEqual(before.inputIds);
    expect(after.logits).toEqual(before.logits);
  });

  test('tells transformers of token types, and of tokenizers that are not the family\u2019s own', async () => {
    const names = ['input_ids', 'attention_mask'];
    const save = async (family: 'gpt2' | 'bert', own: Tokenizer) => {
      const directory = join(folder, 'names');
      await create(family, own).save(directory);
      return JSON.parse(readFileSync(join(directory, 'tokenizer_config.json'), 'utf8'));
    };
    const plain = createTokenizer(tokenizer.json);
    const eos_token = '<|endoftext|>';
    expect(await save('gpt2', plain)).toEqual({ eos_token, model_input_names: names });
    expect(await save('bert', plain)).toEqual({ eos_token, tokenizer_class: 'PreTrainedTokenizerFast' });
    const named = createTokenizer(tokenizer.json, { tokenizer_class: 'GPT2Tokenizer', model_input_names: ['x'] });
    expect(await save('bert', named)).toEqual(named.config);
    expect(await save('gpt2', named)).toEqual({ ...named.config, model_input_names: names });
    // Stores of a model in memory are those of the saved one.
    expect(withoutModelKeys(await save('gpt2', named))).toEqual(withoutModelKeys(named.config));
  });

  test('a model without tokenizer files takes token ids, and says what texts need', async () => {
    const model = create();
    const directory = join(folder, 'ids-only');
    await model.save(directory);
    rmSync(join(directory, 'tokenizer.json'));
    const again = await load(directory);
    expect(await again.generateIds([60, 70], { maxNewTokens: 3 })).toEqual(
      await model.generateIds([60, 70], { maxNewTokens: 3 }),
    );
    await expect(again.forward(['a cat'], {})).rejects.toThrow(
      expect.objectContaining({ code: 'ERR_TOKENIZER', message: expect.stringMatching(/tokenizer\.json/) }),
    );
  });

  test('a tokenizer with more tokens than the model is refused', async () => {
    const directory = join(folder, 'mismatch');
    await create().save(directory);
    const words = Array.from({ length: 5_000 }, (_, i) => `w${i}x${i * i}`);
    const larger = await trainBytePairTokenizer(words, { vocabSize: 500 });
    writeFileSync(join(directory, 'tokenizer.json'), JSON.stringify(larger));
    await expect(LanguageModel.load(engine, directory)).rejects.toThrow(code('ERR_TOKENIZER'));
    const config = languageModelConfig('gpt2', 100, TINY.architecture);
    expect(() => LanguageModel.create(engine, 'gpt2', config, tokenizer, { seed: 1 })).toThrow(code('ERR_TOKENIZER'));
  });

  test.each<[string, unknown, boolean]>([
    ['eos_token_id', 0, true],
    ['eos_token_id', [0, 1], true],
    ['pad_token_id', null, true],
    ['pad_token_id', -1, true],
    ['eos_token_id', 299_999, false],
    ['eos_token_id', [0, 299_999], false],
    ['mask_token_id', 299_999, false],
    ['bos_token_id', 'one', false],
  ])('a config.json that names %s = %j beside a tokenizer of 300 tokens: %s', async (key, id, isTaken) => {
    const directory = join(folder, `special-${key}-${JSON.stringify(id)}`);
    await create().save(directory);
    const path = join(directory, 'config.json');
    writeFileSync(path, JSON.stringify({ ...JSON.parse(readFileSync(path, 'utf8')), [key]: id }));
    if (isTaken) await load(directory);
    else
      await expect(load(directory)).rejects.toMatchObject({
        code: 'ERR_TOKENIZER',
        message: expect.stringContaining(key),
      });
  });

  test('saving over a directory replaces it as a whole', async () => {
    const directory = join(folder, 'replaced');
    await create().save(directory);
    writeFileSync(join(directory, 'stale.txt'), 'from before');
    const model = create('bert');
    await model.save(directory);
    expect(readdirSync(directory)).not.toContain('stale.txt');
    expect(JSON.parse(readFileSync(join(directory, 'config.json'), 'utf8'))).toMatchObject({ model_type: 'bert' });
  });
});
