/** Builds everything and puts the stripped addon where the published package carries it. */
import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { setup } from './setup.mjs';

const root = resolve(import.meta.dirname, '..');
setup(root);

const folder = join(root, 'prebuilds', `${process.platform}-${process.arch}`);
const addon = join(folder, 'limbeck.node');
mkdirSync(folder, { recursive: true });
copyFileSync(join(root, 'build/Release/limbeck.node'), addon);

const { error, status, stderr } = spawnSync('strip', [
  process.platform === 'darwin' ? '-x' : '--strip-unneeded',
  addon,
]);
const isMissing = error?.code === 'ENOENT'; // then the addon is larger, and as good
if (!isMissing && status !== 0) throw new Error(`strip failed: ${error?.message ?? stderr}`);
