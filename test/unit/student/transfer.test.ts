import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { loadBinding, type NativeEngine, type NativeTransformer } from '../../../src/binding.js';
import { initialiseStudent, uniformLayerMap, uniformLayerPairs } from '../../../src/student/initialise.js';
import { languageStudentOptionsSchema } from '../../../src/student/language-student.js';
import { fineTuneOptionsSchema } from '../../../src/student/options.js';
import { sequenceConfig } from '../../../src/student/sequence-model.js';
import {
  featureAxes,
  interpolateParameters,
  lossesAt,
  projectTeacher,
  scheduleAt,
  setFeatureMappings,
} from '../../../src/student/transfer.js';

let engine: NativeEngine;
beforeAll(() => {
  engine = loadBinding().createEngine({ threads: 1 });
});
afterAll(() => {
  engine.dispose();
});

function model(hiddenSize: number, numHiddenLayers: number, seed: number): NativeTransformer {
  const architecture = { hiddenSize, numHiddenLayers, numAttentionHeads: 2, maxHistory: 8 };
  const native = engine.createTransformer(sequenceConfig(architecture, 30, 0));
  native.initialize(seed, 0.2);
  return native;
}

const POSITION = { epoch: 1, index: 0, step: 0, totalSteps: 100, learningRate: 0.1, dropoutSeed: 0 };

const parametersOf = (native: NativeTransformer) =>
  native.parameters().map(({ name }) => [name, Array.from(native.getParameter(name))] as const);

describe('schedules', () => {
  test('a number is constant', () => {
    expect(scheduleAt(0.3, 7, 10)).toBe(0.3);
  });

  test('go linearly from one value to another, and stay there', () => {
    const schedule = { from: 1, to: 0, until: 0.5 };
    expect([0, 25, 50, 99].map((step) => scheduleAt(schedule, step, 100))).toEqual([1, 0.5, 0, 0]);
  });

  test('weights and the temperature follow theirs', () => {
    const { losses } = fineTuneOptionsSchema.parse({
      losses: { ce: 0.5, kd: { from: 1, to: 0 }, temperature: { from: 4, to: 1, until: 0.5 } },
    });
    const at = (step: number) => {
      const { ce, kd, temperature } = lossesAt(losses, { ...POSITION, step });
      return [ce, kd, temperature];
    };
    expect([0, 25, 50, 75].map(at)).toEqual([
      [0.5, 1, 4],
      [0.5, 0.75, 2.5],
      [0.5, 0.5, 1],
      [0.5, 0.25, 1],
    ]);
  });

  test.each([0, -1, 101, { from: 0, to: 1 }, { from: 2, to: 0 }])('a temperature of %j is refused', (temperature) => {
    expect(fineTuneOptionsSchema.safeParse({ losses: { temperature } }).success).toBe(false);
  });

  test.each(['ce', 'kd', 'hidden', 'attention', 'relation'])('a negative weight of %s is refused', (term) => {
    const wrong = [-0.1, { from: -1, to: 1 }, { from: 1, to: -1, until: 0.5 }];
    for (const weight of wrong) {
      const { error } = languageStudentOptionsSchema.safeParse({ losses: { [term]: weight } });
      expect(error?.issues[0]).toMatchObject({ path: ['losses', term], message: 'expected a weight of 0 or more' });
    }
  });

  test.each([-0.1, 1.5, { from: 0, to: 2 }])('a share of %j of the teacher in the soft labels is refused', (fusion) => {
    expect(fineTuneOptionsSchema.safeParse({ losses: { fusion } }).success).toBe(false);
  });
});

describe('layer maps', () => {
  test.each([
    [2, 4, [2, 4]],
    [3, 4, [1, 3, 4]],
    [2, 5, [3, 5]],
    [4, 2, [1, 1, 2, 2]],
    [1, 1, [1]],
  ])('%i student blocks take from %i teacher blocks', (student, teacher, expected) => {
    expect(uniformLayerMap(student, teacher)).toEqual(expected);
    expect(uniformLayerPairs(student, teacher)).toEqual(expected.map((layer, i) => [i + 1, layer]));
  });

  test.each([2 ** 31, 0, 1.5, Number.NaN])('refuse %s blocks', (layers) => {
    const refusal = expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' });
    expect(() => uniformLayerMap(layers, 2)).toThrow(refusal);
    expect(() => uniformLayerMap(2, layers)).toThrow(refusal);
  });
});

