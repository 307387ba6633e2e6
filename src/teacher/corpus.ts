import type { PackedBatch } from '../binding.js';
import { LimbeckError } from '../errors.js';
import type { Tokenizer } from '../formats/tokenizer.js';
import { encodeTexts, type TokenizedTexts } from '../formats/tokenizer-workers.js';
import { gatherBatch, hashSeed, randomNumbers } from './batches.js';

export const IGNORED_LABEL = -100;

/** Texts as token ids, laid end to end. */
export interface TokenizedCorpus {
  readonly ids: Int32Array; // [N]
  readonly offsets: Int32Array; // [S + 1]
}

/** How texts become pieces. */
export interface PieceOptions {
  readonly maxLength: number;
  /** Shorter pieces are left out. 2 for causal models, where the first token is not predicted. @defaultValue 2 */
  readonly minLength?: number;
  /** Puts the tokenizer's end-of-text token after each text, when it has one. */
  readonly addEos: boolean;
}

/** Pieces of texts as token ids, in memory or on disk. */
export interface PieceSource {
  /** First token of each piece, and after the last. */
  readonly offsets: Int32Array | Float64Array; // [S + 1]
  /** Tokens of some pieces, end to end. @throws LimbeckError ERR_SAFETENSORS, ERR_IO */
  read(pieces: Int32Array): PackedBatch | Promise<PackedBatch>;
  close(): Promise<void>;
}

/**
 * Tokenises texts; one longer than maxLength is cut into pieces of that length. Pieces shorter than minLength are left
 * out: nothing can be predicted in them.
 *
 * @throws LimbeckError ERR_EMPTY_DATA when no piece is left
 */
export async function tokenizeCorpus(
  tokenizer: Tokenizer,
  texts: readonly string[],
  options: PieceOptions,
): Promise<TokenizedCorpus> {
  const pieces = cutPieces(await encodeTexts(tokenizer, texts), tokenizer.eosTokenId, options);
  if (pieces.offsets.length === 1) throw noPiece(options);
  return pieces;
}

/** Pieces of tokenised texts. */
export function cutPieces(
  { ids, offsets }: TokenizedTexts,
  eosTokenId: number | undefined,
  { maxLength, minLength = 2, addEos }: PieceOptions,
): TokenizedCorpus {
  const numTexts = offsets.length - 1;
  const cut = new Int32Array(ids.length + numTexts);
  const ends: number[] = [];
  let end = 0;
  for (let text = 0; text < numTexts; text++) {
    const sequence = ids.subarray(offsets[text], offsets[text + 1]);
    const eos = addEos && sequence.at(-1) !== eosTokenId ? eosTokenId : undefined;
    const length = sequence.length + (eos === undefined ? 0 : 1);
    for (const [begin, stop] of cutText(length, { maxLength, minLength })) {
      cut.set(sequence.subarray(begin, stop), end);
      end += stop - begin;
      if (eos !== undefined && stop === length) cut[end - 1] = eos;
      ends.push(end);
    }
  }
  return { ids: cut.slice(0, end), offsets: Int32Array.from([0, ...ends]) };
}

/** The pieces [begin, end) that a text of so many tokens is cut into. */
export function cutText(
  length: number,
  { maxLength, minLength }: { readonly maxLength: number; readonly minLength: number },
): [number, number][] {
  const pieces: [number, number][] = [];
  for (let begin = 0; begin < length; begin += maxLength) {
    const end = Math.min(length, begin + maxLength);
    if (end - begin >= minLength) pieces.push([begin, end]);
  }
  return pieces;
}

export function noPiece({ minLength = 2 }: PieceOptions): LimbeckError {
  return new LimbeckError('ERR_EMPTY_DATA', `Expected at least one text of ${minLength} or more tokens, got none`);
}

export function inMemory({ ids, offsets }: TokenizedCorpus): PieceSource {
  return { offsets, read: (pieces) => gatherBatch(ids, offsets, pieces), close: async () => {} };
}

/** The next token of the same sequence; the last one has none. */
export function causalLabels({ inputIds, sequenceOffsets }: PackedBatch): Int32Array {
  const labels = new Int32Array(inputIds.length).fill(IGNORED_LABEL);
  for (let s = 0; s + 1 < sequenceOffsets.length; s++) {
    const begin = sequenceOffsets[s] ?? 0;
    const end = sequenceOffsets[s + 1] ?? 0;
    labels.set(inputIds.subarray(begin + 1, end), begin);
  }
  return labels;
}

/**
 * Masked language modelling (Devlin et al. 2019, arXiv:1810.04805, §3.1): of the tokens drawn, 80 % become the mask, 10 %
 * a random token, 10 % stay. At least one token of a batch is drawn, which is a special one only where it has no others.
 *
 * @param specialTokenIds never drawn beside other tokens: that [CLS] comes first is nothing to learn
 * @param seed decides what is drawn, together with `position` (for example the step)
 */
export function maskTokens(
  batch: PackedBatch,
  options: {
    readonly maskTokenId: number;
    readonly specialTokenIds: ReadonlySet<number>;
    readonly vocabSize: number;
    readonly probability: number;
    readonly seed: number;
    readonly position: number;
  },
): { batch: PackedBatch; labels: Int32Array } {
  const { maskTokenId, specialTokenIds, vocabSize, probability, seed, position } = options;
  const random = randomNumbers(hashSeed(seed, position));
  const inputIds = batch.inputIds.slice();
  const labels = new Int32Array(inputIds.length).fill(IGNORED_LABEL);
  const draw = (i: number) => {
    labels[i] = batch.inputIds[i] ?? 0;
    const kind = random();
    if (kind < 0.8) inputIds[i] = maskTokenId;
    else if (kind < 0.9) inputIds[i] = Math.floor(random() * vocabSize);
  };
  const all = Int32Array.from(inputIds.keys());
  const ordinary = all.filter((i) => !specialTokenIds.has(inputIds[i] ?? 0));
  let drawn = 0;
  for (const i of ordinary) {
    if (random() >= probability) continue;
    draw(i);
    drawn++;
  }
  // Training refuses a batch without labels.
  const places = ordinary.length > 0 ? ordinary : all;
  if (drawn === 0) draw(places[Math.floor(random() * places.length)] ?? 0);
  return { batch: { ...batch, inputIds }, labels };
}
