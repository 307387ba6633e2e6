/** Which parameters, channels and layers of a teacher matter for a corpus. */
import { checkInstance, checkList, checkObject, checkPath } from '../arguments.js';
import type { AxisSums, ChannelSelection, NativeEngine, NativeTransformer, TransformerConfig } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { asFloat32, readSafetensors, type WritableTensor, writeSafetensors } from '../formats/safetensors.js';
import { type Hooks, throwIfAborted } from '../prepare/hooks.js';
import { batchesByTokens, gatherBatch } from '../teacher/batches.js';
import { LanguageModel } from '../teacher/language-model.js';

/** A mass that places of an axis are ranked by. */
export type ImportanceKind = 'activation' | 'fisher' | 'saliency';

export interface Importance {
  /** Texts measured. */
  readonly numExamples: number;
  /** Mean over texts of the squared gradient of each parameter: the diagonal of the empirical Fisher information. */
  readonly squaredGradients: ReadonlyMap<string, Float32Array>;
  /** The same, summed by axis. */
  readonly fisher: AxisSums;
  /** Times the square of each parameter, summed by axis: what the loss is expected to rise by without it, times two. */
  readonly saliency: AxisSums;
  /** Mean absolute activation by channel. */
  readonly activation: AxisSums;
}

function checkImportance(importance: Importance): void {
  const keys = ['squaredGradients', 'fisher', 'saliency', 'activation'] as const;
  checkObject(importance, 'importance', 'what measureImportance() gives', keys);
}

const AXES = ['residual', 'layers', 'intermediate', 'keyValueHeads'] as const;
const BATCH_TOKENS = 4096;
/** Masked tokens are the same at every call. */
const MASK = { probability: 0.15, seed: 0xf15e, position: 0 };

/**
 * Runs a model over texts, forward and backward, each text by itself; the loss of a text is its mean cross-entropy in the
 * model's own objective. The model's parameters stay.
 *
 * @throws LimbeckError ERR_EMPTY_DATA, ERR_TOKENIZER, ERR_NOT_FINITE, ERR_ABORTED, ERR_OUT_OF_MEMORY
 */
export async function measureImportance(
  engine: NativeEngine,
  model: LanguageModel,
  texts: readonly string[],
  hooks: Hooks = {},
): Promise<Importance> {
  checkInstance(model, LanguageModel, 'model');
  const { ids, offsets } = await model.tokenize(texts);
  const native = engine.createImportance(model.native);
  try {
    const order = Int32Array.from({ length: offsets.length - 1 }, (_, i) => i);
    let done = 0;
    for (const indices of batchesByTokens(offsets, BATCH_TOKENS, order)) {
      throwIfAborted(hooks.signal);
      const { batch, labels } = model.label(gatherBatch(ids, offsets, indices), MASK);
      await native.add({ ...batch, labels });
      done += indices.length;
      hooks.onProgress?.({ step: 'extract', name: 'importance', done, total: order.length });
    }
    if (native.numExamples === 0) {
      throw new LimbeckError('ERR_EMPTY_DATA', 'Expected texts with a token to predict: these have none');
    }
    const names = model.native.parameters().map(({ name }) => name);
    return {
      numExamples: native.numExamples,
      squaredGradients: new Map(names.map((name) => [name, native.squaredGradient(name)])),
      fisher: await native.fisher(),
      saliency: await native.saliency(),
      activation: native.activation(),
    };
  } finally {
    native.dispose();
  }
}

/**
 * The teacher's blocks and channels of most mass for a smaller student, in their order. Channels of the residual stream are
 * the same in all blocks; intermediate channels and key-value heads are chosen block by block. A student with as many
 * blocks or more takes them as `layers` says.
 *
 * @param layers entry i = teacher block (from 1) of block i + 1 @defaultValue the blocks of most mass
 * @throws LimbeckError ERR_INVALID_ARGUMENT
 */
export function selectByMass(
  sums: AxisSums,
  student: Pick<TransformerConfig, 'hiddenSize' | 'numHiddenLayers' | 'numKeyValueHeads' | 'intermediateSize'>,
  layers?: readonly number[],
): { layers: number[]; channels: ChannelSelection } {
  checkObject(sums, 'sums', 'sums of an importance, such as importance.fisher', AXES);
  checkObject(student, 'student', "a model's config", ['hiddenSize', 'numHiddenLayers']);
  if (layers !== undefined) checkList(layers, 'layers', 'a list of blocks');
  const blocks = layers ?? largest(sums.layers, student.numHiddenLayers).map((block) => block + 1);
  const ofBlock = (masses: readonly Float64Array[], count: number) =>
    blocks.map((layer) => largest(masses[layer - 1] ?? new Float64Array(0), count));
  return {
    layers: [...blocks],
    channels: {
      residual: largest(sums.residual, student.hiddenSize),
      intermediate: ofBlock(sums.intermediate, student.intermediateSize),
      keyValueHeads: ofBlock(sums.keyValueHeads, student.numKeyValueHeads),
    },
  };
}

