import { afterAll, beforeAll, expect, test } from 'vitest';
import { loadBinding, type NativeEngine } from '../../../src/binding.js';
import { describeEmulated, emulatedEngine } from '../../support/emulated-cuda.js';
import { createTinyModel, expectClose, TINY_MODELS } from '../../support/tiny-models.js';

describeEmulated('a recommender on the GPU', () => {
  let cpu: NativeEngine;
  let gpu: NativeEngine;
  beforeAll(() => {
    cpu = loadBinding().createEngine({ threads: 1 });
    gpu = emulatedEngine();
  });
  afterAll(() => {
    cpu.dispose();
    gpu.dispose();
  });

  function request(history: number[], exclude: number[], k: number) {
    return {
      history: Int32Array.from(history),
      exclude: Int32Array.from(exclude),
      k,
      itemIds: new Int32Array(k),
      scores: new Float32Array(k),
    };
  }

  const LONG = Array.from({ length: 20 }, (_, i) => (i * 5) % 37);
  const ALL = Array.from({ length: 37 }, (_, i) => i);

  test.each([
    ['of one item', [3], [], 5],
    ['of some', [3, 9, 1], [3, 9, 1, 1], 5],
    ['longer than the positions', LONG, LONG, 3],
    ['with few items left', [1, 2], ALL.slice(4), 10],
    ['with none left', [1, 2], ALL, 10],
    ['for the whole catalogue', [7], [], 37],
    ['for more', [7], [0], 100],
  ])('answers a history %s as the processor does', (_, history, exclude, k) => {
    const config = TINY_MODELS.sequence;
    const expected = request(history, exclude, k);
    const actual = request(history, exclude, k);
    const count = cpu.createRecommender(createTinyModel(cpu, config, 6)).recommend(expected);
    expect(gpu.createGpuRecommender(createTinyModel(gpu, config, 6)).recommend(actual)).toBe(count);
    expect(actual.itemIds.subarray(0, count)).toEqual(expected.itemIds.subarray(0, count));
    expectClose(actual.scores.subarray(0, count), expected.scores.subarray(0, count), 1e-5);
  });

  test('refuses what is no request', () => {
    const recommender = gpu.createGpuRecommender(createTinyModel(gpu, TINY_MODELS.sequence, 6));
    for (const bad of [request([], [], 3), request([37], [], 3), request([-1], [], 3), request([1], [40], 3)]) {
      expect(() => recommender.recommend(bad)).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }));
    }
    const tooMany = request([1], new Array(1000).fill(1), 100);
    expect(() => recommender.recommend(tooMany)).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }));
    expect(() => recommender.recommend({ ...request([1], [], 3), scores: new Float32Array(2) })).toThrow(
      expect.objectContaining({ code: 'ERR_SHAPE_MISMATCH' }),
    );
    expect(recommender.recommend(request([1], [], 3))).toBe(3);
  });

  test('is of its model as it was', () => {
    const model = createTinyModel(gpu, TINY_MODELS.sequence, 6);
    const recommender = gpu.createGpuRecommender(model);
    model.setParameter('layers.0.mlp_norm.bias', new Float32Array(16));
    expect(() => recommender.recommend(request([1], [], 3))).toThrow(/was changed after/);
    recommender.dispose();
    expect(() => recommender.recommend(request([1], [], 3))).toThrow(expect.objectContaining({ code: 'ERR_DISPOSED' }));
  });

  test('needs a GPU, and a causal model', () => {
    const invalid = expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' });
    expect(() => cpu.createGpuRecommender(createTinyModel(cpu, TINY_MODELS.sequence, 6))).toThrow(invalid);
    expect(() => gpu.createGpuRecommender(createTinyModel(gpu, TINY_MODELS.bert, 6))).toThrow(invalid);
  });
});
