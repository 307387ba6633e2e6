/**
 * Byte-pair encoding: the pair of neighbours that was merged first in training is merged first, the left one of equal
 * pairs, until none is left. A heap finds it, so that a word of n characters costs n log n.
 *
 * @see Sennrich et al. 2016, section 3.2 (arXiv:1508.07909)
 */
import { invalid, type Part, readBoolean, unsupported } from './json.js';
import { PairTable } from './pair-table.js';
import type { WordModel } from './word-model.js';

/** One number orders merges by rank, then by position. */
const POSITIONS = 2 ** 27;

/** @throws LimbeckError ERR_TOKENIZER, ERR_UNSUPPORTED_TOKENIZER */
export function createBytePairModel(part: Part, idOf: ReadonlyMap<string, number>): WordModel {
  const { json, place } = part;
  const optional = (key: string): string => {
    const value = json[key] ?? '';
    if (typeof value !== 'string') throw invalid(place, `expected a text "${key}", got ${JSON.stringify(value)}`);
    return value;
  };
  if (typeof json['dropout'] === 'number' && json['dropout'] > 0) {
    throw unsupported(place, 'dropout of merges is random; set it to null');
  }
  if (optional('continuing_subword_prefix') !== '') {
    throw unsupported(
      place,
      `BPE with continuing_subword_prefix ${JSON.stringify(json['continuing_subword_prefix'])} is not supported`,
    );
  }
  const suffix = optional('end_of_word_suffix');
  const unknown = optional('unk_token');
  const unknownId = unknown === '' ? -1 : (idOf.get(unknown) ?? -1);
  if (unknown !== '' && unknownId === -1) throw invalid(place, `the vocabulary lacks the unk_token '${unknown}'`);
  const fusesUnknown = readBoolean(part, 'fuse_unk', false);
  const ignoresMerges = readBoolean(part, 'ignore_merges', false);
  const byteIds = readBoolean(part, 'byte_fallback', false) ? byteTokens(idOf) : undefined;
  const merger = new Merger(part, idOf);

  return (word, ids) => {
    if (ignoresMerges) {
      const whole = idOf.get(word);
      if (whole !== undefined) {
        ids.push(whole);
        return;
      }
    }
    const symbols: number[] = [];
    let pendingUnknown = false;
    const characters = Array.from(word);
    characters.forEach((character, i) => {
      const symbol = i === characters.length - 1 ? character + suffix : character;
      const id = idOf.get(symbol);
      if (id !== undefined) {
        if (pendingUnknown) symbols.push(unknownId);
        pendingUnknown = false;
        symbols.push(id);
        return;
      }
      const bytes = byteIds && Array.from(Buffer.from(symbol), (byte) => byteIds[byte] as number);
      // As in Rust, an unknown character that waits stays behind these bytes.
      if (bytes?.every((byteId) => byteId !== -1)) {
        symbols.push(...bytes);
        return;
      }
      if (unknownId === -1) return; // dropped
      if (pendingUnknown && !fusesUnknown) symbols.push(unknownId);
      pendingUnknown = true;
    });
    if (pendingUnknown) symbols.push(unknownId);
    merger.merge(symbols, ids);
  };
}

/** Ids of the tokens <0x00> to <0xFF>; −1 where there is none. */
export function byteTokens(idOf: ReadonlyMap<string, number>): number[] {
  return Array.from({ length: 256 }, (_, byte) => {
    const hex = byte.toString(16).toUpperCase().padStart(2, '0');
    return idOf.get(`<0x${hex}>`) ?? -1;
  });
}

class Merger {
  /** (left id, right id) → rank. */
  readonly #ranks: PairTable;
  /** Id of what a merge makes, by rank. */
  readonly #mergedIds: Int32Array;
  // Scratch that grows to the longest word.
  #previous = new Int32Array(0);
  #next = new Int32Array(0);
  #heapKeys = new Float64Array(0);
  #heapSize = 0;

