/**
 * The bytes of a segment of the event log. Little-endian; docs/feedback.md has the tables.
 *
 * A record names the first record of the commit that it was written with. A commit is written only when the one before
 * is durable, so a damaged record that a later commit follows was durable once: that is corruption. Without one it is
 * what a crash left of the last commit, which nobody was told is durable.
 */
import type { FileHandle } from 'node:fs/promises';
import { loadBinding } from '../binding.js';
import { MAX_EVENT_BYTES } from './event.js';

const MAGIC = 'LIMBKLOG';
const VERSION = 1;
/** magic, version u32, sequence of the first record u64, CRC-32C of those u32. */
export const HEADER_BYTES = 24;
/** CRC-32C of the rest u32, length of the JSON u32, sequence u64, index in the commit u32, received at u64. */
const RECORD_HEADER_BYTES = 28;
/** `{}`: a run of zeros is no record. */
const MIN_JSON_BYTES = 2;
const READ_CHUNK_BYTES = 1024 * 1024;
const TWO_POW_32 = 2 ** 32;

export interface SegmentRecord {
  /** In the file, in bytes. */
  readonly position: number;
  readonly sequence: number;
  /** Sequence of the first record that was written together with this one. */
  readonly commitStart: number;
  /** ms since 1970. */
  readonly receivedAt: number;
  readonly json: string;
}

export function encodeHeader(base: number): Buffer {
  const header = Buffer.alloc(HEADER_BYTES);
  header.write(MAGIC, 'latin1');
  header.writeUInt32LE(VERSION, 8);
  writeUInt64(header, base, 12);
  header.writeUInt32LE(crc32c(header.subarray(0, 20)), 20);
  return header;
}

/** Sequence of a segment's first record; undefined when the bytes are no header. */
export function decodeHeader(header: Buffer): number | undefined {
  if (header.length < HEADER_BYTES || header.readUInt32LE(20) !== crc32c(header.subarray(0, 20))) return undefined;
  if (header.toString('latin1', 0, 8) !== MAGIC || header.readUInt32LE(8) !== VERSION) return undefined;
  return readUInt64(header, 12);
}

/** Records of one commit, of which the first has the given sequence. `jsonBytes` is their length in UTF-8. */
export function encodeCommit(
  records: readonly { readonly json: string; readonly receivedAt: number }[],
  jsonBytes: number,
  commitStart: number,
): Buffer {
  const bytes = Buffer.allocUnsafe(jsonBytes + records.length * RECORD_HEADER_BYTES);
  let position = 0;
  for (const [index, { json, receivedAt }] of records.entries()) {
    const length = bytes.write(json, position + RECORD_HEADER_BYTES);
    const end = position + RECORD_HEADER_BYTES + length;
    bytes.writeUInt32LE(length, position + 4);
    writeUInt64(bytes, commitStart + index, position + 8);
    bytes.writeUInt32LE(index, position + 16);
    writeUInt64(bytes, receivedAt, position + 20);
    bytes.writeUInt32LE(crc32c(bytes.subarray(position + 4, end)), position);
    position = end;
  }
  return bytes;
}

/** Where the record at `position` ends; 0 when the buffer ends before it does, −1 when there is no valid record. */
function recordEnd(bytes: Buffer, position: number): number {
  if (position + RECORD_HEADER_BYTES > bytes.length) return 0;
  const length = bytes.readUInt32LE(position + 4);
  if (length < MIN_JSON_BYTES || length > MAX_EVENT_BYTES) return -1;
  const end = position + RECORD_HEADER_BYTES + length;
  if (end > bytes.length) return 0;
  return bytes.readUInt32LE(position) === crc32c(bytes.subarray(position + 4, end)) ? end : -1;
}

