import { describe, expect, test } from 'vitest';
import { type JsonObject, parseStrictJson } from '../../../src/formats/strict-json.js';

const parse = (text: string, options = {}) => parseStrictJson(text, { file: 'test.json', ...options });

describe('parseStrictJson', () => {
  test.each([
    'null',
    ' true ',
    'false',
    '0',
    '-0.5e+3',
    '1E2',
    '"a\\"\\\\\\/\\b\\f\\n\\r\\tcafé🎉\\u00e9\\ud83c\\udf89"',
    '[]',
    '{ }',
    '[1, [2, {"a": [{}]}], "x"]',
    '{"a": {"b": [null, false]}, "": 1, "\\u0061b": 2}',
    '\t{\r\n"a" : 1 }\n',
  ])('agrees with JSON.parse on %s', (text) => {
    expect(parse(text)).toEqual(JSON.parse(text));
  });

  test.each([
    ['nothing', ''],
    ['a trailing comma', '[1,]'],
    ['a trailing comma in an object', '{"a":1,}'],
    ['a missing comma', '[1 2]'],
    ['a missing colon', '{"a" 1}'],
    ['an unquoted key', '{a: 1}'],
    ['single quotes', "'a'"],
    ['a comment', '/* */ 1'],
    ['text after the value', '1 2'],
    ['an open array', '[1'],
    ['an open object', '{"a": 1'],
    ['an open string', '"abc'],
    ['an open escape', '"abc\\'],
    ['an unknown escape', '"\\x41"'],
    ['a short \\u escape', '"\\u00e"'],
    ['a raw newline in a string', '"a\nb"'],
    ['a NUL in a string', '"a\0b"'],
    ['a byte order mark', '\ufeff1'],
    ['a no-break space', '\u00a01'],
    ['a leading zero', '01'],
    ['a plus sign', '+1'],
    ['a bare fraction', '.5'],
    ['an open fraction', '1.'],
    ['hexadecimal', '0x10'],
    ['NaN', 'NaN'],
    ['Infinity', '-Infinity'],
    ['a number that overflows', '1e400'],
    ['a duplicate key', '{"a": 1, "b": 2, "a": 1}'],
    ['a duplicate key in two spellings', '{"a": 1, "\\u0061": 1}'],
    ['a duplicate __proto__', '{"__proto__": 1, "__proto__": 2}'],
    ['a lone surrogate', '"\\ud83c"'],
    ['a cut word', 'tru'],
  ])('refuses %s', (_, text) => {
    expect(() => parse(text)).toThrowError(expect.objectContaining({ code: 'ERR_FILE_FORMAT' }));
  });

  test('says where, what was expected, and what was found', () => {
    expect(() => parse('{"a": 1, "a": 2}')).toThrowError(
      `'test.json' is not valid JSON: expected no second key "a" at character 9, found "\\"a\\": 2}"`,
    );
  });

  test('treats __proto__ as a key', () => {
    const value = parse('{"__proto__": {"polluted": true}}') as JsonObject;
    expect(Object.keys(value)).toEqual(['__proto__']);
    for (const name of ['toString', 'constructor', 'hasOwnProperty']) expect(name in value).toBe(false);
    expect(({} as Record<string, unknown>)['polluted']).toBeUndefined();
  });

  test('limits the depth, and does not overflow the stack', () => {
    expect(parse('['.repeat(64) + ']'.repeat(64))).toHaveLength(1);
    expect(() => parse('['.repeat(65) + ']'.repeat(65))).toThrowError(/64 levels/);
    expect(() => parse('{"a":'.repeat(100_000))).toThrowError(/64 levels/);
    expect(() => parse('[[1]]', { maxDepth: 1 })).toThrowError(/1 levels/);
  });

  test.each(['-1', '-0', '1.0', '1e2', '9007199254740992', '18446744073709551616'])(
    'refuses %s where unsigned integers are wanted',
    (text) => {
      expect(() => parse(text, { numbers: 'unsignedIntegers', code: 'ERR_SAFETENSORS' })).toThrowError(
        expect.objectContaining({ code: 'ERR_SAFETENSORS' }),
      );
    },
  );

  test('takes safe integers where unsigned integers are wanted', () => {
    expect(parse('[0, 9007199254740991]', { numbers: 'unsignedIntegers' })).toEqual([0, Number.MAX_SAFE_INTEGER]);
  });
});
