import { describe, expect, it } from 'vitest';
import { rankByPopularity } from '../../../src/evaluate/popularity.js';

const counts = Int32Array.of(5, 9, 5, 0, 5);

async function rankOne(target: number, exclude: number[], topK = 0, trainCounts = counts) {
  const excludeIds = Int32Array.from(exclude);
  const cases = { targets: Int32Array.of(target), excludeIds, excludeOffsets: Int32Array.of(0, exclude.length) };
  const { ranks, topK: list } = await rankByPopularity(trainCounts, cases, topK);
  return { rank: ranks[0], list: [...list] };
}

describe('rankByPopularity', () => {
  it('counts ties against the target, whatever its id', async () => {
    expect((await rankOne(1, [])).rank).toBe(1);
    for (const target of [0, 2, 4]) expect((await rankOne(target, [])).rank).toBe(4); // behind item 1 and two equals
    expect((await rankOne(3, [])).rank).toBe(5);
  });

  it('masks excluded items, each once, and never the target', async () => {
    expect((await rankOne(2, [1])).rank).toBe(3);
    expect((await rankOne(2, [1, 0, 4])).rank).toBe(1);
    expect((await rankOne(2, [1, 1, 1])).rank).toBe(3);
    expect((await rankOne(2, [3])).rank).toBe(4); // less popular than the target: no change
    expect(await rankOne(2, [2, 1])).toEqual(await rankOne(2, [1]));
  });

  it('lists the best unmasked items, equal counts by lower id, padded with -1', async () => {
    expect((await rankOne(3, [0], 3)).list).toEqual([1, 2, 4]);
    expect((await rankOne(3, [0, 1], 5)).list).toEqual([2, 4, 3, -1, -1]);
  });

  it('keeps cases apart', async () => {
    const cases = {
      targets: Int32Array.of(0, 0, 3),
      excludeIds: Int32Array.of(1, 2, 1),
      excludeOffsets: Int32Array.of(0, 2, 2, 3),
    };
    const { ranks, topK } = await rankByPopularity(counts, cases, 2);
    expect([...ranks]).toEqual([2, 4, 4]);
    expect([...topK]).toEqual([0, 4, 1, 0, 0, 2]);
  });

  it('agrees with counting item by item', async () => {
    const numItems = 60;
    const trainCounts = Int32Array.from({ length: numItems }, (_, i) => (i * 37) % 11);
    for (let target = 0; target < numItems; target++) {
      const exclude = Array.from({ length: 25 }, (_, i) => (target * 7 + i * 13) % numItems);
      const others = [...trainCounts.keys()].filter((item) => item !== target && !exclude.includes(item));
      const ahead = others.filter((item) => (trainCounts[item] ?? 0) >= (trainCounts[target] ?? 0));
      expect((await rankOne(target, exclude, 0, trainCounts)).rank).toBe(ahead.length + 1);
    }
  });

  it('refuses empty data, unknown items, and offsets that do not match', async () => {
    const empty = expect.objectContaining({ code: 'ERR_EMPTY_DATA' });
    const none = { targets: new Int32Array(0), excludeIds: new Int32Array(0), excludeOffsets: Int32Array.of(0) };
    await expect(rankByPopularity(counts, none, 1)).rejects.toThrow(empty);
    await expect(rankOne(0, [], 0, new Int32Array(0))).rejects.toThrow(empty);
    await expect(rankOne(5, [])).rejects.toThrow(/targets names item 5.*0 to 4/);
    await expect(rankOne(0, [-1])).rejects.toThrow(/excludeIds names item -1/);
    const targets = Int32Array.of(0);
    for (const offsets of [[0], [0, 2], [1, 1], [0, 1, 1]]) {
      const cases = { targets, excludeIds: Int32Array.of(1), excludeOffsets: Int32Array.from(offsets) };
      await expect(rankByPopularity(counts, cases, 1)).rejects.toThrow(
        /excludeOffsets must rise from 0 to 1 in 2 entries/,
      );
    }
  });
});
