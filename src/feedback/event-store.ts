/** What a store of feedback promises, wherever it keeps the events. */
import { z } from 'zod';
import { described } from '../arguments.js';
import { LimbeckError } from '../errors.js';
import { parseOptions } from '../prepare/parse-options.js';
import type { FeedbackEvent, StoredEvent } from './event.js';

export interface EventStore {
  /** Offset of the oldest event that is still there; equals `nextOffset` when there is none. */
  readonly firstOffset: bigint;
  /** One past the newest stored event. With Redis, as far as this process has seen. */
  readonly nextOffset: bigint;
  /** For a person to read once: what weakens the promises of this store, or was found when it was opened. */
  readonly warnings: readonly string[];

  /**
   * Stores events; resolves when they are durable and every follower of this store has seen them. Nothing is stored when
   * one of them is malformed. An event whose `id` is stored already, or comes twice, counts as a duplicate. After a
   * rejection an event may or may not be stored: send it again with the same `id`.
   *
   * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_OVERLOADED (too many bytes wait), ERR_NO_SPACE, ERR_DISPOSED, ERR_IO
   * (for a log: final, open the store again)
   */
  append(events: readonly FeedbackEvent[]): Promise<{ accepted: number; duplicates: number }>;

  /**
   * Events from an offset, or from the oldest one still there, up to those that are stored when the last is reached.
   *
   * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_CORRUPT_LOG, ERR_IO
   */
  read(fromOffset?: bigint): AsyncIterable<StoredEvent>;

  /**
   * Calls `onEvent` once for each event from an offset on, in order: resolves when all that was stored before the call
   * has been delivered, and goes on with what comes. What `onEvent` throws goes to `onError`, and following goes on.
   *
   * @throws LimbeckError ERR_INVALID_ARGUMENT; ERR_CORRUPT_LOG, also when events from `fromOffset` on were dropped already;
   * ERR_IO
   */
  follow(
    fromOffset: bigint,
    onEvent: (stored: StoredEvent) => void,
    onError: (error: unknown) => void,
  ): Promise<{ stop(): Promise<void> }>;

  /**
   * Drops old events, and returns the new `firstOffset`. What {@link RetentionOptions.keepFrom} protects stays.
   *
   * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION: then nothing is dropped; ERR_CORRUPT_LOG, ERR_IO
   */
  retain(options: RetentionOptions): Promise<bigint>;

  /** Finishes what waits and lets go of files and connections; later calls reject with ERR_DISPOSED. */
  close(): Promise<void>;
}

/** An event goes as soon as one limit is passed; without limits nothing does. */
export interface RetentionOptions {
  /** Events from here on stay: what no snapshot holds yet. */
  readonly keepFrom: bigint;
  /** Since the receipt. */
  readonly maxAgeMs?: number | undefined;
  /** Of the log's files; Redis has no such limit. */
  readonly maxBytes?: number | undefined;
  /** A whole number. */
  readonly maxEvents?: number | undefined;
}

/** Infinity is no limit. */
const limitOf = (number: z.ZodNumber) =>
  z
    .custom<number>(
      (value) => value === Number.POSITIVE_INFINITY || number.safeParse(value).success,
      'expected a number',
    )
    .transform((value) => (value === Number.POSITIVE_INFINITY ? undefined : value))
    .optional();
const retentionSchema = z.strictObject({
  // Without it, what no snapshot holds yet would go.
  keepFrom: z.bigint(),
  maxAgeMs: limitOf(z.number()),
  maxBytes: limitOf(z.number()),
  maxEvents: limitOf(z.int()),
});

/** @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION */
export function checkRetention(options: RetentionOptions): RetentionOptions {
  return parseOptions(retentionSchema, options, 'retain');
}

/** Beyond it Redis has no ids, and numbers of a log are not exact long before. */
const MAX_OFFSET = 2n ** 63n;

/** Reading from half an event on would find none, again and again. @throws LimbeckError ERR_INVALID_ARGUMENT */
export function checkOffset(fromOffset: bigint): void {
  if (typeof fromOffset === 'bigint' && fromOffset >= 0n && fromOffset <= MAX_OFFSET) return;
  const got = typeof fromOffset === 'bigint' ? `${fromOffset}n` : `a ${typeof fromOffset}`;
  throw new LimbeckError('ERR_INVALID_ARGUMENT', `fromOffset: expected a bigint of 0n or more, got ${got}`);
}

/** Without them, the first event that nobody takes would end the process. @throws LimbeckError ERR_INVALID_ARGUMENT */
export function checkListener(onEvent: unknown, onError: unknown): void {
  for (const [name, value] of Object.entries({ onEvent, onError })) {
    if (typeof value === 'function') continue;
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `${name}: expected a function, got ${described(value)}`);
  }
}
