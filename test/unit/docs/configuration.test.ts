import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import { z } from 'zod';
import { distillOptionsSchema } from '../../../src/engine/options.js';
import { qualitySettings } from '../../../src/engine/quality-options.js';
import { createEngine } from '../../../src/engine.js';
import { importRankings } from '../../../src/knowledge/rankings.js';
import { codesIn, readDocument, tablesOf } from '../../support/markdown.js';

const document = readDocument('configuration.md');
const root = join(import.meta.dirname, '../../..');

/** Paths of options that have no options below them, with what is written for each where it is left out. */
type Options = Map<string, unknown>;

/** Tables that begin with "Of `path`…:" are about the options below these paths. */
const documented = documentedOptions();

function documentedOptions(): Map<string, string> {
  const defaults = new Map<string, string>();
  for (const { lead, rows } of tablesOf(document)) {
    if (!/^Of (a |each of )?`.*:$/.test(lead)) continue;
    for (const path of codesIn(lead)) {
      for (const [names = '', , byDefault = ''] of rows) {
        for (const name of codesIn(names)) defaults.set(path === 'distill' ? name : `${path}.${name}`, byDefault);
      }
    }
  }
  return defaults;
}

function optionsOf(schema: z.ZodType, path = '', options: Options = new Map()): Options {
  let at: unknown = schema;
  let byDefault: unknown;
  while (at instanceof z.ZodOptional || at instanceof z.ZodDefault || at instanceof z.ZodPrefault) {
    // The outer default counts: a shape that others share may have one of its own.
    if (at instanceof z.ZodDefault) byDefault ??= at.def.defaultValue;
    at = at.unwrap();
  }
  if (at instanceof z.ZodObject) {
    for (const [key, value] of Object.entries(at.shape)) {
      optionsOf(value as z.ZodType, path === '' ? key : `${path}.${key}`, options);
    }
  } else if (at instanceof z.ZodUnion) {
    const choices = at.options as readonly z.ZodType[];
    const isSchedule = choices.some((choice) => choice instanceof z.ZodNumber);
    if (isSchedule) options.set(path, byDefault);
    for (const choice of choices) {
      if (choice instanceof z.ZodObject) optionsOf(choice, isSchedule ? 'schedule' : path, options);
    }
  } else {
    options.set(path, byDefault);
  }
  return options;
}

const options = optionsOf(distillOptionsSchema);
const written = { output: 'out', data: { interactions: { path: 'a.csv', columns: { user: 'user', item: 'item' } } } };
const leastSettings = distillOptionsSchema.parse(written);

function valueAt(value: unknown, path: string): unknown {
  return path
    .split('.')
    .reduce<unknown>((at, key) => (typeof at === 'object' && at !== null ? Reflect.get(at, key) : undefined), value);
}

function says(text: string, value: unknown): boolean {
  const wanted = Array.isArray(value) ? value.join(', ') : String(value);
  const literal = wanted.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
  return new RegExp(`(^|[^\\w.])${literal}($|[^\\w.])`).test(text);
}

test('every option of a distillation is documented, and no other', () => {
  const ofOtherCalls = /^(createEngine|bench|engine\.importRankings)\./;
  const known = [...documented.keys()].filter((path) => !ofOtherCalls.test(path));
  expect([...options.keys()].filter((path) => !documented.has(path))).toEqual([]);
  expect(known.filter((path) => !options.has(path))).toEqual([]);
  expect(options.size).toBeGreaterThan(200);
});

test('the defaults of the schema are those of the document', () => {
  const wrong = [...options].flatMap(([path, byDefault]) => {
    const text = documented.get(path) ?? '';
    const isWritten = path === 'output' || valueAt(written, path) !== undefined;
    const values = [byDefault, isWritten ? undefined : valueAt(leastSettings, path)];
    const missing = values.filter((value) => value !== undefined && !says(text, value));
    return missing.length === 0 ? [] : [`${path}: expected ${missing.join(' and ')} in "${text}"`];
  });
  expect(wrong).toEqual([]);
});

/** An object of options that is no export tells its keys when it is given one that it cannot have. */
const STRANGE = 'qqqqqqqqqqqqqqqqqqqqqqqq';

describe('options of other calls', () => {
  test.each<[string, () => unknown, readonly string[]]>([
    ['createEngine', () => createEngine({ [STRANGE]: 1 } as object), []],
    ['bench', () => qualitySettings({ ...written, [STRANGE]: 1 } as never), Object.keys(distillOptionsSchema.shape)],
    ['bench.itemNeighbors', () => qualitySettings({ ...written, itemNeighbors: { [STRANGE]: 1 } } as never), []],
    ['engine.importRankings', () => importRankings({} as never, { path: 'a', [STRANGE]: 1 } as never), []],
    [
      'engine.importRankings.columns',
      () => importRankings({} as never, { path: 'a', columns: { [STRANGE]: 1 } } as never),
      [],
    ],
  ])('of %s', async (path, call, documentedAbove) => {
    const message = await Promise.resolve()
      .then(call)
      .then(String, (error: Error) => error.message);
    const keys = /The options here are (.+)\./.exec(message)?.[1]?.split(', ') ?? [];
    expect(keys).not.toEqual([]);
    const isDocumented = (key: string) =>
      [...documented.keys()].some((known) => known === `${path}.${key}` || known.startsWith(`${path}.${key}.`));
    const own = keys.filter((key) => !documentedAbove.includes(key));
    expect(own.filter((key) => !isDocumented(key))).toEqual([]);
    const prefix = `${path}.`;
    const below = [...documented.keys()].filter((known) => known.startsWith(prefix));
    expect(below.filter((known) => !own.includes(known.slice(prefix.length).split('.')[0] ?? ''))).toEqual([]);
  });
});

test('the example is a distillation, and names every option', () => {
  const [, example = ''] = /```yaml\n(.*?)```/s.exec(document) ?? [];
  expect(distillOptionsSchema.safeParse(parse(example)).error).toBeUndefined();
  const names = [...options.keys()].map((path) => path.split('.').at(-1) ?? '');
  expect(names.filter((name) => !new RegExp(`\\b${name}\\b`).test(example))).toEqual([]);
});

test('every environment variable that is read is documented', () => {
  const read = new Set<string>();
  for (const folder of ['src', 'native', 'scripts']) {
    for (const file of readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })) {
      if (!/\.(ts|mjs|cc|h)$/.test(file) || file.includes('emulator')) continue;
      const text = readFileSync(join(root, folder, file), 'utf8');
      const reading = /\.(cc|h)$/.test(file) ? /getenv\("(\w+)/g : /\benv(?:\.|\[')(\w+)/g;
      for (const [, name = ''] of text.matchAll(reading)) read.add(name);
      for (const [, names = ''] of text.matchAll(/\{([^{}]*)\} = process\.env/g)) {
        for (const name of names.split(',')) read.add(name.split('=')[0]?.trim() ?? '');
      }
    }
  }
  expect(read).toContain('LIMBECK_DEBUG');
  expect(read).toContain('HF_HOME');
  expect(read).toContain('LIMBECK_FORCE_ISA');
  const [, section = ''] = document.split('## Environment variables');
  expect([...read].filter((name) => !codesIn(section).includes(name))).toEqual([]);
});
