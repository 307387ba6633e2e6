import { describe, expect, it } from 'vitest';
import * as format from '../../../src/evaluate/format.js';

describe('formats', () => {
  it('prints parameters in three digits with a unit, rounding before choosing it', () => {
    const printed = [12, 999, 1234, 999_999, 1_234_567, 124_439_808, 7e9].map(format.formatParameters);
    expect(printed).toEqual(['12', '999', '1.23k', '1M', '1.23M', '124M', '7B']);
  });

  it('prints latencies in the unit that fits', () => {
    const printed = [0.000_5, 0.312_4, 0.9999, 4.214, 123.4, 2500].map(format.formatLatency);
    expect(printed).toEqual(['0.5 µs', '312 µs', '1 ms', '4.21 ms', '123 ms', '2.5 s']);
  });

  it('prints durations', () => {
    const printed = [0.418, 12.34, 59.99, 252, 3600, 7500].map(format.formatDuration);
    expect(printed).toEqual(['0.42 s', '12.3 s', '1 min 00 s', '4 min 12 s', '1 h 00 min', '2 h 05 min']);
  });

  it('prints numbers, metrics and signed differences', () => {
    expect([1234567, -1234, 12, 0.123456, 1e-7].map(format.formatNumber)).toEqual([
      '1,234,567',
      '-1,234',
      '12',
      '0.1235',
      '1e-7',
    ]);
    expect(format.formatMetric(0.05314)).toBe('0.0531');
    expect([0.0031, -0.0031].map(format.formatDifference)).toEqual(['+0.0031', '−0.0031']);
  });

  it('prints a dash where nothing was measured', () => {
    const all = [
      format.formatParameters(0),
      format.formatLatency(0),
      format.formatLatency(Number.NaN),
      format.formatMetric(Number.NaN),
    ];
    expect(new Set(all)).toEqual(new Set(['–']));
  });

  it('prints camel case and snake case as words', () => {
    expect(format.formatKey('droppedUsersBelow5')).toBe('dropped users below5');
    expect(format.formatKey('num_items')).toBe('num items');
  });
});
