import { mkdirSync } from 'node:fs';
import { gzipSync } from 'node:zlib';
import { describe, expect, it } from 'vitest';
import { Database } from '../../../src/prepare/duckdb.js';
import type { TableSource } from '../../../src/prepare/options.js';
import { readTable } from '../../../src/prepare/read-table.js';
import { temporaryPath, writeTemporary } from './temporary-files.js';

const text = 'user,item\nu1,a\nu2,b\n';
const rows = [
  ['u1', 'a'],
  ['u2', 'b'],
];

function directory(name: string): string {
  mkdirSync(temporaryPath(name), { recursive: true });
  return temporaryPath(name);
}

interface Read {
  rows: unknown[][];
  brokenRows: number;
  brokenExamples: readonly { line: number; reason: string }[];
}

async function read(path: string, options: Omit<TableSource, 'path'> = {}, wanted = ['user', 'item']): Promise<Read> {
  const database = await Database.open({ threads: 1 });
  try {
    const source = { path, columns: { user: 'user', item: 'item' }, ...options } as Parameters<typeof readTable>[2];
    const columns = wanted.map((name) => ({ name }));
    const { brokenRows, brokenExamples } = await readTable(database, 'raw', source, columns, undefined);
    const values = wanted.map((_, index) => `v${index}`).join(', ');
    return { rows: await database.rows(`SELECT ${values} FROM raw ORDER BY rowid`), brokenRows, brokenExamples };
  } finally {
    await database.close();
  }
}

describe('formats', () => {
  it.each([
    ['plain.csv', text],
    ['capital.CSV', text],
    ['marked.csv', `\ufeff${text}`],
    ['windows.csv', text.replaceAll('\n', '\r\n')],
    ['old-mac.csv', text.replaceAll('\n', '\r')],
    ['open-end.csv', text.trimEnd()],
    ['blank-lines.csv', 'user,item\nu1,a\n\n\nu2,b\n\n'],
    ['packed.csv.gz', gzipSync(text)],
    ['two-members.csv.gz', Buffer.concat([gzipSync('user,item\nu1,a\n'), gzipSync('u2,b\n')])],
    ['tabs.tsv', text.replaceAll(',', '\t')],
    ['lines.jsonl', '{"user":"u1","item":"a"}\n\n{"item":"b","user":"u2"}\n'],
    ['lines.ndjson.gz', gzipSync('{"user":"u1","item":"a"}\r\n{"item":"b","user":"u2"}')],
    ['more-columns.csv', 'item,"x, y",user\na,1,u1\nb,2,u2\n'],
  ])('reads %s', async (name, content) => {
    expect(await read(writeTemporary(name, content))).toEqual({ rows, brokenRows: 0, brokenExamples: [] });
  });

  it('reads a headerless file with a long delimiter and given names', async () => {
    const path = writeTemporary('ratings.dat', 'u1::a::5\nu2::b::4\n');
    const result = await read(path, { format: 'csv', delimiter: '::', names: ['user', 'item', 'rating'] });
    expect(result).toEqual({ rows, brokenRows: 0, brokenExamples: [] });
  });

  it('lets names replace a header', async () => {
    const result = await read(writeTemporary('renamed.csv', text), { header: true, names: ['item', 'user'] });
    expect(result.rows).toEqual([
      ['a', 'u1'],
      ['b', 'u2'],
    ]);
  });

  it.each(['\n', '\r\n'])('reads a line feed inside quotes between lines that end with %j', async (lineBreak) => {
    const content = ['user,item', 'u,"two', '', 'lines"', 'v,b', '']
      .join(lineBreak)
      .replace(`two${lineBreak}`, 'two\n');
    const result = await read(writeTemporary('inside.csv', content));
    expect(result.rows).toEqual([
      ['u', `two\n${lineBreak}lines`],
      ['v', 'b'],
    ]);
    expect(result.brokenRows).toBe(0);
  });

  it('keeps quotes as text in TSV, and in CSV inside a value', async () => {
    const tsv = await read(writeTemporary('quotes.tsv', 'user\titem\n"u"\t5" disc\n'));
    expect(tsv.rows).toEqual([['"u"', '5" disc']]);
    const quoted = await read(writeTemporary('quotes.csv', 'user,item\nu,"say ""a, b"""\n'));
    expect(quoted.rows).toEqual([['u', 'say "a, b"']]);
  });

  it('reads text that splits a character between chunks', async () => {
    const long = `user,item\n${'é€😀,ü\n'.repeat(80_000)}`;
    for (const shift of ['', 'x', 'xy', 'xyz']) {
      const result = await read(writeTemporary('long.csv', long.replace('\n', `\n${shift}`)));
      expect(result.rows).toHaveLength(80_000);
      expect(result.brokenRows).toBe(0);
    }
  });

  it('takes dangerous column names as plain names', async () => {
    const path = writeTemporary('names.csv', '__proto__,constructor,"a""; DROP TABLE raw; --"\nu1,a,x\nu2,b,y\n');
    const wanted = ['__proto__', 'constructor', 'a"; DROP TABLE raw; --'];
    expect((await read(path, {}, wanted)).rows).toEqual([
      ['u1', 'a', 'x'],
      ['u2', 'b', 'y'],
    ]);
    const lines = writeTemporary('names.jsonl', `{"__proto__":"u1","a/b~c'":"x"}\n`);
    expect((await read(lines, {}, ['__proto__', "a/b~c'"])).rows).toEqual([['u1', 'x']]);
  });

  it.each(["it's; DROP TABLE raw; --.csv", 'a[1]*?.csv', 'user=3.csv', '~home.csv', '{a,b}.csv'])(
    'takes the file name %s literally',
    async (name) => {
      writeTemporary('a1x.csv', 'user,item\nwrong,wrong\n');
      expect((await read(writeTemporary(name, text))).rows).toEqual(rows);
    },
  );

  it('does not take a directory name for a column', async () => {
    directory('user=3');
    expect((await read(writeTemporary('user=3/plain.csv', text))).rows).toEqual(rows);
  });
});

