/** What each user did lately, in memory: the history that a recommendation starts from, and what to leave out of it. */
import { z } from 'zod';
import { checkObject, checkPath, described } from '../arguments.js';
import { LimbeckError } from '../errors.js';
import { parseOptions } from '../prepare/parse-options.js';
import { type EventType, isId, type StoredEvent } from './event.js';
import { shardOf } from './shard.js';
import {
  type Entry,
  LISTS,
  type ListName,
  MAX_LIST_LENGTH,
  packState,
  type UserState,
  unpackItems,
  unpackList,
  unpackState,
} from './user-state-codec.js';
import { ItemNames } from './user-state-items.js';
import { loadUserStates, saveUserStates } from './user-state-snapshot.js';

export interface UserStateOptions {
  /** Latest items of a history that are kept. @defaultValue 64 */
  readonly maxHistory?: number | undefined;
  /** Latest hidden items, purchases and ratings that are kept, of each. @defaultValue 256 */
  readonly maxItems?: number | undefined;
  /**
   * Users that are kept; above, the one whose last event came longest ago is forgotten. Counted in each of 256 parts of
   * the users, so that it is met within a few per cent. @defaultValue 1000000
   */
  readonly maxUsers?: number | undefined;
}

const optionsSchema = z.strictObject({
  maxHistory: z.int().min(1).max(MAX_LIST_LENGTH).default(64),
  maxItems: z.int().min(1).max(MAX_LIST_LENGTH).default(256),
  maxUsers: z
    .int()
    .min(1)
    .max(2 ** 31)
    .default(1_000_000),
});

/** A rating below it is a dislike. */
const LOWEST_GOOD_RATING = 3;
/** Ratings fit into a byte in steps of 0.02. */
const RATING_STEPS = 50;
/** What remains of two events with one item that follow each other, and what brings back a hidden item: not a view. */
const STRENGTH: Readonly<Record<Exclude<EventType, 'dismiss'>, number>> = { view: 0, click: 1, rating: 2, purchase: 3 };

/** A snapshot is taken part by part. */
const NUM_SHARDS = 256;

/** @internal */
export interface Shard {
  /** Packed states by user; who had an event last is last. */
  readonly users: Map<string, string>;
  /** Events before it are in the states already. */
  nextOffset: bigint;
}

export class UserStates {
  /** Events from here on are to be applied. */
  nextOffset = 0n;
  readonly #settings: z.output<typeof optionsSchema>;
  readonly #items = new ItemNames();
  readonly #shards: readonly Shard[] = Array.from({ length: NUM_SHARDS }, () => ({ users: new Map(), nextOffset: 0n }));

  /** @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION */
  constructor(options: UserStateOptions = {}) {
    this.#settings = parseOptions(optionsSchema, options, 'userStates');
  }

