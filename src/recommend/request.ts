/** What a request may ask, and how it is told to the native side: checked and packed into arrays that are used again. */
import { described } from '../arguments.js';
import { LimbeckError } from '../errors.js';
import { unknownOption } from '../prepare/parse-options.js';
import type { ItemIndex } from './item-index.js';

/** Oldest first: item ids, or the text of items that the catalogue does not have. */
export type History = readonly (string | { readonly text: string })[];

/** Chooses by category; an empty or missing list does not filter. */
export interface CategoryFilter {
  /** Items with at least one of these. */
  readonly any?: readonly string[] | undefined;
  /** Items with all of these. */
  readonly all?: readonly string[] | undefined;
  /** Items with none of these. */
  readonly none?: readonly string[] | undefined;
}

/** Which items may be in an answer. Hidden ones never are. */
export interface SelectionOptions {
  /** How many items. 1 to the size of the catalogue. @defaultValue 10 */
  readonly k?: number | undefined;
  /** Ids that must not be in the answer; unknown ones have no effect. */
  readonly exclude?: readonly string[] | undefined;
  readonly filter?: CategoryFilter | undefined;
}

/** What an answer is ordered by beside the model's scores. */
export interface RankingOptions {
  /** Only these ids; unknown ones have no effect. @defaultValue the whole catalogue */
  readonly candidates?: readonly string[] | undefined;
  /**
   * 0 to 1: how much an item's likeness to those above it counts against it (maximal marginal relevance over the 5 k, at
   * least 100, best items). @defaultValue 0
   */
  readonly diversity?: number | undefined;
  /** ≥ 0: weight of −log popularity in the score. Needs a student with a popularity prior. @defaultValue 0 */
  readonly novelty?: number | undefined;
  /**
   * 0 to 1: share of the places given to items sampled in proportion to exp(score) from the 5 k, at least 100, best.
   * @defaultValue 0
   */
  readonly explore?: number | undefined;
  /** Integer from 0 to 2³² − 1; the same seed explores the same. @defaultValue another one each time */
  readonly seed?: number | undefined;
  /** By item id, added to the score; unknown ids have no effect. */
  readonly boosts?: Readonly<Record<string, number>> | undefined;
}

interface AnswerOptions extends SelectionOptions, RankingOptions {
  /** Tells for each item which entries of the history and which interests its score came from. @defaultValue false */
  readonly explain?: boolean | undefined;
}

export interface HistoryRequest extends AnswerOptions {
  /**
   * What the user chose, oldest first: item ids, or the text of items that the catalogue does not have. The last
   * `maxHistory` count. Unknown ids are left out and listed in the answer. When nothing is left, the answer is the most
   * popular items, if the student knows how popular its items are. Items of the history are never recommended.
   */
  readonly history: History;
  readonly userId?: undefined;
}

export interface UserRequest extends AnswerOptions {
  /** Whose history it is, and to whom what they dismissed is not recommended: of the student's `users`. */
  readonly userId: string;
  readonly history?: undefined;
}

export type RecommendRequest = HistoryRequest | UserRequest;

export interface SearchOptions extends SelectionOptions {
  /** Whose taste counts beside the text. @defaultValue nobody's */
  readonly history?: History | undefined;
}

const SELECTION_KEYS = ['k', 'exclude', 'filter'] as const satisfies readonly (keyof SelectionOptions)[];
const RANKING_KEYS = [
  'candidates',
  'diversity',
  'novelty',
  'explore',
  'seed',
  'boosts',
] as const satisfies readonly (keyof RankingOptions)[];
/** What each kind of request may have. */
export const REQUEST_KEYS = {
  recommend: new Set<string>(['history', 'userId', ...SELECTION_KEYS, ...RANKING_KEYS, 'explain']),
  recommendBatch: new Set<string>([
    ...['histories', 'offsets', 'itemIndices', 'scores'],
    ...SELECTION_KEYS,
    ...RANKING_KEYS,
  ]),
  similar: new Set<string>(SELECTION_KEYS),
  search: new Set<string>(['history', ...SELECTION_KEYS]),
  interests: new Set<string>(['k']),
} as const;
const FILTER_KEYS = new Set<string>(['any', 'all', 'none'] satisfies (keyof CategoryFilter)[]);

/**
 * Refuses what is no object, and keys that it should not have: misspelled, they would go without effect.
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION
 */
export function checkKeys(name: string, options: object, known: ReadonlySet<string>): void {
  if (typeof options !== 'object' || options === null) throw invalid(name, 'expected an object', options);
  const key = unknownKey(options, known);
  if (key !== undefined) throw unknownOption(name, key, [...known]);
}

