/** Finds the tensors of a checkpoint directory: one `model.safetensors`, or shards named by an index. */
import { readdir, realpath } from 'node:fs/promises';
import { basename, dirname, join, sep } from 'node:path';
import { LimbeckError } from '../errors.js';
import { pathExists, readJsonFile } from './files.js';
import { SafetensorsFile, type TensorInfo } from './safetensors.js';
import { isJsonObject } from './strict-json.js';

const WEIGHTS_FILE = 'model.safetensors';
const INDEX_FILE = 'model.safetensors.index.json';
/** A plain name: no folder, no leading dot. */
const SHARD_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;
/** Formats that run code when they are loaded; never opened. */
const PICKLED = /\.(bin|pt|pth|pkl|ckpt)$/;

/** The tensors of a checkpoint directory, in one file or in several. */
export class CheckpointTensors {
  private constructor(
    /** Name → what its file says of it. */
    readonly tensors: ReadonlyMap<string, TensorInfo>,
    private readonly files: readonly SafetensorsFile[],
  ) {}

  /**
   * Opens the files and compares them with the index; no weight is read. The caller closes them.
   *
   * @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_SAFETENSORS, ERR_FILE_FORMAT (a shard name that leaves the directory),
   * ERR_CHECKPOINT_MISMATCH (shards and index disagree), ERR_IO
   */
  static async open(directory: string): Promise<CheckpointTensors> {
    const weights = join(directory, WEIGHTS_FILE);
    if (await pathExists(weights)) {
      const file = await SafetensorsFile.open(weights);
      return new CheckpointTensors(file.tensors, [file]);
    }
    const index = join(directory, INDEX_FILE);
    if (!(await pathExists(index))) throw new LimbeckError('ERR_FILE_NOT_FOUND', await missingMessage(directory));
    const files: SafetensorsFile[] = [];
    try {
      return new CheckpointTensors(await openShards(directory, index, files), files);
    } catch (error) {
      await closeAll(files);
      throw error;
    }
  }

  /**
   * Reads a tensor in pieces of at most `buffer`, each valid until the next; `offset` is its first byte in the tensor.
   *
   * @throws LimbeckError ERR_SAFETENSORS (the file became shorter), ERR_IO
   */
  async *read(name: string, buffer: Uint8Array): AsyncGenerator<{ bytes: Uint8Array; offset: number }> {
    const { file, info } = this.#find(name);
    const sizeBytes = info.end - info.begin;
    for (let offset = 0; offset < sizeBytes; offset += buffer.length) {
      const bytes = buffer.subarray(0, Math.min(buffer.length, sizeBytes - offset));
      await file.read(info, bytes, offset);
      yield { bytes, offset };
    }
  }

  /** The file that has a tensor. */
  pathOf(name: string): string {
    return this.#find(name).file.path;
  }

  close(): Promise<void> {
    return closeAll(this.files);
  }

  #find(name: string): { file: SafetensorsFile; info: TensorInfo } {
    for (const file of this.files) {
      const info = file.tensors.get(name);
      if (info !== undefined) return { file, info };
    }
    throw new LimbeckError('ERR_INTERNAL', `Tensor '${name}' is not in the checkpoint`);
  }
}

async function closeAll(files: readonly SafetensorsFile[]): Promise<void> {
  for (const file of files) await file.close();
}

/** Tensors of all shards; what was opened is appended to `files`. */
async function openShards(
  directory: string,
  indexPath: string,
  files: SafetensorsFile[],
): Promise<Map<string, TensorInfo>> {
  const { shardOf, totalSize } = await readIndex(indexPath);
  const tensors = new Map<string, TensorInfo>();
  let sizeBytes = 0;
  for (const shard of new Set(shardOf.values())) {
    const path = join(directory, shard);
    await refuseOutsideLink(directory, path);
    const file = await SafetensorsFile.open(path);
    files.push(file);
    for (const [name, info] of file.tensors) {
      if (shardOf.get(name) !== shard) {
        const place = shardOf.get(name) ?? 'nowhere';
        throw mismatch(`'${path}' holds tensor '${name}', which the index places in ${place}`);
      }
      tensors.set(name, info);
      sizeBytes += info.end - info.begin;
    }
  }
  for (const [name, shard] of shardOf) {
    if (!tensors.has(name)) {
      throw mismatch(`'${join(directory, shard)}' lacks tensor '${name}', which the index places there`);
    }
  }
  if (totalSize !== undefined && totalSize !== sizeBytes) {
    throw mismatch(`'${indexPath}' promises ${totalSize} bytes (metadata.total_size), the shards hold ${sizeBytes}`);
  }
  return tensors;
}

async function readIndex(path: string): Promise<{ shardOf: Map<string, string>; totalSize: number | undefined }> {
  const index = await readJsonFile(path);
  const weightMap = isJsonObject(index) ? index['weight_map'] : undefined;
  if (!isJsonObject(index) || !isJsonObject(weightMap)) {
    throw new LimbeckError('ERR_FILE_FORMAT', `'${path}': expected an object 'weight_map'`);
  }
  const shardOf = new Map<string, string>();
  for (const [tensor, shard] of Object.entries(weightMap)) {
    if (typeof shard !== 'string' || !SHARD_NAME.test(shard) || !shard.endsWith('.safetensors')) {
      throw new LimbeckError(
        'ERR_FILE_FORMAT',
        `'${path}': expected a plain .safetensors file name for '${tensor}', found ${JSON.stringify(shard)}`,
      );
    }
    shardOf.set(tensor, shard);
  }
  const metadata = index['metadata'];
  const totalSize = isJsonObject(metadata) ? metadata['total_size'] : undefined;
  if (totalSize !== undefined && typeof totalSize !== 'number') {
    throw new LimbeckError('ERR_FILE_FORMAT', `'${path}': expected metadata.total_size to be a number of bytes`);
  }
  return { shardOf, totalSize };
}

function mismatch(what: string): LimbeckError {
  return new LimbeckError('ERR_CHECKPOINT_MISMATCH', `${what}; download the checkpoint anew`);
}

/** The Hugging Face cache links `snapshots/REVISION/FILE` to `blobs/HASH` two folders above; no other link may leave. */
async function refuseOutsideLink(directory: string, path: string): Promise<void> {
  if (!(await pathExists(path))) throw new LimbeckError('ERR_FILE_NOT_FOUND', `There is no shard '${path}'`);
  const home = await realpath(directory);
  const isCacheSnapshot = basename(dirname(home)) === 'snapshots';
  const root = isCacheSnapshot ? dirname(dirname(home)) : home;
  const target = await realpath(path);
  if (!target.startsWith(root + sep)) {
    throw new LimbeckError('ERR_FILE_FORMAT', `'${path}' is a link out of the checkpoint, to '${target}'`);
  }
}

async function missingMessage(directory: string): Promise<string> {
  if (!(await pathExists(directory))) return `There is no checkpoint directory '${directory}'`;
  const pickled = (await readdir(directory)).find((name) => PICKLED.test(name));
  const expected = `Expected ${WEIGHTS_FILE} or ${INDEX_FILE} in '${directory}'`;
  return pickled === undefined
    ? expected
    : `${expected}; found only '${pickled}', a pickle, which can run code and is never opened: convert it to safetensors`;
}
