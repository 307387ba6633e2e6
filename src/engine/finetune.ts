/** A new student from what users did with the answers of the one that serves. */
import { mkdtemp } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { z } from 'zod';
import { checkInstance, checkObject } from '../arguments.js';
import type { NativeEngine } from '../binding.js';
import { bootstrapDifference } from '../evaluate/bootstrap.js';
import { mrr, ndcgAtK, recallAtK, userContributions } from '../evaluate/metrics.js';
import type { EvaluationSet } from '../evaluate/recommendation.js';
import { remove, writeError } from '../formats/files.js';
import { checkDataset, type Dataset } from '../prepare/dataset.js';
import { type Hooks, throwIfAborted } from '../prepare/hooks.js';
import { parseOptions } from '../prepare/parse-options.js';
import { loadStudent } from '../recommend/load-student.js';
import { Student } from '../recommend/student.js';
import { readPopularity, removeTopics, writePopularity } from '../recommend/student-files.js';
import { fineTuneSequenceModel } from '../student/fine-tune.js';
import type { SequenceModel } from '../student/sequence-model.js';
import type { EpochRecord } from '../teacher/fit-model.js';
import { checkSource, type FeedbackCounts, type FeedbackSource, feedbackData } from './feedback-data.js';
import { type FinetuneSettings, finetuneOptionsSchema } from './finetune-options.js';

export interface FinetuneOptions extends z.input<typeof finetuneOptionsSchema> {
  /**
   * What the student was trained on before: some of it is trained on again, so that it is not forgotten, and its test
   * cases must not get worse either. A user of both has one history, the feedback last.
   */
  readonly replay?: Dataset | undefined;
}

/** Full ranking, the items of the history left out; more is better. */
export interface FinetuneMetrics {
  readonly recallAt10: number;
  readonly ndcgAt10: number;
  readonly mrr: number;
}

export interface FinetuneComparison {
  /** Users. */
  readonly cases: number;
  readonly before: FinetuneMetrics;
  readonly after: FinetuneMetrics;
  /** ndcg@10, after − before, paired by user, with its bootstrap interval over users. */
  readonly difference: { readonly mean: number; readonly interval: readonly [number, number] };
}

/** The comparison is over the last choice of each user, which neither student was trained on. */
export interface FinetuneReport extends FinetuneComparison {
  /** Over the test cases of the earlier data, where it was given. */
  readonly earlier?: FinetuneComparison;
  readonly promoted: boolean;
  /** Why, in a sentence. */
  readonly reason: string;
  readonly counts: Readonly<FeedbackCounts>;
  readonly epochs: readonly EpochRecord[];
  readonly bestEpoch: number;
}

export interface FinetuneResult {
  /** The one to serve: a new student when `report.promoted`, else the one that was given. */
  readonly student: Student;
  readonly report: FinetuneReport;
}

/**
 * Goes on training a copy of a student on events, in the background, and compares the two on the last choice of every
 * user. The new one is promoted only if it is not worse: the bootstrap interval of the paired difference in ndcg@10 must
 * lie above −tolerance, and not below 0 as a whole. The student that was given serves on meanwhile, unchanged; items
 * added to it are learned (their offset v starts from 0), unknown ones are left out.
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION; ERR_EMPTY_DATA for too little feedback; ERR_ABORTED,
 * ERR_NOT_FINITE, ERR_NO_SPACE, ERR_IO, ERR_OUT_OF_MEMORY
 */
