/** Group commit: appends that come while one commit is on its way share the next one. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { LimbeckError } from '../errors.js';
import type { StoredEvent } from './event.js';

/** A commit blocks the event loop while it is encoded and delivered: about 2,000 events, a few ms. */
const MAX_COMMIT_BYTES = 256 * 1024;

export interface PendingEvent {
  readonly event: StoredEvent['event'];
  readonly receivedAt: number;
  readonly json: string;
}

/** One call of append(). */
export class PendingAppend {
  readonly events: PendingEvent[] = [];
  readonly done: Promise<void>;
  jsonBytes = 0;
  /** How many of the events were new; known when `done` resolves. */
  accepted = 0;
  resolve!: () => void;
  reject!: (reason: unknown) => void;
  readonly #ids = new Set<string>();

  constructor(private readonly receivedAt: number) {
    this.done = new Promise((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
  }

  has(id: string): boolean {
    return this.#ids.has(id);
  }

  add(event: StoredEvent['event']): void {
    const json = JSON.stringify(event);
    this.events.push({ event, receivedAt: this.receivedAt, json });
    this.jsonBytes += Buffer.byteLength(json);
    if (event.id !== undefined) this.#ids.add(event.id);
  }
}

/** First come, first served; bounded in bytes. */
export class GroupCommit {
  readonly #maxBytes: number;
  readonly #commit: (appends: readonly PendingAppend[]) => Promise<void>;
  readonly #explain: (error: unknown) => Promise<unknown>;
  readonly #byId = new Map<string, PendingAppend>();
  #waiting: PendingAppend[] = [];
  #bytes = 0;
  #running: Promise<void> | undefined;

  /**
   * @param commit Makes the events of some appends durable, all or none, and counts those that were `accepted`.
   * @param explain After a failed commit: what every append that waits is rejected with.
   */
  constructor(
    maxBytes: number,
    commit: (appends: readonly PendingAppend[]) => Promise<void>,
    explain: (error: unknown) => Promise<unknown>,
  ) {
    this.#maxBytes = maxBytes;
    this.#commit = commit;
    this.#explain = explain;
  }

  /** The append that waits with an event of this id. */
  find(id: string): PendingAppend | undefined {
    return this.#byId.get(id);
  }

  /** @throws LimbeckError ERR_OVERLOADED. An append that is alone may be of any size. */
  push(append: PendingAppend): void {
    if (this.#bytes > 0 && this.#bytes + append.jsonBytes > this.#maxBytes) {
      throw new LimbeckError(
        'ERR_OVERLOADED',
        `${this.#bytes} bytes of events wait to be stored, and at most ${this.#maxBytes} may (maxPendingBytes). ` +
          'Try again a little later.',
      );
    }
    this.#waiting.push(append);
    this.#count(append, 1);
    this.#running ??= this.#run();
  }

  /** Resolves when nothing waits. */
  async idle(): Promise<void> {
    await this.#running;
  }

  async #run(): Promise<void> {
    await nextTurn(); // appends of the requests that this turn of the event loop brought share the first commit
    while (this.#waiting.length > 0) {
      const appends = this.#next();
      try {
        await this.#commit(appends);
        this.#settle(appends, (append) => append.resolve());
      } catch (error) {
        const reason = await this.#explain(error);
        this.#settle([...appends, ...this.#waiting.splice(0)], (append) => append.reject(reason));
      }
    }
    this.#running = undefined;
  }

  /** Takes those that one commit will hold. */
  #next(): PendingAppend[] {
    let bytes = 0;
    const end = this.#waiting.findIndex((append, i) => {
      bytes += append.jsonBytes;
      return i > 0 && bytes > MAX_COMMIT_BYTES;
    });
    return this.#waiting.splice(0, end < 0 ? this.#waiting.length : end);
  }

  #settle(appends: readonly PendingAppend[], settle: (append: PendingAppend) => void): void {
    for (const append of appends) {
      this.#count(append, -1);
      settle(append);
    }
  }

  #count(append: PendingAppend, sign: 1 | -1): void {
    this.#bytes += sign * append.jsonBytes;
    for (const { event } of append.events) {
      if (event.id === undefined) continue;
      if (sign > 0) this.#byId.set(event.id, append);
      else this.#byId.delete(event.id);
    }
  }
}
