import { describe, expect, it } from 'vitest';
import {
  bootstrapDifference,
  bootstrapDifferenceOverSeeds,
  bootstrapMean,
  bootstrapMeanOverSeeds,
} from '../../../src/evaluate/bootstrap.js';
import { cpuTimeMs } from '../../support/cpu-time.js';

/** n values of which the first `ones` are 1 and the others 0. */
function zerosAndOnes(n: number, ones: number): Float64Array {
  return new Float64Array(n).fill(1, 0, ones);
}

describe('bootstrapMean', () => {
  it('comes close to the normal interval of a proportion', async () => {
    // p = 0.3, n = 2,000: 1.96·√(p(1 − p)/n) = 0.0201
    const { mean, interval } = await bootstrapMean(zerosAndOnes(2000, 600), { seed: 7, resamples: 4000 });
    expect(mean).toBeCloseTo(0.3, 12);
    expect(interval[0]).toBeCloseTo(0.3 - 0.0201, 2);
    expect(interval[1]).toBeCloseTo(0.3 + 0.0201, 2);
    expect((interval[1] - interval[0]) / 2 / 0.0201).toBeGreaterThan(0.93);
    expect((interval[1] - interval[0]) / 2 / 0.0201).toBeLessThan(1.07);
  });

  it('covers the true mean in about 95 of 100 samples', async () => {
    const numSamples = 300;
    let covered = 0;
    for (let sample = 0; sample < numSamples; sample++) {
      // A sample of 200 fair coins, from digits of a Weyl sequence scrambled by the sample's number.
      const values = Float64Array.from({ length: 200 }, (_, i) => {
        const x = Math.sin((sample * 200 + i + 1) * 12.9898) * 43758.5453;
        return x - Math.floor(x) < 0.5 ? 1 : 0;
      });
      const { interval } = await bootstrapMean(values, { seed: sample, resamples: 400 });
      if (interval[0] <= 0.5 && interval[1] >= 0.5) covered++;
    }
    expect(covered / numSamples).toBeGreaterThan(0.9);
    expect(covered / numSamples).toBeLessThan(0.99);
  });

  it('gives one result a seed, and another for another seed', async () => {
    const values = Float64Array.from({ length: 50 }, (_, i) => i / 50);
    expect(await bootstrapMean(values, { seed: 3 })).toEqual(await bootstrapMean(values, { seed: 3 }));
    expect((await bootstrapMean(values, { seed: 3 })).interval).not.toEqual(
      (await bootstrapMean(values, { seed: 4 })).interval,
    );
    // Seeds above 32 bits differ too.
    expect((await bootstrapMean(values, { seed: 2 ** 40 })).interval).not.toEqual(
      (await bootstrapMean(values, { seed: 0 })).interval,
    );
  });

  it('has no width when all users agree', async () => {
    expect(await bootstrapMean(new Float64Array(10).fill(0.25))).toEqual({ mean: 0.25, interval: [0.25, 0.25] });
    expect(await bootstrapMean(Float64Array.of(0.5))).toEqual({ mean: 0.5, interval: [0.5, 0.5] });
  });

  it('is wider at a higher confidence', async () => {
    const width = async (confidence: number) => {
      const { interval } = await bootstrapMean(zerosAndOnes(100, 40), { confidence });
      return interval[1] - interval[0];
    };
    expect(await width(0.99)).toBeGreaterThan(await width(0.8));
  });

  it('resamples 4,333 users a thousand times in under 0.3 s', async () => {
    const values = zerosAndOnes(4333, 400);
    const times: number[] = [];
    for (const seed of [1, 2, 3]) times.push(await cpuTimeMs(() => bootstrapMean(values, { seed })));
    expect(Math.min(...times)).toBeLessThan(300);
  });

  it('refuses no users, values that are not numbers, and options out of range', async () => {
    await expect(bootstrapMean(new Float64Array(0))).rejects.toThrow(
      expect.objectContaining({ code: 'ERR_EMPTY_DATA' }),
    );
    const invalid = expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' });
    await expect(bootstrapMean(Float64Array.of(1, Number.NaN))).rejects.toThrow(invalid);
    await expect(bootstrapMean(Float64Array.of(1), { resamples: 0 })).rejects.toThrow(invalid);
    await expect(bootstrapMean(Float64Array.of(1), { confidence: 1 })).rejects.toThrow(invalid);
    await expect(bootstrapMean(Float64Array.of(1), { seed: -1 })).rejects.toThrow(invalid);
  });
});

