/** The long parts of a distillation. Each keeps its result in the workspace, where a resumed run finds it. */
import type { NativeEngine } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { perplexity } from '../evaluate/language-model.js';
import type { LanguageModelResults } from '../evaluate/report-types.js';
import { pathExists } from '../formats/files.js';
import { createPacer } from '../formats/pacer.js';
import { extractKnowledge } from '../knowledge/extract.js';
import { type ItemPairs, itemFeatures, type TextEncoderSpec } from '../knowledge/fuse.js';
import { loadRankings } from '../knowledge/rankings.js';
import { type Dataset, trainSequences } from '../prepare/dataset.js';
import type { Hooks } from '../prepare/hooks.js';
import { historySentencesInTurns, itemSentence } from '../prepare/verbalize.js';
import { type FineTuneContext, fineTuneSequenceModel, type SequenceTrainingData } from '../student/fine-tune.js';
import { initialiseStudent } from '../student/initialise.js';
import { distillLanguageModel } from '../student/language-student.js';
import type { FineTuneOptions, SequenceArchitecture } from '../student/options.js';
import { type RankingSignal, rankingSignal } from '../student/ranking-signal.js';
import { boostRareItems, type RareItemsOptions } from '../student/rare-items.js';
import { SequenceEnsemble } from '../student/sequence-ensemble.js';
import { SequenceModel, sequenceConfig } from '../student/sequence-model.js';
import type { SequenceTeacher } from '../student/teacher-cache.js';
import { sequenceProjection } from '../student/transfer.js';
import { trainingWindows } from '../student/windows.js';
import { adaptLanguageModel } from '../teacher/adapt.js';
import type { EpochRecord } from '../teacher/fit-model.js';
import { LanguageModel } from '../teacher/language-model.js';
import { pretrainLanguageModel, type TextCorpus } from '../teacher/pretrain.js';
import { fitStaticEncoder } from '../teacher/static-encoder.js';
import { deleteTrainingCheckpoint } from '../teacher/training-checkpoint.js';
import { checkComponents, type DistillSettings } from './options.js';
import type { StepLog } from './step-log.js';
import type { Workspace } from './workspace.js';

/** What every stage needs. */
export interface StageContext {
  readonly engine: NativeEngine;
  readonly settings: DistillSettings;
  readonly workspace: Workspace;
  readonly hooks: Hooks;
}

/** Texts that language models are trained, chosen and tested on; no text is in two of them. */
export interface DistillationCorpus extends TextCorpus {
  readonly test: readonly string[];
}

/** A model with the records of its training; records of a teacher that was only loaded are empty. */
export interface Trained<Model> {
  readonly model: Model;
  readonly history: readonly EpochRecord[];
}

/** Models that teach together, with the records of each. */
export interface TrainedEnsemble {
  readonly model: SequenceEnsemble;
  readonly histories: readonly (readonly EpochRecord[])[];
}

/** A model of one training seed. */
export interface Seeded extends Trained<SequenceModel> {
  readonly seed: number;
}

/**
 * Item sentences and histories told as text. Every n-th different history is held out for validation, the one after it for
 * test; without histories, so are item sentences. What is held out is not trained on, whoever else tells the same.
 */
export async function makeCorpus(
  dataset: Dataset,
  { maxHistory, heldOut }: DistillSettings['corpus'],
): Promise<DistillationCorpus> {
  const items = dataset.items.map(itemSentence);
  const histories = maxHistory === 0 ? [] : await historySentencesInTurns(dataset, { maxHistory });
  const every = Math.max(3, Math.round(1 / heldOut)); // one of three is left to train on
  const pause = createPacer();
  const texts = new Set<string>();
  const validation: string[] = [];
  const test: string[] = [];
  for (const text of maxHistory === 0 ? items : histories) {
    await pause();
    if (texts.has(text)) continue;
    if (texts.size % every === 0) validation.push(text);
    if (texts.size % every === 1) test.push(text);
    texts.add(text);
  }
  const isHeldOut = new Set([...validation, ...test]);
  const train: string[] = [];
  for (const text of [...items, ...histories]) {
    await pause();
    if (!isHeldOut.has(text)) train.push(text);
  }
  if ([train, validation, test].some(({ length }) => length === 0)) {
    const told = maxHistory === 0 ? 'item texts' : `histories of users, told as texts of ${maxHistory} items at most`;
    const users = dataset.sequenceOffsets.length - 1;
    throw new LimbeckError(
      'ERR_EMPTY_DATA',
      'The data is too small to train a language model on, to validate and to test it: expected at least 3 different ' +
        `${told}, got ${texts.size} different ones of ${users} users and ${items.length} items. Give more data, loosen ` +
        `data.denoise where it drops much, or set corpus.maxHistory ${maxHistory === 0 ? 'above 0' : 'higher'}.`,
    );
  }
  return { train, validation, test };
}