describe('parameter interpolation', () => {
  const identity = { layers: [1, 2], width: 'selection' } as const;

  test('at 1 gives the teacher bit for bit, at 0 the student', async () => {
    const student = model(16, 2, 1);
    const teacher = model(16, 2, 2);
    const before = parametersOf(student);
    const projected = await projectTeacher(student, teacher, identity);
    await interpolateParameters(student, projected, 0);
    expect(parametersOf(student)).toEqual(before);
    await interpolateParameters(student, projected, 1);
    expect(parametersOf(student)).toEqual(parametersOf(teacher));
  });

  test('in between moves every parameter by that share of the way', async () => {
    const student = model(16, 2, 1);
    const teacher = model(16, 2, 2);
    const name = 'layers.1.mlp.input.weight';
    const from = student.getParameter(name);
    const to = teacher.getParameter(name);
    await interpolateParameters(student, await projectTeacher(student, teacher, identity), 0.25);
    student.getParameter(name).forEach((value, i) => {
      expect(value).toBeCloseTo((from[i] ?? 0) + 0.25 * ((to[i] ?? 0) - (from[i] ?? 0)), 6);
    });
  });

  test('refuses an α that is not a number', async () => {
    const student = model(16, 2, 1);
    const projected = await projectTeacher(student, model(16, 2, 2), identity);
    await expect(interpolateParameters(student, projected, Number.NaN)).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
    });
  });
});

describe('initialisation', () => {
  test('takes chosen blocks of a teacher of the same width', async () => {
    const student = model(16, 2, 1);
    const teacher = model(16, 4, 2);
    const filled = await initialiseStudent(student, { method: 'layers', teacher, studentLayers: 2, teacherLayers: 4 });
    expect(filled).toHaveLength(student.parameters().length);
    for (const [own, source] of [
      [0, 1],
      [1, 3],
    ]) {
      const suffix = 'attention.qkv.weight';
      expect(student.getParameter(`layers.${own}.${suffix}`)).toEqual(
        teacher.getParameter(`layers.${source}.${suffix}`),
      );
    }
  });

  test('reduces a wider teacher, by selected channels or by principal axes', async () => {
    const teacher = model(32, 2, 2);
    const states = teacher.getParameter('embeddings.word');
    const components = await featureAxes(engine, states, { studentWidth: 16, teacherWidth: 32, seed: 1 });
    const results = [];
    for (const axes of [undefined, components]) {
      const student = model(16, 2, 1);
      const before = student.getParameter('layers.0.mlp.output.weight');
      const options = { method: 'width', teacher, studentLayers: 2, teacherLayers: 2 } as const;
      await initialiseStudent(student, axes ? { ...options, components: axes } : options);
      const after = student.getParameter('layers.0.mlp.output.weight');
      expect(after).not.toEqual(before);
      expect(after.every(Number.isFinite)).toBe(true);
      results.push(after);
    }
    expect(results[0]).not.toEqual(results[1]);
  });

  test('by layers refuses a teacher of another width, and any method a missing teacher', async () => {
    const student = model(16, 2, 1);
    const invalid = expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' });
    const wide = { method: 'layers', teacher: model(32, 2, 2), studentLayers: 2, teacherLayers: 2 } as const;
    await expect(initialiseStudent(student, wide)).rejects.toThrow(invalid);
    await expect(initialiseStudent(student, { method: 'width', studentLayers: 2 })).rejects.toThrow(invalid);
    expect(await initialiseStudent(student, { method: 'random', studentLayers: 2 })).toEqual([]);
  });
});

test('feature mappings start from the principal axes of the teacher', async () => {
  const student = model(16, 2, 1);
  const trainer = engine.createTrainer(student, {
    optimizer: 'adamw',
    beta1: 0.9,
    beta2: 0.98,
    epsilon: 1e-8,
    weightDecay: 0,
    momentum: 0,
    maxGradNorm: 0,
  });
  const states = model(32, 1, 5).getParameter('embeddings.word');
  const axes = await featureAxes(engine, states, { studentWidth: 16, teacherWidth: 32, seed: 1 });
  expect(setFeatureMappings(trainer, { studentWidth: 16, teacherWidth: 32, axes: [axes, undefined] })).toEqual([
    [32, 16],
    [32, 16],
  ]);
  const mapped = trainer.getProjection(0);
  expect(mapped[3 * 16 + 2]).toBe(axes[2 * 32 + 3]);
  const identity = trainer.getProjection(1);
  expect(identity[5 * 16 + 5]).toBe(1);
  expect(identity.filter((value) => value !== 0)).toHaveLength(16);
});