describe('sequences', () => {
  const walk = [
    ['u1', 'a'],
    ['u1', 'b'],
    ['u2', 'c'],
    ['u1', 'a'],
  ];

  it.each([
    ['plain', 'u1 a b\nu2 c\nu1 a\n'],
    ['marked', '\ufeffu1 a b\nu2 c\nu1 a\n'],
    ['windows', 'u1 a b\r\nu2 c\r\nu1 a\r\n'],
    ['spaced', '  u1\ta   b \n\n\nu2 c\nu1 a'],
    ['packed', gzipSync('u1 a b\nu2 c\nu1 a\n')],
  ])('reads one user a line: %s', async (name, content) => {
    const path = writeTemporary(name === 'packed' ? 'sequences.txt.gz' : `${name}.txt`, content);
    const result = await read(path, { format: 'sequences' });
    expect(result).toEqual({ rows: walk, brokenRows: 0, brokenExamples: [] });
  });

  it('takes ids with spaces when a delimiter is given, and columns in any order', async () => {
    const path = writeTemporary('delimited.txt', 'u 1,a b,c\n');
    const result = await read(path, { format: 'sequences', delimiter: ',' }, ['item', 'user']);
    expect(result.rows).toEqual([
      ['a b', 'u 1'],
      ['c', 'u 1'],
    ]);
  });

  it('counts a user without items as broken, with its line', async () => {
    const result = await read(writeTemporary('lonely.txt', 'u1 a\nu2\nu3 b\n'), { format: 'sequences' });
    expect(result.rows).toEqual([
      ['u1', 'a'],
      ['u3', 'b'],
    ]);
    expect(result.brokenRows).toBe(1);
    expect(result.brokenExamples).toEqual([{ line: 2, reason: 'no item after the user "u2"' }]);
  });

  it('knows the columns user and item alone, and no header', async () => {
    const path = writeTemporary('other.txt', 'u1 a\n');
    await expect(read(path, { format: 'sequences' }, ['user', 'time'])).rejects.toMatchObject({
      code: 'ERR_COLUMN_NOT_FOUND',
    });
    await expect(read(path, { format: 'sequences', header: true })).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
    });
  });
});

