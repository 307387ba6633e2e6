/**
 * The only file that loads the native addon, and the hand-written description of what it exports.
 *
 * Letters: N packed tokens of a batch, S sequences, d hidden size, V vocabulary size (items for a sequence student),
 * L layers, H heads. Hidden state 0 is the embedding output, hidden state l the output of block l (the last one after
 * the final norm). Attention l (1 … L) is the map of block l.
 *
 * Float arrays above 1 MiB are read in place by work that runs in the background: do not change or transfer them until
 * its promise settles.
 */
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { LimbeckError } from './errors.js';

/** How rotary frequencies are changed for sequences longer than those of pretraining; `rope_scaling` of Hugging Face. */
export interface RopeScaling {
  /** `dynamic` changes nothing up to `maxPositionEmbeddings`, and no longer sequence is taken. */
  readonly ropeType: 'linear' | 'dynamic' | 'llama3' | 'yarn';
  /** ≥ 1. */
  readonly factor: number;
  /** Positions of pretraining; llama3 and yarn. */
  readonly originalMaxPositionEmbeddings?: number;
  /** llama3: turns within those positions between which a pair goes from slowed to unchanged. */
  readonly lowFreqFactor?: number;
  readonly highFreqFactor?: number;
  /** yarn: the same bounds, upper and lower. */
  readonly betaFast?: number;
  readonly betaSlow?: number;
  /** yarn: factor of queries and keys both. */
  readonly attentionFactor?: number;
}

/**
 * One transformer for every family; Hugging Face names. Nothing is guessed below this line: keys are required, but for
 * those of parts that most models do not have, where absent means without.
 */
export interface TransformerConfig {
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly numHiddenLayers: number;
  readonly numAttentionHeads: number;
  readonly numKeyValueHeads: number;
  readonly headDim: number;
  readonly intermediateSize: number;
  readonly maxPositionEmbeddings: number;
  /** 0 = no token types (BERT has 2). */
  readonly typeVocabSize: number;
  readonly norm: 'layerNorm' | 'rmsNorm';
  /** `before`: GPT-2, Llama (with a final norm); `after`: BERT (with a norm after the embeddings). */
  readonly normPlacement: 'before' | 'after';
  readonly normEps: number;
  readonly positions: 'learned' | 'rotary';
  readonly ropeTheta: number;
  /** `causal`: a token sees itself and earlier ones; `bidirectional`: the whole sequence. */
  readonly attention: 'causal' | 'bidirectional';
  /** `gelu_new` = tanh form, `gelu` = erf form, `swiglu` = silu(gate)·up. */
  readonly hiddenAct: 'gelu_new' | 'gelu' | 'swiglu';
  readonly qkvBias: boolean;
  readonly attentionOutputBias: boolean;
  readonly mlpBias: boolean;
  readonly tieWordEmbeddings: boolean;
  /** BERT's masked-LM head: dense + activation + norm before the decoder, and a bias on the logits. */
  readonly maskedLmHead: boolean;
  /** Width f of frozen item features u_i; item vector e_i = v_i + A·u_i. 0 = none. */
  readonly itemFeatureSize: number;
  readonly embeddingDropout: number;
  readonly attentionDropout: number;
  readonly hiddenDropout: number;
  /** Rows of the position table before position 0: RoBERTa's padding_idx + 1. */
  readonly positionOffset?: number;
  /** A token sees itself and the `slidingWindow` − 1 tokens before it. */
  readonly slidingWindow?: number;
  /** The first blocks, which have no window. */
  readonly maxWindowLayers?: number;
  /** RMS norms over each head of queries and keys, before they are turned (Qwen3). */
  readonly qkNorm?: boolean;
  readonly ropeScaling?: RopeScaling;
}

/** Sequences laid end to end, without padding. */
export interface PackedBatch {
  readonly inputIds: Int32Array; // [N]
  readonly sequenceOffsets: Int32Array; // [S + 1], from 0 to N, strictly ascending
  readonly tokenTypeIds?: Int32Array; // [N]
}

export interface ForwardRequest extends PackedBatch {
  /** Hidden states wanted, each 0 … L. */
  readonly hiddenStates?: readonly number[];
  /**
   * All but `none` give one row a sequence instead of one a token. `cls` is the first token; `attention` weighs each token
   * by the attention that it receives in the block before the hidden state (the first block for the embeddings): mean over
   * heads and the queries that see it, normalised to sum 1.
   *
   * @defaultValue none
   */
  readonly pooling?: 'none' | 'mean' | 'last' | 'cls' | 'attention';
  /** Attention maps wanted, each 1 … L. */
  readonly attentions?: readonly number[];
  /** Blocks whose value relations softmax(V·Vᵀ/√d_r) are wanted, each 1 … L. */
  readonly valueRelations?: readonly number[];
  /** Heads that the columns of V are cut into anew; divides numKeyValueHeads·headDim. */
  readonly relationHeads?: number;
  /** Logits wanted; with `topK`, the best values, their ids and the log-sum-exp of the row. */
  readonly logits?: 'dense' | { readonly topK: number };
  /** Tokens whose logits are wanted. @defaultValue all */
  readonly logitRows?: Int32Array;
  /** Target id a token, -100 = ignored; gives `loss` (mean cross-entropy over labelled tokens). */
  readonly labels?: Int32Array; // [N]
}

