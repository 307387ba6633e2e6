/** A causal transformer over item histories whose vocabulary is the catalogue: sequence teachers and students. */
import { join } from 'node:path';
import { described } from '../arguments.js';
import type { NativeEngine, NativeTransformer, TransformerConfig } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { loadCheckpoint, saveCheckpoint } from '../formats/checkpoint.js';
import { writeDirectoryAtomic } from '../formats/files.js';
import { asFloat32, checkFinite, readSafetensors, writeSafetensors } from '../formats/safetensors.js';
import type { EvaluationCases } from '../prepare/dataset.js';
import type { Hooks } from '../prepare/hooks.js';
import { parseOptions } from '../prepare/parse-options.js';
import { type SequenceArchitecture, sequenceArchitectureSchema } from './options.js';
import { type Ranking, type RankOptions, rankCases } from './rank-cases.js';

const FEATURES_FILE = 'item_features.safetensors';
const FEATURES_NAME = 'item_features';
const INITIALIZER_RANGE = 0.02;

/** The native configuration of a sequence model. @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION */
export function sequenceConfig(
  architecture: SequenceArchitecture,
  numItems: number,
  itemFeatureSize: number,
): TransformerConfig {
  const shape = parseOptions(sequenceArchitectureSchema, architecture, 'architecture');
  const { hiddenSize, numHiddenLayers, numAttentionHeads, maxHistory, dropout, normPlacement } = shape;
  return {
    vocabSize: numItems,
    hiddenSize,
    numHiddenLayers,
    numAttentionHeads,
    numKeyValueHeads: numAttentionHeads,
    headDim: hiddenSize / numAttentionHeads,
    intermediateSize: shape.intermediateSize ?? 4 * hiddenSize,
    maxPositionEmbeddings: maxHistory,
    // BERT, in whose layout such a model is saved, has one at least.
    typeVocabSize: normPlacement === 'after' ? 1 : 0,
    norm: 'layerNorm',
    normPlacement,
    normEps: 1e-5,
    positions: 'learned',
    ropeTheta: 10_000,
    attention: 'causal',
    hiddenAct: 'gelu_new',
    qkvBias: true,
    attentionOutputBias: true,
    mlpBias: true,
    tieWordEmbeddings: true,
    maskedLmHead: false,
    itemFeatureSize,
    embeddingDropout: dropout,
    attentionDropout: dropout,
    hiddenDropout: dropout,
  };
}

export class SequenceModel {
  #features: Float32Array | undefined;
  /** Rows of features beyond the model's own vocabulary. */
  #appended: Float32Array[] = [];
  readonly #engine: NativeEngine;

  private constructor(
    engine: NativeEngine,
    readonly native: NativeTransformer,
    readonly config: TransformerConfig,
    features: Float32Array | undefined,
  ) {
    this.#engine = engine;
    this.#features = features;
  }

  /**
   * A model with random weights.
   *
   * @param options.itemFeatures u [numItems, itemFeatureSize]; needed exactly when the config has item features
   * @throws LimbeckError ERR_SHAPE_MISMATCH, ERR_INVALID_ARGUMENT, ERR_OUT_OF_MEMORY
   */
  static create(
    engine: NativeEngine,
    config: TransformerConfig,
    options: { readonly seed: number; readonly itemFeatures?: Float32Array | undefined },
  ): SequenceModel {
    checkFeatures(config, options.itemFeatures, 'itemFeatures', 'ERR_SHAPE_MISMATCH');
    const native = engine.createTransformer(config);
    try {
      native.initialize(options.seed, INITIALIZER_RANGE);
      if (options.itemFeatures) native.setItemFeatures(options.itemFeatures);
    } catch (error) {
      native.dispose();
      throw error;
    }
    return new SequenceModel(engine, native, config, options.itemFeatures);
  }

  /**
   * Reads what {@link save} wrote.
   *
   * @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT, ERR_SAFETENSORS, ERR_UNSUPPORTED_MODEL,
   * ERR_CHECKPOINT_MISMATCH, ERR_NOT_FINITE, ERR_OUT_OF_MEMORY, ERR_IO
   */
  static async load(engine: NativeEngine, directory: string): Promise<SequenceModel> {
    const { model, config } = await loadCheckpoint(engine, directory);
    try {
      if (config.attention !== 'causal' || !config.tieWordEmbeddings) {
        throw new LimbeckError(
          'ERR_UNSUPPORTED_MODEL',
          `'${directory}': a sequence model is causal and has a tied head`,
        );
      }
      const features = config.itemFeatureSize > 0 ? await readFeatures(directory, config) : undefined;
      if (features) model.setItemFeatures(features);
      return new SequenceModel(engine, model, config, features);
    } catch (error) {
      model.dispose();
      throw error;
    }
  }

  /** Items of the catalogue, appended ones included. */
  get numItems(): number {
    const { vocabSize, itemFeatureSize } = this.config;
    return vocabSize + this.#appended.reduce((sum, rows) => sum + rows.length / itemFeatureSize, 0);
  }

  /** Numbers that serve a request: the folded item table instead of v, A and u. */
  get numParameters(): number {
    const { hiddenSize, itemFeatureSize } = this.config;
    return (
      this.native.numParameters - hiddenSize * itemFeatureSize + (this.numItems - this.config.vocabSize) * hiddenSize
    );
  }

  /** u [numItems of the vocabulary, itemFeatureSize] */
  get itemFeatures(): Float32Array | undefined {
    return this.#features;
  }

