import { createRequire } from 'node:module';
import { beforeAll, describe, expect, it } from 'vitest';
import type { LimbeckError } from '../../../src/errors.js';
import { type Dataset, seenItems, testCases, trainSequences, validationCases } from '../../../src/prepare/dataset.js';
import type { PrepareOptions } from '../../../src/prepare/options.js';
import { prepareDataset } from '../../../src/prepare/prepare.js';
import type { PrepareReport } from '../../../src/prepare/report.js';
import { startCpuTime } from '../../support/cpu-time.js';
import { temporaryPath, writeTemporary } from './temporary-files.js';

const columns = { user: 'user', item: 'item', rating: 'rating', time: 'time' };
const noCore = { minUserInteractions: 1, minItemInteractions: 1 };
const example = new URL('../../../examples/movietweetings/', import.meta.url).pathname;

let files = 0;
function csv(lines: readonly string[], name = `interactions-${++files}.csv`): string {
  return writeTemporary(name, `${lines.join('\n')}\n`);
}

/** Interactions of users with every item in order; time goes up. */
function sequences(histories: Record<string, readonly string[]>): string {
  const lines = Object.entries(histories).flatMap(([user, items]) => {
    return items.map((item, time) => `${user},${item},5,${time}`);
  });
  return csv(['user,item,rating,time', ...lines]);
}

function prepare(path: string, options: Omit<Partial<PrepareOptions>, 'interactions'> = {}): Promise<Dataset> {
  return prepareDataset({ interactions: { path, columns }, denoise: noCore, ...options });
}

/** Item ids of each user, by user id. */
function histories(dataset: Dataset): Record<string, string[]> {
  const entries = dataset.users.map((user, index) => {
    const history = dataset.sequences.subarray(dataset.sequenceOffsets[index], dataset.sequenceOffsets[index + 1]);
    return [user, Array.from(history, (item) => dataset.items[item]?.id ?? '?')];
  });
  return Object.fromEntries(entries);
}

function accountedRows(report: PrepareReport): number {
  const dropped = Object.values(report.dropped).reduce((sum, rows) => sum + rows, 0);
  return report.interactions.brokenRows + dropped + report.final.interactions;
}

async function writeParquet(path: string, select: string): Promise<void> {
  const { DuckDBInstance } = createRequire(import.meta.url)('@duckdb/node-api') as typeof import('@duckdb/node-api');
  const connection = await (await DuckDBInstance.create()).connect();
  await connection.run(`COPY (${select}) TO '${path}'`);
}

async function failure(promise: Promise<unknown>): Promise<LimbeckError> {
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toMatchObject({ name: 'LimbeckError' });
  return error as LimbeckError;
}

describe('the example data', () => {
  let dataset: Dataset;
  beforeAll(async () => {
    dataset = await prepareDataset({
      interactions: { path: `${example}interactions.csv.gz`, columns },
      items: { path: `${example}items.csv.gz`, columns: { id: 'id', text: ['title', 'year', 'genres'] } },
    });
  });

  it('has the published 5-core', () => {
    expect(dataset.report.interactions).toMatchObject({ rowsRead: 100_000, brokenRows: 0, rowsWithoutItem: 0 });
    expect(dataset.report.final).toMatchObject({ users: 4333, items: 2414, interactions: 68_055 });
    expect(dataset.report.final.density).toBeCloseTo(68_055 / (4333 * 2414), 12);
    expect(dataset.report.items).toMatchObject({
      rowsRead: 10_506,
      brokenRows: 0,
      duplicateIds: 0,
      itemsWithoutText: 0,
    });
    expect(accountedRows(dataset.report)).toBe(100_000);
  });

  it('has at least five interactions for every user and item', () => {
    const perItem = new Int32Array(dataset.items.length);
    for (const item of dataset.sequences) perItem[item] = (perItem[item] ?? 0) + 1;
    expect(Math.min(...perItem)).toBe(5);
    const lengths = dataset.users.map(
      (_, user) => (dataset.sequenceOffsets[user + 1] ?? 0) - (dataset.sequenceOffsets[user] ?? 0),
    );
    expect(Math.min(...lengths)).toBe(5);
  });

  it('joins the text columns', () => {
    expect(dataset.items.find(({ id }) => id === 'tt0111161')?.text).toBe(
      'The Shawshank Redemption. 1994. Crime, Drama',
    );
  });

  it('is the same on one and on four threads', async () => {
    const options = { interactions: { path: `${example}interactions.csv.gz`, columns } };
    const [one, four] = [
      await prepareDataset({ ...options, threads: 1 }),
      await prepareDataset({ ...options, threads: 4 }),
    ];
    expect(one).toEqual(four);
    expect(one.sequences).toEqual(dataset.sequences);
  });
});

