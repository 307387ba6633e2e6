import type { LatencySummary } from '../../../src/evaluate/latency.js';
import type { QualitySystem } from '../../../src/evaluate/quality-row.js';
import type { QualityReport, QualityRow } from '../../../src/evaluate/quality-types.js';
import type { EvaluationSet } from '../../../src/evaluate/recommendation.js';

export const latency: LatencySummary = {
  p50Ms: 0.1,
  p95Ms: 0.2,
  p99Ms: 0.3,
  meanMs: 0.12,
  histogram: { edgesMs: [0.1, 1], counts: [1] },
};

/** Test cases of which only the targets matter here. */
export function casesOf(targets: readonly number[]): EvaluationSet {
  const offsets = new Int32Array(targets.length + 1);
  return {
    sequences: new Int32Array(0),
    sequenceOffsets: offsets,
    users: Int32Array.from(targets.keys()),
    targets: Int32Array.from(targets),
    excludeIds: new Int32Array(0),
    excludeOffsets: offsets,
  };
}

export function systemOf(key: string, ranks: readonly (readonly number[])[], seconds: number[] = []): QualitySystem {
  return {
    key,
    name: key,
    seeds: ranks.map((_, i) => i),
    ranks: ranks.map((one) => Int32Array.from(one)),
    parameters: 100,
    latency,
    trainings: seconds.length === 0 ? [] : [{ bestEpoch: 2, epochSeconds: seconds }],
  };
}

function row(key: string, name: string, ndcgAt10: number, extra: Partial<QualityRow> = {}): QualityRow {
  const around = (value: number) => [value * 0.9, value * 1.1] as const;
  return {
    key,
    name,
    seeds: key === 'popularity' ? [] : [0, 1, 2],
    recallAt10: 2 * ndcgAt10,
    ndcgAt10,
    f1At10: ndcgAt10 / 3,
    mrr: ndcgAt10 * 0.8,
    intervals: {
      recallAt10: around(2 * ndcgAt10),
      ndcgAt10: around(ndcgAt10),
      f1At10: around(ndcgAt10 / 3),
      mrr: around(ndcgAt10 * 0.8),
    },
    metrics: {
      numUsers: 22_363,
      recallAtK: {},
      precisionAtK: {},
      f1AtK: {},
      hitRateAtK: {},
      ndcgAtK: {},
      mrrAtK: {},
      mapAtK: {},
      mrr: ndcgAt10 * 0.8,
      accuracy: 0.01,
    },
    parameters: 1_950_000,
    p50LatencyMs: 0.25,
    p95LatencyMs: 0.3,
    p99LatencyMs: 0.4,
    bySeed: [],
    bestEpochs: [12],
    ...extra,
  };
}

const cold = (mean: number) => ({ cases: 3300, mean, interval: [mean * 0.7, mean * 1.3] as const });

/** Made-up values of realistic size. */
export const sampleQuality: QualityReport = {
  title: 'Beauty <5-core>',
  createdAt: '2026-03-14T09:26:53.000Z',
  version: '0.1.0',
  commit: '0123456789abcdef0123456789abcdef01234567',
  machine: {
    processor: 'A processor',
    isa: 'avx512',
    features: ['avx2', 'avx512f'],
    threads: 2,
    precision: 'float32',
    node: 'v24.0.0',
    platform: 'linux-x64',
  },
  seeds: [0, 1, 2],
  data: { users: 22_363, items: 12_101, interactions: 198_502, testCases: 22_363 },
  rows: [
    row('popularity', 'popularity', 0.0059, { recallOnColdItems: cold(0), recallOnUnseenItems: cold(0) }),
    row('plain', 'plain student', 0.0514, { secondsPerEpoch: 7.1, recallOnColdItems: cold(0.003) }),
    row('distilled', 'distilled student', 0.0631, {
      secondsPerEpoch: 9.4,
      recallOnColdItems: cold(0.02),
      differenceToPlain: { difference: 0.0117, interval: [0.0094, 0.014] },
    }),
  ],
  published: [{ name: 'SASRec & others', source: 'a paper, table 2', recallAt10: 0.0921, ndcgAt10: 0.0531 }],
  curves: [
    {
      name: 'plain student, validation ndcg@10',
      xLabel: 'epoch',
      points: [
        { x: 1, y: 0.02 },
        { x: 2, y: 0.05 },
      ],
    },
  ],
  settings: { note: '</pre><script>' },
};
