/** What the service learns while it serves: events, and what follows from them. All of it hangs on one event store. */
import { join } from 'node:path';
import { z } from 'zod';
import { LimbeckError, type LimbeckErrorCode } from '../errors.js';
import type { FeedbackEvent, StoredEvent } from '../feedback/event.js';
import type { EventStore, RetentionOptions } from '../feedback/event-store.js';
import { followUserStates } from '../feedback/follow-user-states.js';
import { type EventStoreOptions, openEventStore } from '../feedback/open-event-store.js';
import { Popularity } from '../feedback/popularity.js';
import { type Strategy, StrategySelector } from '../feedback/strategy.js';
import { StrategyTrials } from '../feedback/strategy-trials.js';
import type { UserStates } from '../feedback/user-states.js';
import { checkedJson } from '../formats/checked-json.js';
import { makeDirectory, pathExists, readJsonFile, writeFileAtomic } from '../formats/files.js';

/** What an event adds to the popularity of its item; a dismissal and a bad rating add nothing. */
const POPULARITY_WEIGHTS = { view: 0.2, click: 0.5, purchase: 1, rating: 0, dismiss: 0 } as const;
const GOOD_RATING = 3;

const STATE_FILE = 'learned.json';
const USERS_FILE = 'users.snapshot';

const stateSchema = z.strictObject({
  format: z.literal('limbeck-learned'),
  version: z.literal(1),
  /** First event that is not in it. */
  nextOffset: z.string().regex(/^\d+$/),
  popularity: z.unknown(),
  strategies: z.unknown(),
});

export interface FeedbackOptions {
  /** Events, users and what was learned are kept here. */
  readonly directory: string;
  /** Where several servers share their events. @defaultValue a log in `directory` */
  readonly store?: EventStoreOptions;
  /** Which events go once they are in the snapshots. @defaultValue none */
  readonly retention?: Omit<RetentionOptions, 'keepFrom'> | undefined;
  readonly onError: (error: unknown) => void;
}

/** Why events cannot be stored, by the code that the store rejects with. */
const REASONS: Record<'log' | 'redis', Partial<Record<LimbeckErrorCode, string>>> = {
  log: { ERR_NO_SPACE: 'the disk is full', ERR_IO: 'the disk failed; repair it and start the service again' },
  redis: { ERR_NO_SPACE: 'Redis is full', ERR_IO: 'Redis cannot be reached, or refused them' },
};

interface Failure {
  readonly reason: string;
  readonly isFinal: boolean;
}

export class Feedback {
  readonly #directory: string;
  readonly #kind: keyof typeof REASONS;
  readonly #store: EventStore;
  readonly #retention: Omit<RetentionOptions, 'keepFrom'>;
  readonly #users: UserStates;
  readonly #popularity: Popularity;
  readonly #selector: StrategySelector;
  readonly #trials: StrategyTrials;
  #nextOffset: bigint;
  #failure: Failure | undefined;
  #following: { stop(): Promise<void> } | undefined;

  /**
   * Opens the store and catches up with it.
   *
   * @throws LimbeckError ERR_LOCKED when another process serves from the directory, ERR_CORRUPT_LOG, ERR_IO …
   */
  static async open(options: FeedbackOptions): Promise<Feedback> {
    const { directory, onError } = options;
    await makeDirectory(directory);
    const store = await openEventStore(options.store ?? { path: join(directory, 'events') });
    try {
      const users = await followUserStates(store, { snapshot: join(directory, USERS_FILE), onError });
      const feedback = new Feedback(options, store, users, await readState(join(directory, STATE_FILE)));
      const from = feedback.#nextOffset > store.firstOffset ? feedback.#nextOffset : store.firstOffset;
      feedback.#following = await store.follow(from, (stored) => feedback.#learn(stored), onError);
      return feedback;
    } catch (error) {
      await store.close();
      throw error;
    }
  }

