import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { afterAll, describe, expect, it } from 'vitest';
import { run } from '../../../src/cli/main.js';
import { ApiKeys } from '../../../src/server/api-keys.js';

const directory = mkdtempSync(join(tmpdir(), 'limbeck-cli-'));
afterAll(() => rmSync(directory, { recursive: true }));

async function createKey(file: string, ...argv: string[]) {
  const stdout = new PassThrough();
  const stderr = new PassThrough();
  expect(await run(['create-key', file, ...argv], { stdout, stderr })).toBe(0);
  return { stdout: String(stdout.read()), stderr: String(stderr.read()) };
}

describe('limbeck create-key', () => {
  it('prints the key and nothing else to stdout, so that a script can take it', async () => {
    const file = join(directory, 'keys.json');
    const { stdout, stderr } = await createKey(file);
    expect(stdout).toMatch(/^lmb_\S+\n$/);
    expect((await ApiKeys.open(file)).caller(`Bearer ${stdout.trim()}`)?.scopes).toEqual(['read', 'write']);
    expect(stderr).toBe(`This is shown once: '${file}' keeps its hash alone.\n`);
    expect(JSON.parse((await createKey(file, '--json')).stdout)).toEqual({
      id: expect.any(String),
      key: expect.stringMatching(/^lmb_/),
    });
  });
});
