import fs from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { openEventStore } from '../../../src/index.js';

it('opens a log where there is a path, and makes its directories', async () => {
  const directory = await fs.mkdtemp(join(tmpdir(), 'limbeck-store-'));
  const store = await openEventStore({ path: join(directory, 'a/b/events') });
  expect(await store.append([{ userId: 'u', itemId: 'i', type: 'view' }])).toEqual({ accepted: 1, duplicates: 0 });
  expect(store.warnings).toEqual([]);
  await Promise.all([store.close(), store.close()]);
  await fs.rm(directory, { recursive: true });
});

it('opens Redis where there is an address', async () => {
  await expect(openEventStore({ redis: 'redis://127.0.0.1:1' })).rejects.toThrow(/Cannot connect to Redis/);
});

it.each([[undefined], ['path'], [{}], [[]]])('refuses %j', async (options) => {
  await expect(openEventStore(options as never)).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
});