describe('order', () => {
  it('sorts each user by time and keeps file order on ties', async () => {
    const path = csv(['user,item,rating,time', 'u,c,1,20', 'u,a,1,10', 'u,b,1,10', 'v,a,1,5', 'u,d,1,5']);
    const dataset = await prepare(path);
    expect(histories(dataset)).toEqual({ u: ['d', 'a', 'b', 'c'], v: ['a'] });
    expect(dataset.report.interactions.rowsBackwardsInTime).toBe(2);
    expect(dataset.report.final.singleInteractionUsers).toBe(1);
  });

  it('numbers users and items by first appearance in the file', async () => {
    const dataset = await prepare(csv(['user,item,rating,time', 'z,m,1,9', 'a,b,1,1', 'z,a,1,2']));
    expect(dataset.users).toEqual(['z', 'a']);
    expect(dataset.items.map(({ id }) => id)).toEqual(['m', 'b', 'a']);
  });

  it('takes file order for time order without a time column', async () => {
    const path = csv(['user,item,rating,time', 'u,c,1,20', 'u,a,1,10']);
    const dataset = await prepareDataset({
      interactions: { path, columns: { user: 'user', item: 'item' } },
      denoise: noCore,
    });
    expect(histories(dataset)).toEqual({ u: ['c', 'a'] });
  });

  it('reads ISO dates, with offsets, as moments', async () => {
    const path = csv([
      'user,item,rating,time',
      'u,b,1,2020-01-01T00:30:00Z',
      'u,a,1,2020-01-01T01:00:00+02:00',
      'u,c,1,2020-01-02',
    ]);
    expect(histories(await prepare(path))).toEqual({ u: ['a', 'b', 'c'] });
  });
});

describe('denoising', () => {
  const rows = ['user,item,rating,time', 'u,a,5,3', 'u,a,4,1', 'u,b,2,2', 'v,a,5,1', 'v,b,5,2', 'v,c,5,3', 'v,d,3,4'];

  it.each([
    ['first', ['a', 'b']],
    ['last', ['b', 'a']],
    ['all', ['a', 'b', 'a']],
  ] as const)('keeps the %s of repeated pairs in time order', async (duplicates, expected) => {
    const dataset = await prepare(csv(rows), { denoise: { ...noCore, duplicates } });
    expect(histories(dataset).u).toEqual(expected);
    expect(dataset.report.dropped.duplicates).toBe(duplicates === 'all' ? 0 : 1);
  });

  it('drops ratings below the threshold and keeps those on it', async () => {
    const dataset = await prepare(csv(rows), { denoise: { ...noCore, minRating: 4, duplicates: 'all' } });
    expect(histories(dataset)).toEqual({ u: ['a', 'a'], v: ['a', 'b', 'c'] });
    expect(dataset.report.dropped.belowMinRating).toBe(2);
  });

  it('drops users with too many interactions', async () => {
    const dataset = await prepare(csv(rows), { denoise: { ...noCore, maxUserInteractions: 3 } });
    expect(dataset.users).toEqual(['u']);
    expect(dataset.report).toMatchObject({ botUsers: 1, dropped: { botUsers: 4, duplicates: 1 } });
    expect(accountedRows(dataset.report)).toBe(7);
  });

  it('keeps accepted events only; a quote in an event is text', async () => {
    const path = csv(['user,item,event', 'u,a,view', "u,b,it's", 'u,c,', 'u,d,other']);
    const dataset = await prepareDataset({
      interactions: { path, columns: { user: 'user', item: 'item', event: 'event' } },
      denoise: { ...noCore, events: ['view', "it's"] },
    });
    expect(histories(dataset)).toEqual({ u: ['a', 'b'] });
    expect(dataset.report.dropped.otherEvents).toBe(2);
  });

  it('repeats the k-core until it is stable', async () => {
    // c is rare, so w becomes too short, so b becomes rare, and only u and v with a, d are left.
    const path = sequences({ u: ['a', 'd'], v: ['a', 'd'], w: ['b', 'c'], x: ['b', 'a', 'd'] });
    const dataset = await prepare(path, { denoise: { minUserInteractions: 2, minItemInteractions: 2 } });
    expect(histories(dataset)).toEqual({ u: ['a', 'd'], v: ['a', 'd'], x: ['a', 'd'] });
    expect(dataset.report).toMatchObject({
      kCore: { rounds: 2, usersDropped: 1, itemsDropped: 2 },
      dropped: { kCore: 3 },
    });
  });

  it('says where the rows went when none is left', async () => {
    const error = await failure(prepareDataset({ interactions: { path: csv(rows), columns } }));
    expect(error.code).toBe('ERR_EMPTY_DATA');
    expect(error.message).toMatch(/no interaction of the 7 .*duplicates 1, kCore 6/);
  });
});

