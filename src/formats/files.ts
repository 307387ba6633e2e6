/**
 * Reading and writing whole files. Reads never block on a pipe or a device; writes are durable and all-or-nothing:
 * temporary name, fsync, rename, fsync of the folder.
 */
import { randomBytes } from 'node:crypto';
import { constants, type Dirent, type Stats } from 'node:fs';
import fs, { type FileHandle } from 'node:fs/promises';
import { basename, dirname, isAbsolute, join, relative, resolve, sep } from 'node:path';
import { checkPath } from '../arguments.js';
import { loadBinding } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { type JsonValue, parseStrictJson } from './strict-json.js';

/** Longest text read into one string; V8 refuses strings above 2^29 characters. */
export const MAX_TEXT_FILE_BYTES = 256 * 1024 * 1024;

/** One write call; Linux transfers at most 2^31 - 4096 bytes a call, and smaller pieces keep the thread pool responsive. */
const WRITE_CHUNK_BYTES = 64 * 1024 * 1024;

/** Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever. Windows has no such flag. */
const READ_FLAGS = constants.O_RDONLY | (constants.O_NONBLOCK ?? 0);

/**
 * Opens a regular file for reading and reports its size in bytes. The caller closes the handle.
 *
 * @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT (a folder, pipe or device), ERR_IO
 */
export async function openRegularFile(path: string): Promise<{ file: FileHandle; sizeBytes: number }> {
  let file: FileHandle;
  try {
    file = await fs.open(path, READ_FLAGS);
  } catch (error) {
    throw readError(error, path);
  }
  try {
    const stats = await file.stat();
    if (!stats.isFile()) {
      throw new LimbeckError('ERR_FILE_FORMAT', `Expected a regular file at '${path}', got ${kindOf(stats)}`);
    }
    return { file, sizeBytes: stats.size };
  } catch (error) {
    await file.close();
    throw error instanceof LimbeckError ? error : readError(error, path);
  }
}

/**
 * Whether something lies at `path` (links are followed).
 *
 * @throws LimbeckError ERR_IO when that cannot be found out
 */
export async function pathExists(path: string): Promise<boolean> {
  try {
    return (await statIfPresent(path)) !== undefined;
  } catch (error) {
    throw readError(error, path);
  }
}

/** What a directory holds, by name. @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_IO */
export async function readDirectory(path: string): Promise<Dirent[]> {
  try {
    const entries = await fs.readdir(path, { withFileTypes: true });
    return entries.sort((a, b) => (a.name < b.name ? -1 : 1));
  } catch (error) {
    throw readError(error, path);
  }
}

/**
 * Reads a UTF-8 text file; a byte order mark is dropped.
 *
 * @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT (empty, not UTF-8, over {@link MAX_TEXT_FILE_BYTES}), ERR_IO
 */
export async function readTextFile(path: string): Promise<string> {
  const { file, sizeBytes } = await openRegularFile(path);
  let bytes: Uint8Array;
  try {
    if (sizeBytes > MAX_TEXT_FILE_BYTES) {
      throw new LimbeckError(
        'ERR_FILE_FORMAT',
        `'${path}' has ${sizeBytes} bytes; a text file may have at most ${MAX_TEXT_FILE_BYTES}`,
      );
    }
    bytes = await file.readFile();
  } catch (error) {
    throw error instanceof LimbeckError ? error : readError(error, path);
  } finally {
    await file.close();
  }
  if (bytes.byteLength === 0) {
    throw new LimbeckError('ERR_FILE_FORMAT', `'${path}' is empty`);
  }
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch (error) {
    throw new LimbeckError('ERR_FILE_FORMAT', `'${path}' is not UTF-8 text; convert it to UTF-8 first`, {
      cause: error,
    });
  }
}

/**
 * Reads a JSON file with the strict parser.
 *
 * @throws LimbeckError as {@link readTextFile}; ERR_FILE_FORMAT also for broken JSON and duplicate keys
 */
export async function readJsonFile(path: string): Promise<JsonValue> {
  return parseStrictJson(await readTextFile(path), { file: path });
}

/**
 * Replaces a file as a whole: after a crash or a failure at any moment, the path holds either the earlier content or the
 * new one. Pieces of `data` are written one after the other.
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT for no path, ERR_NO_SPACE (disk or quota full), ERR_IO, and whatever `data`
 * throws; the earlier file is then untouched
 */
