import { join } from 'node:path';
import type { NativeEngine } from '../binding.js';
import { type EvaluationSet, evaluationSet, trainCounts } from '../evaluate/recommendation.js';
import { renderReport } from '../evaluate/report.js';
import type { DistillationReport } from '../evaluate/report-types.js';
import { writeFileAtomic } from '../formats/files.js';
import type { TextEncoderSpec } from '../knowledge/fuse.js';
import { TextEncoder } from '../knowledge/text-encoder.js';
import { type Dataset, trainSequences } from '../prepare/dataset.js';
import { type Hooks, throwIfAborted } from '../prepare/hooks.js';
import { parseOptions } from '../prepare/parse-options.js';
import { prepareDataset } from '../prepare/prepare.js';
import { Student } from '../recommend/student.js';
import { SequenceModel } from '../student/sequence-model.js';
import { cacheSequenceTeacher } from '../student/teacher-cache.js';
import { LanguageModel } from '../teacher/language-model.js';
import { saveEvaluation } from './evaluation-file.js';
import { checkStudent, type DistillOptions, type DistillSettings, distillOptionsSchema } from './options.js';
import { buildReport } from './report.js';
import {
  extractItems,
  importedRankings,
  makeCorpus,
  obtainTeacher,
  type Seeded,
  trainLanguageStudent,
  trainSequenceTeacher,
  trainStudent,
} from './stages.js';
import { StepLog } from './step-log.js';
import { checkOutput, conditionsOf, contentOf, Workspace } from './workspace.js';

export interface DistillResult {
  /** The distilled student of the seed that was best on validation, ready to serve. */
  readonly student: Student;
  /** The language model that it was distilled from. */
  readonly teacher: LanguageModel;
  readonly report: DistillationReport;
  /** The report as a page. */
  readonly reportPath: string;
  /** The output directory. */
  readonly directory: string;
}

/** The eight steps, in order. What a killed run had finished is not done again. */
export async function distill(engine: NativeEngine, options: DistillOptions, hooks: Hooks): Promise<DistillResult> {
  const settings = parseOptions(distillOptionsSchema, options, 'distill');
  const { output, seeds } = settings;
  checkStudent(settings.sequenceTeacher, settings.student, 'distill.student');
  await checkOutput(output);
  const log = new StepLog(hooks);
  const models = new Disposables();
  let workspace: Workspace | undefined;
  try {
    // 1. Prepare.
    const dataset = await log.run('prepare', 'read, filter, split', () =>
      prepareDataset(settings.data, hooks.signal ? { signal: hooks.signal } : {}),
    );
    const counts = trainCounts(dataset);
    const data = {
      train: trainSequences(dataset),
      validation: evaluationSet(dataset, 'validation'),
      numItems: dataset.items.length,
      counts,
    };
    const test = evaluationSet(dataset, 'test');
    const rankings = await importedRankings(settings, dataset);
    workspace = await Workspace.open(output, {
      settings,
      ...conditionsOf(engine, dataset),
      items: dataset.items,
      ...(rankings && { rankings: contentOf(rankings) }),
    });
    const context = { engine, settings, workspace, hooks };
    const corpus = await makeCorpus(dataset, settings.corpus);
    const { users, items, interactions } = dataset.report.final;
    const { repeatedTargets } = test;
    const repeatedValidationTargets = data.validation.repeatedTargets;
    log.note('prepare', {
      users,
      items,
      interactions,
      testCases: test.targets.length,
      ...(repeatedTargets > 0 && { repeatedTargets }),
      ...(repeatedValidationTargets > 0 && { repeatedValidationTargets }),
    });

    // 2. Teacher: a language model that knows the items' texts.
    const teacher = models.keep(await log.run('teacher', undefined, () => obtainTeacher(context, dataset, corpus)));
    log.note('teacher', { family: teacher.model.family, parameters: teacher.model.numParameters });

    // 3. Extract: item vectors; with them the teacher learns to recommend, and its answers are kept.
    const { features, encoder } = await log.run('extract', undefined, () =>
      extractItems(context, teacher.model, dataset),
    );
    const sequenceTeacher = models.keep(
      await log.run('teacher', undefined, () => trainSequenceTeacher(context, data, features)),
    );
    const cached = await log.run('extract', undefined, () =>
      cacheSequenceTeacher(sequenceTeacher.model, data.train, { layers: cachedLayers(settings) }, hooks),
    );
    log.note('extract', { layersFused: encoder.layers.length, trainingTokens: cached.windows.inputIds.length });

    // 4. Initialise, 5. transfer, 6. fine-tune: for every seed, and once more without a teacher to compare with.
    const plain: Seeded[] = [];
    const distilled: Seeded[] = [];
    for (const seed of seeds) {
      plain.push(models.keep(await trainStudent(context, log, data, seed)));
      distilled.push(
        models.keep(await trainStudent(context, log, data, seed, { features, teacher: cached, rankings })),
      );
    }
    const languageStudent = await log.run('fineTune', undefined, () =>
      trainLanguageStudent(context, teacher.model, corpus),
    );
    if (languageStudent) models.keep(languageStudent);

    // 7. Recommend: the student as a server would have it.
    const best = bestOnValidation(distilled);
    const student = await log.run('recommend', 'assemble the student', () =>
      assembleStudent(engine, context.workspace, settings, dataset, best, encoder),
    );
    models.add(student);

    // 8. Evaluate.
    const results = await log.run('evaluate', 'full ranking', () =>
      buildReport(engine, settings, {
        dataset,
        test,
        counts,
        student,
        teacher,
        sequenceTeacher,
        plain,
        distilled,
        languageStudent,
        hooks,
      }),
    );

    // Only now do the results take the place of earlier ones.
    throwIfAborted(hooks.signal);
    const report = { ...results, steps: log.summaries() };
    await student.save(join(output, 'student'));
    await teacher.model.save(join(output, 'teacher'));
    await sequenceTeacher.model.save(join(output, 'sequence-teacher'));
    await languageStudent?.model.save(join(output, 'language-student'));
    await workspace.publish('knowledge');
    const reportPath = await writeResults(settings, { test, counts, report });
    await workspace.finish();
    models.release(student, teacher.model);
    return { student, teacher: teacher.model, report, reportPath, directory: output };
  } finally {
    models.dispose();
    await workspace?.close();
  }
}

