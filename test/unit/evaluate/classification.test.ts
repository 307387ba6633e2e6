import { describe, expect, it } from 'vitest';
import { classificationMetrics } from '../../../src/evaluate/classification.js';

describe('classificationMetrics', () => {
  it('equals the values computed by hand', () => {
    const labels = ['a', 'a', 'a', 'b', 'b', 'c'];
    const predictions = ['a', 'a', 'b', 'b', 'a', 'b'];
    const { accuracy, classes, macro } = classificationMetrics(labels, predictions);
    expect(accuracy).toBe(3 / 6);
    expect(classes).toEqual([
      { label: 'a', support: 3, precision: 2 / 3, recall: 2 / 3, f1: 2 / 3 },
      { label: 'b', support: 2, precision: 1 / 3, recall: 1 / 2, f1: 2 / 5 },
      { label: 'c', support: 1, precision: 0, recall: 0, f1: 0 },
    ]);
    expect(macro.precision).toBeCloseTo((2 / 3 + 1 / 3) / 3, 12);
    expect(macro.recall).toBeCloseTo((2 / 3 + 1 / 2) / 3, 12);
    expect(macro.f1).toBeCloseTo((2 / 3 + 2 / 5) / 3, 12);
  });

  it('lists a class that was predicted but never labelled, and sorts numbers as numbers', () => {
    const { classes } = classificationMetrics(Int32Array.of(10, 2), Int32Array.of(10, 3));
    expect(classes.map(({ label, support }) => [label, support])).toEqual([
      [2, 1],
      [3, 0],
      [10, 1],
    ]);
  });

  it('refuses empty and unpaired input', () => {
    expect(() => classificationMetrics([], [])).toThrow(expect.objectContaining({ code: 'ERR_EMPTY_DATA' }));
    expect(() => classificationMetrics([1, 2], [1])).toThrow(/2 labels and 1 predictions/);
  });
});
