/** From the ranks of one system to its row of the quality table. */
import { bootstrapDifference, bootstrapDifferenceOverSeeds, bootstrapMeanOverSeeds } from './bootstrap.js';
import { ndcgAtK, recallAtK, userContributions } from './metrics.js';
import { COLD_BELOW, type QualityRow, type SubsetMetric } from './quality-types.js';
import { type EvaluationSet, resultRow, type SystemResult } from './recommendation.js';

export interface QualitySystem extends SystemResult {
  readonly key: string;
  /** Weights by which scores of rare items were raised, by seed; empty where they were not. */
  readonly rareItemsWeights?: readonly number[];
  /** Training of each seed; empty for a system that is not trained. */
  readonly trainings: readonly { readonly bestEpoch: number; readonly epochSeconds: readonly number[] }[];
}

export interface QualityRowContext {
  readonly test: EvaluationSet;
  /** Training interactions of each item. */
  readonly trainCounts: Int32Array; // [V]
  /** What the others are compared with, where it ran. */
  readonly plain: SystemResult | undefined;
  readonly ks: readonly number[];
  /** Of the bootstrap. */
  readonly seed: number;
}

/** @throws LimbeckError ERR_EMPTY_DATA, ERR_INVALID_ARGUMENT when systems were ranked on different users */
export async function qualityRow(system: QualitySystem, context: QualityRowContext): Promise<QualityRow> {
  const { test, trainCounts, plain, ks, seed } = context;
  const row = await resultRow(system, { ks, numItems: trainCounts.length, seed });
  const countOf = (s: number) => trainCounts[test.targets[s] ?? 0] ?? 0;
  const cold = await recallOn(system, (s) => countOf(s) < COLD_BELOW, seed);
  const unseen = await recallOn(system, (s) => countOf(s) === 0, seed);
  const difference = plain === undefined || plain === system ? undefined : await differenceTo(plain, system, seed);
  const epochSeconds = system.trainings.flatMap((training) => training.epochSeconds);
  return {
    ...row,
    key: system.key,
    bySeed: system.ranks.map((ranks, i) => ({
      ...(system.seeds[i] === undefined ? {} : { seed: system.seeds[i] }),
      recallAt10: recallAtK(ranks, 10),
      ndcgAt10: ndcgAtK(ranks, 10),
    })),
    ...(difference && { differenceToPlain: difference }),
    ...(cold && { recallOnColdItems: cold }),
    ...(unseen && { recallOnUnseenItems: unseen }),
    ...(epochSeconds.length > 0 && {
      secondsPerEpoch: epochSeconds.reduce((sum, seconds) => sum + seconds, 0) / epochSeconds.length,
    }),
    ...(system.rareItemsWeights?.length ? { rareItemsWeights: system.rareItemsWeights } : {}),
    bestEpochs: system.trainings.map(({ bestEpoch }) => bestEpoch),
  };
}

async function differenceTo(
  plain: SystemResult,
  system: SystemResult,
  seed: number,
): Promise<QualityRow['differenceToPlain']> {
  const [ours, theirs] = [ndcgOf(system), ndcgOf(plain)];
  const { mean, interval } = await bootstrapDifference(ours, theirs, { seed });
  if (ours.length < 2 && theirs.length < 2) return { difference: mean, interval };
  const overSeeds = await bootstrapDifferenceOverSeeds(ours, theirs, { seed });
  return { difference: mean, interval, intervalOverSeeds: overSeeds.interval };
}

function ndcgOf({ ranks }: SystemResult): Float64Array[] {
  return ranks.map((one) => userContributions(one, 'ndcg', 10));
}

/** recall@10 over the test cases that `isWanted` picks by their number. */
async function recallOn(
  { ranks }: SystemResult,
  isWanted: (testCase: number) => boolean,
  seed: number,
): Promise<SubsetMetric | undefined> {
  const subsets = ranks.map((one) => one.filter((_, s) => isWanted(s)));
  const cases = subsets[0]?.length ?? 0;
  if (cases === 0) return undefined;
  const recall = subsets.map((one) => userContributions(one, 'recall', 10));
  return { cases, ...(await bootstrapMeanOverSeeds(recall, { seed })) };
}

/** What the distilled student has of its teacher, as shares; undefined where one of the two did not run. */
function shareOfTeacher(
  rows: readonly QualityRow[],
): { readonly ndcgAt10: number; readonly parameters: number; readonly latency: number } | undefined {
  const teacher = rows.find(({ key }) => key === 'teacher');
  const student = rows.find(({ key }) => key === 'distilled');
  if (teacher === undefined || student === undefined) return undefined;
  return {
    ndcgAt10: student.ndcgAt10 / teacher.ndcgAt10,
    parameters: student.parameters / teacher.parameters,
    latency: student.p50LatencyMs / teacher.p50LatencyMs,
  };
}

/** The same as a sentence. */
export function describeShare(rows: readonly QualityRow[]): string | undefined {
  const share = shareOfTeacher(rows);
  if (share === undefined) return undefined;
  const percent = (value: number) => `${Number((100 * value).toPrecision(3))} %`;
  return (
    `The distilled student has ${percent(share.ndcgAt10)} of its teacher's ndcg@10, with ${percent(share.parameters)} of ` +
    `its parameters, in ${percent(share.latency)} of its time.`
  );
}
