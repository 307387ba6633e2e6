import { describe, expect, it } from 'vitest';
import { measureLatency, summarizeLatency } from '../../../src/evaluate/latency.js';

describe('summarizeLatency', () => {
  it('takes percentiles by nearest rank, from durations in any order', () => {
    const durations = Float64Array.from({ length: 100 }, (_, i) => 100 - i); // 1 … 100 ms
    const { p50Ms, p95Ms, p99Ms, meanMs } = summarizeLatency(durations);
    expect([p50Ms, p95Ms, p99Ms, meanMs]).toEqual([50, 95, 99, 50.5]);
    expect(durations[0]).toBe(100);
  });

  it('counts every call once, in bins of equal ratio that enclose it', () => {
    const { histogram } = summarizeLatency(Float64Array.of(0.01, 0.05, 0.05, 1, 10));
    const { edgesMs, counts } = histogram;
    expect(edgesMs.length).toBe(counts.length + 1);
    expect(counts.reduce((a, b) => a + b)).toBe(5);
    expect(edgesMs[0]).toBeLessThanOrEqual(0.01);
    expect(edgesMs.at(-1)).toBeGreaterThan(10);
    const ratio = (edgesMs[1] ?? 0) / (edgesMs[0] ?? 1);
    for (let bin = 0; bin < counts.length; bin++)
      expect((edgesMs[bin + 1] ?? 0) / (edgesMs[bin] ?? 1)).toBeCloseTo(ratio, 9);
    expect(counts[edgesMs.findIndex((edge) => edge > 0.05) - 1]).toBe(2);
  });

  it('survives durations below the resolution of the clock', () => {
    const { p50Ms, histogram } = summarizeLatency(Float64Array.of(0, 0));
    expect(p50Ms).toBe(0);
    expect(histogram.counts).toEqual([2]);
    expect(histogram.edgesMs.every(Number.isFinite)).toBe(true);
  });

  it('refuses no durations', () => {
    expect(() => summarizeLatency(new Float64Array(0))).toThrow(expect.objectContaining({ code: 'ERR_EMPTY_DATA' }));
  });
});

describe('measureLatency', () => {
  it('calls the warm-up first and counts only the iterations', async () => {
    const calls: number[] = [];
    const { histogram } = await measureLatency((i) => calls.push(i), { warmup: 3, iterations: 2 });
    expect(calls).toEqual([0, 1, 0, 0, 1]);
    expect(histogram.counts.reduce((a, b) => a + b)).toBe(2);
  });

  it('measures in milliseconds', async () => {
    const spin = () => {
      const end = performance.now() + 2;
      while (performance.now() < end);
    };
    const { p50Ms, p99Ms } = await measureLatency(spin, { warmup: 0, iterations: 5 });
    expect(p50Ms).toBeGreaterThanOrEqual(2);
    expect(p50Ms).toBeLessThan(200);
    expect(p99Ms).toBeGreaterThanOrEqual(p50Ms);
  });

  it('refuses to measure nothing, and passes on what the call throws', async () => {
    const invalid = expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' });
    await expect(measureLatency(() => {}, { warmup: 0, iterations: 0 })).rejects.toThrow(invalid);
    await expect(measureLatency(() => {}, { warmup: -1, iterations: 1 })).rejects.toThrow(invalid);
    const broken = () => {
      throw new RangeError('broken');
    };
    await expect(measureLatency(broken, { warmup: 0, iterations: 1 })).rejects.toThrow(RangeError);
  });
});
