/** What a student answers. */
import type { InterestReason, Reason } from './explain.js';

/** An item of an answer. */
export interface RankedItem {
  readonly id: string;
  readonly score: number;
}

export interface RecommendedItem extends RankedItem {
  /** With `explain`: the entries of the history that raised the score. */
  readonly because?: readonly Reason[];
  /** With `explain`: the interests that those entries belong to. */
  readonly interests?: readonly InterestReason[];
}

export interface Recommendation {
  /**
   * Best first; fewer than k when no more may be recommended. `score` is the logit with boosts and novelty added, or log
   * popularity for an empty history: comparable inside one answer.
   */
  readonly items: readonly RecommendedItem[];
  /** Ids of the history that the student does not know. */
  readonly unknownItems: readonly string[];
}

/** What a user is interested in, as the student sees it. */
export interface Interest {
  readonly name: string;
  /** Share of the next choice's probability that falls to its items. All of a user's sum to 1. */
  readonly weight: number;
  /** Entries of the history that belong to it, newest first: ids, or the texts of those that have none. */
  readonly items: readonly string[];
}