describe('JSON Lines', () => {
  it('counts lines that are not objects, and takes numbers as text', async () => {
    const content = ['{"user":1,"item":12345678901234567890}', '{broken', '[1]', '{"user":{"a":1},"item":null}', '"x"'];
    const result = await read(writeTemporary('mixed.jsonl', content.join('\n')));
    expect(result.rows).toEqual([
      ['1', '12345678901234567890'],
      [null, null],
    ]);
    expect(result.brokenRows).toBe(3);
    expect(result.brokenExamples).toEqual([
      { line: 2, reason: 'not a JSON object: "{broken"' },
      { line: 3, reason: 'not a JSON object: "[1]"' },
      { line: 5, reason: 'not a JSON object: "\\"x\\""' },
    ]);
  });

  it('counts a line with a raw control character', async () => {
    const result = await read(
      writeTemporary('control.jsonl', '{"user":"u\u0001","item":"a"}\n{"user":"u","item":"b"}\n'),
    );
    expect(result).toMatchObject({ rows: [['u', 'b']], brokenRows: 1, brokenExamples: [{ line: 1 }] });
  });
});

describe('files that cannot be read', () => {
  const packed = gzipSync(text.repeat(2000));

  it.each([
    ['a missing file', 'ERR_FILE_NOT_FOUND', () => temporaryPath('missing.csv')],
    ['a missing Parquet file', 'ERR_FILE_NOT_FOUND', () => temporaryPath('missing.parquet')],
    ['a file below a file', 'ERR_FILE_NOT_FOUND', () => `${writeTemporary('file.csv', text)}/x.csv`],
    ['a directory', 'ERR_FILE_FORMAT', () => directory('dir.csv')],
    ['an empty file', 'ERR_EMPTY_DATA', () => writeTemporary('empty.csv', '')],
    ['an empty gzip file', 'ERR_EMPTY_DATA', () => writeTemporary('empty.csv.gz', gzipSync(''))],
    ['a file of blank lines', 'ERR_EMPTY_DATA', () => writeTemporary('blank.csv', '\n\r\n\n')],
    ['a header alone', 'ERR_EMPTY_DATA', () => writeTemporary('header.csv', 'user,item\n')],
    [
      'Latin-1 text',
      'ERR_FILE_FORMAT',
      () => writeTemporary('latin1.csv', Buffer.from('user,item\nu,caf\xe9\n', 'latin1')),
    ],
    [
      'UTF-8 cut inside a character',
      'ERR_FILE_FORMAT',
      () => writeTemporary('cut.csv', Buffer.from(`${text}é`).subarray(0, -1)),
    ],
    ['UTF-16 text', 'ERR_FILE_FORMAT', () => writeTemporary('utf16.csv', Buffer.from(`\ufeff${text}`, 'utf16le'))],
    ['Latin-1 JSON', 'ERR_FILE_FORMAT', () => writeTemporary('latin1.jsonl', Buffer.from('{"user":"\xe9"}', 'latin1'))],
    [
      'a gzip file that is cut',
      'ERR_FILE_FORMAT',
      () => writeTemporary('cut.csv.gz', packed.subarray(0, packed.length >> 1)),
    ],
    [
      'a gzip file without its checksum',
      'ERR_FILE_FORMAT',
      () => writeTemporary('cut2.csv.gz', packed.subarray(0, -6)),
    ],
    [
      'a damaged gzip file',
      'ERR_FILE_FORMAT',
      () =>
        writeTemporary(
          'crc.csv.gz',
          packed.map((byte, i) => (i === packed.length - 6 ? ~byte : byte)),
        ),
    ],
    ['text named .gz', 'ERR_FILE_FORMAT', () => writeTemporary('text.csv.gz', text)],
    ['gzip not named .gz', 'ERR_FILE_FORMAT', () => writeTemporary('gzip.csv', packed)],
    ['text named .parquet', 'ERR_FILE_FORMAT', () => writeTemporary('text.parquet', text)],
    ['an endless first line', 'ERR_FILE_FORMAT', () => writeTemporary('endless.csv', 'x'.repeat(3_000_000))],
    ['an unknown extension', 'ERR_INVALID_ARGUMENT', () => writeTemporary('data.xlsx', text)],
    ['packed Parquet', 'ERR_INVALID_ARGUMENT', () => writeTemporary('x.parquet.gz', packed)],
  ])('refuses %s with %s', async (_, code, path) => {
    const file = path();
    await expect(read(file)).rejects.toMatchObject({ code, message: expect.stringContaining(file) });
  });

  it.each([
    ['utf16-little.csv', Buffer.from(`\ufeff${text}`, 'utf16le'), 'UTF-16 text', 'iconv -f utf16 -t utf8'],
    ['utf16-big.csv', Buffer.from(`\ufeff${text}`, 'utf16le').swap16(), 'UTF-16 text', 'iconv -f utf16 -t utf8'],
    ['utf16.csv.gz', gzipSync(Buffer.from(`\ufeff${text}`, 'utf16le')), 'UTF-16 text', 'iconv -f utf16 -t utf8'],
    ['latin.csv', Buffer.from('user,item\nu,caf\xe9\n', 'latin1'), 'not UTF-8 text (after', 'iconv -f latin1 -t utf8'],
  ])('says how to convert %s', async (name, content, what, command) => {
    const error = await read(writeTemporary(name, content)).catch(({ message }: Error) => message);
    expect(error).toContain(what);
    expect(error).toContain(command);
  });

  it('names both line breaks when a file mixes them', async () => {
    const path = writeTemporary('mixed.csv', 'user,item\nu1,a\r\nu2,b\nu3,c\r\n');
    await expect(read(path)).rejects.toMatchObject({
      code: 'ERR_FILE_FORMAT',
      message: expect.stringContaining('line breaks'),
    });
  });

  it('refuses a headerless file without names, and CSV options for JSON', async () => {
    const path = writeTemporary('options.csv', text);
    await expect(read(path, { header: false })).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringContaining('names'),
    });
    await expect(read(path, { format: 'jsonl', delimiter: ';' })).rejects.toThrow(/"delimiter" is for CSV and TSV/);
  });
});

describe('columns that are not there', () => {
  it.each([
    ['csv', text],
    ['jsonl', '{"user":"u1","item":"a"}\n'],
  ])('lists the columns of a %s file and the nearest', async (extension, content) => {
    const path = writeTemporary(`columns.${extension}`, content);
    await expect(read(path, {}, ['usr', 'item'])).rejects.toMatchObject({
      code: 'ERR_COLUMN_NOT_FOUND',
      message: expect.stringMatching(
        /no column "usr"; its columns are ("user", "item"|"item", "user")\. Did you mean "user"\?/,
      ),
    });
  });

  it('points to the delimiter when there is one column', async () => {
    const path = writeTemporary('semicolon.csv', 'user;item\nu;a\n');
    await expect(read(path)).rejects.toThrow(/check "delimiter"/);
  });

  it('refuses a wanted column that is there twice', async () => {
    const path = writeTemporary('twice.csv', 'user,item,user\nu,a,v\n');
    await expect(read(path)).rejects.toMatchObject({
      code: 'ERR_FILE_FORMAT',
      message: expect.stringContaining('two columns'),
    });
  });
});
