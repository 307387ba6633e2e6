/** Requests that came together, packed for one search of the catalogue. */
import type { RankedItem, Recommendation } from './answers.js';
import type { ItemIndex } from './item-index.js';
import { DEFAULT_K, type History, type RecommendRequest } from './request.js';

/** All are searched for as many items as the one that wants most: more would be work for nothing. */
export const MAX_BATCH_K = 64;

/**
 * Takes those of the requests that ask for nothing but k and exclude, after items of the catalogue alone. What is not
 * well formed is left to those who say why.
 */
export class PackedBatch {
  /** Most items that a request wants. */
  readonly k: number;
  readonly histories: Int32Array;
  readonly offsets: Int32Array; // [size + 1]
  readonly exclude: Int32Array;
  readonly excludeOffsets: Int32Array; // [size + 1]
  /** Room for the answers. */
  readonly itemIds: Int32Array; // [size, k]
  readonly scores: Float32Array; // [size, k]
  readonly #index: ItemIndex;
  readonly #requests: readonly RecommendRequest[];
  /** Row of each request; −1 = it is not in the batch. */
  readonly #rows: Int32Array;
  readonly #unknownItems: (readonly string[])[] = [];

  constructor(index: ItemIndex, requests: readonly RecommendRequest[]) {
    const histories: number[] = [];
    const offsets = [0];
    const exclude: number[] = [];
    const excludeOffsets = [0];
    let k = 1;
    this.#index = index;
    this.#requests = requests;
    this.#rows = new Int32Array(requests.length).fill(-1);
    requests.forEach((request, i) => {
      if (!isPlain(request, index.size)) return;
      const [begin, excludeBegin] = [histories.length, exclude.length];
      const unknown = packIds(index, request.history, histories);
      const isReadable = unknown !== undefined && packIds(index, request.exclude ?? [], exclude) !== undefined;
      if (!isReadable || histories.length === begin) {
        histories.length = begin; // texts, or nothing that is known
        exclude.length = excludeBegin;
        return;
      }
      offsets.push(histories.length);
      excludeOffsets.push(exclude.length);
      this.#rows[i] = this.#unknownItems.length;
      this.#unknownItems.push(unknown);
      k = Math.max(k, request.k ?? DEFAULT_K);
    });
    this.k = k;
    this.histories = new Int32Array(histories);
    this.offsets = new Int32Array(offsets);
    this.exclude = new Int32Array(exclude);
    this.excludeOffsets = new Int32Array(excludeOffsets);
    this.itemIds = new Int32Array(this.size * k);
    this.scores = new Float32Array(this.size * k);
  }

  /** Requests in the batch. */
  get size(): number {
    return this.#unknownItems.length;
  }

  has(request: number): boolean {
    return (this.#rows[request] ?? -1) >= 0;
  }

  /** The answer of a request, once there is one; undefined when it is not in the batch. */
  answer(request: number): Recommendation | undefined {
    const row = this.#rows[request] ?? -1;
    if (row < 0) return undefined;
    const items: RankedItem[] = [];
    const begin = row * this.k;
    const end = begin + (this.#requests[request]?.k ?? DEFAULT_K);
    for (let i = begin; i < end; i++) {
      const slot = this.itemIds[i] ?? -1;
      if (slot < 0) break;
      items.push({ id: this.#index.idAt(slot), score: this.scores[i] ?? 0 });
    }
    return { items, unknownItems: this.#unknownItems[row] ?? NOTHING };
  }
}

function isPlain(request: RecommendRequest, numItems: number): boolean {
  const { history, k = DEFAULT_K, exclude, filter, candidates, boosts, seed, explain } = request;
  const { diversity = 0, novelty = 0, explore = 0 } = request;
  return (
    Array.isArray(history) &&
    Number.isInteger(k) &&
    k >= 1 &&
    k <= Math.min(MAX_BATCH_K, numItems) &&
    (exclude === undefined || Array.isArray(exclude)) &&
    filter === undefined &&
    candidates === undefined &&
    boosts === undefined &&
    seed === undefined &&
    explain !== true &&
    diversity === 0 &&
    novelty === 0 &&
    explore === 0
  );
}

const NOTHING: readonly string[] = Object.freeze([]);

/** Appends the slots of known ids to `slots`. @returns those that are unknown; undefined when not all are ids */
function packIds(index: ItemIndex, history: History, slots: number[]): readonly string[] | undefined {
  let unknown: string[] | undefined;
  for (const id of history) {
    if (typeof id !== 'string') return undefined;
    const slot = index.slotOf(id);
    if (slot !== undefined) slots.push(slot);
    else if (unknown === undefined) unknown = [id];
    else unknown.push(id);
  }
  return unknown ?? NOTHING;
}
