/** The quality bench: baselines, teacher and students on one data set, by full ranking, with intervals. */
import { cpus } from 'node:os';
import { join } from 'node:path';
import { loadBinding, type NativeEngine } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { findItemNeighbors, nearestItems, rankByNeighbors } from '../evaluate/item-neighbors.js';
import { measureLatency } from '../evaluate/latency.js';
import { renderQualityReport } from '../evaluate/quality-report.js';
import { type QualitySystem, qualityRow } from '../evaluate/quality-row.js';
import type { QualityReport, QualityRow } from '../evaluate/quality-types.js';
import { type EvaluationSet, evaluationSet, trainCounts } from '../evaluate/recommendation.js';
import type { LossCurve } from '../evaluate/report-types.js';
import { writeFileAtomic } from '../formats/files.js';
import { type Dataset, trainSequences } from '../prepare/dataset.js';
import { type Hooks, throwIfAborted } from '../prepare/hooks.js';
import { prepareDataset } from '../prepare/prepare.js';
import type { SequenceTrainingData } from '../student/fine-tune.js';
import type { RankingSignal } from '../student/ranking-signal.js';
import { boostRareItems } from '../student/rare-items.js';
import { SequenceEnsemble } from '../student/sequence-ensemble.js';
import { SequenceModel } from '../student/sequence-model.js';
import { cacheSequenceTeacher, type SequenceTeacher } from '../student/teacher-cache.js';
import type { EpochRecord } from '../teacher/fit-model.js';
import type { DistillSettings } from './options.js';
import { type QualityOptions, type QualitySettings, qualitySettings, type StudentPlan } from './quality-options.js';
import { type QualityRun, QualityRuns } from './quality-runs.js';
import { curves } from './report.js';
import { historiesOf, LATENCY, LATENCY_USERS, LIST_LENGTH, modelLatency, popularityResult } from './results.js';
import {
  extractItems,
  importedRankings,
  makeCorpus,
  obtainTeacher,
  runStudent,
  type TrainedEnsemble,
  trainSequenceTeacher,
} from './stages.js';
import { StepLog } from './step-log.js';
import { checkOutput, conditionsOf, contentOf, Workspace } from './workspace.js';

export interface QualityResult {
  readonly report: QualityReport;
  /** The report as JSON, and as a page. */
  readonly jsonPath: string;
  readonly reportPath: string;
}

export interface QualityContext extends Hooks {
  /** Version and commit of the program, written into the report. */
  readonly version?: string | undefined;
  readonly commit?: string | undefined;
}

/** Stages of the teacher, in the output. A distillation has its `teacher` there, which is none of the bench's. */
const TEACHER_DIRECTORY = 'quality-teacher';

/** What every row needs. */
interface Bench {
  readonly engine: NativeEngine;
  readonly settings: QualitySettings;
  readonly runs: QualityRuns;
  readonly hooks: Hooks;
  readonly dataset: Dataset;
  readonly data: SequenceTrainingData & { readonly numItems: number; readonly counts: Int32Array };
  readonly test: EvaluationSet;
  readonly counts: Int32Array;
  /** What every result depends on. */
  readonly common: object;
  readonly teacher: TeacherSource;
  readonly rankings: RankingSignal | undefined;
}

/**
 * Runs the rows, each of as many seeds as are asked for, and writes `quality.json` and `quality.html`. A row and seed that
 * an earlier call finished is not run again; a training that was killed goes on from its last state.
 */
