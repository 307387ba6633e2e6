import { describe, expect, it } from 'vitest';
import { checkDepth, MAX_JSON_DEPTH } from '../../../src/server/json-body.js';
import { cpuTimeMs } from '../../support/cpu-time.js';

const nested = (depth: number, open = '[', close = ']') => open.repeat(depth) + close.repeat(depth);

describe('checkDepth', () => {
  it.each([
    ['[', ']'],
    ['{"a":', '}'],
  ])('counts %s', (open, close) => {
    expect(() => checkDepth(nested(MAX_JSON_DEPTH, open, close))).not.toThrow();
    expect(() => checkDepth(nested(MAX_JSON_DEPTH + 1, open, close))).toThrow('64 levels');
  });

  it('counts what is open, not what there is', () => {
    expect(() => checkDepth(`[${'[],{},'.repeat(1000)}1]`)).not.toThrow();
  });

  it.each([
    ['plain', '[['],
    ['after an escaped quote', '\\"[['],
    ['after escaped backslashes and a quote', '\\\\\\"[['],
  ])('leaves brackets in strings alone: %s', (_, start) => {
    const text = JSON.stringify([`${JSON.parse(`"${start}"`)}${'['.repeat(200)}`]);
    expect(() => checkDepth(text)).not.toThrow();
  });

  it('sees brackets after a string that ends in a backslash', () => {
    expect(() => checkDepth(`["a\\\\",${nested(64)}]`)).toThrow();
  });

  it.each([
    ['within strings', `["${'[{'.repeat(100)}"]`, true],
    ['side by side', `[${'{},'.repeat(100)}1]`, true],
    ['of both kinds together', '[{"a":'.repeat(33) + '}]'.repeat(33), false],
    ['behind many side by side', `[${'[],'.repeat(100)}${nested(MAX_JSON_DEPTH)}]`, false],
  ])('looks closer at many brackets: %s', (_, text, isAllowed) => {
    if (isAllowed) expect(() => checkDepth(text)).not.toThrow();
    else expect(() => checkDepth(text)).toThrow('64 levels');
  });

  it('takes time in proportion to the length', async () => {
    const check = () => {
      checkDepth(`"${'\\"'.repeat(500_000)}"`);
      checkDepth(`"${'\\'.repeat(1_000_000)}"`);
    };
    expect(await cpuTimeMs(check)).toBeLessThan(1000);
  });

  it('ends at a string that never does', () => {
    expect(() => checkDepth('["abc')).not.toThrow();
  });
});
