/**
 * Where an unfinished run keeps its stages: `<output>/.unfinished/`. A stage that is there was finished and is loaded;
 * results of an earlier run stay untouched until the new ones take their place at the end.
 */
import { type FileHandle, rename } from 'node:fs/promises';
import { join } from 'node:path';
import { loadBinding, type NativeEngine } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { lockFile } from '../formats/file-lock.js';
import {
  isTemporaryName,
  makeDirectory,
  pathExists,
  readDirectory,
  readJsonFile,
  remove,
  writeError,
  writeFileAtomic,
} from '../formats/files.js';
import { isJsonObject } from '../formats/strict-json.js';
import type { Dataset } from '../prepare/dataset.js';

const DIRECTORY = '.unfinished';
const RUN_FILE = 'run.json';

export class Workspace {
  private constructor(
    readonly output: string,
    readonly directory: string,
    /** {@link fingerprintOf} of all that decides the run: its settings, its data, and where they are computed. */
    readonly fingerprint: string,
    private readonly lock: FileHandle,
  ) {}

  /**
   * Opens the unfinished run of these settings, or begins one. An unfinished run of other settings is discarded: its
   * stages are of no use to this one.
   *
   * @param settings all that decides the stages, {@link conditionsOf} the run included
   * @param name of the directory in the output
   * @throws LimbeckError ERR_LOCKED while another run has it; ERR_INVALID_ARGUMENT for a directory that holds something
   * else, which stays as it is; ERR_FILE_FORMAT, ERR_IO, ERR_NO_SPACE
   */
  static async open(output: string, settings: unknown, name = DIRECTORY): Promise<Workspace> {
    const directory = join(output, name);
    const fingerprint = fingerprintOf(settings);
    await makeDirectory(output);
    const lock = await lockFile(
      `${directory}.lock`,
      `Another run writes its results to '${output}': wait for it, stop it, or give another output`,
    );
    try {
      await makeDirectory(directory);
      if ((await fingerprintIn(directory)) !== fingerprint) {
        await discardStages(directory);
        await writeRunFile(directory, fingerprint);
      }
      return new Workspace(output, directory, fingerprint, lock);
    } catch (error) {
      await lock.close();
      throw error;
    }
  }

  path(...names: string[]): string {
    return join(this.directory, ...names);
  }

  /** What {@link saveJson} kept under this name. */
  async readJson<T>(name: string): Promise<T | undefined> {
    const path = this.path(`${name}.json`);
    return (await pathExists(path)) ? ((await readJsonFile(path)) as T) : undefined;
  }

  /** @throws LimbeckError ERR_NO_SPACE, ERR_IO */
  async saveJson(name: string, value: unknown): Promise<void> {
    await writeFileAtomic(this.path(`${name}.json`), `${JSON.stringify(value)}\n`);
  }

  /** The training state that a fit resumes from. */
  checkpoint(name: string): { path: string; fingerprint: string; everySteps: number } {
    return { path: this.path(`${name}.checkpoint.safetensors`), fingerprint: this.fingerprint, everySteps: 200 };
  }

  /** Puts a stage's directory into the output, in place of an earlier one. @throws LimbeckError ERR_NO_SPACE, ERR_IO */
  async publish(name: string): Promise<void> {
    const target = join(this.output, name);
    await remove(target);
    await rename(this.path(name), target).catch((error: unknown) => {
      throw writeError(error, target);
    });
  }

  /** Removes the stages; the results must be in place. */
  async finish(): Promise<void> {
    await discardStages(this.directory);
    await remove(this.directory);
    await remove(`${this.directory}.lock`);
  }

  /** Lets the next run begin: after {@link finish}, or with what there is so far. */
  close(): Promise<void> {
    return this.lock.close();
  }
}

/**
 * The fingerprint of the run that a directory holds, if it holds one.
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT for what no workspace wrote; ERR_FILE_FORMAT, ERR_IO
 */
async function fingerprintIn(directory: string): Promise<unknown> {
  const names = (await readDirectory(directory)).map(({ name }) => name).filter((name) => !isTemporaryName(name));
  if (names.length === 0) return undefined;
  const run = names.includes(RUN_FILE) ? await readJsonFile(join(directory, RUN_FILE)) : undefined;
  if (isJsonObject(run) && 'fingerprint' in run) return run['fingerprint'];
  throw new LimbeckError(
    'ERR_INVALID_ARGUMENT',
    `'${directory}': expected a directory that is empty or holds an unfinished run, found ${names.join(', ')}. ` +
      'Nothing was changed: move the directory away, or give another output',
  );
}

function writeRunFile(directory: string, fingerprint: string | null): Promise<void> {
  return writeFileAtomic(join(directory, RUN_FILE), `${JSON.stringify({ fingerprint })}\n`);
}

/** Removes everything but the run file: a run that is killed meanwhile leaves a directory of no run, but of our own. */
async function discardStages(directory: string): Promise<void> {
  await writeRunFile(directory, null);
  for (const { name } of await readDirectory(directory)) {
    if (name !== RUN_FILE) await remove(join(directory, name));
  }
}

/** Eight hexadecimal digits that tell settings apart: the CRC-32C of their JSON. */
export function fingerprintOf(settings: unknown): string {
  return loadBinding()
    .crc32c(new TextEncoder().encode(JSON.stringify(settings)))
    .toString(16)
    .padStart(8, '0');
}

/** Tells data apart by what its arrays hold. */
export function contentOf(data: object): string {
  const { crc32c } = loadBinding();
  const arrays = Object.entries(data).filter((entry): entry is [string, ArrayBufferView] =>
    ArrayBuffer.isView(entry[1]),
  );
  return fingerprintOf(
    arrays.map(([name, { buffer, byteOffset, byteLength }]) => [
      name,
      crc32c(new Uint8Array(buffer, byteOffset, byteLength)),
    ]),
  );
}

/** What every result depends on beside its settings: the interactions, which a file may have changed, and the arithmetic. */
export function conditionsOf({ precision, device }: NativeEngine, dataset: Dataset): object {
  return {
    data: contentOf(dataset),
    split: contentOf(dataset.split),
    precision,
    ...(device === 'cuda' ? { device } : {}), // the GPU rounds in other places
  };
}

/** @throws LimbeckError ERR_IO when the output path is a file */
export async function checkOutput(output: string): Promise<void> {
  if (output.trim() === '') {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', 'output: expected the path of a directory, got an empty text');
  }
  await makeDirectory(output);
}