/** The first that is not known. */
export function unknownKey(options: object, known: ReadonlySet<string>): string | undefined {
  for (const key in options) if (!known.has(key)) return key;
  return undefined;
}

export const DEFAULT_K = 10;
const NOTHING: readonly string[] = Object.freeze([]);
const NO_TEXTS: readonly string[] = NOTHING;
export const MAX_NOVELTY = 1e6;
const MAX_SEED = 2 ** 32 - 1;

// Places of the counts at the beginning of a packed request (see NativeRecommender in binding.ts).
const K = 0;
const HISTORY = 1;
const EXCLUDE = 2;
const ANY = 3;
const ALL = 4;
const NONE = 5;
const CANDIDATES = 6;
const BOOSTS = 7;
const SEED = 8;
const HEADER = 9;
const DIVERSITY = 0;
const NOVELTY = 1;
const EXPLORE = 2;
const NUMBERS = 3;

/** The arrays of one request after the other; they grow when a larger one comes. */
export class PackedRequest {
  ints = new Int32Array(512);
  numbers = new Float32Array(64);
  /** Room for the answer. */
  itemIds = new Int32Array(64);
  scores = new Float32Array(64);
  /** Texts of the history that is packed, in its order. */
  texts: readonly string[] = NO_TEXTS;
  /** Ids of the history that are not in the catalogue. */
  unknownItems: readonly string[] = NOTHING;
  #length = HEADER;

  get k(): number {
    return this.ints[K] ?? 0;
  }

  /** Entries of the history that are known. */
  get historyLength(): number {
    return this.ints[HISTORY] ?? 0;
  }

  /** Slot of an entry of the history, or −1 − j for the j-th of `texts`. */
  historyAt(entry: number): number {
    return this.ints[HEADER + entry] ?? 0;
  }

  /**
   * @param excludesHistory whether items of the history are left out of the answer
   * @throws LimbeckError ERR_INVALID_ARGUMENT
   */
  pack(
    index: ItemIndex,
    history: History,
    { k = DEFAULT_K, exclude, filter }: SelectionOptions,
    ranking: RankingOptions | undefined,
    excludesHistory: boolean,
  ): void {
    if (!Number.isInteger(k) || k < 1 || k > index.size) {
      throw invalid('k', `expected an integer from 1 to the size of the catalogue, ${index.size}`, k);
    }
    this.#begin(k);
    this.#packHistory(index, history);
    if (excludesHistory) this.#excludeHistory();
    if (exclude !== undefined) this.#packIds(EXCLUDE, 'exclude', index, exclude);
    if (filter !== undefined) this.#packFilter(index, filter);
    if (ranking !== undefined) this.#packRanking(index, ranking);
    if (this.itemIds.length < k) {
      this.itemIds = new Int32Array(2 * k);
      this.scores = new Float32Array(2 * k);
    }
  }

