import { describe, expect, it } from 'vitest';
import { compression, perplexity } from '../../../src/evaluate/language-model.js';

describe('perplexity', () => {
  it('is the vocabulary size for a uniform guess, and 1 for certainty', () => {
    expect(perplexity(10 * Math.log(50257), 10)).toBeCloseTo(50257, 6);
    expect(perplexity(0, 5)).toBe(1);
    expect(perplexity(Number.POSITIVE_INFINITY, 5)).toBe(Number.POSITIVE_INFINITY);
  });

  it('refuses no tokens and losses that cannot be', () => {
    expect(() => perplexity(0, 0)).toThrow(expect.objectContaining({ code: 'ERR_EMPTY_DATA' }));
    const invalid = expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' });
    expect(() => perplexity(1, 1.5)).toThrow(invalid);
    expect(() => perplexity(-1, 1)).toThrow(invalid);
    expect(() => perplexity(Number.NaN, 1)).toThrow(invalid);
  });
});

describe('compression', () => {
  it('is how many times smaller the student is', () => {
    expect(compression(124_000_000, 31_000_000)).toBe(4);
  });

  it('refuses models without parameters', () => {
    expect(() => compression(10, 0)).toThrow(/studentParameters/);
    expect(() => compression(0, 10)).toThrow(/teacherParameters/);
  });
});
