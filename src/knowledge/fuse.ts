/** Layers fused into one vector a text, and vectors reduced to item features. */
import { z } from 'zod';
import { checkInstance, checkObject } from '../arguments.js';
import type { NativeEngine } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { parseOptions } from '../prepare/parse-options.js';
import { sideBySide } from '../teacher/side-by-side.js';
import { Knowledge } from './knowledge.js';

export const fusionSchema = z.strictObject({
  /**
   * `mean` of the layers; `weights`: their sum with weights given, or else learned so that items that follow each other
   * agree; `concat`: side by side. PCA follows in every case.
   */
  method: z.enum(['mean', 'weights', 'concat']).default('concat'),
  /** One a layer, for `weights`. @defaultValue learned */
  weights: z.array(z.number()).min(1).optional(),
  /** Steps of learning weights. */
  steps: z.int().min(1).max(100_000).default(300),
});

export type FusionOptions = z.input<typeof fusionSchema>;

/** Width of item features. */
const DEFAULT_COMPONENTS = 48;

/** How item features are made from hidden states, so that a new text gets the same kind. */
export interface TextEncoderSpec {
  /** Hidden states read, pooled by their mean over tokens. */
  readonly layers: readonly number[];
  readonly fusion: 'sum' | 'concat';
  /** [layers], read for `sum`. */
  readonly weights: Float32Array;
  /** [columns] */
  readonly mean: Float32Array;
  /** [f, columns] */
  readonly components: Float32Array;
}

export interface FusedLayers {
  readonly values: Float32Array; // [rows, columns]
  readonly columns: number;
  readonly fusion: 'sum' | 'concat';
  readonly weights: Float32Array; // [layers]
}

/** Items that follow each other in training histories. */
export interface ItemPairs {
  readonly queries: Int32Array; // [pairs]
  readonly targets: Int32Array; // [pairs]
}

/**
 * Fuses layers, each [rows, columns], into one matrix.
 *
 * @param layers read as long as the promise is not settled: neither change nor transfer them until then
 * @param pairs for learned weights: rows that belong together
 * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION, ERR_SHAPE_MISMATCH
 */
export async function fuseLayers(
  engine: NativeEngine,
  layers: readonly Float32Array[],
  size: { readonly rows: number; readonly columns: number },
  options: FusionOptions = {},
  { pairs, seed = 0 }: { readonly pairs?: ItemPairs; readonly seed?: number } = {},
): Promise<FusedLayers> {
  checkObject(size, 'size', '{ rows, columns }');
  const { rows, columns } = size;
  const { method, weights: given, steps } = parseOptions(fusionSchema, options, 'fusion');
  if (!Array.isArray(layers) || layers.length === 0 || layers.some((layer) => layer?.length !== rows * columns)) {
    throw new LimbeckError('ERR_SHAPE_MISMATCH', `fusion: expected layers of ${rows} × ${columns} numbers`);
  }
  if (given !== undefined && (method !== 'weights' || given.length !== layers.length)) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `fusion.weights: expected method "weights" and ${layers.length} numbers, one a layer, got ${given.length}`,
    );
  }
  if (method === 'concat') {
    const values = sideBySide(layers, rows);
    return { values, columns: layers.length * columns, fusion: 'concat', weights: new Float32Array(layers.length) };
  }
  let weights = given ?? layers.map(() => 1 / layers.length);
  if (method === 'weights' && given === undefined) {
    if (pairs === undefined || pairs.queries.length < 2) {
      throw new LimbeckError(
        'ERR_INVALID_ARGUMENT',
        'fusion: learned weights need pairs of items that follow each other',
      );
    }
    const learned = await engine.learnLayerWeights({ layers, rows, columns, ...pairs, steps, seed });
    weights = Array.from(learned.weights);
  }
  const values = await engine.weightedSum({ tensors: layers, weights });
  return { values, columns, fusion: 'sum', weights: Float32Array.from(weights) };
}

/**
 * Principal components of vectors, by randomised SVD.
 *
 * @param x read as long as the promise is not settled: neither change nor transfer it until then
 * @param whiten divides each component by its standard deviation
 * @throws LimbeckError ERR_INVALID_ARGUMENT
 */
export async function reduceDimension(
  engine: NativeEngine,
  x: Float32Array,
  options: {
    readonly rows: number;
    readonly columns: number;
    readonly components: number;
    readonly whiten?: boolean;
    readonly seed?: number;
  },
): Promise<{
  values: Float32Array; // [rows, components]
  mean: Float32Array; // [columns]
  components: Float32Array; // [components, columns]
  explainedVariance: Float32Array; // [components]
}> {
  checkObject(options, 'options', '{ rows, columns, components }');
  const { rows, columns, components: wanted, whiten = false, seed = 0 } = options;
  const axes = await engine.pca({ x, rows, columns, components: wanted, seed, whiten });
  const values = await engine.pcaTransform({ x, rows, columns, mean: axes.mean, components: axes.components });
  return { values, ...axes };
}

/**
 * Item features u from the pooled hidden states of item texts: fused, centred, reduced, each of variance 1.
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT when there are fewer items than components, or the knowledge is not pooled
 */
export async function itemFeatures(
  engine: NativeEngine,
  knowledge: Knowledge,
  options: {
    /** Layers to fuse. @defaultValue all that were extracted */
    readonly layers?: readonly number[];
    readonly fusion?: FusionOptions;
    /** Width f of the features. @defaultValue 48, or as many as there are texts or columns that were fused */
    readonly components?: number | undefined;
    readonly seed?: number;
    readonly pairs?: ItemPairs;
  },
): Promise<{ features: Float32Array; encoder: TextEncoderSpec; explainedVariance: Float32Array }> {
  checkInstance(knowledge, Knowledge, 'knowledge');
  checkObject(options, 'options', '{ layers, fusion, components, seed, pairs }');
  const { manifest } = knowledge;
  const { seed = 0, pairs } = options;
  const layers = options.layers ?? manifest.hiddenStates;
  if (manifest.pooling !== 'mean') {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `Item features need knowledge pooled by mean, got ${manifest.pooling}`,
    );
  }
  const rows = manifest.numTexts;
  const states: Float32Array[] = [];
  for (const layer of layers) states.push(await knowledge.hiddenState(layer));
  const fused = await fuseLayers(engine, states, { rows, columns: manifest.hiddenSize }, options.fusion, {
    seed,
    ...(pairs === undefined ? {} : { pairs }),
  });
  const most = Math.min(rows, fused.columns);
  const { components = Math.min(DEFAULT_COMPONENTS, most) } = options;
  if (components > most) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `components: expected at most ${most} (${rows} texts, ${fused.columns} fused columns), got ${components}`,
    );
  }
  const { columns } = fused;
  const reduced = await reduceDimension(engine, fused.values, { rows, columns, components, whiten: true, seed });
  const { values: features, mean, explainedVariance } = reduced;
  const encoder = { layers, fusion: fused.fusion, weights: fused.weights, mean, components: reduced.components };
  return { features, encoder, explainedVariance };
}