export interface ForwardResult {
  readonly hiddenStates: Float32Array[]; // each [N or S, d], in the order asked
  readonly attentions: Float32Array[]; // each: S maps [H, t, t] end to end, t = length of the sequence
  readonly valueRelations: Float32Array[]; // each: S maps [relationHeads, t, t] end to end
  readonly logits?: Float32Array; // [rows, V]
  readonly topK?: { indices: Int32Array; values: Float32Array; logSumExp: Float32Array }; // [rows, K], [rows, K], [rows]
  readonly loss?: number;
  readonly lossSum?: number;
  readonly numLabels?: number;
}

export interface ParameterInfo {
  readonly name: string;
  readonly shape: readonly number[];
}

/** A run of values as a checkpoint stores them, little-endian. */
export interface StoredValues {
  readonly dtype: 'F32' | 'F16' | 'BF16' | 'F64';
  readonly bytes: Uint8Array;
  /** Index of the first value, in the order of the file. */
  readonly offset: number;
  /** The file has [columns, rows] of the parameter's [rows, columns]. */
  readonly isTransposed: boolean;
}

/** How the axes of a smaller model are filled from a larger one. */
export interface ProjectionMap {
  /** Entry i = source block (1 … L of the source) that fills block i + 1. */
  readonly layers: readonly number[];
  /**
   * `selection` keeps channels; `pca` turns the residual stream onto `components`, and heads of fewer channels onto what
   * their products do.
   */
  readonly width: 'selection' | 'pca';
  /** For `pca`, where the target is narrower: orthonormal rows [d, d_source]. */
  readonly components?: Float32Array;
  /** The places of the source that are kept, each list ascending, instead of evenly spread ones. */
  readonly channels?: ChannelSelection;
}

export interface ChannelSelection {
  /** For `selection`. */
  readonly residual?: readonly number[]; // [d]
  readonly intermediate?: readonly (readonly number[])[]; // [L][intermediateSize]
  /** Query heads go with their key-value head. */
  readonly keyValueHeads?: readonly (readonly number[])[]; // [L][numKeyValueHeads]
}

/** A value of every parameter or channel, summed over what belongs to a place of an axis. */
export interface AxisSums {
  readonly residual: Float64Array; // [d]
  readonly intermediate: readonly Float64Array[]; // [L][intermediateSize]
  readonly keyValueHeads: readonly Float64Array[]; // [L][numKeyValueHeads]
  readonly layers: Float64Array; // [L]
}

/** How much parameters and channels of a model matter for a corpus. */
export interface NativeImportance {
  /** Sequences with a label so far. */
  readonly numExamples: number;
  /** Each sequence is one example, its loss the mean cross-entropy of its labels; -100 = ignored. */
  add(request: PackedBatch & { readonly labels: Int32Array }): Promise<void>;
  /** Mean over examples of the squared gradient: the diagonal of the empirical Fisher information. */
  squaredGradient(name: string): Float32Array;
  /** The same, summed by axis. */
  fisher(): Promise<AxisSums>;
  /** Times the square of each parameter: twice what the loss is expected to rise by without it. */
  saliency(): Promise<AxisSums>;
  /**
   * Mean absolute activation: of the residual stream over all hidden states, of intermediate channels, of the columns
   * that heads attend with. `layers`: how far each block moves the residual stream.
   */
  activation(): AxisSums;
  dispose(): void;
}

/** W + scale·B·A in place of weights W (Hu et al. 2021, arXiv:2106.09685). */
export interface NativeAdapter {
  readonly rank: number;
  /** α / rank. */
  readonly scale: number;
  /** Of what A reads, in training; in [0, 1). */
  readonly dropout: number;
  /** Of the initial A. */
  readonly seed: number;
  readonly targets: readonly AdapterTarget[];
}

/** Rows of a linear layer's weight that get a share of their own. */
export interface AdapterTarget {
  /** Of its parameters: NAME.lora_A.weight [rank, in], NAME.lora_B.weight [numRows, rank]. */
  readonly name: string;
  /** Such as `layers.0.attention.qkv`. */
  readonly linear: string;
  readonly firstRow: number;
  readonly numRows: number;
}