export async function writeFileAtomic(
  path: string,
  data: string | Uint8Array | readonly Uint8Array[] | AsyncIterable<Uint8Array>,
): Promise<void> {
  checkPath(path, 'path');
  const pieces = typeof data === 'string' ? [Buffer.from(data)] : data instanceof Uint8Array ? [data] : data;
  const temporaryPath = temporarySibling(path);
  try {
    const file = await fs.open(temporaryPath, 'wx');
    try {
      for await (const piece of pieces) await writeFully(file, piece);
      await file.sync();
    } finally {
      await file.close();
    }
    await fs.rename(temporaryPath, path);
    await syncDirectory(dirname(path));
  } catch (error) {
    await removeUnfinished(temporaryPath);
    throw writeError(error, path);
  }
}

/** A file that is written at any places, and takes the place of an earlier one at the end, as {@link writeFileAtomic}. */
export interface UnfinishedFile {
  /** @throws LimbeckError ERR_NO_SPACE, ERR_IO */
  write(bytes: Uint8Array, position: number): Promise<void>;
  /** Makes it durable and gives it its name. @throws LimbeckError ERR_NO_SPACE, ERR_IO */
  finish(): Promise<void>;
  /** Removes it, unless it was finished. */
  discard(): Promise<void>;
}

/** @throws LimbeckError ERR_NO_SPACE, ERR_IO */
export async function createFileAtomic(path: string): Promise<UnfinishedFile> {
  const temporaryPath = temporarySibling(path);
  const translated = async <T>(work: Promise<T>): Promise<T> => {
    try {
      return await work;
    } catch (error) {
      throw writeError(error, path);
    }
  };
  const file = await translated(fs.open(temporaryPath, 'wx'));
  let isOpen = true;
  let isFinished = false;
  const close = async () => {
    if (isOpen) await file.close();
    isOpen = false;
  };
  const finish = async () => {
    await file.sync();
    await close();
    await fs.rename(temporaryPath, path);
    isFinished = true;
    await syncDirectory(dirname(path));
  };
  return {
    write: (bytes, position) => translated(writeFully(file, bytes, position)),
    finish: () => translated(finish()),
    async discard() {
      await close();
      if (!isFinished) await removeUnfinished(temporaryPath);
    },
  };
}

/**
 * Replaces a directory as a whole. `write` fills a temporary sibling; only when it has returned does the sibling take the
 * place of an earlier directory, which is removed afterwards. When anything fails, the earlier directory stays. An earlier
 * directory is replaced only if it looks like one that was written so: a wrong path must not cost a folder of other files.
 *
 * @param options.replace false: an earlier directory is refused @defaultValue true
 * @throws LimbeckError ERR_NO_SPACE, ERR_IO (also when the path is a file), ERR_INVALID_ARGUMENT for a directory that must
 * not be replaced and for no path, and whatever `write` throws
 */
export async function writeDirectoryAtomic(
  path: string,
  write: (temporaryPath: string) => Promise<void>,
  { replace = true }: { readonly replace?: boolean } = {},
): Promise<void> {
  checkPath(path, 'directory');
  const target = resolve(path);
  const temporaryPath = temporarySibling(target);
  try {
    const earlier = await statIfPresent(target);
    if (earlier !== undefined && !earlier.isDirectory()) {
      throw new LimbeckError('ERR_IO', `Cannot write the directory '${target}': a file has that name`);
    }
    if (earlier !== undefined && !replace) throw alreadyThere(target);
    if (earlier !== undefined) checkNotAround(target);
    await makeWithParents(dirname(target));
    await fs.mkdir(temporaryPath);
    await write(temporaryPath);
    await syncDirectory(temporaryPath);
    const isDone = (earlier === undefined || !replace) && (await renameUnlessThere(temporaryPath, target));
    if (!isDone && !replace) throw alreadyThere(target);
    if (!isDone) {
      await checkAlike(target, temporaryPath);
      await swapDirectories(temporaryPath, target);
    }
    await syncDirectory(dirname(target));
  } catch (error) {
    await removeUnfinished(temporaryPath);
    throw writeError(error, target);
  }
}

/** Whether it was: another writer may have made the target meanwhile, and then the rename fails, as that one is not empty. */
async function renameUnlessThere(temporaryPath: string, target: string): Promise<boolean> {
  try {
    await fs.rename(temporaryPath, target);
    return true;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOTEMPTY' || code === 'EEXIST') return false;
    throw error;
  }
}

/** Removes a file or a directory with all that it holds; nothing happens when there is none. @throws LimbeckError ERR_IO */
export async function remove(path: string): Promise<void> {
  try {
    await fs.rm(path, { recursive: true, force: true });
  } catch (error) {
    throw writeError(error, path);
  }
}

