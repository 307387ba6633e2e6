/** The engine: native threads and memory, and the eight steps of distillation over them. */
import { cpus } from 'node:os';
import { join } from 'node:path';
import { z } from 'zod';
import { checkInstance, checkObject, checkPath } from './arguments.js';
import { findCudaLibrary, loadBinding, type NativeEngine, type NativeEngineOptions } from './binding.js';
import { type Classifier, type ClassifierOptions, fitClassifier, loadClassifier } from './engine/classifier.js';
import { type DistillResult, distill } from './engine/distill.js';
import { evaluationSettings, loadEvaluation } from './engine/evaluation-file.js';
import type { FeedbackSource } from './engine/feedback-data.js';
import { type FinetuneOptions, type FinetuneResult, finetune } from './engine/finetune.js';
import { ModelRegistry, type ModelRegistryOptions } from './engine/model-registry.js';
import type { DistillOptions } from './engine/options.js';
import { benchQuality, type QualityContext, type QualityResult } from './engine/quality.js';
import type { QualityOptions } from './engine/quality-options.js';
import { modelResult, popularityResult, studentLatency } from './engine/results.js';
import { LimbeckError } from './errors.js';
import { resultRow } from './evaluate/recommendation.js';
import type { ResultRow } from './evaluate/report-types.js';
import { pathExists } from './formats/files.js';
import { type ExtractOptions, extractKnowledge, extractKnowledgePart } from './knowledge/extract.js';
import { type FusionOptions, fuseLayers, itemFeatures, reduceDimension } from './knowledge/fuse.js';
import type { Knowledge } from './knowledge/knowledge.js';
import type { KnowledgePart } from './knowledge/manifest.js';
import { type ImportRankingsOptions, importRankings } from './knowledge/rankings.js';
import type { Dataset } from './prepare/dataset.js';
import { checkHooks, type Hooks } from './prepare/hooks.js';
import type { PrepareOptions } from './prepare/options.js';
import { parseOptions } from './prepare/parse-options.js';
import { prepareDataset } from './prepare/prepare.js';
import type { Texts } from './prepare/text-lines.js';
import type { CatalogueItem } from './recommend/item-index.js';
import { loadStudent } from './recommend/load-student.js';
import { Student } from './recommend/student.js';
import type { StudentDetails } from './recommend/student-details.js';
import { type FineTuneContext, fineTuneSequenceModel, type SequenceTrainingData } from './student/fine-tune.js';
import { fisherWeights, type Importance, measureImportance } from './student/importance.js';
import {
  distillLanguageModel,
  type LanguageStudentContext,
  type LanguageStudentOptions,
} from './student/language-student.js';
import type { LanguageTeacher } from './student/language-teacher.js';
import type { FineTuneOptions, SequenceArchitecture } from './student/options.js';
import { residualAxes } from './student/residual-axes.js';
import { SequenceEnsemble } from './student/sequence-ensemble.js';
import { SequenceModel, sequenceConfig } from './student/sequence-model.js';
import type { WeightedTeacher } from './student/teachers.js';
import { adaptLanguageModel } from './teacher/adapt.js';
import type { FitResult } from './teacher/fit-model.js';
import { LanguageModel } from './teacher/language-model.js';
import type { LanguageModelAdaptation, PretrainOptions } from './teacher/options.js';
import { pretrainLanguageModel, type TextCorpus } from './teacher/pretrain.js';
import { fitStaticEncoder, type StaticEncoderOptions } from './teacher/static-encoder.js';

const engineOptionsSchema = z.strictObject({
  /**
   * Where language models and students are run and trained. `auto` takes the GPU where the CUDA library is built and finds
   * one that it can use, else the processor; `cuda` says what is missing instead.
   */
  device: z.enum(['auto', 'cpu', 'cuda']).default('auto'),
  /** Which GPU, of those that the process sees (`CUDA_VISIBLE_DEVICES`). */
  deviceIndex: z.int().min(0).max(1023).default(0),
  /**
   * On a GPU: each kind of product takes the fastest of several algorithms, timed when it is first met. A few percent
   * faster; another process may choose otherwise, and its results then differ in the last bits.
   */
  tuneProducts: z.boolean().default(false),
  /** Compute threads; 0 = what the machine and the container allow. */
  threads: z.int().min(0).max(256).default(0),
  /**
   * What the operands of matrix products are rounded to in training, extraction and evaluation; weights, sums and
   * requests that a processor answers stay fp32. `fastest` is bfloat16 on a GPU, and measures which of the two a processor multiplies faster.
   */
  precision: z.enum(['float32', 'bfloat16', 'fastest']).default('float32'),
});

