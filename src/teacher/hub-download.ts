/** Files of one model on the hub: what there are, and bringing one of them safely into the cache. */
import { createHash, randomBytes } from 'node:crypto';
import { createReadStream } from 'node:fs';
import fs, { type FileHandle } from 'node:fs/promises';
import { hostname } from 'node:os';
import { basename, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { LimbeckError } from '../errors.js';
import { syncDirectory, writeError } from '../formats/files.js';
import { throwIfAborted } from '../prepare/hooks.js';

/** @internal Optional packages are in no declaration: TypeScript would miss them where they are not installed. */
type HubModule = typeof import('@huggingface/hub');

const DEFAULT_ENDPOINT = 'https://huggingface.co';
/** Tries without any progress, and the pause before the second one, which doubles. */
const MAX_TRIES = 5;
const FIRST_PAUSE_MS = 250;

export interface HubFile {
  readonly path: string;
  readonly sizeBytes: number;
  /** SHA-256 of a large file, git's SHA-1 of another; also its name in the cache. */
  readonly hash: string;
}

/** One commit of a model. */
export interface HubSession {
  readonly commit: string;
  readonly files: readonly HubFile[];
  /** Begins to read a file at a byte. */
  read(path: string, firstByte: number): Promise<Response>;
}

/**
 * Asks the hub what a revision is and has.
 *
 * @internal
 * @throws LimbeckError ERR_MISSING_DEPENDENCY, ERR_FILE_NOT_FOUND, ERR_ACCESS_DENIED, ERR_NETWORK, ERR_ABORTED
 */
export async function openHub(
  repository: string,
  revision: string,
  signal: AbortSignal | undefined,
  importModule: () => Promise<HubModule> = () => import('@huggingface/hub'),
): Promise<HubSession> {
  const hubUrl = (process.env['HF_ENDPOINT'] || DEFAULT_ENDPOINT).replace(/\/+$/, '');
  const { modelInfo, listFiles } = await importHub(importModule);
  const request = createFetch(`${repository}@${revision}`, hubUrl, signal);
  let commit: string;
  const files: HubFile[] = [];
  try {
    ({ sha: commit } = await modelInfo({
      name: repository,
      revision,
      additionalFields: ['sha'],
      hubUrl,
      fetch: request,
    }));
    checkHash(commit);
    for await (const entry of listFiles({ repo: repository, revision: commit, hubUrl, fetch: request })) {
      const { type, path, size, oid, lfs } = entry;
      if (type === 'file') files.push({ path, sizeBytes: lfs?.size ?? size, hash: checkHash(lfs?.oid ?? oid) });
    }
  } catch (error) {
    if (error instanceof LimbeckError) throw error;
    throw new LimbeckError(
      'ERR_NETWORK',
      `${hubUrl} answers as no hub does (${(error as Error).message}); a proxy may stand between, or HF_ENDPOINT be wrong`,
      { cause: error },
    );
  }
  return {
    commit,
    files,
    read: (path, firstByte) =>
      request(`${hubUrl}/${repository}/resolve/${commit}/${path}`, {
        headers: {
          'Accept-Encoding': 'identity',
          ...(firstByte > 0 ? { Range: `bytes=${firstByte}-` } : {}),
        },
      }),
  };
}

/** Names in the cache come from the network: nothing but a hash may pass. */
function checkHash(hash: string | undefined): string {
  if (hash !== undefined && /^([0-9a-f]{40}|[0-9a-f]{64})$/.test(hash)) return hash;
  throw new Error(`expected a hash, got ${JSON.stringify(hash)}`);
}

async function importHub(importModule: () => Promise<HubModule>): Promise<HubModule> {
  try {
    return await importModule();
  } catch (cause) {
    throw new LimbeckError(
      'ERR_MISSING_DEPENDENCY',
      'hf:// models need the optional package @huggingface/hub, which cannot be loaded here. ' +
        'Install it with: npm install @huggingface/hub@2.17.5',
      { cause },
    );
  }
}

/** A fetch that tries again what may pass, and names what will not. */
function createFetch(model: string, hubUrl: string, signal: AbortSignal | undefined): typeof fetch {
  const token = process.env['HF_TOKEN'];
  return async (input, init) => {
    const headers = new Headers(init?.headers);
    // Not given to the library, which knows tokens of huggingface.co alone. A redirect to another server drops it.
    if (token) headers.set('Authorization', `Bearer ${token}`);
    for (let attempt = 1; ; attempt++) {
      throwIfAborted(signal);
      let trouble: unknown;
      try {
        const response = await fetch(input, { ...init, headers, ...(signal ? { signal } : {}) });
        if (response.ok) return response;
        await response.body?.cancel();
        if (response.status !== 429 && response.status < 500) throw refused(response.status, model, hubUrl);
        trouble = `HTTP status ${response.status}`;
      } catch (error) {
        throwIfAborted(signal);
        if (error instanceof LimbeckError) throw error;
        trouble = error;
      }
      if (attempt === MAX_TRIES) throw unreachable(model, hubUrl, trouble);
      await pause(attempt, signal);
    }
  };
}

async function pause(attempt: number, signal: AbortSignal | undefined): Promise<void> {
  await sleep(FIRST_PAUSE_MS * 2 ** (attempt - 1), undefined, signal ? { signal } : {}).catch((error: unknown) => {
    throwIfAborted(signal);
    throw error;
  });
}

function refused(status: number, model: string, hubUrl: string): LimbeckError {
  const hasToken = Boolean(process.env['HF_TOKEN']);
  const token = hasToken ? 'the token in HF_TOKEN does not open it' : 'set HF_TOKEN to a token that may read it';
  if (status === 401 || status === 403) {
    return new LimbeckError(
      'ERR_ACCESS_DENIED',
      `${hubUrl} refuses '${model}' (HTTP status ${status}): it does not exist, or is private or gated; ${token}, ` +
        'and accept the terms on its page where there are some',
    );
  }
  if (status === 404) {
    return new LimbeckError(
      'ERR_FILE_NOT_FOUND',
      `${hubUrl} has no '${model}': check owner, name and revision as its page shows them (case counts); ` +
        `where it is private, ${token}`,
    );
  }
  return new LimbeckError('ERR_NETWORK', `${hubUrl} refuses to give '${model}': HTTP status ${status}`);
}

function unreachable(model: string, hubUrl: string, trouble: unknown): LimbeckError {
  const { message, cause } = trouble instanceof Error ? trouble : { message: String(trouble), cause: undefined };
  const reason = cause instanceof Error && cause.message !== '' ? `${message}: ${cause.message}` : message;
  return new LimbeckError(
    'ERR_NETWORK',
    `Cannot fetch '${model}' from ${hubUrl} (${reason}). Check the network and HTTPS proxy, set HF_ENDPOINT to a mirror, or ` +
      'give a directory that you copied here',
    { cause: trouble },
  );
}

/** Downloads of this process that are under way, by the path of their unfinished file. */
const underWay = new Set<string>();

/**
 * Brings a file into the cache under its hash, where it only ever appears complete and checked. What a killed download left
 * is gone on with.
 *
 * @throws LimbeckError ERR_HASH_MISMATCH, ERR_NETWORK, ERR_FILE_NOT_FOUND, ERR_ACCESS_DENIED, ERR_ABORTED, ERR_NO_SPACE, ERR_IO
 */
export async function downloadFile(
  hub: HubSession,
  file: HubFile,
  blobs: string,
  { signal, onBytes }: { readonly signal: AbortSignal | undefined; readonly onBytes: (done: number) => void },
): Promise<void> {
  const target = join(blobs, file.hash);
  if (await hasSize(target, file.sizeBytes)) {
    onBytes(file.sizeBytes);
    return;
  }
  const unfinished = join(
    blobs,
    `${file.hash}.${hostname()}.${process.pid}.${randomBytes(6).toString('hex')}.incomplete`,
  );
  underWay.add(unfinished);
  try {
    await adoptUnfinished(blobs, file.hash, unfinished);
    await receive(hub, file, unfinished, signal, onBytes);
    const found = await hashOf(unfinished, file, signal);
    if (found !== file.hash) {
      await fs.rm(unfinished, { force: true });
      throw new LimbeckError(
        'ERR_HASH_MISMATCH',
        `'${file.path}' came with hash ${found}, and the hub says ${file.hash}: it was damaged on the way. ` +
          'Nothing of it was kept; try again',
      );
    }
    await fs.rename(unfinished, target);
    await syncDirectory(blobs);
  } catch (error) {
    throw writeError(error, target);
  } finally {
    underWay.delete(unfinished);
  }
}

async function hasSize(path: string, sizeBytes: number): Promise<boolean> {
  const stats = await fs.stat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined;
    throw error;
  });
  return stats?.size === sizeBytes;
}