/** Places of the largest masses, ascending; of equal ones the first. @throws LimbeckError ERR_INVALID_ARGUMENT */
function largest(masses: Float64Array, count: number): number[] {
  if (count > masses.length) {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `Expected at most ${masses.length} to choose of, got ${count}`);
  }
  const order = Array.from(masses.keys()).sort((a, b) => (masses[b] ?? 0) - (masses[a] ?? 0) || a - b);
  return order.slice(0, count).sort((a, b) => a - b);
}

/**
 * Weights of an interpolation towards a teacher: √(F / the largest F of the parameter), in [0, 1], in the shapes of the
 * student. F spans many orders of magnitude, of which the root keeps more than the largest.
 *
 * @param map how the teacher's parameters are selected for the student
 * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_OUT_OF_MEMORY
 */
export async function fisherWeights(
  engine: NativeEngine,
  student: NativeTransformer,
  teacher: TransformerConfig,
  importance: Importance,
  map: { readonly layers: readonly number[]; readonly channels?: ChannelSelection },
): Promise<ReadonlyMap<string, Float32Array>> {
  checkImportance(importance);
  // Selected in the same way as the parameters themselves.
  const weights = engine.createTransformer(teacher);
  try {
    for (const [name, values] of importance.squaredGradients) {
      const most = values.reduce((a, b) => Math.max(a, b), 0);
      weights.setParameter(
        name,
        values.map((value) => (most > 0 ? Math.sqrt(value / most) : 0)),
      );
    }
    const projected = await student.project(weights, { ...map, width: 'selection' });
    return new Map(projected.map(({ name, values }) => [name, values]));
  } finally {
    weights.dispose();
  }
}

const FORMAT = 'limbeck-importance-1';

/** One safetensors file, written whole or not at all. @throws LimbeckError ERR_NO_SPACE, ERR_IO */
export async function saveImportance(path: string, importance: Importance): Promise<void> {
  checkImportance(importance);
  const tensors: [string, WritableTensor][] = [];
  const add = (name: string, values: Float32Array | Float64Array) => {
    tensors.push([name, { shape: [values.length], data: Float32Array.from(values) }]);
  };
  for (const [name, values] of importance.squaredGradients) add(`squared_gradients.${name}`, values);
  for (const kind of ['fisher', 'saliency', 'activation'] as const) {
    const { residual, layers, intermediate, keyValueHeads } = importance[kind];
    add(`${kind}.residual`, residual);
    add(`${kind}.layers`, layers);
    for (const [block, values] of intermediate.entries()) add(`${kind}.intermediate.${block}`, values);
    for (const [block, values] of keyValueHeads.entries()) add(`${kind}.key_value_heads.${block}`, values);
  }
  await writeSafetensors(path, tensors, { format: FORMAT, num_examples: String(importance.numExamples) });
}

/** @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_SAFETENSORS, ERR_FILE_FORMAT, ERR_IO */
export async function loadImportance(path: string): Promise<Importance> {
  checkPath(path, 'path');
  const { tensors, metadata } = await readSafetensors(path);
  const { format, num_examples: numExamples } = metadata;
  if (format !== FORMAT) {
    throw new LimbeckError('ERR_FILE_FORMAT', `'${path}' holds no importance: its format is ${format}, not ${FORMAT}`);
  }
  const read = (name: string) => {
    const tensor = tensors.get(name);
    if (tensor === undefined) throw new LimbeckError('ERR_FILE_FORMAT', `'${path}' has no '${name}'`);
    return Float64Array.from(asFloat32(tensor));
  };
  const sums = (kind: ImportanceKind): AxisSums => {
    const layers = read(`${kind}.layers`);
    const ofBlocks = (axis: string) => Array.from(layers, (_, block) => read(`${kind}.${axis}.${block}`));
    return {
      residual: read(`${kind}.residual`),
      layers,
      intermediate: ofBlocks('intermediate'),
      keyValueHeads: ofBlocks('key_value_heads'),
    };
  };
  const prefix = 'squared_gradients.';
  const squaredGradients = [...tensors]
    .filter(([name]) => name.startsWith(prefix))
    .map(([name, tensor]) => [name.slice(prefix.length), asFloat32(tensor)] as const);
  return {
    numExamples: Number(numExamples),
    squaredGradients: new Map(squaredGradients),
    fisher: sums('fisher'),
    saliency: sums('saliency'),
    activation: sums('activation'),
  };
}
