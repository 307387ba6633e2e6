/**
 * The event store in a Redis stream, for several servers: each appends, and each reads every event. docs/feedback.md says
 * what Redis can and cannot promise.
 */
import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { z } from 'zod';
import { LimbeckError } from '../errors.js';
import { parseOptions } from '../prepare/parse-options.js';
import { checkEvents, type FeedbackEvent, type StoredEvent } from './event.js';
import { GroupCommit, PendingAppend } from './event-pending.js';
import { ConnectionLostError, findWarnings, RedisConnection, redisError } from './event-redis-client.js';
import { RedisFollower } from './event-redis-follower.js';
import { APPEND_SCRIPT, decodeEntry, entryId, readRange, streamBounds } from './event-redis-stream.js';
import { checkListener, checkOffset, checkRetention, type EventStore, type RetentionOptions } from './event-store.js';

export interface RedisEventOptions {
  /** `redis://user:password@host:port`, or `rediss://` for TLS. Redis 7 or later. */
  readonly redis: string;
  /** Key of the stream; ids are kept in keys that begin with it. @defaultValue limbeck:events */
  readonly stream?: string | undefined;
  /** How long an event's id is remembered, in seconds. @defaultValue 86400 */
  readonly idTtlSeconds?: number | undefined;
  /** Replicas of the Redis server that must confirm an append (WAIT). @defaultValue 0 */
  readonly waitReplicas?: number | undefined;
  /** @defaultValue 1000 */
  readonly waitTimeoutMs?: number | undefined;
  /** How long an append is tried again while Redis cannot be reached. @defaultValue 5000 */
  readonly retryMs?: number | undefined;
  /** Most bytes of JSON that may wait; above, appends reject with ERR_OVERLOADED. @defaultValue 64 MiB */
  readonly maxPendingBytes?: number | undefined;
}

const optionsSchema = z.strictObject({
  redis: z.string().min(1),
  stream: z
    .string()
    .min(1)
    .max(256)
    .regex(/^[^{}]*$/, 'expected no braces')
    .default('limbeck:events'),
  idTtlSeconds: z
    .int()
    .min(1)
    .max(2 ** 31)
    .default(86_400),
  waitReplicas: z.int().min(0).max(1000).default(0),
  waitTimeoutMs: z.int().min(1).max(60_000).default(1_000),
  retryMs: z.int().min(0).max(600_000).default(5_000),
  maxPendingBytes: z
    .int()
    .min(1)
    .max(2 ** 30)
    .default(64 * 2 ** 20),
});

const RETRY_DELAY_MS = 50;
/** An append is durable before this server has read it back; so long it waits for that. */
const DELIVERY_TIMEOUT_MS = 1_000;
const ENTRIES_PER_READ = 500;
/** The server does nothing else while a script runs, and takes no more than a million arguments. */
const EVENTS_PER_SCRIPT = 5_000;

/** @throws as openEventStore() */
export async function openRedisEvents(options: RedisEventOptions): Promise<RedisEvents> {
  const settings = parseOptions(optionsSchema, options, 'store');
  const connection = await RedisConnection.open(settings.redis);
  try {
    const version = /redis_version:(\d+)/.exec(String(await connection.command('INFO', 'server')))?.[1];
    if (Number(version) < 7) {
      throw new LimbeckError('ERR_INVALID_ARGUMENT', `Expected Redis 7 or later at store.redis, got ${version}.`);
    }
    const bounds = await streamBounds(connection, settings.stream);
    return new RedisEvents(settings, connection, bounds, await findWarnings(connection));
  } catch (error) {
    connection.close();
    throw redisError(error, 'opening the event store');
  }
}

export class RedisEvents implements EventStore {
  readonly warnings: readonly string[];
  readonly #settings: z.output<typeof optionsSchema>;
  readonly #connection: RedisConnection;
  readonly #commits: GroupCommit;
  readonly #followers = new Set<RedisFollower>();
  #first: bigint;
  #next: bigint;
  #closing: Promise<void> | undefined;
  /** What waited is stored, and the connection gone for good. */
  #isClosed = false;

