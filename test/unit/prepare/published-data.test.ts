import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { PrepareOptions } from '../../../src/prepare/options.js';
import { prepareDataset } from '../../../src/prepare/prepare.js';

/** Data that others published, which may be read but not copied. */
const shared = join(import.meta.dirname, '../../../../shared/data');
const columns = { user: 'user', item: 'item' };
const denoise = { minUserInteractions: 1, minItemInteractions: 1, duplicates: 'all' } as const;

const sets: { name: string; file: string; options: PrepareOptions; counts: object; first: string[] }[] = [
  {
    name: 'Beauty',
    file: join(shared, 'amazon-beauty/sequences.txt'),
    options: {
      interactions: { path: join(shared, 'amazon-beauty/sequences.txt'), format: 'sequences', columns },
      denoise,
    },
    counts: { users: 22_363, items: 12_101, interactions: 198_502, testCases: 22_363 },
    first: ['1', '2', '3', '4', '5'],
  },
  {
    name: 'ML-1M',
    file: join(shared, 'ml-1m/ml-1m.txt'),
    options: {
      interactions: {
        path: join(shared, 'ml-1m/ml-1m.txt'),
        format: 'csv',
        delimiter: ' ',
        names: ['user', 'item'],
        columns,
      },
      denoise,
    },
    counts: { users: 6040, items: 3416, interactions: 999_611, testCases: 6040 },
    first: ['1', '2', '3'],
  },
];

describe('sets of the literature', () => {
  for (const { name, file, options, counts, first } of sets) {
    const isThere = existsSync(file);
    it.skipIf(!isThere)(`${name} has the published counts${isThere ? '' : ` (skipped: no ${file})`}`, async () => {
      const { report, items, sequences, users } = await prepareDataset(options);
      expect(report.final).toMatchObject(counts);
      expect(report.dropped).toEqual({
        otherEvents: 0,
        belowMinRating: 0,
        withoutItem: 0,
        duplicates: 0,
        botUsers: 0,
        kCore: 0,
      });
      // The order of the file, not of the ids or of anything else.
      expect(users[0]).toBe('1');
      expect(Array.from(sequences.subarray(0, first.length), (item) => items[item]?.id)).toEqual(first);
    });
  }
});
