import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { createEngine } from '../../../src/engine.js';
import { openHub } from '../../../src/teacher/hub-download.js';
import { modelDirectory } from '../../../src/teacher/model-hub.js';
import { askHub, COMMIT, type FakeHub, gitHash, sha256, startFakeHub } from '../../support/fake-hub.js';

const fixture = join(import.meta.dirname, '../../fixtures/gpt2');
const MODEL = 'hf://someone/small';
const WEIGHTS = readFileSync(join(fixture, 'model.safetensors'));
const CONFIG = readFileSync(join(fixture, 'config.json'));
const files = { 'README.md': Buffer.from('# hello'), 'config.json': CONFIG, 'model.safetensors': WEIGHTS };

let hub: FakeHub;
let root: string;
let cache: string;

beforeEach(async () => {
  root = mkdtempSync(join(tmpdir(), 'limbeck-hub-'));
  cache = join(root, 'hub', 'models--someone--small');
  hub = await startFakeHub(files);
  askHub(hub, root);
});

afterEach(async () => {
  vi.unstubAllEnvs();
  await hub.close();
  rmSync(root, { recursive: true });
});

const blobs = () => readdirSync(join(cache, 'blobs')).sort();
const weightRequests = () => hub.requests.filter((request) => request.includes('model.safetensors'));

function expectCached(directory: string): void {
  expect(directory).toBe(join(cache, 'snapshots', COMMIT));
  expect(readFileSync(join(directory, 'model.safetensors')).equals(WEIGHTS)).toBe(true);
  expect(readFileSync(join(directory, 'config.json')).equals(CONFIG)).toBe(true);
  expect(blobs()).toEqual([gitHash(CONFIG), sha256(WEIGHTS)].sort());
}

test('a directory stays what it is', async () => {
  expect(await modelDirectory('some/where')).toBe('some/where');
});

test('downloads what a model needs into the layout of the Hugging Face cache, and the engine opens it', async () => {
  const events: string[] = [];
  const engine = await createEngine({ threads: 1 });
  const model = await engine.loadLanguageModel(MODEL, {
    onProgress: ({ step, name, done, total }) => events.push(`${step} ${name} ${done}/${total}`),
  });
  expect(model.family).toBe('gpt2');
  engine.dispose();
  expectCached(join(cache, 'snapshots', COMMIT));
  expect(readlinkSync(join(cache, 'snapshots', COMMIT, 'config.json'))).toBe(
    join('..', '..', 'blobs', gitHash(CONFIG)),
  );
  expect(readFileSync(join(cache, 'refs', 'main'), 'utf8')).toBe(COMMIT);
  expect(events.at(-1)).toBe(`teacher download model.safetensors ${WEIGHTS.length}/${WEIGHTS.length}`);
  expect(hub.requests.some((request) => request.includes('README'))).toBe(false);
});

test('does not download again what is cached, and works without a network then', async () => {
  await modelDirectory(MODEL);
  hub.requests.length = 0;
  expectCached(await modelDirectory(MODEL));
  expect(weightRequests()).toEqual([]);
  expectCached(await modelDirectory(`${MODEL}@${COMMIT}`));
  vi.stubEnv('HF_HUB_OFFLINE', '1');
  hub.requests.length = 0;
  expectCached(await modelDirectory(MODEL));
  expect(hub.requests).toEqual([]);
  vi.stubEnv('HF_HUB_OFFLINE', '');
  vi.stubEnv('HF_ENDPOINT', 'http://127.0.0.1:9');
  expectCached(await modelDirectory(MODEL));
});

