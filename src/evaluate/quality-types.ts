/** What the quality bench reports; plain data that survives JSON. */
import type { Interval, LossCurve, ResultRow } from './report-types.js';

/** A metric over some of the users, with its interval over them. */
export interface SubsetMetric {
  readonly cases: number;
  readonly mean: number;
  readonly interval: Interval;
}

/** One system of the table. */
export interface QualityRow extends ResultRow {
  /** What `--rows` calls it. */
  readonly key: string;
  /** Each seed by itself; one without a seed for a system that is not trained. */
  readonly bySeed: readonly { readonly seed?: number; readonly recallAt10: number; readonly ndcgAt10: number }[];
  /** ndcg@10 minus the plain student's: paired by user, each averaged over its seeds. */
  readonly differenceToPlain?: {
    readonly difference: number;
    /** Over users. */
    readonly interval: Interval;
    /** Over users and training seeds; missing where neither system has several. */
    readonly intervalOverSeeds?: Interval;
  };
  /** recall@10 where the next item has fewer than five training interactions; missing when no test case has. */
  readonly recallOnColdItems?: SubsetMetric;
  /** recall@10 where the next item was never seen in training. */
  readonly recallOnUnseenItems?: SubsetMetric;
  /** Mean over the epochs of all seeds, validation included; missing for a system that is not trained. */
  readonly secondsPerEpoch?: number;
  /** Weights by which scores of rare items were raised, as validation bore them, by seed. */
  readonly rareItemsWeights?: readonly number[];
  /** The epoch that was best on validation, by seed. */
  readonly bestEpochs: readonly number[];
}

/** A row that others published on the same data under the same protocol. */
export interface PublishedRow {
  readonly name: string;
  /** Where it stands. */
  readonly source: string;
  readonly recallAt10: number;
  readonly ndcgAt10: number;
}

/** What ran it: enough to run it again. */
export interface BenchMachine {
  readonly processor: string;
  /** Kernels in use, and what the processor has. */
  readonly isa: string;
  readonly features: readonly string[];
  readonly threads: number;
  readonly precision: 'float32' | 'bfloat16';
  /** Where models were run and trained, unless on the processor. */
  readonly gpu?: string;
  readonly node: string;
  readonly platform: string;
}

export interface QualityReport {
  readonly title: string;
  /** ISO 8601. */
  readonly createdAt: string;
  /** Version of this package, and its commit where it runs from a checkout. */
  readonly version?: string;
  readonly commit?: string;
  readonly machine: BenchMachine;
  readonly seeds: readonly number[];
  readonly data: {
    readonly users: number;
    readonly items: number;
    readonly interactions: number;
    readonly testCases: number;
    /** Left out of the test cases: the target is in the history, which is never recommended. Missing when none is. */
    readonly repeatedTargets?: number;
  };
  readonly rows: readonly QualityRow[];
  readonly published: readonly PublishedRow[];
  readonly curves: readonly LossCurve[];
  /** Serialisable as JSON. */
  readonly settings: unknown;
}

/** Items with fewer training interactions are cold. */
export const COLD_BELOW = 5;