  #begin(k: number): void {
    const { ints, numbers } = this;
    ints[K] = k;
    for (let field = HISTORY; field < HEADER; field++) ints[field] = 0;
    ints[CANDIDATES] = -1;
    numbers[DIVERSITY] = 0;
    numbers[NOVELTY] = 0;
    numbers[EXPLORE] = 0;
    this.texts = NO_TEXTS;
    this.unknownItems = NOTHING;
    this.#length = HEADER;
  }

  #packHistory(index: ItemIndex, history: History): void {
    if (!Array.isArray(history)) throw invalid('history', 'expected a list of item ids or { text }', history);
    this.#reserve(2 * history.length);
    let texts: string[] | undefined;
    let unknown: string[] | undefined;
    for (const entry of history as History) {
      if (typeof entry === 'string') {
        const slot = index.slotOf(entry);
        if (slot !== undefined) {
          this.ints[this.#length++] = slot;
        } else if (unknown === undefined) {
          unknown = [entry];
        } else {
          unknown.push(entry);
        }
      } else if (typeof entry?.text === 'string') {
        texts ??= [];
        texts.push(entry.text);
        this.ints[this.#length++] = -texts.length;
      } else {
        throw invalid('history', 'expected item ids or { text }', entry);
      }
    }
    this.ints[HISTORY] = this.#length - HEADER;
    if (texts !== undefined) this.texts = texts;
    if (unknown !== undefined) this.unknownItems = unknown;
  }

  #excludeHistory(): void {
    const { ints } = this;
    const end = HEADER + (ints[HISTORY] ?? 0);
    for (let i = HEADER; i < end; i++) {
      const slot = ints[i] ?? 0;
      if (slot >= 0) ints[this.#length++] = slot;
    }
    ints[EXCLUDE] = this.#length - end;
  }

  /** Adds to the list of a field, which must be the last one so far. */
  #packIds(field: number, name: string, index: ItemIndex, ids: readonly string[]): void {
    if (!Array.isArray(ids)) throw invalid(name, 'expected a list of item ids', ids);
    this.#reserve(ids.length);
    const begin = this.#length;
    for (const id of ids) {
      // A number would be no id of any item, and what is excluded must not come.
      if (typeof id !== 'string') throw invalid(name, 'expected a list of item ids', id);
      const slot = index.slotOf(id);
      if (slot !== undefined) this.ints[this.#length++] = slot;
    }
    this.ints[field] = Math.max(0, this.ints[field] ?? 0) + this.#length - begin;
  }

  #packFilter(index: ItemIndex, filter: CategoryFilter): void {
    if (typeof filter !== 'object' || filter === null || Array.isArray(filter)) {
      throw invalid('filter', 'expected { any, all, none }', filter);
    }
    checkKeys('filter', filter, FILTER_KEYS);
    const { any, all, none } = filter;
    if (any !== undefined) this.#packCategories(ANY, 'filter.any', index, any);
    if (all !== undefined) this.#packCategories(ALL, 'filter.all', index, all);
    if (none !== undefined) this.#packCategories(NONE, 'filter.none', index, none);
  }

  #packCategories(field: number, name: string, index: ItemIndex, categories: readonly string[]): void {
    if (!Array.isArray(categories)) throw invalid(name, 'expected a list of categories', categories);
    this.#reserve(categories.length);
    for (const category of categories) {
      if (typeof category !== 'string') throw invalid(name, 'expected a list of categories', category);
      this.ints[this.#length++] = index.categoryId(category);
    }
    this.ints[field] = categories.length;
  }

  #packRanking(index: ItemIndex, { candidates, diversity, novelty, explore, seed, boosts }: RankingOptions): void {
    if (candidates !== undefined) this.#packIds(CANDIDATES, 'candidates', index, candidates);
    if (boosts !== undefined) this.#packBoosts(index, boosts);
    if (diversity !== undefined) this.#packNumber(DIVERSITY, 'diversity', diversity, 1);
    if (novelty !== undefined) this.#packNumber(NOVELTY, 'novelty', novelty, MAX_NOVELTY);
    if (explore !== undefined) this.#packNumber(EXPLORE, 'explore', explore, 1);
    if (seed !== undefined) {
      if (!isSeed(seed)) {
        throw invalid('seed', `expected an integer from 0 to ${MAX_SEED}`, seed);
      }
      this.ints[SEED] = seed;
    } else if (explore !== undefined && explore > 0) {
      this.ints[SEED] = randomSeed();
    }
  }

  #packBoosts(index: ItemIndex, boosts: Readonly<Record<string, number>>): void {
    // A Map has no keys of its own, and would go without effect.
    if (typeof boosts !== 'object' || boosts === null || Array.isArray(boosts) || boosts instanceof Map) {
      throw invalid('boosts', 'expected an object with numbers by item id', boosts);
    }
    const ids = Object.keys(boosts);
    this.#reserve(ids.length);
    if (this.numbers.length < NUMBERS + ids.length) {
      const numbers = new Float32Array(2 * (NUMBERS + ids.length));
      numbers.set(this.numbers);
      this.numbers = numbers;
    }
    let count = 0;
    for (const id of ids) {
      const boost = boosts[id];
      if (typeof boost !== 'number' || !Number.isFinite(Math.fround(boost))) {
        throw invalid(`boosts['${id.slice(0, 40)}']`, 'expected a finite number', boost);
      }
      const slot = index.slotOf(id);
      if (slot === undefined || boost === 0) continue;
      this.ints[this.#length++] = slot;
      this.numbers[NUMBERS + count++] = boost;
    }
    this.ints[BOOSTS] = count;
  }

  #packNumber(field: number, name: string, value: number, most: number): void {
    if (!isWeight(value, most)) {
      throw invalid(name, `expected a number from 0 to ${most}`, value);
    }
    this.numbers[field] = value;
  }

  #reserve(more: number): void {
    if (this.#length + more <= this.ints.length) return;
    const ints = new Int32Array(2 * (this.#length + more));
    ints.set(this.ints.subarray(0, this.#length));
    this.ints = ints;
  }
}

export function isWeight(value: unknown, most: number): boolean {
  return typeof value === 'number' && value >= 0 && value <= most;
}

export function isSeed(value: unknown): boolean {
  return Number.isInteger(value) && (value as number) >= 0 && (value as number) <= MAX_SEED;
}

export function randomSeed(): number {
  return Math.floor(Math.random() * 2 ** 32);
}

function invalid(name: string, expected: string, value: unknown): LimbeckError {
  return new LimbeckError('ERR_INVALID_ARGUMENT', `${name}: ${expected}, got ${described(value)}`);
}
