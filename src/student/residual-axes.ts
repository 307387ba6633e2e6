/** The axes of a teacher's residual stream that a narrower student keeps. */
import { checkInstance, checkList } from '../arguments.js';
import type { NativeEngine } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { type Hooks, throwIfAborted } from '../prepare/hooks.js';
import { batchesByTokens, gatherBatch, spreadPlaces } from '../teacher/batches.js';
import { LanguageModel } from '../teacher/language-model.js';
import type { SequenceTeacher } from './teacher-cache.js';

const BATCH_TOKENS = 1024;
/** States that the axes are found from, for each channel: more change the loss that a student starts with by a percent. */
const ROWS_PER_CHANNEL = 16;
/** Of a sequence teacher. */
const WINDOWS = 1024;
const SEED = 0x5a3e;

/**
 * Principal axes, about zero, of what a model's norms make of its residual stream on these texts: of the states of all
 * layers, evenly spread over layers and tokens. With `width: 'pca'` a projection turns the residual stream onto them.
 *
 * @param width of the student, from 1 to the model's own
 * @returns orthonormal rows [width, hiddenSize], those that carry most first; the same for the same texts
 * @throws LimbeckError ERR_INVALID_ARGUMENT for fewer states than axes; ERR_EMPTY_DATA, ERR_TOKENIZER, ERR_ABORTED,
 * ERR_OUT_OF_MEMORY
 * @see Ashkboos et al. 2024, SliceGPT, arXiv:2401.15024, §3.3; here one rotation for all blocks
 */
export async function residualAxes(
  engine: NativeEngine,
  model: LanguageModel,
  texts: readonly string[],
  width: number,
  hooks: Hooks = {},
): Promise<Float32Array> {
  checkInstance(model, LanguageModel, 'model');
  checkList(texts, 'texts', 'a list of texts');
  const { ids, offsets } = await model.tokenize(texts);
  const order = Int32Array.from({ length: offsets.length - 1 }, (_, i) => i);
  return axesOf(engine, model, { ids, offsets, order }, width, hooks);
}

/** The same of a sequence teacher's model, on windows spread evenly over those that it was trained on. */
export async function sequenceAxes(
  engine: NativeEngine,
  { model: native, config, windows: { inputIds: ids, offsets } }: SequenceTeacher,
  width: number,
  hooks: Hooks = {},
): Promise<Float32Array> {
  const order = Int32Array.from(spreadPlaces(offsets.length - 1, Math.min(WINDOWS, offsets.length - 1)));
  return axesOf(engine, { native, config }, { ids, offsets, order }, width, hooks);
}

/** @param order the sequences that count */
async function axesOf(
  engine: NativeEngine,
  { native, config }: Pick<LanguageModel, 'native' | 'config'>,
  { ids, offsets, order }: { readonly ids: Int32Array; readonly offsets: Int32Array; readonly order: Int32Array },
  width: number,
  hooks: Hooks,
): Promise<Float32Array> {
  const { hiddenSize, numHiddenLayers, norm, normPlacement } = config;
  if (!Number.isInteger(width) || width < 1 || width > hiddenSize) {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `width: expected an integer from 1 to ${hiddenSize}, got ${width}`);
  }
  const tokens = order.reduce((sum, i) => sum + (offsets[i + 1] ?? 0) - (offsets[i] ?? 0), 0);
  const layers = Array.from({ length: numHiddenLayers + 1 }, (_, layer) => layer);
  const states = tokens * layers.length;
  const stride = Math.max(1, Math.floor(states / (ROWS_PER_CHANNEL * hiddenSize)));
  const rows = Math.ceil(states / stride);
  if (rows < width) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `${width} axes cannot be found from ${rows} states (${tokens} tokens, ${layers.length} layers): give more data, or ` +
        "set width: 'selection'",
    );
  }
  const x = new Float32Array(rows * hiddenSize);
  let seen = 0;
  let row = 0;
  for (const indices of batchesByTokens(offsets, BATCH_TOKENS, order)) {
    throwIfAborted(hooks.signal);
    const batch = gatherBatch(ids, offsets, indices);
    const { hiddenStates } = await native.forward({ ...batch, hiddenStates: layers });
    for (const values of hiddenStates) {
      for (let begin = 0; begin < values.length; begin += hiddenSize) {
        if (seen++ % stride === 0) x.set(values.subarray(begin, begin + hiddenSize), row++ * hiddenSize);
      }
    }
  }
  // Norms after the blocks have gains that the states keep: their mean over channels is not zero, and nothing takes it away.
  const subtractsMean = norm === 'layerNorm' && normPlacement === 'before';
  return engine.residualAxes({ x, rows, columns: hiddenSize, axes: width, seed: SEED, subtractsMean });
}
