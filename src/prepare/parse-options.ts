import { z } from 'zod';
import { described } from '../arguments.js';
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
  // An object without keys, as far as zod can see.
  if (value instanceof Promise) {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `${name}: expected an object, got ${described(value)}`);
  }
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const problems = problemsOf(schema, value, [name], parsed.error);
  for (const { path, unknownKey, known } of problems) {
    if (unknownKey !== undefined) throw unknownOption(path.join('.'), unknownKey, known);
  }
  const told = problems.map(({ path, message, value: got }) => `${path.join('.')}: ${message}, got ${describe(got)}`);
  throw new LimbeckError('ERR_INVALID_ARGUMENT', told.join('; '));
}

interface Problem {
  readonly path: readonly PropertyKey[];
  readonly message: string;
  readonly value: unknown;
  readonly unknownKey?: string | undefined;
  /** Keys that are known where that one is not. */
  readonly known: readonly string[];
}

/** What is wrong with a value; of a union, with the choice that was meant: zod tells of any choice, or of none. */
function problemsOf(
  schema: z.ZodType,
  value: unknown,
  path: readonly PropertyKey[],
  error: z.ZodError | undefined,
): Problem[] {
  const told = new Set<string>();
  return (error?.issues ?? []).flatMap((issue): Problem[] => {
    const { at, steps } = schemaAt(schema, issue.path);
    const problem = {
      path: [...path, ...issue.path],
      message: issue.message,
      value: valueAt(value, issue.path),
      unknownKey: issue.code === 'unrecognized_keys' ? issue.keys[0] : undefined,
      known: keysOf(at),
    };
    if (!(at instanceof z.ZodUnion)) return [problem];
    // The issues of a union are of one value, whose problems are told once.
    const union = steps.join('.');
    if (told.has(union)) return [];
    told.add(union);
    const inUnion = valueAt(value, steps);
    const choice = meantChoice(at, inUnion);
    if (choice === undefined) {
      return [{ ...problem, path: [...path, ...steps], value: inUnion, unknownKey: keysIn(inUnion)[0] }];
    }
    const problems = problemsOf(choice, inUnion, [...path, ...steps], choice.safeParse(inUnion).error);
    // Where the choice has none, it was a check of the union itself.
    return problems.length === 0 ? [problem] : problems;
  });
}

/** The choice that has most of the keys that were written, or the only one of the value's kind. */
function meantChoice(union: z.ZodUnion, value: unknown): z.ZodType | undefined {
  const choices = union.options as readonly z.ZodType[];
  if (!isObject(value)) {
    const others = choices.filter((choice) => !(unwrap(choice) instanceof z.ZodObject));
    return others.length > 1 ? undefined : (others[0] ?? choices[0]);
  }
  const known = (choice: z.ZodType) => keysIn(value).filter((key) => keysOf(choice).includes(key)).length;
  const best = choices.reduce((most, choice) => (known(choice) > known(most) ? choice : most));
  return known(best) === 0 ? undefined : best;
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

/** The keys that the object at a path of a schema may have; none where it is no object. */
export function keysAt(schema: z.ZodType, path: readonly PropertyKey[]): readonly string[] {
  return keysOf(schemaAt(schema, path).at);
}

/** The schema at a path, or the union that it goes through first, with the steps to there. */
function schemaAt(
  schema: z.ZodType,
  path: readonly PropertyKey[],
): { readonly at: z.ZodType | undefined; readonly steps: readonly PropertyKey[] } {
  let at: z.ZodType | undefined = unwrap(schema);
  for (const [i, step] of path.entries()) {
    if (at instanceof z.ZodUnion) return { at, steps: path.slice(0, i) };
    const next: unknown =
      at instanceof z.ZodObject
        ? at.shape[String(step)]
        : at instanceof z.ZodArray
          ? at.element
          : at instanceof z.ZodRecord
            ? at.valueType
            : undefined;
    at = next instanceof z.ZodType ? unwrap(next) : undefined;
  }
  return { at, steps: path };
}

/** The keys that an object may have; of a union, those of any choice. */
function keysOf(schema: z.ZodType | undefined): string[] {
  const at = schema && unwrap(schema);
  if (at instanceof z.ZodUnion) return (at.options as readonly z.ZodType[]).flatMap(keysOf);
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

function keysIn(value: unknown): string[] {
  return isObject(value) ? Object.keys(value) : [];
}

function isObject(value: unknown): value is object {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function describe(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value.slice(0, 80));
  if (Array.isArray(value))
    return value.length <= 10 && value.every((one) => typeof one === 'number')
      ? `[${value.join(', ')}]`
      : `an array of ${value.length}`;
  return described(value);
}
