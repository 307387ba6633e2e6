import { afterAll, beforeAll, expect, test } from 'vitest';
import { loadBinding, type NativeEngine } from '../../../src/binding.js';
import { sequenceConfig } from '../../../src/student/sequence-model.js';

let engine: NativeEngine;
beforeAll(() => {
  engine = loadBinding().createEngine({ threads: 1 });
});
afterAll(() => {
  engine.dispose();
});

test('the gradient of the relation loss is that of finite differences, by model or by arrays', async () => {
  const shape = { numHiddenLayers: 2, maxHistory: 8, dropout: 0 };
  const student = engine.createTransformer(sequenceConfig({ ...shape, hiddenSize: 12, numAttentionHeads: 2 }, 20, 0));
  const teacher = engine.createTransformer(sequenceConfig({ ...shape, hiddenSize: 24, numAttentionHeads: 3 }, 20, 0));
  student.initialize(1, 0.3);
  teacher.initialize(2, 0.3);
  const none = { beta1: 0, beta2: 0, epsilon: 1e-8, weightDecay: 0, momentum: 0, maxGradNorm: 0 };
  const trainer = engine.createTrainer(student, { optimizer: 'sgd', ...none });
  const batch = { inputIds: Int32Array.of(1, 5, 3, 7, 2, 9, 4), sequenceOffsets: Int32Array.of(0, 4, 7) };
  const layerMap = [
    [1, 2],
    [2, 1],
  ] as const;
  const { valueRelations } = await teacher.forward({ ...batch, valueRelations: [2, 1], relationHeads: 4 });
  const request = {
    ...batch,
    labels: Int32Array.of(5, 3, 7, -100, 9, 4, -100),
    learningRate: 0,
    dropoutSeed: -1,
    losses: { ce: 0, kd: 0, hidden: 0, attention: 0, relation: 1, temperature: 1, fusion: 1, gate: 1 },
    sampledNegatives: 0,
  };
  const byArrays = { ...request, teacher: { layerMap, relations: valueRelations, relationHeads: 4 } };
  const byModel = { ...request, teacher: { layerMap, model: teacher, relationHeads: 4 } };
  const { loss } = await trainer.computeGradients(byModel);
  expect((await trainer.computeGradients(byArrays)).loss).toBeCloseTo(loss, 6);
  for (const name of ['layers.0.attention.qkv.weight', 'layers.1.attention.qkv.weight', 'embeddings.word']) {
    const gradient = student.getGradient(name);
    // The place where it is largest: what rounding adds to a difference matters least there.
    const place = gradient.reduce((best, value, i) => (Math.abs(value) > Math.abs(gradient[best] ?? 0) ? i : best), 0);
    const values = student.getParameter(name);
    const lossAt = async (step: number) => {
      student.setParameter(
        name,
        values.map((value, i) => (i === place ? value + step : value)),
      );
      return (await trainer.computeGradients(byArrays)).loss;
    };
    const difference = ((await lossAt(5e-3)) - (await lossAt(-5e-3))) / 1e-2;
    student.setParameter(name, values);
    const found = gradient[place] ?? 0;
    expect(Math.abs(found)).toBeGreaterThan(1e-4);
    expect(Math.abs(difference - found)).toBeLessThan(0.02 * Math.abs(found));
  }
  for (const wrong of [{ relationHeads: 5 }, { relations: valueRelations.slice(1) }, { relations: [] }]) {
    const teaching = { ...byArrays.teacher, ...wrong };
    await expect(trainer.computeGradients({ ...request, teacher: teaching })).rejects.toMatchObject({
      code: expect.stringMatching(/ERR_(INVALID_ARGUMENT|SHAPE_MISMATCH)/),
    });
  }
});
