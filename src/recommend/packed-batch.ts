/** Requests that came together, packed for one search of the catalogue. */
import type { BatchAnswers } from '../binding.js';
import type { RankedItem, Recommendation } from './answers.js';
import type { ItemIndex } from './item-index.js';
import {
  DEFAULT_K,
  type HistoryRequest,
  isSeed,
  isWeight,
  MAX_NOVELTY,
  REQUEST_KEYS,
  type RecommendRequest,
  randomSeed,
  unknownKey,
} from './request.js';

/** All are searched for as many items as the one that wants most: more would be work for nothing. */
export const MAX_BATCH_K = 64;

// Of each request, before its history and what it excludes (see NativeRecommender.serveAll in binding.ts).
const K = 0;
const SEED = 1;
const HISTORY = 2;
const EXCLUDE = 3;
const HEADER = 4;
const WEIGHTS = 3;

// Used by one batch after the other: what is in them is read before the next one is packed.
let ints = new Int32Array(4096);
let numbers = new Float32Array(256);

/**
 * Takes those of the requests that ask for the best items after items of the catalogue, without filters, boosts and
 * explanations. What is not well formed is left to those who say why.
 */
export class PackedBatch {
  /** What is unknown of each history. */
  readonly unknownItems: (readonly string[])[] = [];
  readonly #index: ItemIndex;
  readonly #ks: number[] = [];
  /** Row of each request; −1 = it is not in the batch. */
  readonly #rows: Int32Array;
  /** Numbers of `requests`. */
  #length = 1;

  /** @param hasPopularity whether items have a popularity, which novelty needs */
  constructor(index: ItemIndex, requests: readonly RecommendRequest[], hasPopularity: boolean) {
    this.#index = index;
    this.#rows = new Int32Array(requests.length).fill(-1);
    requests.forEach((request, i) => {
      if (isTaken(request, index.size, hasPopularity) && this.#pack(request)) this.#rows[i] = this.size - 1;
    });
    ints[0] = this.size;
  }

  /** As serveAll() takes them, until the next batch is packed. */
  get requests(): Int32Array {
    return ints;
  }

  /** The same. */
  get weights(): Float32Array {
    return numbers;
  }

  /** Requests in the batch. */
  get size(): number {
    return this.unknownItems.length;
  }

  /** Row of a request; −1 = it is not in the batch. */
  rowOf(request: number): number {
    return this.#rows[request] ?? -1;
  }

  /** The answer in a row. */
  answer(row: number, { itemIds, scores }: BatchAnswers): Recommendation {
    const items: RankedItem[] = [];
    const begin = row * (itemIds.length / this.size);
    const end = begin + (this.#ks[row] ?? 0);
    for (let i = begin; i < end; i++) {
      const slot = itemIds[i] ?? -1;
      if (slot < 0) break;
      items.push({ id: this.#index.idAt(slot), score: scores[i] ?? 0 });
    }
    return { items, unknownItems: this.unknownItems[row] ?? NOTHING };
  }

  /** @returns false for a history with texts, or of which nothing is known, and for what is no id */
  #pack(request: HistoryRequest): boolean {
    const { history, exclude = NOTHING, k = DEFAULT_K } = request;
    const { size } = this;
    const header = this.#length;
    reserve(header + HEADER + history.length + exclude.length, WEIGHTS * (size + 1));
    const begin = header + HEADER;
    let end = begin;
    let unknown: string[] | undefined;
    for (const id of history) {
      if (typeof id !== 'string') return false;
      const slot = this.#index.slotOf(id);
      if (slot !== undefined) ints[end++] = slot;
      else if (unknown === undefined) unknown = [id];
      else unknown.push(id);
    }
    const length = end - begin;
    if (length === 0) return false;
    for (const id of exclude) {
      if (typeof id !== 'string') return false;
      const slot = this.#index.slotOf(id);
      if (slot !== undefined) ints[end++] = slot;
    }
    const { diversity = 0, novelty = 0, explore = 0, seed = explore > 0 ? randomSeed() : 0 } = request;
    ints[header + K] = k;
    ints[header + SEED] = seed;
    ints[header + HISTORY] = length;
    ints[header + EXCLUDE] = end - begin - length;
    numbers[WEIGHTS * size] = diversity;
    numbers[WEIGHTS * size + 1] = novelty;
    numbers[WEIGHTS * size + 2] = explore;
    this.#length = end;
    this.#ks.push(k);
    this.unknownItems.push(unknown ?? NOTHING);
    return true;
  }
}

function reserve(numInts: number, numNumbers: number): void {
  if (ints.length < numInts) {
    const more = new Int32Array(2 * numInts);
    more.set(ints);
    ints = more;
  }
  if (numbers.length < numNumbers) {
    const more = new Float32Array(2 * numNumbers);
    more.set(numbers);
    numbers = more;
  }
}

function isTaken(request: RecommendRequest, numItems: number, hasPopularity: boolean): request is HistoryRequest {
  if (typeof request !== 'object' || request === null) return false;
  const { userId, history, k = DEFAULT_K, exclude, filter, candidates, boosts, explain } = request;
  const { diversity = 0, novelty = 0, explore = 0, seed = 0 } = request;
  return (
    userId === undefined &&
    unknownKey(request, REQUEST_KEYS.recommend) === undefined &&
    Array.isArray(history) &&
    Number.isInteger(k) &&
    k >= 1 &&
    k <= Math.min(MAX_BATCH_K, numItems) &&
    (exclude === undefined || Array.isArray(exclude)) &&
    filter === undefined &&
    candidates === undefined &&
    boosts === undefined &&
    explain !== true &&
    isWeight(diversity, 1) &&
    isWeight(novelty, hasPopularity ? MAX_NOVELTY : 0) &&
    isWeight(explore, 1) &&
    isSeed(seed)
  );
}

const NOTHING: readonly string[] = Object.freeze([]);
