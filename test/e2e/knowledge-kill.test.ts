import { spawn } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { createEngine } from '../../src/engine.js';

const KILLS = 20;
const command = join(import.meta.dirname, '../../dist/cli/main.js');
let folder: string;
let texts: string;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'limbeck-knowledge-kill-'));
  texts = join(folder, 'texts.txt');
  const lines = Array.from(
    { length: 1500 },
    (_, i) => `film ${i}, a ${['red', 'green', 'blue'][i % 3]} story of ${i % 97}`,
  );
  writeFileSync(texts, `${lines.join('\n')}\n`);
  const engine = await createEngine({ threads: 1 });
  const architecture = { hiddenSize: 32, numHiddenLayers: 2, numAttentionHeads: 2, maxPositionEmbeddings: 32 };
  const options = { architecture, tokenizer: { vocabSize: 300 }, training: { epochs: 1 } };
  const { model } = await engine.pretrain({ train: lines.slice(0, 50), validation: lines.slice(50, 60) }, options);
  await model.save(join(folder, 'teacher'));
  engine.dispose();
});
afterAll(() => {
  rmSync(folder, { recursive: true });
});

/** @param killAfterMs from when it says that it works */
function extract(output: string, extra: readonly string[], killAfterMs?: number): Promise<NodeJS.Signals | null> {
  const what = ['--hidden-states', '0,2', '--pooling', 'none', '--logits', '8', '--shard-texts', '40'];
  const child = spawn(
    process.execPath,
    [command, 'knowledge', 'extract', join(folder, 'teacher'), texts, '--output', output, ...what, ...extra],
    { stdio: ['ignore', 'ignore', 'pipe'] },
  );
  let problem = '';
  child.stderr.on('data', (chunk) => {
    problem += chunk;
    // Progress is the first sign that work has begun.
    if (killAfterMs !== undefined) setTimeout(() => child.kill('SIGKILL'), killAfterMs);
  });
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('exit', (code, signal) => (code === 0 || signal ? resolve(signal) : reject(new Error(problem))));
  });
}

function files(directory: string): [string, string][] {
  return readdirSync(directory)
    .sort()
    .map((name) => [name, readFileSync(join(directory, name)).toString('latin1')]);
}

test(`an extraction killed at ${KILLS} random moments ends with the bytes of one that was not, as do two parts merged`, {
  timeout: 600_000,
}, async () => {
  const whole = join(folder, 'whole');
  await extract(whole, []);
  const expected = files(whole);
  expect(expected).toHaveLength(Math.ceil(1500 / 40) + 1);

  const broken = join(folder, 'broken');
  for (let kills = 0; kills < KILLS; ) {
    if ((await extract(broken, [], Math.random() * 500)) === 'SIGKILL') kills++;
    else rmSync(broken, { recursive: true }); // it was done before
  }
  await extract(broken, []);
  expect(files(broken)).toEqual(expected);

  const parts = join(folder, 'parts');
  await Promise.all([1, 2].map((index) => extract(parts, ['--shard', `${index}/2`])));
  const merge = spawn(process.execPath, [command, 'knowledge', 'merge', parts], { stdio: 'inherit' });
  expect(await new Promise((resolve) => merge.on('exit', resolve))).toBe(0);
  expect(files(parts)).toEqual(expected);
});
