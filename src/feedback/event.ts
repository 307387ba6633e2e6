/** What a user did with an item, as a client reports it and as the store keeps it. */
import { described } from '../arguments.js';
import { LimbeckError } from '../errors.js';

export const EVENT_TYPES = ['view', 'click', 'purchase', 'rating', 'dismiss'] as const;
export type EventType = (typeof EVENT_TYPES)[number];

export interface FeedbackEvent {
  /** Idempotency key that the client made: an event sent again with the same id is stored once. */
  readonly id?: string;
  readonly userId: string;
  readonly itemId: string;
  readonly type: EventType;
  /** Of a rating, from 1 to 5; no other type has one. */
  readonly value?: number;
  /** When it happened, in ms since 1970. @defaultValue the time of receipt, which a later time is replaced with too */
  readonly time?: number;
  /** The strategy that showed the item, echoed by the client. */
  readonly strategy?: string;
  /** The recommendation that showed the item, echoed by the client. */
  readonly requestId?: string;
}

/** An event in a store. */
export interface StoredEvent {
  /** Place in the store: dense, from 0, ascending. */
  readonly offset: bigint;
  /** When the store received it, in ms since 1970. */
  readonly receivedAt: number;
  readonly event: FeedbackEvent & { readonly time: number };
}

/** Longest id, userId, itemId, strategy and requestId, in UTF-8 bytes. */
export const MAX_ID_BYTES = 512;

/** Longest event as JSON: five ids of control characters, six bytes each, and the rest. */
export const MAX_EVENT_BYTES = 16 * 1024;

const STRING_FIELDS = ['id', 'userId', 'itemId', 'strategy', 'requestId'] as const;
const FIELDS: ReadonlySet<string> = new Set([...STRING_FIELDS, 'type', 'value', 'time']);
/** Quick, and true of few texts. */
const SURROGATE = /[\ud800-\udfff]/;
const LONE_SURROGATE = /\p{Surrogate}/u;

type Mutable<T> = { -readonly [Key in keyof T]: T[Key] };

/**
 * Checks events of unknown origin and completes their times. Nothing but the known fields is copied.
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT, which names the event and the field, such as `events[3].userId`
 */
export function checkEvents(events: unknown, receivedAt: number): StoredEvent['event'][] {
  if (!Array.isArray(events)) refuse('events', 'an array of events', events);
  return events.map((event: unknown, i) => checkEvent(event, receivedAt, `events[${i}]`));
}

/** As {@link checkEvents}, for one; `name` is what messages call it. */
export function checkEvent(event: unknown, receivedAt: number, name: string): StoredEvent['event'] {
  if (typeof event !== 'object' || event === null || Array.isArray(event)) refuse(name, 'an object', event);
  const given = event as Record<string, unknown>;
  for (const key of Object.keys(given)) {
    if (!FIELDS.has(key)) refuse(`${name}.${key}`, `one of ${[...FIELDS].join(', ')}`, key);
  }
  for (const key of STRING_FIELDS) {
    const isRequired = key === 'userId' || key === 'itemId';
    if ((isRequired || given[key] !== undefined) && !isId(given[key])) {
      const expected = `a string of 1 to ${MAX_ID_BYTES} bytes in UTF-8, without lone surrogates`;
      refuse(`${name}.${key}`, expected, given[key]);
    }
  }
  const { id, userId, itemId, type, value, time, strategy, requestId } = given as unknown as FeedbackEvent;
  if (!EVENT_TYPES.includes(type)) refuse(`${name}.type`, `one of ${EVENT_TYPES.join(', ')}`, type);
  if (type === 'rating' ? !isNumber(value, 1, 5) : value !== undefined) {
    refuse(`${name}.value`, type === 'rating' ? 'a number from 1 to 5' : `nothing, because it is a ${type}`, value);
  }
  if (time !== undefined && !(Number.isSafeInteger(time) && time >= 0)) {
    refuse(`${name}.time`, 'whole milliseconds since 1970', time);
  }
  const checked: Mutable<StoredEvent['event']> = {
    userId,
    itemId,
    type,
    time: Math.min(time ?? receivedAt, receivedAt),
  };
  if (id !== undefined) checked.id = id;
  if (value !== undefined) checked.value = value;
  if (strategy !== undefined) checked.strategy = strategy;
  if (requestId !== undefined) checked.requestId = requestId;
  return checked;
}

/** The event that a store wrote as JSON; undefined when the text is none. */
export function parseStoredEvent(json: string, receivedAt: number): StoredEvent['event'] | undefined {
  try {
    return checkEvent(JSON.parse(json), receivedAt, 'event');
  } catch (error) {
    if (error instanceof SyntaxError || error instanceof LimbeckError) return undefined;
    throw error;
  }
}

/** Whether a value is 1 to {@link MAX_ID_BYTES} bytes of UTF-8. */
export function isId(value: unknown): value is string {
  return (
    typeof value === 'string' &&
    value.length > 0 &&
    // A UTF-16 unit takes at most three bytes.
    (value.length * 3 <= MAX_ID_BYTES || (value.length <= MAX_ID_BYTES && Buffer.byteLength(value) <= MAX_ID_BYTES)) &&
    !(SURROGATE.test(value) && LONE_SURROGATE.test(value))
  );
}

function isNumber(value: unknown, min: number, max: number): boolean {
  return typeof value === 'number' && value >= min && value <= max;
}

function refuse(name: string, expected: string, value: unknown): never {
  const text = typeof value === 'string' ? JSON.stringify(value) : described(value);
  const got = text.length <= 64 ? text : `${text.slice(0, 64)}…`;
  throw new LimbeckError('ERR_INVALID_ARGUMENT', `Expected ${name} to be ${expected}, got ${got}.`);
}
