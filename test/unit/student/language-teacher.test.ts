import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { loadBinding, type NativeEngine } from '../../../src/binding.js';
import { trainBytePairTokenizer } from '../../../src/formats/bpe-trainer.js';
import { createTokenizer } from '../../../src/formats/tokenizer.js';
import { type ExtractOptions, extractKnowledge, extractKnowledgePart } from '../../../src/knowledge/extract.js';
import type { Knowledge } from '../../../src/knowledge/knowledge.js';
import { mergeKnowledge } from '../../../src/knowledge/merge.js';
import { distillLanguageModel, type LanguageStudentOptions } from '../../../src/student/language-student.js';
import type { LanguageTeacher } from '../../../src/student/language-teacher.js';
import type { WeightedTeacher } from '../../../src/student/teachers.js';
import { LanguageModel } from '../../../src/teacher/language-model.js';
import { pretrainLanguageModel } from '../../../src/teacher/pretrain.js';

const VOCABULARY = 290;
const train = Array.from(
  { length: 60 },
  (_, i) => `film ${i % 10} is ${['good', 'bad', 'long'][i % 3]} and ${['old', 'new and '.repeat(i % 7)][i % 2]}`,
);
const corpus = { train, validation: train.slice(0, 12) };
const architecture = {
  hiddenSize: 16,
  numHiddenLayers: 1,
  numAttentionHeads: 2,
  maxPositionEmbeddings: 24,
  dropout: 0.1,
};
const training = { epochs: 2, learningRate: 0.01, batchTokens: 200, seed: 1 };
let engine: NativeEngine;
let teacher: LanguageModel;
let root: string;
let count = 0;
beforeAll(async () => {
  root = mkdtempSync(join(tmpdir(), 'limbeck-stored-'));
  engine = loadBinding().createEngine({ threads: 2 });
  const shape = { ...architecture, hiddenSize: 32, numHiddenLayers: 2 };
  const options = { architecture: shape, tokenizer: { vocabSize: VOCABULARY }, training };
  teacher = (await pretrainLanguageModel(engine, corpus, options)).model;
});
afterAll(() => {
  engine.dispose();
  rmSync(root, { recursive: true });
});

const EVERYTHING: Partial<ExtractOptions> = {
  hiddenStates: [2],
  attentions: [2],
  valueRelations: [2],
  relationHeads: 4,
  logits: 'dense',
  shardTexts: 17,
};
const request = (options: Partial<ExtractOptions> = {}): ExtractOptions => ({
  directory: join(root, String(count++)),
  pieces: true,
  logits: { topK: VOCABULARY },
  ...options,
});
const extract = (options: Partial<ExtractOptions> = {}) => extractKnowledge(teacher, train, request(options));
async function distil(source: LanguageTeacher | readonly WeightedTeacher[], options: LanguageStudentOptions) {
  const { epochs, model } = await distillLanguageModel(engine, source, corpus, { architecture, training, ...options });
  const { loss } = await model.loss(corpus.validation);
  model.dispose();
  return { terms: epochs.map(({ ce, kd, hidden, attention }) => ({ ce, kd, hidden, attention })), loss };
}
const error = (code: string, message: string) =>
  expect.objectContaining({ code, message: expect.stringContaining(message) });

