import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { writeSafetensors } from '../../../src/formats/safetensors.js';
import {
  type ImportRankingsOptions,
  importRankings,
  loadRankings,
  saveRankings,
} from '../../../src/knowledge/rankings.js';
import type { Dataset } from '../../../src/prepare/dataset.js';
import { prepareDataset } from '../../../src/prepare/prepare.js';

let folder: string;
let dataset: Dataset;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'limbeck-rankings-'));
  // Leave-one-out: the last two items of a user are not part of the training history.
  dataset = await prepare('u1 a b c d e\nu2 c d a b f\nu3 a b c\nu4 b\n');
});
afterAll(() => {
  rmSync(folder, { recursive: true });
});

async function prepare(sequences: string): Promise<Dataset> {
  const path = join(folder, 'sequences.txt');
  writeFileSync(path, sequences);
  return prepareDataset({
    interactions: { path, format: 'sequences', columns: { user: 'user', item: 'item' } },
    denoise: { minUserInteractions: 1, minItemInteractions: 1 },
  });
}

function run(name: string, content: string, options: Partial<ImportRankingsOptions> = {}) {
  const path = join(folder, name);
  writeFileSync(path, content);
  return importRankings(dataset, { path, ...options });
}

/** Rankings in the ids of the data. */
async function read(name: string, content: string, options: Partial<ImportRankingsOptions> = {}) {
  const { rankings, report } = await run(name, content, options);
  const ids = (values: Int32Array) => Array.from(values, (item) => dataset.items[item]?.id ?? '').join(' ');
  const lists = (values: Int32Array, offsets: Int32Array) =>
    Array.from(offsets.subarray(1), (end, i) => ids(values.subarray(offsets[i], end)));
  return {
    histories: lists(rankings.histories, rankings.historyOffsets),
    items: lists(rankings.items, rankings.itemOffsets),
    scores: rankings.scores && Array.from(rankings.scores),
    report,
  };
}

describe('import', () => {
  test('reads TSV by user, after the training history', async () => {
    const { histories, items, scores, report } = await read('a.tsv', 'user\titems\nu1\td e f\nu2\tb f e\n');
    expect(histories).toEqual(['a b c', 'c d a']);
    expect(items).toEqual(['d e f', 'b f e']);
    expect(scores).toBeUndefined();
    expect(report).toMatchObject({ rowsRead: 2, rankings: 2, brokenRows: 0, meanLength: 3 });
  });

  test.each([
    ['b.tsv', 'history\titems\tscores\na b\tf e\t2 -1.5\n', {}],
    ['b.csv', 'history,items,scores\na|b,f|e,2|-1.5\n', { listSeparator: '|' }],
    ['b.jsonl', '{"history":["a","b"],"items":["f","e"],"scores":[2,-1.5]}\n', {}],
    ['b.ndjson', '{"h":["a","b"],"r":["f","e"],"s":[2,-1.5]}', { columns: { history: 'h', items: 'r', scores: 's' } }],
  ])('reads histories, ranked items and scores of %s', async (name, content, options) => {
    const { histories, items, scores } = await read(name, content, options);
    expect({ histories, items, scores }).toEqual({ histories: ['a b'], items: ['f e'], scores: [2, -1.5] });
  });

  test('leaves out, and counts, what the data does not have and what the history has', async () => {
    const rows = ['u1\td x e a', 'u9\td e', 'u4\ta c', 'u2\tx b', 'u1\tf d'];
    const { items, report } = await read('c.tsv', `user\titems\n${rows.join('\n')}\n`);
    expect(items).toEqual(['d e', 'a c', 'f d']);
    expect(report).toMatchObject({
      rowsRead: 5,
      rankings: 3,
      unknownUsers: 1,
      tooShort: 1,
      unknownItems: 2,
      seenItems: 1,
    });
    const { brokenRows, unknownUsers, unknownHistories, tooShort, rankings } = report;
    expect(brokenRows + unknownUsers + unknownHistories + tooShort + rankings).toBe(report.rowsRead);
  });

  test('leaves out histories without a known item', async () => {
    const { histories, report } = await read('d.tsv', 'history\titems\nx y\ta b\nx a\tb c\n');
    expect(histories).toEqual(['a']);
    expect(report.unknownHistories).toBe(1);
  });

  test('takes other names of items, and rows of one experiment', async () => {
    const content = 'llm\tuser\titems\nbig\tu1\t100 200\nsmall\tu1\t200 100\n';
    const options = { itemIds: { 100: 'd', 200: 'e' }, where: { column: 'llm', equals: 'small' } };
    expect(await read('e.tsv', content, options)).toMatchObject({ items: ['e d'], report: { rowsRead: 1 } });
  });
});

