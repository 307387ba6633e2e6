import { describe, expect, test } from 'vitest';
import { compareRanks, describeChanges } from '../../../../src/server/console/rank-changes.js';

describe('two versions of a ranked list', () => {
  test('an item that closes the gap of one that left did not move', () => {
    const { changes, gone } = compareRanks(['a', 'b', 'c'], ['b', 'c', 'd']);
    expect([...changes]).toEqual([['d', { kind: 'new' }]]);
    expect(gone).toEqual(['a']);
  });

  test('an item that a new one pushes down did not move', () => {
    const { changes } = compareRanks(['a', 'b'], ['x', 'a', 'b']);
    expect([...changes.keys()]).toEqual(['x']);
  });

  test('moves are counted among the items that stayed', () => {
    const { changes } = compareRanks(['a', 'b', 'c', 'd'], ['d', 'x', 'a', 'c']);
    expect(Object.fromEntries(changes)).toEqual({
      d: { kind: 'moved', by: 2 },
      x: { kind: 'new' },
      a: { kind: 'moved', by: -1 },
      c: { kind: 'moved', by: -1 },
    });
  });

  test('one sentence tells what changed', () => {
    expect(describeChanges(compareRanks(['a', 'b', 'c'], ['c', 'b', 'd']))).toBe(
      'The list changed: 1 new, 2 moved, 1 left.',
    );
    expect(describeChanges(compareRanks(['a'], ['a']))).toBe('The list stayed the same.');
  });
});
