/**
 * What is known of one user, packed into a string of bytes (Latin-1): V8 keeps it in 16 bytes and one a character,
 * where a typed array takes some 200 bytes more, and millions of them are no work for the garbage collector.
 *
 * Four lengths u16 (history, hidden, purchases, ratings), then the entries of the four lists, oldest first, of 11 bytes
 * each: item u32, time u48 in ms, value u8. Little-endian.
 */

export interface Entry {
  /** Number of the item. */
  item: number;
  /** ms since 1970. */
  time: number;
  /** In the history, what the user did ({@link Strength}); of a rating, fifty times it; elsewhere 0. */
  value: number;
}

export interface UserState {
  history: Entry[];
  hidden: Entry[];
  purchases: Entry[];
  ratings: Entry[];
}

export const LISTS = ['history', 'hidden', 'purchases', 'ratings'] as const;
export type ListName = (typeof LISTS)[number];

export const COUNTS_BYTES = 2 * LISTS.length;
export const ENTRY_BYTES = 11;
/** What a length of 16 bits can say. */
export const MAX_LIST_LENGTH = 65_535;

let scratch = Buffer.alloc(16 * 1024);

export function packState(state: UserState): string {
  const numEntries = LISTS.reduce((sum, name) => sum + state[name].length, 0);
  const size = COUNTS_BYTES + ENTRY_BYTES * numEntries;
  reserve(size);
  let position = COUNTS_BYTES;
  for (const [i, name] of LISTS.entries()) {
    scratch.writeUInt16LE(state[name].length, 2 * i);
    for (const { item, time, value } of state[name]) {
      scratch.writeUInt32LE(item, position);
      scratch.writeUIntLE(time, position + 4, 6);
      scratch.writeUInt8(value, position + 10);
      position += ENTRY_BYTES;
    }
  }
  return scratch.toString('latin1', 0, size);
}

export function unpackState(packed: string): UserState {
  return {
    history: unpackList(packed, 'history'),
    hidden: unpackList(packed, 'hidden'),
    purchases: unpackList(packed, 'purchases'),
    ratings: unpackList(packed, 'ratings'),
  };
}

/** One of the lists alone. */
export function unpackList(packed: string, name: ListName): Entry[] {
  reserve(packed.length);
  scratch.write(packed, 'latin1');
  let position = COUNTS_BYTES;
  const index = LISTS.indexOf(name);
  for (let i = 0; i < index; i++) position += ENTRY_BYTES * scratch.readUInt16LE(2 * i);
  const entries: Entry[] = [];
  for (let left = scratch.readUInt16LE(2 * index); left > 0; left--) {
    entries.push({
      item: scratch.readUInt32LE(position),
      time: scratch.readUIntLE(position + 4, 6),
      value: scratch.readUInt8(position + 10),
    });
    position += ENTRY_BYTES;
  }
  return entries;
}

/** Whether bytes are as long as the four lengths in front of them say. */
export function isPacked(bytes: Buffer): boolean {
  if (bytes.length < COUNTS_BYTES) return false;
  const numEntries = LISTS.reduce((sum, _, i) => sum + bytes.readUInt16LE(2 * i), 0);
  return bytes.length === COUNTS_BYTES + ENTRY_BYTES * numEntries;
}

function reserve(size: number): void {
  if (scratch.length < size) scratch = Buffer.alloc(2 * size);
}
