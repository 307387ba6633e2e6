/**
 * Leave-one-out ranking metrics. Each test user has exactly one relevant item (the held-out one), so every metric is a
 * mean over users of a function of that item's rank r in the full catalogue (1 = best, seen items masked).
 *
 * Letters: S test users, k cut-off, K length of the recommended lists, [r ≤ k] = 1 when true and 0 when not.
 */
import { LimbeckError } from '../errors.js';
import { checkInteger, checkNotEmpty } from './checks.js';

/** Metrics that are a mean over users. `accuracy` ignores the cut-off: it is `recall` at 1. */
export type RankingMetricName = 'recall' | 'precision' | 'f1' | 'hitRate' | 'ndcg' | 'mrr' | 'map' | 'accuracy';

/** One value a cut-off: `metrics.ndcgAtK[10]`. A plain object, so that it survives JSON. */
export type ByCutOff = Readonly<Record<number, number>>;

/** Every metric lies in 0 … 1; more is better. */
export interface RankingMetrics {
  readonly numUsers: number;
  readonly recallAtK: ByCutOff;
  readonly precisionAtK: ByCutOff;
  readonly f1AtK: ByCutOff;
  readonly hitRateAtK: ByCutOff;
  readonly ndcgAtK: ByCutOff;
  readonly mrrAtK: ByCutOff;
  readonly mapAtK: ByCutOff;
  /** Mean reciprocal rank over the whole catalogue, no cut-off. */
  readonly mrr: number;
  /** Share of users whose held-out item came first. */
  readonly accuracy: number;
  /** Only when lists were given, and only for cut-offs that they are long enough for. */
  readonly coverageAtK?: ByCutOff;
}

export interface RankingMetricsOptions {
  /** Cut-offs, each at least 1. A cut-off above `numItems` is legal. */
  readonly ks: readonly number[];
  /** Items in the catalogue, at least 1. */
  readonly numItems: number;
  /** Recommended lists [S, K], best first; negative entries are padding. Wanted for coverage only. */
  readonly topK?: Int32Array;
}

const contribution: Readonly<Record<RankingMetricName, (rank: number, k: number) => number>> = {
  recall: (rank, k) => (rank <= k ? 1 : 0),
  precision: (rank, k) => (rank <= k ? 1 / k : 0),
  f1: (rank, k) => (rank <= k ? 2 / (k + 1) : 0),
  hitRate: (rank, k) => (rank <= k ? 1 : 0),
  ndcg: (rank, k) => (rank <= k ? 1 / Math.log2(rank + 1) : 0),
  mrr: (rank, k) => (rank <= k ? 1 / rank : 0),
  map: (rank, k) => (rank <= k ? 1 / rank : 0),
  accuracy: (rank) => (rank === 1 ? 1 : 0),
};

/**
 * What each user adds to a metric, in the order of `ranks`: the input of the bootstrap.
 *
 * @param ranks - [S], 1 = best
 * @param k - cut-off, at least 1; `Infinity` = none, for `mrr` alone
 * @returns [S], whose mean is the metric
 * @throws `ERR_EMPTY_DATA` for no users, `ERR_INVALID_ARGUMENT` for a rank or a cut-off below 1
 */
export function userContributions(ranks: Int32Array, metric: RankingMetricName, k: number): Float64Array {
  checkRanks(ranks, metric, k);
  const value = contribution[metric];
  const values = new Float64Array(ranks.length);
  for (let user = 0; user < ranks.length; user++) values[user] = value(ranks[user] as number, k);
  return values;
}

function meanOver(ranks: Int32Array, metric: RankingMetricName, k: number): number {
  checkRanks(ranks, metric, k);
  const value = contribution[metric];
  let sum = 0;
  for (let user = 0; user < ranks.length; user++) sum += value(ranks[user] as number, k);
  return sum / ranks.length;
}

function checkRanks(ranks: Int32Array, metric: RankingMetricName, k: number): void {
  checkNotEmpty('ranks', ranks);
  if (k !== Number.POSITIVE_INFINITY || metric !== 'mrr') checkInteger('k', k, 1);
  for (let user = 0; user < ranks.length; user++) {
    const rank = ranks[user] as number;
    if (rank >= 1) continue;
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `ranks count from 1, but user ${user} has rank ${rank}`);
  }
}

/**
 * Share of users whose held-out item is among the first k: mean of [r ≤ k].
 * @see Manning, Raghavan, Schütze 2008, Introduction to Information Retrieval, §8.3; one relevant item
 */
export function recallAtK(ranks: Int32Array, k: number): number {
  return meanOver(ranks, 'recall', k);
}

/**
 * Share of the k recommended places that are relevant: mean of [r ≤ k] / k. At most 1/k here. The divisor stays k for
 * catalogues smaller than k.
 * @see Manning, Raghavan, Schütze 2008, §8.4
 */
export function precisionAtK(ranks: Int32Array, k: number): number {
  return meanOver(ranks, 'precision', k);
}

/**
 * Harmonic mean 2PR/(P + R) of precision and recall: with one relevant item, 2·[r ≤ k] / (k + 1). The mean over users
 * equals the F1 of the mean precision and the mean recall.
 * @see Manning, Raghavan, Schütze 2008, §8.3, eq. 8.6
 */
export function f1AtK(ranks: Int32Array, k: number): number {
  return meanOver(ranks, 'f1', k);
}

/**
 * Share of users with at least one relevant item among the first k; equals recall@k with one relevant item.
 * @see Kang and McAuley 2018, Self-Attentive Sequential Recommendation, §IV-C
 */
