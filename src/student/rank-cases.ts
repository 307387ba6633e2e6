/** Full ranking of many cases, a few at a time. */
import { checkObject } from '../arguments.js';
import type { NativeRecommender, PackedBatch } from '../binding.js';
import type { EvaluationCases } from '../prepare/dataset.js';
import { checkHooks, type Hooks, throwIfAborted } from '../prepare/hooks.js';

/** Cases ranked in one native call: short enough that an abort is quick. */
const CASES_PER_CALL = 512;

export interface RankOptions {
  /** Items left out of each list, usually the seen ones. */
  readonly excludeIds: Int32Array;
  readonly excludeOffsets: Int32Array; // [S + 1]
  /** Length of the lists; 0 = ranks only. @defaultValue 0 */
  readonly topK?: number;
}

export interface Ranking {
  /** Rank of each target among the whole catalogue: 1 = best, ties count against it. */
  readonly ranks: Int32Array; // [S]
  /** Filled up with −1 when fewer items are left. */
  readonly topK: Int32Array; // [S, topK]
}

/**
 * @param maxHistory histories are cut to their last items, at most this many
 * @param statesOf the state after each history [S, d], where it is not the recommender's model that computes it
 * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_ABORTED, ERR_DISPOSED
 */
export async function rankCases(
  recommender: NativeRecommender,
  maxHistory: number,
  cases: EvaluationCases,
  options: RankOptions,
  hooks: Hooks,
  statesOf?: (histories: PackedBatch) => Promise<Float32Array>,
): Promise<Ranking> {
  checkObject(cases, 'cases', 'cases, as testCases() gives', ['sequences', 'sequenceOffsets', 'targets']);
  checkObject(options, 'options', '{ excludeIds, excludeOffsets, topK }', ['excludeIds', 'excludeOffsets']);
  checkHooks(hooks);
  const { excludeIds, excludeOffsets, topK = 0 } = options;
  const count = cases.targets.length;
  const ranks = new Int32Array(count);
  const lists = new Int32Array(count * topK);
  for (let begin = 0; begin < count; begin += CASES_PER_CALL) {
    throwIfAborted(hooks.signal);
    const end = Math.min(count, begin + CASES_PER_CALL);
    const firstExcluded = excludeOffsets[begin] ?? 0;
    const histories = lastItems(cases, begin, end, maxHistory);
    const result = await recommender.rank({
      ...histories,
      ...(statesOf && { states: await statesOf(histories) }),
      targets: cases.targets.slice(begin, end),
      excludeIds: excludeIds.slice(firstExcluded, excludeOffsets[end] ?? 0),
      excludeOffsets: excludeOffsets.slice(begin, end + 1).map((offset) => offset - firstExcluded),
      topK,
    });
    ranks.set(result.ranks, begin);
    lists.set(result.topK, begin * topK);
  }
  return { ranks, topK: lists };
}

/** Cases begin … end − 1 with the last `most` items of each history. */
function lastItems(cases: EvaluationCases, begin: number, end: number, most: number) {
  const { sequences, sequenceOffsets } = cases;
  const offsets = new Int32Array(end - begin + 1);
  for (let s = begin; s < end; s++) {
    const length = (sequenceOffsets[s + 1] ?? 0) - (sequenceOffsets[s] ?? 0);
    offsets[s - begin + 1] = (offsets[s - begin] ?? 0) + Math.min(length, most);
  }
  const inputIds = new Int32Array(offsets[end - begin] ?? 0);
  for (let s = begin; s < end; s++) {
    const length = (offsets[s - begin + 1] ?? 0) - (offsets[s - begin] ?? 0);
    const last = sequenceOffsets[s + 1] ?? 0;
    inputIds.set(sequences.subarray(last - length, last), offsets[s - begin]);
  }
  return { inputIds, sequenceOffsets: offsets };
}
