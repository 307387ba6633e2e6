import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { loadBinding, type NativeEngine } from '../../../src/binding.js';
import { distillOptionsSchema } from '../../../src/engine/options.js';
import { fisherWeights, measureImportance, selectByMass } from '../../../src/student/importance.js';
import { startLayerMap } from '../../../src/student/initialise.js';
import { distillLanguageModel, type LanguageStudentOptions } from '../../../src/student/language-student.js';
import { residualAxes } from '../../../src/student/residual-axes.js';
import { chooseTeacherWeights } from '../../../src/student/teacher-weights.js';
import { projectTeacher } from '../../../src/student/transfer.js';
import type { LanguageModel } from '../../../src/teacher/language-model.js';
import { pretrainLanguageModel } from '../../../src/teacher/pretrain.js';
import { temporaryDirectory } from '../teacher/fake-model.js';

const train = Array.from(
  { length: 120 },
  (_, i) => `film ${i % 10} is ${['good', 'bad', 'long'][i % 3]} and ${['old', 'new'][i % 2]}, by ${'abcde'[i % 5]}`,
);
const corpus = { train, validation: train.slice(0, 24) };
const architecture = { hiddenSize: 16, numHiddenLayers: 2, numAttentionHeads: 2, dropout: 0 };
const still = { epochs: 1, learningRate: 1e-12, batchTokens: 512, seed: 1 };
const folder = temporaryDirectory();
const kinds = ['activation', 'fisher', 'saliency'] as const;
let engine: NativeEngine;
let teacher: LanguageModel;
beforeAll(async () => {
  engine = loadBinding().createEngine({ threads: 1 });
  const shape = { hiddenSize: 32, numHiddenLayers: 4, numAttentionHeads: 4, maxPositionEmbeddings: 32, dropout: 0 };
  const training = { epochs: 3, learningRate: 0.01, batchTokens: 512, seed: 1 };
  const options = { architecture: shape, tokenizer: { vocabSize: 290 }, training };
  teacher = (await pretrainLanguageModel(engine, corpus, options)).model;
});
afterAll(() => {
  engine.dispose();
});

async function student(options: LanguageStudentOptions): Promise<LanguageModel> {
  const settings = { architecture, training: still, ...options };
  return (await distillLanguageModel(engine, teacher, corpus, settings)).model;
}

const distance = (a: Float32Array, b: Float32Array) =>
  a.reduce((most, value, i) => Math.max(most, Math.abs(value - (b[i] ?? Number.NaN))), 0);

const gains = (model: LanguageModel, block: number) =>
  Array.from(model.native.getParameter(`layers.${block}.mlp_norm.weight`));