/** Step 3: soft labels from rankings that were imported, where the settings name some. */
export async function importedRankings(
  { rankings }: Pick<DistillSettings, 'rankings'>,
  dataset: Dataset,
): Promise<RankingSignal | undefined> {
  if (rankings === undefined) return undefined;
  const { path, ...options } = rankings;
  return rankingSignal(await loadRankings(path, dataset), options);
}

/** Step 2: the language model that everything is distilled from. */
export async function obtainTeacher(
  { engine, settings, workspace, hooks }: StageContext,
  dataset: Dataset,
  corpus: TextCorpus,
): Promise<Trained<LanguageModel>> {
  const { teacher, knowledge } = settings;
  checkComponents(knowledge, dataset.items.length);
  const texts = dataset.items.map(itemSentence);
  const context = { ...hooks, checkpoint: workspace.checkpoint('teacher') };
  const load = (source: string) => LanguageModel.load(engine, source, hooks);
  if ('static' in teacher) {
    return stage(workspace, 'teacher', load, async () => {
      const seed = settings.seeds[0] ?? 0;
      return { model: await fitStaticEncoder(engine, texts, teacher.static, { ...hooks, seed }), history: [] };
    });
  }
  if (!('directory' in teacher)) {
    return stage(workspace, 'teacher', load, async () => {
      const { model, epochs } = await pretrainLanguageModel(engine, corpus, teacher, {
        ...context,
        describe: { step: 'teacher', name: 'pretrain' },
      });
      return { model, history: epochs };
    });
  }
  const { directory, adapt } = teacher;
  if (adapt === undefined) return { model: await load(directory), history: [] };
  return stage(workspace, 'teacher', load, async () => {
    const model = await load(directory);
    try {
      const describe = { step: 'teacher', name: 'adapt' } as const;
      const { epochs } = await adaptLanguageModel(engine, model, corpus, adapt, { ...context, describe });
      // A run that goes on after a stop reads the merged model, and must find the same one.
      if (model.adapter) await model.mergeAdapter();
      return { model, history: epochs };
    } catch (error) {
      model.dispose();
      throw error;
    }
  });
}

/** Step 3: item features from the teacher's hidden states of the item texts. */
export async function extractItems(
  { engine, settings, workspace, hooks }: StageContext,
  teacher: LanguageModel,
  dataset: Dataset,
): Promise<{ features: Float32Array; encoder: TextEncoderSpec }> {
  const { hiddenStates, fusion, components } = settings.knowledge;
  const all = Array.from({ length: teacher.numHiddenLayers + 1 }, (_, i) => i);
  const layers = hiddenStates ?? ('static' in settings.teacher ? [0] : all);
  const texts = dataset.items.map(itemSentence);
  const directory = workspace.path('knowledge');
  const knowledge = await extractKnowledge(teacher, texts, { directory, hiddenStates: layers, pooling: 'mean' }, hooks);
  const seed = settings.seeds[0] ?? 0;
  return itemFeatures(engine, knowledge, { fusion, components, seed, pairs: itemPairs(dataset) });
}

