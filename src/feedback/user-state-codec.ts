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

const TWO_POW_32 = 2 ** 32;

let scratch = Buffer.alloc(16 * 1024);
let view = new DataView(scratch.buffer, scratch.byteOffset, scratch.length);

export function packState(state: UserState): string {
  const numEntries = LISTS.reduce((sum, name) => sum + state[name].length, 0);
  const size = COUNTS_BYTES + ENTRY_BYTES * numEntries;
  if (scratch.length < size) {
    scratch = Buffer.alloc(2 * size);
    view = new DataView(scratch.buffer, scratch.byteOffset, scratch.length);
  }
  let position = COUNTS_BYTES;
  for (let list = 0; list < LISTS.length; list++) {
    const entries = state[LISTS[list] as ListName];
    view.setUint16(2 * list, entries.length, true);
    for (const { item, time, value } of entries) {
      view.setUint32(position, item, true);
      view.setUint32(position + 4, time % TWO_POW_32, true);
      view.setUint16(position + 8, Math.floor(time / TWO_POW_32), true);
      view.setUint8(position + 10, value);
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
  const entries: Entry[] = [];
  const end = endOf(packed, name);
  for (let position = beginOf(packed, name); position < end; position += ENTRY_BYTES) {
    entries.push({
      item: uint32(packed, position),
      time: uint32(packed, position + 4) + uint16(packed, position + 8) * TWO_POW_32,
      value: packed.charCodeAt(position + 10),
    });
  }
  return entries;
}

/** The items of a list alone. */
export function unpackItems(packed: string, name: ListName): number[] {
  const items: number[] = [];
  const end = endOf(packed, name);
  for (let position = beginOf(packed, name); position < end; position += ENTRY_BYTES)
    items.push(uint32(packed, position));
  return items;
}

function beginOf(packed: string, name: ListName): number {
  let numBefore = 0;
  for (let i = 0; LISTS[i] !== name; i++) numBefore += uint16(packed, 2 * i);
  return COUNTS_BYTES + ENTRY_BYTES * numBefore;
}

function endOf(packed: string, name: ListName): number {
  return beginOf(packed, name) + ENTRY_BYTES * uint16(packed, 2 * LISTS.indexOf(name));
}

/** Whether bytes are as long as the four lengths in front of them say. */
export function isPacked(bytes: Buffer): boolean {
  if (bytes.length < COUNTS_BYTES) return false;
  const numEntries = LISTS.reduce((sum, _, i) => sum + bytes.readUInt16LE(2 * i), 0);
  return bytes.length === COUNTS_BYTES + ENTRY_BYTES * numEntries;
}

function uint16(packed: string, position: number): number {
  return packed.charCodeAt(position) | (packed.charCodeAt(position + 1) << 8);
}

function uint32(packed: string, position: number): number {
  return (uint16(packed, position) | (uint16(packed, position + 2) << 16)) >>> 0;
}
