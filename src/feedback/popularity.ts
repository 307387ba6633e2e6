/** How much items are asked for of late: sums of weights that halve every half-life. */
import { z } from 'zod';
import { LimbeckError } from '../errors.js';
import { checkedJson } from '../formats/checked-json.js';
import { parseOptions } from '../prepare/parse-options.js';
import { ForwardDecay, resumeDecay } from './decay.js';

const DAY_MS = 86_400_000;
/** A longer id is no item's. */
const MAX_ID_LENGTH = 1024;

const popularityOptionsSchema = z.strictObject({
  /** Time in which a weight halves. */
  halfLifeMs: z
    .number()
    .gt(0)
    .default(7 * DAY_MS),
  /** Items kept; beyond it, the least popular quarter is forgotten. */
  maxItems: z.int().min(1).default(1_000_000),
});

export type PopularityOptions = z.input<typeof popularityOptionsSchema>;

const stateSchema = z.strictObject({
  format: z.literal('limbeck-popularity'),
  version: z.literal(1),
  halfLifeMs: z.number().gt(0),
  /** ms since epoch that the scores are of; null = nothing was added. */
  time: z.number().nullable(),
  items: z.array(z.tuple([z.string().min(1).max(MAX_ID_LENGTH), z.number().gt(0)])),
});

/** Survives JSON. */
export type PopularityState = z.output<typeof stateSchema>;

/** Of these the order is kept: each event looks through them. */
const MAX_BEST = 1024;

/**
 * Decayed popularity of items. Adding takes the same whatever the time that has passed; nothing is touched as time goes by.
 *
 * @example
 * const popularity = new Popularity({ halfLifeMs: 86_400_000 });
 * popularity.add('tt0133093', Date.now());
 * popularity.top(10, Date.now()); // [{ id: 'tt0133093', score: 1 }]
 */
export class Popularity {
  /** Sums of weights at the decay's landmark. */
  readonly #sums = new Map<string, number>();
  /** The most popular items with their sums, best first, as many as were asked for; undefined until they are again. */
  #best: [string, number][] | undefined;
  #numBest = 0;
  readonly #decay: ForwardDecay;
  readonly #maxItems: number;

  /** @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION */
  constructor(options: PopularityOptions = {}, landmark?: number) {
    const { halfLifeMs, maxItems } = parseOptions(popularityOptionsSchema, options, 'popularity');
    this.#decay = new ForwardDecay(halfLifeMs, landmark);
    this.#maxItems = maxItems;
  }

  /** Items with a score above 0. */
  get size(): number {
    return this.#sums.size;
  }

