/** The state of an unfinished training run in one file: what a resumed run needs to give the same bits. */
import type { NativeTrainer, NativeTransformer } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { pathExists, remove } from '../formats/files.js';
import { readSafetensors, type WritableTensor, writeSafetensors } from '../formats/safetensors.js';

export interface CheckpointOptions {
  readonly path: string;
  /** Of everything that decides the run; a file of another run is refused. */
  readonly fingerprint: string;
  /** Steps between two states. ≥ 1. */
  readonly everySteps: number;
}

/** Parameters by name. */
export type ParameterCopies = ReadonlyMap<string, Float32Array>;

/** Of all that training changes. */
export function copyParameters(model: NativeTransformer): ParameterCopies {
  return new Map(model.trainableParameters().map(({ name }) => [name, model.getParameter(name)]));
}

export function restoreParameters(model: NativeTransformer, copies: ParameterCopies): void {
  for (const [name, values] of copies) model.setParameter(name, values);
}

interface TrainingState<State> {
  readonly model: NativeTransformer;
  readonly trainer: NativeTrainer;
  /** Shapes [rows, columns] of the learned projections. */
  readonly projections: readonly (readonly [number, number])[];
  /** Parameters of the best epoch so far. */
  readonly best: ParameterCopies | undefined;
  /** Counters and records; survives JSON. */
  readonly state: State;
}

const VERSION = '1';

/** @throws LimbeckError ERR_NO_SPACE, ERR_IO */
export async function saveTrainingCheckpoint<State>(
  { path, fingerprint }: CheckpointOptions,
  { model, trainer, projections, best, state }: TrainingState<State>,
): Promise<void> {
  const { stepCount, first, second } = trainer.getState();
  const tensors: [string, WritableTensor][] = [
    ['optimizer.first', { shape: [first.length], data: first }],
    ['optimizer.second', { shape: [second.length], data: second }],
  ];
  for (const [name, data] of copyParameters(model)) tensors.push([`model.${name}`, { shape: [data.length], data }]);
  for (const [name, data] of best ?? []) tensors.push([`best.${name}`, { shape: [data.length], data }]);
  projections.forEach((_, index) => {
    const data = trainer.getProjection(index);
    tensors.push([`projection.${index}`, { shape: [data.length], data }]);
  });
  await writeSafetensors(path, tensors, {
    format: 'limbeck-training',
    version: VERSION,
    fingerprint,
    stepCount: String(stepCount),
    state: JSON.stringify(state),
  });
}

/**
 * Puts model and trainer into the saved state.
 *
 * @param isState whether that is what the file has of counters and records
 * @returns the counters and the best parameters, or undefined when there is no file
 * @throws LimbeckError ERR_CHECKPOINT_MISMATCH for the file of another run, or damaged counters; ERR_SAFETENSORS, ERR_FILE_FORMAT, ERR_IO
 */
export async function loadTrainingCheckpoint<State>(
  { path, fingerprint }: CheckpointOptions,
  { model, trainer, projections }: Pick<TrainingState<State>, 'model' | 'trainer' | 'projections'>,
  isState: (state: unknown) => boolean,
): Promise<{ state: State; best: ParameterCopies | undefined } | undefined> {
  if (!(await pathExists(path))) return undefined;
  const { tensors, metadata } = await readSafetensors(path);
  if (metadata['format'] !== 'limbeck-training' || metadata['version'] !== VERSION) {
    throw new LimbeckError('ERR_FILE_FORMAT', `'${path}' is not a training checkpoint of this version. Delete it.`);
  }
  if (metadata['fingerprint'] !== fingerprint) {
    throw new LimbeckError(
      'ERR_CHECKPOINT_MISMATCH',
      `'${path}' belongs to a training run with other data or options. Delete it, or give another path.`,
    );
  }
  const state = parsed(metadata['state']);
  if (state === undefined || !isState(state)) {
    throw new LimbeckError('ERR_CHECKPOINT_MISMATCH', `'${path}' has no counters of a training run. Delete it.`);
  }
  const floats = (name: string): Float32Array => {
    const data = tensors.get(name)?.data;
    if (data instanceof Float32Array) return data;
    throw new LimbeckError('ERR_CHECKPOINT_MISMATCH', `'${path}' has no float32 tensor '${name}'. Delete it.`);
  };
  for (const { name } of model.trainableParameters()) model.setParameter(name, floats(`model.${name}`));
  projections.forEach(([rows, columns], index) => {
    trainer.setProjection(index, rows, columns, floats(`projection.${index}`));
  });
  trainer.setState({
    stepCount: Number(metadata['stepCount']),
    first: floats('optimizer.first'),
    second: floats('optimizer.second'),
  });
  const best = [...tensors.keys()].filter((name) => name.startsWith('best.'));
  return {
    state: state as State,
    best: best.length === 0 ? undefined : new Map(best.map((name) => [name.slice('best.'.length), floats(name)])),
  };
}

function parsed(json: string | undefined): unknown {
  try {
    return JSON.parse(json ?? '');
  } catch {
    return undefined;
  }
}

/** For when the trained model is saved: its state is of no use any more. @throws LimbeckError ERR_IO */
export function deleteTrainingCheckpoint({ path }: CheckpointOptions): Promise<void> {
  return remove(path);
}
