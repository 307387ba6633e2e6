/** Step 2 of distillation: a teacher trained from scratch, or one that exists adapted to the texts at hand. */
import { checkObject } from '../arguments.js';
import type {
  LossOptions,
  NativeEngine,
  NativeTrainer,
  NativeTransformer,
  PackedBatch,
  TeacherSignal,
  TransformerConfig,
} from '../binding.js';
import { trainBytePairTokenizer } from '../formats/bpe-trainer.js';
import { createTokenizer } from '../formats/tokenizer.js';
import type { Hooks, ProgressEvent } from '../prepare/hooks.js';
import { parseOptions } from '../prepare/parse-options.js';
import { checkTextFile, checkTexts, eachText, isTextFile, type Texts } from '../prepare/text-lines.js';
import { batchesByTokens, shuffled } from './batches.js';
import type { PieceSource } from './corpus.js';
import { FAMILY_STRUCTURES } from './family-structures.js';
import { type EpochRecord, type FitResult, fitModel, type StepPosition } from './fit-model.js';
import { LanguageModel } from './language-model.js';
import {
  type LanguageModelArchitecture,
  type LanguageModelTraining,
  languageModelArchitectureSchema,
  languageModelTrainingSchema,
  type PretrainOptions,
  pretrainOptionsSchema,
  type ResolvedLanguageModelTraining,
  type ResolvedOptimization,
} from './options.js';
import type { CheckpointOptions } from './training-checkpoint.js';

export interface TextCorpus {
  readonly train: Texts;
  /** Early stopping and the choice of the best epoch. */
  readonly validation: Texts;
}

/** @throws LimbeckError ERR_INVALID_ARGUMENT for what is none */
export function checkCorpus(corpus: TextCorpus): void {
  checkObject(corpus, 'corpus', '{ train, validation }', ['train', 'validation']);
}

/** Tokens of one step, as the student reads them. */
export interface TrainingBatch extends PackedBatch {
  /** Its pieces of the tokenised training corpus, in their order. */
  readonly indices: Int32Array; // [S]
}

/** What distillation adds to a language model's training. */
export interface LanguageModelTeaching {
  /** Whether the teacher knows what will be learned; throws before the first step. */
  readonly check?: (train: PieceSource, hooks: Hooks) => Promise<void>;
  /** What the teacher, or each of several, says about the tokens of a batch. */
  readonly signal: (
    batch: TrainingBatch,
  ) => TeacherSignal | readonly TeacherSignal[] | Promise<TeacherSignal | readonly TeacherSignal[]>;
  /** Shapes of the projections set on the trainer before. */
  readonly prepare?: (trainer: NativeTrainer) => readonly (readonly [number, number])[];
  readonly losses: (position: StepPosition) => LossOptions;
  readonly afterStep?: ((position: StepPosition) => Promise<void>) | undefined;
}

export interface TrainLanguageModelContext extends Hooks {
  readonly checkpoint?: CheckpointOptions | undefined;
  readonly teaching?: LanguageModelTeaching | undefined;
  readonly afterEpoch?: ((record: EpochRecord) => Promise<void>) | undefined;
  readonly describe?: Pick<ProgressEvent, 'step' | 'name'>;
}

/** Cross-entropy alone. */
export const CROSS_ENTROPY: LossOptions = {
  ce: 1,
  kd: 0,
  hidden: 0,
  attention: 0,
  temperature: 1,
  fusion: 1,
  gate: 1,
};

export function createTrainer(
  engine: NativeEngine,
  model: NativeTransformer,
  options: Omit<ResolvedOptimization, 'epochs' | 'learningRate' | 'batchTokens'>,
): NativeTrainer {
  const { optimizer, beta1, beta2, epsilon, weightDecay, momentum, maxGradNorm } = options;
  return engine.createTrainer(model, { optimizer, beta1, beta2, epsilon, weightDecay, momentum, maxGradNorm });
}

/**
 * Trains a language model on texts with its own objective; a loaded model is adapted by this. The model ends with the
 * parameters of the epoch that had the lowest validation loss.
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION, ERR_EMPTY_DATA, ERR_TOKENIZER, ERR_ABORTED,
 * ERR_NOT_FINITE, ERR_CHECKPOINT_MISMATCH, ERR_NO_SPACE, ERR_IO, ERR_OUT_OF_MEMORY
 */
export async function trainLanguageModel(
  engine: NativeEngine,
  model: LanguageModel,
  corpus: TextCorpus,
  options: LanguageModelTraining = {},
  context: TrainLanguageModelContext = {},
): Promise<FitResult> {
  checkCorpus(corpus);
  const settings = parseOptions(languageModelTrainingSchema, options, 'training');
  const { signal, teaching } = context;
  const { maxLength } = settings;
  const train = await model.openPieces(corpus.train, { name: 'corpus.train', maxLength, signal });
  try {
    const validation = await model.openPieces(corpus.validation, { name: 'corpus.validation', maxLength, signal });
    try {
      await teaching?.check?.(train, context);
      return await fitPieces(engine, model, { train, validation }, settings, context);
    } finally {
      await validation.close();
    }
  } finally {
    await train.close();
  }
}

