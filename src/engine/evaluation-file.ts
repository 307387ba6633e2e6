/** The test cases of a run, kept beside its student so that a later `evaluate` sees the same ones. */
import { z } from 'zod';
import { LimbeckError } from '../errors.js';
import type { EvaluationSet } from '../evaluate/recommendation.js';
import { checkedJson } from '../formats/checked-json.js';
import { pathExists, readJsonFile } from '../formats/files.js';
import { readSafetensors, writeSafetensors } from '../formats/safetensors.js';
import { distillOptionsSchema, evaluationSchema } from './options.js';

export interface SavedEvaluation {
  readonly test: EvaluationSet;
  /** Training interactions of each item. */
  readonly trainCounts: Int32Array; // [V]
}

const NAMES = ['sequences', 'sequenceOffsets', 'users', 'targets', 'excludeIds', 'excludeOffsets'] as const;

/** @throws LimbeckError ERR_NO_SPACE, ERR_IO */
export async function saveEvaluation(path: string, { test, trainCounts }: SavedEvaluation): Promise<void> {
  const arrays: (readonly [string, Int32Array])[] = NAMES.map((name) => [name, test[name]] as const);
  arrays.push(['trainCounts', trainCounts]);
  await writeSafetensors(
    path,
    arrays.map(([name, data]) => [name, { shape: [data.length], data }] as const),
  );
}

/** @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_SAFETENSORS, ERR_CHECKPOINT_MISMATCH, ERR_IO */
export async function loadEvaluation(path: string): Promise<SavedEvaluation> {
  const { tensors } = await readSafetensors(path);
  const array = (name: string): Int32Array => {
    const data = tensors.get(name)?.data;
    if (data instanceof Int32Array) return data;
    throw new LimbeckError('ERR_CHECKPOINT_MISMATCH', `'${path}': expected an int32 tensor '${name}'`);
  };
  const test = Object.fromEntries(NAMES.map((name) => [name, array(name)])) as unknown as EvaluationSet;
  const evaluation = { test, trainCounts: array('trainCounts') };
  if (isWhole(evaluation)) return evaluation;
  throw new LimbeckError(
    'ERR_CHECKPOINT_MISMATCH',
    `'${path}': its arrays do not belong together. Restore the file, or run the distillation again.`,
  );
}

/** What `evaluate` needs of a run's settings. */
const settingsSchema = z.looseObject({
  seeds: distillOptionsSchema.shape.seeds,
  evaluation: z.looseObject({ ks: evaluationSchema.shape.ks }).prefault({}),
});

/**
 * The cut-offs and the seed of the intervals: those of the run, whose settings stand beside its results, else the defaults.
 *
 * @param path of `distill.json`
 * @throws LimbeckError ERR_FILE_FORMAT, ERR_IO
 */
export async function evaluationSettings(path: string): Promise<{ ks: readonly number[]; seed: number }> {
  const json = (await pathExists(path)) ? await readJsonFile(path) : {};
  const { seeds, evaluation } = checkedJson(settingsSchema, json, `'${path}' has no settings of a distillation`);
  return { ks: evaluation.ks, seed: seeds[0] ?? 0 };
}

function isWhole({ test, trainCounts }: SavedEvaluation): boolean {
  const { sequences, sequenceOffsets, users, targets, excludeIds, excludeOffsets } = test;
  const areItems = (ids: Int32Array) => ids.every((id) => id >= 0 && id < trainCounts.length);
  const areOffsets = (offsets: Int32Array, last: number, least: number) =>
    offsets.length === targets.length + 1 &&
    offsets[0] === 0 &&
    offsets.at(-1) === last &&
    offsets.every((offset, s) => s === 0 || offset >= (offsets[s - 1] ?? 0) + least);
  return (
    users.length === targets.length &&
    areOffsets(sequenceOffsets, sequences.length, 1) &&
    areOffsets(excludeOffsets, excludeIds.length, 0) &&
    areItems(sequences) &&
    areItems(targets) &&
    areItems(excludeIds) &&
    trainCounts.every((count) => count >= 0)
  );
}
