import { createPacer } from '../formats/pacer.js';
import { checkInteger, checkNotEmpty } from './checks.js';

/** Counts of calls in bins of equal width on a logarithmic axis. */
export interface LatencyHistogram {
  /** Ascending, one more than `counts`; bin i holds edgesMs[i] ≤ duration < edgesMs[i + 1]. */
  readonly edgesMs: readonly number[];
  readonly counts: readonly number[];
}

/** Wall-clock time of single calls, in milliseconds. */
export interface LatencySummary {
  readonly p50Ms: number;
  readonly p95Ms: number;
  readonly p99Ms: number;
  readonly meanMs: number;
  readonly histogram: LatencyHistogram;
}

export interface LatencyOptions {
  /** Calls made and not counted, so that code is compiled and caches are filled. At least 0. */
  readonly warmup: number;
  /** Calls counted, at least 1. */
  readonly iterations: number;
}

/** Twenty bins a decade: neighbouring edges differ by 12 %. */
const BINS_PER_DECADE = 20;
/** One nanosecond, the resolution of the clock: shorter durations read as 0, which has no logarithm. */
const MIN_DURATION_MS = 1e-6;

/**
 * Times synchronous calls one by one.
 *
 * @param call - receives 0 … iterations − 1 (and the same numbers, as far as they go, in the warm-up)
 * @throws `ERR_INVALID_ARGUMENT` for options out of range; whatever `call` throws
 */
export async function measureLatency(
  call: (i: number) => void,
  { warmup, iterations }: LatencyOptions,
): Promise<LatencySummary> {
  checkInteger('warmup', warmup, 0);
  checkInteger('iterations', iterations, 1);
  const pause = createPacer();
  for (let i = 0; i < warmup; i++) {
    await pause();
    call(i % iterations);
  }
  const durationsMs = new Float64Array(iterations);
  for (let i = 0; i < iterations; i++) {
    await pause();
    // performance.now() reads the same clock as process.hrtime.bigint(), without allocating a BigInt a call.
    const start = performance.now();
    call(i);
    durationsMs[i] = performance.now() - start;
  }
  return summarizeLatency(durationsMs);
}

/**
 * Percentiles (nearest rank: always a duration that was measured), mean and histogram of durations.
 *
 * @param durationsMs - at least one, in milliseconds, any order
 * @throws `ERR_EMPTY_DATA` for no durations
 */
export function summarizeLatency(durationsMs: Float64Array): LatencySummary {
  checkNotEmpty('durationsMs', durationsMs);
  const sorted = durationsMs.slice().sort();
  const percentile = (p: number) => sorted[Math.max(0, Math.ceil((p / 100) * sorted.length) - 1)] as number;
  return {
    p50Ms: percentile(50),
    p95Ms: percentile(95),
    p99Ms: percentile(99),
    meanMs: sorted.reduce((sum, duration) => sum + duration, 0) / sorted.length,
    histogram: histogram(sorted),
  };
}

function histogram(sortedMs: Float64Array): LatencyHistogram {
  const binOf = (durationMs: number) => Math.floor(Math.log10(Math.max(durationMs, MIN_DURATION_MS)) * BINS_PER_DECADE);
  const first = binOf(sortedMs[0] as number);
  const counts = new Array<number>(binOf(sortedMs.at(-1) as number) - first + 1).fill(0);
  for (const duration of sortedMs) {
    const bin = binOf(duration) - first;
    counts[bin] = (counts[bin] as number) + 1;
  }
  const edgesMs = Array.from({ length: counts.length + 1 }, (_, bin) => 10 ** ((first + bin) / BINS_PER_DECADE));
  return { edgesMs, counts };
}
