import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll } from 'vitest';

const directory = mkdtempSync(join(tmpdir(), 'limbeck-test-'));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

/** Path of a file in a directory that the end of the tests removes. */
export function temporaryPath(name: string): string {
  return join(directory, name);
}

export function writeTemporary(name: string, content: string | Uint8Array): string {
  const path = temporaryPath(name);
  writeFileSync(path, content);
  return path;
}
