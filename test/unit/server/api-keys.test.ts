import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ApiKeys, createApiKey } from '../../../src/server/api-keys.js';

let folder: string;
let file: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'limbeck-keys-'));
  file = join(folder, 'keys.json');
});
afterEach(() => rmSync(folder, { recursive: true }));

describe('API keys', () => {
  it('knows the keys of its file by their scopes', async () => {
    const reader = await createApiKey(file, ['read']);
    const both = await createApiKey(file, ['write', 'read', 'read']);
    const keys = await ApiKeys.open(file);
    expect(keys.size).toBe(2);
    expect(keys.caller(`Bearer ${reader.key}`)).toMatchObject({ id: reader.id, scopes: ['read'] });
    expect(keys.caller(`bearer ${both.key}`)).toMatchObject({ id: both.id, scopes: ['read', 'write'] });
  });

  it('loses none of keys that are made at the same time', async () => {
    const made = await Promise.allSettled(Array.from({ length: 8 }, () => createApiKey(file, ['read'])));
    const keys = await ApiKeys.open(file);
    let numMade = 0;
    for (const one of made) {
      if (one.status === 'rejected') {
        expect(one.reason).toMatchObject({ code: 'ERR_LOCKED' });
      } else {
        numMade++;
        expect(keys.caller(`Bearer ${one.value.key}`)?.id).toBe(one.value.id);
      }
    }
    expect(numMade).toBeGreaterThan(0);
    expect(keys.size).toBe(numMade);
  });

  it('needs the path of a file', async () => {
    await expect(createApiKey('', ['read'])).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
  });

  it('keeps hashes alone, where only the owner reads them', async () => {
    const { key } = await createApiKey(file, ['read']);
    const secret = key.slice(-43);
    expect(readFileSync(file, 'utf8')).not.toContain(secret);
    expect(statSync(file).mode & 0o777).toBe(0o600);
  });

  it('refuses what is no key of the file', async () => {
    const { key } = await createApiKey(file, ['read']);
    const keys = await ApiKeys.open(file);
    const other = `lmb_${'0'.repeat(16)}_${key.slice(-43)}`;
    const changed = key.slice(0, -1) + (key.endsWith('A') ? 'B' : 'A');
    for (const header of [
      undefined,
      '',
      key,
      `Basic ${key}`,
      `Bearer ${key}x`,
      `Bearer ${other}`,
      `Bearer ${changed}`,
    ]) {
      expect(keys.caller(header)).toBeUndefined();
    }
  });

  it.each([
    ['nothing', []],
    ['an unknown one', ['admin']],
  ])('makes no key with %s as scopes', async (_, scopes) => {
    await expect(createApiKey(file, scopes as never)).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
  });

  it('knows keys that come later, and forgets those that go', async () => {
    const first = await createApiKey(file, ['read']);
    const keys = await ApiKeys.open(file);
    expect(await keys.refresh()).toBe(false);
    const second = await createApiKey(file, ['write']);
    expect(keys.caller(`Bearer ${second.key}`)).toBeUndefined();
    expect(await keys.refresh()).toBe(true);
    expect(keys.caller(`Bearer ${second.key}`)).toMatchObject({ scopes: ['write'] });
    const kept = JSON.parse(readFileSync(file, 'utf8')).keys.filter(({ id }: { id: string }) => id !== first.id);
    writeFileSync(file, JSON.stringify({ keys: kept }));
    expect(await keys.refresh()).toBe(true);
    expect(keys.caller(`Bearer ${first.key}`)).toBeUndefined();
    expect(keys.caller(`Bearer ${second.key}`)).toBeDefined();
  });

  it('keeps its keys while the file cannot be read, and says so once', async () => {
    const { key } = await createApiKey(file, ['read']);
    const keys = await ApiKeys.open(file);
    const text = readFileSync(file, 'utf8');
    writeFileSync(file, text.slice(0, -9));
    await expect(keys.refresh()).rejects.toMatchObject({ code: 'ERR_FILE_FORMAT' });
    expect(await keys.refresh()).toBe(false);
    rmSync(file);
    await expect(keys.refresh()).rejects.toMatchObject({ code: 'ERR_FILE_NOT_FOUND' });
    expect(await keys.refresh()).toBe(false);
    expect(keys.caller(`Bearer ${key}`)).toBeDefined();
    writeFileSync(file, '{"keys":[]}');
    expect(await keys.refresh()).toBe(true);
    expect(keys.caller(`Bearer ${key}`)).toBeUndefined();
  });

  it('says how a file is made that is not there', async () => {
    const error = { code: 'ERR_FILE_NOT_FOUND', message: expect.stringContaining('limbeck create-key') };
    await expect(ApiKeys.open(`${file}.none`)).rejects.toMatchObject(error);
  });

  it('refuses a file that is none of keys, and leaves it', async () => {
    writeFileSync(file, '{"keys":[{"id":"x"}]}');
    await expect(ApiKeys.open(file)).rejects.toMatchObject({ code: 'ERR_FILE_FORMAT' });
    await expect(createApiKey(file, ['read'])).rejects.toMatchObject({ code: 'ERR_FILE_FORMAT' });
    expect(readFileSync(file, 'utf8')).toContain('"x"');
  });
});
