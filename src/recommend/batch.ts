import { LimbeckError } from '../errors.js';

import type { RankingOptions, SelectionOptions } from './request.js';

/** Many histories in typed arrays, answered with the same options. Items are indices in `student.items`. */
export interface BatchRequest extends SelectionOptions, Omit<RankingOptions, 'seed'> {
  /** Histories end to end, each oldest first. */
  readonly histories: Int32Array;
  /** Where each history begins, and where the last one ends. */
  readonly offsets: Int32Array; // [S + 1], from 0 to histories.length, ascending
  /** Seed of the first history; that of each next one is one higher. */
  readonly seed?: number | undefined;
  /** Where to write the answer. @defaultValue new arrays */
  readonly itemIndices?: Int32Array | undefined; // [≥ S·k]
  readonly scores?: Float32Array | undefined; // [≥ S·k]
}

export interface BatchRecommendation {
  /** Best first; −1 where no more items may be recommended. */
  readonly itemIndices: Int32Array; // [S, k]
  /** −∞ where there is no item. */
  readonly scores: Float32Array; // [S, k]
}

/** Arrays that the answer fits into. @throws LimbeckError ERR_INVALID_ARGUMENT */
export function batchAnswer({ offsets, itemIndices, scores }: BatchRequest, k: number): BatchRecommendation {
  const size = Math.max(0, offsets.length - 1) * k;
  const answer = { itemIndices: itemIndices ?? new Int32Array(size), scores: scores ?? new Float32Array(size) };
  if (answer.itemIndices instanceof Int32Array && answer.scores instanceof Float32Array) return answer;
  throw new LimbeckError('ERR_INVALID_ARGUMENT', 'itemIndices, scores: expected an Int32Array and a Float32Array');
}

/** @throws LimbeckError ERR_INVALID_ARGUMENT */
export function checkBatch({ histories, offsets }: BatchRequest): void {
  if (histories instanceof Int32Array && offsets instanceof Int32Array) return;
  throw new LimbeckError('ERR_INVALID_ARGUMENT', 'histories, offsets: expected two Int32Arrays');
}

/**
 * Slots of a batch's items.
 *
 * @param liveSlots of the items of the catalogue
 * @throws LimbeckError ERR_INVALID_ARGUMENT for an index outside the catalogue
 */
export function slotsOf(histories: Int32Array, liveSlots: Int32Array): Int32Array {
  return histories.map((index) => {
    const slot = liveSlots[index];
    if (slot !== undefined) return slot;
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `histories has item ${index}, outside the catalogue of ${liveSlots.length}.`,
    );
  });
}

/** Values of `table` at each index; indices outside it stay as they are. */
export function mapIndices(indices: Int32Array, table: Int32Array): Int32Array {
  return indices.map((index) => table[index] ?? index);
}
