import { describe, expect, it } from 'vitest';
import { prepareOptionsSchema } from '../../../src/prepare/options.js';
import { parseOptions } from '../../../src/prepare/parse-options.js';

const interactions = { path: 'x.csv', columns: { user: 'u', item: 'i' } };
const parse = (value: unknown) => parseOptions(prepareOptionsSchema, value, 'prepare');

describe('prepare options', () => {
  it('fills in the defaults', () => {
    expect(parse({ interactions })).toEqual({
      interactions,
      denoise: { minUserInteractions: 5, minItemInteractions: 5, duplicates: 'first' },
      split: { strategy: 'leaveOneOut', validationFraction: 0.1, testFraction: 0.1 },
      threads: 2,
    });
  });

  it.each([
    [{ interactions, spilt: {} }, 'prepare has no option "spilt". Did you mean "split"?'],
    [
      { interactions, denoise: { minRatings: 3 } },
      'prepare.denoise has no option "minRatings". Did you mean "minRating"?',
    ],
    [{ interactions: { ...interactions, columns: { user: 'u', item: 'i', tme: 't' } } }, 'Did you mean "time"?'],
    [{ interactions, split: { kind: 1 } }, 'The options here are strategy, validationFraction, testFraction.'],
    [JSON.parse('{"__proto__": 1}'), 'prepare has no option "__proto__"'],
  ])('refuses an unknown key and names the nearest: %j', (value, message) => {
    expect(() => parse(value)).toThrow(
      expect.objectContaining({ code: 'ERR_UNKNOWN_OPTION', message: expect.stringContaining(message) }),
    );
  });

  it.each([
    [undefined, 'prepare: '],
    [{}, 'prepare.interactions: '],
    [{ interactions: { ...interactions, path: '' } }, 'prepare.interactions.path: '],
    [{ interactions: { ...interactions, path: 7 } }, 'got 7'],
    [{ interactions: { ...interactions, format: 'xml' } }, 'got "xml"'],
    [{ interactions: { ...interactions, delimiter: '' } }, 'expected 1 to 4 bytes'],
    [{ interactions: { ...interactions, delimiter: '\n' } }, 'line break'],
    [{ interactions: { ...interactions, columns: { user: 'u' } } }, 'prepare.interactions.columns.item: '],
    [{ interactions, items: { path: 'x', columns: { id: 'i', text: [] } } }, 'prepare.items.columns.text: '],
    [{ interactions, denoise: { minUserInteractions: 0 } }, 'prepare.denoise.minUserInteractions: '],
    [{ interactions, denoise: { minItemInteractions: 2.5 } }, 'got 2.5'],
    [{ interactions, denoise: { minRating: Number.NaN } }, 'got NaN'],
    [{ interactions, denoise: { minRating: 3 } }, 'denoise.minRating needs interactions.columns.rating'],
    [{ interactions, denoise: { events: ['view'] } }, 'denoise.events needs interactions.columns.event'],
    [{ interactions, split: { strategy: 'globalTime' } }, 'needs interactions.columns.time'],
    [{ interactions, split: { validationFraction: 0.5, testFraction: 0.5 } }, 'must leave some training data'],
    [{ interactions, threads: 0 }, 'prepare.threads: '],
  ])('refuses %j', (value, message) => {
    expect(() => parse(value)).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT', message: expect.stringContaining(message) }),
    );
  });
});
