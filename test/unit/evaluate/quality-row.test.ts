import { describe, expect, it } from 'vitest';
import { qualityRow } from '../../../src/evaluate/quality-row.js';
import { casesOf, systemOf } from './sample-quality.js';

// Items 0 … 4 with 9, 5, 4, 1 and no training interactions: 2, 3 and 4 are cold, 4 was never seen.
const trainCounts = Int32Array.of(9, 5, 4, 1, 0);
const test = casesOf([0, 1, 2, 3, 4, 4]);
const context = { test, trainCounts, plain: undefined, ks: [1, 2], seed: 0 };

describe('a row', () => {
  it('takes cold items by their training interactions', async () => {
    // Hits: targets 0, 2, and the second of item 4; ranks beyond 10 need a larger catalogue.
    const hits = await qualityRow(systemOf('a', [[1, 15, 2, 15, 15, 1]]), { ...context, trainCounts: widen(20) });
    expect(hits.recallOnColdItems?.cases).toBe(4);
    expect(hits.recallOnUnseenItems?.cases).toBe(2);
    expect(hits.recallOnColdItems?.mean).toBeCloseTo(2 / 4, 12);
    expect(hits.recallOnUnseenItems?.mean).toBeCloseTo(1 / 2, 12);
    expect(hits.recallAt10).toBeCloseTo(3 / 6, 12);
    const [low, high] = hits.recallOnColdItems?.interval ?? [];
    expect(low).toBeLessThan(0.5);
    expect(high).toBeGreaterThan(0.5);
  });

  it('leaves cold items out where no target is one', async () => {
    const row = await qualityRow(systemOf('a', [[1, 2, 3, 4, 5, 5]]), {
      ...context,
      test: casesOf([0, 1, 0, 1, 0, 1]),
    });
    expect(row.recallOnColdItems).toBeUndefined();
    expect(row.recallOnUnseenItems).toBeUndefined();
  });

  it('is compared with the plain student by user, seeds averaged', async () => {
    const plain = systemOf('plain', [
      [1, 2, 3, 4, 5, 5],
      [1, 2, 3, 4, 5, 5],
    ]);
    const same = await qualityRow(systemOf('b', [[1, 2, 3, 4, 5, 5]]), { ...context, plain });
    expect(same.differenceToPlain).toEqual({ difference: 0, interval: [0, 0], intervalOverSeeds: [0, 0] });
    const better = await qualityRow(systemOf('b', [[1, 1, 1, 1, 1, 1]]), { ...context, plain });
    expect(better.differenceToPlain?.difference).toBeCloseTo(better.ndcgAt10 - meanNdcg([1, 2, 3, 4, 5, 5]), 12);
    expect(better.differenceToPlain?.interval[0]).toBeGreaterThan(0);
    expect((await qualityRow(plain, { ...context, plain })).differenceToPlain).toBeUndefined();
    const others = systemOf('b', [[1, 2]]);
    await expect(qualityRow(others, { ...context, test: casesOf([0, 1]), plain })).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
    });
  });

  it('has the seconds of an epoch for what is trained, and every seed by itself', async () => {
    const trained = await qualityRow(systemOf('c', [[1, 2, 3, 4, 5, 5]], [2, 4]), context);
    expect(trained).toMatchObject({ secondsPerEpoch: 3, bestEpochs: [2], bySeed: [{ seed: 0 }] });
    const counted = await qualityRow({ ...systemOf('d', [[1, 2, 3, 4, 5, 5]]), seeds: [] }, context);
    expect(counted.secondsPerEpoch).toBeUndefined();
    expect(counted.bySeed[0]).not.toHaveProperty('seed');
  });
});

/** The same counts in a larger catalogue, so that ranks beyond 10 exist. */
function widen(numItems: number): Int32Array {
  const counts = new Int32Array(numItems).fill(7);
  counts.set(trainCounts);
  return counts;
}

function meanNdcg(ranks: readonly number[]): number {
  return ranks.reduce((sum, rank) => sum + 1 / Math.log2(rank + 1), 0) / ranks.length;
}