export interface NativeTransformer {
  /** Where forward() and the steps of trainers run. */
  readonly device: 'cpu' | 'cuda';
  readonly numParameters: number;
  parameters(): ParameterInfo[];
  /** What training changes: the parameters of the adapter where there is one, else those of the model. */
  trainableParameters(): ParameterInfo[];
  /**
   * Puts a low-rank adapter over linear layers. Until it is merged or removed, what else would change the model's own
   * parameters is refused. B = 0, and A uniform in ±1/√in. Not on the GPU.
   */
  attachAdapter(adapter: NativeAdapter): void;
  /** Adds the adapter to the model's own parameters, and ends it; without one, nothing is done. */
  mergeAdapter(): Promise<void>;
  /** Ends the adapter: the model is as it was before. */
  removeAdapter(): void;
  /** What the model computes with: the adapter's share is added. Knows the adapter's own parameters, too. */
  getParameter(name: string): Float32Array;
  /** CRC-32C of the bytes of getParameter(), without a copy of them; of the model's own parameters. */
  parameterChecksum(name: string): number;
  /** Of {@link trainableParameters}. */
  setParameter(name: string, values: Float32Array): void;
  /**
   * Widens values of a checkpoint into a parameter. Returns the index in `bytes` of the first one that is NaN or infinite
   * in float32, -1 = none.
   */
  loadParameter(name: string, values: StoredValues): number;
  /** Gradient left by the trainer's last computeGradients(). */
  getGradient(name: string): Float32Array;
  /** Normal(0, initializerRange) weights, zero biases, unit gains; residual outputs scaled by 1/√(2L). */
  initialize(seed: number, initializerRange: number): void;
  /** Frozen features u [V, itemFeatureSize]. */
  setItemFeatures(features: Float32Array): void;
  /** Item table e_i = v_i + A·u_i, [V, d]. */
  itemTable(): Float32Array;
  /**
   * Adds bias [V] to the logits for every input, folded into the last layer norm and the item table. Needs tied
   * embeddings and layer norms, and no head between.
   */
  addItemBias(bias: Float32Array): void;
  forward(request: ForwardRequest): Promise<ForwardResult>;
  /** θ ← θ + alpha·weights⊙(φ − θ) for one parameter. @param weights @defaultValue ones */
  interpolate(name: string, target: Float32Array, alpha: number, weights?: Float32Array): Promise<void>;
  /** θ ← θ + alpha·(φ − θ) for every parameter, on the model's device; `source` has the same parameters. */
  interpolateFrom(source: NativeTransformer, alpha: number): Promise<void>;
  /** Another transformer with the same configuration, parameters and item features. */
  copy(): NativeTransformer;
  /** φ(source) for every parameter of this model's shape, as named arrays; nothing is changed. */
  project(source: NativeTransformer, map: ProjectionMap): Promise<{ name: string; values: Float32Array }[]>;
  /** Continues a text with a causal model, piece by piece. */
  startGeneration(request: GenerationRequest): NativeGeneration;
  dispose(): void;
}

export interface GenerationRequest {
  readonly inputIds: Int32Array;
  readonly maxNewTokens: number;
  /** None of `eosTokenIds` is drawn before so many. */
  readonly minNewTokens: number;
  /** 0 = greedy. */
  readonly temperature: number;
  /** 0 = all. */
  readonly topK: number;
  /** Draws come from the fewest best candidates with this much of the probability, in (0, 1]. */
  readonly topP: number;
  /** Divides the positive logits of tokens that are in the text, multiplies the others; > 0, 1 = none. */
  readonly repetitionPenalty: number;
  readonly seed: number;
  /** Each ends the text. */
  readonly eosTokenIds: Int32Array;
}

/** A text on its way, with the keys and values of its tokens. Its model must not be trained before its end. */
export interface NativeGeneration {
  /** The next `count` tokens, without the end-of-text token; fewer at the end. */
  next(count: number): Promise<Int32Array>;
  dispose(): void;
}

export interface OptimizerOptions {
  readonly optimizer: 'adamw' | 'sgd';
  readonly beta1: number;
  readonly beta2: number;
  readonly epsilon: number;
  /** Decoupled, on tensors of rank ≥ 2 only. */
  readonly weightDecay: number;
  /** SGD only. */
  readonly momentum: number;
  /** Global gradient-norm clip; 0 = off. */
  readonly maxGradNorm: number;
}

