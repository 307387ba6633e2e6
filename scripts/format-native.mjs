/** Formats the C++ files in place; with --check, only reports those that are not formatted. */
import { spawnSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { join, resolve } from 'node:path';
import { listFiles } from './stamps.mjs';

const root = resolve(import.meta.dirname, '..');
const files = ['native', 'test/native', 'bench'].flatMap((folder) =>
  listFiles(join(root, folder), (name) => /\.(cc|h|cu|cuh)$/.test(name)),
);
const { getNativeBinary } = createRequire(import.meta.url)('clang-format');
const mode = process.argv.includes('--check') ? ['--dry-run', '-Werror'] : ['-i'];
const { status, error } = spawnSync(getNativeBinary(), ['--style=file', ...mode, ...files], {
  cwd: root,
  stdio: 'inherit',
});
if (error !== undefined) throw error;
process.exitCode = status ?? 1;