describe('items', () => {
  const interactions = () => csv(['user,item,rating,time', 'u,a,1,1', 'u,b,1,2', 'u,c,1,3', 'u,d,1,4']);
  const items = () =>
    csv(['id,title,body', 'a,"<b>Tom &amp; Jerry</b>",fun', 'a,again,', ',nobody,', 'c,,', 'd,What?,"two\nlines"']);
  const source = () => ({ path: items(), columns: { id: 'id', text: ['title', 'body'] } });

  it('cleans and joins texts, and lets the id stand in for a missing one', async () => {
    const dataset = await prepare(interactions(), { items: source() });
    expect(dataset.items).toEqual([
      { id: 'a', text: 'Tom & Jerry. fun' },
      { id: 'b', text: 'b' },
      { id: 'c', text: 'c' },
      { id: 'd', text: 'What? two lines' },
    ]);
    expect(dataset.report.items).toMatchObject({ rowsRead: 5, brokenRows: 1, duplicateIds: 1, itemsWithoutText: 2 });
    expect(dataset.report.items?.brokenExamples).toEqual([{ line: 4, reason: 'the item id is empty' }]);
    expect(dataset.report.interactions.rowsWithoutItem).toBe(1);
    expect(dataset.report.dropped.withoutItem).toBe(0);
  });

  it('drops interactions without an item when asked', async () => {
    const dataset = await prepare(interactions(), { items: { ...source(), missing: 'drop' } });
    expect(histories(dataset)).toEqual({ u: ['a', 'c', 'd'] });
    expect(dataset.report.dropped.withoutItem).toBe(1);
  });

  it('reads categories from a column, which may be one of the texts, too', async () => {
    const path = sequences({ u: ['a', 'b', 'c', 'd'] });
    const items = csv(['id,title,genres', 'a,A," Drama , Sci-Fi,Drama"', 'b,B,', 'c,C,"Sci-Fi,,"'], 'genres.csv');
    const of = async (options: object) => {
      const text = ['title', 'genres'];
      const source = { path: items, columns: { id: 'id', text, categories: 'genres' }, ...options };
      return (await prepare(path, { items: source })).items;
    };
    expect(await of({})).toEqual([
      { id: 'a', text: 'A. Drama , Sci-Fi,Drama', categories: ['Drama', 'Sci-Fi'] },
      { id: 'b', text: 'B' },
      { id: 'c', text: 'C. Sci-Fi,,', categories: ['Sci-Fi'] },
      { id: 'd', text: 'd' },
    ]);
    expect((await of({ categorySeparator: '|' }))[2]?.categories).toEqual(['Sci-Fi,,']);
    const error = await failure(of({ columns: { id: 'id', text: ['title'], categories: 'genre' } }));
    expect(error.code).toBe('ERR_COLUMN_NOT_FOUND');
  });

  describe('with lists in the item file', () => {
    const source = { columns: { id: 'id', text: ['title', 'about'], categories: 'kinds' }, categorySeparator: '|' };
    const items = [
      { id: 'a', text: 'A. first. second', categories: ['Cat', 'x|y', 'All'] },
      { id: 'b', text: 'B. one', categories: ['Cat', 'All'] },
      { id: 'c', text: 'C' },
      { id: 'd', text: '4. 7', categories: ['1'] },
    ];
    const withPaths = [...items, { id: 'e', text: 'E. x. y. z', categories: ['Cat', 'x|y', 'All'] }];
    const history = { u: ['a', 'b', 'c', 'd'] };
    const longer = { u: ['a', 'b', 'c', 'd', 'e'] };

    it('joins those of texts in JSON, and takes each of categories whole', async () => {
      const lines = [
        '{"id":"a","title":"A","about":["first",null,"second"],"kinds":["Cat","x|y","All","Cat"]}',
        '{"id":"b","title":["B"],"about":"one","kinds":"Cat|All"}',
        '{"id":"e","title":"E","about":["x",["y","z"]],"kinds":[["Cat","x|y"],["Cat",null,"All"],[]]}',
        '{"id":"c","title":"C","about":[],"kinds":null}',
        '{"id":"d","title":4,"about":[7],"kinds":[1]}',
      ];
      const dataset = await prepare(sequences(longer), { items: { path: csv(lines, 'lists.jsonl'), ...source } });
      expect(dataset.items).toEqual(withPaths);
      expect(dataset.report.items).toMatchObject({ rowsRead: 5, brokenRows: 0, itemsWithoutText: 0 });
    });

    it('joins those of texts in Parquet, and takes each of categories whole', async () => {
      const path = temporaryPath('lists.parquet');
      await writeParquet(
        path,
        `SELECT * FROM (VALUES ('a', 'A', ['first', NULL, 'second'], ['Cat', 'x|y', 'All', 'Cat']),
          ('b', 'B', ['one'], ['Cat', 'All']), ('c', 'C', [], NULL), ('d', '4', ['7'], ['1'])) t(id, title, about, kinds)`,
      );
      const dataset = await prepare(sequences(history), { items: { path, ...source } });
      expect(dataset.items).toEqual(items);
    });

    it('lays lists in lists of Parquet end to end', async () => {
      const path = temporaryPath('paths.parquet');
      const paths = "[['Cat', 'x|y'], ['Cat', NULL, 'All'], [], NULL]";
      await writeParquet(path, `SELECT 'a' AS id, 'A' AS title, 'b' AS about, ${paths} AS kinds`);
      const dataset = await prepare(sequences(history), { items: { path, ...source } });
      expect(dataset.items[0]).toEqual({ id: 'a', text: 'A. b', categories: ['Cat', 'x|y', 'All'] });
    });

    it('counts a row of JSON as broken whose lists hold more than texts', async () => {
      const lines = [
        '{"id":"a","title":"A","about":"x","kinds":[["Cat",["All"]]]}',
        '{"id":"b","title":"B","about":{"text":"x"}}',
        'no JSON',
        '{"id":["c"],"title":"C","about":"x"}',
        '{"id":"d","title":"D","about":"x"}',
      ];
      const dataset = await prepare(sequences(history), { items: { path: csv(lines, 'nested.jsonl'), ...source } });
      expect(dataset.items.map(({ text }) => text)).toEqual(['a', 'b', 'c', 'D. x']);
      expect(dataset.report.items).toMatchObject({ rowsRead: 5, brokenRows: 4 });
      expect(dataset.report.items?.brokenExamples).toEqual([
        { line: 1, reason: expect.stringContaining('"kinds" is neither a text nor a list of texts: "{') },
        { line: 2, reason: expect.stringContaining('"about" is neither a text nor a list of texts: "{') },
        { line: 3, reason: 'not a JSON object: "no JSON"' },
        { line: 4, reason: 'the item id is empty' },
      ]);
    });

    it.each([
      ['id', "SELECT ['a'] AS id, 'A' AS title, 'x' AS about, 'k' AS kinds"],
      ['about', "SELECT 'a' AS id, 'A' AS title, {'text': 'x'} AS about, 'k' AS kinds"],
      ['kinds', "SELECT 'a' AS id, 'A' AS title, 'x' AS about, [[['k']]] AS kinds"],
    ])('refuses a column %s of Parquet that holds more', async (column, select) => {
      const path = temporaryPath(`nested-${column}.parquet`);
      await writeParquet(path, select);
      const error = await failure(prepare(sequences(history), { items: { path, ...source } }));
      expect(error.code).toBe('ERR_FILE_FORMAT');
      expect(error.message).toContain(`column "${column}"`);
    });
  });

  it('uses the id as text without an item file', async () => {
    const dataset = await prepare(interactions());
    expect(dataset.items[0]).toEqual({ id: 'a', text: 'a' });
    expect(dataset.report.items).toBeUndefined();
  });

  it('refuses an item file that knows none of the items', async () => {
    const path = csv(['id,title', '1,One']);
    const error = await failure(prepare(interactions(), { items: { path, columns: { id: 'id', text: ['title'] } } }));
    expect(error.code).toBe('ERR_INVALID_ARGUMENT');
    expect(error.message).toContain('"a"');
    expect(error.message).toContain('"1"');
  });
});

