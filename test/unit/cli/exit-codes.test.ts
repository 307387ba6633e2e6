import { describe, expect, it } from 'vitest';
import { codeOf, exitCodeOf } from '../../../src/cli/exit-codes.js';
import { LimbeckError, type LimbeckErrorCode } from '../../../src/errors.js';

describe('exitCodeOf', () => {
  it.each<[number, LimbeckErrorCode[]]>([
    [1, ['ERR_INTERNAL', 'ERR_DISPOSED', 'ERR_BUSY', 'ERR_SHAPE_MISMATCH']],
    [2, ['ERR_INVALID_ARGUMENT', 'ERR_UNKNOWN_OPTION']],
    [
      3,
      [
        'ERR_FILE_NOT_FOUND',
        'ERR_FILE_FORMAT',
        'ERR_SAFETENSORS',
        'ERR_CHECKPOINT_MISMATCH',
        'ERR_TOKENIZER',
        'ERR_COLUMN_NOT_FOUND',
        'ERR_EMPTY_DATA',
        'ERR_UNSUPPORTED_MODEL',
        'ERR_UNKNOWN_ITEMS',
        'ERR_NOT_FINITE',
        'ERR_CORRUPT_LOG',
      ],
    ],
    [4, ['ERR_OUT_OF_MEMORY', 'ERR_NO_SPACE', 'ERR_IO', 'ERR_LOCKED', 'ERR_OVERLOADED']],
    [5, ['ERR_NATIVE_ADDON', 'ERR_CUDA_UNAVAILABLE', 'ERR_MISSING_DEPENDENCY']],
    [130, ['ERR_ABORTED']],
  ])('is %i for %j', (exitCode, codes) => {
    for (const code of codes) expect(exitCodeOf(new LimbeckError(code, '')), code).toBe(exitCode);
  });

  it('is 1 for errors that are not ours', () => {
    const nodes = Object.assign(new Error('x'), { code: 'EPERM' });
    expect([nodes, new TypeError('x'), 'text', undefined].map(exitCodeOf)).toEqual([1, 1, 1, 1]);
  });
});

describe('codeOf', () => {
  it('knows an error of ours that crossed from the addon, without its class', () => {
    expect(codeOf(Object.assign(new Error('x'), { code: 'ERR_BUSY' }))).toBe('ERR_BUSY');
  });

  it('does not take a name that every object has for a code', () => {
    expect(codeOf(Object.assign(new Error('x'), { code: 'toString' }))).toBeUndefined();
  });
});
