/**
 * Builds everything for the published package: JavaScript without its comments, which the declarations keep, and the
 * stripped addon in its place.
 */
import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { setup } from './setup.mjs';

const root = resolve(import.meta.dirname, '..');
setup(root);

const tsc = join(root, 'node_modules/typescript/bin/tsc');
const withoutComments = ['-p', 'tsconfig.json', '--removeComments', '--declaration', 'false'];
const compiled = spawnSync(process.execPath, [tsc, ...withoutComments], { cwd: root, stdio: ['ignore', 2, 2] });
if (compiled.status !== 0) throw new Error(`tsc ended with ${compiled.status ?? compiled.signal}`);

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
