import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { checkTextFile, eachText, readTexts, type TextFile } from '../../../src/prepare/text-lines.js';

const folder = mkdtempSync(join(tmpdir(), 'limbeck-texts-'));
afterAll(() => rmSync(folder, { recursive: true }));
let count = 0;
function fileOf(content: string | Uint8Array, extension = 'txt'): TextFile {
  const path = join(folder, `${count++}.${extension}`);
  writeFileSync(path, content);
  return { path };
}
async function collected<T>(values: AsyncIterable<T>): Promise<T[]> {
  const list: T[] = [];
  for await (const value of values) list.push(value);
  return list;
}
const all = (source: TextFile) => collected(eachText(source));
const refused = (code: string, message = '') =>
  expect.objectContaining({ code, message: expect.stringContaining(message) });

describe('a text file', () => {
  test('has one text a line; blank lines and line breaks of any kind are left out', async () => {
    expect(await all(fileOf('\ufeffone\r\n\n  \ntwo\ufeff\n\ufeffthree 👋'))).toEqual([
      'one',
      'two\ufeff',
      '\ufeffthree 👋',
    ]);
    expect(await all(fileOf('one\n'))).toEqual(['one']);
    expect(await all(fileOf(''))).toEqual([]);
  });

  test('of JSON lines has its text in a column', async () => {
    const file = fileOf('{"text":"a\\nb","n":1}\n\n{"text":""}\n{"n":[],"text":"\\u00e9"}', 'jsonl');
    expect(await all(file)).toEqual(['a\nb', 'é']);
    expect(await all({ ...fileOf('{"body":"x"}', 'ndjson'), column: 'body' })).toEqual(['x']);
  });

  test('longer than one read comes in runs of whole lines, from where an earlier run ended too', async () => {
    const lines = Array.from({ length: 40_000 }, (_, i) => `línea ${i} ${'ab🙂'.repeat(i % 17)}`);
    const file = fileOf(lines.join('\n'));
    const runs = await collected(readTexts(file));
    expect(runs.length).toBeGreaterThan(1);
    expect(runs.flatMap(({ texts }) => texts)).toEqual(lines);
    expect(Buffer.concat(runs.map(({ bytes }) => bytes)).toString()).toBe(lines.join('\n'));
    const [first] = runs;
    const rest = await collected(readTexts(file, first?.end));
    expect([...(first?.texts ?? []), ...rest.flatMap(({ texts }) => texts)]).toEqual(lines);
  });

  test('that is not what it says is refused, with the place', async () => {
    await expect(all(fileOf(Buffer.from([0x61, 0x0a, 0xff])))).rejects.toThrow(refused('ERR_FILE_FORMAT', 'UTF-8'));
    const broken = fileOf('{"text":"a"}\n{"text":', 'jsonl');
    await expect(all(broken)).rejects.toThrow(refused('ERR_FILE_FORMAT', 'line at byte 13'));
    for (const line of ['{"body":"a"}', '{"text":3}', 'null', '["text"]']) {
      await expect(all(fileOf(line, 'jsonl'))).rejects.toThrow(refused('ERR_FILE_FORMAT', "no text 'text'"));
    }
    await expect(all({ path: join(folder, 'none.txt') })).rejects.toThrow(refused('ERR_FILE_NOT_FOUND'));
    await expect(all({ path: folder })).rejects.toThrow(refused('ERR_FILE_FORMAT'));
  });

  test('is left when its reader is stopped', async () => {
    const reading = collected(eachText(fileOf('a\nb'), AbortSignal.abort()));
    await expect(reading).rejects.toThrow(refused('ERR_ABORTED'));
  });

  test('is described by a path, and nothing that it does not have', () => {
    const check = (source: object) => () => checkTextFile(source as TextFile, 'corpus.train');
    expect(check({ path: 'a.jsonl', column: 'body', tokens: 'out' })).not.toThrow();
    expect(() => checkTextFile(undefined as never, 'texts')).toThrow(refused('ERR_INVALID_ARGUMENT', 'texts'));
    expect(check({})).toThrow(refused('ERR_INVALID_ARGUMENT', 'corpus.train'));
    expect(check({ path: 3 })).toThrow(refused('ERR_INVALID_ARGUMENT'));
    expect(check({ path: 'a.txt', colum: 'x' })).toThrow(refused('ERR_UNKNOWN_OPTION', 'colum'));
    expect(check({ path: 'a.txt', column: 'x' })).toThrow(refused('ERR_INVALID_ARGUMENT', 'jsonl'));
  });
});