/** What a teacher said about the tokens of one batch. Either a model to run, or arrays extracted before. */
export interface TeacherSignal {
  /** Of its part in every term, > 0. @defaultValue 1 */
  readonly weight?: number;
  /** A language model over the same vocabulary, run on the same batch. */
  readonly model?: NativeTransformer;
  /** Pairs [student layer, teacher layer], counted from 1; entry i owns hidden[i] and attentions[i]. */
  readonly layerMap: readonly (readonly [number, number])[];
  readonly hidden?: readonly Float32Array[]; // each [N, d_teacher]
  readonly attentions?: readonly Float32Array[]; // each: S maps [H, t, t] end to end
  readonly relations?: readonly Float32Array[]; // each: S maps [relationHeads, t, t] end to end
  /** For the relation loss; divides the columns of the values of student and teacher. */
  readonly relationHeads?: number;
  /** One of these forms of logits over the same V. */
  readonly logits?:
    | { readonly dense: Float32Array } // [N, V]
    | {
        readonly topK: number;
        /** [N, topK]; a row that lists fewer is filled up with −1, and one that lists none is not distilled. */
        readonly indices: Int32Array;
        readonly values: Float32Array; // [N, topK]
        readonly logSumExp: Float32Array; // [N]
        /** [V]: `indices` name classes in [0, numClasses) and not tokens; the student's tokens of a class count together. */
        readonly classes?: Int32Array;
        readonly numClasses?: number;
      }
    | { readonly topK: number; readonly packed: Uint8Array } // rows of packTopK()
    | { readonly hidden: Float32Array; readonly head: NativeTransformer }; // [N, d_teacher] against the head's output table
}

export interface LossOptions {
  readonly ce: number;
  readonly kd: number;
  readonly hidden: number;
  readonly attention: number;
  /** KL of value relations. @defaultValue 0 */
  readonly relation?: number;
  readonly temperature: number;
  /** Soft labels = softmax(((1 − fusion)·z_student + fusion·z_teacher) / τ), student detached; 1 = teacher alone. */
  readonly fusion: number;
  /** KD weight of a token whose label the teacher ranks worse than the student does; 1 = no gate. */
  readonly gate: number;
}

/** How much of a step is in memory at once; what comes out is the same, but for rounding. */
export interface StepMemory {
  /**
   * Whole sequences of at most so many tokens are computed at once, and their gradients added up; a longer sequence is
   * computed alone. undefined: the whole batch at once.
   */
  readonly microBatchTokens?: number | undefined;
  /** Keep the inputs of the blocks alone, and compute the rest again on the way back: the same bits. */
  readonly activationCheckpointing?: boolean | undefined;
}

export interface StepRequest extends PackedBatch, StepMemory {
  readonly labels: Int32Array; // [N], -100 = ignored
  readonly learningRate: number;
  /** Keys the dropout masks; < 0 = no dropout. */
  readonly dropoutSeed: number;
  readonly losses: LossOptions;
  /** Several add up, each by its weight; what their layer maps pair has one projection each, one map after the other. */
  readonly teacher?: TeacherSignal | readonly TeacherSignal[];
  /** Uniform negatives shared by the batch instead of the full softmax; 0 = full. */
  readonly sampledNegatives: number;
}

export interface StepResult {
  readonly loss: number;
  readonly ce: number;
  readonly kd: number;
  readonly hidden: number;
  readonly attention: number;
  readonly relation: number;
  /** Before clipping. */
  readonly gradNorm: number;
  readonly numLabels: number;
}

export interface NativeTrainer {
  /** Learned projections W_l [d_teacher, d_student] of the hidden loss, one a layer-map entry, teacher by teacher. */
  setProjection(index: number, rows: number, columns: number, values: Float32Array): void;
  getProjection(index: number): Float32Array;
  getProjectionGradient(index: number): Float32Array;
  computeGradients(request: StepRequest): Promise<StepResult>;
  step(request: StepRequest): Promise<StepResult>;
  /** Optimiser state: flat first and second moments (model, then projections) and the step count. */
  getState(): { stepCount: number; first: Float32Array; second: Float32Array };
  setState(state: { stepCount: number; first: Float32Array; second: Float32Array }): void;
  dispose(): void;
}

export interface RankRequest extends PackedBatch {
  /** The state after each sequence, where it was computed before: the items are scored against it as they are. */
  readonly states?: Float32Array; // [S, d]
  /** The item that came next, one a sequence. */
  readonly targets: Int32Array; // [S]
  /** Items never to be recommended, one list a sequence (usually the seen ones). The target is never excluded. */
  readonly excludeIds: Int32Array;
  readonly excludeOffsets: Int32Array; // [S + 1]
  /** Length of the returned lists; 0 = ranks only. */
  readonly topK: number;
}

/** Rows are filled up with −1 and −∞. */
export interface BatchAnswers {
  readonly itemIds: Int32Array; // [S, largest k]
  readonly scores: Float32Array; // [S, largest k]
}

