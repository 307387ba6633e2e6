import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { readConfig } from '../../../src/cli/config.js';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'limbeck-config-'));
});
afterEach(() => {
  rmSync(folder, { recursive: true });
});

function write(name: string, text: string | Uint8Array): string {
  const path = join(folder, name);
  writeFileSync(path, text);
  return path;
}

describe('config file', () => {
  const yaml =
    'output: out\nseeds: [1]\ndata:\n  interactions: { path: a.csv }\n  items: { path: /b.csv }\nteacher: { directory: t }\n';

  test('resolves data and teacher against its own folder, and leaves the output alone', async () => {
    expect(await readConfig(write('c.yaml', yaml))).toEqual({
      output: 'out',
      seeds: [1],
      data: { interactions: { path: join(folder, 'a.csv') }, items: { path: '/b.csv' } },
      teacher: { directory: join(folder, 't') },
    });
  });

  test('reads JSON as well', async () => {
    expect(await readConfig(write('c.json', '{"output": "x", "seeds": [2]}'))).toEqual({ output: 'x', seeds: [2] });
  });

  test.each([
    ['broken YAML', 'c.yaml', 'a: [1,\nb: 2'],
    ['a repeated key', 'c.yaml', 'a: 1\na: 2\n'],
    ['a list', 'c.yaml', '- 1\n'],
    ['truncated JSON', 'c.json', '{"a": '],
    ['text that is not UTF-8', 'c.yaml', Uint8Array.of(0x61, 0x3a, 0x20, 0xff, 0xfe)],
  ])('refuses %s and names the file', async (_, name, text) => {
    await expect(readConfig(write(name, text))).rejects.toMatchObject({
      code: 'ERR_FILE_FORMAT',
      message: expect.stringContaining(name),
    });
  });

  test('refuses a file that is not there', async () => {
    await expect(readConfig(join(folder, 'none.yaml'))).rejects.toMatchObject({ code: 'ERR_FILE_NOT_FOUND' });
  });
});