describe('broken rows', () => {
  test.each<[string, string, RegExp]>([
    ['f.tsv', 'user\titems\nu1\td e\nu1\n', /1 of 2 rows cannot be used: line 3: it has 1 columns, the header 2/],
    ['g.tsv', 'user\titems\nu1\t \n', /line 2: it ranks no items/],
    ['h.tsv', 'user\titems\n\td e\n', /line 2: it names neither a user nor a history/],
    ['i.tsv', 'user\titems\nu1\td e d\n', /line 2: it ranks "d" twice/],
    ['j.tsv', 'user\titems\tscores\nu1\td e\t1\n', /line 2: it ranks 2 items and has 1 scores/],
    ['k.tsv', 'user\titems\tscores\nu1\td e\t1 x\n', /line 2: a score is not a finite number/],
    ['l.tsv', 'user\titems\tscores\nu1\td e\t1 2\n', /line 2: the score of place 2 is higher/],
    ['m.tsv', 'user\titems\tscores\nu1\td e\t2 1\nu2\tb f\t\n', /line 3: it has no scores, and rows before it have/],
    ['n.jsonl', '{"user":"u1","items":["d","e"]}\n{oops\n', /line 2: not JSON: "{oops"/],
    ['o.jsonl', '[1]\n', /line 1: not a JSON object/],
    ['p.jsonl', '{"user":"u1","items":"d e"}\n', /line 1: items: .*array/],
    ['q.jsonl', '{"user":"u1","items":["d",null]}\n', /line 1: items\.1: /],
  ])('%s is refused with line and reason', async (name, content, message) => {
    await expect(run(name, content)).rejects.toMatchObject({
      code: 'ERR_FILE_FORMAT',
      message: expect.stringMatching(message),
    });
  });

  test('are left out and counted when asked', async () => {
    const { report, items } = await read('r.tsv', 'user\titems\nu1\td d\nu2\tb f\n', { skipBroken: true });
    expect(items).toEqual(['b f']);
    expect(report).toMatchObject({ rowsRead: 2, brokenRows: 1, rankings: 1 });
  });

  test('are those, too, that name an item twice by two of its names', async () => {
    const content = 'user\titems\nu1\td|e|The d\nu2\tb|x|e\n';
    const options = { listSeparator: '|', itemIds: { 'The d': 'd', x: 'f' } };
    await expect(run('y.tsv', content, options)).rejects.toMatchObject({
      code: 'ERR_FILE_FORMAT',
      message: expect.stringMatching(/1 of 2 rows .* line 2: it ranks "d" twice, the second time as "The d"/),
    });
    const { items, report } = await read('y.tsv', content, { ...options, skipBroken: true });
    expect(items).toEqual(['b f e']);
    expect(report).toMatchObject({ rowsRead: 2, brokenRows: 1, rankings: 1 });
  });

  test('says what is missing', async () => {
    await expect(run('s.tsv', 'user\tranked\nu1\td e\n')).rejects.toMatchObject({ code: 'ERR_COLUMN_NOT_FOUND' });
    await expect(run('t.tsv', 'who\titems\nu1\td e\n')).rejects.toMatchObject({ code: 'ERR_COLUMN_NOT_FOUND' });
    await expect(run('u.txt', 'user\titems\nu1\td e\n')).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
    await expect(run('v.tsv', 'user\titems\nu8\td e\n')).rejects.toMatchObject({
      code: 'ERR_EMPTY_DATA',
      message: expect.stringContaining('unknownUsers 1'),
    });
  });
});

describe('files', () => {
  test('keep rankings, and belong to one catalogue', async () => {
    const { rankings } = await run('w.tsv', 'user\titems\tscores\nu1\td e f\t3 2 1\n');
    const path = join(folder, 'rankings.safetensors');
    await saveRankings(path, rankings);
    expect(await loadRankings(path, dataset)).toEqual(rankings);
    const other = await prepare('u1 a b c d f\nu2 c d a b e\n');
    await expect(loadRankings(path, other)).rejects.toMatchObject({ code: 'ERR_CHECKPOINT_MISMATCH' });
  });

  test('of another kind, or with arrays that do not belong together, are refused', async () => {
    const path = join(folder, 'other.safetensors');
    await writeSafetensors(path, [['items', { shape: [1], data: Int32Array.of(1) }]]);
    await expect(loadRankings(path, dataset)).rejects.toMatchObject({ code: 'ERR_FILE_FORMAT' });
    const { rankings } = await run('x.tsv', 'user\titems\nu1\td e f\n');
    for (const wrong of [
      { items: Int32Array.of(3, 4, 99) },
      { items: Int32Array.of(3, 4, 3) },
      { itemOffsets: Int32Array.of(0, 2) },
      { historyOffsets: Int32Array.of(0, 1, 3) },
      { scores: Float32Array.of(1, 2) },
    ]) {
      await saveRankings(path, { ...rankings, ...wrong });
      await expect(loadRankings(path, dataset)).rejects.toMatchObject({ code: 'ERR_FILE_FORMAT' });
    }
  });
});

test('rankings of gpt-3.5-turbo and gpt-4o are read, but for the one that ranks nothing', async () => {
  const path = join(import.meta.dirname, '../../fixtures/teacher-rankings/rankings.tsv');
  const rows = readFileSync(path, 'utf8').trim().split('\n').slice(1);
  const users = [...new Set(rows.map((row) => row.split('\t')[2]))];
  const movies = [...new Set(rows.flatMap((row) => row.split('\t')[4]?.split(' ') ?? []))].filter((id) => id !== '');
  // A world in which every user chose what nobody ranks, and somebody each film.
  const lines = [...users.map((user) => `${user} other-1 other-2 other-3`), `somebody ${movies.join(' ')}`];
  const data = await prepare(lines.join('\n'));
  const options = { path, columns: { history: 'none', user: 'userId', items: 'ranked_movieIds' } };
  await expect(importRankings(data, options)).rejects.toMatchObject({
    code: 'ERR_FILE_FORMAT',
    message: expect.stringMatching(/1 of 40 rows cannot be used: line \d+: it ranks no items/),
  });
  const { report } = await importRankings(data, { ...options, skipBroken: true });
  expect(report).toMatchObject({
    rowsRead: 40,
    brokenRows: 1,
    rankings: 39,
    unknownUsers: 0,
    unknownItems: 0,
    seenItems: 0,
  });
  expect(report.meanLength).toBeGreaterThan(19);
});
