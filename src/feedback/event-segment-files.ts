/** The files of an event log: `<sequence of the first record, 20 digits>.log`. */
import fs, { type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import { LimbeckError } from '../errors.js';
import { openRegularFile, syncDirectory, writeError } from '../formats/files.js';
import {
  decodeHeader,
  encodeHeader,
  HEADER_BYTES,
  hasLaterCommit,
  readSegment,
  type SegmentRecord,
} from './event-segment.js';

const NAME = /^([0-9]{20})\.log$/;

export interface Segment {
  readonly path: string;
  /** Sequence of its first record. */
  readonly base: number;
  /** Durable bytes, the header included. */
  sizeBytes: number;
}

/** Where the last segment ends, and what was cut off behind. */
export interface Recovery {
  readonly segment: Segment;
  readonly nextSequence: number;
  readonly truncatedBytes: number;
}

/** The segments of a log, oldest first. @throws LimbeckError ERR_IO */
export async function listSegments(directory: string): Promise<Segment[]> {
  const segments: Segment[] = [];
  for (const name of (await fs.readdir(directory)).sort()) {
    const base = Number(NAME.exec(name)?.[1] ?? Number.NaN);
    const path = join(directory, name);
    if (Number.isSafeInteger(base)) segments.push({ path, base, sizeBytes: (await fs.stat(path)).size });
  }
  return segments;
}

/** Makes an empty segment, whose name and header are durable when it resolves. @throws LimbeckError ERR_NO_SPACE, ERR_IO */
export async function createSegment(directory: string, base: number): Promise<{ segment: Segment; file: FileHandle }> {
  const path = join(directory, `${String(base).padStart(20, '0')}.log`);
  let file: FileHandle | undefined;
  try {
    // An earlier attempt that met a full disk may have left the name.
    file = await fs.open(path, 'w+');
    await writeAll(file, encodeHeader(base), 0);
    await file.sync();
    await syncDirectory(directory);
    return { segment: { path, base, sizeBytes: HEADER_BYTES }, file };
  } catch (error) {
    await file?.close();
    throw writeError(error, path);
  }
}

/** One write may be cut short. */
export async function writeAll(file: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < bytes.byteLength; ) {
    const { bytesWritten } = await file.write(bytes, done, bytes.byteLength - done, position + done);
    done += bytesWritten;
  }
}

/**
 * Records of a segment from a sequence on, in chunks of at least one.
 *
 * @throws LimbeckError ERR_CORRUPT_LOG with the file and the offset in bytes unless every byte up to `sizeBytes` is valid
 */
export async function* readRecords(segment: Segment, fromSequence: number): AsyncGenerator<readonly SegmentRecord[]> {
  const { path, base, sizeBytes } = segment;
  const { file } = await openRegularFile(path);
  try {
    if ((await readHeader(file)) !== base) throw corrupt(path, 0, 'the header is damaged');
    let end = 0;
    for await (const chunk of readSegment(file, base, sizeBytes, fromSequence)) {
      end = chunk.end;
      if (chunk.records.length > 0) yield chunk.records;
    }
    if (end !== sizeBytes) throw corrupt(path, end, `the record there is damaged, and ${sizeBytes - end} bytes follow`);
  } finally {
    await file.close();
  }
}

/**
 * Finds the end of the last segment, cuts off what a crash left of the last commit, and makes the rest durable: after a
 * kill it may be in the page cache alone.
 *
 * @throws LimbeckError ERR_CORRUPT_LOG when a damaged record was durable, ERR_NO_SPACE, ERR_IO
 */
export async function recoverLastSegment(
  directory: string,
  { path, base }: Segment,
): Promise<Recovery & { file: FileHandle }> {
  const { file: reader, sizeBytes } = await openRegularFile(path);
  await reader.close();
  // The header is durable before anything follows it: a file this short never held a record.
  if (sizeBytes <= HEADER_BYTES) {
    const { segment, file } = await createSegment(directory, base);
    return { segment, file, nextSequence: base, truncatedBytes: 0 };
  }
  const file = await fs.open(path, 'r+');
  try {
    if ((await readHeader(file)) !== base) throw corrupt(path, 0, 'the header is damaged');
    let end = HEADER_BYTES;
    let nextSequence = base;
    for await (const chunk of readSegment(file, base, sizeBytes)) ({ end, nextSequence } = chunk);
    if (end < sizeBytes) {
      if (await hasLaterCommit(file, end, sizeBytes, nextSequence)) {
        throw corrupt(path, end, `event ${nextSequence} was stored there, and later events follow`);
      }
      await file.truncate(end);
    }
    await file.datasync();
    return { segment: { path, base, sizeBytes: end }, file, nextSequence, truncatedBytes: sizeBytes - end };
  } catch (error) {
    await file.close();
    throw writeError(error, path);
  }
}

export function corrupt(path: string, offset: number, reason: string): LimbeckError {
  return new LimbeckError(
    'ERR_CORRUPT_LOG',
    `'${path}' is damaged at byte ${offset}: ${reason}. Nothing was changed; restore the file from a copy, or move the ` +
      'directory away and begin a new log.',
  );
}

async function readHeader(file: FileHandle): Promise<number | undefined> {
  const header = Buffer.alloc(HEADER_BYTES);
  const { bytesRead } = await file.read(header, 0, HEADER_BYTES, 0);
  return decodeHeader(header.subarray(0, bytesRead));
}