  /**
   * Counts something that happened to an item; what comes late counts as much as if it had come in time.
   *
   * @param time ms since epoch. A time in the future would outweigh everything before it: the caller clamps it
   * @param weight > 0 @defaultValue 1
   * @throws LimbeckError ERR_INVALID_ARGUMENT
   */
  add(itemId: string, time: number, weight = 1): void {
    if (typeof itemId !== 'string' || itemId.length === 0 || itemId.length > MAX_ID_LENGTH) {
      throw new LimbeckError('ERR_INVALID_ARGUMENT', `itemId: expected 1 to ${MAX_ID_LENGTH} characters`);
    }
    if (!(weight > 0 && Number.isFinite(weight))) {
      throw new LimbeckError('ERR_INVALID_ARGUMENT', `weight: expected a positive number, got ${weight}`);
    }
    const added = weight * this.#decay.weightAt(time, (factor) => this.#rescale(factor));
    // Infinity would be null in JSON, and the state no state.
    const sum = Math.min((this.#sums.get(itemId) ?? 0) + added, Number.MAX_VALUE);
    if (sum > 0) {
      this.#sums.set(itemId, sum);
      this.#raise(itemId, sum);
    }
    if (this.#sums.size > this.#maxItems) this.#forgetLeastPopular();
  }

  /**
   * Sum of an item's weights, each halved for every half-life until `now` (ms since epoch). 0 for an unknown item.
   *
   * @throws LimbeckError ERR_INVALID_ARGUMENT, as {@link top}, for a time that is none
   */
  score(itemId: string, now: number): number {
    return (this.#sums.get(itemId) ?? 0) * this.#decay.factorAt(now);
  }

  /**
   * The k most popular items, best first; equal ones in the order of their ids. O(k) where as many were asked for before,
   * up to 1024; else O(items + k log k).
   */
  top(k: number, now: number): { id: string; score: number }[] {
    if (!Number.isInteger(k) || k < 1) {
      throw new LimbeckError('ERR_INVALID_ARGUMENT', `k: expected an integer of at least 1, got ${k}`);
    }
    const factor = this.#decay.factorAt(now);
    return this.#bestOf(k).map(([id, sum]) => ({ id, score: sum * factor }));
  }

  /** What {@link Popularity.restore} reads; scores are of the latest landmark. */
  state(): PopularityState {
    const { landmark, halfLifeMs } = this.#decay;
    const time = Number.isNaN(landmark) ? null : landmark;
    return { format: 'limbeck-popularity', version: 1, halfLifeMs, time, items: [...this.#sums] };
  }

  /**
   * The popularity that {@link state} described. A half-life in `options` takes the place of the saved one from `now` on.
   *
   * @param now ms since epoch
   * @throws LimbeckError ERR_FILE_FORMAT for what is no such state, or of another version; and as the constructor
   */
  static restore(state: unknown, options: PopularityOptions = {}, now = Date.now()): Popularity {
    const { items, ...saved } = checkedJson(stateSchema, state, 'popularity state');
    const { halfLifeMs = saved.halfLifeMs } = options;
    const { landmark, factor } = resumeDecay(saved, halfLifeMs, now);
    const popularity = new Popularity({ ...options, halfLifeMs }, landmark);
    for (const [id, sum] of items) if (sum * factor > 0) popularity.#sums.set(id, sum * factor);
    if (popularity.#sums.size > popularity.#maxItems) popularity.#forgetLeastPopular();
    return popularity;
  }

  #bestOf(k: number): [string, number][] {
    if (k > MAX_BEST) return this.#find(k);
    if (k > this.#numBest) {
      this.#numBest = Math.min(MAX_BEST, Math.max(k, 2 * this.#numBest));
      this.#best = undefined;
    }
    this.#best ??= this.#find(this.#numBest);
    return this.#best.slice(0, k);
  }

  #find(k: number): [string, number][] {
    let best: [string, number][] = [];
    let bar = 0;
    for (const entry of this.#sums) {
      if (entry[1] < bar) continue;
      best.push(entry);
      if (best.length < 2 * k + 64) continue;
      best = best.sort(byScore).slice(0, k);
      bar = best[k - 1]?.[1] ?? 0;
    }
    return best.sort(byScore).slice(0, k);
  }

  /** Sums only grow: an item may move up among the best, and the last of them fall out. */
  #raise(itemId: string, sum: number): void {
    const best = this.#best;
    if (best === undefined) return;
    const last = best[this.#numBest - 1];
    const raised: [string, number] = [itemId, sum];
    if (last !== undefined && byScore(last, raised) < 0) return;
    const before = best.findIndex(([id]) => id === itemId);
    if (before >= 0) best.splice(before, 1);
    const place = best.findIndex((other) => byScore(raised, other) < 0);
    best.splice(place < 0 ? best.length : place, 0, raised);
    best.length = Math.min(best.length, this.#numBest);
  }

  #rescale(factor: number): void {
    this.#best = undefined;
    for (const [id, sum] of this.#sums) {
      if (sum * factor > 0) this.#sums.set(id, sum * factor);
      else this.#sums.delete(id);
    }
  }

  /** Leaves three quarters of the room, so that the next one is far off: O(1) an item that came. */
  #forgetLeastPopular(): void {
    const kept = Math.max(1, Math.floor((3 * this.#maxItems) / 4));
    const doomed = [...this.#sums].sort(byScore).slice(kept);
    for (const [id] of doomed) this.#sums.delete(id);
    this.#best = undefined;
  }
}

function byScore([idA, a]: readonly [string, number], [idB, b]: readonly [string, number]): number {
  return b - a || (idA < idB ? -1 : 1);
}

/**
 * How new an item is: 1 when it comes out, halved every half-life, 1 before.
 *
 * @param publishedAt ms since epoch
 * @param now ms since epoch
 * @throws LimbeckError ERR_INVALID_ARGUMENT
 */
export function freshness(publishedAt: number, now: number, halfLifeMs: number): number {
  const age = Math.max(0, now - publishedAt);
  if (Number.isNaN(age) || !(halfLifeMs > 0)) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      'freshness: expected two times in ms since the epoch and a positive half-life in ms, got ' +
        `${publishedAt}, ${now} and ${halfLifeMs}`,
    );
  }
  return 2 ** (-age / halfLifeMs);
}
