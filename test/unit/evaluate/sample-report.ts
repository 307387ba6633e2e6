import { summarizeLatency } from '../../../src/evaluate/latency.js';
import { rankingMetrics } from '../../../src/evaluate/metrics.js';
import type { DistillationReport, ResultRow } from '../../../src/evaluate/report-types.js';

const numItems = 12_101;

/** Made-up ranks, spread evenly on a logarithmic scale that starts at `best`. */
function row(name: string, best: number, parameters: number, p50LatencyMs: number): ResultRow {
  const ranks = Int32Array.from({ length: 4333 }, (_, i) => Math.ceil(Math.min(numItems, best * 1.0021 ** i)));
  const metrics = rankingMetrics(ranks, { ks: [1, 5, 10, 20], numItems });
  const around = (value = 0) => [value * 0.92, value * 1.08] as const;
  return {
    name,
    seeds: name === 'popularity' ? [] : [1, 2, 3],
    recallAt10: metrics.recallAtK[10] ?? 0,
    ndcgAt10: metrics.ndcgAtK[10] ?? 0,
    f1At10: metrics.f1AtK[10] ?? 0,
    mrr: metrics.mrr,
    intervals: {
      recallAt10: around(metrics.recallAtK[10]),
      ndcgAt10: around(metrics.ndcgAtK[10]),
      f1At10: around(metrics.f1AtK[10]),
      mrr: around(metrics.mrr),
    },
    metrics,
    parameters,
    p50LatencyMs,
    p95LatencyMs: p50LatencyMs * 1.4,
    p99LatencyMs: p50LatencyMs * 1.9,
  };
}

function curve(name: string, xLabel: string, length: number, from: number, to: number) {
  const value = (x: number) => to + (from - to) * Math.exp((-5 * x) / length) + 0.04 * Math.sin(x * 12.9898);
  return { name, xLabel, points: Array.from({ length }, (_, i) => ({ x: i + 1, y: value(i + 1) })) };
}

/** A report with made-up values of realistic size. */
export const sampleReport: DistillationReport = {
  title: 'Beauty: GPT-2 distilled into a recommender',
  createdAt: '2026-03-14T09:26:53.000Z',
  rows: [
    row('popularity', 6, 0, 0),
    row('student without distillation', 4.1, 2_130_000, 0.31),
    row('teacher', 3.2, 124_400_000, 38.4),
    row('distilled student', 3.4, 2_130_000, 0.312),
  ],
  comparison: [{ name: 'distilled minus plain', metric: 'ndcgAt10', difference: 0.0058, interval: [0.0021, 0.0094] }],
  compressionRatio: 58.4,
  curves: [
    curve('teacher: training', 'step', 2000, 9.2, 3.9),
    curve('student: cross-entropy', 'epoch', 20, 9.1, 6.2),
    curve('student: soft labels', 'epoch', 20, 5.1, 2.2),
    curve('student: validation', 'epoch', 20, 9.0, 6.9),
  ],
  latency: summarizeLatency(
    Float64Array.from({ length: 10_000 }, (_, i) => 0.25 + 0.1 * Math.abs(Math.tan((i / 10_000 - 0.5) * 3.0)) * 0.6),
  ),
  preparation: {
    rowsRead: 198_502,
    dropped: { duplicates: 12, botUsers: 7, belowFiveInteractions: 1_204, withoutText: 31 },
    kept: { users: 22_363, items: numItems, interactions: 198_502 },
    medianHistory: 6,
  },
  steps: [
    { step: 'prepare', seconds: 1.42, facts: { users: 22_363, items: numItems, interactions: 198_502 } },
    { step: 'teacher', seconds: 0.61, facts: { model: 'gpt2', parameters: 124_439_808 } },
    {
      step: 'extract',
      seconds: 74.2,
      facts: { layers: '6, 12', fusion: 'mean', width: '768 to 128', explainedVariance: 0.8134 },
    },
    { step: 'initialise', seconds: 0.38, facts: { layerMap: '1←6, 2←12', width: 'pca' } },
    { step: 'transfer', seconds: 3.3, facts: { alpha: 0.1, rounds: 8 } },
    { step: 'fineTune', seconds: 412, facts: { epochs: 20, bestEpoch: 14, validationNdcg: 0.0715 } },
    { step: 'recommend', seconds: 0.9, facts: { calls: 10_000 } },
    { step: 'evaluate', seconds: 2.27, facts: { testUsers: 4_333, resamples: 1_000 } },
  ],
  examples: Array.from({ length: 10 }, (_, user) => ({
    user: `user ${1000 + user}`,
    history: Array.from({ length: 4 + user * 2 }, (_, i) => ({
      id: `B00${4100 + i}`,
      text: `Rose water face toner no. ${i + 1}`,
    })),
    recommendations: Array.from({ length: 5 }, (_, i) => ({
      id: `B00${4200 + i}`,
      text:
        [
          'Vitamin C serum, 30 ml',
          'Argan oil conditioner for dry hair',
          'Matte lip crayon, brick',
          'שמן ארגן',
          'Clay mask',
        ][i] ?? '',
      score: 9.12 - i * 0.41,
    })),
    next: {
      id: user % 3 === 0 ? 'B004201' : 'B009999',
      text: user % 3 === 0 ? 'Argan oil conditioner for dry hair' : 'Nail file set',
    },
  })),
  settings: { seed: 7, student: { hiddenSize: 128, numHiddenLayers: 2 }, losses: { ce: 1, kd: 0.5, temperature: 2 } },
};
