/**
 * The map between the tensors of Hugging Face checkpoints and the parameters of the native transformer.
 *
 * Letters: d hidden size, V vocabulary, P positions, T token types, I intermediate size, H heads, K key-value heads,
 * c head dimension. Native weights are [out, in]. GPT-2 stores its Conv1D weights [in, out], so they are transposed;
 * BERT and Llama store q, k, v (and gate, up) apart, so their rows are laid end to end.
 */
import type { TransformerConfig } from '../binding.js';
import { LimbeckError } from '../errors.js';
import type { ModelFamily } from './model-config.js';
import { DTYPE_BYTES, type FloatDtype, isFloatDtype, type TensorInfo } from './safetensors.js';
import { isHarmlessExtra, normalizeFileName, tensorSources } from './tensor-sources.js';

export interface FloatTensor {
  readonly shape: readonly number[];
  readonly data: Float32Array;
}

/** A native parameter, and the file tensors that it is made of, in the order of its rows. */
interface Parameter {
  readonly name: string;
  readonly shape: readonly number[];
  readonly isTransposed: boolean;
  readonly parts: readonly Part[];
}

interface Part {
  readonly name: string;
  /** As in the file. */
  readonly shape: readonly number[];
  /** First value in the native array. */
  readonly offset: number;
  readonly length: number;
}

/** Names and shapes of the native parameters that a config asks for, embeddings first, head last. */
export function nativeParameterShapes(config: TransformerConfig): Map<string, number[]> {
  const { hiddenSize: d, vocabSize, intermediateSize, headDim } = config;
  const queryRows = config.numAttentionHeads * headDim;
  const qkvRows = queryRows + 2 * config.numKeyValueHeads * headDim;
  const inputRows = config.hiddenAct === 'swiglu' ? 2 * intermediateSize : intermediateSize;
  const shapes = new Map<string, number[]>();
  const addNorm = (name: string) => {
    shapes.set(`${name}.weight`, [d]);
    if (config.norm === 'layerNorm') shapes.set(`${name}.bias`, [d]);
  };
  const addLinear = (name: string, rows: number, columns: number, hasBias: boolean) => {
    shapes.set(`${name}.weight`, [rows, columns]);
    if (hasBias) shapes.set(`${name}.bias`, [rows]);
  };

  shapes.set('embeddings.word', [vocabSize, d]);
  if (config.positions === 'learned') {
    shapes.set('embeddings.position', [config.maxPositionEmbeddings + (config.positionOffset ?? 0), d]);
  }
  if (config.typeVocabSize > 0) shapes.set('embeddings.token_type', [config.typeVocabSize, d]);
  if (config.normPlacement === 'after') addNorm('embeddings.norm');
  for (let i = 0; i < config.numHiddenLayers; i++) {
    addNorm(`layers.${i}.attention_norm`);
    addLinear(`layers.${i}.attention.qkv`, qkvRows, d, config.qkvBias);
    if (config.qkNorm === true) {
      shapes.set(`layers.${i}.attention.q_norm.weight`, [headDim]);
      shapes.set(`layers.${i}.attention.k_norm.weight`, [headDim]);
    }
    addLinear(`layers.${i}.attention.output`, d, queryRows, config.attentionOutputBias);
    addNorm(`layers.${i}.mlp_norm`);
    addLinear(`layers.${i}.mlp.input`, inputRows, d, config.mlpBias);
    addLinear(`layers.${i}.mlp.output`, d, intermediateSize, config.mlpBias);
  }
  if (config.normPlacement === 'before') addNorm('final_norm');
  if (config.maskedLmHead) {
    addLinear('head.dense', d, d, true);
    addNorm('head.norm');
    shapes.set('head.bias', [vocabSize]);
  }
  if (!config.tieWordEmbeddings) shapes.set('head.output.weight', [vocabSize, d]);
  if (config.itemFeatureSize > 0) shapes.set('item_projection.weight', [d, config.itemFeatureSize]);
  return shapes;
}

/** Where the values of one file tensor go. */
export interface TensorPlacement {
  /** As in the file. */
  readonly fileName: string;
  readonly dtype: FloatDtype;
  /** Of one value in the file. */
  readonly valueBytes: number;
  /** The native parameter. */
  readonly parameter: string;
  /** First value in the parameter. */
  readonly offset: number;
  /** The file has [in, out], the parameter [out, in]. */
  readonly isTransposed: boolean;
}

/**
 * Finds the place of every tensor of a checkpoint in the native parameters. Names with and without the model's prefix
 * are accepted, and so are buffers and heads that carry no weights of this model.
 *
 * @param directory of the checkpoint, for messages
 * @throws LimbeckError ERR_CHECKPOINT_MISMATCH (a tensor is missing, extra, or has the wrong shape or dtype)
 */
export function placeTensors(
  family: ModelFamily,
  config: TransformerConfig,
  tensors: ReadonlyMap<string, TensorInfo>,
  directory: string,
): TensorPlacement[] {
  const mismatch: Mismatch = (what) =>
    new LimbeckError('ERR_CHECKPOINT_MISMATCH', `The checkpoint '${directory}' does not fit its config.json: ${what}`);
  const parameters = describeParameters(family, config);
  const fileNames = matchNames(family, config, parameters, tensors, mismatch);
  return parameters.flatMap(({ name, isTransposed, parts }) =>
    parts.map((part) => {
      const fileName = fileNames.get(part.name) ?? part.name;
      const dtype = checkTensor(part, tensors.get(fileName), mismatch);
      return { fileName, dtype, valueBytes: DTYPE_BYTES[dtype], parameter: name, offset: part.offset, isTransposed };
    }),
  );
}

