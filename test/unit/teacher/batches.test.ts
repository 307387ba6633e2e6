import { describe, expect, test } from 'vitest';
import {
  batchesByTokens,
  gatherBatch,
  gatherRows,
  hashSeed,
  randomNumbers,
  shuffled,
} from '../../../src/teacher/batches.js';

describe('hashSeed', () => {
  test('is a whole number in [0, 2^31) that changes with each argument, and with their order', () => {
    const arguments_ = [[0], [1], [0, 0], [0, 1], [1, 0], [2 ** 31], [2 ** 32], [2 ** 32 + 1], [-1]];
    const hashes = arguments_.map((values) => hashSeed(...values));
    expect(new Set(hashes).size).toBe(hashes.length);
    for (const hash of hashes) {
      expect(Number.isInteger(hash)).toBe(true);
      expect(hash).toBeGreaterThanOrEqual(0);
      expect(hash).toBeLessThan(2 ** 31);
    }
  });

  test('gives neighbouring steps of neighbouring seeds different numbers', () => {
    const hashes = new Set<number>();
    for (let seed = 0; seed < 20; seed++) for (let step = 0; step < 500; step++) hashes.add(hashSeed(seed, step));
    // 10,000 draws of 2^31 meet about 0.02 times.
    expect(hashes.size).toBeGreaterThan(9_995);
  });
});

test('random numbers are spread evenly over [0, 1)', () => {
  const random = randomNumbers(7);
  const counts = new Array<number>(10).fill(0);
  for (let i = 0; i < 10_000; i++) {
    const bin = Math.floor(random() * 10);
    counts[bin] = (counts[bin] ?? Number.NaN) + 1;
  }
  expect(counts).toHaveLength(10);
  // 1,000 a bin with a deviation of 30.
  for (const count of counts) expect(Math.abs(count - 1_000)).toBeLessThan(150);
});

describe('shuffled', () => {
  test('is a permutation', () => {
    expect(shuffled(257, 3, 1).toSorted()).toEqual(Int32Array.from({ length: 257 }, (_, i) => i));
    expect(shuffled(0, 3, 1)).toEqual(new Int32Array(0));
    expect(shuffled(1, 3, 1)).toEqual(Int32Array.of(0));
  });

  test('is decided by the seed and the epoch', () => {
    expect(shuffled(50, 3, 1)).toEqual(shuffled(50, 3, 1));
    expect(shuffled(50, 3, 1)).not.toEqual(shuffled(50, 3, 2));
    expect(shuffled(50, 3, 1)).not.toEqual(shuffled(50, 4, 1));
  });

  test('puts every element at every place equally often', () => {
    const counts = new Int32Array(16);
    for (let epoch = 0; epoch < 4_000; epoch++) {
      shuffled(4, 11, epoch).forEach((element, place) => {
        const cell = 4 * element + place;
        counts[cell] = (counts[cell] ?? 0) + 1;
      });
    }
    // 1,000 a cell with a deviation of 27.
    for (const count of counts) expect(Math.abs(count - 1_000)).toBeLessThan(140);
  });
});

describe('batchesByTokens', () => {
  const lists = (offsets: number[], maxTokens: number, order: number[]) =>
    batchesByTokens(Int32Array.from(offsets), maxTokens, Int32Array.from(order)).map((batch) => Array.from(batch));
  // Lengths 2, 3, 1, 4.
  const offsets = [0, 2, 5, 6, 10];

  test('fills each batch with whole sequences, in the order given, up to the budget', () => {
    expect(lists(offsets, 5, [0, 1, 2, 3])).toEqual([
      [0, 1],
      [2, 3],
    ]);
    expect(lists(offsets, 4, [0, 1, 2, 3])).toEqual([[0], [1, 2], [3]]);
    expect(lists(offsets, 6, [3, 0, 2, 1])).toEqual([
      [3, 0],
      [2, 1],
    ]);
    expect(lists(offsets, 100, [3, 1])).toEqual([[3, 1]]);
  });

  test('gives a sequence above the budget a batch of its own', () => {
    expect(lists(offsets, 2, [0, 3, 2, 1])).toEqual([[0], [3], [2], [1]]);
  });

  test('makes no batch of nothing', () => {
    expect(lists(offsets, 5, [])).toEqual([]);
  });
});

const sequences = Int32Array.of(10, 11, 20, 21, 22, 30, 40, 41, 42, 43);
const sequenceOffsets = Int32Array.of(0, 2, 5, 6, 10);

test('gatherBatch lays the chosen sequences end to end', () => {
  const batch = gatherBatch(sequences, sequenceOffsets, Int32Array.of(3, 0, 2));
  expect(batch.inputIds).toEqual(Int32Array.of(40, 41, 42, 43, 10, 11, 30));
  expect(batch.sequenceOffsets).toEqual(Int32Array.of(0, 4, 6, 7));
});

test('gatherRows brings the rows of the same tokens', () => {
  const rows = Float32Array.from(Array.from(sequences).flatMap((id) => [id, -id]));
  const gathered = gatherRows(rows, 2, sequenceOffsets, Int32Array.of(2, 0));
  expect(gathered).toEqual(Float32Array.of(30, -30, 10, -10, 11, -11));
});