/** Makes a directory and those above it. @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_NO_SPACE, ERR_IO */
export async function makeDirectory(path: string): Promise<void> {
  checkPath(path, 'directory');
  try {
    await makeWithParents(path);
  } catch (error) {
    throw writeError(error, path);
  }
}

/**
 * Node's own recursive mkdir says ENOENT for whatever stops it below a missing directory, as on a read-only file system, and
 * never ends in /proc.
 */
async function makeWithParents(path: string): Promise<void> {
  const make = () =>
    fs.mkdir(path).catch(async (error: NodeJS.ErrnoException) => {
      const earlier = await fs.stat(path).catch(() => undefined);
      if (!earlier?.isDirectory()) throw error;
    });
  await make().catch(async (error: NodeJS.ErrnoException) => {
    const parent = dirname(path);
    if (error.code !== 'ENOENT' || parent === path) throw error;
    await makeWithParents(parent);
    await make();
  });
}

/** Whatever becomes of it: why it was not finished is what the caller must hear. */
async function removeUnfinished(temporaryPath: string): Promise<void> {
  await fs.rm(temporaryPath, { recursive: true, force: true }).catch(() => undefined);
}

function alreadyThere(path: string): LimbeckError {
  return new LimbeckError('ERR_INVALID_ARGUMENT', `'${path}' is there already, and is not replaced`);
}

/** The folder that this process works in, and those around it, are no results. */
function checkNotAround(target: string): void {
  const inside = relative(target, process.cwd());
  if (inside !== '..' && !inside.startsWith(`..${sep}`) && !isAbsolute(inside)) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `'${target}' is the working directory, or around it, and is not replaced: name a folder in it`,
    );
  }
}

/** Earlier results hold tensors, or something that has a name of the new ones; many a folder has a config.json. */
async function checkAlike(target: string, temporaryPath: string): Promise<void> {
  const [earlier, written] = await Promise.all([fs.readdir(target), fs.readdir(temporaryPath)]);
  const isAlike = (name: string) =>
    /\.safetensors(\.index\.json)?$/.test(name) || (name !== 'config.json' && written.includes(name));
  if (earlier.length === 0 || earlier.some(isAlike)) return;
  throw new LimbeckError(
    'ERR_INVALID_ARGUMENT',
    `'${target}' holds other files (${earlier.slice(0, 3).join(', ')}${earlier.length > 3 ? ', …' : ''}) and is not ` +
      'replaced: name a new folder, or remove it first',
  );
}

/**
 * In one step where the file system has it, so that there is always a whole directory of that name. Elsewhere the earlier
 * one steps aside, and comes back if the swap fails: a directory cannot be renamed over a full one.
 */
async function swapDirectories(temporaryPath: string, target: string): Promise<void> {
  if (loadBinding().exchangeNames(temporaryPath, target)) {
    await fs.rm(temporaryPath, { recursive: true, force: true });
    return;
  }
  const earlierPath = temporarySibling(target);
  await fs.rename(target, earlierPath);
  try {
    await fs.rename(temporaryPath, target);
  } catch (error) {
    await fs.rename(earlierPath, target);
    throw error;
  }
  await fs.rm(earlierPath, { recursive: true, force: true });
}

/** @param position in the file; behind what was written last where there is none */
async function writeFully(file: FileHandle, bytes: Uint8Array, position?: number): Promise<void> {
  let offset = 0;
  while (offset < bytes.byteLength) {
    const length = Math.min(WRITE_CHUNK_BYTES, bytes.byteLength - offset);
    const at = position === undefined ? null : position + offset;
    const { bytesWritten } = await file.write(bytes, offset, length, at);
    offset += bytesWritten;
  }
}

/**
 * Makes a file as a whole where there is none: of several processes that try at once, one succeeds.
 *
 * @returns whether it was this one
 * @throws LimbeckError ERR_NO_SPACE, ERR_IO
 */
export async function createFileExclusive(path: string, data: string): Promise<boolean> {
  const temporaryPath = temporarySibling(path);
  try {
    await writeFileAtomic(temporaryPath, data);
    // Unlike a rename, a link never takes the place of another file.
    await fs.link(temporaryPath, path);
    await fs.rm(temporaryPath);
    await syncDirectory(dirname(path));
    return true;
  } catch (error) {
    await removeUnfinished(temporaryPath);
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false;
    throw writeError(error, path);
  }
}