describe('what a student starts from', () => {
  test.each([
    [2, 4, [1, 4]],
    [3, 4, [1, 3, 4]],
    [1, 4, [1]],
    [4, 4, [1, 2, 3, 4]],
    [5, 3, [1, 2, 2, 3, 3]],
  ])('is, for %i blocks under %i, %j', (student, teacher, layers) => {
    expect(startLayerMap(student, teacher)).toEqual(layers);
  });

  test('is any map of blocks', async () => {
    const model = await student({
      initialise: 'layers',
      layers: [3, 1],
      architecture: { ...architecture, hiddenSize: 32, numAttentionHeads: 4 },
    });
    expect(gains(model, 0)).toEqual(gains(teacher, 2).map((value) => expect.closeTo(value, 6)));
    expect(gains(model, 1)).toEqual(gains(teacher, 0).map((value) => expect.closeTo(value, 6)));
  });

  test.each(kinds)('is chosen by %s, the same at every run', async (by) => {
    const options = { initialise: 'width', width: 'selection', importance: by, importanceTexts: 20 } as const;
    const [model, again] = [await student(options), await student(options)];
    // Every sixth text, from the fourth on.
    const measured = await measureImportance(
      engine,
      teacher,
      train.filter((_, i) => i % 6 === 3),
    );
    const { layers, channels } = selectByMass(measured[by], model.config);
    const theirs = gains(teacher, (layers[1] ?? 0) - 1);
    expect(gains(model, 1)).toEqual(channels.residual?.map((place) => expect.closeTo(theirs[place] ?? 0, 6)));
    expect(again.native.getParameter('embeddings.word')).toEqual(model.native.getParameter('embeddings.word'));
  });

  test('is measured on the same texts of a file as of an array', async () => {
    const path = join(folder, 'train.txt');
    writeFileSync(path, train.join('\n'));
    for (const importanceTexts of [20, 500]) {
      const options = { width: 'pca', importance: 'activation', importanceTexts, alwaysMeasure: true } as const;
      const size = { ...teacher.config, ...architecture, intermediateSize: 64, numKeyValueHeads: 2 };
      const [memory, disk] = await Promise.all(
        [train, { path }].map((texts) => chooseTeacherWeights(engine, teacher, size, texts, options)),
      );
      expect(disk?.map).toEqual(memory?.map);
      expect(disk?.importance?.numExamples).toBe(Math.min(importanceTexts, train.length));
      expect(disk?.importance?.activation).toEqual(memory?.importance?.activation);
    }
  });

  test('takes the blocks that are named with the channels that matter', async () => {
    const measured = await measureImportance(engine, teacher, train);
    const { map } = await chooseTeacherWeights(
      engine,
      teacher,
      { ...teacher.config, ...architecture, numKeyValueHeads: 2, headDim: 8, intermediateSize: 64 },
      train,
      { layers: [1, 1], width: 'selection', importance: 'fisher', importanceTexts: 1000, alwaysMeasure: false },
    );
    expect(map.layers).toEqual([1, 1]);
    expect(map.channels?.intermediate?.[0]).toEqual(
      selectByMass(measured.fisher, { ...teacher.config, intermediateSize: 64 }, [1]).channels.intermediate?.[0],
    );
  });

  test('and is interpolated towards goes by Fisher information, parameter by parameter', async () => {
    const one = { initialise: 'random', training: { ...still, batchTokens: 1 << 20 } } as const;
    const [from, model] = [
      await student(one),
      await student({ ...one, interpolation: { alpha: 0.5, weights: 'fisher' } }),
    ];
    const measured = await measureImportance(engine, teacher, train);
    const weights = await fisherWeights(engine, from.native, teacher.config, measured, { layers: [1, 4] });
    const towards = await projectTeacher(from.native, teacher.native, { layers: [1, 4], width: 'selection' });
    const name = 'layers.1.mlp.output.weight';
    const [before, target] = [
      from.native.getParameter(name),
      towards.parameters.find((one) => one.name === name)?.values,
    ];
    const expected = before.map(
      (value, i) => value + 0.5 * (weights.get(name)?.[i] ?? 0) * ((target?.[i] ?? 0) - value),
    );
    model.native.getParameter(name).forEach((value, i) => {
      expect(value).toBeCloseTo(expected[i] ?? 0, 6);
    });
    expect(expected.some((value, i) => Math.abs(value - (before[i] ?? 0)) > 1e-3)).toBe(true);
  });
});

