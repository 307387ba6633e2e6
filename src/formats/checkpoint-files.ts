/** Finds and reads the tensors of a checkpoint directory: one `model.safetensors`, or shards named by an index. */
import { readdir, realpath } from 'node:fs/promises';
import { basename, dirname, join, sep } from 'node:path';
import { LimbeckError } from '../errors.js';
import { pathExists, readJsonFile } from './files.js';
import { readSafetensors, type Safetensors, type SafetensorsTensor } from './safetensors.js';
import { isJsonObject } from './strict-json.js';

const WEIGHTS_FILE = 'model.safetensors';
const INDEX_FILE = 'model.safetensors.index.json';
/** A plain name: no folder, no leading dot. */
const SHARD_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;
/** Formats that run code when they are loaded; never opened. */
const PICKLED = /\.(bin|pt|pth|pkl|ckpt)$/;

/**
 * Reads all tensors of a checkpoint directory.
 *
 * @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_SAFETENSORS, ERR_FILE_FORMAT (a shard name that leaves the directory),
 * ERR_CHECKPOINT_MISMATCH (shards and index disagree), ERR_OUT_OF_MEMORY, ERR_IO
 */
export async function readCheckpointTensors(directory: string): Promise<Safetensors> {
  const weights = join(directory, WEIGHTS_FILE);
  if (await pathExists(weights)) return readSafetensors(weights);
  const index = join(directory, INDEX_FILE);
  if (await pathExists(index)) return readShards(directory, index);
  throw new LimbeckError('ERR_FILE_NOT_FOUND', await missingMessage(directory));
}

async function readShards(directory: string, indexPath: string): Promise<Safetensors> {
  const index = await readJsonFile(indexPath);
  const weightMap = isJsonObject(index) ? index['weight_map'] : undefined;
  if (!isJsonObject(weightMap)) {
    throw new LimbeckError('ERR_FILE_FORMAT', `'${indexPath}': expected an object 'weight_map'`);
  }
  const shardOf = new Map<string, string>();
  for (const [tensor, shard] of Object.entries(weightMap)) {
    if (typeof shard !== 'string' || !SHARD_NAME.test(shard) || !shard.endsWith('.safetensors')) {
      throw new LimbeckError(
        'ERR_FILE_FORMAT',
        `'${indexPath}': expected a plain .safetensors file name for '${tensor}', found ${JSON.stringify(shard)}`,
      );
    }
    shardOf.set(tensor, shard);
  }

  const tensors = new Map<string, SafetensorsTensor>();
  let metadata: Readonly<Record<string, string>> = Object.create(null);
  for (const shard of new Set(shardOf.values())) {
    const path = join(directory, shard);
    await refuseOutsideLink(directory, path);
    const content = await readSafetensors(path);
    metadata = content.metadata;
    for (const [name, tensor] of content.tensors) {
      if (shardOf.get(name) !== shard) {
        throw new LimbeckError(
          'ERR_CHECKPOINT_MISMATCH',
          `'${path}' holds '${name}', which the index does not expect there`,
        );
      }
      tensors.set(name, tensor);
    }
  }
  for (const [name, shard] of shardOf) {
    if (!tensors.has(name)) {
      throw new LimbeckError(
        'ERR_CHECKPOINT_MISMATCH',
        `'${join(directory, shard)}' lacks tensor '${name}', which the index names`,
      );
    }
  }
  return { tensors, metadata };
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
