import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { loadBinding, type NativeEngine } from '../../../src/binding.js';
import { writeSafetensors } from '../../../src/formats/safetensors.js';
import {
  fisherWeights,
  type Importance,
  loadImportance,
  measureImportance,
  saveImportance,
  selectByMass,
} from '../../../src/student/importance.js';
import { initialiseStudent } from '../../../src/student/initialise.js';
import { interpolateParameters, projectTeacher } from '../../../src/student/transfer.js';
import { LanguageModel } from '../../../src/teacher/language-model.js';
import { pretrainLanguageModel } from '../../../src/teacher/pretrain.js';

const train = Array.from(
  { length: 240 },
  (_, i) => `film ${i % 10} is ${['good', 'bad', 'long'][i % 3]} and ${['old', 'new'][i % 2]}, by ${'abcde'[i % 5]}`,
);
const corpus = { train, validation: train.slice(0, 24) };
let engine: NativeEngine;
let folder: string;
let model: LanguageModel;
let importance: Importance;
beforeAll(async () => {
  engine = loadBinding().createEngine({ threads: 2 });
  folder = mkdtempSync(join(tmpdir(), 'limbeck-importance-'));
  const architecture = {
    hiddenSize: 32,
    numHiddenLayers: 3,
    numAttentionHeads: 4,
    maxPositionEmbeddings: 32,
    dropout: 0,
  };
  const training = { epochs: 2, learningRate: 0.01, batchTokens: 512, seed: 1 };
  model = (await pretrainLanguageModel(engine, corpus, { architecture, tokenizer: { vocabSize: 290 }, training }))
    .model;
  importance = await measureImportance(engine, model, train.slice(0, 48));
});
afterAll(() => {
  engine.dispose();
  rmSync(folder, { recursive: true });
});

describe('importance', () => {
  test('is the mean over texts of the squared gradient of each', async () => {
    const texts = train.slice(0, 3);
    const { squaredGradients, numExamples } = await measureImportance(engine, model, texts);
    expect(numExamples).toBe(3);
    const trainer = engine.createTrainer(model.native, {
      optimizer: 'sgd',
      beta1: 0,
      beta2: 0,
      epsilon: 1e-8,
      weightDecay: 0,
      momentum: 0,
      maxGradNorm: 0,
    });
    const name = 'layers.1.mlp.input.weight';
    const expected = new Float64Array(squaredGradients.get(name)?.length ?? 0);
    for (const text of texts) {
      const { ids, offsets } = await model.tokenize([text]);
      const labels = Int32Array.from(ids, (_, i) => ids[i + 1] ?? -100);
      const losses = { ce: 1, kd: 0, hidden: 0, attention: 0, temperature: 1, fusion: 1, gate: 1 };
      const batch = { inputIds: ids, sequenceOffsets: offsets, labels };
      await trainer.computeGradients({ ...batch, learningRate: 0, dropoutSeed: -1, losses, sampledNegatives: 0 });
      model.native.getGradient(name).forEach((gradient, i) => {
        expected[i] = (expected[i] ?? 0) + gradient ** 2 / 3;
      });
    }
    const largest = expected.reduce((a, b) => Math.max(a, b));
    squaredGradients.get(name)?.forEach((value, i) => {
      expect(Math.abs(value - (expected[i] ?? 0))).toBeLessThan(1e-5 * largest);
    });
    trainer.dispose();
  });

  test('of a block, by activation, is how far it moves the residual stream, whatever the final norm makes of it', async () => {
    const name = 'final_norm.weight';
    const gains = model.native.getParameter(name);
    model.native.setParameter(
      name,
      gains.map((gain) => 50 * gain),
    );
    const { activation } = await measureImportance(engine, model, train.slice(0, 48));
    model.native.setParameter(name, gains);
    expect(activation.layers).toEqual(importance.activation.layers);
  });

  test('is the same when it was saved and loaded', async () => {
    const path = join(folder, 'importance.safetensors');
    await saveImportance(path, importance);
    const again = await loadImportance(path);
    expect(again.numExamples).toBe(48);
    expect(again.squaredGradients).toEqual(importance.squaredGradients);
    expect(again.fisher.intermediate[1]).toEqual(
      Float64Array.from(importance.fisher.intermediate[1] ?? [], Math.fround),
    );
    await writeSafetensors(join(folder, 'other.safetensors'), [['x', { shape: [1], data: Float32Array.of(1) }]]);
    await expect(loadImportance(join(folder, 'other.safetensors'))).rejects.toMatchObject({ code: 'ERR_FILE_FORMAT' });
  });

  test('chooses the places of most mass, in their order', () => {
    const sums = {
      residual: Float64Array.of(1, 9, 3, 9),
      layers: Float64Array.of(5, 1, 7),
      intermediate: [Float64Array.of(1, 2, 3), Float64Array.of(0, 0, 0), Float64Array.of(3, 2, 1)],
      keyValueHeads: [Float64Array.of(1, 2), Float64Array.of(1, 2), Float64Array.of(2, 1)],
    };
    const student = { hiddenSize: 3, numHiddenLayers: 2, numKeyValueHeads: 1, intermediateSize: 2 };
    expect(selectByMass(sums, student)).toEqual({
      layers: [1, 3],
      channels: {
        residual: [1, 2, 3],
        intermediate: [
          [1, 2],
          [0, 1],
        ],
        keyValueHeads: [[1], [0]],
      },
    });
    expect(() => selectByMass(sums, { ...student, hiddenSize: 5 })).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }),
    );
  });

  test.each(['fisher', 'saliency', 'activation'] as const)(
    'by %s initialises a student of fewer blocks',
    async (by) => {
      const config = { ...model.config, numHiddenLayers: 2, hiddenSize: 16, numAttentionHeads: 2, numKeyValueHeads: 2 };
      const student = LanguageModel.create(engine, model.family, config, model.tokenizer, { seed: 1 });
      const chosen = selectByMass(importance[by], config);
      expect(chosen.layers).toHaveLength(2);
      const shape = { method: 'width', teacher: model.native, studentLayers: 2, teacherLayers: 3 } as const;
      await initialiseStudent(student.native, { ...shape, ...chosen });
      const gains = model.native.getParameter(`layers.${(chosen.layers[1] ?? 0) - 1}.mlp_norm.weight`);
      expect(Array.from(student.native.getParameter('layers.1.mlp_norm.weight'))).toEqual(
        chosen.channels.residual?.map((channel) => gains[channel]),
      );
      student.dispose();
    },
  );

  test('weighs an interpolation: parameters that matter most move all the way, others hardly', async () => {
    const student = LanguageModel.create(engine, model.family, model.config, model.tokenizer, { seed: 5 });
    const map = { layers: [1, 2, 3] };
    const weights = await fisherWeights(engine, student.native, model.config, importance, map);
    const name = 'layers.2.mlp.output.weight';
    const [from, to] = [student.native.getParameter(name), model.native.getParameter(name)];
    const projected = await projectTeacher(student.native, model.native, { ...map, width: 'selection' });
    await interpolateParameters(student.native, projected, 0.5, weights);
    const weight = weights.get(name) ?? new Float32Array(0);
    expect(weight.reduce((a, b) => Math.max(a, b))).toBe(1);
    expect(weight.reduce((a, b) => Math.min(a, b))).toBeGreaterThanOrEqual(0);
    student.native.getParameter(name).forEach((value, i) => {
      const expected = (from[i] ?? 0) + 0.5 * (weight[i] ?? 0) * ((to[i] ?? 0) - (from[i] ?? 0));
      expect(value).toBeCloseTo(expected, 6);
    });
    student.dispose();
  });
});
