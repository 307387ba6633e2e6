import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { tinyOptions } from '../support/tiny.js';

const product = join(import.meta.dirname, '../../dist/index.js');
let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'limbeck-kill-'));
});
afterAll(() => {
  rmSync(folder, { recursive: true });
});

/** Distils in a process of its own, which kills itself at the first event of a part of the work, if one is named. */
function distil(
  output: string,
  killAt?: { name: string; done: number },
): Promise<{ signal: NodeJS.Signals | null; parts: string[] }> {
  const options = tinyOptions(folder, output);
  const program = join(folder, 'distil.mjs');
  writeFileSync(
    program,
    `import { createEngine } from ${JSON.stringify(product)};
    const engine = await createEngine({ threads: 1 });
    const [options, killAt] = process.argv.slice(2).map((text) => JSON.parse(text));
    await engine.distill(options, {
      onProgress({ name, done }) {
        if (name === killAt?.name && done >= killAt.done) process.kill(process.pid, 'SIGKILL');
        process.send(name);
      },
    });
    engine.dispose();
    process.disconnect();`,
  );
  const args = [options, killAt ?? null].map((value) => JSON.stringify(value));
  const child = spawn(process.execPath, [program, ...args], {
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
  });
  const parts = new Set<string>();
  child.on('message', (name: string) => parts.add(name));
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (_, signal) => resolve({ signal, parts: [...parts] }));
  });
}

function models(output: string): Map<string, Buffer> {
  const names = readdirSync(output, { recursive: true, encoding: 'utf8' }).filter((name) =>
    name.endsWith('.safetensors'),
  );
  return new Map(names.sort().map((name) => [name, readFileSync(join(output, name))]));
}

test('a distillation killed in the teacher, in a student and in the language student ends with the bits of one that was not', async () => {
  const whole = join(folder, 'whole');
  const broken = join(folder, 'broken');
  expect((await distil(whole)).signal).toBeNull();

  expect((await distil(broken, { name: 'pretrain', done: 2 })).signal).toBe('SIGKILL');
  expect(existsSync(join(broken, 'student'))).toBe(false);
  expect((await distil(broken, { name: 'distilled student 1 of 1', done: 9 })).signal).toBe('SIGKILL');
  expect((await distil(broken, { name: 'language student', done: 3 })).signal).toBe('SIGKILL');
  const last = await distil(broken);
  expect(last.signal).toBeNull();
  expect(last.parts).not.toContain('pretrain'); // finished before the second kill, not done again

  const expected = models(whole);
  const found = models(broken);
  expect([...found.keys()]).toEqual([...expected.keys()]);
  for (const [name, bytes] of expected) expect(found.get(name)?.equals(bytes), name).toBe(true);
  const lossesOf = (output: string) => JSON.parse(readFileSync(join(output, 'report.json'), 'utf8')).lm.testLossByEpoch;
  expect(lossesOf(broken)).toEqual(lossesOf(whole));
  expect(lossesOf(whole)).toHaveLength(2);
});