export async function benchQuality(
  engine: NativeEngine,
  options: QualityOptions,
  { version, commit, ...hooks }: QualityContext = {},
): Promise<QualityResult> {
  const settings = qualitySettings(options);
  const { output } = settings;
  await checkOutput(output);
  hooks.onProgress?.({ step: 'prepare', name: 'read, filter, split', done: 0, total: 1 });
  const dataset = await prepareDataset(settings.data, hooks.signal ? { signal: hooks.signal } : {});
  hooks.onProgress?.({ step: 'prepare', name: 'read, filter, split', done: 1, total: 1 });
  checkCounts(dataset, settings.expected);

  const { repeatedTargets, ...test } = evaluationSet(dataset, 'test');
  const data = {
    train: trainSequences(dataset),
    validation: evaluationSet(dataset, 'validation'),
    numItems: dataset.items.length,
    counts: trainCounts(dataset),
  };
  const { counts } = data;
  const common = conditionsOf(engine, dataset);
  const teacher = new TeacherSource(engine, settings, dataset, data, common, hooks);
  const runs = await QualityRuns.open(output);
  const rankings = await importedRankings(settings, dataset);
  const bench: Bench = { rankings, engine, settings, runs, hooks, dataset, data, test, counts, common, teacher };
  try {
    const systems: { system: QualitySystem; history: readonly EpochRecord[] }[] = [];
    for (const key of settings.rows) systems.push(await runRow(bench, key));

    const plain = systems.find(({ system }) => system.key === 'plain')?.system;
    const rows: QualityRow[] = [];
    for (const { system } of systems) {
      throwIfAborted(hooks.signal);
      const { ks } = settings.evaluation;
      rows.push(await qualityRow(system, { test, trainCounts: counts, plain, ks, seed: settings.seeds[0] ?? 0 }));
    }
    const { users, items, interactions } = dataset.report.final;
    const report: QualityReport = {
      title: settings.title,
      createdAt: new Date().toISOString(),
      ...(version === undefined ? {} : { version }),
      ...(commit === undefined ? {} : { commit }),
      machine: machineOf(engine),
      seeds: settings.seeds,
      data: {
        users,
        items,
        interactions,
        testCases: test.targets.length,
        ...(repeatedTargets > 0 && { repeatedTargets }),
      },
      rows,
      published: settings.published,
      curves: systems.flatMap(({ system, history }) => rankingCurves(system.name, history)),
      settings,
    };
    const jsonPath = join(output, 'quality.json');
    const reportPath = join(output, 'quality.html');
    await writeFileAtomic(jsonPath, `${JSON.stringify(report, null, 2)}\n`);
    await writeFileAtomic(reportPath, renderQualityReport(report));
    return { report, jsonPath, reportPath };
  } finally {
    await teacher.dispose();
  }
}

function checkCounts({ report }: Dataset, expected: QualitySettings['expected']): void {
  if (expected === undefined) return;
  const { users, items, interactions } = report.final;
  if (users === expected.users && items === expected.items && interactions === expected.interactions) return;
  const words = (counts: { users: number; items: number; interactions: number }) =>
    `${counts.users} users, ${counts.items} items and ${counts.interactions} interactions`;
  throw new LimbeckError(
    'ERR_INVALID_ARGUMENT',
    `${report.interactions.path}: expected ${words(expected)}, got ${words({ users, items, interactions })}. ` +
      'Published figures hold for that data alone; give its file, and no filter that drops rows',
  );
}

/** One row of the table: a system with its seeds. */
async function runRow(bench: Bench, key: string) {
  const { settings } = bench;
  const plan = settings.students.find((student) => student.key === key);
  if (key === 'popularity') return systemOf('popularity', key, [], [await popularityRun(bench)]);
  if (key === 'item-knn') return systemOf('item-kNN', key, [], [await neighborRun(bench)]);
  if (plan === undefined) {
    const { members, training } = settings.sequenceTeacher;
    const name = members === 1 ? 'teacher' : `teacher: ${members} models`;
    return systemOf(name, key, [training.seed], [await teacherRun(bench, training.seed)]);
  }
  const runs: QualityRun[] = [];
  for (const seed of settings.seeds) runs.push(await studentRun(bench, plan, seed));
  return systemOf(plan.name, key, settings.seeds, runs);
}

function systemOf(name: string, key: string, seeds: readonly number[], runs: readonly QualityRun[]) {
  const [first] = runs as readonly [QualityRun];
  const histories = runs.flatMap((run) => run.histories);
  const system: QualitySystem = {
    name,
    key,
    seeds,
    ranks: runs.map(({ ranks }) => ranks),
    topK: first.topK,
    parameters: first.parameters,
    latency: first.latency,
    trainings: histories.map((history) => ({
      bestEpoch: history.reduce((best, record) => (record.validationLoss < best.validationLoss ? record : best)).epoch,
      epochSeconds: history.map(({ seconds }) => seconds),
    })),
    rareItemsWeights: runs.flatMap(({ rareItemsWeight }) => rareItemsWeight ?? []),
  };
  return { system, history: histories[0] ?? [] };
}

async function popularityRun({ runs, common, counts, test }: Bench): Promise<QualityRun> {
  const { run } = await runs.obtain('popularity', { ...common, system: 'popularity' }, async () => {
    const { ranks, topK, parameters, latency } = await popularityResult(counts, test);
    const [first = new Int32Array(0)] = ranks;
    return { run: { ranks: first, topK: topK ?? new Int32Array(0), parameters, latency, histories: [] } };
  });
  return run;
}

