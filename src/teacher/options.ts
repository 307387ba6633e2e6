import { z } from 'zod';

const size = z
  .int()
  .min(1)
  .max(1 << 20);
const probability = z.number().min(0).lt(1);

const numHiddenLayers = z.int().min(1).max(1024);
const maxPositionEmbeddings = z
  .int()
  .min(2)
  .max(1 << 20);
const dropout = probability.default(0.1);

const isCutIntoHeads = (shape: { readonly hiddenSize: number; readonly numAttentionHeads: number }) =>
  shape.hiddenSize % shape.numAttentionHeads === 0;
const notCut = { message: 'expected a multiple of numAttentionHeads', path: ['hiddenSize'] };

/** Shape of a language model that is trained from scratch. */
export const languageModelArchitectureSchema = z
  .strictObject({
    hiddenSize: size.default(128),
    numHiddenLayers: numHiddenLayers.default(3),
    numAttentionHeads: size.default(4),
    /** @defaultValue 4 · hiddenSize */
    intermediateSize: size.optional(),
    maxPositionEmbeddings: maxPositionEmbeddings.default(128),
    dropout,
  })
  .refine(isCutIntoHeads, notCut);

/** Shape of a language model that has a teacher: what is left out is in proportion to the teacher's. */
export const languageStudentArchitectureSchema = z
  .strictObject({
    hiddenSize: size.default(64),
    numHiddenLayers: numHiddenLayers.default(2),
    numAttentionHeads: size.default(2),
    /** Heads of keys and values, which groups of query heads share. @defaultValue {@link languageStudentConfig} */
    numKeyValueHeads: size.optional(),
    /** Width of a head, in families with rotary positions. @defaultValue {@link languageStudentConfig} */
    headDim: size.optional(),
    /** @defaultValue {@link languageStudentConfig} */
    intermediateSize: size.optional(),
    /** At most the teacher's, which is the default. */
    maxPositionEmbeddings: maxPositionEmbeddings.optional(),
    dropout,
  })
  .refine(isCutIntoHeads, notCut);

/** How the optimiser runs; the same keys for every model. */
export const optimizationShape = {
  epochs: z.int().min(1).max(100_000),
  /** Peak of the schedule. */
  learningRate: z.number().gt(0).max(10),
  /** Share of all steps that warm up. */
  warmupRatio: z.number().min(0).lt(1).default(0.1),
  /** What the learning rate has fallen to when the last step is over / peak. */
  minLearningRateRatio: z.number().min(0).max(1).default(0.05),
  /** Tokens of a step, as whole sequences. */
  batchTokens: z
    .int()
    .min(2)
    .max(1 << 24),
  /**
   * Tokens of a step that are in memory at once, as whole sequences; a longer sequence is computed alone. Gradients are
   * added up, and the step is that of the whole batch but for rounding. @defaultValue all
   */
  microBatchTokens: z
    .int()
    .min(1)
    .max(1 << 24)
    .optional(),
  /**
   * Of each block, keep the input alone until the way back, where the rest is computed again (Chen et al. 2016,
   * arXiv:1604.06174): less memory, more time, the same bits.
   */
  activationCheckpointing: z.boolean().default(false),
  optimizer: z.enum(['adamw', 'sgd']).default('adamw'),
  /** Decoupled, on tensors of rank ≥ 2 only. */
  weightDecay: z.number().min(0).max(1).default(0.01),
  /** SGD only. */
  momentum: z.number().min(0).lt(1).default(0.9),
  beta1: z.number().min(0).lt(1).default(0.9),
  beta2: z.number().min(0).lt(1).default(0.98),
  epsilon: z.number().gt(0).default(1e-8),
  /** Clip of the global gradient norm; 0 = off. */
  maxGradNorm: z.number().min(0).default(1),
  /** Epochs without a better validation value after which training stops; 0 = never. */
  patience: z.int().min(0).default(0),
  seed: z
    .int()
    .min(0)
    .max(2 ** 31 - 1)
    .default(0),
} as const;

/** Training of a language model. */
export const languageModelTrainingSchema = z.strictObject({
  ...optimizationShape,
  epochs: optimizationShape.epochs.default(3),
  learningRate: optimizationShape.learningRate.default(1e-3),
  batchTokens: optimizationShape.batchTokens.default(2048),
  /** Longer texts are cut into pieces of this many tokens. @defaultValue the model's positions */
  maxLength: z.int().min(2).optional(),
  /** Masked language models: share of tokens that are predicted. */
  maskProbability: z.number().gt(0).lt(1).default(0.15),
});

/** A low-rank adapter (Hu et al. 2021, arXiv:2106.09685): W + (alpha / rank)·B·A in place of W, B and A alone trained. */
export const loraSchema = z.strictObject({
  /** Rows of A; at most the smaller side of any weight that is adapted. */
  rank: z
    .int()
    .min(1)
    .max(1 << 16)
    .default(8),
  /** @defaultValue 2 · rank */
  alpha: z.number().gt(0).max(1e6).optional(),
  /** Of what A reads, in training. */
  dropout: probability.default(0),
  /**
   * `attention.qkv`, `attention.output`, `mlp.input`, `mlp.output`, or ends of module names as in PEFT's `target_modules`:
   * `q_proj`, `attn.c_attn`.
   */
  targets: z.array(z.string().min(1)).min(1).default(['attention.qkv', 'attention.output']),
});

/** Further training of a language model. */
export const languageModelAdaptationSchema = languageModelTrainingSchema.extend({
  /** Trains an adapter and nothing else: for models too large to be trained in full. On the processor. */
  lora: loraSchema.optional(),
});

/** A language model that is trained from scratch. */
export const pretrainOptionsSchema = z.strictObject({
  /** `causal`: a GPT-2, which predicts the next token; `masked`: a BERT, which predicts hidden ones. */
  objective: z.enum(['causal', 'masked']).default('causal'),
  architecture: languageModelArchitectureSchema.prefault({}),
  tokenizer: z
    .strictObject({
      /** Special tokens + 256 bytes + merges. */
      vocabSize: z
        .int()
        .min(258)
        .max(1 << 20)
        .default(2048),
    })
    .prefault({}),
  training: languageModelTrainingSchema.prefault({}),
});

export type LanguageModelArchitecture = z.input<typeof languageModelArchitectureSchema>;
export type LanguageModelTraining = z.input<typeof languageModelTrainingSchema>;
export type LanguageStudentArchitecture = z.output<typeof languageStudentArchitectureSchema>;
export type ResolvedLanguageModelTraining = z.output<typeof languageModelTrainingSchema>;
export type LoraOptions = z.input<typeof loraSchema>;
export type LanguageModelAdaptation = z.input<typeof languageModelAdaptationSchema>;
export type PretrainOptions = z.input<typeof pretrainOptionsSchema>;
export type ResolvedOptimization = z.output<z.ZodObject<typeof optimizationShape>>;
