import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { EXIT, exitCodeOf } from '../../../src/cli/exit-codes.js';
import { LimbeckError, type LimbeckErrorCode } from '../../../src/errors.js';
import { toHttpError } from '../../../src/server/http-error.js';
import { codesIn, readDocument, tablesOf } from '../../support/markdown.js';

const document = readDocument('errors.md');
const root = join(import.meta.dirname, '../../..');

/** Node's and Fastify's codes have names of the same kind: those that begin otherwise are not matched, this one is. */
const NOT_OURS = new Set(['ERR_HTTP_REQUEST_TIMEOUT']);
const CODE = /(?<![A-Z_])ERR_[A-Z]+(?:_[A-Z]+)*/g;

const library = new Set(codes(readFileSync(join(root, 'src/errors.ts'), 'utf8')));

function codes(text: string): string[] {
  return (text.match(CODE) ?? []).filter((code) => !NOT_OURS.has(code));
}

test('every error code of the sources is in a table, and no other code is in the document', () => {
  const used = new Set<string>();
  for (const folder of ['src', 'native']) {
    for (const file of readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })) {
      if (!/\.(ts|js|cc|cu|h)$/.test(file)) continue;
      for (const code of codes(readFileSync(join(root, folder, file), 'utf8'))) used.add(code);
    }
  }
  expect(used.size).toBeGreaterThan(40);
  const inTables = tablesOf(document).flatMap(({ rows }) => rows.flatMap(([first = '']) => codesIn(first)));
  expect([...used].filter((code) => !inTables.includes(code))).toEqual([]);
  expect([...new Set(codes(document))].filter((code) => !used.has(code))).toEqual([]);
});

test('the exit codes are those of the command', () => {
  const [ofCodes, ofExits] = tablesOf(document);
  const told = new Map(ofCodes?.rows.map(([code = '', , , exit]) => [codesIn(code)[0], Number(exit)]));
  expect([...told.keys()].sort()).toEqual([...library].sort());
  for (const code of library) {
    expect([code, told.get(code)]).toEqual([code, exitCodeOf(new LimbeckError(code as LimbeckErrorCode, ''))]);
  }
  expect(ofExits?.rows.map(([exit]) => Number(exit))).toEqual(Object.values(EXIT));
});

test('the HTTP statuses of library errors are those of the service', () => {
  const table = tablesOf(document).find(({ lead }) => lead === 'And with these of the library:');
  const told = new Map(
    table?.rows.flatMap(([names = '', status = '']) =>
      codesIn(names).map((code) => [code, Number.parseInt(status, 10)]),
    ),
  );
  expect(told.size).toBeGreaterThan(5);
  for (const code of library) {
    const { statusCode, code: answered } = toHttpError(new LimbeckError(code as LimbeckErrorCode, ''));
    expect([code, told.get(code) ?? 500]).toEqual([code, statusCode]);
    if (!told.has(code)) expect(answered).toBe('ERR_INTERNAL');
  }
});