describe('splitting', () => {
  it('leaves out the last two of users with three or more', async () => {
    const dataset = await prepare(sequences({ u: ['a', 'b', 'c', 'd'], v: ['a', 'b'], w: ['c', 'b', 'a'] }));
    const id = (item: number) => dataset.items[item]?.id;
    const train = trainSequences(dataset);
    expect(Array.from(train.sequences, id)).toEqual(['a', 'b', 'a', 'b', 'c']);
    expect(train.sequenceOffsets).toEqual(Int32Array.of(0, 2, 4, 5));
    const validation = validationCases(dataset);
    expect(Array.from(validation.targets, id)).toEqual(['c', 'b']);
    expect(validation.users).toEqual(Int32Array.of(0, 2));
    const test = testCases(dataset);
    expect(Array.from(test.targets, id)).toEqual(['d', 'a']);
    expect(Array.from(test.sequences, id)).toEqual(['a', 'b', 'c', 'c', 'b']);
    expect(dataset.report.final).toMatchObject({ trainInteractions: 5, validationCases: 2, testCases: 2 });
  });

  it('cuts all users at the same moments', async () => {
    const lines = Array.from({ length: 20 }, (_, time) => `${time % 2 ? 'u' : 'v'},i${time},5,${time}`);
    const path = csv(['user,item,rating,time', ...lines, 'late,i1,5,19', 'early,i1,5,0']);
    const dataset = await prepare(path, {
      split: { strategy: 'globalTime', validationFraction: 0.2, testFraction: 0.2 },
    });
    const byUser = new Map(dataset.users.map((user, index) => [user, index]));
    const at = (values: Int32Array, user: string) => values[byUser.get(user) ?? -1];
    const { trainLength, validationPosition, testPosition } = dataset.split;
    // The cuts of the 22 times fall on 12 and 16.
    expect(['u', 'v', 'late', 'early'].map((user) => at(trainLength, user))).toEqual([6, 6, 0, 1]);
    expect(['u', 'v', 'late', 'early'].map((user) => at(validationPosition, user))).toEqual([6, 6, -1, -1]);
    expect(['u', 'v', 'late', 'early'].map((user) => at(testPosition, user))).toEqual([8, 8, -1, -1]);
    expect(trainSequences(dataset).users).toHaveLength(3);
  });

  it('refuses a time cut that leaves nothing to train on', async () => {
    const path = csv(['user,item,rating,time', 'u,a,1,7', 'u,b,1,7']);
    const error = await failure(prepare(path, { split: { strategy: 'globalTime' } }));
    expect(error.code).toBe('ERR_EMPTY_DATA');
  });

  it.each(['leaveOneOut', 'globalTime'] as const)(
    'never puts a target of %s into training, on random data',
    async (strategy) => {
      let state = 12345;
      const random = (below: number) => {
        state = (Math.imul(state, 1103515245) + 12345) >>> 0;
        return Math.floor((state / 2 ** 32) * below);
      };
      for (let round = 0; round < 5; round++) {
        const lines = Array.from({ length: 400 }, () => `u${random(40)},i${random(60)},5,${random(50)}`);
        const dataset = await prepare(csv(['user,item,rating,time', ...lines]), { split: { strategy } });
        const train = trainSequences(dataset);
        const trained = new Set<string>();
        train.users.forEach((user, index) => {
          const part = train.sequences.subarray(train.sequenceOffsets[index], train.sequenceOffsets[index + 1]);
          for (const item of part) trained.add(`${user} ${item}`);
        });
        for (const cases of [validationCases(dataset), testCases(dataset)]) {
          expect(cases.targets.length).toBeGreaterThan(0);
          cases.users.forEach((user, index) => {
            const target = cases.targets[index] ?? -1;
            expect(trained.has(`${user} ${target}`)).toBe(false);
            const history = cases.sequences.subarray(cases.sequenceOffsets[index], cases.sequenceOffsets[index + 1]);
            expect(history.length).toBeGreaterThan(0);
            expect(history.includes(target)).toBe(false);
          });
        }
        expect(accountedRows(dataset.report)).toBe(400);
      }
    },
  );
});