describe('bootstrapMeanOverSeeds', () => {
  it('averages the seeds of each user before users are drawn', async () => {
    const seeds = [Float64Array.of(0, 1, 0, 1), Float64Array.of(1, 0, 1, 0)];
    // Every user averages to 0.5, so that the users drawn do not matter.
    expect(await bootstrapMeanOverSeeds(seeds)).toEqual({ mean: 0.5, interval: [0.5, 0.5] });
    expect(seeds[0]).toEqual(Float64Array.of(0, 1, 0, 1));
  });

  it('equals the plain bootstrap for one seed', async () => {
    const values = zerosAndOnes(60, 20);
    expect(await bootstrapMeanOverSeeds([values], { seed: 5 })).toEqual(await bootstrapMean(values, { seed: 5 }));
  });

  it('refuses no seeds and seeds with different users', async () => {
    await expect(bootstrapMeanOverSeeds([])).rejects.toThrow(expect.objectContaining({ code: 'ERR_EMPTY_DATA' }));
    await expect(bootstrapMeanOverSeeds([new Float64Array(3), new Float64Array(2)])).rejects.toThrow(/3 and 2 users/);
  });
});

describe('bootstrapDifference', () => {
  it('pairs users: a constant gain has no width, however much users differ', async () => {
    const plain = Float64Array.from({ length: 40 }, (_, i) => i);
    const { mean, interval } = await bootstrapDifference([plain.map((value) => value + 0.25)], [plain]);
    expect(mean).toBe(0.25);
    expect(interval).toEqual([0.25, 0.25]);
  });

  it('contains zero for two systems that win equally often, and keeps the sign of a clear loss', async () => {
    const a = Float64Array.from({ length: 200 }, (_, i) => i % 2);
    const b = Float64Array.from({ length: 200 }, (_, i) => (i + 1) % 2);
    const even = await bootstrapDifference([a], [b]);
    expect(even.interval[0]).toBeLessThan(0);
    expect(even.interval[1]).toBeGreaterThan(0);
    const loss = await bootstrapDifference([zerosAndOnes(200, 20)], [zerosAndOnes(200, 80), zerosAndOnes(200, 100)]);
    expect(loss.mean).toBeCloseTo(20 / 200 - 90 / 200, 12);
    expect(loss.interval[1]).toBeLessThan(0);
  });

  it('refuses systems with different users', async () => {
    await expect(bootstrapDifference([new Float64Array(3)], [new Float64Array(4)])).rejects.toThrow(/3 and 4 users/);
  });
});

describe('bootstrapDifferenceOverSeeds', () => {
  it('has the mean of the difference over users, and the same interval when seeds agree', async () => {
    const a = [zerosAndOnes(400, 200), zerosAndOnes(400, 200)];
    const b = [zerosAndOnes(400, 100)];
    const users = await bootstrapDifference(a, b, { seed: 1, resamples: 2000 });
    const both = await bootstrapDifferenceOverSeeds(a, b, { seed: 1, resamples: 2000 });
    expect(both.mean).toBeCloseTo(users.mean, 12);
    expect(both.interval[0]).toBeCloseTo(users.interval[0], 2);
    expect(both.interval[1]).toBeCloseTo(users.interval[1], 2);
  });

  it('is wider when seeds differ more than users do', async () => {
    const a = [new Float64Array(50).fill(0.2), new Float64Array(50).fill(0.4), new Float64Array(50).fill(0.6)];
    const b = [new Float64Array(50)];
    expect((await bootstrapDifference(a, b)).interval[0]).toBeCloseTo(0.4, 12);
    const { mean, interval } = await bootstrapDifferenceOverSeeds(a, b);
    expect(mean).toBeCloseTo(0.4, 12);
    // Of three draws, all three are the lowest seed in 1 of 27, more than the 2.5 % that are cut off.
    expect(interval[0]).toBeCloseTo(0.2, 12);
    expect(interval[1]).toBeCloseTo(0.6, 12);
  });

  it('pairs users: equal systems differ by nothing', async () => {
    const values = Float64Array.from({ length: 90 }, (_, i) => (i * 37) % 11);
    expect(await bootstrapDifferenceOverSeeds([values], [values])).toEqual({ mean: 0, interval: [0, 0] });
  });

  it('refuses other users, and values that are not finite', async () => {
    await expect(bootstrapDifferenceOverSeeds([zerosAndOnes(3, 1)], [zerosAndOnes(4, 1)])).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
    });
    await expect(
      bootstrapDifferenceOverSeeds([Float64Array.of(Number.NaN)], [Float64Array.of(1)]),
    ).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
    });
  });
});
