/** Imported rankings as soft labels that a sequence model is trained on, beside its own data. */
import { z } from 'zod';
import type { StepRequest } from '../binding.js';
import { checkRankings, type Rankings } from '../knowledge/rankings.js';
import { parseOptions } from '../prepare/parse-options.js';
import { batchesByTokens, gatherBatch, shuffled } from '../teacher/batches.js';

export const rankingSignalSchema = z.strictObject({
  /** Weight of KL(soft labels ‖ student) in the steps on rankings. */
  weight: z.number().gt(0).max(1000).default(0.5),
  /** Without scores, the item at place p (from 0) gets probability in proportion to decay^p. */
  decay: z.number().gt(0).max(1).default(0.8),
  /** Scores are divided by it before their softmax. */
  scoreTemperature: z.number().gt(0).max(100).default(1),
  /**
   * Probability of the listed items together; the rest belongs to all other items, without an order among them. 1 says that
   * nothing outside the list is ever right, which holds for no list of candidates.
   */
  mass: z.number().gt(0).max(1).default(0.9),
});

export type RankingSignalOptions = z.input<typeof rankingSignalSchema>;

/** Soft labels after histories. Letters: R rankings. */
export interface RankingSignal {
  readonly weight: number;
  readonly histories: Int32Array; // end to end, oldest first
  readonly historyOffsets: Int32Array; // [R + 1]
  readonly items: Int32Array; // end to end, best first
  readonly logProbabilities: Float32Array; // one an item
  readonly itemOffsets: Int32Array; // [R + 1]
}

/** @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION */
export function rankingSignal(rankings: Rankings, options: RankingSignalOptions = {}): RankingSignal {
  const { weight, decay, scoreTemperature, mass } = parseOptions(rankingSignalSchema, options, 'rankings');
  checkRankings(rankings);
  const { items, itemOffsets, scores, histories, historyOffsets } = rankings;
  const logProbabilities = new Float32Array(items.length);
  for (let r = 0; r + 1 < itemOffsets.length; r++) {
    const begin = itemOffsets[r] ?? 0;
    const logits = Float64Array.from({ length: (itemOffsets[r + 1] ?? 0) - begin }, (_, place) =>
      scores === undefined ? place * Math.log(decay) : (scores[begin + place] ?? 0) / scoreTemperature,
    );
    // The first is the highest, so that no exponential overflows.
    const highest = logits[0] ?? 0;
    const sum = logits.reduce((total, logit) => total + Math.exp(logit - highest), 0);
    const shift = Math.log(mass) - Math.log(sum) - highest;
    logProbabilities.set(
      logits.map((logit) => logit + shift),
      begin,
    );
  }
  return { weight, histories, historyOffsets, items, logProbabilities, itemOffsets };
}

/** Rankings of each step of an epoch: of one list length, because the soft labels of a step are one matrix. */
export function rankingBatches(
  { historyOffsets, itemOffsets }: RankingSignal,
  batchTokens: number,
  seed: number,
  epoch: number,
): Int32Array[] {
  const byLength = new Map<number, number[]>();
  for (const r of shuffled(itemOffsets.length - 1, seed, epoch)) {
    const length = (itemOffsets[r + 1] ?? 0) - (itemOffsets[r] ?? 0);
    const group = byLength.get(length) ?? [];
    group.push(r);
    byLength.set(length, group);
  }
  return [...byLength.values()].flatMap((group) =>
    batchesByTokens(historyOffsets, batchTokens, Int32Array.from(group)),
  );
}

/** The part of a step's request that the rankings make; histories are cut to their last `maxHistory` items. */
export function rankingRequest(
  signal: RankingSignal,
  indices: Int32Array,
  maxHistory: number,
): Pick<StepRequest, 'inputIds' | 'sequenceOffsets' | 'labels' | 'losses' | 'teacher' | 'sampledNegatives'> {
  const { items, itemOffsets, logProbabilities, weight } = signal;
  const { inputIds, sequenceOffsets } = lastItems(
    gatherBatch(signal.histories, signal.historyOffsets, indices),
    maxHistory,
  );
  const numTokens = inputIds.length;
  const first = indices[0] ?? 0;
  const topK = (itemOffsets[first + 1] ?? 0) - (itemOffsets[first] ?? 0);
  // One row a token, of which only the labelled ones are read: the last of each history.
  const labels = new Int32Array(numTokens).fill(-100);
  const rows = new Int32Array(numTokens * topK);
  const values = new Float32Array(numTokens * topK);
  indices.forEach((ranking, i) => {
    const token = (sequenceOffsets[i + 1] ?? 0) - 1;
    const begin = itemOffsets[ranking] ?? 0;
    // Cross-entropy has no weight here; the label is the teacher's first, which no gate turns down.
    labels[token] = items[begin] ?? 0;
    rows.set(items.subarray(begin, begin + topK), token * topK);
    values.set(logProbabilities.subarray(begin, begin + topK), token * topK);
  });
  return {
    inputIds,
    sequenceOffsets,
    labels,
    losses: { ce: 0, kd: weight, hidden: 0, attention: 0, temperature: 1, fusion: 1, gate: 1 },
    teacher: { layerMap: [], logits: { topK, indices: rows, values, logSumExp: new Float32Array(numTokens) } },
    sampledNegatives: 0,
  };
}

/** Steps of two kinds in one order, those of `b` spread evenly among those of `a`. */
export function interleave<A, B>(a: readonly A[], b: readonly B[]): (A | B)[] {
  const mixed: (A | B)[] = [];
  let taken = 0;
  a.forEach((one, i) => {
    mixed.push(one);
    for (; taken < Math.floor(((i + 1) * b.length) / a.length); taken++) mixed.push(b[taken] as B);
  });
  return mixed;
}

function lastItems({ inputIds, sequenceOffsets }: { inputIds: Int32Array; sequenceOffsets: Int32Array }, most: number) {
  const offsets = new Int32Array(sequenceOffsets.length);
  for (let s = 0; s + 1 < offsets.length; s++) {
    const length = (sequenceOffsets[s + 1] ?? 0) - (sequenceOffsets[s] ?? 0);
    offsets[s + 1] = (offsets[s] ?? 0) + Math.min(most, length);
  }
  const ids = new Int32Array(offsets.at(-1) ?? 0);
  for (let s = 0; s + 1 < offsets.length; s++) {
    const end = sequenceOffsets[s + 1] ?? 0;
    ids.set(inputIds.subarray(end - ((offsets[s + 1] ?? 0) - (offsets[s] ?? 0)), end), offsets[s]);
  }
  return { inputIds: ids, sequenceOffsets: offsets };
}