export type EngineOptions = z.input<typeof engineOptionsSchema>;

/**
 * Starts an engine: a thread that runs long work, and compute threads under it. Dispose of it when it is not needed.
 *
 * @throws LimbeckError ERR_NATIVE_ADDON, ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION; with `cuda`, ERR_CUDA_UNAVAILABLE for
 * what is missing, ERR_CUDA, ERR_OUT_OF_MEMORY
 */
export async function createEngine(options: EngineOptions = {}): Promise<Engine> {
  const { device, deviceIndex, tuneProducts, threads, precision } = parseOptions(
    engineOptionsSchema,
    options,
    'createEngine',
  );
  return new Engine(startNative(device, { device: deviceIndex, tuneProducts }, { threads, precision }));
}

/** What no GPU, and one that is full or broken, answer at the start. */
const UNUSABLE_GPU = new Set<unknown>(['ERR_CUDA_UNAVAILABLE', 'ERR_OUT_OF_MEMORY', 'ERR_CUDA', 'ERR_DEVICE_LOST']);

function startNative(
  device: 'auto' | 'cpu' | 'cuda',
  gpu: { readonly device: number; readonly tuneProducts: boolean },
  options: Pick<NativeEngineOptions, 'threads' | 'precision'>,
): NativeEngine {
  const binding = loadBinding();
  if (device === 'cpu') return binding.createEngine(options);
  try {
    return binding.createEngine({ ...options, cuda: { library: findCudaLibrary(), ...gpu } });
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? error.code : undefined;
    if (device === 'auto' && UNUSABLE_GPU.has(code)) return binding.createEngine(options);
    throw error;
  }
}

export class Engine {
  readonly #native: NativeEngine;

  /** @internal Use {@link createEngine}. */
  constructor(native: NativeEngine) {
    this.#native = native;
  }

  /** Where models are run and trained. */
  get device(): 'cpu' | 'cuda' {
    return this.#native.device;
  }

  /** The processor's name, or the GPU's. */
  get deviceName(): string {
    return this.#native.device === 'cuda' ? this.#native.deviceName : (cpus()[0]?.model ?? 'unknown');
  }

  /** Compute threads. */
  get threads(): number {
    return this.#native.threads;
  }

  /** What operands of products are rounded to. */
  get precision(): 'float32' | 'bfloat16' {
    return this.#native.precision;
  }

