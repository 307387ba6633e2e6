import { afterAll, beforeAll, expect, test } from 'vitest';
import { loadBinding, type NativeEngine } from '../../../src/binding.js';
import { CROSS_ENTROPY } from '../../../src/teacher/pretrain.js';
import { describeEmulated, emulatedEngine } from '../../support/emulated-cuda.js';
import { createTinyModel, expectClose, TINY_MODELS } from '../../support/tiny-models.js';

const ALWAYS = 0; // whatever the size of the catalogue

describeEmulated('requests on the GPU', () => {
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

  /** A recommender on an engine of its own, whose scores show where they were computed. */
  function roughRecommender(minGpuItems?: number, machine = {}) {
    const engine = emulatedEngine({ precision: 'bfloat16', machine });
    const model = createTinyModel(engine, TINY_MODELS.sequence, 6);
    const recommender = engine.createRecommender(model, minGpuItems);
    const exact = cpu.createRecommender(createTinyModel(cpu, TINY_MODELS.sequence, 6));
    const scoresOf = (of: typeof recommender) => {
      const { scores, ...rest } = request([3, 9, 1], [3, 9, 1], 5);
      expect(of.recommend({ ...rest, scores })).toBe(5);
      return Array.from(scores);
    };
    return { engine, model, recommender, scores: () => scoresOf(recommender), exactScores: scoresOf(exact) };
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
    expect(gpu.createRecommender(createTinyModel(gpu, config, 6), ALWAYS).recommend(actual)).toBe(count);
    expect(actual.itemIds.subarray(0, count)).toEqual(expected.itemIds.subarray(0, count));
    expectClose(actual.scores.subarray(0, count), expected.scores.subarray(0, count), 1e-5);
  });

  test('begins with large catalogues, for which the processor is slower', () => {
    const { scores, exactScores } = roughRecommender(37);
    expect(scores()).not.toEqual(exactScores);
    expectClose(Float32Array.from(scores()), Float32Array.from(exactScores), 2e-2);
    const others = [roughRecommender(38), roughRecommender()];
    for (const small of others) expect(small.scores()).toEqual(small.exactScores);
  });

  test('leaves out hidden items, and knows added ones', () => {
    const features = Float32Array.of(0.4, -0.8, 0.3, -1, 0.2, 0.9);
    const answers = [cpu, gpu].map((engine) => {
      const recommender = engine.createRecommender(createTinyModel(engine, TINY_MODELS.sequence, 6), ALWAYS);
      recommender.hideItems(Int32Array.of(0, 20));
      expect(recommender.addItems(features)).toBe(37);
      recommender.hideItems(Int32Array.of(38));
      return [request([5], [5], 39), request([5, 37], [], 39)].map((each) => {
        const count = recommender.recommend(each);
        return { ids: each.itemIds.subarray(0, count), scores: each.scores.subarray(0, count) };
      });
    });
    const [expected, actual] = answers;
    expected?.forEach(({ ids, scores }, i) => {
      expect(ids.length).toBe(i === 0 ? 35 : 36);
      expect(Array.from(ids)).toContain(37);
      expect(actual?.[i]?.ids).toEqual(ids);
      expectClose(actual?.[i]?.scores ?? new Float32Array(0), scores, 1e-5);
    });
  });

  test('are those of the snapshot: when the model has changed, the processor answers', async () => {
    const one = roughRecommender(ALWAYS);
    expect(one.scores()).not.toEqual(one.exactScores);
    one.model.setParameter('layers.0.mlp_norm.bias', new Float32Array(16));
    expect(one.scores()).toEqual(one.exactScores);

    const { engine, model, scores, exactScores } = roughRecommender(ALWAYS);
    expect(scores()).not.toEqual(exactScores);
    const trainer = engine.createTrainer(model, {
      optimizer: 'sgd',
      beta1: 0.9,
      beta2: 0.9,
      epsilon: 1e-8,
      weightDecay: 0,
      momentum: 0,
      maxGradNorm: 0,
    });
    const step = trainer.step({
      inputIds: Int32Array.of(1, 2, 3),
      sequenceOffsets: Int32Array.of(0, 3),
      labels: Int32Array.of(2, 3, 4),
      learningRate: 0.1,
      dropoutSeed: -1,
      losses: CROSS_ENTROPY,
      sampledNegatives: 0,
    });
    expect(scores()).toEqual(exactScores); // does not wait for the step
    await step;
    expect(scores()).toEqual(exactScores);
  });

  test('need the model object no more', () => {
    const { model, scores, exactScores } = roughRecommender(ALWAYS);
    model.dispose();
    expect(scores()).not.toEqual(exactScores);
  });

  test('tell an error of the GPU once; the processor answers the next', () => {
    const { scores, exactScores } = roughRecommender(ALWAYS, { calls_until_lost: 40 });
    let lost: unknown;
    for (let i = 0; i < 100 && lost === undefined; i++) {
      try {
        scores();
      } catch (error) {
        lost = error;
      }
    }
    expect(lost).toMatchObject({ code: 'ERR_DEVICE_LOST' });
    expect(scores()).toEqual(exactScores);
  });

  test('refuse what is no request', () => {
    const recommender = gpu.createRecommender(createTinyModel(gpu, TINY_MODELS.sequence, 6), ALWAYS);
    for (const bad of [request([], [], 3), request([37], [], 3), request([-1], [], 3), request([1], [40], 3)]) {
      expect(() => recommender.recommend(bad)).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }));
    }
    expect(recommender.recommend(request([1], [], 3))).toBe(3);
    expect(recommender.recommend(request([1], new Array(1030).fill(1), 3))).toBe(3);
    const model = createTinyModel(gpu, TINY_MODELS.bert, 6);
    expect(() => gpu.createRecommender(model, ALWAYS)).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }),
    );
  });
});
