/** What a sequence teacher says about every training token, kept so that no training step runs the teacher. */
import { z } from 'zod';
import { checkInstance, checkObject } from '../arguments.js';
import type { NativeTransformer, TransformerConfig } from '../binding.js';
import type { PackedSequences } from '../prepare/dataset.js';
import { checkHooks, type Hooks, throwIfAborted } from '../prepare/hooks.js';
import { parseOptions } from '../prepare/parse-options.js';
import { batchesByTokens, gatherBatch, gatherRows } from '../teacher/batches.js';
import { SequenceEnsemble } from './sequence-ensemble.js';
import { type TrainingWindows, trainingWindows } from './windows.js';

const BATCH_TOKENS = 4096;

const optionsSchema = z.strictObject({ layers: z.array(z.int().min(0)).readonly().default([]) });

export interface SequenceTeacher {
  readonly windows: TrainingWindows;
  readonly maxHistory: number;
  /** Of an ensemble, its members' side by side. */
  readonly hiddenSize: number;
  readonly numHiddenLayers: number;
  /** Its output table turns final hidden states into logits over the catalogue. */
  readonly head: NativeTransformer;
  /** Weights that a student may start from: of an ensemble, its first member's. */
  readonly model: NativeTransformer;
  /** Of `model`. */
  readonly config: TransformerConfig;
  /** Hidden states by layer, each [N, hiddenSize] in the order of the windows; the last layer is always there. */
  readonly hiddenStates: ReadonlyMap<number, Float32Array>;
  /** Rows of a layer that belong to the windows of one batch. */
  rows(layer: number, windows: Int32Array): Float32Array;
}

/**
 * Runs a trained teacher over the training windows.
 *
 * @param layers hidden states wanted besides the last
 * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION, ERR_ABORTED, ERR_OUT_OF_MEMORY
 */
export async function cacheSequenceTeacher(
  teacher: SequenceEnsemble,
  train: PackedSequences,
  options: { readonly layers?: readonly number[] } = {},
  hooks: Hooks = {},
): Promise<SequenceTeacher> {
  checkInstance(teacher, SequenceEnsemble, 'teacher');
  checkObject(train, 'train', 'sequences, as trainSequences() gives', ['sequences', 'sequenceOffsets']);
  const { layers } = parseOptions(optionsSchema, options, 'options');
  checkHooks(hooks);
  const { hiddenSize, numHiddenLayers, maxHistory, first } = teacher;
  const windows = trainingWindows(train, maxHistory);
  const wanted = [...new Set([...layers, numHiddenLayers])];
  const states = wanted.map(() => new Float32Array(windows.inputIds.length * hiddenSize));
  const order = Int32Array.from({ length: windows.offsets.length - 1 }, (_, i) => i);
  let token = 0;
  for (const indices of batchesByTokens(windows.offsets, BATCH_TOKENS, order)) {
    throwIfAborted(hooks.signal);
    const batch = gatherBatch(windows.inputIds, windows.offsets, indices);
    (await teacher.hiddenStates(batch, wanted)).forEach((rows, i) => {
      states[i]?.set(rows, token * hiddenSize);
    });
    token += batch.inputIds.length;
    hooks.onProgress?.({ step: 'extract', name: 'teacher states', done: token, total: windows.inputIds.length });
  }
  const hiddenStates = new Map(wanted.map((layer, i) => [layer, states[i] ?? new Float32Array(0)]));
  return {
    windows,
    maxHistory,
    hiddenSize,
    numHiddenLayers,
    head: teacher.head,
    model: first.native,
    config: first.config,
    hiddenStates,
    rows: (layer, indices) =>
      gatherRows(hiddenStates.get(layer) ?? new Float32Array(0), hiddenSize, windows.offsets, indices),
  };
}
