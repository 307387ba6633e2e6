import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { createEngine, type Engine } from '../../src/index.js';
import { randomNumbers } from '../../src/teacher/batches.js';

const product = join(import.meta.dirname, '../../dist/index.js');
const fixture = join(import.meta.dirname, '../fixtures/student');
let folder: string;
let engine: Engine;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'limbeck-registry-'));
  engine = await createEngine({ threads: 1 });
});
afterAll(() => {
  engine.dispose();
  rmSync(folder, { recursive: true });
});

/** A process of its own that opens the registry and runs `body` with `registry`, `engine`, `student` and `tell`. */
function start(directory: string, keep: number, body: string): ChildProcess {
  const program = join(folder, `${Math.random()}.mjs`);
  writeFileSync(
    program,
    `import { createEngine } from ${JSON.stringify(product)};
    const engine = await createEngine({ threads: 1 });
    const student = await engine.loadStudent(${JSON.stringify(fixture)});
    const registry = await engine.openModelRegistry(${JSON.stringify(directory)}, { keep: ${keep} });
    const tell = (message) => process.send(message);
    ${body}
    engine.dispose();
    process.disconnect();`,
  );
  return spawn(process.execPath, [program], { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
}

/** Not 'exit', which may come before the last messages. */
const end = (child: ChildProcess) => new Promise<number | null>((resolve) => child.on('close', resolve));

test('killed at 20 random moments, a registry has what was promoted last, and serves it', async () => {
  const directory = join(folder, 'killed');
  const seed = Number(process.env['LIMBECK_TEST_SEED'] ?? 5);
  const random = randomNumbers(seed);
  // So that there is something to go back to, however early the first processes are killed.
  const first = await engine.openModelRegistry(directory);
  await first.add('v0', fixture);
  await first.promote('v0');
  let round = 1;
  for (let kill = 0; kill < 20; kill++) {
    // Acknowledged changes, and the one that was under way.
    let current: string | undefined = await (await engine.openModelRegistry(directory)).current();
    let next: string | undefined;
    const child = start(
      directory,
      3,
      `for (let i = ${round}; ; i++) {
        const name = 'v' + i;
        tell({ next: undefined });
        await registry.add(name, student, { i });
        tell({ next: name });
        await registry.promote(name);
        tell({ current: name });
        if (i % 3 === 2) {
          tell({ next: 'back' });
          tell({ current: await registry.rollback() });
        }
      }`,
    );
    const ready = new Promise((resolve) => child.once('message', resolve));
    child.on('message', (message: { next?: string; current?: string }) => {
      next = message.next;
      if (message.current !== undefined) current = message.current;
    });
    await ready;
    await new Promise((resolve) => setTimeout(resolve, 5 + 250 * random()));
    child.kill('SIGKILL');
    expect(await end(child)).toBeNull();

    const registry = await engine.openModelRegistry(directory);
    const found = await registry.current();
    // A rollback that was under way can only have gone to what the list still has.
    if (next !== 'back') expect([current, next], `seed ${seed}, kill ${kill}`).toContain(found);
    if (found !== undefined) (await registry.load(found)).dispose();
    const versions = await registry.list();
    expect(versions.filter(({ problem }) => problem !== undefined)).toEqual([]);
    expect(versions.length).toBeLessThan(8);
    round = 1 + Math.max(-1, ...versions.map(({ name }) => Number(name.slice(1))));
  }
  expect(round).toBeGreaterThan(3);
});

test('two processes that promote at once lose no promotion and break nothing', async () => {
  const directory = join(folder, 'shared');
  const registry = await engine.openModelRegistry(directory);
  const versions = ['a', 'b', 'c', 'd'];
  for (const name of versions) await registry.add(name, fixture);
  // Each waits until both are ready, and never promotes what is current already: every call makes one record.
  const body = (names: string[]) =>
    `await new Promise((resolve) => { process.once('message', resolve); tell('ready'); });
    for (let i = 0; i < 40; i++) await registry.promote(${JSON.stringify(names)}[i % 2]);`;
  const children = [start(directory, 9, body(['a', 'b'])), start(directory, 9, body(['c', 'd']))];
  await Promise.all(children.map((child) => new Promise((resolve) => child.once('message', resolve))));
  for (const child of children) child.send('go');
  expect(await Promise.all(children.map(end))).toEqual([0, 0]);

  const records = readdirSync(join(directory, 'promotions')).sort();
  expect(records).toEqual(Array.from({ length: 80 }, (_, i) => `${String(i + 1).padStart(8, '0')}.json`));
  const current = (await registry.current()) ?? '';
  expect(versions).toContain(current);
  (await registry.load(current)).dispose();
  const before = await registry.rollback();
  expect(before).not.toBe(current);
  expect(await registry.current()).toBe(before);
});
