import type { PackedBatch } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { createPacer } from '../formats/pacer.js';
import type { Tokenizer } from '../formats/tokenizer.js';
import { hashSeed, randomNumbers } from './batches.js';

export const IGNORED_LABEL = -100;

/** Texts as token ids, laid end to end. */
export interface TokenizedCorpus {
  readonly ids: Int32Array; // [N]
  readonly offsets: Int32Array; // [S + 1]
}

/**
 * Tokenises texts; one longer than maxLength is cut into pieces of that length. Pieces of a single token are left out
 * where there are others: nothing can be predicted in them.
 *
 * @param options.addEos puts the tokenizer's end-of-text token after each text, when it has one
 * @throws LimbeckError ERR_EMPTY_DATA when no text has a token
 */
export async function tokenizeCorpus(
  tokenizer: Tokenizer,
  texts: readonly string[],
  { maxLength, addEos }: { readonly maxLength: number; readonly addEos: boolean },
): Promise<TokenizedCorpus> {
  const pause = createPacer();
  const pieces: number[][] = [];
  for (const text of texts) {
    await pause();
    const ids = tokenizer.encode(text);
    if (addEos && tokenizer.eosTokenId !== undefined && ids.at(-1) !== tokenizer.eosTokenId) {
      ids.push(tokenizer.eosTokenId);
    }
    for (let begin = 0; begin < ids.length; begin += maxLength) {
      const piece = ids.slice(begin, begin + maxLength);
      if (piece.length > 1 || begin === 0) pieces.push(piece);
    }
  }
  const useful = pieces.filter((piece) => piece.length > 0);
  if (useful.length === 0)
    throw new LimbeckError('ERR_EMPTY_DATA', 'Expected at least one text with a token, got none');
  const offsets = new Int32Array(useful.length + 1);
  useful.forEach((piece, i) => {
    offsets[i + 1] = (offsets[i] ?? 0) + piece.length;
  });
  const ids = new Int32Array(offsets[useful.length] ?? 0);
  useful.forEach((piece, i) => {
    ids.set(piece, offsets[i]);
  });
  return { ids, offsets };
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
 * a random token, 10 % stay. At least one token of a batch is drawn.
 *
 * @param seed decides what is drawn, together with `position` (for example the step)
 */
export function maskTokens(
  batch: PackedBatch,
  options: {
    readonly maskTokenId: number;
    readonly vocabSize: number;
    readonly probability: number;
    readonly seed: number;
    readonly position: number;
  },
): { batch: PackedBatch; labels: Int32Array } {
  const { maskTokenId, vocabSize, probability, seed, position } = options;
  const random = randomNumbers(hashSeed(seed, position));
  const inputIds = batch.inputIds.slice();
  const labels = new Int32Array(inputIds.length).fill(IGNORED_LABEL);
  const draw = (i: number) => {
    labels[i] = batch.inputIds[i] ?? 0;
    const kind = random();
    if (kind < 0.8) inputIds[i] = maskTokenId;
    else if (kind < 0.9) inputIds[i] = Math.floor(random() * vocabSize);
  };
  let drawn = 0;
  for (let i = 0; i < inputIds.length; i++) {
    if (random() >= probability) continue;
    draw(i);
    drawn++;
  }
  if (drawn === 0) draw(Math.floor(random() * inputIds.length));
  return { batch: { ...batch, inputIds }, labels };
}