/** Step 2 again, now that items have vectors: the teacher as a recommender. */
export async function trainSequenceTeacher(
  { engine, settings, workspace, hooks }: StageContext,
  data: SequenceTrainingData & { readonly numItems: number },
  features: Float32Array | undefined,
): Promise<TrainedEnsemble> {
  const { members: count, itemFeatures: wantsFeatures, architecture, training } = settings.sequenceTeacher;
  const config = sequenceConfig(
    architecture,
    data.numItems,
    wantsFeatures && features ? features.length / data.numItems : 0,
  );
  const load = (directory: string) => SequenceModel.load(engine, directory);
  const members: Trained<SequenceModel>[] = [];
  try {
    for (let i = 0; i < count; i++) {
      const seed = training.seed + i;
      const name = `sequence-teacher-${seed}`;
      const of = count === 1 ? '' : ` ${i + 1} of ${count}`;
      const member = await stage(workspace, name, load, async () => {
        const model = SequenceModel.create(engine, config, {
          seed,
          itemFeatures: wantsFeatures ? features : undefined,
        });
        return fineTuned(model, () =>
          fineTuneSequenceModel(
            engine,
            model,
            data,
            { ...training, seed },
            {
              ...hooks,
              checkpoint: workspace.checkpoint(name),
              describe: { step: 'teacher', name: `sequence teacher${of}` },
            },
          ),
        );
      });
      members.push(member);
    }
    const model = SequenceEnsemble.of(
      engine,
      members.map((member) => member.model),
    );
    return { model, histories: members.map(({ history }) => history) };
  } catch (error) {
    for (const { model } of members) model.dispose();
    throw error;
  }
}

/** Steps 4 to 6 for one seed. Without a teacher: the student that it is compared with, trained on clicks alone. */
export async function trainStudent(
  { engine, settings, workspace, hooks }: StageContext,
  log: StepLog,
  data: SequenceTrainingData & { readonly numItems: number; readonly counts: Int32Array },
  seed: number,
  distillation?: {
    readonly features: Float32Array;
    readonly teacher: SequenceTeacher;
    readonly rankings: RankingSignal | undefined;
  },
): Promise<Seeded> {
  const { architecture, initialise, itemFeatures: wantsFeatures, rareItems, training } = settings.student;
  const { losses: _losses, layerMap: _layerMap, interpolation: _interpolation, ...clicksAlone } = training;
  const kind = distillation ? 'distilled' : 'plain';
  const run = `${settings.seeds.indexOf(seed) + 1} of ${settings.seeds.length}`;
  const load = (directory: string) => SequenceModel.load(engine, directory);
  const trained = await stage(workspace, `${kind}-${seed}`, load, () =>
    runStudent(engine, log, data, {
      architecture,
      initialise: distillation ? initialise : 'random',
      features: wantsFeatures ? distillation?.features : undefined,
      teacher: distillation?.teacher,
      rareItems,
      rankings: distillation?.rankings,
      training: { ...(distillation ? training : clicksAlone), seed },
      context: {
        ...hooks,
        checkpoint: workspace.checkpoint(`${kind}-${seed}`),
        describe: { step: 'fineTune', name: `${kind} student ${run}` },
      },
    }),
  );
  return { ...trained, seed };
}

/** One training of a student. */
export interface StudentRun {
  readonly architecture: SequenceArchitecture;
  /** `width` needs a teacher, and reduces it as `training.interpolation.width` says: by principal axes without one. */
  readonly initialise: 'random' | 'width';
  /** u [numItems, f]; without, the student knows items by their ids alone. */
  readonly features: Float32Array | undefined;
  readonly teacher: SequenceTeacher | undefined;
  /** What is added to the scores of rare items; nothing where it is undefined. */
  readonly rareItems: RareItemsOptions | undefined;
  /** What another teacher ranked. */
  readonly rankings: RankingSignal | undefined;
  readonly training: FineTuneOptions & { readonly seed: number };
  readonly context: Omit<FineTuneContext, 'teacher' | 'rankings'>;
}