describe('seenItems', () => {
  it('gives the different items of a prefix, ascending', async () => {
    const dataset = await prepare(sequences({ u: ['a', 'b', 'a', 'c'] }), {
      denoise: { ...noCore, duplicates: 'all' },
    });
    expect(seenItems(dataset, 0, 3)).toEqual(Int32Array.of(0, 1));
    expect(seenItems(dataset, 0)).toEqual(Int32Array.of(0, 1, 2));
    expect(seenItems(dataset, 0, 0)).toEqual(new Int32Array());
    expect(() => seenItems(dataset, 1)).toThrow(/user index from 0 to 0, got 1/);
    expect(() => seenItems(dataset, 0, 5)).toThrow(/length from 0 to 4, got 5/);
  });
});

describe('broken rows', () => {
  it('counts each kind and shows five with line and reason', async () => {
    const path = csv([
      'user,item,rating,time',
      'u,a,5,1',
      'u,b,5',
      '',
      'u,c,5,1,extra',
      ',d,5,1',
      'u,,5,1',
      'u,e,five,1',
      'u,f,NaN,1',
      'u,g,5,soon',
      'u,h,inf,1',
      'u,"x"y,5,1',
      'u,i,,1',
      'u,j,5,2',
    ]);
    const dataset = await prepare(path);
    expect(histories(dataset)).toEqual({ u: ['a', 'j'] });
    expect(dataset.report.interactions).toMatchObject({ rowsRead: 12, brokenRows: 10, nanRatings: 1 });
    expect(dataset.report.interactions.brokenExamples).toHaveLength(5);
    expect(dataset.report.interactions.brokenExamples[0]).toMatchObject({
      line: 3,
      reason: expect.stringContaining('Columns'),
    });
    expect(accountedRows(dataset.report)).toBe(12);
  });

  it.each([
    ['too few columns', 'u,b', 'Expected Number of Columns: 4 Found: 2'],
    ['too many columns', 'u,b,5,1,9', 'Expected Number of Columns: 4 Found: 5'],
    ['text after a quote', 'u,"b"c,5,1', 'unterminated quote'],
    ['an empty user', ',b,5,1', 'the user id is empty'],
    ['a blank item', 'u,  ,5,1', 'the item id is empty'],
    ['a rating that is no number', 'u,b,five,1', 'the rating is not a finite number: "five"'],
    ['no rating', 'u,b,,1', 'the rating is not a finite number: ""'],
    ['an infinite rating', 'u,b,-Infinity,1', 'the rating is not a finite number: "-Infinity"'],
    ['a NaN rating', 'u,b,nan,1', 'the rating is NaN'],
    ['a time that is no number', 'u,b,5,soon', 'the time is neither a finite number nor an ISO 8601 date: "soon"'],
    ['a NaN time', 'u,b,5,nan', 'the time is neither a finite number nor an ISO 8601 date: "nan"'],
  ])('explains a row with %s and reads the rows around it', async (_, row, reason) => {
    const dataset = await prepare(csv(['user,item,rating,time', 'u,a,5,1', row, 'u,z,5,2']));
    expect(histories(dataset)).toEqual({ u: ['a', 'z'] });
    expect(dataset.report.interactions.brokenRows).toBe(1);
    expect(dataset.report.interactions.brokenExamples).toEqual([{ line: 3, reason: expect.stringContaining(reason) }]);
  });

  it('finds the line of a broken value below rejected rows and quoted line breaks', async () => {
    const path = csv(['user,item,rating,time', 'u,b', 'u,"two', 'lines",5,1', 'u,c', 'u,d,x,1']);
    const { brokenExamples, brokenRows, rowsRead } = (await prepare(path)).report.interactions;
    expect(brokenExamples.map(({ line }) => line)).toEqual([2, 5, 6]);
    expect({ brokenRows, rowsRead }).toEqual({ brokenRows: 3, rowsRead: 4 });
  });

  it('counts every line that an unterminated quote swallows', async () => {
    const path = csv(['user,item,rating,time', 'u,a,5,1', 'u,"b,5,1', 'u,c,5,1', 'u,d,5,1']);
    const { report } = await prepare(path);
    expect(report.interactions).toMatchObject({ rowsRead: 4, brokenRows: 3 });
  });

  it('counts the lines that an unterminated quote swallows beyond 2 MB', async () => {
    const lines = Array.from({ length: 200_000 }, (_, row) => `user${row},item${row},5,1`);
    const { report } = await prepare(csv(['user,item,rating,time', 'u,a,5,1', 'u,"b,5,1', ...lines]));
    expect(report.interactions).toMatchObject({ rowsRead: 200_002, brokenRows: 200_001 });
    expect(report.interactions.brokenExamples).toEqual([
      { line: 3, reason: '200001 lines belong to no row: a quote is never closed' },
    ]);
  });

  it('refuses a file in which all rows are broken, with examples', async () => {
    const error = await failure(prepare(csv(['user,item,rating,time', 'u,a', 'u,b,x,1'])));
    expect(error.code).toBe('ERR_EMPTY_DATA');
    expect(error.message).toMatch(
      /all 2 rows are broken \(line 2: .*; line 3: the rating is not a finite number: "x"\)/,
    );
  });
});

