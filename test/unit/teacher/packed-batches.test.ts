import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { loadBinding, type NativeEngine, type PackedBatch } from '../../../src/binding.js';
import { createTinyModel, expectClose, TINY_MODELS, tinyBatch } from '../../support/tiny-models.js';

let engine: NativeEngine;
beforeAll(() => {
  engine = loadBinding().createEngine({ threads: 2 });
});
afterAll(() => {
  engine.dispose();
});

describe('texts packed end to end', () => {
  test.each(Object.entries(TINY_MODELS))('of a %s do not see each other', async (_, config) => {
    const { hiddenSize, numHiddenLayers, vocabSize } = config;
    const model = createTinyModel(engine, config, 2);
    const { labels, ...batch } = tinyBatch(config);
    const run = async (of: PackedBatch) => {
      const hiddenStates = Array.from({ length: numHiddenLayers + 1 }, (_, l) => l);
      const outputs = await model.forward({ ...of, hiddenStates, logits: 'dense' });
      return [...outputs.hiddenStates, outputs.logits ?? new Float32Array()];
    };
    const packed = await run(batch);
    const widths = packed.map((_, i) => (i > numHiddenLayers ? vocabSize : hiddenSize));
    for (const [s, begin] of batch.sequenceOffsets.subarray(0, -1).entries()) {
      const end = batch.sequenceOffsets[s + 1] ?? 0;
      const own = packed.map((rows, i) => rows.subarray(begin * (widths[i] ?? 0), end * (widths[i] ?? 0)));
      const tokenTypeIds = batch.tokenTypeIds && { tokenTypeIds: batch.tokenTypeIds.slice(begin, end) };
      const inputIds = batch.inputIds.slice(begin, end);
      const alone = await run({ inputIds, sequenceOffsets: Int32Array.of(0, end - begin), ...tokenTypeIds });
      for (const [i, rows] of own.entries()) expectClose(alone[i], rows, 1e-5, `text ${s} alone`);
      // Few rows are multiplied by another kernel; beside other texts of the same lengths the bits are the same.
      const others = batch.inputIds.map((id, i) => (i >= begin && i < end ? id : (id + 17) % vocabSize));
      const beside = await run({ ...batch, inputIds: others });
      expect(beside).not.toEqual(packed);
      for (const [i, rows] of own.entries()) {
        expect(beside[i]?.subarray(begin * (widths[i] ?? 0), end * (widths[i] ?? 0)), `text ${s}`).toEqual(rows);
      }
    }
  });

  test.each(Object.entries(TINY_MODELS))('teach a %s what they teach it one by one', async (_, config) => {
    const model = createTinyModel(engine, config, 2);
    const trainer = engine.createTrainer(model, {
      optimizer: 'sgd',
      beta1: 0,
      beta2: 0,
      epsilon: 1e-8,
      weightDecay: 0,
      momentum: 0,
      maxGradNorm: 0,
    });
    const { labels, ...batch } = tinyBatch(config);
    const gradientOf = async (begin: number, end: number, sequenceOffsets: number[]) => {
      const { ce, numLabels } = await trainer.computeGradients({
        inputIds: batch.inputIds.slice(begin, end),
        sequenceOffsets: Int32Array.from(sequenceOffsets),
        ...(batch.tokenTypeIds ? { tokenTypeIds: batch.tokenTypeIds.slice(begin, end) } : {}),
        labels: labels.slice(begin, end),
        learningRate: 0,
        dropoutSeed: -1,
        losses: { ce: 1, kd: 0, hidden: 0, attention: 0, temperature: 1, fusion: 1, gate: 1 },
        sampledNegatives: 0,
      });
      const gradient = model.parameters().flatMap(({ name }) => [...model.getGradient(name)]);
      return { loss: ce * numLabels, numLabels, gradient: Float32Array.from(gradient, (value) => value * numLabels) };
    };
    const offsets = [...batch.sequenceOffsets];
    const packed = await gradientOf(0, batch.inputIds.length, offsets);
    const sum = { loss: 0, gradient: new Float32Array(packed.gradient.length) };
    for (const [s, begin] of offsets.slice(0, -1).entries()) {
      const end = offsets[s + 1] ?? 0;
      const alone = await gradientOf(begin, end, [0, end - begin]);
      sum.loss += alone.loss;
      alone.gradient.forEach((value, i) => {
        sum.gradient[i] = (sum.gradient[i] ?? 0) + value;
      });
    }
    expect(sum.loss).toBeCloseTo(packed.loss, 4);
    expectClose(sum.gradient, packed.gradient, 1e-5, 'gradients');
  });
});