  /**
   * States as save() wrote them; `nextOffset` says where to go on.
   *
   * @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT (not a snapshot, or damaged), ERR_IO
   */
  static async load(path: string, options: UserStateOptions = {}): Promise<UserStates> {
    checkPath(path, 'path');
    const states = new UserStates(options);
    await loadUserStates(path, states.#shards, states.#items);
    for (const shard of states.#shards) states.#evict(shard);
    states.nextOffset = states.#shards.reduce(
      (least, { nextOffset }) => (nextOffset < least ? nextOffset : least),
      states.#shards[0]?.nextOffset ?? 0n,
    );
    return states;
  }

  /**
   * Writes a snapshot; events may be applied meanwhile. The earlier file is replaced when the new one is durable.
   *
   * @returns the offset that states loaded from it go on from: events before it are no longer needed
   * @throws LimbeckError ERR_NO_SPACE, ERR_IO
   */
  async save(path: string): Promise<bigint> {
    const from = this.nextOffset;
    await saveUserStates(path, this.#shards, this.#items, () => this.nextOffset);
    return from;
  }

  /** Users with a state. */
  get size(): number {
    return this.#shards.reduce((sum, { users }) => sum + users.size, 0);
  }

  /** Different items that some user's state names. */
  get numItems(): number {
    return this.#items.size;
  }

  /**
   * Items that the user viewed, clicked, bought or rated 3 or better, oldest first by the time of the event; an item that
   * follows itself is there once. Without hidden items.
   */
  history(userId: string): readonly string[] {
    return this.#itemsOf(userId, 'history');
  }

  /** Items that the user dismissed or rated below 3 and has not clicked, bought or rated better since. */
  hidden(userId: string): readonly string[] {
    return this.#itemsOf(userId, 'hidden');
  }

  /** Items that the user bought, latest last. */
  purchases(userId: string): readonly string[] {
    return this.#itemsOf(userId, 'purchases');
  }

  /** The user's latest rating of each item, in steps of 0.02, latest last. */
  ratings(userId: string): readonly { readonly itemId: string; readonly value: number }[] {
    const packed = this.#shardOf(userId).users.get(userId);
    const entries = packed === undefined ? [] : unpackList(packed, 'ratings');
    return entries.map(({ item, value }) => ({ itemId: this.#items.name(item), value: value / RATING_STEPS }));
  }

  /**
   * Takes up one event. Events must come in the order of their offsets; one that was applied before is passed over.
   *
   * @throws LimbeckError ERR_INVALID_ARGUMENT for what is no event of a store
   */
  apply(stored: StoredEvent): void {
    checkObject(stored, 'stored', 'an event of a store', ['offset', 'event']);
    const { offset, event } = stored;
    if (typeof offset !== 'bigint') {
      throw new LimbeckError('ERR_INVALID_ARGUMENT', `stored.offset: expected a bigint, got ${described(offset)}`);
    }
    if (!isId(event.itemId)) {
      throw new LimbeckError(
        'ERR_INVALID_ARGUMENT',
        `stored.event.itemId: expected an id, got ${described(event.itemId)}`,
      );
    }
    const shard = this.#shardOf(event.userId);
    if (offset >= this.nextOffset) this.nextOffset = offset + 1n;
    if (offset < shard.nextOffset) return;
    const packed = shard.users.get(event.userId);
    const state = packed === undefined ? { history: [], hidden: [], purchases: [], ratings: [] } : unpackState(packed);
    // Held while lists change, so that its number stays its own.
    const item = this.#items.acquire(event.itemId);
    this.#change(state, item, event);
    this.#items.release(item);
    shard.users.delete(event.userId);
    shard.users.set(event.userId, packState(state));
    this.#evict(shard);
  }

  #change(state: UserState, item: number, { type, value = 0, time }: StoredEvent['event']): void {
    const { maxItems, maxHistory } = this.#settings;
    if (type === 'rating') this.#put(state.ratings, { item, time, value: Math.round(value * RATING_STEPS) }, maxItems);
    if (type === 'purchase') this.#put(state.purchases, { item, time, value: 0 }, maxItems);
    if (type === 'dismiss' || (type === 'rating' && value < LOWEST_GOOD_RATING)) {
      const isLiked = state.history.some((entry) => entry.item === item && entry.time > time && entry.value > 0);
      if (isLiked) return; // since
      this.#remove(state.history, item);
      this.#put(state.hidden, { item, time, value: 0 }, maxItems);
      return;
    }
    const strength = STRENGTH[type];
    const hidden = state.hidden.find((entry) => entry.item === item);
    if (hidden !== undefined) {
      if (strength === 0 || time < hidden.time) return;
      this.#remove(state.hidden, item);
    }
    this.#addToHistory(state.history, { item, time, value: strength }, maxHistory);
  }

  /** By time, equal times in the order in which they came. */
  #addToHistory(history: Entry[], entry: Entry, limit: number): void {
    const after = history.findLastIndex(({ time }) => time <= entry.time);
    const neighbour = [history[after], history[after + 1]].find((other) => other?.item === entry.item);
    if (neighbour !== undefined) {
      neighbour.time = Math.max(neighbour.time, entry.time);
      neighbour.value = Math.max(neighbour.value, entry.value);
      return;
    }
    this.#insert(history, after + 1, entry, limit);
  }

  /** One entry an item, the latest. */
  #put(list: Entry[], entry: Entry, limit: number): void {
    if (list.some(({ item, time }) => item === entry.item && time > entry.time)) return;
    this.#remove(list, entry.item);
    this.#insert(list, list.findLastIndex(({ time }) => time <= entry.time) + 1, entry, limit);
  }

  #insert(list: Entry[], index: number, entry: Entry, limit: number): void {
    this.#items.acquire(this.#items.name(entry.item));
    list.splice(index, 0, entry);
    while (list.length > limit) this.#items.release((list.shift() as Entry).item);
  }

  #remove(list: Entry[], item: number): void {
    for (let i = list.length - 1; i >= 0; i--) {
      if (list[i]?.item !== item) continue;
      list.splice(i, 1);
      this.#items.release(item);
      // In a history, what stood on either side may be one item.
      const [earlier, later] = [list[i - 1], list[i]];
      if (earlier === undefined || later === undefined || earlier.item !== later.item) continue;
      later.value = Math.max(later.value, earlier.value);
      list.splice(i - 1, 1);
      this.#items.release(earlier.item);
    }
  }

  #evict({ users }: Shard): void {
    const limit = Math.ceil(this.#settings.maxUsers / NUM_SHARDS);
    if (users.size <= limit) return;
    for (const [userId, packed] of users) {
      if (users.size <= limit) return;
      users.delete(userId);
      const state = unpackState(packed);
      for (const name of LISTS) for (const { item } of state[name]) this.#items.release(item);
    }
  }

  #itemsOf(userId: string, list: ListName): string[] {
    const packed = this.#shardOf(userId).users.get(userId);
    return packed === undefined ? [] : unpackItems(packed, list).map((item) => this.#items.name(item));
  }

  #shardOf(userId: string): Shard {
    if (typeof userId !== 'string') {
      throw new LimbeckError('ERR_INVALID_ARGUMENT', `userId: expected a text, got ${described(userId)}`);
    }
    return this.#shards[shardOf(userId, NUM_SHARDS)] as Shard;
  }
}