test('finds what the Python library left, also at HF_HUB_CACHE', async () => {
  const elsewhere = join(root, 'elsewhere');
  const snapshot = join(elsewhere, 'models--someone--small', 'snapshots', COMMIT);
  mkdirSync(snapshot, { recursive: true });
  mkdirSync(join(snapshot, '../../refs'));
  writeFileSync(join(snapshot, '../../refs/main'), COMMIT);
  writeFileSync(join(snapshot, 'config.json'), CONFIG);
  writeFileSync(join(snapshot, 'model.safetensors'), WEIGHTS);
  vi.stubEnv('HF_HUB_CACHE', elsewhere);
  vi.stubEnv('HF_HUB_OFFLINE', '1');
  expect(await modelDirectory(MODEL)).toBe(snapshot);
  rmSync(join(snapshot, 'model.safetensors'));
  await expect(modelDirectory(MODEL)).rejects.toMatchObject({
    code: 'ERR_FILE_NOT_FOUND',
    message: expect.stringContaining('HF_HUB_OFFLINE'),
  });
});

test('goes on where the connection broke', async () => {
  hub.faults.set('model.safetensors', [{ breakAfter: 1000 }, { breakAfter: 2000 }]);
  expectCached(await modelDirectory(MODEL));
  const ranges = weightRequests().map((request) => request.split('bytes=')[1]);
  expect(ranges).toEqual([undefined, '1000-', '3000-']);
});

test('tries again when the server fails for a moment', async () => {
  hub.faults.set('model.safetensors', [503, 500]);
  hub.faults.set('config.json', [429]);
  expectCached(await modelDirectory(MODEL));
});

test('keeps nothing of a file whose hash does not hold', async () => {
  hub.faults.set('model.safetensors', ['corrupt']);
  await expect(modelDirectory(MODEL)).rejects.toMatchObject({ code: 'ERR_HASH_MISMATCH' });
  expect(blobs()).toEqual([gitHash(CONFIG)]);
  expect(existsSync(join(cache, 'snapshots', COMMIT, 'model.safetensors'))).toBe(false);
  hub.faults.set('config.json', ['corrupt']);
  expectCached(await modelDirectory(MODEL));
});

test('downloads the shards, then the index that names them', async () => {
  await hub.close();
  const index = Buffer.from(
    JSON.stringify({ weight_map: { a: 'model-00001-of-00002.safetensors', b: 'model-00002-of-00002.safetensors' } }),
  );
  hub = await startFakeHub({
    'model.safetensors.index.json': index,
    'config.json': CONFIG,
    'model-00001-of-00002.safetensors': Buffer.from('one'),
    'model-00002-of-00002.safetensors': Buffer.from('two'),
  });
  vi.stubEnv('HF_ENDPOINT', hub.url);
  const directory = await modelDirectory(MODEL);
  expect(readdirSync(directory)).toHaveLength(4);
  expect(hub.requests.at(-1)).toContain('index.json');
  rmSync(join(directory, 'model-00002-of-00002.safetensors'));
  vi.stubEnv('HF_HUB_OFFLINE', '1');
  await expect(modelDirectory(MODEL)).rejects.toMatchObject({ code: 'ERR_FILE_NOT_FOUND' });
});

test('sends HF_TOKEN, and says what to do without', async () => {
  hub.token = 'secret';
  await expect(modelDirectory(MODEL)).rejects.toMatchObject({
    code: 'ERR_ACCESS_DENIED',
    message: expect.stringContaining('set HF_TOKEN'),
  });
  vi.stubEnv('HF_TOKEN', 'secret');
  expectCached(await modelDirectory(MODEL));
});

test('says so when something else than a hub answers', async () => {
  hub.commit = '../../outside';
  await expect(modelDirectory(MODEL)).rejects.toMatchObject({
    code: 'ERR_NETWORK',
    message: expect.stringContaining('expected a hash'),
  });
});

test.each([
  [401, 'ERR_ACCESS_DENIED', 'HF_TOKEN'],
  [403, 'ERR_ACCESS_DENIED', 'accept the terms'],
  [404, 'ERR_FILE_NOT_FOUND', 'check owner, name and revision'],
  [418, 'ERR_NETWORK', '418'],
])('status %i is %s', async (status, code, message) => {
  hub.status = status;
  await expect(modelDirectory(MODEL)).rejects.toMatchObject({ code, message: expect.stringContaining(message) });
});