/**
 * A folded student: serves synchronously on the calling thread, without allocation once the largest request was seen.
 *
 * A `request` is one array: the numbers k, |history|, |exclude|, |any|, |all|, |none|, |candidates| (−1 = the whole
 * catalogue), |boosted| and the seed, then these lists end to end. history: oldest first, an id below 0 names a row of
 * `features` (−1 is row 0, −2 row 1, …); any, all, none: category ids, −1 = one that no item has. `numbers` holds
 * diversity, novelty and explore, then a boost for each boosted item.
 */
export interface NativeRecommender {
  readonly numItems: number;
  /**
   * Fills itemIds and scores with the best k items after `history` and returns how many there are
   * (fewer than k when the catalogue is exhausted). Best first; equal scores by lower id.
   */
  recommend(request: {
    /** Oldest first. An id below 0 names a row of `features`: −1 is row 0, −2 row 1, … */
    readonly history: Int32Array;
    readonly exclude: Int32Array;
    readonly k: number;
    readonly itemIds: Int32Array; // [≥ k]
    readonly scores: Float32Array; // [≥ k]
    /** Items outside the catalogue that the history names. */
    readonly features?: Float32Array; // [n, itemFeatureSize]
  }): number;
  /** As recommend(), with filters, boosts and reranking; an empty history is answered by popularity. */
  serve(
    request: Int32Array,
    numbers: Float32Array,
    itemIds: Int32Array, // [≥ k]
    scores: Float32Array, // [≥ k]
    features?: Float32Array,
  ): number;
  /**
   * serve() for each history, its own items excluded; seeds count up. Rows are filled up with −1 and −∞.
   */
  serveBatch(
    request: Int32Array, // its own history is not read
    numbers: Float32Array,
    histories: Int32Array,
    offsets: Int32Array, // [S + 1]
    itemIds: Int32Array, // [S, k]
    scores: Float32Array, // [S, k]
  ): void;
  /**
   * Answers requests together, of histories that are not empty, without filters and boosts. `requests` are how many, then
   * of each k, seed, how long its history and its list of excluded items are, and the two; `weights` are diversity,
   * novelty and explore of each [S, 3].
   */
  serveAll(requests: Int32Array, weights: Float32Array): BatchAnswers;
  /** The same on another thread, from the catalogue as it is now. Batches wait for each other. */
  serveAllAside(requests: Int32Array, weights: Float32Array): Promise<BatchAnswers>;
  /**
   * The same, with the answers that answerTexts() gives.
   *
   * @param unknown [S] what `unknownItems` of each lists: JSON strings with commas between
   */
  answerAllAside(requests: Int32Array, weights: Float32Array, unknown: readonly string[]): Promise<string[]>;
  /**
   * Answers those of the texts that are plain requests in JSON: an object of `history`, a list of names of which an item
   * has at least one, and perhaps `k` (1 to `maxK`, 10 without it) and `exclude`, names too; names of printable ASCII
   * without quotes and backslashes. rows [S] are told the answer of each text, −1 = it is not plain. An answer is
   * `"items":[{"id":…,"score":…}],"unknownItems":[…]`. Needs the items' names.
   */
  answerTexts(texts: readonly Uint8Array[], maxK: number, rows: Int32Array): string[];
  /** The same on another thread, as serveAllAside(); the texts and rows are read and told before this returns. */
  answerTextsAside(texts: readonly Uint8Array[], maxK: number, rows: Int32Array): Promise<string[]>;
  /** Whether the items are named, those added since too. */
  readonly hasNames: boolean;
  /** Names the items that have none yet, by JSON strings: what answerTexts() calls them. Removed ones, too. */
  nameItems(names: readonly string[]): void;
  /** The items whose vectors have the largest cosine with that of `item`. */
  similar(item: number, request: Int32Array, numbers: Float32Array, itemIds: Int32Array, scores: Float32Array): number;
  /** Items by the features of a text [itemFeatureSize] and, with a history, by taste. */
  search(
    text: Float32Array,
    request: Int32Array,
    numbers: Float32Array,
    itemIds: Int32Array,
    scores: Float32Array,
    features?: Float32Array,
  ): number;
  /** Share of the next choice's probability that falls to each topic. */
  interests(request: Int32Array, numbers: Float32Array, features?: Float32Array): Float32Array; // [topics]
  /** By how much the scores of items would fall without each entry of the history. */
  explain(request: Int32Array, numbers: Float32Array, items: Int32Array, features?: Float32Array): Float32Array; // [items, |history|]
  /** Appends items known by their features alone (v = 0); returns the id of the first. features: [n, itemFeatureSize]. */
  addItems(features: Float32Array): number;
  /** Describes the next n items that were not described yet. */
  describeItems(items: {
    readonly categories: Int32Array; // lists end to end
    readonly categoryOffsets: Int32Array; // [n + 1]
    readonly boosts: Float32Array; // [n]
    readonly hidden: Int32Array; // [n] 1 = never recommended
  }): void;
  /** Neither recommended nor found by their names any more. */
  hideItems(ids: Int32Array): void;
  /** How often each item was chosen; items added later count 0. */
  setPopularity(counts: Float32Array): void; // [numItems]
  /** Clusters the items' features (or vectors) around `count` topics. */
  findTopics(count: number, seed: number): void;
  setTopics(centroids: Float32Array): void;
  /** Empty before findTopics() or setTopics(). */
  topics(): { readonly centroids: Float32Array; readonly itemTopics: Int32Array }; // [topics, width], [numItems]
  /** The topic of each text, by its features. */
  topicsOf(features: Float32Array): Int32Array; // [texts]
  /** A key by which another thread opens the same weights, and the catalogue as it is now. */
  share(): string;
  /** Full ranking over the items that the model knows: rank of each target (1 = best; ties counted against it), and the top k lists. */
  rank(request: RankRequest): Promise<{ ranks: Int32Array; topK: Int32Array; topKScores: Float32Array }>;
  dispose(): void;
}

