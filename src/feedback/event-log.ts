/** The event store in a directory: one process, segments of checksummed records, many appends to one fdatasync. */
import type { FileHandle } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { z } from 'zod';
import { LimbeckError } from '../errors.js';
import { makeDirectory, syncDirectory, writeError } from '../formats/files.js';
import { parseOptions } from '../prepare/parse-options.js';
import { checkEvents, type FeedbackEvent, parseStoredEvent, type StoredEvent } from './event.js';
import { deliver, type Listener } from './event-delivery.js';
import { RecentIds } from './event-ids.js';
import { lockDirectory } from './event-lock.js';
import { GroupCommit, PendingAppend } from './event-pending.js';
import { retainSegments } from './event-retention.js';
import { encodeCommit } from './event-segment.js';
import {
  corrupt,
  createSegment,
  listSegments,
  type Recovery,
  readRecords,
  recoverLastSegment,
  type Segment,
  writeAll,
} from './event-segment-files.js';
import { checkListener, checkOffset, checkRetention, type EventStore, type RetentionOptions } from './event-store.js';

export interface EventLogOptions {
  /** Directory of the log; made where there is none. */
  readonly path: string;
  /** A new file is begun when the last one is this long. @defaultValue 64 MiB */
  readonly segmentBytes?: number | undefined;
  /** Ids of this many of the latest events, up to twice as many, are remembered. @defaultValue 262144 */
  readonly idWindow?: number | undefined;
  /** Most bytes of JSON that may wait for the disk; above, appends reject with ERR_OVERLOADED. @defaultValue 64 MiB */
  readonly maxPendingBytes?: number | undefined;
}

const optionsSchema = z.strictObject({
  path: z.string().min(1),
  segmentBytes: z
    .int()
    .min(4096)
    .max(2 ** 30)
    .default(64 * 2 ** 20),
  idWindow: z
    .int()
    .min(1)
    .max(2 ** 24)
    .default(2 ** 18),
  maxPendingBytes: z
    .int()
    .min(1)
    .max(2 ** 30)
    .default(64 * 2 ** 20),
});

/** @throws as openEventStore() */
export async function openEventLog(options: EventLogOptions): Promise<EventLog> {
  const settings = parseOptions(optionsSchema, options, 'store');
  const directory = resolve(settings.path);
  await makeDirectory(directory);
  const lock = await lockDirectory(directory);
  let file: FileHandle | undefined;
  try {
    await syncDirectory(dirname(directory));
    const segments = await listSegments(directory);
    const last = segments.pop();
    const recovered: Recovery & { file: FileHandle } =
      last === undefined
        ? { ...(await createSegment(directory, 0)), nextSequence: 0, truncatedBytes: 0 }
        : await recoverLastSegment(directory, last);
    file = recovered.file;
    segments.push(recovered.segment);
    const log = new EventLog(directory, settings, { lock, file }, segments, recovered);
    await log.rememberIds();
    return log;
  } catch (error) {
    // Whatever becomes of the files: why the log cannot be opened is what the caller must hear.
    await Promise.allSettled([file?.close(), lock.close()]);
    throw writeError(error, directory);
  }
}

export class EventLog implements EventStore {
  /** Bytes of the last commit that a crash had torn, and that were cut off when the log was opened. */
  readonly truncatedBytes: number;
  readonly warnings: readonly string[];
  readonly #directory: string;
  readonly #settings: z.output<typeof optionsSchema>;
  readonly #lock: FileHandle;
  readonly #segments: Segment[];
  readonly #ids: RecentIds;
  readonly #commits: GroupCommit;
  readonly #followers = new Set<Listener>();
  /** Of the last segment. */
  #file: FileHandle;
  #next: number;
  /** Once set, the last segment is complete: a new one must be begun before anything is written. */
  #mustRotate = false;
  #failure: unknown;
  /** Settles when the latest retain() has. */
  #retained: Promise<void> = Promise.resolve();
  #closing: Promise<void> | undefined;