test.each([
  [{ 'README.md': Buffer.from('x') }, 'config.json'],
  [{ 'config.json': CONFIG, 'pytorch_model.bin': Buffer.from('x') }, 'model.safetensors'],
])('says what a model lacks (%#)', async (content, missing) => {
  await hub.close();
  hub = await startFakeHub(content as Record<string, Buffer>);
  vi.stubEnv('HF_ENDPOINT', hub.url);
  await expect(modelDirectory(MODEL)).rejects.toMatchObject({
    code: 'ERR_FILE_NOT_FOUND',
    message: expect.stringContaining(`has no ${missing}`),
  });
});

test('without a network and a cache, says what to do', async () => {
  vi.stubEnv('HF_ENDPOINT', 'http://127.0.0.1:9');
  await expect(modelDirectory(MODEL)).rejects.toMatchObject({
    code: 'ERR_NETWORK',
    message: expect.stringContaining('give a directory'),
  });
});

test.each(['hf://', 'hf://small', 'hf://a/b/c', 'hf://a/b@', 'hf://../b', 'hf://a/b@../../x', 'hf://a/b c'])(
  'refuses the name %j',
  async (name) => {
    await expect(modelDirectory(name)).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
  },
);

test('names the package that is missing', async () => {
  const missing = () => Promise.reject(new Error('Cannot find package'));
  await expect(openHub('someone/small', 'main', undefined, missing)).rejects.toMatchObject({
    code: 'ERR_MISSING_DEPENDENCY',
    message: expect.stringContaining('npm install @huggingface/hub'),
  });
});

test('stops when it is told to, and goes on from there', async () => {
  hub.faults.set('model.safetensors', [{ stallAfter: 1500 }]);
  const controller = new AbortController();
  const stopped = modelDirectory(MODEL, {
    signal: controller.signal,
    onProgress: ({ name, done }) => {
      if (name.includes('safetensors') && done >= 1500) controller.abort();
    },
  });
  await expect(stopped).rejects.toMatchObject({ code: 'ERR_ABORTED' });
  expectCached(await modelDirectory(MODEL));
  expect(weightRequests().at(-1)).toContain('bytes=1500-');
});

test('several at once end with the same files', async () => {
  hub.faults.set('model.safetensors', [{ breakAfter: 100 }, { breakAfter: 200 }]);
  for (const directory of await Promise.all([1, 2, 3].map(() => modelDirectory(MODEL)))) expectCached(directory);
});

function downloadInProcess(): ChildProcess {
  const built = pathToFileURL(join(import.meta.dirname, '../../../dist/teacher/model-hub.js')).href;
  const program = `const { modelDirectory } = await import(${JSON.stringify(built)});
    await modelDirectory('${MODEL}', { onProgress: ({ name, done }) => process.send({ name, done }) });`;
  return spawn(process.execPath, ['--input-type=module', '-e', program], {
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
  });
}

test('goes on after a process that was killed in the middle', async () => {
  hub.faults.set('model.safetensors', [{ stallAfter: 1234 }]);
  const child = downloadInProcess();
  child.on('message', (message) => {
    const { name, done } = message as { name: string; done: number };
    if (name.includes('safetensors') && done === 1234) child.kill('SIGKILL');
  });
  await once(child, 'exit');
  expect(existsSync(join(cache, 'snapshots', COMMIT, 'model.safetensors'))).toBe(false);
  expectCached(await modelDirectory(MODEL));
  expect(weightRequests().at(-1)).toContain('bytes=1234-');
});

test('two processes end with the same files', async () => {
  const codes = await Promise.all([downloadInProcess(), downloadInProcess()].map((child) => once(child, 'exit')));
  expect(codes.map(([code]) => code)).toEqual([0, 0]);
  expectCached(join(cache, 'snapshots', COMMIT));
});