/** Takes over what a process of this machine that has ended left behind. Of several that try, one succeeds. */
async function adoptUnfinished(blobs: string, hash: string, unfinished: string): Promise<void> {
  for (const name of await fs.readdir(blobs)) {
    if (!name.startsWith(`${hash}.${hostname()}.`) || !name.endsWith('.incomplete')) continue;
    const path = join(blobs, name);
    const pid = Number(name.slice(`${hash}.${hostname()}.`.length).split('.')[0]);
    if (pid === process.pid ? underWay.has(path) : isRunning(pid)) continue;
    const isTaken = await fs.rename(path, unfinished).then(
      () => true,
      (error: NodeJS.ErrnoException) => {
        if (error.code === 'ENOENT') return false; // another one was faster
        throw error;
      },
    );
    if (isTaken) return;
  }
}

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

/** Appends to the unfinished file until it has its size. Each interruption goes on from what has come. */
async function receive(
  hub: HubSession,
  file: HubFile,
  unfinished: string,
  signal: AbortSignal | undefined,
  onBytes: (done: number) => void,
): Promise<void> {
  const handle = await fs.open(unfinished, 'a+');
  try {
    let { size: done } = await handle.stat();
    if (done > file.sizeBytes) {
      await handle.truncate(0);
      done = 0;
    }
    for (let attempt = 1; done < file.sizeBytes; attempt++) {
      const before = done;
      const response = await hub.read(file.path, before);
      if (response.status !== 206 && before > 0) {
        await handle.truncate(0); // the server begins again
        done = 0;
      }
      const trouble = await append(handle, response, file.sizeBytes - done, signal, (count) => {
        done += count;
        onBytes(done);
      });
      if (done >= file.sizeBytes) break;
      if (done > before) attempt = 0;
      if (attempt === MAX_TRIES) {
        throw new LimbeckError(
          'ERR_NETWORK',
          `The connection breaks after ${done} of ${file.sizeBytes} bytes of '${file.path}'; the next call goes on from there`,
          { cause: trouble },
        );
      }
      await pause(Math.max(1, attempt), signal);
    }
    if (file.sizeBytes === 0) onBytes(0);
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** Returns what broke the connection, if anything did. */
async function append(
  handle: FileHandle,
  response: Response,
  room: number,
  signal: AbortSignal | undefined,
  onCount: (count: number) => void,
): Promise<unknown> {
  const reader = response.body?.getReader();
  if (reader === undefined) return new Error('the answer has no body');
  let left = room;
  try {
    while (left > 0) {
      let piece: Uint8Array;
      try {
        const { done, value } = await reader.read();
        if (done) return undefined;
        piece = value.subarray(0, left);
      } catch (error) {
        throwIfAborted(signal);
        return error;
      }
      await handle.appendFile(piece);
      left -= piece.length;
      onCount(piece.length);
    }
    return undefined;
  } finally {
    await reader.cancel().catch(() => {}); // a broken connection needs no cancelling
  }
}

async function hashOf(path: string, { hash, sizeBytes }: HubFile, signal: AbortSignal | undefined): Promise<string> {
  const isLarge = hash.length === 64;
  const digest = createHash(isLarge ? 'sha256' : 'sha1');
  if (!isLarge) digest.update(`blob ${sizeBytes}\0`); // git's header
  for await (const piece of createReadStream(path, { highWaterMark: 1 << 20 })) {
    throwIfAborted(signal);
    digest.update(piece);
  }
  return digest.digest('hex');
}

/** Gives a file of the cache its name in a snapshot, as Python's library does: by a relative link. */
export async function linkIntoSnapshot(snapshot: string, { path, hash }: HubFile): Promise<void> {
  const link = join(snapshot, path);
  const target = join('..', '..', 'blobs', hash);
  const temporary = join(snapshot, `.${basename(path)}.${process.pid}.${randomBytes(6).toString('hex')}.tmp`);
  try {
    await fs.symlink(target, temporary);
    await fs.rename(temporary, link);
    await syncDirectory(snapshot);
  } catch (error) {
    await fs.rm(temporary, { force: true });
    throw writeError(error, link);
  }
}
