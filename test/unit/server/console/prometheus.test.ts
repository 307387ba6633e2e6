import { describe, expect, test } from 'vitest';
import { bucketsOf, parseMetrics, quantileBetween, sumOf } from '../../../../src/server/console/prometheus.js';

const histogram = (counts: Record<string, number>) =>
  bucketsOf(
    parseMetrics(
      Object.entries(counts)
        .map(([le, n]) => `h_bucket{le="${le}"} ${n}`)
        .join('\n'),
    ),
    'h',
  );

describe('Prometheus text', () => {
  test('samples have names, labels with escapes, and values', () => {
    const text = '# HELP a what\na{b="c \\"d\\", e\\\\f\\ng",h="i"} 1.5e3 1700000000\nbare +Inf\n\nno sample\n';
    expect(parseMetrics(text)).toEqual([
      { name: 'a', labels: { b: 'c "d", e\\f\ng', h: 'i' }, value: 1500 },
      { name: 'bare', labels: {}, value: Number.POSITIVE_INFINITY },
      { name: 'no', labels: {}, value: Number.NaN },
    ]);
  });

  test('a label named like a part of every object is a label', () => {
    const [sample] = parseMetrics('a{__proto__="x",constructor="y"} 1');
    expect(Object.entries(sample?.labels ?? {})).toEqual([
      ['__proto__', 'x'],
      ['constructor', 'y'],
    ]);
  });

  test('sums are over the series that are accepted', () => {
    const samples = parseMetrics('a{r="x"} 1\na{r="y"} 2\nab{r="x"} 4');
    expect([sumOf(samples, 'a'), sumOf(samples, 'a', ({ r }) => r === 'y'), sumOf(samples, 'none')]).toEqual([3, 2, 0]);
  });

  test('buckets of several series add up, in order', () => {
    const samples = parseMetrics('h_bucket{le="+Inf",r="x"} 5\nh_bucket{le="1",r="x"} 2\nh_bucket{le="1",r="y"} 3');
    expect([...bucketsOf(samples, 'h')]).toEqual([
      [1, 5],
      [Number.POSITIVE_INFINITY, 5],
    ]);
  });
});

describe('a quantile between two readings', () => {
  const before = histogram({ 1: 100, 2: 100, 4: 100, '+Inf': 100 });

  test('is interpolated within its bucket, of the new observations alone', () => {
    const after = histogram({ 1: 100, 2: 150, 4: 200, '+Inf': 200 });
    expect(quantileBetween(before, after, 0.5)).toBe(2);
    expect(quantileBetween(before, after, 0.25)).toBe(1.5);
    expect(quantileBetween(before, after, 0.99)).toBeCloseTo(3.96);
  });

  test('is unknown when nothing was observed', () => {
    expect(quantileBetween(before, before, 0.5)).toBeUndefined();
    expect(quantileBetween(new Map(), new Map(), 0.5)).toBeUndefined();
  });

  test('is the last bound when it lies beyond', () => {
    expect(quantileBetween(before, histogram({ 1: 100, 2: 100, 4: 100, '+Inf': 110 }), 0.5)).toBe(4);
  });

  test('counts a series that did not exist before from zero', () => {
    expect(quantileBetween(new Map(), histogram({ 1: 0, 2: 4, '+Inf': 4 }), 0.5)).toBe(1.5);
  });
});