/** Steps 4 to 6: made, filled from the teacher where that is wanted, and trained. */
export async function runStudent(
  engine: NativeEngine,
  log: StepLog,
  data: SequenceTrainingData & { readonly numItems: number; readonly counts: Int32Array },
  { architecture, initialise, features, teacher, rankings, rareItems, training, context }: StudentRun,
): Promise<Trained<SequenceModel>> {
  const config = sequenceConfig(architecture, data.numItems, features ? features.length / data.numItems : 0);
  const part = context.describe?.name ?? 'student';
  const model = await log.run('initialise', part, () =>
    SequenceModel.create(engine, config, { seed: training.seed, itemFeatures: features }),
  );
  return fineTuned(model, async () => {
    if (teacher) {
      await log.run('transfer', part, async () => {
        if (initialise === 'random') return [];
        const width = training.interpolation?.width ?? 'pca';
        return initialiseStudent(model.native, {
          method: initialise,
          teacher: teacher.model,
          studentLayers: config.numHiddenLayers,
          teacherLayers: teacher.numHiddenLayers,
          ...(await sequenceProjection(engine, teacher, config, width, context)),
        });
      });
    }
    return log.run('fineTune', undefined, async () => {
      const fitted = await fineTuneSequenceModel(engine, model, data, training, { ...context, teacher, rankings });
      if (rareItems) await boostRareItems(model, data, rareItems, context);
      return fitted;
    });
  });
}

/** A small language model, with its loss on texts that no training saw, epoch by epoch. */
export async function trainLanguageStudent(
  { engine, settings, workspace, hooks }: StageContext,
  teacher: LanguageModel,
  corpus: DistillationCorpus,
): Promise<(Trained<LanguageModel> & { readonly results: LanguageModelResults }) | undefined> {
  const options = settings.languageStudent;
  if (options === undefined) return undefined;
  // Epochs before a kill were measured then.
  const testLossByEpoch = (await workspace.readJson<number[]>('language-student-test-loss')) ?? [];
  const load = (directory: string) => LanguageModel.load(engine, directory);
  const trained = await stage(workspace, 'language-student', load, async () => {
    const { model, epochs } = await distillLanguageModel(engine, teacher, corpus, options, {
      ...hooks,
      checkpoint: workspace.checkpoint('language-student'),
      describe: { step: 'fineTune', name: 'language student' },
      afterEpoch: async ({ epoch }, student) => {
        testLossByEpoch[epoch - 1] = (await student.loss(corpus.test, hooks)).loss;
        await workspace.saveJson('language-student-test-loss', testLossByEpoch);
      },
    });
    return { model, history: epochs };
  });
  const results = {
    testLossByEpoch,
    perplexityByEpoch: testLossByEpoch.map((loss) => perplexity(loss, 1)),
    teacherTestLoss: (await teacher.loss(corpus.test, hooks)).loss,
    teacherParameters: teacher.numParameters,
    studentParameters: trained.model.numParameters,
  };
  return { ...trained, results };
}

/** Loads a finished stage, or makes it and keeps it; the state of its training is deleted only then. */
async function stage<Model extends { save(directory: string): Promise<void>; dispose(): void }>(
  workspace: Workspace,
  name: string,
  load: (directory: string) => Promise<Model>,
  make: () => Promise<Trained<Model>>,
): Promise<Trained<Model>> {
  const directory = workspace.path(name);
  const historyName = `${name}-history`;
  const checkpoint = workspace.checkpoint(name);
  if (await pathExists(directory)) {
    await deleteTrainingCheckpoint(checkpoint);
    const history = await workspace.readJson<readonly EpochRecord[]>(historyName);
    return { model: await load(directory), history: history ?? [] };
  }
  const { model, history } = await make();
  try {
    await workspace.saveJson(historyName, history);
    await model.save(directory);
    await deleteTrainingCheckpoint(checkpoint);
  } catch (error) {
    model.dispose();
    throw error;
  }
  return { model, history };
}

async function fineTuned(
  model: SequenceModel,
  train: () => Promise<{ readonly epochs: readonly EpochRecord[] }>,
): Promise<Trained<SequenceModel>> {
  try {
    return { model, history: (await train()).epochs };
  } catch (error) {
    model.dispose();
    throw error;
  }
}

/** Items that follow each other in a training history. */
function itemPairs(dataset: Dataset): ItemPairs {
  const { inputIds, labels } = trainingWindows(trainSequences(dataset), Number.MAX_SAFE_INTEGER);
  return { queries: inputIds, targets: labels };
}
