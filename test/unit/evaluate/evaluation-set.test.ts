import { expect, test } from 'vitest';
import { evaluationSet } from '../../../src/evaluate/recommendation.js';
import type { Dataset } from '../../../src/prepare/dataset.js';

test('the cases of a dataset leave out the different items of each history, and have no case for who has no target', () => {
  const sequences = Int32Array.of(4, 2, 4, 2, 1, 0, 3, 3, 3, 2);
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
    sequences: Int32Array.of(4, 2, 4, 2, 3, 3, 3),
    sequenceOffsets: Int32Array.of(0, 4, 7),
    targets: Int32Array.of(1, 2),
    excludeIds: Int32Array.of(2, 4, 3),
    excludeOffsets: Int32Array.of(0, 2, 3),
  });
  expect(evaluationSet(dataset, 'validation')).toMatchObject({
    targets: Int32Array.of(2, 3),
    excludeIds: Int32Array.of(2, 4, 3),
    excludeOffsets: Int32Array.of(0, 2, 3),
  });
  expect(sequences).toEqual(before);
});