/**
 * Tensors under their Hugging Face names, from native parameters or gradients: `get` returns the values of one native
 * parameter. Tied weights are written once.
 *
 * @throws LimbeckError ERR_SHAPE_MISMATCH when `get` returns another number of values
 */
export function huggingFaceFromNative(
  family: ModelFamily,
  config: TransformerConfig,
  get: (canonicalName: string) => Float32Array,
): Map<string, FloatTensor> {
  const tensors = new Map<string, FloatTensor>();
  for (const { name, shape, isTransposed, parts } of describeParameters(family, config)) {
    const values = get(name);
    if (values.length !== sizeOf(shape)) {
      throw new LimbeckError(
        'ERR_SHAPE_MISMATCH',
        `Expected ${sizeOf(shape)} values for '${name}' of shape [${shape.join(', ')}], got ${values.length}`,
      );
    }
    for (const part of parts) {
      const [rows, columns] = shape as [number, number];
      const data = isTransposed
        ? transpose(values, rows, columns)
        : values.subarray(part.offset, part.offset + part.length);
      tensors.set(part.name, { shape: part.shape, data });
    }
  }
  return tensors;
}

/** A linear layer of a block as checkpoints of its family have it. */
export interface LinearModule {
  /** Without `.weight`: `transformer.h.0.attn.c_attn`. */
  readonly name: string;
  /** The native layer that it is, or whose rows it is: `layers.0.attention.qkv`. */
  readonly linear: string;
  readonly firstRow: number;
  readonly numRows: number;
  readonly inFeatures: number;
}

/** Those of all blocks; q, k and v (gate and up) each for themselves where the family stores them apart. */
export function linearModules(family: ModelFamily, config: TransformerConfig): LinearModule[] {
  return describeParameters(family, config).flatMap(({ name, shape, parts }) => {
    const linear = /^(layers\.\d+\.(attention\.(qkv|output)|mlp\.(input|output)))\.weight$/.exec(name)?.[1];
    if (linear === undefined) return [];
    const inFeatures = shape[1] as number;
    return parts.map((part) => ({
      name: part.name.replace(/\.weight$/, ''),
      linear,
      firstRow: part.offset / inFeatures,
      numRows: part.length / inFeatures,
      inFeatures,
    }));
  });
}

function describeParameters(family: ModelFamily, config: TransformerConfig): Parameter[] {
  return Array.from(nativeParameterShapes(config), ([name, shape]) => {
    const { names, isTransposed } = tensorSources(family, name);
    const rowLength = sizeOf(shape.slice(1));
    let offset = 0;
    const parts = names.map((partName, index) => {
      const rows = partRows(config, name, shape[0] as number, names.length, index);
      const length = rows * rowLength;
      const partShape = isTransposed ? shape.toReversed() : [rows, ...shape.slice(1)];
      const part = { name: partName, shape: partShape, offset, length };
      offset += length;
      return part;
    });
    return { name, shape, isTransposed, parts };
  });
}

/** Rows of q, k, v, or of gate and up; a parameter with one source has all rows. */
function partRows(config: TransformerConfig, name: string, rows: number, numParts: number, index: number): number {
  if (numParts === 1 || !name.includes('.attention.qkv.')) return rows / numParts;
  return (index === 0 ? config.numAttentionHeads : config.numKeyValueHeads) * config.headDim;
}

/** The error of a checkpoint in which something is wrong. */
type Mismatch = (what: string) => LimbeckError;

/** Name that this product writes → name in the file; a tensor of no use is an error. */
function matchNames(
  family: ModelFamily,
  config: TransformerConfig,
  parameters: readonly Parameter[],
  tensors: ReadonlyMap<string, TensorInfo>,
  mismatch: Mismatch,
): Map<string, string> {
  const wanted = new Set(parameters.flatMap(({ parts }) => parts.map((part) => part.name)));
  const found = new Map<string, string>();
  for (const fileName of tensors.keys()) {
    const name = normalizeFileName(family, fileName, wanted);
    if (found.has(name))
      throw mismatch(`tensor '${fileName}' and another one are both '${name}'; expected one of them`);
    if (wanted.has(name)) {
      found.set(name, fileName);
    } else if (!isHarmlessExtra(family, config.tieWordEmbeddings, name)) {
      throw mismatch(`tensor '${fileName}' belongs to no part of a ${family} model with this config.json`);
    }
  }
  return found;
}

function checkTensor(part: Part, tensor: TensorInfo | undefined, mismatch: Mismatch): FloatDtype {
  if (tensor === undefined) throw mismatch(`tensor '${part.name}' [${part.shape.join(', ')}] is missing`);
  if (!isFloatDtype(tensor.dtype)) {
    throw mismatch(`tensor '${part.name}' has dtype ${tensor.dtype}; expected F32, F16, BF16 or F64`);
  }
  if (tensor.shape.join() !== part.shape.join()) {
    const shapes = `[${tensor.shape.join(', ')}]; expected [${part.shape.join(', ')}]`;
    throw mismatch(`tensor '${part.name}' has shape ${shapes}, as config.json says`);
  }
  return tensor.dtype;
}

/** Values [rows, columns] → [columns, rows]. */
function transpose(values: Float32Array, rows: number, columns: number): Float32Array {
  const result = new Float32Array(values.length);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      result[column * rows + row] = values[row * columns + column] as number;
    }
  }
  return result;
}

function sizeOf(shape: readonly number[]): number {
  return shape.reduce((product, dimension) => product * dimension, 1);
}
