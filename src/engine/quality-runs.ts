/**
 * Finished runs of a quality bench: `<output>/runs/<row>-<seed>-<fingerprint>/`. A run that is there is not done again,
 * whatever the row is called: its fingerprint is of all that decides its result, and other settings get a run of their own.
 */
import { join } from 'node:path';
import { LimbeckError } from '../errors.js';
import type { LatencySummary } from '../evaluate/latency.js';
import { makeDirectory, readDirectory, readJsonFile, writeDirectoryAtomic, writeFileAtomic } from '../formats/files.js';
import { readSafetensors, writeSafetensors } from '../formats/safetensors.js';
import type { SequenceModel } from '../student/sequence-model.js';
import type { EpochRecord } from '../teacher/fit-model.js';
import { type CheckpointOptions, deleteTrainingCheckpoint } from '../teacher/training-checkpoint.js';
import { fingerprintOf } from './workspace.js';

/** What one system did with one seed. */
export interface QualityRun {
  /** Rank of each test case's target. */
  readonly ranks: Int32Array; // [S]
  /** Recommended lists. */
  readonly topK: Int32Array; // [S, K]
  readonly parameters: number;
  readonly latency: LatencySummary;
  /** What {@link boostRareItems} chose; missing where it was not asked. */
  readonly rareItemsWeight?: number;
  /** Of each model that was trained. */
  readonly histories: readonly (readonly EpochRecord[])[];
}

const RANKS_FILE = 'ranks.safetensors';
const RECORD_FILE = 'run.json';
const MODEL_DIRECTORY = 'model';

export class QualityRuns {
  private constructor(readonly directory: string) {}

  /** @throws LimbeckError ERR_NO_SPACE, ERR_IO */
  static async open(output: string): Promise<QualityRuns> {
    const directory = join(output, 'runs');
    await makeDirectory(directory);
    return new QualityRuns(directory);
  }

  /**
   * The finished run, or what `make` returns, kept.
   *
   * @param name of the row and the seed
   * @param settings all that decides the result
   * @param make is given the checkpoint from which an unfinished training goes on; a model that it returns is kept too, and
   * disposed of
   * @returns the run, and the directory of its model
   */
  async obtain(
    name: string,
    settings: unknown,
    make: (checkpoint: CheckpointOptions) => Promise<{ readonly run: QualityRun; readonly model?: SequenceModel }>,
  ): Promise<{ readonly run: QualityRun; readonly modelDirectory: string }> {
    const fingerprint = fingerprintOf(settings);
    const entries = await readDirectory(this.directory);
    const found = entries.find((entry) => entry.isDirectory() && isRunOf(entry.name, fingerprint));
    const path = join(this.directory, found?.name ?? `${name}-${fingerprint}`);
    const modelDirectory = join(path, MODEL_DIRECTORY);
    const checkpoint = { path: `${path}.checkpoint.safetensors`, fingerprint, everySteps: 200 };
    if (found) {
      await deleteTrainingCheckpoint(checkpoint);
      return { run: await readRun(path), modelDirectory };
    }
    const { run, model } = await make(checkpoint);
    try {
      await writeRun(path, run, model);
      await deleteTrainingCheckpoint(checkpoint);
    } finally {
      model?.dispose();
    }
    return { run, modelDirectory };
  }
}

/** Names that begin with a dot are of directories that were never finished. */
function isRunOf(name: string, fingerprint: string): boolean {
  return !name.startsWith('.') && name.endsWith(`-${fingerprint}`);
}

function writeRun(
  path: string,
  { ranks, topK, ...record }: QualityRun,
  model: SequenceModel | undefined,
): Promise<void> {
  return writeDirectoryAtomic(path, async (temporary) => {
    await writeSafetensors(join(temporary, RANKS_FILE), [
      ['ranks', { shape: [ranks.length], data: ranks }],
      ['topK', { shape: [ranks.length, topK.length / ranks.length], data: topK }],
    ]);
    await writeFileAtomic(join(temporary, RECORD_FILE), `${JSON.stringify(record)}\n`);
    await model?.save(join(temporary, MODEL_DIRECTORY));
  });
}

async function readRun(path: string): Promise<QualityRun> {
  const { tensors } = await readSafetensors(join(path, RANKS_FILE));
  const integers = (name: string): Int32Array => {
    const data = tensors.get(name)?.data;
    if (data instanceof Int32Array) return data;
    throw new LimbeckError(
      'ERR_CHECKPOINT_MISMATCH',
      `'${path}': expected an int32 tensor '${name}'. Delete the folder.`,
    );
  };
  // Written by this class alone, and whole or not at all.
  const record = (await readJsonFile(join(path, RECORD_FILE))) as unknown as Omit<QualityRun, 'ranks' | 'topK'>;
  return { ...record, ranks: integers('ranks'), topK: integers('topK') };
}
