/** From events to what a student is trained and judged on. Letters: S sequences or cases. */
import { described } from '../arguments.js';
import { LimbeckError } from '../errors.js';
import type { EvaluationSet } from '../evaluate/recommendation.js';
import { checkEvent, type FeedbackEvent } from '../feedback/event.js';
import { createPacer } from '../formats/pacer.js';
import type { Dataset, PackedSequences } from '../prepare/dataset.js';
import { throwIfAborted } from '../prepare/hooks.js';
import type { SequenceTrainingData } from '../student/fine-tune.js';
import { shuffled } from '../teacher/batches.js';
import type { FinetuneSettings } from './finetune-options.js';

/** Events as they are, or as a store's `read()` gives them. */
export type FeedbackSource =
  | Iterable<FeedbackEvent | { readonly event: FeedbackEvent }>
  | AsyncIterable<FeedbackEvent | { readonly event: FeedbackEvent }>;

/** @throws LimbeckError ERR_INVALID_ARGUMENT for what is none */
export function checkSource(events: FeedbackSource): void {
  if (typeof events === 'object' && events !== null) {
    if (Symbol.iterator in events || Symbol.asyncIterator in events) return;
  }
  const expected = 'expected a list of events, or what an event store reads';
  throw new LimbeckError('ERR_INVALID_ARGUMENT', `events: ${expected}, got ${described(events)}`);
}

export interface FeedbackCounts {
  /** Events read. */
  events: number;
  /** Of items that the student does not know; left out. */
  unknownItems: number;
  /** Dismissals and ratings below `minRating`. */
  negative: number;
  /** What counts as a choice. */
  positive: number;
  /** Users with a choice that stands. */
  users: number;
  /** Users whose last choice is held out to judge by, and whose one before it chooses the epoch. */
  heldOut: number;
  /** Sequences of the earlier data that are trained on too. */
  replayed: number;
}

export interface FeedbackData extends SequenceTrainingData {
  /** The last choice of each user that has enough. */
  readonly test: EvaluationSet;
  /** What the earlier data held out, of users without feedback; undefined without earlier data. */
  readonly earlier: EvaluationSet | undefined;
  /** How often each item of the catalogue was chosen, in the feedback. */
  readonly popularity: Int32Array;
  readonly counts: FeedbackCounts;
}

/** A user's choices of one item each, oldest first: indices of the catalogue. */
interface History {
  readonly items: readonly number[];
  /** Choices of the earlier data at its beginning. */
  readonly earlier: number;
}

/**
 * Builds training sequences from events, holds out the last two choices of every user, and mixes earlier data in.
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT for what is no event; ERR_EMPTY_DATA when fewer than `minCases` users are left
 * to judge by; ERR_ABORTED
 */
export async function feedbackData(
  events: FeedbackSource,
  itemIds: readonly string[],
  settings: FinetuneSettings & { readonly replay?: Dataset | undefined },
  signal?: AbortSignal,
): Promise<FeedbackData> {
  const indices = new Map(itemIds.map((id, index) => [id, index]));
  const counts: FeedbackCounts = {
    events: 0,
    unknownItems: 0,
    negative: 0,
    positive: 0,
    users: 0,
    heldOut: 0,
    replayed: 0,
  };
  const choices = await readChoices(events, indices, settings, counts, signal);
  const replay = settings.replay && mapReplay(settings.replay, indices);

  const popularity = new Int32Array(itemIds.length);
  const train: (readonly number[])[] = [];
  const validation: Case[] = [];
  const test: Case[] = [];
  for (const [userId, own] of choices) {
    const history = join(replay?.historyOf(userId) ?? [], own);
    const { items } = history;
    for (const item of own) popularity[item] = (popularity[item] ?? 0) + 1;
    const fresh = items.length - history.earlier;
    if (fresh === 0) continue;
    counts.users++;
    if (fresh < 2 || items.length < 3) {
      train.push(items);
      continue;
    }
    counts.heldOut++;
    train.push(items.slice(0, -2));
    validation.push({ history: items.slice(0, -2), target: items.at(-2) ?? 0 });
    test.push({ history: items.slice(0, -1), target: items.at(-1) ?? 0 });
  }
  refuseTooFew(counts, settings.minCases);

  const replayed = replay?.sample(choices, settings.replayRatio * countItems(train), settings.training.seed) ?? [];
  counts.replayed = replayed.length;
  const { maxCases } = settings;
  return {
    train: pack([...train, ...replayed]),
    validation: packCases(spread(validation, maxCases)),
    test: packCases(spread(test, maxCases)),
    earlier: replay && packCases(spread(replay.cases(choices), maxCases)),
    popularity,
    counts,
  };
}

interface Choice {
  readonly item: number;
  readonly time: number;
}