  /**
   * Items that have features only (v = 0); they are part of the next {@link save}.
   *
   * @param features [items, itemFeatureSize]
   * @throws LimbeckError ERR_SHAPE_MISMATCH
   */
  appendItems(features: Float32Array): void {
    const { itemFeatureSize } = this.config;
    if (!(features instanceof Float32Array) || features.length % itemFeatureSize !== 0) {
      const expected = `features: expected a Float32Array of items × ${itemFeatureSize}`;
      const got = features instanceof Float32Array ? `${features.length} numbers` : described(features);
      throw new LimbeckError('ERR_SHAPE_MISMATCH', `${expected}, got ${got}`);
    }
    this.#appended.push(features);
  }

  /**
   * Rank of each target among the whole catalogue (1 = best, ties count against it); histories are cut to their last
   * `maxHistory` items.
   *
   * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_ABORTED, ERR_DISPOSED
   */
  async rank(cases: EvaluationCases, options: RankOptions, hooks: Hooks = {}): Promise<Ranking> {
    const recommender = this.#engine.createRecommender(this.native);
    try {
      return await rankCases(recommender, this.config.maxPositionEmbeddings, cases, options, hooks);
    } finally {
      recommender.dispose();
    }
  }

  /** Writes a directory, whole or not at all. @throws LimbeckError ERR_NO_SPACE, ERR_IO, ERR_DISPOSED */
  async save(directory: string): Promise<void> {
    await writeDirectoryAtomic(directory, (temporary) => this.writeFiles(temporary));
  }

  /**
   * Writes the files of {@link save} into a directory that is there: a GPT-2 or BERT checkpoint and the item features.
   *
   * @param rows the items to write, ascending. @defaultValue all
   */
  async writeFiles(directory: string, rows?: Int32Array): Promise<void> {
    const whole = this.#withItems(rows);
    try {
      const { native, config } = whole;
      await saveCheckpoint(directory, { model: native, family: familyOf(config), config });
      if (whole.features) {
        const data = whole.features;
        const shape = [config.vocabSize, config.itemFeatureSize];
        await writeSafetensors(join(directory, FEATURES_FILE), [[FEATURES_NAME, { shape, data }]]);
      }
    } finally {
      if (whole.native !== this.native) whole.native.dispose();
    }
  }

  dispose(): void {
    this.native.dispose();
  }

  /** This model, or one of another vocabulary where items were appended or only some are wanted. */
  #withItems(rows: Int32Array | undefined): {
    native: NativeTransformer;
    config: TransformerConfig;
    features: Float32Array | undefined;
  } {
    const isWhole = rows === undefined || rows.length === this.config.vocabSize;
    if (this.#appended.length === 0 && isWhole) {
      return { native: this.native, config: this.config, features: this.#features };
    }
    const { hiddenSize, itemFeatureSize } = this.config;
    const wanted = rows ?? Int32Array.from({ length: this.numItems }, (_, row) => row);
    const config = { ...this.config, vocabSize: wanted.length };
    const native = this.#engine.createTransformer(config);
    for (const { name } of native.parameters()) {
      const values = this.native.getParameter(name);
      native.setParameter(name, name === 'embeddings.word' ? pickRows(values, wanted, hiddenSize) : values);
    }
    if (itemFeatureSize === 0) return { native, config, features: undefined };
    const all = new Float32Array(this.numItems * itemFeatureSize);
    let offset = 0;
    for (const part of [this.#features ?? new Float32Array(0), ...this.#appended]) {
      all.set(part, offset);
      offset += part.length;
    }
    const features = pickRows(all, wanted, itemFeatureSize);
    native.setItemFeatures(features);
    return { native, config, features };
  }
}

/** Hugging Face models of the same computation: GPT-2, or a BERT decoder where the norms come after. */
function familyOf({ normPlacement }: TransformerConfig): 'gpt2' | 'bert' {
  return normPlacement === 'after' ? 'bert' : 'gpt2';
}

/** Rows beyond the values are zeros. */
function pickRows(values: Float32Array, rows: Int32Array, width: number): Float32Array {
  const picked = new Float32Array(rows.length * width);
  rows.forEach((row, i) => {
    picked.set(values.subarray(row * width, (row + 1) * width), i * width);
  });
  return picked;
}

async function readFeatures(directory: string, config: TransformerConfig): Promise<Float32Array> {
  const path = join(directory, FEATURES_FILE);
  const tensor = (await readSafetensors(path)).tensors.get(FEATURES_NAME);
  if (tensor === undefined) {
    throw new LimbeckError('ERR_CHECKPOINT_MISMATCH', `'${path}': expected a tensor '${FEATURES_NAME}'`);
  }
  const features = asFloat32(tensor);
  checkFeatures(config, features, path, 'ERR_CHECKPOINT_MISMATCH');
  checkFinite(features, FEATURES_NAME, path);
  return features;
}

function checkFeatures(
  config: TransformerConfig,
  features: Float32Array | undefined,
  name: string,
  code: 'ERR_SHAPE_MISMATCH' | 'ERR_CHECKPOINT_MISMATCH',
): void {
  const expected = config.vocabSize * config.itemFeatureSize;
  if ((features?.length ?? 0) === expected) return;
  throw new LimbeckError(
    code,
    `${name}: expected ${config.vocabSize} items × ${config.itemFeatureSize} features, got ${features?.length ?? 0} numbers`,
  );
}
