import type { PackedBatch } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { createPacer } from '../formats/pacer.js';
import type { Tokenizer } from '../formats/tokenizer.js';
import { encodeTexts } from '../formats/tokenizer-workers.js';
import { hashSeed, randomNumbers } from './batches.js';

export const IGNORED_LABEL = -100;

/** Texts as token ids, laid end to end. */
export interface TokenizedCorpus {
  readonly ids: Int32Array; // [N]
  readonly offsets: Int32Array; // [S + 1]
}

/**
 * Tokenises texts; one longer than maxLength is cut into pieces of that length. Pieces shorter than minLength are left
 * out: nothing can be predicted in them.
 *
 * @param options.minLength 2 for causal models, where the first token is not predicted. @defaultValue 2
 * @param options.addEos puts the tokenizer's end-of-text token after each text, when it has one
 * @throws LimbeckError ERR_EMPTY_DATA when no piece is left
 */
export async function tokenizeCorpus(
  tokenizer: Tokenizer,
  texts: readonly string[],
  {
    maxLength,
    minLength = 2,
    addEos,
  }: { readonly maxLength: number; readonly minLength?: number; readonly addEos: boolean },
): Promise<TokenizedCorpus> {
  const pause = createPacer();
  const pieces: number[][] = [];
  const tokenized = await encodeTexts(tokenizer, texts);
  for (let text = 0; text < texts.length; text++) {
    await pause();
    const ids = Array.from(tokenized.ids.subarray(tokenized.offsets[text], tokenized.offsets[text + 1]));
    if (addEos && tokenizer.eosTokenId !== undefined && ids.at(-1) !== tokenizer.eosTokenId) {
      ids.push(tokenizer.eosTokenId);
    }
    for (let begin = 0; begin < ids.length; begin += maxLength) {
      const piece = ids.slice(begin, begin + maxLength);
      if (piece.length >= minLength) pieces.push(piece);
    }
  }
  if (pieces.length === 0) {
    throw new LimbeckError('ERR_EMPTY_DATA', `Expected at least one text of ${minLength} or more tokens, got none`);
  }
  const offsets = new Int32Array(pieces.length + 1);
  pieces.forEach((piece, i) => {
    offsets[i + 1] = (offsets[i] ?? 0) + piece.length;
  });
  const ids = new Int32Array(offsets[pieces.length] ?? 0);
  pieces.forEach((piece, i) => {
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