/** From token ids to item features, the way the catalogue's own were made: pooled hidden states, fused, reduced. */
export interface TextEncoderOptions {
  readonly model: NativeTransformer;
  /** Hidden states that are read, each 0 … L; pooled by their mean over the tokens. */
  readonly layers: readonly number[];
  /** `sum`: Σ weights[i]·hidden[layers[i]]; `concat`: side by side. */
  readonly fusion: 'sum' | 'concat';
  readonly weights: Float32Array; // [layers], read for `sum`
  readonly mean: Float32Array; // [columns], columns = d, or layers·d for `concat`
  readonly components: Float32Array; // [f, columns]
}

/** A snapshot: later training of the model does not change it. Encodes synchronously on the calling thread. */
export interface NativeTextEncoder {
  readonly featureSize: number;
  encode(batch: PackedBatch): Float32Array; // [S, f]
  /** A key by which another thread opens the same weights. */
  share(): string;
  dispose(): void;
}

/** One GPU, as it is now. */
export interface CudaDevice {
  readonly name: string;
  /** Compute capability, such as `9.0`. */
  readonly capability: string;
  readonly numMultiprocessors: number;
  readonly totalBytes: number;
  readonly freeBytes: number;
  /** Why it cannot be used; empty = it can. */
  readonly problem: string;
}

/** What a machine has of what the CUDA library needs. Versions are 1000·major + 10·minor. */
export interface CudaInfo {
  readonly runtimeVersion: number;
  /** 0 = no driver. */
  readonly driverVersion: number;
  /** The cuBLASLt library in use; empty = none. */
  readonly cublas: string;
  /** Why nothing can be computed; empty = something can. */
  readonly problem: string;
  readonly devices: readonly CudaDevice[];
}

export interface NativeEngineOptions {
  /** Compute threads; 0 = what the cgroup and the affinity mask allow. */
  readonly threads: number;
  /** What operands of products are rounded to in background work; sums are fp32. @defaultValue float32 */
  readonly precision?: 'float32' | 'bfloat16' | 'fastest';
  /** Forward passes and training on a GPU; without, on the processor. */
  readonly cuda?: {
    /** Path of the CUDA library, see {@link findCudaLibrary}. */
    readonly library: string;
    readonly device: number;
    /** @defaultValue false */
    readonly tuneProducts?: boolean;
  };
}

