/** What TypeScript promises of arguments, checked for callers without it; most often an `await` was forgotten. */
import { LimbeckError } from './errors.js';

/**
 * Refuses what is no path: no text, an empty one, or one with a NUL, where the system would end it.
 *
 * @param name of the argument in messages
 * @throws LimbeckError ERR_INVALID_ARGUMENT
 */
export function checkPath(path: unknown, name: string): void {
  if (typeof path === 'string' && path !== '' && !path.includes('\0')) return;
  const got =
    path === '' ? 'an empty text' : typeof path === 'string' ? JSON.stringify(path.slice(0, 80)) : described(path);
  throw new LimbeckError('ERR_INVALID_ARGUMENT', `${name}: expected a path as text, got ${got}`);
}

/**
 * @param name of the argument in messages
 * @throws LimbeckError ERR_INVALID_ARGUMENT
 */
export function checkInstance(
  value: unknown,
  type: { readonly name: string; [Symbol.hasInstance](value: unknown): boolean },
  name: string,
): void {
  if (value instanceof type) return;
  throw new LimbeckError(
    'ERR_INVALID_ARGUMENT',
    `${name}: expected ${withArticle(type.name)}, got ${described(value)}`,
  );
}

/**
 * @param name of the argument in messages
 * @param expected what the argument is, e.g. `a dataset, as prepareDataset() gives`
 * @param keys those without which it is none
 * @throws LimbeckError ERR_INVALID_ARGUMENT
 */
export function checkObject<T extends object>(
  value: T,
  name: string,
  expected: string,
  keys: readonly (keyof T & string)[] = [],
): void {
  const given: unknown = value;
  const isObject = typeof given === 'object' && given !== null && !Array.isArray(given) && !(given instanceof Promise);
  const missing = isObject ? keys.find((key) => value[key] === undefined || value[key] === null) : undefined;
  if (isObject && missing === undefined) return;
  const got = missing === undefined ? described(given) : `${described(given)} without '${missing}'`;
  throw new LimbeckError('ERR_INVALID_ARGUMENT', `${name}: expected ${expected}, got ${got}`);
}

/**
 * @param name of the argument in messages
 * @param expected what the argument is, e.g. `a list of texts`
 * @throws LimbeckError ERR_INVALID_ARGUMENT
 */
export function checkList(value: unknown, name: string, expected: string): void {
  if (Array.isArray(value)) return;
  throw new LimbeckError('ERR_INVALID_ARGUMENT', `${name}: expected ${expected}, got ${described(value)}`);
}

/** A value in messages about what it should have been. */
export function described(value: unknown): string {
  if (value === undefined || value === null || ['number', 'boolean'].includes(typeof value)) return String(value);
  if (Array.isArray(value)) return 'a list';
  if (value instanceof Promise) return 'a Promise (is an await missing?)';
  if (typeof value !== 'object') return `a ${typeof value}`;
  const name: string = Object.getPrototypeOf(value)?.constructor?.name || 'Object';
  if (name === 'Object') return 'an object';
  return withArticle(name);
}

function withArticle(name: string): string {
  return `${/^[AEIO]/.test(name) ? 'an' : 'a'} ${name}`;
}