async function neighborRun({ runs, common, engine, settings, data, test, hooks }: Bench): Promise<QualityRun> {
  const { decay } = settings.itemNeighbors;
  const { run } = await runs.obtain('item-knn', { ...common, system: 'item-knn', decay }, async () => {
    const neighbors = await findItemNeighbors(engine, data.train, { numItems: data.numItems, decay }, hooks);
    const ranking = await rankByNeighbors(engine, neighbors, test, LIST_LENGTH, hooks);
    const histories = historiesOf(test, (item) => item, LATENCY_USERS);
    const latency = await measureLatency((i) => {
      nearestItems(neighbors, histories[i % histories.length] ?? [], 10);
    }, LATENCY);
    return { run: { ...ranking, parameters: neighbors.cosines.length, latency, histories: [] } };
  });
  return run;
}

async function teacherRun(bench: Bench, seed: number): Promise<QualityRun> {
  const { runs, common, teacher } = bench;
  const settings = { ...common, system: 'teacher', ...teacher.settings };
  // Its model is kept with the other stages of the teacher.
  const { run } = await runs.obtain(`teacher-${seed}`, settings, async () => ({
    run: await teacher
      .sequenceTeacher()
      .then(async ({ model, histories }) => ({ ...(await ranked(bench, model)), histories })),
  }));
  return run;
}

/** A student of one seed; one whose rare items are raised is made from the same student as it was trained. */
async function studentRun(bench: Bench, plan: StudentPlan, seed: number): Promise<QualityRun> {
  const { rareItems, ...asTrained } = plan;
  const trained = await trainedRun(bench, { ...asTrained, rareItems: undefined }, seed);
  if (rareItems === undefined) return trained.run;
  const { engine, runs, data, hooks } = bench;
  const settings = { ...trained.settings, rareItems };
  const { run } = await runs.obtain(`${plan.key}-${seed}`, settings, async () => {
    const model = await SequenceModel.load(engine, trained.modelDirectory);
    try {
      const rareItemsWeight = await boostRareItems(model, data, rareItems, hooks);
      return {
        run: { ...(await ranked(bench, model)), histories: trained.run.histories, rareItemsWeight },
        model,
      };
    } catch (error) {
      model.dispose();
      throw error;
    }
  });
  return run;
}

async function trainedRun(bench: Bench, plan: StudentPlan, seed: number) {
  const { engine, runs, common, teacher, data, settings, hooks } = bench;
  const { key, name: _name, ...decisive } = plan;
  const rankings = plan.rankings ? bench.rankings : undefined;
  const all = {
    ...common,
    system: 'student',
    ...decisive,
    seed,
    ...(plan.itemFeatures && teacher.featureSettings),
    ...(plan.needsTeacher && teacher.settings),
    ...(rankings && { rankings: { ...settings.rankings, content: contentOf(rankings) } }),
  };
  const obtained = await runs.obtain(`${key}-${seed}`, all, async (checkpoint) => {
    const describe = { step: 'fineTune', name: `${key}, seed ${seed}` } as const;
    const features = plan.itemFeatures ? await teacher.features() : undefined;
    const signal = plan.needsTeacher ? await teacher.signal(layersOf(settings)) : undefined;
    const student = await runStudent(engine, new StepLog(hooks), data, {
      architecture: plan.architecture,
      initialise: plan.initialise,
      features,
      teacher: signal,
      rankings,
      rareItems: undefined,
      training: { ...plan.training, seed },
      context: { ...hooks, checkpoint, describe },
    });
    try {
      return { run: { ...(await ranked(bench, student.model)), histories: [student.history] }, model: student.model };
    } catch (error) {
      student.model.dispose();
      throw error;
    }
  });
  return { ...obtained, settings: all };
}

/** A trained model's ranks of the test cases, and how long one request takes. */
async function ranked(
  { engine, dataset, test, hooks }: Bench,
  model: SequenceModel | SequenceEnsemble,
): Promise<Omit<QualityRun, 'histories'>> {
  const topK = Math.min(LIST_LENGTH, dataset.items.length);
  const ranking = await model.rank(test, { ...test, topK }, hooks);
  const members = model instanceof SequenceEnsemble ? model.members : [model];
  const latency = await modelLatency(engine, members, dataset, test);
  return { ...ranking, parameters: model.numParameters, latency };
}