/** Layers of the sequence teacher that the hidden loss compares with. */
function cachedLayers({ student, sequenceTeacher }: DistillSettings): number[] {
  const named = student.training.layerMap?.map(([, layer]) => layer);
  return named ?? Array.from({ length: sequenceTeacher.architecture.numHiddenLayers }, (_, i) => i + 1);
}

/** The seed whose best epoch had the highest validation ndcg@10. */
function bestOnValidation(students: readonly Seeded[]): Seeded {
  const lowest = ({ history }: Seeded) => Math.min(...history.map(({ validationLoss }) => validationLoss));
  return students.reduce((best, one) => (lowest(one) < lowest(best) ? one : best));
}

/** A student of its own models: those of the training are disposed of. */
async function assembleStudent(
  engine: NativeEngine,
  workspace: Workspace,
  { teacher, student: { itemFeatures } }: DistillSettings,
  dataset: Dataset,
  { seed }: Seeded,
  spec: TextEncoderSpec,
): Promise<Student> {
  const { items } = dataset;
  const details = { popularity: trainCounts(dataset) };
  const model = await SequenceModel.load(engine, workspace.path(`distilled-${seed}`));
  if (!itemFeatures) return new Student(engine, model, items, undefined, details);
  const isAsLoaded = 'directory' in teacher && teacher.adapt === undefined;
  const languageModel = await LanguageModel.load(engine, isAsLoaded ? teacher.directory : workspace.path('teacher'));
  return new Student(engine, model, items, TextEncoder.create(engine, languageModel, spec), details);
}

async function writeResults(
  settings: DistillSettings,
  { test, counts, report }: { test: EvaluationSet; counts: Int32Array; report: DistillationReport },
): Promise<string> {
  const { output } = settings;
  await saveEvaluation(join(output, 'evaluation.safetensors'), { test, trainCounts: counts });
  await writeFileAtomic(join(output, 'distill.json'), `${JSON.stringify(settings, null, 2)}\n`);
  await writeFileAtomic(join(output, 'report.json'), `${JSON.stringify(report, null, 2)}\n`);
  const reportPath = join(output, 'report.html');
  await writeFileAtomic(reportPath, renderReport(report));
  return reportPath;
}

/** Models that are freed at the end, whatever happens, unless they are handed out. */
class Disposables {
  readonly #all = new Set<{ dispose(): void }>();

  keep<T extends { readonly model: { dispose(): void } }>(trained: T): T {
    this.#all.add(trained.model);
    return trained;
  }

  add(one: { dispose(): void }): void {
    this.#all.add(one);
  }

  release(...handedOut: readonly { dispose(): void }[]): void {
    for (const one of handedOut) this.#all.delete(one);
  }

  dispose(): void {
    for (const one of this.#all) one.dispose();
  }
}