export async function finetune(
  engine: NativeEngine,
  student: Student,
  events: FeedbackSource,
  options: FinetuneOptions,
  hooks: Hooks,
): Promise<FinetuneResult> {
  checkInstance(student, Student, 'student');
  checkSource(events);
  checkObject(options, 'options', 'an object');
  const { replay, ...others } = options;
  if (replay !== undefined) checkDataset(replay);
  const settings = parseOptions(finetuneOptionsSchema, others, 'finetune');
  throwIfAborted(hooks.signal);
  const directory = await temporaryDirectory();
  try {
    // The copy goes through a student's files, so that it is whatever a server would load.
    await student.save(directory);
    const copy = await loadStudent(engine, directory);
    try {
      const { model, items } = copy;
      const ids = items.map(({ id }) => id);
      const data = await feedbackData(events, ids, { ...settings, replay }, hooks.signal);
      const { test, earlier, counts } = data;
      const sets = earlier === undefined || earlier.targets.length === 0 ? [test] : [test, earlier];
      const before = await ranksOf(model, sets, hooks);
      const { epochs, bestEpoch } = await fineTuneSequenceModel(engine, model, data, settings.training, {
        ...hooks,
        describe: { step: 'fineTune', name: 'student, from feedback' },
      });
      const after = await ranksOf(model, sets, hooks);
      const comparisons: FinetuneComparison[] = [];
      for (const [i, ranks] of before.entries()) comparisons.push(await compare(ranks, after[i] ?? ranks, settings));
      const [ofFeedback, ofEarlier] = comparisons as [FinetuneComparison, FinetuneComparison?];
      const report = {
        ...ofFeedback,
        ...(ofEarlier && { earlier: ofEarlier }),
        ...judge(comparisons, settings),
        counts,
        epochs,
        bestEpoch,
      };
      throwIfAborted(hooks.signal);
      if (!report.promoted) return { student, report };
      await model.writeFiles(directory);
      await addPopularity(directory, data.popularity);
      // Without item features, topics are made of the item vectors, which have changed.
      if (model.config.itemFeatureSize === 0) await removeTopics(directory);
      return { student: await loadStudent(engine, directory), report };
    } finally {
      copy.dispose();
    }
  } finally {
    await remove(directory);
  }
}

/** A student that knows how popular its items are learns that too. */
async function addPopularity(directory: string, counts: Int32Array): Promise<void> {
  const popularity = await readPopularity(directory);
  if (popularity === undefined) return;
  await writePopularity(
    directory,
    popularity.map((count, item) => count + (counts[item] ?? 0)),
  );
}

async function temporaryDirectory(): Promise<string> {
  const prefix = join(tmpdir(), 'limbeck-finetune-');
  try {
    return await mkdtemp(prefix);
  } catch (error) {
    throw writeError(error, prefix);
  }
}

async function ranksOf(model: SequenceModel, sets: readonly EvaluationSet[], hooks: Hooks): Promise<Int32Array[]> {
  const ranks: Int32Array[] = [];
  for (const set of sets) ranks.push((await model.rank(set, set, hooks)).ranks);
  return ranks;
}

async function compare(
  before: Int32Array,
  after: Int32Array,
  { confidence, training: { seed } }: FinetuneSettings,
): Promise<FinetuneComparison> {
  const ndcg = (ranks: Int32Array) => [userContributions(ranks, 'ndcg', 10)];
  return {
    cases: before.length,
    before: metricsOf(before),
    after: metricsOf(after),
    difference: await bootstrapDifference(ndcg(after), ndcg(before), { confidence, seed }),
  };
}

function metricsOf(ranks: Int32Array): FinetuneMetrics {
  return { recallAt10: recallAtK(ranks, 10), ndcgAt10: ndcgAtK(ranks, 10), mrr: mrr(ranks) };
}

function judge(
  comparisons: readonly FinetuneComparison[],
  { tolerance }: FinetuneSettings,
): Pick<FinetuneReport, 'promoted' | 'reason'> {
  const parts = comparisons.map(({ difference: { mean, interval }, cases }, i) => {
    const bounds = interval.map((bound) => bound.toFixed(4)).join(' to ');
    return `${i === 0 ? 'on the feedback' : 'on the earlier data'} ${mean.toFixed(4)} (${bounds}, ${cases} users)`;
  });
  // The second half refuses a small loss that is nevertheless sure.
  const promoted = comparisons.every(({ difference: { interval } }) => interval[0] > -tolerance && interval[1] >= 0);
  const verdict = promoted ? 'not worse' : 'may be worse';
  return { promoted, reason: `${verdict}: ndcg@10 changed ${parts.join(' and ')}; tolerance ${tolerance}` };
}