export interface NativeEngine {
  readonly device: 'cpu' | 'cuda';
  /** Of the GPU; empty without one. */
  readonly deviceName: string;
  readonly threads: number;
  readonly precision: 'float32' | 'bfloat16';
  createTransformer(config: TransformerConfig): NativeTransformer;
  createTrainer(model: NativeTransformer, options: OptimizerOptions): NativeTrainer;
  createImportance(model: NativeTransformer): NativeImportance;
  /**
   * Takes a snapshot: later training of the model does not change the recommender.
   *
   * @param minGpuItems size of the catalogue from which the engine's GPU answers plain requests: recommend() and serve()
   * of items of the model, ordered by score alone, of at most 1,024 answers, leaving out at most 1,024 items, unless the
   * model or the GPU is at work; and ranks, where it has the memory. Both until the model changes.
   * @defaultValue 2²³ / hiddenSize
   */
  createRecommender(model: NativeTransformer, minGpuItems?: number): NativeRecommender;
  createTextEncoder(options: TextEncoderOptions): NativeTextEncoder;
  /** Principal components of x [rows, columns] by randomised SVD (Halko et al. 2011, alg. 4.4 + 5.1). */
  pca(request: {
    x: Float32Array;
    rows: number;
    columns: number;
    components: number;
    seed: number;
    whiten: boolean;
  }): Promise<{
    mean: Float32Array; // [columns]
    /** [components, columns], largest variance first; orthonormal rows, or divided by √variance with `whiten`. */
    components: Float32Array;
    explainedVariance: Float32Array; // [components]
  }>;
  /**
   * The axes of a residual stream that carry most of what its norms pass on: principal axes about zero of x [rows, columns]
   * after an RMS norm of gain 1, or a layer norm (`subtractsMean`). Orthonormal rows [axes, columns], largest first. On the
   * processor.
   */
  residualAxes(request: {
    x: Float32Array;
    rows: number;
    columns: number;
    axes: number;
    seed: number;
    subtractsMean: boolean;
  }): Promise<Float32Array>;
  /** X ≈ U·Σ·V of a sparse matrix, given by rows: the `components` largest singular values. Not centred. */
  sparseSvd(request: {
    rowOffsets: Int32Array; // [rows + 1]
    columns: Int32Array; // [entries]
    values: Float32Array; // [entries]
    numColumns: number;
    components: number;
    seed: number;
  }): Promise<{
    singularValues: Float32Array; // [components], falling
    components: Float32Array; // V [components, numColumns], orthonormal rows
    projected: Float32Array; // X·Vᵀ = U·Σ [rows, components]
  }>;
  /** Σ weights[i]·tensors[i]; all of one length. */
  weightedSum(request: { tensors: readonly Float32Array[]; weights: readonly number[] }): Promise<Float32Array>;
  /**
   * Weights that sum to 1 under which the fused vectors of items that follow each other agree best: softmax over
   * layers, trained by in-batch contrast of the cosine of queries[i] and targets[i].
   */
  learnLayerWeights(request: {
    layers: readonly Float32Array[]; // each [rows, columns]
    rows: number;
    columns: number;
    queries: Int32Array; // [pairs] rows
    targets: Int32Array; // [pairs] rows
    steps: number;
    seed: number;
  }): Promise<{ weights: Float32Array; firstLoss: number; lastLoss: number }>;
  /**
   * Softmax regression on standardised columns, by AdamW from zeros, with early stop on rows held out of each class.
   * Weight and bias are for x as it came.
   */
  fitClassifier(request: {
    x: Float32Array; // [rows, columns]
    rows: number;
    columns: number;
    labels: Int32Array; // [rows] in [0, classes), every class among them
    classes: number; // ≥ 2
    learningRate: number;
    l2: number;
    batchSize: number;
    maxEpochs: number;
    patience: number;
    heldOut: number; // share of each class's rows, in [0, 1)
    seed: number;
  }): Promise<{
    weight: Float32Array; // [classes, columns]
    bias: Float32Array; // [classes]
    trainLoss: number; // mean cross-entropy over the best epoch, in nats
    heldOutLoss?: number; // after the best epoch; absent where no row is held out
    epochs: number;
    bestEpoch: number; // counted from 1
    heldOutRows: Int32Array; // ascending
  }>;
  /** softmax(x·weightᵀ + bias) → [rows, classes]. */
  classProbabilities(request: {
    x: Float32Array; // [rows, columns]
    rows: number;
    columns: number;
    weight: Float32Array; // [classes, columns]
    bias: Float32Array; // [classes]
    classes: number;
  }): Promise<Float32Array>;
  /** (x − mean)·componentsᵀ → [rows, components]. */
  pcaTransform(request: {
    x: Float32Array;
    rows: number;
    columns: number;
    mean: Float32Array;
    components: Float32Array;
  }): Promise<Float32Array>;
  /**
   * Rows begin … end − 1 of the sparse matrix of cosines between the sets of histories that items are in; ids of a row
   * ascend, and no item is its own neighbour.
   */
  itemNeighbors(request: {
    sequences: Int32Array; // [N]
    sequenceOffsets: Int32Array; // [S + 1]
    numItems: number;
    begin: number;
    end: number;
  }): Promise<{
    offsets: Int32Array; // [end − begin + 1]
    items: Int32Array;
    cosines: Float32Array;
  }>;
  /** Full ranking by Σ decay^(places from the end)·cosine over a history; ties count against the target. */
  rankByNeighbors(
    request: RankRequest & {
      /** All rows of the matrix. */
      readonly offsets: Int32Array; // [numItems + 1]
      readonly items: Int32Array;
      readonly cosines: Float32Array;
      readonly numItems: number;
      /** In (0, 1]. */
      readonly decay: number;
    },
  ): Promise<{ ranks: Int32Array; topK: Int32Array }>;
  dispose(): void;
}

export interface CpuInfo {
  /** Instruction sets the processor and the operating system offer. */
  readonly features: readonly string[];
  /** The set in use: `avx512bf16`, `avx512`, `avx2` or `portable` (`LIMBECK_FORCE_ISA` overrides). */
  readonly isa: string;
  readonly availableThreads: number;
}

