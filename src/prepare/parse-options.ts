import { z } from 'zod';
import { LimbeckError } from '../errors.js';
import { nearestName } from './nearest.js';

/**
 * Checks what a person wrote against a schema.
 *
 * @param name what the value is called in messages, e.g. `prepare`
 * @throws ERR_UNKNOWN_OPTION for a key that the schema does not have, with the nearest known key
 * @throws ERR_INVALID_ARGUMENT for a wrong type or range, naming every wrong key
 */
export function parseOptions<Schema extends z.ZodType>(schema: Schema, value: unknown, name: string): z.output<Schema> {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  for (const issue of parsed.error.issues) {
    if (issue.code === 'unrecognized_keys') throw unknownKey(schema, issue.path, issue.keys[0] ?? '', name);
  }
  const problems = parsed.error.issues.map((issue) => {
    return `${[name, ...issue.path].join('.')}: ${issue.message}, got ${describe(valueAt(value, issue.path))}`;
  });
  throw new LimbeckError('ERR_INVALID_ARGUMENT', problems.join('; '));
}

function unknownKey(schema: z.ZodType, path: readonly PropertyKey[], key: string, name: string): LimbeckError {
  return unknownOption([name, ...path].join('.'), key, knownKeys(schema, path));
}

/**
 * ERR_UNKNOWN_OPTION for a key that an object of options does not have, with the nearest that it has.
 *
 * @param name what the object is called in messages
 */
export function unknownOption(name: string, key: string, known: readonly string[]): LimbeckError {
  const nearest = nearestName(key, known);
  const hint = nearest === undefined ? `The options here are ${known.join(', ')}.` : `Did you mean "${nearest}"?`;
  return new LimbeckError('ERR_UNKNOWN_OPTION', `${name} has no option "${key}". ${hint}`);
}

/** The keys that the object at `path` may have. */
function knownKeys(schema: z.ZodType, path: readonly PropertyKey[]): string[] {
  let at = unwrap(schema);
  for (const step of path) {
    const next = at instanceof z.ZodObject ? at.shape[String(step)] : undefined;
    if (!(next instanceof z.ZodType)) return [];
    at = unwrap(next);
  }
  return at instanceof z.ZodObject ? Object.keys(at.shape) : [];
}

function unwrap(schema: z.ZodType): z.ZodType {
  let at: unknown = schema;
  while (at instanceof z.ZodOptional || at instanceof z.ZodDefault || at instanceof z.ZodPrefault) at = at.unwrap();
  return at as z.ZodType;
}

function valueAt(value: unknown, path: readonly PropertyKey[]): unknown {
  let at = value;
  for (const step of path) {
    if (typeof at !== 'object' || at === null) return undefined;
    at = (at as Record<PropertyKey, unknown>)[step];
  }
  return at;
}

function describe(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value.slice(0, 80));
  if (Array.isArray(value)) return `an array of ${value.length}`;
  if (typeof value === 'object' && value !== null) return 'an object';
  return String(value);
}
