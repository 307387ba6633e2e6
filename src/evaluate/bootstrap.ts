/**
 * Percentile bootstrap over users. Letters: S users, R resamples.
 *
 * Users are the sampling unit: one resample draws S users with replacement and takes the mean of their values. With
 * several training seeds, the values of a user are averaged over the seeds first, which is the same as drawing users
 * and then averaging, because every seed is evaluated on the same users.
 *
 * @see Efron and Tibshirani 1993, An Introduction to the Bootstrap, §13.3 (percentile interval)
 */
import { LimbeckError } from '../errors.js';
import { createPacer } from '../formats/pacer.js';
import { checkInteger, checkNotEmpty } from './checks.js';

export interface BootstrapOptions {
  /** @defaultValue 0 */
  readonly seed?: number;
  /** R, at least 1. @defaultValue 1000 */
  readonly resamples?: number;
  /** Coverage of the interval, between 0 and 1. @defaultValue 0.95 */
  readonly confidence?: number;
}

export interface BootstrapEstimate {
  /** Mean of the sample itself, not of the resamples. */
  readonly mean: number;
  /** Lower and upper bound. */
  readonly interval: readonly [number, number];
}

/**
 * Mean of one value a user, with its interval.
 *
 * @param values - [S], finite
 * @throws `ERR_EMPTY_DATA` for no users, `ERR_INVALID_ARGUMENT` for options out of range or values that are not finite
 */
export async function bootstrapMean(values: Float64Array, options: BootstrapOptions = {}): Promise<BootstrapEstimate> {
  const { seed, resamples, confidence } = checkOptions(options);
  checkValues(values);

  const numUsers = values.length;
  const random = sfc32(seed);
  const means = new Float64Array(resamples);
  const pause = createPacer();
  for (let resample = 0; resample < resamples; resample++) {
    await pause();
    let sum = 0;
    for (let draw = 0; draw < numUsers; draw++) sum += values[Math.floor(random() * numUsers)] as number;
    means[resample] = sum / numUsers;
  }
  return { mean: mean(values), interval: percentiles(means, confidence) };
}

/**
 * Mean over training seeds of one value a user, with its interval over users.
 *
 * @param valuesBySeed - one array [S] a seed, users in the same order
 * @throws as {@link bootstrapMean}, and `ERR_INVALID_ARGUMENT` when the seeds have different numbers of users
 */
export async function bootstrapMeanOverSeeds(
  valuesBySeed: readonly Float64Array[],
  options: BootstrapOptions = {},
): Promise<BootstrapEstimate> {
  return bootstrapMean(averageOverSeeds(valuesBySeed), options);
}

/**
 * Paired difference `a − b` of two systems on the same users, each averaged over its seeds. An interval that leaves out
 * 0 is a difference that the choice of users does not explain.
 *
 * @param a - one array [S] a seed
 * @param b - one array [S] a seed; as many users as `a`, any number of seeds
 * @throws as {@link bootstrapMeanOverSeeds}
 */
export async function bootstrapDifference(
  a: readonly Float64Array[],
  b: readonly Float64Array[],
  options: BootstrapOptions = {},
): Promise<BootstrapEstimate> {
  const averageA = averageOverSeeds(a);
  const averageB = averageOverSeeds(b);
  checkSameUsers(averageA, averageB);
  return bootstrapMean(
    averageA.map((value, user) => value - (averageB[user] as number)),
    options,
  );
}

/**
 * As {@link bootstrapDifference}, with the training seeds drawn too: one resample draws as many seeds of each system as it
 * has, with replacement, and users of which the same ones are taken for every seed. The interval then also covers what
 * another training run would have changed; with three seeds it is a rough and cautious one.
 *
 * @param a - one array [S] a seed
 * @param b - one array [S] a seed; as many users as `a`, any number of seeds
 * @throws as {@link bootstrapDifference}
 * @see Davison and Hinkley 1997, Bootstrap Methods and their Application, §3.8 (two sources of variation)
 */