/** Choices of every user, oldest first, each item once, without what the user came to dislike. */
async function readChoices(
  events: FeedbackSource,
  indices: ReadonlyMap<string, number>,
  { types, minRating, maxEventsPerUser }: FinetuneSettings,
  counts: FeedbackCounts,
  signal: AbortSignal | undefined,
): Promise<Map<string, number[]>> {
  const choices = new Map<string, Choice[]>();
  /** Last opinion of each user about an item: whatever they did but look at it, as for what user states hide. */
  const opinions = new Map<string, Map<number, { time: number; isNegative: boolean }>>();
  const chosen = new Set<string>(types);
  const pause = createPacer();
  for await (const entry of events) {
    await pause();
    throwIfAborted(signal);
    const { userId, itemId, type, value = 0, time = 0 } = eventOf(entry, counts.events);
    counts.events++;
    const item = indices.get(itemId);
    if (item === undefined) {
      counts.unknownItems++;
      continue;
    }
    const isNegative = type === 'dismiss' || (type === 'rating' && value < minRating);
    if (isNegative) counts.negative++;
    if (type !== 'view') {
      const ofUser = entryOf(opinions, userId, () => new Map<number, { time: number; isNegative: boolean }>());
      if (time >= (ofUser.get(item)?.time ?? Number.NEGATIVE_INFINITY)) ofUser.set(item, { time, isNegative });
    }
    if (isNegative || !chosen.has(type)) continue;
    counts.positive++;
    entryOf(choices, userId, () => []).push({ item, time });
  }
  const sequences = new Map<string, number[]>();
  for (const [userId, ofUser] of choices) {
    await pause();
    throwIfAborted(signal);
    const opinionOf = opinions.get(userId);
    const items = new Set(ofUser.sort((a, b) => a.time - b.time).map(({ item }) => item));
    for (const item of items) if (opinionOf?.get(item)?.isNegative) items.delete(item);
    if (items.size > 0) sequences.set(userId, [...items].slice(-maxEventsPerUser));
  }
  return sequences;
}

/** Refuses what a store would, for an event that is counted for another tells a student something wrong. */
function eventOf(entry: unknown, index: number): FeedbackEvent {
  const isStored = typeof entry === 'object' && entry !== null && 'event' in entry;
  const event = isStored ? entry.event : entry;
  checkEvent(event, Number.MAX_SAFE_INTEGER, `events[${index}]`);
  return event as FeedbackEvent;
}

function entryOf<Key, Value>(map: Map<Key, Value>, key: Key, make: () => Value): Value {
  let value = map.get(key);
  if (value === undefined) {
    value = make();
    map.set(key, value);
  }
  return value;
}

function join(earlier: readonly number[], own: readonly number[]): History {
  const known = new Set(earlier);
  return { items: [...known, ...own.filter((item) => !known.has(item))], earlier: known.size };
}

function refuseTooFew(counts: FeedbackCounts, minCases: number): void {
  if (counts.heldOut >= minCases) return;
  throw new LimbeckError(
    'ERR_EMPTY_DATA',
    `finetune: expected at least ${minCases} users with three or more choices, got ${counts.heldOut} ` +
      `(${counts.events} events: ${counts.positive} choices of ${counts.users} users, ${counts.negative} dismissals and ` +
      `low ratings, ${counts.unknownItems} of unknown items). Collect more feedback, or lower minCases.`,
  );
}

/** Earlier data in the indices of the student's catalogue; items that are gone are left out. */
function mapReplay(dataset: Dataset, indices: ReadonlyMap<string, number>) {
  const { users, sequences, sequenceOffsets, split } = dataset;
  const mapped = Int32Array.from(dataset.items, ({ id }) => indices.get(id) ?? -1);
  const userIndices = new Map(users.map((id, index) => [id, index]));
  const slice = (user: number, length?: number): number[] => {
    const start = sequenceOffsets[user] ?? 0;
    const end = length === undefined ? (sequenceOffsets[user + 1] ?? 0) : start + length;
    return Array.from(sequences.subarray(start, end), (item) => mapped[item] ?? -1).filter((item) => item >= 0);
  };
  return {
    /** All that a user did before the feedback. */
    historyOf(userId: string): number[] {
      const user = userIndices.get(userId);
      return user === undefined ? [] : slice(user);
    },
    /** Training sequences of random users without feedback, of `numItems` items in all. */
    sample(without: ReadonlyMap<string, unknown>, numItems: number, seed: number): number[][] {
      const taken: number[][] = [];
      let left = numItems;
      for (const user of shuffled(users.length, seed, 0)) {
        if (left <= 0) break;
        if (without.has(users[user] ?? '')) continue;
        const items = slice(user, split.trainLength[user]);
        if (items.length < 2) continue;
        taken.push(items);
        left -= items.length;
      }
      return taken;
    },
    /** The test cases of users without feedback, but for what `evaluationSet` leaves out, too. */
    cases(without: ReadonlyMap<string, unknown>): Case[] {
      const cases: Case[] = [];
      split.testPosition.forEach((position, user) => {
        if (position < 1 || without.has(users[user] ?? '')) return;
        const target = mapped[sequences[(sequenceOffsets[user] ?? 0) + position] ?? 0] ?? -1;
        const history = slice(user, position);
        if (target >= 0 && history.length > 0 && !history.includes(target)) cases.push({ history, target });
      });
      return cases;
    },
  };
}

interface Case {
  readonly history: readonly number[];
  readonly target: number;
}

/** At most `most` of a list, evenly spread over it. */
function spread<T>(list: readonly T[], most: number): readonly T[] {
  if (list.length <= most) return list;
  return Array.from({ length: most }, (_, i) => list[Math.floor((i * list.length) / most)] as T);
}

function countItems(lists: readonly (readonly number[])[]): number {
  return lists.reduce((sum, list) => sum + list.length, 0);
}

function pack(lists: readonly (readonly number[])[]): PackedSequences {
  const sequenceOffsets = new Int32Array(lists.length + 1);
  const sequences = new Int32Array(countItems(lists));
  lists.forEach((list, s) => {
    const offset = sequenceOffsets[s] ?? 0;
    sequences.set(list, offset);
    sequenceOffsets[s + 1] = offset + list.length;
  });
  return { sequences, sequenceOffsets, users: Int32Array.from(lists.keys()) };
}

/** Cases whose histories are left out of the rankings. */
function packCases(cases: readonly Case[]): EvaluationSet {
  const histories = pack(cases.map(({ history }) => history));
  return {
    ...histories,
    targets: Int32Array.from(cases, ({ target }) => target),
    excludeIds: histories.sequences,
    excludeOffsets: histories.sequenceOffsets,
  };
}
