/** One knowledge store of the parts that several processes extracted. */
import { join, resolve } from 'node:path';
import { checkList, checkPath } from '../arguments.js';
import { LimbeckError } from '../errors.js';
import { copyFileAtomic, makeDirectory, pathExists, readDirectory, remove } from '../formats/files.js';
import { checkHooks, type Hooks, throwIfAborted } from '../prepare/hooks.js';
import { Knowledge } from './knowledge.js';
import {
  checkSameStore,
  isComplete,
  type Manifest,
  manifestFile,
  partOfFile,
  readManifest,
  shardFile,
  teacherDirectory,
  writeManifest,
} from './manifest.js';

interface Part {
  readonly directory: string;
  readonly manifest: Manifest;
}

/**
 * Makes one store in `directory` of the parts that lie there and in `others`; shards of others are copied. The store has
 * the bytes of one that a single process extracted. Stopped half-way, the same call goes on.
 *
 * @throws LimbeckError ERR_FILE_NOT_FOUND when there is no part, or one or a shard of it is missing;
 * ERR_CHECKPOINT_MISMATCH when parts are of different teachers, texts, requests or numbers of parts; ERR_FILE_FORMAT for
 * an unfinished part or a damaged shard; ERR_INVALID_ARGUMENT, ERR_ABORTED, ERR_NO_SPACE, ERR_IO
 */
export async function mergeKnowledge(
  directory: string,
  others: readonly string[] = [],
  hooks: Pick<Hooks, 'signal'> = {},
): Promise<Knowledge> {
  checkHooks(hooks);
  checkList(others, 'others', 'a list of directories');
  for (const path of [directory, ...others]) checkPath(path, 'directory');
  const directories = [...new Set([directory, ...others].map((path) => resolve(path)))];
  const parts = (await Promise.all(directories.map(readParts))).flat();
  const [first] = parts;
  if (first === undefined) {
    if (await pathExists(join(directory, manifestFile()))) return Knowledge.open(directory); // merged before
    throw new LimbeckError(
      'ERR_FILE_NOT_FOUND',
      `There is no part of a knowledge store in ${directories.map((path) => `'${path}'`).join(', ')}`,
    );
  }
  checkParts(parts);
  const shards: Manifest['shards'] = [];
  for (const part of parts) {
    for (const shard of part.manifest.shards) {
      throwIfAborted(hooks.signal);
      const file = shardFile(shard.index);
      if (part.directory !== resolve(directory)) {
        await copyFileAtomic(join(part.directory, file), join(directory, file));
      }
      shards.push(shard);
    }
  }
  shards.sort((a, b) => a.index - b.index);
  if (first.manifest.pieceLength !== undefined && first.directory !== resolve(directory)) {
    await copyFiles(teacherDirectory(first.directory), teacherDirectory(directory));
  }
  const { part: _part, shards: _shards, ...store } = first.manifest;
  await writeManifest(directory, { ...store, shards });
  const knowledge = await Knowledge.open(directory);
  for (const part of parts) {
    if (part.directory === resolve(directory)) await remove(join(directory, manifestFile(part.manifest.part)));
  }
  return knowledge;
}

async function copyFiles(from: string, to: string): Promise<void> {
  await makeDirectory(to);
  for (const { name } of await readDirectory(from)) await copyFileAtomic(join(from, name), join(to, name));
}

async function readParts(directory: string): Promise<Part[]> {
  const parts: Part[] = [];
  for (const { name } of await readDirectory(directory)) {
    const part = partOfFile(name);
    if (part !== undefined) parts.push({ directory, manifest: await readManifest(directory, part) });
  }
  return parts;
}

/** All of one store, each there once and finished. */
function checkParts(parts: readonly Part[]): void {
  const [first] = parts as readonly [Part];
  const count = first.manifest.part?.count ?? 0;
  const seen = new Map<number, string>();
  for (const { directory, manifest } of parts) {
    const { part } = manifest;
    const path = join(directory, manifestFile(part));
    checkSameStore(manifest, first.manifest, path);
    if (part?.count !== count) {
      throw new LimbeckError('ERR_CHECKPOINT_MISMATCH', `'${path}' is one of ${part?.count} parts, others of ${count}`);
    }
    const twice = seen.get(part.index);
    if (twice !== undefined) {
      throw new LimbeckError('ERR_CHECKPOINT_MISMATCH', `'${path}' and '${twice}' are the same part: name one of them`);
    }
    seen.set(part.index, path);
    if (!isComplete(manifest)) {
      throw new LimbeckError(
        'ERR_FILE_FORMAT',
        `'${path}' is unfinished: run the extraction of part ${part.index} of ${count} again, it goes on where it stopped`,
      );
    }
  }
  for (let index = 1; index <= count; index++) {
    if (seen.has(index)) continue;
    throw new LimbeckError(
      'ERR_FILE_NOT_FOUND',
      `Part ${index} of ${count} is missing: extract it, or name its folder`,
    );
  }
}
