import { describe, expect, it } from 'vitest';
import * as metrics from '../../../src/evaluate/metrics.js';

// Four users; by hand at k = 3: two hits, at ranks 1 and 3.
const ranks = Int32Array.of(1, 3, 4, 10);

describe('metrics at a cut-off', () => {
  it('equal the values computed by hand', () => {
    expect(metrics.recallAtK(ranks, 3)).toBe(2 / 4);
    expect(metrics.hitRateAtK(ranks, 3)).toBe(2 / 4);
    expect(metrics.precisionAtK(ranks, 3)).toBeCloseTo(2 / 3 / 4, 12);
    expect(metrics.f1AtK(ranks, 3)).toBeCloseTo(((2 / 4) * 2) / 4, 12);
    expect(metrics.ndcgAtK(ranks, 3)).toBeCloseTo((1 + 1 / 2) / 4, 12); // log₂(2) = 1, log₂(4) = 2
    expect(metrics.mrrAtK(ranks, 3)).toBeCloseTo((1 + 1 / 3) / 4, 12);
    expect(metrics.mapAtK(ranks, 3)).toBeCloseTo((1 + 1 / 3) / 4, 12);
    expect(metrics.mrr(ranks)).toBeCloseTo((1 + 1 / 3 + 1 / 4 + 1 / 10) / 4, 12);
    expect(metrics.accuracy(ranks)).toBe(1 / 4);
  });

  it('count a rank equal to the cut-off as a hit and the next one as a miss', () => {
    expect(metrics.recallAtK(Int32Array.of(10), 10)).toBe(1);
    expect(metrics.recallAtK(Int32Array.of(11), 10)).toBe(0);
    expect(metrics.ndcgAtK(Int32Array.of(11), 10)).toBe(0);
  });

  it('give the same F1 from users as from mean precision and mean recall', () => {
    const precision = metrics.precisionAtK(ranks, 5);
    const recall = metrics.recallAtK(ranks, 5);
    expect(metrics.f1AtK(ranks, 5)).toBeCloseTo((2 * precision * recall) / (precision + recall), 12);
  });

  it('refuse no users, ranks below 1, and cut-offs that are not whole numbers from 1', () => {
    expect(() => metrics.recallAtK(new Int32Array(0), 10)).toThrow(expect.objectContaining({ code: 'ERR_EMPTY_DATA' }));
    expect(() => metrics.mrr(Int32Array.of(1, 0))).toThrow(/user 1 has rank 0/);
    for (const k of [0, -1, 2.5, Number.NaN, Number.POSITIVE_INFINITY]) {
      expect(() => metrics.recallAtK(ranks, k)).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }));
    }
  });
});

describe('userContributions', () => {
  it('lists one value a user, whose mean is the metric', () => {
    const values = metrics.userContributions(ranks, 'ndcg', 3);
    expect([...values]).toEqual([1, 0.5, 0, 0]);
    expect(values.reduce((a, b) => a + b) / 4).toBeCloseTo(metrics.ndcgAtK(ranks, 3), 12);
  });
});

describe('coverageAtK', () => {
  it('counts distinct items, and leaves out padding and later columns', () => {
    const lists = Int32Array.of(0, 1, 2, 0, 3, -1);
    expect(metrics.coverageAtK(lists, 8)).toBe(4 / 8);
    expect(metrics.coverageAtK(lists, 8, { k: 1, width: 3 })).toBe(1 / 8);
    expect(metrics.coverageAtK(lists, 8, { k: 2, width: 3 })).toBe(3 / 8);
  });

  it('refuses an item outside the catalogue', () => {
    expect(() => metrics.coverageAtK(Int32Array.of(0, 8), 8)).toThrow(/item 8.*8 items/);
  });
});

describe('rankingMetrics', () => {
  it('holds every metric at every cut-off, and survives JSON', () => {
    const result = metrics.rankingMetrics(ranks, { ks: [3, 10], numItems: 12 });
    expect(result.numUsers).toBe(4);
    expect(result.recallAtK).toEqual({ 3: 0.5, 10: 1 });
    expect(result.ndcgAtK[3]).toBe(metrics.ndcgAtK(ranks, 3));
    expect(result.mrr).toBe(metrics.mrr(ranks));
    expect('coverageAtK' in result).toBe(false);
    expect(JSON.parse(JSON.stringify(result))).toEqual(result);
  });

  it('accepts a cut-off above the catalogue: everything is found, precision still divides by k', () => {
    const result = metrics.rankingMetrics(Int32Array.of(1, 3), { ks: [10], numItems: 3 });
    expect(result.recallAtK[10]).toBe(1);
    expect(result.precisionAtK[10]).toBe(0.1);
  });

  it('gives coverage for the cut-offs that the lists reach', () => {
    const topK = Int32Array.of(0, 1, 0, 2);
    const result = metrics.rankingMetrics(Int32Array.of(1, 2), { ks: [1, 2, 5], numItems: 4, topK });
    expect(result.coverageAtK).toEqual({ 1: 1 / 4, 2: 3 / 4 });
  });

  it('refuses ranks beyond the catalogue, ragged lists, and nothing to do', () => {
    const run =
      (options: metrics.RankingMetricsOptions, values = ranks) =>
      () =>
        metrics.rankingMetrics(values, options);
    expect(run({ ks: [3], numItems: 9 })).toThrow(/user 3 has rank 10.*9 items/);
    expect(run({ ks: [3], numItems: 12, topK: new Int32Array(6) })).toThrow(/4 users, got 6 entries/);
    expect(run({ ks: [3], numItems: 12, topK: new Int32Array(0) })).toThrow(/got 0 entries/);
    expect(run({ ks: [], numItems: 12 })).toThrow(expect.objectContaining({ code: 'ERR_EMPTY_DATA' }));
    expect(run({ ks: [3], numItems: 12 }, new Int32Array(0))).toThrow(
      expect.objectContaining({ code: 'ERR_EMPTY_DATA' }),
    );
  });
});
