import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { loadBinding, type NativeEngine } from '../../../src/binding.js';
import type { Rankings } from '../../../src/knowledge/rankings.js';
import { fineTuneSequenceModel } from '../../../src/student/fine-tune.js';
import { interleave, rankingBatches, rankingRequest, rankingSignal } from '../../../src/student/ranking-signal.js';
import { SequenceModel, sequenceConfig } from '../../../src/student/sequence-model.js';

const rankings: Rankings = {
  catalogue: '00000000',
  histories: Int32Array.of(1, 2, 3, 4, 5),
  historyOffsets: Int32Array.of(0, 3, 4, 5),
  items: Int32Array.of(7, 8, 9, 6, 7, 8, 5, 4),
  itemOffsets: Int32Array.of(0, 3, 6, 8),
};
const probabilities = (values: Float32Array) => Array.from(values, (value) => Math.exp(value));

describe('soft labels', () => {
  test('fall by place and share the mass', () => {
    const { logProbabilities } = rankingSignal(rankings, { decay: 0.5, mass: 0.7 });
    const [first, second, third] = probabilities(logProbabilities);
    expect(first).toBeCloseTo((0.7 * 4) / 7, 6);
    expect(second).toBeCloseTo((0.7 * 2) / 7, 6);
    expect(third).toBeCloseTo(0.7 / 7, 6);
    expect(probabilities(logProbabilities.subarray(6)).reduce((a, b) => a + b)).toBeCloseTo(0.7, 6);
  });

  test('are the softmax of scores, however large', () => {
    const scores = Float32Array.of(1000, 999, -1000, 2, 1, 0, 1, 1);
    const { logProbabilities } = rankingSignal({ ...rankings, scores }, { mass: 1, scoreTemperature: 2 });
    const [first = 0, second = 0, third] = probabilities(logProbabilities);
    expect(first / second).toBeCloseTo(Math.exp(0.5), 5);
    expect(third).toBe(0);
    expect(first + second).toBeCloseTo(1, 6);
  });

  test('refuse settings out of range', () => {
    expect(() => rankingSignal(rankings, { decay: 0 })).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }),
    );
    expect(() => rankingSignal(rankings, { mass: 1.1 })).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }),
    );
  });
});

test('batches hold every ranking once, of one length each', () => {
  const signal = rankingSignal(rankings);
  const batches = rankingBatches(signal, 4, 1, 1);
  expect(batches.flatMap((batch) => [...batch]).sort()).toEqual([0, 1, 2]);
  expect(batches.find((batch) => batch.includes(2))).toEqual(Int32Array.of(2));
});

test('a request labels the last item of each history, cut to what the model reads', () => {
  const { inputIds, sequenceOffsets, labels, teacher, losses } = rankingRequest(
    rankingSignal(rankings, { weight: 2 }),
    Int32Array.of(1, 0),
    2,
  );
  expect(inputIds).toEqual(Int32Array.of(4, 2, 3));
  expect(sequenceOffsets).toEqual(Int32Array.of(0, 1, 3));
  expect(labels).toEqual(Int32Array.of(6, -100, 7));
  expect(losses).toMatchObject({ ce: 0, kd: 2 });
  expect(teacher).toHaveProperty('logits.indices', Int32Array.of(6, 7, 8, 0, 0, 0, 7, 8, 9));
});

test('steps of two kinds are spread evenly, none lost', () => {
  expect(interleave([1, 2, 3, 4], ['a', 'b'])).toEqual([1, 2, 'a', 3, 4, 'b']);
  expect(interleave([1], ['a', 'b', 'c'])).toEqual([1, 'a', 'b', 'c']);
  expect(interleave([1, 2], [])).toEqual([1, 2]);
});

describe('training', () => {
  let engine: NativeEngine;
  beforeAll(() => {
    engine = loadBinding().createEngine({ threads: 1 });
  });
  afterAll(() => {
    engine.dispose();
  });

  /** Clicks walk one step up; the outside teacher says that ten steps up is what comes next. */
  const ITEMS = 40;
  const users = Int32Array.from({ length: 40 }, (_, user) => user);
  const train = {
    sequences: Int32Array.from({ length: 40 * 5 }, (_, i) => (Math.floor(i / 5) + (i % 5)) % ITEMS),
    sequenceOffsets: Int32Array.from({ length: 41 }, (_, user) => user * 5),
    users,
  };
  const advised = users.map((user) => (user + 14) % ITEMS);
  const outside: Rankings = {
    catalogue: '00000000',
    histories: train.sequences,
    historyOffsets: train.sequenceOffsets,
    items: Int32Array.from({ length: 80 }, (_, i) => ((advised[i >> 1] ?? 0) + (i & 1)) % ITEMS),
    itemOffsets: Int32Array.from({ length: 41 }, (_, user) => user * 2),
  };
  const none = { excludeIds: new Int32Array(0), excludeOffsets: new Int32Array(41) };
  const cases = { ...train, targets: advised, ...none };

  async function hitsOfTeacher(...rankings: Rankings[]) {
    const shape = { hiddenSize: 16, numHiddenLayers: 1, numAttentionHeads: 2, maxHistory: 5, dropout: 0 };
    const model = SequenceModel.create(engine, sequenceConfig(shape, ITEMS, 0), { seed: 1 });
    const options = { epochs: 30, learningRate: 0.01, batchTokens: 64, patience: 0, seed: 1 };
    const signals = rankings.map((one) => rankingSignal(one, { weight: 1 }));
    const context = { rankings: signals.length === 1 ? signals[0] : signals };
    const { stepCount } = await fineTuneSequenceModel(engine, model, { train, validation: cases }, options, context);
    const { ranks } = await model.rank(cases, none);
    model.dispose();
    return { hits: ranks.filter((rank) => rank === 1).length, stepCount };
  }

  test('learns what an outside teacher ranks first, in steps of their own', async () => {
    const without = await hitsOfTeacher();
    const taught = await hitsOfTeacher(outside);
    expect(without.hits).toBeLessThan(8);
    expect(taught.hits).toBeGreaterThan(32);
    expect(taught.stepCount).toBeGreaterThan(without.stepCount);
  });

  test('learns from two outside teachers, each with its own lists', async () => {
    // The first ranks after the first half of the histories, the second one item alone after the others.
    const first: Rankings = {
      ...outside,
      histories: train.sequences.subarray(0, 100),
      historyOffsets: train.sequenceOffsets.subarray(0, 21),
      items: outside.items.subarray(0, 40),
      itemOffsets: outside.itemOffsets.subarray(0, 21),
    };
    const second: Rankings = {
      ...outside,
      histories: train.sequences.subarray(100),
      historyOffsets: Int32Array.from({ length: 21 }, (_, i) => i * 5),
      items: advised.subarray(20),
      itemOffsets: Int32Array.from({ length: 21 }, (_, i) => i),
    };
    const [one, both] = [await hitsOfTeacher(first), await hitsOfTeacher(first, second)];
    expect(one.hits).toBeLessThan(28);
    expect(both.hits).toBeGreaterThan(32);
  });
});