  /**
   * Distils a recommender from a language model: all eight steps. Results go to `options.output`; what an earlier run
   * left there stays until this one is done, and a run that was stopped goes on where it was.
   *
   * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION for options; the codes of prepareDataset for data files;
   * ERR_LOCKED while another run writes to that output; ERR_ABORTED, ERR_NOT_FINITE, ERR_NO_SPACE, ERR_IO,
   * ERR_OUT_OF_MEMORY
   */
  async distill(options: DistillOptions, hooks: Hooks = {}): Promise<DistillResult> {
    checkHooks(hooks);
    return distill(this.#native, options, hooks);
  }

  /** Step 1. @see {@link prepareDataset} */
  async prepare(options: PrepareOptions, hooks: Hooks = {}): Promise<Dataset> {
    return prepareDataset(options, hooks);
  }

  /** Step 2: opens a Hugging Face directory, or `hf://owner/model[@revision]`. @see LanguageModel.load */
  async loadLanguageModel(source: string, hooks: Hooks = {}): Promise<LanguageModel> {
    checkHooks(hooks);
    return LanguageModel.load(this.#native, source, hooks);
  }

  /** Step 2: a teacher trained from scratch. @see pretrainLanguageModel */
  async pretrain(
    corpus: TextCorpus,
    options: PretrainOptions = {},
    hooks: Hooks = {},
  ): Promise<FitResult & { model: LanguageModel }> {
    checkHooks(hooks);
    return pretrainLanguageModel(this.#native, corpus, options, hooks);
  }

  /** Step 2: word vectors for these texts, in seconds. @see fitStaticEncoder */
  async fitStaticEncoder(
    texts: readonly string[],
    options: StaticEncoderOptions = {},
    hooks: Hooks & { readonly seed?: number } = {},
  ): Promise<LanguageModel> {
    checkHooks(hooks, ['seed']);
    return fitStaticEncoder(this.#native, texts, options, hooks);
  }

  /** Step 2: a teacher that exists, trained further, as a whole or with LoRA. @see adaptLanguageModel */
  async adapt(
    model: LanguageModel,
    corpus: TextCorpus,
    options: LanguageModelAdaptation = {},
    hooks: Hooks = {},
  ): Promise<FitResult> {
    checkHooks(hooks);
    return adaptLanguageModel(this.#native, model, corpus, options, hooks);
  }

  /** Step 3: hidden states, attention maps and logits, kept in a directory. @see extractKnowledge */
  async extract(model: LanguageModel, texts: Texts, options: ExtractOptions, hooks: Hooks = {}): Promise<Knowledge> {
    checkHooks(hooks);
    return extractKnowledge(model, texts, options, hooks);
  }

  /** Step 3, the share of one of several processes. @see extractKnowledgePart */
  async extractPart(
    model: LanguageModel,
    texts: Texts,
    options: ExtractOptions,
    part: KnowledgePart,
    hooks: Hooks = {},
  ): ReturnType<typeof extractKnowledgePart> {
    checkHooks(hooks);
    return extractKnowledgePart(model, texts, options, part, hooks);
  }

  /** Step 3: which parameters, channels and blocks matter for texts. @see measureImportance */
  async measureImportance(model: LanguageModel, texts: readonly string[], hooks: Hooks = {}): Promise<Importance> {
    checkHooks(hooks);
    return measureImportance(this.#native, model, texts, hooks);
  }

  /** Step 3: axes that a narrower student's residual stream keeps, for {@link initialiseStudent}. @see residualAxes */
  async residualAxes(
    model: LanguageModel,
    texts: readonly string[],
    width: number,
    hooks: Hooks = {},
  ): Promise<Float32Array> {
    checkHooks(hooks);
    return residualAxes(this.#native, model, texts, width, hooks);
  }

  /** Step 5: weights of an interpolation towards a teacher. @see fisherWeights */
  async fisherWeights(
    student: LanguageModel,
    teacher: LanguageModel,
    importance: Importance,
    map: Parameters<typeof fisherWeights>[4],
  ): ReturnType<typeof fisherWeights> {
    checkInstance(student, LanguageModel, 'student');
    checkInstance(teacher, LanguageModel, 'teacher');
    return fisherWeights(this.#native, student.native, teacher.config, importance, map);
  }

  /** Step 3: layers fused and reduced to item features. @see itemFeatures */
  itemFeatures(knowledge: Knowledge, options: Parameters<typeof itemFeatures>[2]): ReturnType<typeof itemFeatures> {
    return itemFeatures(this.#native, knowledge, options);
  }

  /** Step 3: rankings that a teacher outside this engine made. @see importRankings */
  async importRankings(
    dataset: Dataset,
    options: ImportRankingsOptions,
    hooks: Hooks = {},
  ): ReturnType<typeof importRankings> {
    checkHooks(hooks);
    return importRankings(dataset, options, hooks);
  }

  /** Step 3: layers of states fused into one vector a text. @see fuseLayers */
  fuseLayers(
    layers: readonly Float32Array[],
    size: Parameters<typeof fuseLayers>[2],
    options: FusionOptions = {},
    context: Parameters<typeof fuseLayers>[4] = {},
  ): ReturnType<typeof fuseLayers> {
    return fuseLayers(this.#native, layers, size, options, context);
  }

  /** Principal components of vectors. @see reduceDimension */
  reduceDimension(x: Float32Array, options: Parameters<typeof reduceDimension>[2]): ReturnType<typeof reduceDimension> {
    return reduceDimension(this.#native, x, options);
  }

  /** Step 4: a sequence model with random weights over `numItems` items. */
  createSequenceModel(
    architecture: SequenceArchitecture,
    options: { readonly numItems: number; readonly seed: number; readonly itemFeatures?: Float32Array },
  ): SequenceModel {
    checkObject(options, 'options', '{ numItems, seed, itemFeatures }', ['numItems', 'seed']);
    const { numItems, itemFeatures: features } = options;
    const config = sequenceConfig(architecture, numItems, features ? features.length / numItems : 0);
    return SequenceModel.create(this.#native, config, options);
  }

  /** Step 5: sequence models that teach together, which it owns from now on. @see {@link SequenceEnsemble.of} */
  createSequenceEnsemble(
    members: readonly SequenceModel[],
    options: Parameters<typeof SequenceEnsemble.of>[2] = {},
  ): SequenceEnsemble {
    return SequenceEnsemble.of(this.#native, members, options);
  }

  /** Steps 5 and 6: trains a sequence model, by distillation when there is a teacher. @see fineTuneSequenceModel */
  async fineTune(
    model: SequenceModel,
    data: SequenceTrainingData,
    options: FineTuneOptions = {},
    context: FineTuneContext = {},
  ): Promise<FitResult> {
    checkHooks(context, ['teacher', 'rankings', 'checkpoint', 'describe']);
    return fineTuneSequenceModel(this.#native, model, data, options, context);
  }

  /** Steps 4 to 6 for a language model, from one teacher or several. @see distillLanguageModel */
  async distillLanguageModel(
    teachers: LanguageTeacher | readonly WeightedTeacher[],
    corpus: TextCorpus,
    options: LanguageStudentOptions = {},
    context: LanguageStudentContext = {},
  ): Promise<FitResult & { model: LanguageModel }> {
    checkHooks(context, ['checkpoint', 'describe', 'afterEpoch', 'tokenizer']);
    return distillLanguageModel(this.#native, teachers, corpus, options, context);
  }

  /** Topics of texts, learned from examples on a language model that stays as it is. @see fitClassifier */
  async fitClassifier(
    model: LanguageModel,
    texts: readonly string[],
    labels: readonly string[],
    options: ClassifierOptions = {},
    hooks: Pick<Hooks, 'signal'> = {},
  ): ReturnType<typeof fitClassifier> {
    checkHooks(hooks);
    return fitClassifier(this.#native, model, texts, labels, options, hooks);
  }

  /** Opens what `classifier.save` wrote, with its language model. @see loadClassifier */
  loadClassifier(directory: string): Promise<Classifier> {
    return loadClassifier(this.#native, directory);
  }

  /** Step 7: a trained sequence model ready to serve; the student owns the model from now on. */
  createStudent(model: SequenceModel, items: readonly CatalogueItem[], details: StudentDetails = {}): Student {
    return new Student(this.#native, model, items, undefined, details);
  }

  /** Step 7: opens a student directory. @see loadStudent */
  loadStudent(directory: string): Promise<Student> {
    return loadStudent(this.#native, directory);
  }

  /** Step 7: a new student from feedback, promoted only if it is not worse. @see finetune */
  async finetune(
    student: Student,
    events: FeedbackSource,
    options: FinetuneOptions = {},
    hooks: Hooks = {},
  ): Promise<FinetuneResult> {
    checkHooks(hooks);
    return finetune(this.#native, student, events, options, hooks);
  }

  /** Versions of a student under one directory: add, load, promote, roll back. @see ModelRegistry.open */
  openModelRegistry(directory: string, options: ModelRegistryOptions = {}): Promise<ModelRegistry> {
    return ModelRegistry.open(this.#native, directory, options);
  }

  /**
   * Step 8: ranks the test cases of an output directory again, with its student.
   *
   * @param directory what `distill` wrote; its settings say at which cut-offs
   * @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT, ERR_CHECKPOINT_MISMATCH, ERR_ABORTED and the codes of {@link loadStudent}
   */
  async evaluate(directory: string, hooks: Hooks = {}): Promise<{ rows: readonly ResultRow[] }> {
    checkHooks(hooks);
    checkPath(directory, 'directory');
    const cases = join(directory, 'evaluation.safetensors');
    if (!(await pathExists(cases))) {
      throw new LimbeckError(
        'ERR_FILE_NOT_FOUND',
        `There is no '${cases}'. Give the output directory of a distillation, which holds the test cases beside student/`,
      );
    }
    const { test, trainCounts } = await loadEvaluation(cases);
    const { ks, seed } = await evaluationSettings(join(directory, 'distill.json'));
    const student = await this.loadStudent(join(directory, 'student'));
    try {
      if (trainCounts.length > student.numItems) {
        throw new LimbeckError(
          'ERR_CHECKPOINT_MISMATCH',
          `'${directory}': test cases over ${trainCounts.length} items and a student of ${student.numItems}`,
        );
      }
      const distilled = await modelResult(
        'distilled student',
        [{ seed: 0, model: student.model }],
        test,
        await studentLatency([student], test),
        hooks,
      );
      const options = { ks, numItems: student.numItems, seed };
      const popularity = await resultRow(await popularityResult(trainCounts, test), options);
      return { rows: [popularity, await resultRow({ ...distilled, seeds: [] }, options)] };
    } finally {
      student.dispose();
    }
  }

  /**
   * Step 8, for claims: baselines, teacher and students on one data set, each of several seeds, by full ranking, with
   * paired intervals. Results go to `options.output`; what an earlier call finished is not run again.
   *
   * @throws LimbeckError as {@link distill}
   */
  async benchQuality(options: QualityOptions, context: QualityContext = {}): Promise<QualityResult> {
    checkHooks(context, ['version', 'commit']);
    return benchQuality(this.#native, options, context);
  }

  /** Stops the threads; every object that this engine made is unusable afterwards. */
  dispose(): void {
    this.#native.dispose();
  }
}
