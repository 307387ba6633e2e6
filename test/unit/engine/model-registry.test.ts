import {
  appendFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import fs from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { PromotionLog } from '../../../src/engine/promotion-log.js';
import { createEngine, type Engine, type ModelRegistry, type Student } from '../../../src/index.js';
import { temporaryDirectory } from '../formats/temporary-directory.js';

const fixture = join(import.meta.dirname, '../../fixtures/student');
const history = ['tt1583421', 'tt1483013', 'tt1980209'];
const root = temporaryDirectory();
let engine: Engine;
let student: Student;
let directory: string;
let registry: ModelRegistry;
let count = 0;

beforeAll(async () => {
  engine = await createEngine({ threads: 1 });
  student = await engine.loadStudent(fixture);
});
afterAll(() => {
  engine.dispose();
});
beforeEach(async () => {
  directory = join(root, `registry-${count++}`);
  registry = await engine.openModelRegistry(directory);
});
afterEach(() => {
  vi.restoreAllMocks();
});

const version = (name: string, ...path: string[]) => join(directory, 'versions', name, ...path);
const names = async () => (await registry.list()).map(({ name }) => name).sort();
/** Copies a version without the work of adding one: only the name in the manifest differs. */
function copyVersion(from: string, to: string, createdAt: number): void {
  cpSync(version(from), version(to), { recursive: true });
  const manifest = JSON.parse(readFileSync(version(to, 'version.json'), 'utf8'));
  writeFileSync(version(to, 'version.json'), JSON.stringify({ ...manifest, name: to, createdAt }));
}

describe('a model registry', () => {
  test('begins empty, and says so', async () => {
    expect(await registry.current()).toBeUndefined();
    expect(await registry.list()).toEqual([]);
    await expect(registry.rollback()).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
  });

  test('keeps metadata as JSON has them, and adds no version with others', async () => {
    await registry.add('v1', student, { a: 1, b: undefined, c: [{ d: null }] } as never);
    expect((await registry.list())[0]).toMatchObject({ metadata: { a: 1, c: [{ d: null }] } });
    const circular: Record<string, unknown> = {};
    circular['self'] = circular;
    let deep: unknown = 1;
    for (let i = 0; i < 64; i++) deep = [deep];
    for (const metadata of [null, 'a', [1], 7, circular, { a: 1n }, { a: '\ud800' }, { deep }]) {
      await expect(registry.add('v2', student, metadata as never)).rejects.toMatchObject({
        name: 'LimbeckError',
        code: 'ERR_INVALID_ARGUMENT',
      });
    }
    expect(await names()).toEqual(['v1']);
  });

  test('reads nothing of a file that has grown', async () => {
    await registry.add('v1', student);
    truncateSync(version('v1', 'model.safetensors'), 2 ** 40);
    await expect(registry.load('v1')).rejects.toMatchObject({ code: 'ERR_CHECKPOINT_MISMATCH' });
  });

  test('adds versions from students and directories, promotes, loads and rolls back', async () => {
    await registry.add('v1', student, { ndcgAt10: 0.1 });
    await registry.add('v2', fixture);
    expect(await registry.current()).toBeUndefined();
    await registry.promote('v1');
    await registry.promote('v2');
    expect(await registry.current()).toBe('v2');
    const listed = await registry.list();
    expect(listed.find(({ name }) => name === 'v1')).toMatchObject({ isCurrent: false, metadata: { ndcgAt10: 0.1 } });
    expect(listed.find(({ name }) => name === 'v2')).toMatchObject({ isCurrent: true, metadata: {} });
    expect(listed.every(({ createdAt, sizeBytes }) => createdAt > 1.7e12 && sizeBytes > 10_000)).toBe(true);
    expect(await registry.rollback()).toBe('v1');
    expect(await registry.current()).toBe('v1');
    const loaded = await registry.load('v1');
    expect(loaded.recommend({ history, k: 5 })).toEqual(student.recommend({ history, k: 5 }));
    loaded.dispose();
    await expect(registry.rollback()).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
  });

  test('is the same for everyone who opens it', async () => {
    await registry.add('v1', student);
    await registry.promote('v1');
    const other = await engine.openModelRegistry(directory);
    await other.add('v2', student);
    await other.promote('v2');
    expect(await registry.current()).toBe('v2');
    expect(await registry.rollback()).toBe('v1');
    expect(await other.current()).toBe('v1');
  });

  test('goes back through history step by step; promoting the current one changes nothing', async () => {
    await registry.add('a', student);
    for (const name of ['b', 'c']) copyVersion('a', name, Date.now());
    for (const name of ['a', 'b', 'b', 'c', 'c']) await registry.promote(name);
    expect([await registry.rollback(), await registry.rollback()]).toEqual(['b', 'a']);
    await registry.promote('c');
    expect(await registry.rollback()).toBe('a');
  });

  test('never replaces a version', async () => {
    await registry.add('v1', student, { first: true });
    await expect(registry.add('v1', student, { first: false })).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
    expect((await registry.list())[0]?.metadata).toEqual({ first: true });
    const tries = await Promise.allSettled([1, 2, 3].map((i) => registry.add('v2', student, { i })));
    expect(tries.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
    expect(readdirSync(join(directory, 'versions')).sort()).toEqual(['v1', 'v2']);
  });

  test.each([
    '..',
    '.',
    '',
    '../v1',
    'a/b',
    '/etc',
    'a\\b',
    '.hidden',
    'a\0b',
    'ü',
    'x'.repeat(129),
    'a b',
    'v1\n',
    null,
    7,
    ['v1'],
  ])('no name: %j', async (name) => {
    const wrong = name as string;
    for (const call of [
      () => registry.add(wrong, student),
      () => registry.load(wrong),
      () => registry.promote(wrong),
    ]) {
      await expect(call()).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
    }
    expect(readdirSync(directory).sort()).toEqual(['promotions', 'versions']);
    expect(await registry.list()).toEqual([]);
  });

  test('takes any name of 128 letters', async () => {
    const name = `${'x'.repeat(124)}._-9`;
    await registry.add(name, student);
    await registry.promote(name);
    expect(await registry.current()).toBe(name);
  });

  test('says that a version is not there', async () => {
    for (const call of [() => registry.load('v9'), () => registry.promote('v9')]) {
      await expect(call()).rejects.toMatchObject({
        code: 'ERR_FILE_NOT_FOUND',
        message: expect.stringContaining('v9'),
      });
    }
  });
});

describe('a damaged version', () => {
  const damages: [string, (path: string) => void, string][] = [
    ['one bit flipped', (path) => flipBit(join(path, 'model.safetensors')), 'model.safetensors'],
    ['a file cut short', (path) => writeFileSync(join(path, 'items.json'), '['), 'items.json'],
    ['a byte too many', (path) => appendFileSync(join(path, 'text_encoder/model.safetensors'), 'x'), 'text_encoder'],
    ['a missing file', (path) => rmSync(join(path, 'item_features.safetensors')), 'item_features'],
    ['a file that does not belong', (path) => writeFileSync(join(path, 'text_encoder/x'), ''), 'text_encoder/x'],
    ['no manifest', (path) => rmSync(join(path, 'version.json')), 'version.json'],
    ['a broken manifest', (path) => writeFileSync(join(path, 'version.json'), '{"format"'), 'version.json'],
    [
      'a link in it',
      (path) => {
        renameSync(join(path, 'items.json'), join(path, '..', '..', 'items.json'));
        symlinkSync('../../items.json', join(path, 'items.json'));
      },
      'regular file',
    ],
    [
      'a link as its manifest',
      (path) => {
        renameSync(join(path, 'version.json'), join(path, '..', '..', 'version.json'));
        symlinkSync('../../version.json', join(path, 'version.json'));
      },
      'regular file',
    ],
    [
      'a link in its place',
      (path) => {
        rmSync(path, { recursive: true });
        symlinkSync(fixture, path);
      },
      'link',
    ],
  ];
  test.each(damages)('with %s is refused with the reason, and the current one stays', async (_, damage, reason) => {
    await registry.add('good', student);
    await registry.promote('good');
    copyVersion('good', 'bad', Date.now());
    damage(version('bad'));
    for (const call of [() => registry.load('bad'), () => registry.promote('bad')]) {
      await expect(call()).rejects.toMatchObject({
        code: expect.stringMatching(/^ERR_(CHECKPOINT_MISMATCH|FILE_FORMAT|FILE_NOT_FOUND)$/),
        message: expect.stringContaining(reason),
      });
    }
    expect(await registry.current()).toBe('good');
    (await registry.load('good')).dispose();
    expect(await names()).toEqual(['bad', 'good']);
  });

  test('is not gone back to', async () => {
    await registry.add('v1', student);
    await registry.add('v2', student);
    await registry.promote('v1');
    await registry.promote('v2');
    flipBit(version('v1', 'model.safetensors'));
    await expect(registry.rollback()).rejects.toMatchObject({ code: 'ERR_CHECKPOINT_MISMATCH' });
    expect(await registry.current()).toBe('v2');
  });

  test('is not added: what does not load leaves nothing behind', async () => {
    cpSync(fixture, join(directory, 'source'), { recursive: true });
    writeFileSync(join(directory, 'source', 'items.json'), '[]');
    await expect(registry.add('v1', join(directory, 'source'))).rejects.toMatchObject({ code: 'ERR_FILE_FORMAT' });
    expect(readdirSync(join(directory, 'versions'))).toEqual([]);
  });

  test('shows why it cannot be read in the list, after those that can', async () => {
    await registry.add('v1', student);
    mkdirSync(version('empty'));
    writeFileSync(version('file'), '');
    const listed = await registry.list();
    expect(listed.map(({ name, problem }) => [name, problem === undefined])).toEqual([
      ['v1', true],
      ['empty', false],
      ['file', false],
    ]);
  });

  test('a damaged promotion is named, with what to do', async () => {
    await registry.add('v1', student);
    await registry.promote('v1');
    const [file = ''] = readdirSync(join(directory, 'promotions'));
    writeFileSync(join(directory, 'promotions', file), '{}');
    await expect(registry.current()).rejects.toMatchObject({
      code: 'ERR_FILE_FORMAT',
      message: expect.stringMatching(`${file}.*delete it`),
    });
  });
});

describe('retention', () => {
  test('keeps what was added last, also by a clock that is behind', async () => {
    registry = await engine.openModelRegistry(directory, { keep: 1 });
    await registry.add('v1', student);
    await registry.promote('v1');
    vi.spyOn(Date, 'now').mockReturnValue(1_000);
    await registry.add('v2', student);
    expect((await registry.list()).map(({ name }) => name)).toEqual(['v2', 'v1']);
    await registry.promote('v2');
    expect(await registry.current()).toBe('v2');
  });

  test('keeps the newest, the current one and the one before it', async () => {
    registry = await engine.openModelRegistry(directory, { keep: 2 });
    await registry.add('v0', student);
    await registry.promote('v0');
    for (let i = 1; i < 8; i++) copyVersion('v0', `v${i}`, Date.now() + i);
    await registry.promote('v1');
    expect(await names()).toEqual(['v0', 'v1', 'v6', 'v7']);
    await registry.promote('v6');
    expect(await names()).toEqual(['v1', 'v6', 'v7']);
    expect(await registry.rollback()).toBe('v1');
    await expect(registry.rollback()).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' }); // v0 is gone
  });

  test('removes nothing while nothing was promoted', async () => {
    registry = await engine.openModelRegistry(directory, { keep: 1 });
    await registry.add('v0', student);
    for (let i = 1; i < 4; i++) copyVersion('v0', `v${i}`, Date.now() + i);
    await registry.add('v4', student);
    expect(await names()).toEqual(['v0', 'v1', 'v2', 'v3', 'v4']);
  });

  test('a version promoted by another process while it is removed stays', async () => {
    registry = await engine.openModelRegistry(directory, { keep: 1 });
    await registry.add('old', student);
    copyVersion('old', 'new', Date.now() + 1);
    copyVersion('old', 'newer', Date.now() + 2);
    const other = await engine.openModelRegistry(directory, { keep: 10 });
    await other.promote('new');
    await other.promote('newer');
    const log = new PromotionLog(join(directory, 'promotions'));
    const rename = fs.rename;
    vi.spyOn(fs, 'rename').mockImplementation(async (from, to) => {
      await rename(from, to);
      // Right when this one has put `old` aside.
      if (from === version('old')) await log.append(await log.head(), 'old', ['new', 'newer']);
    });
    await registry.promote('new');
    expect(await registry.current()).toBe('old');
    (await registry.load('old')).dispose();
  });

  test('a promotion of a version that was just removed is taken back', async () => {
    await registry.add('v1', student);
    copyVersion('v1', 'v2', Date.now());
    await registry.promote('v1');
    const link = fs.link;
    vi.spyOn(fs, 'link').mockImplementationOnce(async (from, to) => {
      rmSync(version('v2'), { recursive: true });
      await link(from, to);
    });
    await expect(registry.promote('v2')).rejects.toMatchObject({ code: 'ERR_FILE_NOT_FOUND' });
    expect(await registry.current()).toBe('v1');
  });

  test('sweeps what killed processes left behind, an hour later', async () => {
    const left = (folder: string, name: string, ageHours: number) => {
      const path = join(directory, folder, name);
      mkdirSync(path);
      const time = Date.now() / 1000 - 3600 * ageHours;
      utimesSync(path, time, time);
      return path;
    };
    const old = left('versions', '.v1.123.0123456789ab.tmp', 2);
    const fresh = left('versions', '.v2.123.0123456789ab.tmp', 0);
    const record = left('promotions', '.00000001.json.123.0123456789ab.tmp', 2);
    registry = await engine.openModelRegistry(directory);
    expect([old, fresh, record].map((path) => existsSync(path))).toEqual([false, true, false]);
    expect(await registry.list()).toEqual([]);
  });
});

describe('a process that dies at any step', () => {
  const methods = ['open', 'rename', 'link', 'mkdir', 'rm', 'readdir', 'stat'] as const;
  /** From the n-th file operation on, every one fails, as if the process were gone; returns how to look whether it was. */
  function dieAt(n: number): () => boolean {
    let left = n;
    for (const method of methods) {
      const original = fs[method] as (...args: unknown[]) => Promise<unknown>;
      vi.spyOn(fs, method).mockImplementation((async (...args: unknown[]) => {
        if (--left < 0) throw Object.assign(new Error('dead'), { code: 'EIO', syscall: method });
        return original(...args);
      }) as never);
    }
    return () => left < 0;
  }

  test.each<[string, () => Promise<unknown>, string[]]>([
    ['adding', () => registry.add('v3', student), ['v2']],
    ['promoting', () => registry.promote('v1'), ['v1', 'v2']],
    ['going back', () => registry.rollback(), ['v1', 'v2']],
  ])('while %s leaves a registry that serves', async (name, work, allowed) => {
    await registry.add('v1', student);
    copyVersion('v1', 'v2', Date.now());
    await registry.promote('v1');
    await registry.promote('v2');
    const snapshot = `${directory}-snapshot`;
    cpSync(directory, snapshot, { recursive: true });
    let steps = 0;
    for (let died = true; died; steps++) {
      rmSync(directory, { recursive: true });
      cpSync(snapshot, directory, { recursive: true });
      const isDead = dieAt(steps);
      await work().catch(() => undefined);
      died = isDead();
      vi.restoreAllMocks();
      registry = await engine.openModelRegistry(directory);
      const current = (await registry.current()) ?? 'none';
      expect(allowed, `dead at step ${steps}`).toContain(current);
      (await registry.load(current)).dispose();
      expect((await registry.list()).every(({ problem }) => problem === undefined)).toBe(true);
    }
    expect(steps).toBeGreaterThan(name === 'adding' ? 30 : 5);
    // The last time it lived.
    if (name === 'adding') expect(await names()).toEqual(['v1', 'v2', 'v3']);
    else expect(await registry.current()).toBe(allowed[0]);
  });
});

function flipBit(path: string): void {
  const bytes = readFileSync(path);
  const last = bytes.length - 1;
  bytes[last] = (bytes[last] ?? 0) ^ 1;
  writeFileSync(path, bytes);
}
