/** Results that can be compared later: each says of which commit, machine and versions it is. */
import { spawnSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { cpus, totalmem } from 'node:os';
import { join, resolve } from 'node:path';
import { loadBinding } from '../dist/binding.js';

const root = resolve(import.meta.dirname, '..');

/** What a result is of. The commit is unknown without git. */
export function aboutThisRun() {
  const { stdout } = spawnSync('git', ['describe', '--always', '--dirty'], { cwd: root, encoding: 'utf8' });
  return {
    commit: stdout?.trim() || null,
    date: new Date().toISOString(),
    node: process.version,
    cpu: { model: cpus()[0]?.model.trim(), memoryBytes: totalmem(), ...loadBinding().cpuInfo() },
  };
}

/**
 * Writes `bench/results/<name>.json` and says so.
 *
 * @param {string} name
 * @param {object} result seeds and figures
 */
export function writeResult(name, result) {
  const folder = join(root, 'bench/results');
  mkdirSync(folder, { recursive: true });
  const file = join(folder, `${name}.json`);
  writeFileSync(file, `${JSON.stringify({ ...aboutThisRun(), ...result }, null, 2)}\n`);
  console.error(`Wrote ${file}`);
}
