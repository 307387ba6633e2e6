/**
 * Unigram: of all ways to cut a word into pieces, the one whose scores (log probabilities) add up to most. Pieces that
 * begin at a character come from a trie, and the best way to reach each position is kept.
 *
 * @see Kudo 2018, section 3.2 (arXiv:1804.10959)
 */
import { byteTokens } from './bpe.js';
import { invalid, type Part, readBoolean } from './json.js';
import { PairTable } from './pair-table.js';
import type { WordModel } from './word-model.js';

/** What an unknown character costs beside the worst piece. */
const UNKNOWN_PENALTY = 10;

/** @throws LimbeckError ERR_TOKENIZER */
export function createUnigramModel(part: Part, idOf: ReadonlyMap<string, number>): WordModel {
  const { json, place } = part;
  const vocab = json['vocab'] as [string, number][];
  const unknownId = (json['unk_id'] ?? undefined) as number | undefined;
  if (unknownId !== undefined && (!Number.isInteger(unknownId) || unknownId < 0 || unknownId >= vocab.length)) {
    throw invalid(place, `expected "unk_id" to be the id of a piece, got ${JSON.stringify(unknownId)}`);
  }
  const scores = Float64Array.from(vocab, ([, score]) => score);
  const unknownScore =
    scores.reduce((least, score) => Math.min(least, score), Number.POSITIVE_INFINITY) - UNKNOWN_PENALTY;
  const byteIds = readBoolean(part, 'byte_fallback', false) ? byteTokens(idOf) : undefined;
  const trie = new Trie(vocab.map(([piece]) => piece));

  const requireUnknown = (): number => {
    if (unknownId === undefined)
      throw invalid(place, 'there is neither a piece nor an "unk_id" for a part of the text');
    return unknownId;
  };
  const push = (piece: string, ids: number[]): void => {
    const id = idOf.get(piece);
    const bytes =
      id === undefined && byteIds ? Array.from(Buffer.from(piece), (byte) => byteIds[byte] as number) : [-1];
    if (id === undefined && bytes.every((byteId) => byteId !== -1)) ids.push(...bytes);
    else ids.push(id ?? requireUnknown());
  };
  return (word, ids) => {
    const { length } = word;
    const bestScore = new Float64Array(length + 1); // [length + 1] of the best way to each position
    const bestBegin = new Int32Array(length + 1).fill(-1); // [length + 1] where its last piece begins
    const bestId = new Int32Array(length + 1); // [length + 1] id of its last piece
    const offer = (begin: number, end: number, id: number, score: number) => {
      const total = score + (bestScore[begin] as number);
      if (bestBegin[end] !== -1 && total <= (bestScore[end] as number)) return;
      bestScore[end] = total;
      bestBegin[end] = begin;
      bestId[end] = id;
    };
    for (let begin = 0; begin < length; ) {
      const characterEnd = begin + ((word.codePointAt(begin) as number) > 0xffff ? 2 : 1);
      let hasCharacter = false;
      let node = 0;
      for (let end = begin; end < length; ) {
        node = trie.child(node, word.charCodeAt(end++));
        if (node === -1) break;
        const id = trie.idAt(node);
        if (id === -1) continue;
        offer(begin, end, id, scores[id] as number);
        hasCharacter ||= end === characterEnd;
      }
      if (!hasCharacter) offer(begin, characterEnd, requireUnknown(), unknownScore);
      begin = characterEnd;
    }
    // From the end; unknown characters in a row are one piece.
    const pieces: string[] = [];
    let unknownEnd = -1;
    for (let end = length; end > 0; ) {
      const begin = bestBegin[end] as number;
      if (bestId[end] === unknownId) {
        if (unknownEnd === -1) unknownEnd = end;
      } else {
        if (unknownEnd !== -1) pieces.push(word.slice(end, unknownEnd));
        unknownEnd = -1;
        pieces.push(word.slice(begin, end));
      }
      end = begin;
    }
    if (unknownEnd !== -1) pieces.push(word.slice(0, unknownEnd));
    for (const piece of pieces.reverse()) push(piece, ids);
  };
}

/** Pieces by their UTF-16 units. Node 0 is the root. */
class Trie {
  readonly #children = new PairTable();
  readonly #ids: number[] = [-1];

  constructor(pieces: readonly string[]) {
    pieces.forEach((piece, id) => {
      let node = 0;
      for (let i = 0; i < piece.length; i++) {
        const unit = piece.charCodeAt(i);
        let child = this.#children.get(node, unit);
        if (child === -1) {
          child = this.#ids.push(-1) - 1;
          this.#children.set(node, unit, child);
        }
        node = child;
      }
      this.#ids[node] = id;
    });
  }

  /** −1 when there is none. */
  child(node: number, unit: number): number {
    return this.#children.get(node, unit);
  }

  /** Id of the piece that ends at a node, −1 when none does. */
  idAt(node: number): number {
    return this.#ids[node] as number;
  }
}
