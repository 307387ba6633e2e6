/**
 * Builds everything for the published package: JavaScript without its comments, which the declarations keep, no declarations
 * but those that the entry points lead to, and the stripped addon in its place.
 */
import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join, resolve } from 'node:path';
import ts from 'typescript';
import { setup } from './setup.mjs';

const root = resolve(import.meta.dirname, '..');
setup(root);

const tsc = join(root, 'node_modules/typescript/bin/tsc');
const withoutComments = ['-p', 'tsconfig.json', '--removeComments', '--declaration', 'false'];
const compiled = spawnSync(process.execPath, [tsc, ...withoutComments], { cwd: root, stdio: ['ignore', 2, 2] });
if (compiled.status !== 0) throw new Error(`tsc ended with ${compiled.status ?? compiled.signal}`);

/** @type {{ exports: Record<string, { types?: string }> }} */
const { exports } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
const entries = Object.values(exports).flatMap(({ types }) => (types === undefined ? [] : [join(root, types)]));
const { NodeNext: module } = ts.ModuleKind;
const { NodeNext: moduleResolution } = ts.ModuleResolutionKind;
const program = ts.createProgram(entries, { module, moduleResolution });
const reached = new Set(program.getSourceFiles().map(({ fileName }) => resolve(fileName)));
for (const name of readdirSync(join(root, 'dist'), { recursive: true, encoding: 'utf8' })) {
  const file = join(root, 'dist', name);
  if (name.endsWith('.d.ts') && !reached.has(file)) rmSync(file);
}

const folder = join(root, 'prebuilds', `${process.platform}-${process.arch}`);
const addon = join(folder, 'limbeck.node');
mkdirSync(folder, { recursive: true });
copyFileSync(join(root, 'build/Release/limbeck.node'), addon);

const { error, status, stderr } = spawnSync('strip', [
  process.platform === 'darwin' ? '-x' : '--strip-unneeded',
  addon,
]);
const isMissing = error !== undefined && 'code' in error && error.code === 'ENOENT'; // then the addon is larger, and as good
if (!isMissing && status !== 0) throw new Error(`strip failed: ${error?.message ?? stderr}`);
