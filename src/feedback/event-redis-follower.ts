/** Reads every event of a Redis stream, over broken connections, each once and in order. */
import { setTimeout as sleep } from 'node:timers/promises';
import { LimbeckError } from '../errors.js';
import { deliver, type Listener, report } from './event-delivery.js';
import type { RedisConnection } from './event-redis-client.js';
import { decodeEntry, readRange, type StreamEntry, streamBounds, waitForEntries } from './event-redis-stream.js';

const ENTRIES_PER_READ = 500;
const BLOCK_MS = 1_000;
const RETRY_DELAY_MS = 50;

export class RedisFollower {
  readonly #connection: RedisConnection;
  readonly #stream: string;
  readonly #listener: Listener;
  readonly #waiting = new Set<{ offset: bigint; resolve: () => void }>();
  readonly #running: Promise<void>;
  /** Offset of the next event to deliver. */
  #next: bigint;
  /** The entry before it, which must be the same after the connection was broken. */
  #last: StreamEntry | undefined;
  #stopped = false;

  /** @param connection Its own, because a command that waits holds up all others. */
  constructor(connection: RedisConnection, stream: string, from: bigint, listener: Listener) {
    this.#connection = connection;
    this.#stream = stream;
    this.#next = from;
    this.#listener = listener;
    this.#running = this.#run();
  }

  get nextOffset(): bigint {
    return this.#next;
  }

  /** Resolves when every event before `offset` was delivered, when the time is up, or at stop(). */
  async reached(offset: bigint, timeoutMs?: number): Promise<void> {
    if (this.#next >= offset || this.#stopped) return;
    let timer: NodeJS.Timeout | undefined;
    await new Promise<void>((resolve) => {
      const waiter = { offset, resolve };
      this.#waiting.add(waiter);
      if (timeoutMs === undefined) return;
      timer = setTimeout(() => {
        this.#waiting.delete(waiter);
        resolve();
      }, timeoutMs);
    });
    clearTimeout(timer);
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    this.#connection.close();
    this.#wake();
    await this.#running;
  }

  async #run(): Promise<void> {
    let epoch = this.#connection.epoch;
    let lastMessage = '';
    while (!this.#stopped) {
      try {
        const current = this.#connection.epoch;
        if (current !== epoch) {
          await this.#checkHistory();
          epoch = current;
        }
        const entries = await waitForEntries(this.#connection, this.#stream, this.#next, ENTRIES_PER_READ, BLOCK_MS);
        if (entries.length === 0) await this.#checkHistory();
        lastMessage = '';
        for (const entry of entries) this.#deliver(entry);
        this.#wake();
      } catch (error) {
        if (this.#stopped) return;
        const { message } = error as Error;
        // A connection comes back by itself; anything else is told, once until it changes.
        if (!this.#connection.isTemporary(error) && message !== lastMessage) report(this.#listener, error);
        lastMessage = message;
        await sleep(RETRY_DELAY_MS);
      }
    }
  }

  #deliver(entry: StreamEntry): void {
    if (entry.offset !== this.#next)
      this.#reportLoss(`events ${this.#next} to ${entry.offset} (exclusive) are missing`);
    this.#next = entry.offset + 1n;
    this.#last = entry;
    const stored = decodeEntry(entry, this.#stream);
    if (stored instanceof LimbeckError) report(this.#listener, stored);
    else deliver(this.#listener, stored);
  }

  /** A server that restarted, was failed over to or emptied lacks the newest events, and may give their offsets away again. */
  async #checkHistory(): Promise<void> {
    const { first, next } = await streamBounds(this.#connection, this.#stream);
    const last = this.#last;
    if (next < this.#next) {
      this.#reportLoss(`events ${next} to ${this.#next} (exclusive) are gone; they were delivered here`);
      this.#next = next;
      this.#last = undefined;
    } else if (last !== undefined && last.offset >= first) {
      const [entry] = await readRange(this.#connection, this.#stream, last.offset, 1);
      const isSame = entry?.offset === last.offset && entry.fields.join('\0') === last.fields.join('\0');
      if (isSame) return;
      this.#reportLoss(`event ${last.offset} is another one than was delivered here`);
      this.#last = undefined;
    }
  }

  #reportLoss(problem: string): void {
    report(
      this.#listener,
      new LimbeckError('ERR_CORRUPT_LOG', `The Redis stream '${this.#stream}' lost events: ${problem}. Going on.`),
    );
  }

  #wake(): void {
    for (const waiter of this.#waiting) {
      if (waiter.offset > this.#next && !this.#stopped) continue;
      this.#waiting.delete(waiter);
      waiter.resolve();
    }
  }
}
