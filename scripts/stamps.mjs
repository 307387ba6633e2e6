/** Content hashes and stamp files: what setup.mjs uses to do each step only when its inputs changed. */
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';

/**
 * @param {string} folder
 * @param {(name: string) => boolean} [accepts] Decides by the file's name.
 * @returns {string[]} Files under `folder`, however deep, sorted; none when it does not exist.
 */
export function listFiles(folder, accepts = () => true) {
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && accepts(entry.name))
    .map((entry) => join(entry.parentPath, entry.name))
    .sort();
}

/**
 * @param {string} root Names are hashed relative to it, so a moved checkout keeps its hash.
 * @param {string[]} files A missing one counts as such.
 * @returns {string} SHA-256 of all names and contents.
 */
export function hashFiles(root, files) {
  const hash = createHash('sha256');
  for (const file of files) {
    const content = existsSync(file) ? readFileSync(file) : undefined;
    hash.update(`${relative(root, file)}\0${content?.length ?? 'missing'}\0`);
    if (content !== undefined) hash.update(content);
  }
  return hash.digest('hex');
}

/**
 * @param {string} stampFile
 * @returns {string | undefined} The key under which the step last succeeded.
 */
export function readStamp(stampFile) {
  return existsSync(stampFile) ? readFileSync(stampFile, 'utf8') : undefined;
}

/**
 * Runs `action` unless it succeeded before under the same key and its output is still there.
 *
 * @param {{ stampFile: string, key: string, output: string, action: (previousKey: string | undefined) => void }} step
 * @returns {boolean} Whether the action ran.
 */
export function runOnChange({ stampFile, key, output, action }) {
  const previousKey = readStamp(stampFile);
  if (previousKey === key && existsSync(output)) return false;
  rmSync(stampFile, { force: true }); // an action that fails half-way must run again
  action(previousKey);
  mkdirSync(dirname(stampFile), { recursive: true });
  writeFileSync(stampFile, key);
  return true;
}