/** Copies a file; the copy is there as a whole or not at all. @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_NO_SPACE, ERR_IO */
export async function copyFileAtomic(from: string, to: string): Promise<void> {
  const { file } = await openRegularFile(from);
  try {
    const chunks = file.createReadStream({ autoClose: false, highWaterMark: 1 << 20 });
    await writeFileAtomic(to, chunks as AsyncIterable<Uint8Array>);
  } finally {
    await file.close();
  }
}

/** Whether a name is that of an unfinished write, as a process that was killed leaves behind. */
export function isTemporaryName(name: string): boolean {
  return /^\..+\.[0-9]+\.[0-9a-f]{12}\.tmp$/.test(name);
}

/** Makes new, renamed and removed names durable. Windows cannot open a directory, and does not need it. */
export async function syncDirectory(path: string): Promise<void> {
  if (process.platform === 'win32') return;
  const directory = await fs.open(path, constants.O_RDONLY);
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}

async function statIfPresent(path: string): Promise<Stats | undefined> {
  return fs.stat(path).catch((error: unknown) => {
    if (isMissing(error)) return undefined;
    throw error;
  });
}

function isMissing(error: unknown): boolean {
  const { code } = error as NodeJS.ErrnoException;
  return code === 'ENOENT' || code === 'ENOTDIR';
}

/** A name beside `path` that no one else uses; {@link isTemporaryName} tells such names. */
export function temporarySibling(path: string): string {
  return join(dirname(path), `.${basename(path)}.${process.pid}.${randomBytes(6).toString('hex')}.tmp`);
}

function kindOf(stats: Stats): string {
  if (stats.isDirectory()) return 'a folder';
  return stats.isFIFO() ? 'a pipe' : 'a device or socket';
}

/** What a failed read is reported as. */
export function readError(error: unknown, path: string): LimbeckError {
  if (isMissing(error)) {
    return new LimbeckError('ERR_FILE_NOT_FOUND', `There is no file '${path}'`, { cause: error });
  }
  return new LimbeckError('ERR_IO', `Cannot read '${path}': ${(error as Error).message}`, { cause: error });
}

/**
 * What a failed write is reported as: ERR_NO_SPACE (disk, quota or the largest file allowed) or ERR_IO. Errors of the
 * caller's own callback keep their meaning; only the system's errors are translated.
 */
export function writeError(error: unknown, path: string): unknown {
  const { code, message, syscall } = error as NodeJS.ErrnoException;
  if (error instanceof LimbeckError || syscall === undefined) return error;
  if (code === 'ENOSPC' || code === 'EDQUOT' || code === 'EFBIG') {
    return new LimbeckError('ERR_NO_SPACE', `No space left to write '${path}'; earlier files are untouched`, {
      cause: error,
    });
  }
  return new LimbeckError('ERR_IO', `Cannot write '${path}': ${message}`, { cause: error });
}

/** A save takes far longer than the reading of what it wrote. */
const DIRECTORY_READS = 5;
/** Between the two renames of a save, there is no directory for a moment. */
const MISSING_DIRECTORY_MS = 20;

/**
 * Reads files that belong together from one directory, whatever {@link writeDirectoryAtomic} puts in its place meanwhile:
 * what came from two of them, or from none between them, is disposed of and read again.
 *
 * @throws LimbeckError ERR_IO when the directory is replaced again and again, and whatever `read` throws
 */
export async function readWholeDirectory<T extends { dispose(): void }>(
  path: string,
  read: () => Promise<T>,
): Promise<T> {
  for (let i = 0; i < DIRECTORY_READS; i++) {
    if ((await identityOf(path)) === undefined) await new Promise((done) => setTimeout(done, MISSING_DIRECTORY_MS));
    const before = await identityOf(path);
    const outcome = await read().then(
      (value) => ({ value }),
      (error: unknown) => ({ error }),
    );
    if ((await identityOf(path)) === before) {
      if ('value' in outcome) return outcome.value;
      throw outcome.error;
    }
    if ('value' in outcome) outcome.value.dispose();
  }
  throw new LimbeckError(
    'ERR_IO',
    `Cannot read '${path}': it was replaced during each of ${DIRECTORY_READS} attempts. Open it when no process saves there.`,
  );
}

/** The same for as long as a path leads to the same directory; undefined while there is none. */
async function identityOf(path: string): Promise<string | undefined> {
  try {
    // Numbers of directories that were removed are given to new ones.
    const { dev, ino, birthtimeNs } = await fs.stat(path, { bigint: true });
    return `${dev} ${ino} ${birthtimeNs}`;
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw readError(error, path);
  }
}
