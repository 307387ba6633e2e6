/** Prints the C++ sources of the addon, one a line, for binding.gyp. */
import { readdirSync, realpathSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const FOLDERS = ['core', 'cpu', 'ops', 'model', 'train', 'retrieve', 'accelerator', 'napi'];

/**
 * @param {string} root The package's folder.
 * @returns {string[]} Every .cc of the addon, relative to `root`, with forward slashes, sorted.
 */
export function listNativeSources(root) {
  return FOLDERS.flatMap((folder) =>
    readdirSync(join(root, 'native', folder))
      .filter((name) => name.endsWith('.cc') && !name.endsWith('.test.cc'))
      .map((name) => `native/${folder}/${name}`),
  ).sort();
}

if (realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  console.log(listNativeSources(resolve(import.meta.dirname, '..')).join('\n'));
}
