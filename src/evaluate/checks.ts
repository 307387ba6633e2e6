import { LimbeckError } from '../errors.js';

/** @throws `ERR_INVALID_ARGUMENT` unless `value` is an integer of at least `min`. */
export function checkInteger(name: string, value: number, min: number): void {
  if (!Number.isSafeInteger(value) || value < min) {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `${name} must be an integer of at least ${min}, got ${value}`);
  }
}

/** @throws `ERR_EMPTY_DATA` when there is nothing to evaluate. */
export function checkNotEmpty(name: string, values: ArrayLike<unknown>): void {
  if (values.length === 0) {
    throw new LimbeckError(
      'ERR_EMPTY_DATA',
      `${name} is empty: evaluation needs at least one entry, check the test split`,
    );
  }
}