/** Layers of the sequence teacher that any student's hidden loss compares with. */
function layersOf({ students: all, rows, sequenceTeacher }: QualitySettings): number[] {
  const students = all.filter(({ key }) => rows.includes(key));
  const named = students.flatMap(({ training }) => training.layerMap?.map(([, layer]) => layer) ?? []);
  const everyLayer = Array.from({ length: sequenceTeacher.architecture.numHiddenLayers }, (_, i) => i + 1);
  const wantsAll = students.some(({ training: { losses, layerMap } }) => losses.hidden !== 0 && layerMap === undefined);
  return wantsAll ? everyLayer : [...new Set(named)];
}

/** The teacher, made when the first row asks for it and kept until the bench ends. */
class TeacherSource {
  /** All that decides the item vectors of the language model. */
  readonly featureSettings: object;
  /** All that decides the sequence teacher. */
  readonly settings: object;
  #features: Promise<Float32Array> | undefined;
  #model: Promise<TrainedEnsemble> | undefined;
  #signal: Promise<SequenceTeacher> | undefined;
  #workspace: Promise<Workspace> | undefined;

  constructor(
    private readonly engine: NativeEngine,
    private readonly distillation: DistillSettings & QualitySettings,
    private readonly dataset: Dataset,
    private readonly data: SequenceTrainingData & { readonly numItems: number },
    private readonly common: object,
    private readonly hooks: Hooks,
  ) {
    const { teacher, corpus, knowledge, sequenceTeacher, seeds } = distillation;
    this.featureSettings = { teacher, corpus, knowledge, featureSeed: seeds[0], items: dataset.items };
    this.settings = { sequenceTeacher, ...(sequenceTeacher.itemFeatures ? this.featureSettings : {}) };
  }

  /** Item vectors of the language model. */
  features(): Promise<Float32Array> {
    this.#features ??= this.#makeFeatures();
    return this.#features;
  }

  /** The sequence models over them. */
  sequenceTeacher(): Promise<TrainedEnsemble> {
    this.#model ??= this.#trainSequenceTeacher();
    return this.#model;
  }

  /** What it says about the training data. */
  signal(layers: readonly number[]): Promise<SequenceTeacher> {
    this.#signal ??= this.sequenceTeacher().then(({ model }) =>
      cacheSequenceTeacher(model, this.data.train, { layers }, this.hooks),
    );
    return this.#signal;
  }

  async dispose(): Promise<void> {
    // A teacher that could not be made has nothing to free, and its error has reached the row that asked.
    const [model, workspace] = await Promise.allSettled([this.#model, this.#workspace]);
    if (model.status === 'fulfilled') model.value?.model.dispose();
    if (workspace.status === 'fulfilled') await workspace.value?.close();
  }

  async #trainSequenceTeacher(): Promise<TrainedEnsemble> {
    const features = this.distillation.sequenceTeacher.itemFeatures ? await this.features() : undefined;
    return trainSequenceTeacher(await this.#context(), this.data, features);
  }

  async #makeFeatures(): Promise<Float32Array> {
    const context = await this.#context();
    const corpus = await makeCorpus(this.dataset, this.distillation.corpus);
    const { model } = await obtainTeacher(context, this.dataset, corpus);
    try {
      return (await extractItems(context, model, this.dataset)).features;
    } finally {
      model.dispose();
    }
  }

  async #context() {
    const { engine, distillation: settings, hooks } = this;
    this.#workspace ??= Workspace.open(
      settings.output,
      { ...this.common, ...this.featureSettings, ...this.settings },
      TEACHER_DIRECTORY,
    );
    return { engine, settings, workspace: await this.#workspace, hooks };
  }
}

function machineOf(engine: NativeEngine): QualityReport['machine'] {
  const { features, isa } = loadBinding().cpuInfo();
  return {
    processor: cpus()[0]?.model ?? 'unknown',
    isa,
    features,
    threads: engine.threads,
    precision: engine.precision,
    ...(engine.device === 'cuda' ? { gpu: engine.deviceName } : {}),
    node: process.version,
    platform: `${process.platform}-${process.arch}`,
  };
}

/** Validation by epoch of the first seed. */
function rankingCurves(name: string, history: readonly EpochRecord[]): LossCurve[] {
  return curves(name, history, 'ndcg@10').filter((curve) => curve.name.includes('validation'));
}
