import { expect, test } from 'vitest';
import type { NativeRecommender, RankRequest } from '../../../src/binding.js';
import { CROSS_ENTROPY } from '../../../src/teacher/pretrain.js';
import { describeEmulated, type EmulatedMachine, emulatedEngine } from '../../support/emulated-cuda.js';
import { createTinyModel, expectClose, TINY_MODELS, tinyBatch } from '../../support/tiny-models.js';

const ALWAYS = 0; // whatever the size of the catalogue
const NEVER = 1000;
const ADAM = {
  optimizer: 'adamw',
  beta1: 0.9,
  beta2: 0.99,
  epsilon: 1e-8,
  weightDecay: 0.01,
  momentum: 0,
  maxGradNorm: 1,
} as const;

describeEmulated('full ranking on the GPU', () => {
  /** Three cases of the 37 items: no exclusions; some, twice and with the target; all but two. */
  const REQUEST: RankRequest = {
    inputIds: Int32Array.of(3, 9, 1, 5, 30, 31, 32, 2, 36),
    sequenceOffsets: Int32Array.of(0, 3, 7, 9),
    targets: Int32Array.of(0, 36, 8),
    excludeIds: Int32Array.from([9, 9, 36, 4, 0, 5, ...Array.from({ length: 36 }, (_, i) => i)]),
    excludeOffsets: Int32Array.of(0, 0, 6, 42),
    topK: 10,
  };

  /** Both of one engine: the one ranks on the GPU, if it can, the other never. */
  function recommenders(machine?: EmulatedMachine, precision: 'float32' | 'bfloat16' = 'float32') {
    const engine = emulatedEngine({ precision, ...(machine && { machine }) });
    const model = createTinyModel(engine, TINY_MODELS.sequence, 6);
    const [onGpu, onCpu] = [ALWAYS, NEVER].map((least) => engine.createRecommender(model, least));
    return { engine, model, onGpu: onGpu as NativeRecommender, onCpu: onCpu as NativeRecommender };
  }

  test.each(['float32', 'bfloat16'] as const)('is that of the processor but for the last bits, in %s', async (type) => {
    const { onGpu, onCpu } = recommenders(undefined, type);
    const [actual, expected] = [await onGpu.rank(REQUEST), await onCpu.rank(REQUEST)];
    expect(actual.topKScores).not.toEqual(expected.topKScores);
    const tolerance = type === 'float32' ? 1e-5 : 2e-2;
    expectClose(actual.topKScores.subarray(0, 22), expected.topKScores.subarray(0, 22), tolerance);
    // The last case has two items left, and what is near a tie in bfloat16 may change places.
    expect(actual.topK.slice(22)).toEqual(Int32Array.of(-1, -1, -1, -1, -1, -1, -1, -1));
    expect(actual.topKScores.slice(22)).toEqual(new Float32Array(8).fill(Number.NEGATIVE_INFINITY));
    expect(Array.from(actual.topK.slice(20, 22)).sort()).toEqual([36, 8]);
    if (type === 'float32') expect({ ...actual, topKScores: null }).toEqual({ ...expected, topKScores: null });
    expect(new Set(actual.ranks).size).toBeGreaterThan(1);
    const { ranks, topK } = await onGpu.rank({ ...REQUEST, topK: 0 });
    expect(ranks).toEqual(actual.ranks);
    expect(topK.length).toBe(0);
  });

  test('takes states instead of histories', async () => {
    const { model, onGpu } = recommenders();
    const { hiddenStates } = await model.forward({
      inputIds: REQUEST.inputIds,
      sequenceOffsets: REQUEST.sequenceOffsets,
      hiddenStates: [TINY_MODELS.sequence.numHiddenLayers],
      pooling: 'last',
    });
    const states = hiddenStates?.[0];
    const expected = await onGpu.rank(REQUEST);
    // Of which the histories are no longer read.
    const others = { ...REQUEST, inputIds: new Int32Array(9).fill(1) };
    expect((await onGpu.rank(others)).topK).not.toEqual(expected.topK);
    const actual = await onGpu.rank({ ...others, ...(states && { states }) });
    expect(actual.ranks).toEqual(expected.ranks);
    expect(actual.topK).toEqual(expected.topK);
  });

  test('is that of the snapshot: when the model has changed, the processor ranks', async () => {
    const { model, onGpu, onCpu } = recommenders();
    const expected = await onCpu.rank(REQUEST);
    expect(await onGpu.rank(REQUEST)).not.toEqual(expected);
    model.setParameter('layers.0.mlp_norm.bias', new Float32Array(16));
    expect(await onGpu.rank(REQUEST)).toEqual(expected);
  });

  test('of more items than there are is the processor’s', async () => {
    const { onGpu, onCpu } = recommenders();
    expect(await onGpu.rank({ ...REQUEST, topK: 37 })).not.toEqual(await onCpu.rank({ ...REQUEST, topK: 37 }));
    expect(await onGpu.rank({ ...REQUEST, topK: 38 })).toEqual(await onCpu.rank({ ...REQUEST, topK: 38 }));
  });

  test('leaves requests of the time to the processor, and the model alone', async () => {
    const { model, onGpu, onCpu } = recommenders(undefined, 'bfloat16');
    const answer = (recommender: NativeRecommender) => {
      const scores = new Float32Array(5);
      const history = Int32Array.of(3, 9, 1);
      recommender.recommend({ history, exclude: history, k: 5, itemIds: new Int32Array(5), scores });
      return scores;
    };
    const ranking = onGpu.rank(REQUEST);
    expect(answer(onGpu)).toEqual(answer(onCpu));
    expect(() => model.setParameter('layers.0.mlp_norm.bias', new Float32Array(16))).toThrow(
      expect.objectContaining({ code: 'ERR_BUSY' }),
    );
    await ranking;
    expect(answer(onGpu)).not.toEqual(answer(onCpu));
  });

  test('is the processor’s where the GPU has no memory for it', async () => {
    const expected = await recommenders().onCpu.rank(REQUEST);
    const isOnCpu: boolean[] = [];
    // From what an engine needs at least: then the model does not fit, or its items, or the scores.
    for (let kilobytes = 1024; kilobytes <= 1104; kilobytes += 4) {
      const total = 64 << 20;
      const { engine, onGpu } = recommenders({ total_bytes: total, used_by_others_bytes: total - (kilobytes << 10) });
      const actual = await onGpu.rank(REQUEST);
      expect(actual.topK).toEqual(expected.topK);
      isOnCpu.push(actual.topKScores.every((score, i) => score === expected.topKScores[i]));
      engine.dispose();
    }
    const numOnCpu = isOnCpu.indexOf(false);
    expect(numOnCpu).toBeGreaterThan(3);
    expect(isOnCpu.slice(numOnCpu)).not.toContain(true);
  });

  test.each([
    ['that takes more memory than a step', 64 << 20],
    ['that finds no memory', 1400 << 10],
  ])('between steps, %s, changes none of them', async (_, total) => {
    const numCases = 100;
    const length = TINY_MODELS.sequence.maxPositionEmbeddings;
    const request = {
      inputIds: Int32Array.from({ length: numCases * length }, (_, i) => (i * 7) % 37),
      sequenceOffsets: Int32Array.from({ length: numCases + 1 }, (_, i) => i * length),
      targets: new Int32Array(numCases).fill(7),
      excludeIds: new Int32Array(0),
      excludeOffsets: new Int32Array(numCases + 1),
      topK: 3,
    };
    const { engine, model } = recommenders({ total_bytes: total });
    const trainer = engine.createTrainer(model, ADAM);
    const step = {
      ...tinyBatch(TINY_MODELS.sequence),
      learningRate: 0.01,
      dropoutSeed: 3,
      losses: CROSS_ENTROPY,
      sampledNegatives: 0,
    };
    const trainedAlone = recommenders();
    const alone = trainedAlone.engine.createTrainer(trainedAlone.model, ADAM);
    for (let i = 0; i < 3; i++) {
      expect(await trainer.step(step)).toEqual(await alone.step(step));
      const [onGpu, onCpu] = [ALWAYS, NEVER].map((least) => engine.createRecommender(model, least));
      const [actual, expected] = [await onGpu?.rank(request), await onCpu?.rank(request)];
      expect(actual?.topK).toEqual(expected?.topK);
      const isOnCpu = actual?.topKScores.every((score, at) => score === expected?.topKScores[at]);
      expect(isOnCpu).toBe(total < 64 << 20);
    }
    expect(model.getParameter('embeddings.word')).toEqual(trainedAlone.model.getParameter('embeddings.word'));
    engine.dispose();
  });

  test('tells an error of the GPU once; the processor ranks the next', async () => {
    const { onGpu, onCpu } = recommenders({ calls_until_lost: 60 });
    const expected = await onCpu.rank(REQUEST);
    let lost: unknown;
    for (let i = 0; i < 100 && lost === undefined; i++) {
      await onGpu.rank(REQUEST).catch((error) => {
        lost = error;
      });
    }
    expect(lost).toMatchObject({ code: 'ERR_DEVICE_LOST' });
    expect(await onGpu.rank(REQUEST)).toEqual(expected);
  });

  test('refuses what is no request', async () => {
    const { onGpu } = recommenders();
    for (const wrong of [
      { targets: Int32Array.of(0, 37, 8) },
      { excludeIds: REQUEST.excludeIds.map((id) => (id === 5 ? 40 : id)) },
      { inputIds: REQUEST.inputIds.map((id) => (id === 5 ? -1 : id)) },
      { sequenceOffsets: Int32Array.of(0, 3, 3, 9) },
    ]) {
      await expect(onGpu.rank({ ...REQUEST, ...wrong })).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
    }
  });
});
