import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { loadBinding, type NativeEngine } from '../../../src/binding.js';
import { distillLanguageModel } from '../../../src/student/language-student.js';
import type { LanguageModel } from '../../../src/teacher/language-model.js';
import { pretrainLanguageModel } from '../../../src/teacher/pretrain.js';

const train = Array.from(
  { length: 120 },
  (_, i) => `film ${i % 10} is ${['good', 'bad', 'long'][i % 3]} and ${['old', 'new'][i % 2]}`,
);
const corpus = { train, validation: train.slice(0, 24) };
const architecture = {
  hiddenSize: 16,
  numHiddenLayers: 1,
  numAttentionHeads: 2,
  maxPositionEmbeddings: 32,
  dropout: 0,
};
const training = { epochs: 4, learningRate: 0.01, batchTokens: 256, seed: 1 };
let engine: NativeEngine;
let teacher: LanguageModel;
beforeAll(async () => {
  engine = loadBinding().createEngine({ threads: 2 });
  const shape = { ...architecture, hiddenSize: 32, numHiddenLayers: 2 };
  const options = { architecture: shape, tokenizer: { vocabSize: 290 }, training };
  teacher = (await pretrainLanguageModel(engine, corpus, options)).model;
});
afterAll(() => {
  engine.dispose();
});

describe('a language student', () => {
  test('learns every term that its teacher offers: logits, hidden states, attention maps', async () => {
    const losses = { ce: 0.5, kd: 1, hidden: 0.5, attention: 0.5, temperature: 2 };
    const { model, epochs } = await distillLanguageModel(engine, teacher, corpus, { architecture, training, losses });
    expect(model.config.hiddenSize).toBe(16);
    expect(model.tokenizer).toBe(teacher.tokenizer);
    for (const term of ['ce', 'kd', 'hidden', 'attention'] as const) {
      expect(epochs[0]?.[term], term).toBeGreaterThan(0);
      expect(epochs.at(-1)?.[term], term).toBeLessThan(epochs[0]?.[term] ?? 0);
    }
  });

  test('of another number of heads learns the value relations of its teacher', async () => {
    const heads = { ...architecture, numAttentionHeads: 4 };
    const losses = { ce: 0.1, kd: 0, relation: 1 };
    const untrained = { ...training, epochs: 1, learningRate: 1e-9 };
    const relations = async (options: typeof training) => {
      const settings = { architecture: heads, training: options, losses, relationHeads: 8 };
      const { epochs, model } = await distillLanguageModel(engine, teacher, corpus, settings);
      model.dispose();
      const { trainLoss = Number.NaN, ce = Number.NaN, relation = Number.NaN } = epochs.at(-1) ?? {};
      expect(trainLoss).toBeCloseTo(0.1 * ce + relation, 5);
      return relation;
    };
    const [before, after] = [await relations(untrained), await relations(training)];
    expect(after).toBeGreaterThan(0);
    expect(after).toBeLessThan(0.5 * before);
  });

  test.each([
    [
      'none of whose head counts divides the values of its teacher',
      { hiddenSize: 24, numAttentionHeads: 3 },
      undefined,
    ],
    ['with grouped heads', { hiddenSize: 24, numAttentionHeads: 6, numKeyValueHeads: 2 }, 'llama' as const],
  ])('%s learns, with and without the relation loss', async (_, shape, family) => {
    for (const losses of [
      { ce: 0, kd: 1 },
      { ce: 0, kd: 0, relation: 1 },
    ]) {
      const { model, epochs } = await distillLanguageModel(engine, teacher, corpus, {
        ...(family && { family }),
        architecture: { ...architecture, ...shape },
        training,
        losses,
      });
      model.dispose();
      const [first, last] = [epochs[0]?.trainLoss ?? Number.NaN, epochs.at(-1)?.trainLoss ?? Number.NaN];
      expect(last).toBeGreaterThan(0);
      expect(last).toBeLessThan(0.9 * first);
    }
  });

  test('refuses relation heads that do not divide the values', async () => {
    const losses = { relation: 1 };
    const settings = { architecture, training, losses, relationHeads: 3 };
    await expect(distillLanguageModel(engine, teacher, corpus, settings)).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
    });
  });

  test('from the width-reduced teacher starts elsewhere than at random', async () => {
    const first = async (initialise: 'random' | 'width') => {
      const options = { architecture, initialise, training: { ...training, epochs: 1, learningRate: 1e-6 } };
      return (await distillLanguageModel(engine, teacher, corpus, options)).epochs[0]?.ce;
    };
    expect(await first('width')).not.toBe(await first('random'));
  });

  test('interpolated at 1 towards a teacher of its own shape is that teacher', async () => {
    const shape = { ...architecture, hiddenSize: 32, numHiddenLayers: 2 };
    const options = { architecture: shape, training: { ...training, epochs: 1 }, interpolation: { alpha: 1 } };
    const { model } = await distillLanguageModel(engine, teacher, corpus, options);
    const [ours, theirs] = await Promise.all([model.loss(corpus.validation), teacher.loss(corpus.validation)]);
    expect(ours).toEqual(theirs);
  });

  test('tells its caller about every epoch, with the student to measure', async () => {
    const seen: number[] = [];
    await distillLanguageModel(
      engine,
      teacher,
      corpus,
      { architecture, training },
      {
        afterEpoch: async ({ epoch }, student) => {
          expect((await student.loss(corpus.validation)).loss).toBeGreaterThan(0);
          seen.push(epoch);
        },
      },
    );
    expect(seen).toEqual([1, 2, 3, 4]);
  });

  test('refuses attention maps of another number of heads, and unknown options', async () => {
    const heads = { ...architecture, numAttentionHeads: 4 };
    await expect(
      distillLanguageModel(engine, teacher, corpus, { architecture: heads, training, losses: { attention: 1 } }),
    ).rejects.toMatchObject({ code: 'ERR_SHAPE_MISMATCH', message: expect.stringContaining('head') });
    await expect(
      distillLanguageModel(engine, teacher, corpus, { architectur: architecture } as never),
    ).rejects.toMatchObject({ code: 'ERR_UNKNOWN_OPTION', message: expect.stringContaining('architecture') });
  });
});
