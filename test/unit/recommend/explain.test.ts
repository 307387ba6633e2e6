import { expect, test } from 'vitest';
import { explanations } from '../../../src/recommend/explain.js';

test('an explanation lists the largest positive weights, and sums them by interest', () => {
  const weights = Float32Array.of(0.5, -1, 0.25, 2, 0, 0, 0, -3);
  const [first, second] = explanations(weights, ['a', 'b', 'c', 'd'], ['x', 'x', 'y', 'x']);
  expect(first?.because).toEqual([
    { item: 'd', weight: 2 },
    { item: 'a', weight: 0.5 },
    { item: 'c', weight: 0.25 },
  ]);
  expect(first?.interests).toEqual([
    { name: 'x', weight: 2.5 },
    { name: 'y', weight: 0.25 },
  ]);
  expect(second).toEqual({ because: [], interests: [] });
});

test('an explanation is short, and an entry of no interest counts for none', () => {
  const entries = Array.from({ length: 9 }, (_, i) => `i${i}`);
  const [only] = explanations(new Float32Array(9).fill(1), entries, [undefined, 'a', 'b', 'c', 'd']);
  expect(only?.because).toHaveLength(5);
  expect(only?.interests).toHaveLength(3);
});