  private constructor(
    { directory, store: storeOptions, retention = {} }: FeedbackOptions,
    store: EventStore,
    users: UserStates,
    state: z.output<typeof stateSchema> | undefined,
  ) {
    this.#directory = directory;
    this.#kind = storeOptions !== undefined && 'redis' in storeOptions ? 'redis' : 'log';
    this.#store = store;
    this.#retention = retention;
    this.#users = users;
    this.#popularity = state === undefined ? new Popularity() : Popularity.restore(state.popularity);
    this.#selector = state === undefined ? new StrategySelector() : StrategySelector.restore(state.strategies);
    this.#trials = new StrategyTrials(this.#selector);
    this.#nextOffset = BigInt(state?.nextOffset ?? 0);
  }

  get numUsers(): number {
    return this.#users.size;
  }

  /** Durable, and known to the next request, when it resolves. @throws LimbeckError ERR_NO_SPACE, ERR_OVERLOADED … */
  async append(events: readonly FeedbackEvent[]): Promise<{ accepted: number; duplicates: number }> {
    try {
      const result = await this.#store.append(events);
      this.#failure = undefined;
      return result;
    } catch (error) {
      this.#failure = this.#failureOf(error) ?? this.#failure;
      throw error;
    }
  }

  /** Why events cannot be stored now; undefined when they can. `isFinal` when only a restart will help. */
  get failure(): Failure | undefined {
    return this.#failure;
  }

  /** Item ids, oldest first. */
  history(userId: string): readonly string[] {
    return this.#users.history(userId);
  }

  /** Items that the user wants no more. */
  hidden(userId: string): readonly string[] {
    return this.#users.hidden(userId);
  }

  /** Ids of the most popular items, best first. */
  popular(k: number): { id: string; score: number }[] {
    return this.#popularity.top(k, Date.now());
  }

  /** How to rank the answer `requestId`; what comes of it is learned from the events that name it. */
  chooseStrategy(requestId: string, historyLength: number): Strategy {
    const context = { historyLength };
    const strategy = this.#selector.choose(context);
    this.#trials.begin(requestId, strategy.name, context);
    return strategy;
  }

  /** Makes a restart short, and lets old events go. @throws LimbeckError ERR_NO_SPACE, ERR_IO */
  async save(): Promise<void> {
    const learnedFrom = this.#nextOffset;
    const state: z.input<typeof stateSchema> = {
      format: 'limbeck-learned',
      version: 1,
      nextOffset: String(learnedFrom),
      popularity: this.#popularity.state(),
      strategies: this.#selector.state(),
    };
    await writeFileAtomic(join(this.#directory, STATE_FILE), JSON.stringify(state));
    const usersFrom = await this.#users.save(join(this.#directory, USERS_FILE));
    const keepFrom = learnedFrom < usersFrom ? learnedFrom : usersFrom;
    await this.#store.retain({ ...this.#retention, keepFrom });
  }

  async close(): Promise<void> {
    try {
      this.#trials.settleAll();
      await this.save();
    } finally {
      await this.#following?.stop();
      await this.#store.close();
    }
  }

  /** A log that failed takes no more events; Redis does when it is back. */
  #failureOf(error: unknown): Failure | undefined {
    if (!(error instanceof LimbeckError)) return undefined;
    const reason = REASONS[this.#kind][error.code];
    if (reason === undefined) return undefined;
    return {
      reason: `events cannot be stored: ${reason}`,
      isFinal: this.#kind === 'log' && error.code === 'ERR_IO',
    };
  }

  #learn({ offset, event }: StoredEvent): void {
    this.#nextOffset = offset + 1n;
    // Whoever stored it: the store takes events.
    this.#failure = undefined;
    this.#trials.apply(event);
    const { type, value = 0, itemId, time } = event;
    const weight = type === 'rating' && value >= GOOD_RATING ? value / 5 : POPULARITY_WEIGHTS[type];
    if (weight > 0) this.#popularity.add(itemId, time, weight);
  }
}

async function readState(path: string): Promise<z.output<typeof stateSchema> | undefined> {
  if (!(await pathExists(path))) return undefined;
  const remedy = 'Remove it to learn again from the events that are stored.';
  return checkedJson(stateSchema, await readJsonFile(path), `'${path}'`, remedy);
}