describe('a student of a knowledge store', () => {
  test('learns what one of the model itself learns, from every kind of knowledge, dropout and all', async () => {
    const store = await extract(EVERYTHING);
    const losses = { ce: 0.5, kd: 1, hidden: 0.5, attention: 0.5, relation: 0.5, temperature: 2 };
    const [running, stored] = [await distil(teacher, { losses, relationHeads: 4 }), await distil(store, { losses })];
    for (const [i, terms] of running.terms.entries()) {
      for (const [term, value] of Object.entries(terms)) {
        const other = stored.terms[i]?.[term as keyof typeof terms] ?? Number.NaN;
        expect(value, term).toBeGreaterThan(0);
        expect(Math.abs(other - value) / value, term).toBeLessThan(1e-4);
      }
    }
    expect(stored.loss).toBeCloseTo(running.loss, 4);
  });

  test.each([
    ['packed', true],
    ['as floats', false],
  ])('learns from top-k logits %s of the whole vocabulary within what packing loses', async (_, packed) => {
    const store = await extract({ logits: { topK: VOCABULARY, packed } });
    const losses = { ce: 0, kd: 1 };
    const [running, stored] = [await distil(teacher, { losses }), await distil(store, { losses })];
    for (const [i, { kd }] of running.terms.entries()) {
      // A KL of δ moves that to the student by about sqrt(2·δ)·sqrt(kd); of whole floats, nothing does.
      expect(Math.abs((stored.terms[i]?.kd ?? Number.NaN) - kd)).toBeLessThan(packed ? 0.01 * kd + 1e-3 : 1e-4 * kd);
    }
    expect(Math.abs(stored.loss - running.loss)).toBeLessThan(packed ? 0.01 : 1e-3);
  });

  test('learns from a store and a model at once, each by its weight', async () => {
    const store = await extract({ ...EVERYTHING, valueRelations: [] });
    const losses = { ce: 0.5, kd: 1, hidden: 0.5, attention: 0.5 };
    const one = await distil(teacher, { losses });
    const halves = [store, teacher].map((half) => ({ teacher: half, weight: 0.5 }));
    const two = await distil(halves, { losses });
    for (const term of ['kd', 'hidden', 'attention'] as const) {
      const expected = one.terms[0]?.[term] ?? Number.NaN;
      expect(Math.abs((two.terms[0]?.[term] ?? Number.NaN) - expected) / expected, term).toBeLessThan(1e-2);
    }
    const foreign = { teacher: store, weight: 1 };
    const json = await trainBytePairTokenizer(train, { vocabSize: 280, specialTokens: ['<|endoftext|>'] });
    const tokenizer = createTokenizer(json);
    await expect(
      distillLanguageModel(engine, [foreign], corpus, { architecture, training }, { tokenizer }),
    ).rejects.toThrow(error('ERR_INVALID_ARGUMENT', 'store'));
  });

  test('starts from the weights of a model given with the store', async () => {
    const store = await extract();
    const first = async (initialise: 'random' | 'width') => {
      const once = { ...training, epochs: 1, learningRate: 1e-9 };
      return (await distil({ knowledge: store, model: teacher }, { initialise, training: once })).terms[0]?.ce;
    };
    expect(await first('width')).not.toBe(await first('random'));
    await expect(distil(store, { initialise: 'width' })).rejects.toThrow(
      error('ERR_INVALID_ARGUMENT', 'model beside it'),
    );
    await expect(distil(store, { interpolation: { alpha: 0.1 } })).rejects.toThrow(
      error('ERR_INVALID_ARGUMENT', 'model beside it'),
    );
    const other = LanguageModel.create(engine, teacher.family, teacher.config, teacher.tokenizer, { seed: 7 });
    await expect(distil({ knowledge: store, model: other }, {})).rejects.toThrow(
      error('ERR_CHECKPOINT_MISMATCH', 'another teacher'),
    );
    other.dispose();
  });

  test('of a corpus on disk reads the store that was extracted from it', async () => {
    const path = join(root, 'train.txt');
    writeFileSync(path, train.join('\n'));
    const store = await extractKnowledge(teacher, { path }, request(EVERYTHING));
    const fromTexts = await extract(EVERYTHING);
    expect(store.manifest).toEqual(fromTexts.manifest);
    const options = { architecture, training };
    const { epochs } = await distillLanguageModel(engine, store, { ...corpus, train: { path } }, options);
    const same = await distillLanguageModel(engine, fromTexts, corpus, options);
    expect(epochs.map(({ kd }) => kd)).toEqual(same.epochs.map(({ kd }) => kd));
  });

  test('reads a store that was merged from parts, copied together', async () => {
    const parts = [request(), request()];
    for (const [i, options] of parts.entries()) {
      await extractKnowledgePart(teacher, train, { ...options, shardTexts: 30 }, { index: i + 1, count: 2 });
    }
    const together = join(root, String(count++));
    mkdirSync(together);
    const merged = await mergeKnowledge(
      together,
      parts.map(({ directory }) => directory),
    );
    const whole = await extract({ shardTexts: 30 });
    const losses = { ce: 0, kd: 1 };
    expect(await distil(merged, { losses })).toEqual(await distil(whole, { losses }));
  });
});