  constructor({ json, place }: Part, idOf: ReadonlyMap<string, number>) {
    const merges = json['merges'];
    if (!Array.isArray(merges)) throw invalid(place, 'expected a list "merges"');
    this.#ranks = new PairTable(merges.length);
    this.#mergedIds = new Int32Array(merges.length);
    merges.forEach((merge: unknown, rank) => {
      const pair: unknown = typeof merge === 'string' ? merge.split(' ') : merge;
      const [left, right] = Array.isArray(pair) && pair.length === 2 ? pair.map((token) => idOf.get(token)) : [];
      if (left === undefined || right === undefined) {
        throw invalid(place, `expected a merge of two known tokens, got ${JSON.stringify(merge)}`);
      }
      const merged = idOf.get((pair as string[]).join(''));
      if (merged === undefined) {
        throw invalid(place, `the merge ${JSON.stringify(merge)} makes a token that is not in the vocabulary`);
      }
      this.#ranks.set(left, right, rank);
      this.#mergedIds[rank] = merged;
    });
  }

  /** Merges `symbols`, which it overwrites, and appends what is left to `ids`. */
  merge(symbols: number[], ids: number[]): void {
    const { length } = symbols;
    if (this.#next.length < length) {
      this.#previous = new Int32Array(2 * length);
      this.#next = new Int32Array(2 * length);
      this.#heapKeys = new Float64Array(6 * length);
    }
    const previous = this.#previous;
    const next = this.#next;
    this.#heapSize = 0;
    for (let i = 0; i < length; i++) {
      previous[i] = i - 1;
      next[i] = i + 1 < length ? i + 1 : -1;
    }
    for (let i = 0; i + 1 < length; i++) this.#offer(symbols, i, i + 1);

    const mergedIds = this.#mergedIds;
    while (this.#heapSize > 0) {
      const key = this.#pop();
      const rank = Math.floor(key / POSITIONS);
      const position = key - rank * POSITIONS;
      const left = symbols[position] as number;
      const right = next[position] as number;
      // An entry is out of date when the symbols there have changed. As in Rust, another pair that makes the same
      // token still counts.
      if (left === -1 || right === -1) continue;
      const current = this.#ranks.get(left, symbols[right] as number);
      const merged = mergedIds[rank] as number;
      if (current === -1 || mergedIds[current] !== merged) continue;
      symbols[position] = merged;
      symbols[right] = -1;
      const after = next[right] as number;
      next[position] = after;
      if (after !== -1) previous[after] = position;
      if ((previous[position] as number) !== -1) this.#offer(symbols, previous[position] as number, position);
      if (after !== -1) this.#offer(symbols, position, after);
    }
    for (let i = 0; i < length; i++) {
      const id = symbols[i] as number;
      if (id !== -1) ids.push(id);
    }
  }

  #offer(symbols: readonly number[], position: number, right: number): void {
    const rank = this.#ranks.get(symbols[position] as number, symbols[right] as number);
    if (rank === -1) return;
    const keys = this.#heapKeys;
    const key = rank * POSITIONS + position;
    let child = this.#heapSize++;
    while (child > 0) {
      const parent = (child - 1) >> 1;
      const above = keys[parent] as number;
      if (above <= key) break;
      keys[child] = above;
      child = parent;
    }
    keys[child] = key;
  }

  #pop(): number {
    const keys = this.#heapKeys;
    const top = keys[0] as number;
    const size = --this.#heapSize;
    const last = keys[size] as number;
    let parent = 0;
    for (;;) {
      let child = 2 * parent + 1;
      if (child >= size) break;
      if (child + 1 < size && (keys[child + 1] as number) < (keys[child] as number)) child++;
      if ((keys[child] as number) >= last) break;
      keys[parent] = keys[child] as number;
      parent = child;
    }
    keys[parent] = last;
    return top;
  }
}
