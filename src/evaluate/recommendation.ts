/** From ranks to the rows of the results table. */
import { LimbeckError } from '../errors.js';
import { createPacer } from '../formats/pacer.js';
import { type Dataset, dropRepetitions, type EvaluationCases, testCases, validationCases } from '../prepare/dataset.js';
import { bootstrapMeanOverSeeds } from './bootstrap.js';
import type { LatencySummary } from './latency.js';
import {
  type ByCutOff,
  type RankingMetricName,
  type RankingMetrics,
  rankingMetrics,
  userContributions,
} from './metrics.js';
import type { ResultRow } from './report-types.js';

/** Histories with their targets, and the items that must not be recommended in each: those of the history. */
export interface EvaluationSet extends EvaluationCases {
  readonly excludeIds: Int32Array;
  readonly excludeOffsets: Int32Array; // [S + 1]
}

/**
 * The held-out cases of a dataset, seen items masked. Cases whose target is in their history (`duplicates: 'all'`) are left
 * out, and counted: what was seen is never recommended, so no system could be right.
 *
 * @throws LimbeckError ERR_EMPTY_DATA when no other case is there; ERR_INVALID_ARGUMENT for what is no dataset
 */
export function evaluationSet(
  dataset: Dataset,
  part: 'validation' | 'test',
): EvaluationSet & { readonly repeatedTargets: number } {
  const all = part === 'test' ? testCases(dataset) : validationCases(dataset);
  const cases = withNewTargets(all);
  const repeatedTargets = all.targets.length - cases.targets.length;
  if (repeatedTargets > 0 && cases.targets.length === 0) {
    throw new LimbeckError(
      'ERR_EMPTY_DATA',
      `All ${repeatedTargets} ${part} cases have a target that is in their history, which is never recommended. ` +
        'Give denoise.duplicates: first or last, or data in which users choose new items, too.',
    );
  }
  const { sequences, sequenceOffsets } = cases;
  const excludeOffsets = new Int32Array(sequenceOffsets.length);
  const different = sequences.slice();
  let end = 0;
  for (let s = 0; s + 1 < sequenceOffsets.length; s++) {
    const history = different.subarray(sequenceOffsets[s], sequenceOffsets[s + 1]).sort();
    const count = dropRepetitions(history);
    for (let i = 0; i < count; i++) different[end + i] = history[i] as number;
    end += count;
    excludeOffsets[s + 1] = end;
  }
  const excludeIds = different.slice(0, end);
  return { ...cases, excludeIds, excludeOffsets, repeatedTargets };
}

function withNewTargets(cases: EvaluationCases): EvaluationCases {
  const { sequences, sequenceOffsets, users, targets } = cases;
  const historyOf = (s: number) => sequences.subarray(sequenceOffsets[s], sequenceOffsets[s + 1]);
  const kept = Int32Array.from(targets.keys()).filter((s) => !historyOf(s).includes(targets[s] as number));
  const keptOffsets = new Int32Array(kept.length + 1);
  const keptSequences = new Int32Array(sequences.length);
  let end = 0;
  kept.forEach((s, i) => {
    const history = historyOf(s);
    keptSequences.set(history, end);
    end += history.length;
    keptOffsets[i + 1] = end;
  });
  return {
    sequences: keptSequences.slice(0, end),
    sequenceOffsets: keptOffsets,
    users: kept.map((s) => users[s] as number),
    targets: kept.map((s) => targets[s] as number),
  };
}

/** Training interactions of each item: what popularity ranks by. */
export function trainCounts(dataset: Dataset): Int32Array {
  const counts = new Int32Array(dataset.items.length);
  dataset.split.trainLength.forEach((length, user) => {
    const start = dataset.sequenceOffsets[user] ?? 0;
    for (const item of dataset.sequences.subarray(start, start + length)) counts[item] = (counts[item] ?? 0) + 1;
  });
  return counts;
}

/** What one system of the table achieved. */
export interface SystemResult {
  readonly name: string;
  /** Training seeds; empty for a system that is not trained. */
  readonly seeds: readonly number[];
  /** Ranks of the targets, one array a seed (or one in all). */
  readonly ranks: readonly Int32Array[]; // each [S]
  /** Recommended lists of the first seed, for coverage. */
  readonly topK?: Int32Array; // [S, K]
  readonly parameters: number;
  readonly latency: LatencySummary;
}

/** Means over seeds, with 95 % bootstrap intervals over users. */
export async function resultRow(
  system: SystemResult,
  options: { readonly ks: readonly number[]; readonly numItems: number; readonly seed: number },
): Promise<ResultRow> {
  const { ks, numItems, seed } = options;
  const pause = createPacer();
  const bySeed: RankingMetrics[] = [];
  for (const [i, ranks] of system.ranks.entries()) {
    const lists = i === 0 && system.topK !== undefined ? { topK: system.topK } : {};
    bySeed.push(rankingMetrics(ranks, { ks, numItems, ...lists }));
    await pause();
  }
  const estimate = (metric: RankingMetricName, k: number) =>
    bootstrapMeanOverSeeds(
      system.ranks.map((ranks) => userContributions(ranks, metric, k)),
      { seed },
    );
  const recall = await estimate('recall', 10);
  const ndcg = await estimate('ndcg', 10);
  const f1 = await estimate('f1', 10);
  const mrr = await estimate('mrr', Number.POSITIVE_INFINITY);
  return {
    name: system.name,
    seeds: system.seeds,
    recallAt10: recall.mean,
    ndcgAt10: ndcg.mean,
    f1At10: f1.mean,
    mrr: mrr.mean,
    intervals: {
      recallAt10: recall.interval,
      ndcgAt10: ndcg.interval,
      f1At10: f1.interval,
      mrr: mrr.interval,
    },
    metrics: meanMetrics(bySeed),
    parameters: system.parameters,
    p50LatencyMs: system.latency.p50Ms,
    p95LatencyMs: system.latency.p95Ms,
    p99LatencyMs: system.latency.p99Ms,
  };
}

function meanMetrics(bySeed: readonly RankingMetrics[]): RankingMetrics {
  const [first] = bySeed;
  const mean = (value: (metrics: RankingMetrics) => number) =>
    bySeed.reduce((sum, metrics) => sum + value(metrics), 0) / bySeed.length;
  const byCutOff = (pick: (metrics: RankingMetrics) => ByCutOff): ByCutOff =>
    Object.fromEntries(
      Object.keys(first === undefined ? {} : pick(first)).map((k) => [k, mean((m) => pick(m)[Number(k)] ?? 0)]),
    );
  return {
    numUsers: first?.numUsers ?? 0,
    recallAtK: byCutOff((m) => m.recallAtK),
    precisionAtK: byCutOff((m) => m.precisionAtK),
    f1AtK: byCutOff((m) => m.f1AtK),
    hitRateAtK: byCutOff((m) => m.hitRateAtK),
    ndcgAtK: byCutOff((m) => m.ndcgAtK),
    mrrAtK: byCutOff((m) => m.mrrAtK),
    mapAtK: byCutOff((m) => m.mapAtK),
    mrr: mean((m) => m.mrr),
    accuracy: mean((m) => m.accuracy),
    ...(first?.coverageAtK === undefined ? {} : { coverageAtK: first.coverageAtK }),
  };
}
