import type { PackedBatch } from '../binding.js';

/** A whole number in [0, 2^31) that depends on every argument alone: seeds of shuffles, masks and dropout. */
export function hashSeed(...values: readonly number[]): number {
  let hash = 0x9e3779b9;
  for (const value of values) {
    hash = Math.imul(hash ^ (value | 0), 0x85ebca6b);
    hash = Math.imul(hash ^ (hash >>> 13) ^ Math.floor(value / 2 ** 32), 0xc2b2ae35);
    hash ^= hash >>> 16;
  }
  return hash >>> 1;
}

/** Small seeded generator (mulberry32): uniform in [0, 1). */
export function randomNumbers(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** `count` of the numbers 0 … total − 1, evenly spread, ascending. */
export function spreadPlaces(total: number, count: number): number[] {
  return Array.from({ length: count }, (_, i) => Math.floor(((i + 0.5) * total) / count));
}

/** A permutation of 0 … count − 1 that (seed, epoch) decides (Fisher–Yates). */
export function shuffled(count: number, seed: number, epoch: number): Int32Array {
  const order = Int32Array.from({ length: count }, (_, i) => i);
  const random = randomNumbers(hashSeed(seed, epoch));
  for (let i = count - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    const value = order[i] ?? 0;
    order[i] = order[j] ?? 0;
    order[j] = value;
  }
  return order;
}

/**
 * Cuts sequences, in the order given, into batches of at most `maxTokens` tokens; a longer sequence gets a batch of its
 * own.
 *
 * @param sequenceOffsets [S + 1]
 * @param order sequence indices
 * @returns sequence indices of each batch
 */
export function batchesByTokens(
  sequenceOffsets: Int32Array | Float64Array,
  maxTokens: number,
  order: Int32Array,
): Int32Array[] {
  const batches: Int32Array[] = [];
  let begin = 0;
  let tokens = 0;
  order.forEach((sequence, i) => {
    const length = (sequenceOffsets[sequence + 1] ?? 0) - (sequenceOffsets[sequence] ?? 0);
    if (i > begin && tokens + length > maxTokens) {
      batches.push(order.subarray(begin, i));
      begin = i;
      tokens = 0;
    }
    tokens += length;
  });
  if (begin < order.length) batches.push(order.subarray(begin));
  return batches;
}

/** Tokens of the sequences of one batch, end to end. */
export function gatherBatch(sequences: Int32Array, sequenceOffsets: Int32Array, indices: Int32Array): PackedBatch {
  const batchOffsets = new Int32Array(indices.length + 1);
  indices.forEach((sequence, i) => {
    const length = (sequenceOffsets[sequence + 1] ?? 0) - (sequenceOffsets[sequence] ?? 0);
    batchOffsets[i + 1] = (batchOffsets[i] ?? 0) + length;
  });
  const inputIds = new Int32Array(batchOffsets[indices.length] ?? 0);
  indices.forEach((sequence, i) => {
    inputIds.set(sequences.subarray(sequenceOffsets[sequence], sequenceOffsets[sequence + 1]), batchOffsets[i]);
  });
  return { inputIds, sequenceOffsets: batchOffsets };
}

/** Rows of a matrix [tokens of all sequences, columns] that belong to the tokens of one batch. */
export function gatherRows(
  rows: Float32Array,
  columns: number,
  sequenceOffsets: Int32Array,
  indices: Int32Array,
): Float32Array {
  let tokens = 0;
  for (const sequence of indices) tokens += (sequenceOffsets[sequence + 1] ?? 0) - (sequenceOffsets[sequence] ?? 0);
  const gathered = new Float32Array(tokens * columns);
  let offset = 0;
  for (const sequence of indices) {
    const part = rows.subarray(
      (sequenceOffsets[sequence] ?? 0) * columns,
      (sequenceOffsets[sequence + 1] ?? 0) * columns,
    );
    gathered.set(part, offset);
    offset += part.length;
  }
  return gathered;
}
