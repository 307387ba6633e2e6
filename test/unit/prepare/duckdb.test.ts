import { describe, expect, it } from 'vitest';
import { Database, loadDuckDB } from '../../../src/prepare/duckdb.js';

describe('the embedded database', () => {
  it('says what to install when it is missing', async () => {
    const missing = () => Promise.reject(new Error("Cannot find package '@duckdb/node-api'"));
    await expect(loadDuckDB(missing)).rejects.toMatchObject({
      code: 'ERR_MISSING_DEPENDENCY',
      message: expect.stringContaining('npm install @duckdb/node-api'),
      cause: { message: "Cannot find package '@duckdb/node-api'" },
    });
  });

  it('is interrupted by an abort, in a statement and before one', async () => {
    const controller = new AbortController();
    const database = await Database.open({ threads: 1, signal: controller.signal });
    const endless = database.number(
      'SELECT count(*) FROM range(1000000000) a, range(1000000) b WHERE (a.range * b.range) % 7 = 1',
    );
    setTimeout(() => controller.abort(), 50);
    await expect(endless).rejects.toMatchObject({ code: 'ERR_ABORTED' });
    await expect(database.number('SELECT 1')).rejects.toMatchObject({ code: 'ERR_ABORTED' });
    await database.close();
  });

  it('blames a failure on the file that was read, and on itself otherwise', async () => {
    const database = await Database.open({ threads: 1 });
    await expect(database.run('SELECT nonsense', [], 'x.csv')).rejects.toMatchObject({
      code: 'ERR_FILE_FORMAT',
      message: expect.stringContaining('x.csv cannot be read'),
    });
    await expect(database.run('SELECT nonsense')).rejects.toMatchObject({ code: 'ERR_INTERNAL' });
    await database.close();
  });

  it('fills a 32-bit array over many chunks', async () => {
    const database = await Database.open({ threads: 2 });
    const column = await database.int32Column('SELECT range::INTEGER FROM range(10000) ORDER BY range', 10_000);
    expect(column).toEqual(Int32Array.from({ length: 10_000 }, (_, index) => index));
    await database.close();
  });
});
