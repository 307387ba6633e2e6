/**
 * Models by name: `hf://owner/model[@revision]` is fetched once into the cache that Hugging Face's Python libraries share,
 * and opened from there ever after.
 */
import { homedir } from 'node:os';
import { join } from 'node:path';
import { checkPath } from '../arguments.js';
import { LimbeckError } from '../errors.js';
import { makeDirectory, pathExists, readJsonFile, readTextFile, writeFileAtomic } from '../formats/files.js';
import { isJsonObject, type JsonValue } from '../formats/strict-json.js';
import { type Hooks, throwIfAborted } from '../prepare/hooks.js';
import { downloadFile, type HubFile, type HubSession, linkIntoSnapshot, openHub } from './hub-download.js';

const SCHEME = 'hf://';
const NAME = /^hf:\/\/([\w][\w.-]*\/[\w][\w.-]*)(?:@([\w][\w./-]*))?$/;
const COMMIT = /^[0-9a-f]{40}$/;
const WEIGHTS = 'model.safetensors';
const WEIGHTS_INDEX = 'model.safetensors.index.json';
/** What a model needs beside its weights. They are fetched first: where the weights are, the rest is, too. */
const SMALL_FILES: ReadonlySet<string> = new Set([
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'merges.txt',
  'vocab.txt',
]);

/** Whether a name is one of the hub, and not a path. */
export function isHubName(name: string): boolean {
  return name.startsWith(SCHEME);
}

interface ModelName {
  /** owner/model */
  readonly repository: string;
  /** Branch, tag or commit. */
  readonly revision: string;
}

/**
 * The directory of a model: itself, or for `hf://owner/model[@revision]` a snapshot in the cache, downloaded where it is not
 * there yet. HF_HUB_CACHE, HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE count as they do in Python. A download that
 * was stopped goes on where it was, every file is checked against its hash, and several processes may fetch at once.
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT (name), ERR_FILE_NOT_FOUND (no such model, revision or weights; not cached while
 * offline), ERR_ACCESS_DENIED, ERR_NETWORK, ERR_HASH_MISMATCH, ERR_MISSING_DEPENDENCY, ERR_ABORTED, ERR_NO_SPACE, ERR_IO
 */
export async function modelDirectory(name: string, hooks: Hooks = {}): Promise<string> {
  checkPath(name, 'directory');
  if (!isHubName(name)) return name;
  const model = parseName(name);
  const cache = join(cacheDirectory(), `models--${model.repository.replace('/', '--')}`);
  const cached = await cachedSnapshot(cache, model.revision);
  // A commit never changes; a branch may have moved.
  if (cached !== undefined && COMMIT.test(model.revision)) return cached;
  if (isOffline()) {
    if (cached !== undefined) return cached;
    throw new LimbeckError(
      'ERR_FILE_NOT_FOUND',
      `'${name}' is not in the cache '${cache}', and HF_HUB_OFFLINE forbids to download it; unset it, or give a directory`,
    );
  }
  try {
    const hub = await openHub(model.repository, model.revision, hooks.signal);
    return await download(hub, cache, model, hooks);
  } catch (error) {
    const isUnreachable = error instanceof LimbeckError && error.code === 'ERR_NETWORK';
    if (isUnreachable && cached !== undefined) return cached;
    throw error;
  }
}

function parseName(name: string): ModelName {
  const [, repository, revision = 'main'] = NAME.exec(name) ?? [];
  if (repository === undefined || `${repository}/${revision}`.includes('..')) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `Expected hf://owner/model or hf://owner/model@revision, got '${name}'`,
    );
  }
  return { repository, revision };
}

function cacheDirectory(): string {
  const { HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME } = process.env;
  if (HF_HUB_CACHE) return HF_HUB_CACHE;
  return join(HF_HOME || join(XDG_CACHE_HOME || join(homedir(), '.cache'), 'huggingface'), 'hub');
}

function isOffline(): boolean {
  return /^(1|on|yes|true)$/i.test(process.env['HF_HUB_OFFLINE'] ?? '');
}

/** The snapshot of a revision, when it has all that it needs. */
async function cachedSnapshot(cache: string, revision: string): Promise<string | undefined> {
  const ref = join(cache, 'refs', revision);
  let commit = revision;
  if (!COMMIT.test(revision)) {
    if (!(await pathExists(ref))) return undefined;
    commit = (await readTextFile(ref)).trim();
  }
  const snapshot = join(cache, 'snapshots', commit);
  const has = (file: string) => pathExists(join(snapshot, file));
  if (!(await has('config.json'))) return undefined;
  if (await has(WEIGHTS)) return snapshot;
  if (!(await has(WEIGHTS_INDEX))) return undefined;
  for (const shard of shardsOf(await readJsonFile(join(snapshot, WEIGHTS_INDEX)))) {
    if (!(await has(shard))) return undefined;
  }
  return snapshot;
}

/** Names of the shards that an index names; what is wrong with an index is for who reads the checkpoint to say. */
function shardsOf(index: JsonValue): Set<string> {
  const weightMap = isJsonObject(index) ? index['weight_map'] : undefined;
  const names = isJsonObject(weightMap) ? Object.values(weightMap) : [];
  return new Set(names.filter((name) => typeof name === 'string'));
}

async function download(hub: HubSession, cache: string, model: ModelName, hooks: Hooks): Promise<string> {
  const files = neededFiles(hub, model);
  const snapshot = join(cache, 'snapshots', hub.commit);
  await makeDirectory(join(cache, 'blobs'));
  await makeDirectory(snapshot);
  for (const file of files) {
    throwIfAborted(hooks.signal);
    const onBytes = (done: number) =>
      hooks.onProgress?.({ step: 'teacher', name: `download ${file.path}`, done, total: file.sizeBytes });
    await downloadFile(hub, file, join(cache, 'blobs'), { signal: hooks.signal, onBytes });
    await linkIntoSnapshot(snapshot, file);
  }
  if (!COMMIT.test(model.revision)) {
    const ref = join(cache, 'refs', model.revision);
    await makeDirectory(join(ref, '..'));
    await writeFileAtomic(ref, hub.commit);
  }
  return snapshot;
}

/** Small files, then the shards, then what says that the weights are complete. */
function neededFiles(hub: HubSession, { repository, revision }: ModelName): HubFile[] {
  const small = hub.files.filter(({ path }) => SMALL_FILES.has(path));
  const whole = hub.files.filter(({ path }) => path === WEIGHTS);
  const index = hub.files.filter(({ path }) => path === WEIGHTS_INDEX);
  const shards = hub.files.filter(({ path }) => /^model-\d+-of-\d+\.safetensors$/.test(path));
  const weights = whole.length > 0 ? whole : [...shards, ...index];
  const missing = !small.some(({ path }) => path === 'config.json') ? 'config.json' : WEIGHTS;
  if (missing === 'config.json' || (whole.length === 0 && index.length === 0)) {
    const found = hub.files.map(({ path }) => path).slice(0, 20);
    throw new LimbeckError(
      'ERR_FILE_NOT_FOUND',
      `'${repository}' at '${revision}' has no ${missing}, only ${found.join(', ') || 'nothing'}; ` +
        'expected a model in the transformers layout with safetensors weights',
    );
  }
  return [...small, ...weights];
}
