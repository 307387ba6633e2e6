import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadBinding, type NativeEngine } from '../../../src/binding.js';
import { findItemNeighbors, nearestItems, rankByNeighbors } from '../../../src/evaluate/item-neighbors.js';
import type { EvaluationSet } from '../../../src/evaluate/recommendation.js';

let engine: NativeEngine;
beforeAll(() => {
  engine = loadBinding().createEngine({ threads: 2 });
});
afterAll(() => {
  engine.dispose();
});

function packed(lists: readonly (readonly number[])[]) {
  const sequenceOffsets = new Int32Array(lists.length + 1);
  lists.forEach((list, s) => {
    sequenceOffsets[s + 1] = (sequenceOffsets[s] ?? 0) + list.length;
  });
  return { sequences: Int32Array.from(lists.flat()), sequenceOffsets, users: Int32Array.from(lists.keys()) };
}

function cases(histories: readonly (readonly number[])[], targets: readonly number[]): EvaluationSet {
  const { sequences, sequenceOffsets, users } = packed(histories);
  return {
    sequences,
    sequenceOffsets,
    users,
    targets: Int32Array.from(targets),
    excludeIds: sequences,
    excludeOffsets: sequenceOffsets,
  };
}

// 0 and 1 share two of their histories, 0 and 2 one; a repetition counts once; nobody chose 4.
const train = packed([[0, 1, 0], [1, 0], [0, 2, 3], [3]]);
const find = (decay = 1) => findItemNeighbors(engine, train, { numItems: 5, decay });

describe('item neighbours', () => {
  it('are the cosines of the sets of histories', async () => {
    const { offsets, items, cosines } = await find();
    const row = (item: number) => [...items.subarray(offsets[item], offsets[item + 1])];
    expect([0, 1, 2, 3, 4].map(row)).toEqual([[1, 2, 3], [0], [0, 3], [0, 2], []]);
    expect(cosines[0]).toBeCloseTo(2 / Math.sqrt(3 * 2), 6);
    expect(cosines[1]).toBeCloseTo(1 / Math.sqrt(3 * 1), 6);
    expect(cosines[2]).toBeCloseTo(1 / Math.sqrt(3 * 2), 6);
  });

  it('rank as they recommend, and count ties against the target', async () => {
    const neighbors = await find(0.5);
    const histories = [[1], [2], [1, 3], [4]];
    const { topK } = await rankByNeighbors(engine, neighbors, cases(histories, [0, 0, 0, 0]), 2);
    histories.forEach((history, s) => {
      const list = nearestItems(neighbors, history, 2);
      expect([...topK.subarray(2 * s, 2 * s + list.length)]).toEqual(list);
    });
    const { ranks } = await rankByNeighbors(engine, neighbors, cases([[1], [2], [4], [1]], [0, 3, 0, 4]), 0);
    // The last two: no score at all for anything, and none for the target beside two others without one.
    expect([...ranks]).toEqual([1, 1, 4, 4]);
  });

  it('weigh the last items of a history more', async () => {
    // After 1 then 2: with equal weights 0 wins by both; with a small decay 3, which only 2 knows, comes first.
    expect(nearestItems(await find(1), [1, 2], 1)).toEqual([0]);
    expect(nearestItems(await find(0.01), [1, 2], 1)).toEqual([3]);
  });

  it('stop when they are told to, and refuse items outside the catalogue', async () => {
    const signal = AbortSignal.abort();
    await expect(findItemNeighbors(engine, train, { numItems: 5, decay: 1 }, { signal })).rejects.toMatchObject({
      code: 'ERR_ABORTED',
    });
    await expect(findItemNeighbors(engine, train, { numItems: 3, decay: 1 })).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
    });
    const neighbors = await find();
    await expect(rankByNeighbors(engine, neighbors, cases([[7]], [0]), 1)).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
    });
  });
});
