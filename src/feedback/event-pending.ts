/** Appends that wait for a commit, or are in one. */
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

/** Those of one store, first come, first served; bounded in bytes. */
export class PendingAppends {
  readonly #maxBytes: number;
  readonly #byId = new Map<string, PendingAppend>();
  #waiting: PendingAppend[] = [];
  #committing: readonly PendingAppend[] = [];
  #bytes = 0;

  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes;
  }

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
  }

  /** Takes those that one commit will hold; empty when none waits. */
  next(): readonly PendingAppend[] {
    let bytes = 0;
    let count = 0;
    for (const append of this.#waiting) {
      if (count > 0 && bytes + append.jsonBytes > MAX_COMMIT_BYTES) break;
      bytes += append.jsonBytes;
      count++;
    }
    this.#committing = this.#waiting.splice(0, count);
    return this.#committing;
  }

  resolve(appends: readonly PendingAppend[]): void {
    for (const append of appends) {
      this.#count(append, -1);
      append.resolve();
    }
    this.#committing = [];
  }

  /** Those in the commit, and those that wait. */
  rejectAll(reason: unknown): void {
    const appends = [...this.#committing, ...this.#waiting];
    this.#committing = [];
    this.#waiting = [];
    for (const append of appends) {
      this.#count(append, -1);
      append.reject(reason);
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