describe('abort', () => {
  it('refuses to start with an aborted signal', async () => {
    const path = sequences({ u: ['a', 'b', 'c'] });
    const options = { interactions: { path, columns }, denoise: noCore };
    const error = await failure(prepareDataset(options, { signal: AbortSignal.abort() }));
    expect(error.code).toBe('ERR_ABORTED');
  });

  it.each([1, 20, 60, 120])('stops within 100 ms of an abort after %i ms', async (delay) => {
    const controller = new AbortController();
    let sinceAbortMs = () => Number.POSITIVE_INFINITY;
    setTimeout(() => {
      sinceAbortMs = startCpuTime();
      controller.abort(new Error('enough'));
    }, delay);
    const options = { interactions: { path: `${example}interactions.csv.gz`, columns } };
    const error = await failure(prepareDataset(options, { signal: controller.signal }));
    expect(sinceAbortMs()).toBeLessThan(100);
    expect(error.code).toBe('ERR_ABORTED');
    expect(error.cause).toMatchObject({ message: 'enough' });
  });
});

describe('the files', () => {
  it('reads the example as Parquet as it does as CSV', async () => {
    const path = temporaryPath('example.parquet');
    await writeParquet(path, `SELECT * FROM read_csv('${example}interactions.csv.gz')`);
    const options = { interactions: { path, columns } };
    const { sequences: fromParquet, report } = await prepareDataset(options);
    const fromCsv = await prepareDataset({ interactions: { path: `${example}interactions.csv.gz`, columns } });
    expect(report.final).toEqual(fromCsv.report.final);
    expect(fromParquet).toEqual(fromCsv.sequences);
  });
});
