import type { LatencySummary } from './latency.js';
import type { RankingMetrics } from './metrics.js';

/** Lower and upper bound of a 95 % interval. */
export type Interval = readonly [number, number];

/** One system of the results table; values are means over `seeds`. */
export interface ResultRow {
  /** `popularity`, `student without distillation`, `teacher`, `distilled student`. */
  readonly name: string;
  /** Training seeds; empty for a system that is not trained. */
  readonly seeds: readonly number[];
  readonly recallAt10: number;
  readonly ndcgAt10: number;
  readonly f1At10: number;
  /** No cut-off. */
  readonly mrr: number;
  /** 95 % bootstrap intervals over users. */
  readonly intervals: {
    readonly recallAt10: Interval;
    readonly ndcgAt10: Interval;
    readonly f1At10: Interval;
    readonly mrr: Interval;
  };
  /** The same and further metrics at every cut-off. */
  readonly metrics: RankingMetrics;
  readonly parameters: number;
  /** Latency of one recommendation; 0 or NaN = not measured. */
  readonly p50LatencyMs: number;
  readonly p95LatencyMs: number;
  readonly p99LatencyMs: number;
}

/**
 * A loss by training step or epoch. Curves whose names agree before `: ` and whose x axes agree share a chart
 * (`student: training` beside `student: validation`); a name without `: ` gets a chart of its own.
 */
export interface LossCurve {
  readonly name: string;
  readonly xLabel: string;
  readonly points: readonly { readonly x: number; readonly y: number }[];
}

export interface StepSummary {
  readonly step: 'prepare' | 'teacher' | 'extract' | 'initialise' | 'transfer' | 'fineTune' | 'recommend' | 'evaluate';
  readonly seconds: number;
  /** Key numbers; camelCase keys are printed as words. */
  readonly facts: Readonly<Record<string, string | number>>;
}

/** An item as a person knows it. */
export interface ReportItem {
  readonly id: string;
  readonly text: string;
}

export interface ExampleUser {
  readonly user: string;
  /** Oldest first. */
  readonly history: readonly ReportItem[];
  /** Best first. */
  readonly recommendations: readonly (ReportItem & { readonly score: number })[];
  /** The held-out item that came next. */
  readonly next?: ReportItem;
}

/** Distilled minus plain on the same users. */
export interface Comparison {
  readonly name: string;
  readonly metric: 'ndcgAt10';
  readonly difference: number;
  /** 95 % bootstrap interval of the paired difference. */
  readonly interval: Interval;
}

/** Results of distilling a language model into a smaller language model. */
export interface LanguageModelResults {
  /** Mean cross-entropy a token, in nats. */
  readonly testLossByEpoch: readonly number[];
  readonly perplexityByEpoch: readonly number[];
  readonly teacherTestLoss: number;
  readonly teacherParameters: number;
  readonly studentParameters: number;
}

/** All that the report page shows; plain data that survives JSON. */
export interface DistillationReport {
  readonly title: string;
  /** ISO 8601. */
  readonly createdAt: string;
  /** In printing order, the distilled student last. Empty when only a language model was distilled. */
  readonly rows: readonly ResultRow[];
  readonly comparison: readonly Comparison[];
  readonly lm?: LanguageModelResults;
  /** Teacher parameters / student parameters. */
  readonly compressionRatio: number;
  readonly curves: readonly LossCurve[];
  readonly latency: LatencySummary;
  /** Counts of what was read, dropped and kept; nested records are printed as nested tables. */
  readonly preparation: Readonly<Record<string, unknown>>;
  readonly steps: readonly StepSummary[];
  readonly examples: readonly ExampleUser[];
  /** Serialisable as JSON. */
  readonly settings: unknown;
}