export async function bootstrapDifferenceOverSeeds(
  a: readonly Float64Array[],
  b: readonly Float64Array[],
  options: BootstrapOptions = {},
): Promise<BootstrapEstimate> {
  const { seed, resamples, confidence } = checkOptions(options);
  const difference = mean(averageOverSeeds(a)) - mean(averageOverSeeds(b));
  const [first] = a as readonly [Float64Array];
  for (const values of [...a, ...b]) {
    checkValues(values);
    checkSameUsers(first, values);
  }
  const numUsers = first.length;
  const random = sfc32(seed);
  const draw = (systems: readonly Float64Array[]) =>
    systems.map(() => systems[Math.floor(random() * systems.length)] as Float64Array);
  const differences = new Float64Array(resamples);
  const drawnUsers = new Int32Array(numUsers);
  const pause = createPacer();
  for (let resample = 0; resample < resamples; resample++) {
    for (let i = 0; i < numUsers; i++) drawnUsers[i] = Math.floor(random() * numUsers);
    for (const [systems, sign] of [
      [draw(a), 1],
      [draw(b), -1],
    ] as const) {
      for (const values of systems) {
        await pause();
        let sum = 0;
        for (const user of drawnUsers) sum += values[user] as number;
        differences[resample] = (differences[resample] as number) + (sign * sum) / (numUsers * systems.length);
      }
    }
  }
  return { mean: difference, interval: percentiles(differences, confidence) };
}

function checkOptions({ seed = 0, resamples = 1000, confidence = 0.95 }: BootstrapOptions): Required<BootstrapOptions> {
  checkInteger('seed', seed, 0);
  checkInteger('resamples', resamples, 1);
  if (!(confidence > 0 && confidence < 1)) {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `confidence must lie between 0 and 1, got ${confidence}`);
  }
  return { seed, resamples, confidence };
}

function checkValues(values: Float64Array): void {
  checkNotEmpty('values', values);
  if (!values.every(Number.isFinite)) {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', 'values must be finite numbers, one a user');
  }
}

/** Sorts the resamples in place. */
function percentiles(resamples: Float64Array, confidence: number): [number, number] {
  resamples.sort();
  const tail = (1 - confidence) / 2;
  return [quantile(resamples, tail), quantile(resamples, 1 - tail)];
}

function averageOverSeeds(valuesBySeed: readonly Float64Array[]): Float64Array {
  checkNotEmpty('valuesBySeed', valuesBySeed);
  const [first, ...others] = valuesBySeed as [Float64Array, ...Float64Array[]];
  const sums = first.slice();
  for (const values of others) {
    checkSameUsers(first, values);
    for (const [user, value] of values.entries()) sums[user] = (sums[user] as number) + value;
  }
  return sums.map((sum) => sum / valuesBySeed.length);
}

function checkSameUsers(a: Float64Array, b: Float64Array): void {
  if (a.length !== b.length) {
    const message = `values must be paired by user, got ${a.length} and ${b.length} users: evaluate both on one test split`;
    throw new LimbeckError('ERR_INVALID_ARGUMENT', message);
  }
}

function mean(values: Float64Array): number {
  let sum = 0;
  for (const value of values) sum += value;
  return sum / values.length;
}

/** Linear interpolation between order statistics (Hyndman and Fan 1996, definition 7). */
function quantile(sorted: Float64Array, probability: number): number {
  const position = probability * (sorted.length - 1);
  const lower = Math.floor(position);
  const low = sorted[lower] as number;
  const high = sorted[Math.min(lower + 1, sorted.length - 1)] as number;
  return low + (position - lower) * (high - low);
}

/** Uniform numbers in [0, 1). Small Fast Counting generator, 32 bits: Doty-Humphrey, PractRand 0.95. */
function sfc32(seed: number): () => number {
  let a = seed >>> 0;
  let b = Math.floor(seed / 2 ** 32) >>> 0;
  let c = 0;
  let counter = 1;
  const next = () => {
    const sum = (a + b + counter) | 0;
    counter = (counter + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (((c << 21) | (c >>> 11)) + sum) | 0;
    return (sum >>> 0) / 2 ** 32;
  };
  // The first numbers still carry the pattern of the seed.
  for (let round = 0; round < 15; round++) next();
  return next;
}