async function fitPieces(
  engine: NativeEngine,
  model: LanguageModel,
  { train, validation }: { readonly train: PieceSource; readonly validation: PieceSource },
  settings: ResolvedLanguageModelTraining,
  context: TrainLanguageModelContext,
): Promise<FitResult> {
  const { seed, batchTokens, microBatchTokens, epochs, patience, maskProbability } = settings;
  const { teaching } = context;
  const batchesOf = perEpoch((epoch) =>
    batchesByTokens(train.offsets, batchTokens, shuffled(train.offsets.length - 1, seed, epoch)),
  );
  const trainer = createTrainer(engine, model.native, settings);
  try {
    return await fitModel(
      {
        model: model.native,
        trainer,
        projections: teaching?.prepare?.(trainer) ?? [],
        epochs,
        stepsOf: (epoch) => batchesOf(epoch).length,
        schedule: settings,
        patience,
        seed,
        memory: { microBatchTokens, activationCheckpointing: settings.activationCheckpointing },
        request: async (position) => {
          const indices = batchesOf(position.epoch)[position.index] ?? new Int32Array(0);
          const { batch, labels } = model.label(await train.read(indices), {
            probability: maskProbability,
            seed,
            position: position.step,
          });
          return {
            ...batch,
            labels,
            learningRate: position.learningRate,
            dropoutSeed: position.dropoutSeed,
            losses: teaching?.losses(position) ?? CROSS_ENTROPY,
            ...(teaching ? { teacher: await teaching.signal({ ...batch, indices }) } : {}),
            sampledNegatives: 0,
          };
        },
        readsAhead: true,
        afterStep: teaching?.afterStep,
        validate: async () => (await model.corpusLoss(validation, context)).loss,
        afterEpoch: context.afterEpoch,
        checkpoint: context.checkpoint,
        describe: context.describe ?? { step: 'teacher', name: 'language model' },
      },
      context,
    );
  } finally {
    trainer.dispose();
  }
}

/**
 * Trains a byte-level BPE tokenizer and a language model from scratch: a GPT-2 (causal) or a BERT (masked).
 *
 * @throws as {@link trainLanguageModel}
 */
export async function pretrainLanguageModel(
  engine: NativeEngine,
  corpus: TextCorpus,
  options: PretrainOptions = {},
  context: TrainLanguageModelContext = {},
): Promise<FitResult & { model: LanguageModel }> {
  checkCorpus(corpus);
  const { objective, architecture, tokenizer, training } = parseOptions(pretrainOptionsSchema, options, 'teacher');
  const named = objective === 'causal' ? { eos_token: '<|endoftext|>' } : { pad_token: '[PAD]', mask_token: '[MASK]' };
  const specialTokens = Object.values(named);
  if (isTextFile(corpus.train)) checkTextFile(corpus.train, 'corpus.train');
  else checkTexts(corpus.train, 'corpus.train');
  const texts = isTextFile(corpus.train) ? eachText(corpus.train, context.signal) : corpus.train;
  const json = await trainBytePairTokenizer(texts, { vocabSize: tokenizer.vocabSize, specialTokens });
  // Or else transformers takes a BERT's to be a WordPiece.
  const tokenizerConfig = { tokenizer_class: 'PreTrainedTokenizerFast', ...named, clean_up_tokenization_spaces: false };
  const trained = createTokenizer(json, tokenizerConfig);
  const family = objective === 'causal' ? 'gpt2' : 'bert';
  const config = languageModelConfig(family, trained.vocabSize, architecture);
  const model = LanguageModel.create(engine, family, config, trained, { seed: training.seed });
  try {
    return { ...(await trainLanguageModel(engine, model, corpus, training, context)), model };
  } catch (error) {
    model.dispose();
    throw error;
  }
}

/** The native configuration of a GPT-2 or BERT of a given shape. */
export function languageModelConfig(
  family: 'gpt2' | 'bert',
  vocabSize: number,
  architecture: LanguageModelArchitecture = {},
): TransformerConfig {
  const shape = parseOptions(languageModelArchitectureSchema, architecture, 'architecture');
  const { hiddenSize, numHiddenLayers, numAttentionHeads, maxPositionEmbeddings, dropout } = shape;
  return {
    ...FAMILY_STRUCTURES[family],
    vocabSize,
    hiddenSize,
    numHiddenLayers,
    numAttentionHeads,
    numKeyValueHeads: numAttentionHeads,
    headDim: hiddenSize / numAttentionHeads,
    intermediateSize: shape.intermediateSize ?? 4 * hiddenSize,
    maxPositionEmbeddings,
    tieWordEmbeddings: true,
    embeddingDropout: dropout,
    attentionDropout: dropout,
    hiddenDropout: dropout,
  };
}

/** Remembers the last epoch's answer: a batch plan is asked for at every step. */
export function perEpoch<T>(make: (epoch: number) => T): (epoch: number) => T {
  let last: { epoch: number; value: T } | undefined;
  return (epoch) => {
    if (last?.epoch !== epoch) last = { epoch, value: make(epoch) };
    return last.value;
  };
}