  /** Use {@link openEventLog}. */
  constructor(
    directory: string,
    settings: z.output<typeof optionsSchema>,
    files: { readonly lock: FileHandle; readonly file: FileHandle },
    segments: Segment[],
    { nextSequence, truncatedBytes }: Recovery,
  ) {
    this.#directory = directory;
    this.#settings = settings;
    this.#lock = files.lock;
    this.#file = files.file;
    this.#segments = segments;
    this.#next = nextSequence;
    this.truncatedBytes = truncatedBytes;
    this.warnings =
      truncatedBytes === 0 ? [] : [`${truncatedBytes} bytes of a commit that a crash had torn were cut off the log.`];
    this.#ids = new RecentIds(settings.idWindow);
    this.#commits = new GroupCommit(
      settings.maxPendingBytes,
      (appends) => this.#commit(appends),
      (error) => this.#afterFailure(error),
    );
  }

  get firstOffset(): bigint {
    return BigInt(this.#segments[0]?.base ?? 0);
  }

  get nextOffset(): bigint {
    return BigInt(this.#next);
  }

  /** @internal Reads the ids of the latest events from the files. */
  async rememberIds(): Promise<void> {
    const from = Math.max(this.#next - this.#settings.idWindow, 0);
    for await (const { event } of this.read(BigInt(from))) this.#ids.add(event.id);
  }

  async append(events: readonly FeedbackEvent[]): Promise<{ accepted: number; duplicates: number }> {
    this.#checkOpen();
    const receivedAt = Date.now();
    const checked = checkEvents(events, receivedAt);
    const own = new PendingAppend(receivedAt);
    // A duplicate of an event that waits is acknowledged only when that one is durable.
    const awaited = new Set<PendingAppend>();
    for (const event of checked) {
      const waiting = event.id === undefined ? undefined : this.#commits.find(event.id);
      if (waiting !== undefined) awaited.add(waiting);
      else if (event.id === undefined || !(own.has(event.id) || this.#ids.has(event.id))) own.add(event);
    }
    if (own.events.length > 0) {
      this.#commits.push(own);
      awaited.add(own);
    }
    await Promise.all([...awaited].map(({ done }) => done));
    return { accepted: own.accepted, duplicates: checked.length - own.accepted };
  }

  async *read(fromOffset = 0n): AsyncGenerator<StoredEvent> {
    this.#checkNotClosed();
    checkOffset(fromOffset);
    for await (const chunk of this.#readChunks(Number(fromOffset))) yield* chunk;
  }

  async follow(
    fromOffset: bigint,
    onEvent: Listener['onEvent'],
    onError: Listener['onError'],
  ): Promise<{ stop(): Promise<void> }> {
    this.#checkOpen();
    checkOffset(fromOffset);
    checkListener(onEvent, onError);
    if (fromOffset < this.firstOffset || fromOffset > this.nextOffset) {
      throw this.#missing(fromOffset);
    }
    const follower = { onEvent, onError };
    let next = fromOffset;
    while (next < this.nextOffset) {
      for await (const chunk of this.#readChunks(Number(next))) {
        if (chunk[0]?.offset !== next) throw this.#missing(next);
        for (const stored of chunk) deliver(follower, stored);
        next += BigInt(chunk.length);
      }
    }
    this.#followers.add(follower);
    return {
      stop: async () => {
        this.#followers.delete(follower);
      },
    };
  }

  async retain(options: RetentionOptions): Promise<bigint> {
    this.#checkOpen();
    const limits = checkRetention(options);
    const keepFrom = Math.min(Number(limits.keepFrom), this.#next - this.#settings.idWindow);
    // One at a time: between looking at the oldest segment and dropping it, each waits for the disk.
    const turn = this.#retained.then(() =>
      retainSegments(this.#directory, this.#segments, this.#next, { ...limits, keepFrom }),
    );
    // The next one begins whatever came of this one; the caller hears of it.
    this.#retained = turn.catch(() => undefined);
    await turn;
    return this.firstOffset;
  }

  close(): Promise<void> {
    this.#closing ??= this.#finish();
    return this.#closing;
  }

  async #finish(): Promise<void> {
    await this.#commits.idle();
    await this.#retained;
    this.#followers.clear();
    try {
      await this.#file.close();
    } finally {
      await this.#lock.close();
    }
  }

  #missing(offset: bigint): LimbeckError {
    return new LimbeckError(
      'ERR_CORRUPT_LOG',
      `The event log '${this.#directory}' holds events ${this.firstOffset} to ${this.nextOffset} (exclusive), but is ` +
        `followed from ${offset}: events are missing, or the offset is another log's.`,
    );
  }

  #checkNotClosed(): void {
    if (this.#closing === undefined) return;
    throw new LimbeckError('ERR_DISPOSED', `The event store '${this.#directory}' is closed.`);
  }

  #checkOpen(): void {
    this.#checkNotClosed();
    if (this.#failure !== undefined) throw this.#failure;
  }

  /** Durable events, a chunk at a time; each chunk is in order and follows the one before. */
  async *#readChunks(from: number): AsyncGenerator<StoredEvent[]> {
    let next = Math.max(from, this.#segments[0]?.base ?? 0);
    while (next < this.#next) {
      const segment = this.#segments.findLast(({ base }) => base <= next);
      if (segment === undefined) {
        next = this.#segments[0]?.base ?? this.#next; // dropped meanwhile
        continue;
      }
      const { sizeBytes } = segment;
      try {
        for await (const records of readRecords({ ...segment }, next)) {
          const chunk = records.map(({ position, sequence, receivedAt, json }) => {
            const event = parseStoredEvent(json, receivedAt);
            if (event === undefined) throw corrupt(segment.path, position, `event ${sequence} is no valid event`);
            return { offset: BigInt(sequence), receivedAt, event };
          });
          next += chunk.length;
          yield chunk;
        }
      } catch (error) {
        // retain() takes a segment off the list before it removes the file.
        if (isMissingFile(error) && !this.#segments.includes(segment)) continue;
        throw error;
      }
      const index = this.#segments.indexOf(segment);
      const following = this.#segments[index + 1];
      // What was dropped or has grown meanwhile ends elsewhere.
      if (index < 0 || segment.sizeBytes > sizeBytes || following === undefined) continue;
      if (next < this.#next && following.base !== next) {
        throw corrupt(segment.path, sizeBytes, `events ${next} to ${following.base} (exclusive) are missing`);
      }
    }
  }

  async #commit(appends: readonly PendingAppend[]): Promise<void> {
    if (this.#mustRotate) await this.#rotate();
    const segment = this.#segments.at(-1) as Segment;
    const records = appends.flatMap(({ events }) => events);
    const jsonBytes = appends.reduce((sum, append) => sum + append.jsonBytes, 0);
    const bytes = encodeCommit(records, jsonBytes, this.#next);
    await writeAll(this.#file, bytes, segment.sizeBytes);
    await this.#file.datasync();

    segment.sizeBytes += bytes.length;
    const stored = records.map(({ event, receivedAt }, i) => ({ offset: BigInt(this.#next + i), receivedAt, event }));
    this.#next += stored.length;
    for (const { event } of stored) this.#ids.add(event.id);
    this.#mustRotate = segment.sizeBytes >= this.#settings.segmentBytes;
    for (const follower of this.#followers) for (const event of stored) deliver(follower, event);
    for (const append of appends) append.accepted = append.events.length;
  }

  async #rotate(): Promise<void> {
    const { segment, file } = await createSegment(this.#directory, this.#next);
    const complete = this.#file;
    this.#file = file;
    this.#segments.push(segment);
    this.#mustRotate = false;
    await complete.close();
  }

  /**
   * A full disk leaves the log as it was: what may have been written is cut off, and the next commit begins a new file
   * (which helps where the limit is that of a file's size). After any other failure the state of the file on the disk is
   * unknown, a second fdatasync would report success all the same, and so nothing more is accepted.
   *
   * @returns what the waiting appends reject with
   */
  async #afterFailure(error: unknown): Promise<unknown> {
    const segment = this.#segments.at(-1) as Segment;
    const reason = writeError(error, segment.path);
    let final = reason;
    if (reason instanceof LimbeckError && reason.code === 'ERR_NO_SPACE') {
      try {
        await this.#file.truncate(segment.sizeBytes);
        await this.#file.datasync();
        this.#mustRotate ||= segment.base < this.#next;
        return reason;
      } catch (second) {
        final = writeError(second, segment.path);
      }
    }
    this.#failure = new LimbeckError(
      'ERR_IO',
      `The event store '${this.#directory}' failed and takes no more events: ${(final as Error).message}. What was ` +
        'acknowledged is safe; repair the disk and open the store again.',
      { cause: final },
    );
    return this.#failure;
  }
}

function isMissingFile(error: unknown): boolean {
  return error instanceof LimbeckError && error.code === 'ERR_FILE_NOT_FOUND';
}
