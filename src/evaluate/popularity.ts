/**
 * The popularity baseline, ranked by the protocol of the models: full catalogue, seen items masked, ties counted against
 * it. Letters: S test cases, K length of the lists.
 */
import { LimbeckError } from '../errors.js';
import { createPacer } from '../formats/pacer.js';
import { checkInteger, checkNotEmpty } from './checks.js';

export interface PopularityCases {
  /** The item that came next, one a case. */
  readonly targets: Int32Array; // [S]
  /** Items never to be recommended (usually the seen ones); repetitions are harmless. The target is never excluded. */
  readonly excludeIds: Int32Array;
  readonly excludeOffsets: Int32Array; // [S + 1], from 0 to excludeIds.length, ascending
}

export interface PopularityRanking {
  /** Rank of each target, 1 = best. */
  readonly ranks: Int32Array; // [S]
  /** Best first, equal counts by lower id; -1 where the catalogue is exhausted. */
  readonly topK: Int32Array; // [S, K]
}

/**
 * Ranks every item by its number of training interactions.
 *
 * The rank of a target is 1 + the number of other items, not excluded, whose count is at least the target's.
 *
 * @param trainCounts - [numItems], training interactions of each item
 * @param topK - K, at least 0
 * @throws `ERR_EMPTY_DATA` for no items or no cases, `ERR_INVALID_ARGUMENT` for ids outside the catalogue or offsets that
 * do not match
 */
export async function rankByPopularity(
  trainCounts: Int32Array,
  cases: PopularityCases,
  topK: number,
): Promise<PopularityRanking> {
  checkNotEmpty('trainCounts', trainCounts);
  checkCases(cases, trainCounts.length);
  checkInteger('topK', topK, 0);
  const { targets, excludeIds, excludeOffsets } = cases;
  const countOf = (item: number) => trainCounts[item] as number;

  const byCount = Int32Array.from(trainCounts.keys()).sort((a, b) => countOf(b) - countOf(a) || a - b);
  const ranks = new Int32Array(targets.length);
  const lists = new Int32Array(targets.length * topK).fill(-1);
  // excludedBy[item] = the last case (counted from 1) that excludes it: no clearing between cases.
  const excludedBy = new Int32Array(trainCounts.length);
  const pause = createPacer();
  for (const [index, target] of targets.entries()) {
    await pause();
    const stamp = index + 1;
    const targetCount = countOf(target);
    let rank = countAtLeast(byCount, trainCounts, targetCount);
    for (const item of excludeIds.subarray(excludeOffsets[index], excludeOffsets[index + 1])) {
      if (item === target || excludedBy[item] === stamp) continue;
      excludedBy[item] = stamp;
      if (countOf(item) >= targetCount) rank--;
    }
    ranks[index] = rank;

    const list = lists.subarray(index * topK, stamp * topK);
    for (let place = 0, position = 0; place < topK && position < byCount.length; position++) {
      const item = byCount[position] as number;
      if (excludedBy[item] !== stamp) list[place++] = item;
    }
  }
  return { ranks, topK: lists };
}

/** Number of items whose count is at least `count`, by bisection of the items sorted by falling count. */
function countAtLeast(byCount: Int32Array, trainCounts: Int32Array, count: number): number {
  let low = 0;
  let high = byCount.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((trainCounts[byCount[middle] as number] as number) >= count) low = middle + 1;
    else high = middle;
  }
  return low;
}

function checkCases({ targets, excludeIds, excludeOffsets }: PopularityCases, numItems: number): void {
  checkNotEmpty('targets', targets);
  for (const [name, ids] of Object.entries({ targets, excludeIds })) {
    const wrong = ids.find((item) => item < 0 || item >= numItems);
    if (wrong !== undefined) {
      throw new LimbeckError(
        'ERR_INVALID_ARGUMENT',
        `${name} names item ${wrong}, but ids run from 0 to ${numItems - 1}`,
      );
    }
  }
  const ascending = excludeOffsets.every(
    (offset, index) => index === 0 || offset >= (excludeOffsets[index - 1] as number),
  );
  const complete = excludeOffsets[0] === 0 && excludeOffsets.at(-1) === excludeIds.length;
  if (excludeOffsets.length !== targets.length + 1 || !ascending || !complete) {
    const message = `excludeOffsets must rise from 0 to ${excludeIds.length} in ${targets.length + 1} entries`;
    throw new LimbeckError('ERR_INVALID_ARGUMENT', message);
  }
}

/**
 * The most popular items that a user has not seen: the baseline as it would be served, for timing it.
 *
 * @param byCount - all items, most popular first
 * @param seen - items left out
 */
export function mostPopular(byCount: Int32Array, seen: ReadonlySet<number>, k: number): number[] {
  const items: number[] = [];
  for (const item of byCount) {
    if (items.length === k) break;
    if (!seen.has(item)) items.push(item);
  }
  return items;
}
