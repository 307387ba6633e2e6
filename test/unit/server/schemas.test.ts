import { describe, expect, it } from 'vitest';
import { z } from 'zod';
import { recommendRequest } from '../../../src/server/schemas.js';

const id = z
  .string()
  .min(1)
  .max(512)
  .refine((text) => text !== '' && Buffer.byteLength(text) <= 512 && text.isWellFormed(), {
    error: 'Invalid id: expected 1 to 512 bytes of UTF-8, without lone surrogates',
  });
/** As the schema of requests says it, entry by entry. */
const reference = z
  .array(z.union([id, z.strictObject({ text: z.string().min(1).max(10_000) })]))
  .max(1000)
  .optional();

const ENTRIES = [
  'i1',
  'x',
  'x'.repeat(512),
  '😀'.repeat(128),
  '\u0000',
  '__proto__',
  { text: 'A film' },
  '',
  'x'.repeat(513),
  `x${'😀'.repeat(128)}`,
  '\ud83d',
  null,
  true,
  7,
  [],
  ['i1'],
  {},
  { text: '' },
  { text: 'A film', more: 1 },
  { text: 'x'.repeat(10_001) },
] as const;
const NUM_TAKEN = 7;
const NUM_IDS = 6;

function check(history: unknown): void {
  const body = JSON.parse(JSON.stringify({ history }));
  const actual = recommendRequest.safeParse(body);
  const expected = reference.safeParse(body.history);
  expect(actual.success).toBe(expected.success);
  if (expected.success) expect(actual.data?.history).toEqual(expected.data);
  const place = (issue: z.core.$ZodIssue) => ({ ...issue, path: ['history', ...issue.path] });
  expect(actual.error?.issues).toEqual(expected.error?.issues.map(place));
}

describe('a history', () => {
  it.each([
    ['nothing', undefined],
    ['null', null],
    ['a string', 'i1'],
    ['a number', 1],
    ['an object', { 0: 'i1', length: 1 }],
    ['an empty list', []],
    ['as many as may be', Array(1000).fill('i1')],
    ['one too many', Array(1001).fill('i1')],
    ['one text too many', Array(1001).fill({ text: 'A film' })],
  ])('is checked as its entries are: %s', (_, history) => check(history));

  it('is checked as its entries are: any of them, together', () => {
    let state = 7;
    const below = (n: number) => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return Math.floor((state / 2 ** 32) * n);
    };
    for (let i = 0; i < 3000; i++) {
      // Ids alone, what is taken, or anything.
      const kinds = [NUM_IDS, NUM_TAKEN, ENTRIES.length][i % 3] as number;
      const history: unknown[] = Array.from({ length: below(6) }, () => ENTRIES[below(kinds)]);
      // One that is refused, among those that are taken.
      if (i % 2 === 0 && history.length > 0) history[below(history.length)] = ENTRIES[below(ENTRIES.length)];
      check(history);
    }
  });
});