describe('before the first step it is refused', () => {
  const noStep = { onProgress: () => expect.unreachable('a step was made') };
  const refuse = async (store: Knowledge, options: LanguageStudentOptions, texts: readonly string[] = train) =>
    expect(
      distillLanguageModel(engine, store, { ...corpus, train: texts }, { architecture, training, ...options }, noStep),
    ).rejects;

  test('a store that was not made for training, or of a masked model', async () => {
    await (await refuse(await extract({ pieces: false }), {})).toThrow(error('ERR_INVALID_ARGUMENT', 'pieces: true'));
    const special = { objective: 'masked', architecture, tokenizer: { vocabSize: VOCABULARY }, training } as const;
    const { model } = await pretrainLanguageModel(engine, corpus, special);
    const store = await extractKnowledge(model, train, request());
    await (await refuse(store, {})).toThrow(error('ERR_INVALID_ARGUMENT', 'masked'));
    model.dispose();
  });

  test('a store of other texts, of another order, or of other pieces', async () => {
    const store = await extract();
    const mismatch = (message: string) => error('ERR_CHECKPOINT_MISMATCH', message);
    await (await refuse(store, {}, train.slice(1))).toThrow(mismatch('not of these training texts'));
    await (await refuse(store, {}, [...train, 'film'])).toThrow(mismatch('61'));
    await (await refuse(store, {}, train.toReversed())).toThrow(mismatch('piece 0'));
    // Of equal lengths, but other tokens.
    await (
      await refuse(
        store,
        {},
        train.map((text) => text.replace('film', 'mlif')),
      )
    ).toThrow(mismatch('training texts'));
    await (await refuse(store, { training: { ...training, maxLength: 12 } })).toThrow(
      error('ERR_INVALID_ARGUMENT', 'training.maxLength'),
    );
    const short = await extract({ maxLength: 12 });
    expect(short.numTexts).toBeGreaterThan(store.numTexts);
    const once = { ...training, epochs: 1 };
    await distil(short, { training: { ...once, maxLength: 12 } });
    await distil(short, { training: once, architecture: { ...architecture, maxPositionEmbeddings: 12 } });
  });

  test('a loss that the store has nothing for', async () => {
    const store = await extract({
      hiddenStates: [1],
      valueRelations: [2],
      relationHeads: 4,
      logits: undefined as never,
    });
    const invalid = (message: string) => error('ERR_INVALID_ARGUMENT', message);
    const losses = { kd: 0 };
    await (await refuse(store, {})).toThrow(invalid('losses.kd'));
    await (await refuse(store, { losses: { ...losses, hidden: 1 } })).toThrow(invalid('layer 2 (it has 1)'));
    await (await refuse(store, { losses: { ...losses, attention: 1 } })).toThrow(invalid('it has none'));
    await (await refuse(store, { losses: { ...losses, relation: 1 }, relationHeads: 2 })).toThrow(invalid('4 heads'));
    const pooled = await extract({ hiddenStates: [2], pooling: 'mean' });
    await (await refuse(pooled, { losses: { ...losses, hidden: 1 } })).toThrow(invalid('every token'));
    const maps = await extract({ attentions: [2] });
    const heads = { ...architecture, numAttentionHeads: 4 };
    await (await refuse(maps, { architecture: heads, losses: { ...losses, attention: 1 } })).toThrow(
      error('ERR_SHAPE_MISMATCH', 'head counts'),
    );
  });

  test('an extraction of a file that is not cut into pieces, or a length of pieces without any', async () => {
    const invalid = (message: string) => error('ERR_INVALID_ARGUMENT', message);
    await expect(extractKnowledge(teacher, { path: 'a.txt' }, request({ pieces: false }))).rejects.toThrow(
      invalid('pieces: true'),
    );
    await expect(extract({ pieces: false, maxLength: 12 })).rejects.toThrow(invalid('extract.maxLength'));
  });
});