export interface NativeBinding {
  createEngine(options: NativeEngineOptions): NativeEngine;
  cpuInfo(): CpuInfo;
  /** Opens the CUDA library and asks it. */
  cudaInfo(library: string): CudaInfo;
  /** What another thread shared under this key; it belongs to no engine, so it cannot rank(). */
  openRecommender(key: string): NativeRecommender;
  openTextEncoder(key: string): NativeTextEncoder;
  /** CRC-32C (Castagnoli) of the bytes. @param before that of the bytes before these @defaultValue 0 */
  crc32c(bytes: Uint8Array, before?: number): number;
  /**
   * The best logits of rows and their log-sum-exp in ⌈log2 vocabSize⌉ + 12 bits a logit. The k + 1 classes that
   * unpackTopK gives (the k, and what is left) have a KL divergence of at most 2^-15 = 3.06e-5 nats from those packed,
   * apart from classes under e^-64.
   */
  packTopK(request: {
    indices: Int32Array; // [rows, topK]
    values: Float32Array; // [rows, topK]
    logSumExp: Float32Array; // [rows]
    topK: number;
    vocabSize: number;
  }): Uint8Array;
  unpackTopK(request: { packed: Uint8Array; topK: number; vocabSize: number }): {
    indices: Int32Array;
    values: Float32Array;
    logSumExp: Float32Array;
  };
  /** To the nearest half float, ties to even, as bits. */
  narrow(values: Float32Array, dtype: 'float16' | 'bfloat16'): Uint16Array;
  /**
   * Takes the exclusive lock (flock) of an open file; false when another open file has it. Closing the file, or the end
   * of the process by whatever cause, gives it back.
   */
  tryLockFile(fd: number): boolean;
  /**
   * Gives each of two files or directories the other's name, in one step of the file system; false where it has no such
   * step. @throws LimbeckError ERR_IO
   */
  exchangeNames(a: string, b: string): boolean;
}

let binding: NativeBinding | undefined;

/**
 * Loads the native addon, once a process: the one compiled here, else the one that the package carries.
 *
 * @throws {@link LimbeckError} `ERR_NATIVE_ADDON` when there is none, or it does not fit this machine.
 */
export function loadBinding(): NativeBinding {
  binding ??= loadAddon([
    fileURLToPath(new URL('../build/Release/limbeck.node', import.meta.url)),
    fileURLToPath(new URL(`../prebuilds/${process.platform}-${process.arch}/limbeck.node`, import.meta.url)),
  ]);
  return binding;
}

/**
 * The CUDA library: the one that `LIMBECK_CUDA_LIBRARY` names, else the one compiled here, else the one that the package
 * carries.
 *
 * @throws {@link LimbeckError} `ERR_CUDA_UNAVAILABLE` when there is none
 */
export function findCudaLibrary(env: NodeJS.ProcessEnv = process.env): string {
  const named = env['LIMBECK_CUDA_LIBRARY'];
  const candidates =
    named !== undefined && named !== ''
      ? [resolve(named)]
      : [
          fileURLToPath(new URL('../build/cuda/liblimbeck_cuda.so', import.meta.url)),
          fileURLToPath(
            new URL(`../prebuilds/${process.platform}-${process.arch}/liblimbeck_cuda.so`, import.meta.url),
          ),
        ];
  const file = candidates.find((candidate) => existsSync(candidate));
  if (file !== undefined) return file;
  throw new LimbeckError(
    'ERR_CUDA_UNAVAILABLE',
    `The CUDA library was not found: looked for ${candidates.join(' and ')}. Build it with ` +
      '`node node_modules/limbeck/scripts/build-cuda.mjs` (needs nvcc and CMake), or in a checkout with ' +
      "`npm run build:cuda`; or use device 'cpu'.",
  );
}

/** @internal */
export function loadAddon(candidates: readonly string[]): NativeBinding {
  const remedy =
    'Compile it with `node node_modules/limbeck/scripts/build-native.mjs` (needs g++, make and python3), ' +
    'or in a checkout with `node scripts/setup.mjs`.';
  const file = candidates.find((candidate) => existsSync(candidate));
  if (file === undefined) {
    const platform = `${process.platform}-${process.arch}`;
    throw new LimbeckError(
      'ERR_NATIVE_ADDON',
      `There is no native addon for ${platform}: looked for ${candidates.join(' and ')}. ${remedy}`,
    );
  }
  try {
    return createRequire(import.meta.url)(file);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new LimbeckError('ERR_NATIVE_ADDON', `${file} cannot be loaded here: ${reason}. ${remedy}`, { cause });
  }
}
