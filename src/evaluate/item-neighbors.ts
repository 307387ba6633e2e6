/**
 * The item-kNN baseline: items score by how often they share a history with those of the user's. Letters: V items, S test
 * cases, K length of the lists.
 *
 * @see Deshpande and Karypis 2004, Item-based top-N recommendation algorithms, §4.1 (cosine of binary vectors)
 */
import type { NativeEngine } from '../binding.js';
import { LimbeckError } from '../errors.js';
import type { PackedSequences } from '../prepare/dataset.js';
import { type Hooks, throwIfAborted } from '../prepare/hooks.js';
import type { EvaluationSet } from './recommendation.js';

/** Work of one native call, so that an abort is quick: pairs of items met while rows are counted, or scores added up. */
const PAIRS_PER_CALL = 20_000_000;
const CASES_PER_CALL = 512;
/** Offsets are 32-bit. */
const MAX_PAIRS = 2 ** 31 - 1;

/** Cosines of every pair of items that share a history, by rows; ids of a row ascend. */
export interface ItemNeighbors {
  readonly numItems: number;
  readonly offsets: Int32Array; // [V + 1]
  readonly items: Int32Array;
  readonly cosines: Float32Array;
  /** Weight of an item of the history: decay^(places from its end), in (0, 1]. */
  readonly decay: number;
}

/**
 * Counts who shares histories with whom; exact, nothing is left out.
 *
 * @throws LimbeckError ERR_ABORTED, ERR_OUT_OF_MEMORY, ERR_INVALID_ARGUMENT
 */
export async function findItemNeighbors(
  engine: NativeEngine,
  train: PackedSequences,
  { numItems, decay }: { readonly numItems: number; readonly decay: number },
  hooks: Hooks = {},
): Promise<ItemNeighbors> {
  const { sequences, sequenceOffsets } = train;
  const parts: Awaited<ReturnType<NativeEngine['itemNeighbors']>>[] = [];
  for (const [begin, end] of slices(train, numItems)) {
    throwIfAborted(hooks.signal);
    parts.push(await engine.itemNeighbors({ sequences, sequenceOffsets, numItems, begin, end }));
  }
  const size = parts.reduce((sum, { items }) => sum + items.length, 0);
  if (size > MAX_PAIRS) {
    throw new LimbeckError(
      'ERR_OUT_OF_MEMORY',
      `Item-kNN keeps every pair of items that share a history: expected at most ${MAX_PAIRS}, got ${size}. ` +
        'Leave out users with very many interactions (denoise.maxUserInteractions)',
    );
  }
  const offsets = new Int32Array(numItems + 1);
  const items = new Int32Array(size);
  const cosines = new Float32Array(size);
  let row = 0;
  let filled = 0;
  for (const part of parts) {
    items.set(part.items, filled);
    cosines.set(part.cosines, filled);
    for (const offset of part.offsets.subarray(1)) offsets[++row] = filled + offset;
    filled += part.items.length;
  }
  return { numItems, offsets, items, cosines, decay };
}

/** Ranks of the targets, and the best K of each case. @throws LimbeckError ERR_ABORTED, ERR_INVALID_ARGUMENT */
export async function rankByNeighbors(
  engine: NativeEngine,
  neighbors: ItemNeighbors,
  test: EvaluationSet,
  topK: number,
  hooks: Hooks = {},
): Promise<{ ranks: Int32Array; topK: Int32Array }> {
  const { sequences, sequenceOffsets, excludeIds, excludeOffsets, targets } = test;
  const width = Math.min(topK, neighbors.numItems);
  const ranks = new Int32Array(targets.length);
  const lists = new Int32Array(targets.length * width);
  const part = (values: Int32Array, offsets: Int32Array, begin: number, end: number) => {
    const first = offsets[begin] ?? 0;
    return {
      values: values.slice(first, offsets[end]),
      offsets: offsets.slice(begin, end + 1).map((offset) => offset - first),
    };
  };
  for (let begin = 0; begin < targets.length; begin += CASES_PER_CALL) {
    throwIfAborted(hooks.signal);
    const end = Math.min(targets.length, begin + CASES_PER_CALL);
    const histories = part(sequences, sequenceOffsets, begin, end);
    const excluded = part(excludeIds, excludeOffsets, begin, end);
    const result = await engine.rankByNeighbors({
      ...neighbors,
      inputIds: histories.values,
      sequenceOffsets: histories.offsets,
      targets: targets.slice(begin, end),
      excludeIds: excluded.values,
      excludeOffsets: excluded.offsets,
      topK: width,
    });
    ranks.set(result.ranks, begin);
    lists.set(result.topK, begin * width);
  }
  return { ranks, topK: lists };
}

/**
 * The best k items after a history that does not hold them: the baseline as it would be served, for timing it.
 *
 * @param history - item indices, oldest first
 */
export function nearestItems(neighbors: ItemNeighbors, history: readonly number[], k: number): number[] {
  const { offsets, items, cosines, decay } = neighbors;
  const scores = new Map<number, number>();
  let weight = 1;
  for (const item of history.toReversed()) {
    for (let i = offsets[item] ?? 0; i < (offsets[item + 1] ?? 0); i++) {
      const other = items[i] ?? 0;
      scores.set(other, (scores.get(other) ?? 0) + weight * (cosines[i] ?? 0));
    }
    weight *= decay;
  }
  for (const item of history) scores.delete(item);
  const best = [...scores].sort(([a, x], [b, y]) => y - x || a - b);
  return best.slice(0, k).map(([item]) => item);
}

/** Ranges of items, each of about {@link PAIRS_PER_CALL} pairs. */
function slices({ sequences, sequenceOffsets }: PackedSequences, numItems: number): [number, number][] {
  const pairs = new Float64Array(numItems);
  for (let s = 0; s + 1 < sequenceOffsets.length; s++) {
    const history = sequences.subarray(sequenceOffsets[s], sequenceOffsets[s + 1]);
    for (const item of history) pairs[item] = (pairs[item] ?? 0) + history.length;
  }
  const ranges: [number, number][] = [];
  let begin = 0;
  let sum = 0;
  for (let item = 0; item < numItems; item++) {
    sum += pairs[item] ?? 0;
    if (sum < PAIRS_PER_CALL && item + 1 < numItems) continue;
    ranges.push([begin, item + 1]);
    begin = item + 1;
    sum = 0;
  }
  return ranges;
}