/** Of a record that {@link recordEnd} found valid; `fileOffset` is where the bytes begin in the file. */
function decodeRecord(bytes: Buffer, position: number, end: number, fileOffset: number): SegmentRecord {
  const sequence = readUInt64(bytes, position + 8);
  return {
    position: fileOffset + position,
    sequence,
    commitStart: sequence - bytes.readUInt32LE(position + 16),
    receivedAt: readUInt64(bytes, position + 20),
    json: bytes.toString('utf8', position + RECORD_HEADER_BYTES, end),
  };
}

export interface SegmentChunk {
  readonly records: readonly SegmentRecord[];
  /** Where the last valid record so far ends, in bytes from the start of the file. */
  readonly end: number;
  /** Sequence of the record that begins there. */
  readonly nextSequence: number;
}

/**
 * Reads the records between the header and byte `to`, of which the first must have the sequence `base`. Stops before the
 * first record that is damaged, cut off or out of order: then `end` of the last chunk is below `to`.
 *
 * @param skipBefore Records with a lower sequence are checked, not returned.
 */
export async function* readSegment(
  file: FileHandle,
  base: number,
  to: number,
  skipBefore = 0,
): AsyncGenerator<SegmentChunk> {
  let nextSequence = base;
  let end = HEADER_BYTES; // also the position in the file of the first byte that is not parsed
  let carry = Buffer.alloc(0);
  yield { records: [], end, nextSequence };
  while (end + carry.length < to) {
    const bytes = Buffer.allocUnsafe(carry.length + Math.min(READ_CHUNK_BYTES, to - end - carry.length));
    carry.copy(bytes);
    const { bytesRead } = await file.read(bytes, carry.length, bytes.length - carry.length, end + carry.length);
    if (bytesRead === 0) return; // shorter than it was: the caller sees `end`
    const available = bytes.subarray(0, carry.length + bytesRead);
    const records: SegmentRecord[] = [];
    let position = 0;
    let next = recordEnd(available, 0);
    while (next > 0 && readUInt64(available, position + 8) === nextSequence) {
      if (nextSequence >= skipBefore) records.push(decodeRecord(available, position, next, end));
      nextSequence++;
      position = next;
      next = recordEnd(available, position);
    }
    end += position;
    yield { records, end, nextSequence };
    if (next !== 0) return; // damaged, or out of order
    carry = available.subarray(position);
  }
}

/**
 * Whether a valid record lies anywhere between two bytes of a file that was written after the record `sequence` was
 * durable. In pieces: a damaged file may have any size.
 */
export async function hasLaterCommit(file: FileHandle, from: number, to: number, sequence: number): Promise<boolean> {
  const bytes = Buffer.allocUnsafe(Math.min(READ_CHUNK_BYTES, to - from));
  // A record that the end of a piece cuts off is whole in the next one.
  for (let at = from; at < to; at += READ_CHUNK_BYTES - RECORD_HEADER_BYTES - MAX_EVENT_BYTES) {
    const { bytesRead } = await file.read(bytes, 0, Math.min(bytes.length, to - at), at);
    if (holdsLaterCommit(bytes.subarray(0, bytesRead), sequence)) return true;
  }
  return false;
}

function holdsLaterCommit(bytes: Buffer, sequence: number): boolean {
  for (let position = 0; position + RECORD_HEADER_BYTES <= bytes.length; position++) {
    if (readUInt64(bytes, position + 8) <= sequence) continue; // cheaper than the CRC, and true of nearly all positions
    const end = recordEnd(bytes, position);
    if (end > 0 && decodeRecord(bytes, position, end, 0).commitStart > sequence) return true;
  }
  return false;
}

function crc32c(bytes: Uint8Array): number {
  return loadBinding().crc32c(bytes);
}

function writeUInt64(bytes: Buffer, value: number, position: number): void {
  bytes.writeUInt32LE(value % TWO_POW_32, position);
  bytes.writeUInt32LE(Math.floor(value / TWO_POW_32), position + 4);
}

function readUInt64(bytes: Buffer, position: number): number {
  return bytes.readUInt32LE(position) + bytes.readUInt32LE(position + 4) * TWO_POW_32;
}
