/** Step 8: everything that was trained, ranked over the whole catalogue and put into one report. */
import type { NativeEngine } from '../binding.js';
import { compression } from '../evaluate/language-model.js';
import { type EvaluationSet, resultRow } from '../evaluate/recommendation.js';
import type {
  Comparison,
  DistillationReport,
  LanguageModelResults,
  LossCurve,
  ResultRow,
} from '../evaluate/report-types.js';
import type { Dataset } from '../prepare/dataset.js';
import { type Hooks, throwIfAborted } from '../prepare/hooks.js';
import type { Student } from '../recommend/student.js';
import type { SequenceModel } from '../student/sequence-model.js';
import type { EpochRecord } from '../teacher/fit-model.js';
import type { LanguageModel } from '../teacher/language-model.js';
import type { DistillSettings } from './options.js';
import {
  compareSystems,
  exampleUsers,
  modelLatency,
  modelResult,
  popularityResult,
  studentLatency,
} from './results.js';
import type { Seeded, Trained, TrainedEnsemble } from './stages.js';

export interface Trainings {
  readonly dataset: Dataset;
  readonly test: EvaluationSet;
  /** Training interactions of each item. */
  readonly counts: Int32Array;
  readonly student: Student;
  readonly teacher: Trained<LanguageModel>;
  readonly sequenceTeacher: TrainedEnsemble;
  readonly plain: readonly Seeded[];
  readonly distilled: readonly Seeded[];
  readonly languageStudent: (Trained<LanguageModel> & { readonly results: LanguageModelResults }) | undefined;
  readonly hooks: Hooks;
}

/** The report but for the seconds of the steps, which are not over yet. */
export async function buildReport(
  engine: NativeEngine,
  settings: DistillSettings,
  trainings: Trainings,
): Promise<Omit<DistillationReport, 'steps'>> {
  const { dataset, test, counts, student, teacher, sequenceTeacher, plain, distilled, languageStudent, hooks } =
    trainings;
  const seed = settings.seeds[0] ?? 0;
  const recommenderTeacher = { model: sequenceTeacher.model, seed: settings.sequenceTeacher.training.seed };
  const timed = (models: readonly SequenceModel[]) => modelLatency(engine, models, dataset, test);
  const first = (models: readonly Seeded[]) => models[0]?.model ?? student.model;
  const popularity = await popularityResult(counts, test);
  const withoutTeacher = await modelResult(
    'student without distillation',
    plain,
    test,
    await timed([first(plain)]),
    hooks,
  );
  const withTeacher = await modelResult(
    'distilled student',
    distilled,
    test,
    await studentLatency([student], test),
    hooks,
  );
  const teacherResult = await modelResult(
    'teacher',
    [recommenderTeacher],
    test,
    await timed(sequenceTeacher.model.members),
    hooks,
  );
  const systems = [popularity, withoutTeacher, teacherResult, withTeacher];
  const rows: ResultRow[] = [];
  for (const system of systems) {
    throwIfAborted(hooks.signal);
    rows.push(await resultRow(system, { ks: settings.evaluation.ks, numItems: counts.length, seed }));
  }
  const comparison: Comparison[] = [];
  for (const other of [withoutTeacher, teacherResult, popularity]) {
    comparison.push(await compareSystems(withTeacher, other, seed));
  }
  return {
    title: settings.title,
    createdAt: new Date().toISOString(),
    rows,
    comparison,
    ...(languageStudent ? { lm: languageStudent.results } : {}),
    compressionRatio: compression(teacher.model.numParameters + teacherResult.parameters, student.numParameters),
    curves: [
      ...curves('language model teacher', teacher.history),
      ...curves('sequence teacher', sequenceTeacher.histories[0] ?? [], 'ndcg@10'),
      ...curves('student without distillation', plain[0]?.history ?? [], 'ndcg@10'),
      ...curves('distilled student', distilled[0]?.history ?? [], 'ndcg@10'),
      ...curves('language student', languageStudent?.history ?? []),
    ],
    latency: withTeacher.latency,
    preparation: { ...dataset.report },
    examples: exampleUsers(dataset, student, test, settings.evaluation.examples),
    settings,
  };
}

/** Training and validation by epoch; a sequence model is validated by ranking, whose records hold −ndcg@10. */
export function curves(name: string, history: readonly EpochRecord[], ranking?: 'ndcg@10'): LossCurve[] {
  if (history.length === 0) return [];
  const training = history.map(({ epoch, trainLoss }) => ({ x: epoch, y: trainLoss }));
  const validation = history.map(({ epoch, validationLoss }) => ({
    x: epoch,
    y: ranking ? -validationLoss : validationLoss,
  }));
  return [
    { name: `${name}: training`, xLabel: 'epoch', points: training },
    { name: ranking ? `${name}, validation ${ranking}` : `${name}: validation`, xLabel: 'epoch', points: validation },
  ];
}
