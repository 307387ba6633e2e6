/**
 * User states in a file: a header, then one section a shard with the items and users of that shard and the offset that
 * it was taken at. A shard is written as it is at one moment while others change, so each has its own offset.
 */
import type { FileHandle } from 'node:fs/promises';
import { loadBinding } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { openRegularFile, readError, writeFileAtomic } from '../formats/files.js';
import { createPacer } from '../formats/pacer.js';
import { COUNTS_BYTES, ENTRY_BYTES, isPacked } from './user-state-codec.js';
import type { ItemNames } from './user-state-items.js';

const MAGIC = 'LIMBKUSR';
const VERSION = 1;
/** magic, version u32, number of sections u32. */
const HEADER_BYTES = 16;
/** Length of the body u32, CRC-32C of the body u32. */
const SECTION_HEADER_BYTES = 8;

/** @internal A part of the users; see user-states.ts. */
interface Shard {
  readonly users: Map<string, string>;
  nextOffset: bigint;
}

/** @param nextOffset Asked when a section is begun. */
export async function saveUserStates(
  path: string,
  shards: readonly Shard[],
  items: ItemNames,
  nextOffset: () => bigint,
): Promise<void> {
  async function* pieces(): AsyncGenerator<Uint8Array> {
    const header = Buffer.alloc(HEADER_BYTES);
    header.write(MAGIC, 'latin1');
    header.writeUInt32LE(VERSION, 8);
    header.writeUInt32LE(shards.length, 12);
    yield header;
    const pause = createPacer();
    for (const { users } of shards) {
      yield encodeSection(users, items, nextOffset());
      await pause();
    }
  }
  await writeFileAtomic(path, pieces());
}

/** Fills empty shards. @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT, ERR_IO */
export async function loadUserStates(path: string, shards: readonly Shard[], items: ItemNames): Promise<void> {
  const { file, sizeBytes } = await openRegularFile(path);
  try {
    const header = await readExactly(file, 0, HEADER_BYTES, path);
    if (header.toString('latin1', 0, 8) !== MAGIC || header.readUInt32LE(8) !== VERSION) throw damaged(path, 0);
    if (header.readUInt32LE(12) !== shards.length) throw damaged(path, 12);
    let position = HEADER_BYTES;
    const pause = createPacer();
    for (const shard of shards) {
      const head = await readExactly(file, position, SECTION_HEADER_BYTES, path);
      const length = head.readUInt32LE(0);
      if (length > sizeBytes - position - SECTION_HEADER_BYTES) throw damaged(path, position);
      const body = await readExactly(file, position + SECTION_HEADER_BYTES, length, path);
      if (head.readUInt32LE(4) !== loadBinding().crc32c(body)) throw damaged(path, position);
      try {
        decodeSection(body, shard, items);
      } catch (error) {
        if (!(error instanceof RangeError)) throw error;
        throw damaged(path, position, error);
      }
      position += SECTION_HEADER_BYTES + length;
      await pause();
    }
    if (position !== sizeBytes) throw damaged(path, position);
  } finally {
    await file.close();
  }
}

/** Body: offset u64, number of items u32, items, number of users u32, users; each user is its id and its packed state. */
function encodeSection(users: ReadonlyMap<string, string>, items: ItemNames, nextOffset: bigint): Buffer {
  const localIndices = new Map<number, number>();
  const states: { userId: string; packed: Buffer }[] = [];
  for (const [userId, text] of users) {
    const packed = Buffer.from(text, 'latin1');
    for (let position = COUNTS_BYTES; position < packed.length; position += ENTRY_BYTES) {
      const item = packed.readUInt32LE(position);
      const index = localIndices.get(item) ?? localIndices.size;
      localIndices.set(item, index);
      packed.writeUInt32LE(index, position);
    }
    states.push({ userId, packed });
  }
  const names = [...localIndices.keys()].map((item) => items.name(item));
  const textBytes = (text: string) => 2 + Buffer.byteLength(text);
  const length =
    8 +
    4 +
    names.reduce((sum, name) => sum + textBytes(name), 0) +
    4 +
    states.reduce((sum, { userId, packed }) => sum + textBytes(userId) + 4 + packed.length, 0);

  const bytes = Buffer.allocUnsafe(SECTION_HEADER_BYTES + length);
  let position = bytes.writeBigUInt64LE(nextOffset, SECTION_HEADER_BYTES);
  const writeText = (text: string) => {
    const textLength = bytes.write(text, position + 2);
    position = bytes.writeUInt16LE(textLength, position) + textLength;
  };
  position = bytes.writeUInt32LE(names.length, position);
  names.forEach(writeText);
  position = bytes.writeUInt32LE(states.length, position);
  for (const { userId, packed } of states) {
    writeText(userId);
    position = bytes.writeUInt32LE(packed.length, position);
    position += packed.copy(bytes, position);
  }
  bytes.writeUInt32LE(length, 0);
  bytes.writeUInt32LE(loadBinding().crc32c(bytes.subarray(SECTION_HEADER_BYTES)), 4);
  return bytes;
}

/** @throws RangeError where the body is not what encodeSection() writes */
function decodeSection(body: Buffer, shard: Shard, items: ItemNames): void {
  shard.nextOffset = body.readBigUInt64LE(0);
  let position = 8;
  const readCount = () => {
    const count = body.readUInt32LE(position);
    position += 4;
    return count;
  };
  const readBytes = (length: number) => {
    if (position + length > body.length) throw new RangeError('a length beyond the end');
    position += length;
    return body.subarray(position - length, position);
  };
  const readText = () => {
    const length = body.readUInt16LE(position);
    position += 2;
    return readBytes(length).toString();
  };
  const names: string[] = [];
  for (let left = readCount(); left > 0; left--) names.push(readText());
  for (let left = readCount(); left > 0; left--) {
    const userId = readText();
    const packed = Buffer.from(readBytes(readCount()));
    if (!isPacked(packed)) throw new RangeError('a state of another length');
    for (let at = COUNTS_BYTES; at < packed.length; at += ENTRY_BYTES) {
      const name = names[packed.readUInt32LE(at)];
      if (name === undefined) throw new RangeError('an item beyond the list');
      packed.writeUInt32LE(items.acquire(name), at);
    }
    shard.users.set(userId, packed.toString('latin1'));
  }
  if (position !== body.length) throw new RangeError('bytes after the last user');
}

async function readExactly(file: FileHandle, position: number, length: number, path: string): Promise<Buffer> {
  const bytes = Buffer.allocUnsafe(length);
  const { bytesRead } = await file.read(bytes, 0, length, position).catch((error: unknown) => {
    throw readError(error, path);
  });
  if (bytesRead !== length) throw damaged(path, position);
  return bytes;
}

function damaged(path: string, offset: number, cause?: unknown): LimbeckError {
  return new LimbeckError(
    'ERR_FILE_FORMAT',
    `'${path}' is not a whole snapshot of user states: see byte ${offset}. Remove it to build the states from the ` +
      'event log alone, if the log still has all events.',
    { cause },
  );
}
