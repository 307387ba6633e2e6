import { describe, expect, test } from 'vitest';
import { evaluationSet } from '../../../src/evaluate/recommendation.js';
import type { Dataset } from '../../../src/prepare/dataset.js';

test('the cases of a dataset leave out the different items of each history, and have no case for who has no target', () => {
  const sequences = Int32Array.of(4, 2, 4, 3, 1, 0, 3, 3, 1, 2);
  const dataset = {
    items: [],
    users: ['a', 'b', 'c'],
    sequences,
    sequenceOffsets: Int32Array.of(0, 5, 6, 10),
    split: {
      trainLength: Int32Array.of(3, 1, 2),
      validationPosition: Int32Array.of(3, -1, 2),
      testPosition: Int32Array.of(4, -1, 3),
    },
  } as unknown as Dataset;
  const before = sequences.slice();
  expect(evaluationSet(dataset, 'test')).toEqual({
    users: Int32Array.of(0, 2),
    sequences: Int32Array.of(4, 2, 4, 3, 3, 3, 1),
    sequenceOffsets: Int32Array.of(0, 4, 7),
    targets: Int32Array.of(1, 2),
    excludeIds: Int32Array.of(2, 3, 4, 1, 3),
    excludeOffsets: Int32Array.of(0, 3, 5),
    repeatedTargets: 0,
  });
  expect(evaluationSet(dataset, 'validation')).toMatchObject({
    targets: Int32Array.of(3, 1),
    excludeIds: Int32Array.of(2, 4, 3),
    excludeOffsets: Int32Array.of(0, 2, 3),
  });
  expect(sequences).toEqual(before);
});

describe('a case whose target is in its history', () => {
  /** One user a list, of items 0 to 9; the last one is the test's, the one before it the validation's. */
  const dataset = (...lists: number[][]) =>
    ({
      items: [],
      users: lists.map((_, user) => `u${user}`),
      sequences: Int32Array.from(lists.flat()),
      sequenceOffsets: Int32Array.from([0, ...lists.map((_, user) => lists.slice(0, user + 1).flat().length)]),
      split: {
        trainLength: Int32Array.from(lists, ({ length }) => length - 2),
        validationPosition: Int32Array.from(lists, ({ length }) => length - 2),
        testPosition: Int32Array.from(lists, ({ length }) => length - 1),
      },
    }) as unknown as Dataset;

  test('is left out and counted', () => {
    const repeating = dataset([1, 2, 3, 1], [1, 2, 3, 4], [5, 6, 5, 5], [7, 8, 7, 9]);
    expect(evaluationSet(repeating, 'test')).toEqual({
      users: Int32Array.of(1, 3),
      sequences: Int32Array.of(1, 2, 3, 7, 8, 7),
      sequenceOffsets: Int32Array.of(0, 3, 6),
      targets: Int32Array.of(4, 9),
      excludeIds: Int32Array.of(1, 2, 3, 7, 8),
      excludeOffsets: Int32Array.of(0, 3, 5),
      repeatedTargets: 2,
    });
    expect(evaluationSet(repeating, 'validation')).toMatchObject({
      users: Int32Array.of(0, 1),
      targets: Int32Array.of(3, 3),
      repeatedTargets: 2,
    });
  });

  test('is an error when there is no other', () => {
    const error = { code: 'ERR_EMPTY_DATA', message: expect.stringMatching(/All 2 test cases .* history.*duplicates/) };
    expect(() => evaluationSet(dataset([1, 2, 3, 1], [4, 5, 4, 5]), 'test')).toThrow(expect.objectContaining(error));
  });
});