export function hitRateAtK(ranks: Int32Array, k: number): number {
  return meanOver(ranks, 'hitRate', k);
}

/**
 * Normalised discounted cumulative gain: mean of [r ≤ k] / log₂(r + 1); the ideal gain is 1 with one relevant item.
 * @see Järvelin and Kekäläinen 2002, Cumulated gain-based evaluation of IR techniques, §2.2
 */
export function ndcgAtK(ranks: Int32Array, k: number): number {
  return meanOver(ranks, 'ndcg', k);
}

/**
 * Mean reciprocal rank, 0 beyond the cut-off: mean of [r ≤ k] / r.
 * @see Voorhees 1999, The TREC-8 Question Answering Track Report, §3
 */
export function mrrAtK(ranks: Int32Array, k: number): number {
  return meanOver(ranks, 'mrr', k);
}

/** Mean reciprocal rank without a cut-off: mean of 1 / r. @see {@link mrrAtK} */
export function mrr(ranks: Int32Array): number {
  return meanOver(ranks, 'mrr', Number.POSITIVE_INFINITY);
}

/**
 * Mean average precision. The average precision of a list with one relevant item at rank r is 1 / r, so this equals
 * {@link mrrAtK}; both names are kept because papers report both.
 * @see Manning, Raghavan, Schütze 2008, §8.4, eq. 8.8
 */
export function mapAtK(ranks: Int32Array, k: number): number {
  return meanOver(ranks, 'map', k);
}

/** Share of users whose held-out item is ranked first. */
export function accuracy(ranks: Int32Array): number {
  return meanOver(ranks, 'accuracy', 1);
}

/**
 * Share of the catalogue that appears in at least one recommended list.
 *
 * @param topK - lists [S, K] end to end; negative entries are padding
 * @param numItems - items in the catalogue, at least 1
 * @param columns - counts the first `k` entries of each list of `width` entries only
 * @throws `ERR_INVALID_ARGUMENT` for an id outside the catalogue
 * @see Herlocker et al. 2004, Evaluating collaborative filtering recommender systems, §4.2.1 (catalog coverage)
 */
export function coverageAtK(topK: Int32Array, numItems: number, columns = { k: 1, width: 1 }): number {
  checkNotEmpty('topK', topK);
  checkInteger('numItems', numItems, 1);
  checkInteger('columns.width', columns.width, 1);
  checkInteger('columns.k', columns.k, 1);
  const seen = new Uint8Array(numItems);
  let distinct = 0;
  const { k, width } = columns;
  for (let list = 0; list < topK.length; list += width) {
    for (let index = list; index < Math.min(list + k, list + width, topK.length); index++) {
      const item = topK[index] as number;
      if (item < 0) continue;
      if (item >= numItems) {
        throw new LimbeckError(
          'ERR_INVALID_ARGUMENT',
          `topK names item ${item}, but the catalogue has ${numItems} items`,
        );
      }
      distinct += 1 - (seen[item] as number);
      seen[item] = 1;
    }
  }
  return distinct / numItems;
}

/**
 * All metrics at all cut-offs.
 *
 * @example
 * ```ts
 * const metrics = rankingMetrics(Int32Array.of(1, 3, 40), { ks: [10], numItems: 100 });
 * metrics.recallAtK[10]; // 2/3
 * ```
 * @param ranks - [S], rank of the held-out item of each user, 1 … numItems
 * @throws `ERR_EMPTY_DATA` for no users or no cut-offs, `ERR_INVALID_ARGUMENT` for a rank outside the catalogue, or lists
 * that are not one a user
 */
export function rankingMetrics(ranks: Int32Array, options: RankingMetricsOptions): RankingMetrics {
  const { ks, numItems, topK } = options;
  checkNotEmpty('ranks', ranks);
  checkNotEmpty('ks', ks);
  checkInteger('numItems', numItems, 1);
  const beyond = ranks.findIndex((rank) => rank > numItems);
  if (beyond >= 0) {
    const message = `user ${beyond} has rank ${ranks[beyond]}, but the catalogue has ${numItems} items`;
    throw new LimbeckError('ERR_INVALID_ARGUMENT', message);
  }
  const byCutOff = (metric: RankingMetricName) => Object.fromEntries(ks.map((k) => [k, meanOver(ranks, metric, k)]));
  return {
    numUsers: ranks.length,
    recallAtK: byCutOff('recall'),
    precisionAtK: byCutOff('precision'),
    f1AtK: byCutOff('f1'),
    hitRateAtK: byCutOff('hitRate'),
    ndcgAtK: byCutOff('ndcg'),
    mrrAtK: byCutOff('mrr'),
    mapAtK: byCutOff('map'),
    mrr: mrr(ranks),
    accuracy: accuracy(ranks),
    ...(topK === undefined ? {} : { coverageAtK: coverageByCutOff(topK, ranks.length, ks, numItems) }),
  };
}

function coverageByCutOff(topK: Int32Array, numUsers: number, ks: readonly number[], numItems: number): ByCutOff {
  const width = topK.length / numUsers;
  if (!Number.isInteger(width) || width === 0) {
    const message = `topK must hold one list of equal length for each of ${numUsers} users, got ${topK.length} entries`;
    throw new LimbeckError('ERR_INVALID_ARGUMENT', message);
  }
  const known = ks.filter((k) => k <= width);
  return Object.fromEntries(known.map((k) => [k, coverageAtK(topK, numItems, { k, width })]));
}