describe('the residual stream of a narrower student', () => {
  const narrow = { ...architecture, numHiddenLayers: 4, numAttentionHeads: 4, intermediateSize: 128 };
  const started = (options: LanguageStudentOptions) =>
    student({ initialise: 'width', architecture: narrow, ...options });

  test('is turned onto the axes that carry most, which keeps more of the teacher than its channels', async () => {
    const [turned, selected] = [await started({}), await started({ width: 'selection' })];
    const lossOf = async (model: LanguageModel) => (await model.loss(corpus.validation)).loss;
    const [theirs, ours, before] = [await lossOf(teacher), await lossOf(turned), await lossOf(selected)];
    expect(ours - theirs).toBeLessThan(0.25 * (before - theirs));
    const components = await residualAxes(engine, teacher, train, narrow.hiddenSize);
    const map = { layers: [1, 2, 3, 4], width: 'pca', components } as const;
    for (const { name, values } of await turned.native.project(teacher.native, map)) {
      expect(distance(turned.native.getParameter(name), values)).toBeLessThan(1e-6);
    }
  });

  test('keeps blocks, heads and intermediate channels by importance', async () => {
    const measured = await measureImportance(engine, teacher, train);
    const size = { ...teacher.config, ...architecture, intermediateSize: 64, numKeyValueHeads: 2 };
    const options = { width: 'pca', importance: 'fisher', importanceTexts: 1000, alwaysMeasure: false } as const;
    const { map } = await chooseTeacherWeights(engine, teacher, size, train, options);
    const { layers, channels } = selectByMass(measured.fisher, size);
    const { intermediate, keyValueHeads } = channels;
    expect(map).toMatchObject({ layers, width: 'pca', channels: { intermediate, keyValueHeads } });
    expect(map.channels?.residual).toBeUndefined();
  });

  test('is interpolated towards the teacher in the axes that it starts in', async () => {
    const [start, there] = [await started({}), await started({ interpolation: { alpha: 1 } })];
    for (const { name } of start.native.parameters()) {
      expect(distance(there.native.getParameter(name), start.native.getParameter(name))).toBeLessThan(1e-6);
    }
  });

  test('is the teacher’s own where the student is as wide', async () => {
    const wide = { ...narrow, hiddenSize: 32 };
    const model = await student({ initialise: 'width', architecture: wide });
    const [own, theirs] = [model, teacher].map(({ native }) => native.getParameter('embeddings.word'));
    expect(distance(own ?? new Float32Array(0), theirs ?? new Float32Array(0))).toBeLessThan(1e-9);
  });

  test('has orthonormal axes, the same for the same texts', async () => {
    const axes = await residualAxes(engine, teacher, train, 12);
    expect(axes).toEqual(await residualAxes(engine, teacher, train, 12));
    for (let i = 0; i < 12; i++) {
      for (let j = 0; j <= i; j++) {
        const product = axes
          .subarray(32 * i, 32 * i + 32)
          .reduce((sum, value, c) => sum + value * (axes[32 * j + c] ?? 0), 0);
        expect(product).toBeCloseTo(Number(i === j), 5);
      }
    }
  });

  test.each([
    [train, 33, 'from 1 to 32'],
    [train, 1.5, 'from 1 to 32'],
    [['a'], 20, 'give more data'],
  ] as const)('refuses what no axes can be found for', async (texts, width, message) => {
    await expect(residualAxes(engine, teacher, texts, width)).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringContaining(message),
    });
  });

  test('ends where it is aborted', async () => {
    const aborted = { signal: AbortSignal.abort() };
    await expect(residualAxes(engine, teacher, train, 8, aborted)).rejects.toMatchObject({ code: 'ERR_ABORTED' });
  });
});

describe('refused before the first step', () => {
  test.each([
    [{ initialise: 'width', width: 'pca', interpolation: { alpha: 0.1, weights: 'fisher' } }, 'Set width to'],
    [{ layers: [1, 2] }, 'layers says'],
    [{ importance: 'fisher' }, 'importance says'],
    [{ width: 'pca' }, 'width says'],
    [{ initialise: 'width', layers: [1] }, 'for each of the student'],
    [{ initialise: 'width', layers: [1, 5] }, 'from 1 to 4'],
    [{ losses: { hidden: 1 }, layerMap: [[3, 1]] }, 'layerMap'],
    [{ losses: { hidden: 1 }, layerMap: [[1, 5]] }, 'layerMap'],
    [
      { initialise: 'width', importance: 'fisher', architecture: { ...architecture, hiddenSize: 64 } },
      'smaller student',
    ],
  ] as [LanguageStudentOptions, string][])('%j', async (options, message) => {
    await expect(student(options)).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringContaining(message),
    });
  });
});

test('the losses take any map of layers, several teacher layers for one of the student included', async () => {
  const { epochs } = await distillLanguageModel(engine, teacher, corpus, {
    architecture,
    training: { ...still, epochs: 4, learningRate: 0.01 },
    losses: { hidden: 1 },
    layerMap: [
      [1, 3],
      [2, 1],
      [2, 4],
    ],
  });
  expect(epochs.at(-1)?.hidden).toBeLessThan(epochs[0]?.hidden ?? 0);
});

test('the options are those of a distillation from a file', () => {
  const languageStudent = {
    family: 'llama',
    architecture: { hiddenSize: 16, numHiddenLayers: 1, numAttentionHeads: 2, numKeyValueHeads: 1 },
    initialise: 'width',
    width: 'selection',
    layers: [2],
    importance: 'fisher',
    layerMap: [[1, 2]],
    interpolation: { alpha: 0.1, weights: 'fisher' },
  };
  const data = { interactions: { path: 'a.csv', columns: { user: 'u', item: 'i' } } };
  expect(distillOptionsSchema.parse({ output: 'out', data, languageStudent }).languageStudent).toMatchObject(
    languageStudent,
  );
});