  /** Use {@link openRedisEvents}. */
  constructor(
    settings: z.output<typeof optionsSchema>,
    connection: RedisConnection,
    bounds: { readonly first: bigint; readonly next: bigint },
    warnings: readonly string[],
  ) {
    this.#settings = settings;
    this.#connection = connection;
    this.#first = bounds.first;
    this.#next = bounds.next;
    this.warnings = warnings;
    this.#commits = new GroupCommit(
      settings.maxPendingBytes,
      (appends) => this.#commit(appends),
      async (error) => redisError(error, 'storing events'),
    );
  }

  get firstOffset(): bigint {
    return this.#first;
  }

  get nextOffset(): bigint {
    return [...this.#followers].reduce((most, { nextOffset }) => (nextOffset > most ? nextOffset : most), this.#next);
  }

  async append(events: readonly FeedbackEvent[]): Promise<{ accepted: number; duplicates: number }> {
    this.#checkOpen();
    const receivedAt = Date.now();
    const checked = checkEvents(events, receivedAt);
    const own = new PendingAppend(receivedAt);
    const awaited = new Set<PendingAppend>();
    for (const event of checked) {
      const waiting = event.id === undefined ? undefined : this.#commits.find(event.id);
      if (waiting !== undefined) awaited.add(waiting);
      else if (event.id === undefined || !own.has(event.id)) own.add(event);
    }
    if (own.events.length > 0) {
      this.#commits.push(own);
      awaited.add(own);
    }
    await Promise.all([...awaited].map(({ done }) => done));
    const end = this.#next;
    await Promise.all([...this.#followers].map((follower) => follower.reached(end, DELIVERY_TIMEOUT_MS)));
    return { accepted: own.accepted, duplicates: checked.length - own.accepted };
  }

  async *read(fromOffset = 0n): AsyncGenerator<StoredEvent> {
    this.#checkOpen();
    checkOffset(fromOffset);
    const { stream } = this.#settings;
    let next = fromOffset;
    for (;;) {
      const entries = await this.#retry(() => readRange(this.#connection, stream, next, ENTRIES_PER_READ), 'reading');
      for (const entry of entries) {
        const stored = decodeEntry(entry, stream);
        if (stored instanceof LimbeckError) throw stored;
        yield stored;
        next = entry.offset + 1n;
      }
      if (entries.length < ENTRIES_PER_READ) return;
    }
  }

  async follow(
    fromOffset: bigint,
    onEvent: (stored: StoredEvent) => void,
    onError: (error: unknown) => void,
  ): Promise<{ stop(): Promise<void> }> {
    this.#checkOpen();
    checkOffset(fromOffset);
    checkListener(onEvent, onError);
    const { redis, stream } = this.#settings;
    const { first, next } = await this.#refreshBounds();
    if (fromOffset < first || fromOffset > next) {
      throw new LimbeckError(
        'ERR_CORRUPT_LOG',
        `The Redis stream '${stream}' holds events ${first} to ${next} (exclusive), but is followed from ${fromOffset}: ` +
          "events are missing, or the offset is another stream's.",
      );
    }
    const connection = await RedisConnection.open(redis);
    if (this.#closing !== undefined) {
      connection.close();
      throw disposed();
    }
    const follower = new RedisFollower(connection, stream, fromOffset, { onEvent, onError });
    this.#followers.add(follower);
    await follower.reached(next);
    return {
      stop: async () => {
        this.#followers.delete(follower);
        await follower.stop();
      },
    };
  }

  async retain(options: RetentionOptions): Promise<bigint> {
    this.#checkOpen();
    const { keepFrom, maxAgeMs, maxBytes, maxEvents } = checkRetention(options);
    if (maxBytes !== undefined) {
      throw new LimbeckError('ERR_INVALID_ARGUMENT', 'Expected no maxBytes for events in Redis; use maxEvents.');
    }
    const { first, next } = await this.#refreshBounds();
    let from = first;
    if (maxEvents !== undefined && next - BigInt(maxEvents) > from) from = next - BigInt(maxEvents);
    if (maxAgeMs !== undefined) from = await this.#firstReceivedSince(Date.now() - maxAgeMs, from, next);
    if (from > keepFrom) from = keepFrom;
    if (from <= first) return first;
    const { stream } = this.#settings;
    await this.#retry(() => this.#connection.command('XTRIM', stream, 'MINID', entryId(from)), 'dropping events');
    return (await this.#refreshBounds()).first;
  }

  close(): Promise<void> {
    this.#closing ??= this.#finish();
    return this.#closing;
  }

  async #finish(): Promise<void> {
    await this.#commits.idle();
    await Promise.all([...this.#followers].map((follower) => follower.stop()));
    this.#isClosed = true;
    this.#connection.close();
  }

  #checkOpen(): void {
    if (this.#closing !== undefined) throw disposed();
  }

  async #commit(appends: readonly PendingAppend[]): Promise<void> {
    const { stream, idTtlSeconds } = this.#settings;
    // Events without an id have one for this commit, so that it can be sent again when the answer was lost.
    const token = randomUUID();
    const events = appends.flatMap((append) => append.events);
    const places: number[] = [];
    for (let i = 0; i < events.length; i += EVENTS_PER_SCRIPT) {
      const part = events.slice(i, i + EVENTS_PER_SCRIPT);
      const keys = part.map(({ event }, j) => `{${stream}}:id:${event.id ?? `${token}:${i + j}`}`);
      const values = part.flatMap(({ receivedAt, json }) => [receivedAt, json]);
      const args = [part.length + 1, stream, ...keys, idTtlSeconds, token, ...values];
      places.push(...(await this.#retry(() => this.#store(args), 'storing events')));
    }
    let index = 0;
    for (const append of appends) {
      for (let left = append.events.length; left > 0; left--) {
        const place = places[index++] ?? 0;
        if (place < 0) continue;
        append.accepted++;
        this.#next = BigInt(place); // lower than before when the server lost events
      }
    }
  }

  async #store(args: readonly (string | number)[]): Promise<number[]> {
    const { waitReplicas, waitTimeoutMs } = this.#settings;
    const { epoch } = this.#connection;
    const places = (await this.#connection.command('EVAL', APPEND_SCRIPT, ...args)) as number[];
    if (waitReplicas === 0) return places;
    const confirmed = Number(await this.#connection.command('WAIT', waitReplicas, waitTimeoutMs));
    // WAIT speaks of the writes of its own connection.
    if (this.#connection.epoch !== epoch)
      throw new ConnectionLostError('The connection broke before the replicas confirmed.');
    if (confirmed >= waitReplicas) return places;
    throw new LimbeckError(
      'ERR_IO',
      `Events are stored, but ${confirmed} of ${waitReplicas} replicas confirmed them in ${waitTimeoutMs} ms: send them ` +
        'again with the same ids.',
    );
  }

  /** Again and again while Redis cannot be reached, for `retryMs`. Everything that is sent here may be sent twice. */
  async #retry<T>(send: () => Promise<T>, doing: string): Promise<T> {
    const deadline = performance.now() + this.#settings.retryMs;
    for (;;) {
      try {
        return await send();
      } catch (error) {
        if (this.#isClosed) throw disposed();
        if (!this.#connection.isTemporary(error) || performance.now() > deadline) throw redisError(error, doing);
      }
      await sleep(RETRY_DELAY_MS);
    }
  }

  async #refreshBounds(): Promise<{ first: bigint; next: bigint }> {
    const bounds = await this.#retry(
      () => streamBounds(this.#connection, this.#settings.stream),
      'looking at the stream',
    );
    this.#first = bounds.first;
    this.#next = bounds.next;
    return bounds;
  }

  /** By bisection: offsets are dense, and times of receipt ascend but for the clocks of the servers. */
  async #firstReceivedSince(time: number, from: bigint, to: bigint): Promise<bigint> {
    let [low, high] = [from, to];
    while (low < high) {
      const middle = (low + high) / 2n;
      const [entry] = await this.#retry(() => readRange(this.#connection, this.#settings.stream, middle, 1), 'reading');
      if (entry !== undefined && Number(entry.fields[entry.fields.indexOf('received') + 1]) < time) low = middle + 1n;
      else high = middle;
    }
    return low;
  }
}

function disposed(): LimbeckError {
  return new LimbeckError('ERR_DISPOSED', 'The event store is closed.');
}
