/** Rankings that a teacher outside this engine made, read from a file and checked row by row. */
import { z } from 'zod';
import { checkObject, checkPath } from '../arguments.js';
import { loadBinding } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { readTextFile } from '../formats/files.js';
import { createPacer } from '../formats/pacer.js';
import { readSafetensors, type WritableTensor, writeSafetensors } from '../formats/safetensors.js';
import { findColumn } from '../prepare/columns.js';
import { checkDataset, type Dataset, trainSequences } from '../prepare/dataset.js';
import { type Hooks, throwIfAborted } from '../prepare/hooks.js';
import { parseOptions } from '../prepare/parse-options.js';

const column = z.string().min(1);

const importRankingsOptionsSchema = z.strictObject({
  /** A UTF-8 file of at most 256 MiB: `.tsv`, `.csv` (without quotes), `.jsonl` or `.ndjson`. */
  path: z.string().min(1),
  /** @defaultValue by the name of the file */
  format: z.enum(['tsv', 'csv', 'jsonl']).optional(),
  /** Columns of the file, or keys of its objects. Each row names a user or a history. */
  columns: z
    .strictObject({
      /** Whose training history was ranked after. */
      user: column.default('user'),
      /** The items that were ranked after, oldest first. */
      history: column.default('history'),
      /** Ranked items, best first. */
      items: column.default('items'),
      /** A score for each of them, such as a log-probability; more is better. */
      scores: column.default('scores'),
    })
    .prefault({}),
  /** What stands between the values of a list in TSV and CSV; white space where it is not given. */
  listSeparator: z.string().min(1).optional(),
  /** Other names of the items, such as those of a catalogue that the teacher was shown: name → id of the data. */
  itemIds: z.record(z.string(), z.string()).optional(),
  /** Rows whose `column` is not `equals` belong to other experiments and are left out. */
  where: z.strictObject({ column, equals: z.string() }).optional(),
  /** Rows that cannot be used are left out and counted, instead of refusing the file. */
  skipBroken: z.boolean().default(false),
});

export type ImportRankingsOptions = z.input<typeof importRankingsOptionsSchema>;
type Settings = z.output<typeof importRankingsOptionsSchema>;

/** What became of the rows: rowsRead = brokenRows + unknownUsers + unknownHistories + tooShort + rankings. */
export interface RankingsReport {
  readonly path: string;
  /** Rows that `where` takes. */
  readonly rowsRead: number;
  readonly brokenRows: number;
  /** Users that the data does not have, or that have no training history. */
  readonly unknownUsers: number;
  /** Histories in which no item is in the catalogue. */
  readonly unknownHistories: number;
  /** Fewer than two ranked items were left. */
  readonly tooShort: number;
  readonly rankings: number;
  /** Ranked items left out because the catalogue does not have them, or because the history does. */
  readonly unknownItems: number;
  readonly seenItems: number;
  /** Mean length of the lists that are left. */
  readonly meanLength: number;
}

/** Ranked items after histories; ids are indices of the catalogue. */
export interface Rankings {
  /** CRC-32C of the catalogue's ids: rankings over another one are refused. */
  readonly catalogue: string;
  readonly histories: Int32Array; // end to end, oldest first
  readonly historyOffsets: Int32Array; // [R + 1]
  /** Best first. */
  readonly items: Int32Array; // end to end
  readonly itemOffsets: Int32Array; // [R + 1]
  /** One an item, falling; missing where the file has none. */
  readonly scores?: Float32Array;
}

/** @throws LimbeckError ERR_INVALID_ARGUMENT for what is none */
export function checkRankings(rankings: Rankings): void {
  checkObject(rankings, 'rankings', 'rankings, as importRankings() gives', ['catalogue', ...ARRAYS]);
}

/** A row taken apart, its ids as they are written. */
interface Row {
  readonly user: string | undefined;
  readonly history: readonly string[] | undefined;
  readonly items: readonly string[];
  readonly scores: readonly number[] | undefined;
}

const MAX_REASONS = 5;

/**
 * Reads rankings over the catalogue of a dataset. A row that names a user is taken to be ranked after the user's training
 * history; if the teacher saw later items, what is learned from it cannot be measured on this split.
 *
 * @throws LimbeckError ERR_FILE_FORMAT for broken rows (with line and reason; see `skipBroken`), ERR_COLUMN_NOT_FOUND,
 * ERR_EMPTY_DATA when no ranking is left, ERR_FILE_NOT_FOUND, ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION, ERR_ABORTED, ERR_IO
 */
export async function importRankings(
  dataset: Dataset,
  options: ImportRankingsOptions,
  hooks: Hooks = {},
): Promise<{ rankings: Rankings; report: RankingsReport }> {
  const settings = parseOptions(importRankingsOptionsSchema, options, 'rankings');
  checkDataset(dataset);
  const { path } = settings;
  const lines = (await readTextFile(path)).split(/\r\n|\n/);
  const read = rowReader(settings, lines);
  const users = trainingHistories(dataset);
  const indexOf = new Map(dataset.items.map(({ id }, index) => [id, index]));
  const otherNames = new Map(Object.entries(settings.itemIds ?? {}));
  const idOf = (name: string) => otherNames.get(name) ?? name;
  const itemOf = (name: string) => indexOf.get(idOf(name));

  const counts = { rowsRead: 0, brokenRows: 0, unknownUsers: 0, unknownHistories: 0, tooShort: 0 };
  const dropped = { unknownItems: 0, seenItems: 0 };
  const reasons: string[] = [];
  const histories: number[] = [];
  const historyOffsets = [0];
  const items: number[] = [];
  const itemOffsets = [0];
  const scores: number[] = [];
  let hasScores: boolean | undefined;
  const pause = createPacer();
  for (const [index, line] of lines.entries()) {
    await pause();
    throwIfAborted(hooks.signal);
    if (index < read.firstRow || line.trim() === '') continue;
    const row = read.row(line);
    if (row === undefined) continue;
    counts.rowsRead++;
    const problem = typeof row === 'string' ? row : problemOf(row, hasScores, idOf);
    if (typeof row === 'string' || problem !== undefined) {
      counts.brokenRows++;
      if (reasons.length < MAX_REASONS) reasons.push(`line ${index + 1}: ${problem}`);
      continue;
    }
    hasScores ??= row.scores !== undefined;
    const known = row.history?.map(itemOf).filter((item) => item !== undefined);
    const history = known ?? users(row.user ?? '');
    if (history.length === 0) {
      if (known === undefined) counts.unknownUsers++;
      else counts.unknownHistories++;
      continue;
    }
    const seen = new Set(history);
    const kept = row.items.map((name, place) => ({ item: itemOf(name), score: row.scores?.[place] ?? 0 }));
    const unseen = kept.filter(({ item }) => item !== undefined && !seen.has(item));
    dropped.unknownItems += kept.filter(({ item }) => item === undefined).length;
    dropped.seenItems += kept.filter(({ item }) => item !== undefined && seen.has(item)).length;
    if (unseen.length < 2) {
      counts.tooShort++;
      continue;
    }
    for (const item of history) histories.push(item);
    historyOffsets.push(histories.length);
    for (const { item, score } of unseen) {
      items.push(item ?? 0);
      if (hasScores) scores.push(score);
    }
    itemOffsets.push(items.length);
  }
  if (reasons.length > 0 && !settings.skipBroken) {
    throw new LimbeckError(
      'ERR_FILE_FORMAT',
      `'${path}': ${counts.brokenRows} of ${counts.rowsRead} rows cannot be used: ${reasons.join('; ')}. ` +
        'Mend them, or leave them out with skipBroken',
    );
  }
  const numRankings = itemOffsets.length - 1;
  if (numRankings === 0) {
    const where = Object.entries({ ...counts, ...dropped }).filter(([, count]) => count > 0);
    throw new LimbeckError(
      'ERR_EMPTY_DATA',
      `'${path}': no ranking is left (${where.map(([name, count]) => `${name} ${count}`).join(', ') || 'it has no rows'}). ` +
        'Are users and items those of the data?',
    );
  }
  const rankings: Rankings = {
    catalogue: catalogueOf(dataset),
    histories: Int32Array.from(histories),
    historyOffsets: Int32Array.from(historyOffsets),
    items: Int32Array.from(items),
    itemOffsets: Int32Array.from(itemOffsets),
    ...(hasScores && { scores: Float32Array.from(scores) }),
  };
  const report = { path, ...counts, rankings: numRankings, ...dropped, meanLength: items.length / numRankings };
  return { rankings, report };
}

/** Eight hexadecimal digits that tell catalogues apart. */
function catalogueOf({ items }: Dataset): string {
  const ids = JSON.stringify(items.map(({ id }) => id));
  return loadBinding().crc32c(new TextEncoder().encode(ids)).toString(16).padStart(8, '0');
}

/** Training histories by user id; empty for a user without one. */
function trainingHistories(dataset: Dataset): (user: string) => number[] {
  const { users, sequences, sequenceOffsets } = trainSequences(dataset);
  const places = new Map(Array.from(users, (user, s) => [dataset.users[user] ?? '', s]));
  return (user) => {
    const s = places.get(user);
    return s === undefined ? [] : Array.from(sequences.subarray(sequenceOffsets[s], sequenceOffsets[s + 1]));
  };
}

/** Why a row cannot be used. */
function problemOf(
  { user, history, items, scores }: Row,
  hasScores: boolean | undefined,
  idOf: (name: string) => string,
): string | undefined {
  if (user === undefined && history === undefined) return 'it names neither a user nor a history';
  if (items.length === 0) return 'it ranks no items';
  const ranked = new Set<string>();
  const repeated = items.find((name) => ranked.size === ranked.add(idOf(name)).size);
  if (repeated !== undefined) {
    const [name, id] = [repeated, idOf(repeated)].map((text) => JSON.stringify(text.slice(0, 80)));
    return `it ranks ${id} twice${name === id ? '' : `, the second time as ${name}`}`;
  }
  if (hasScores !== undefined && hasScores !== (scores !== undefined)) {
    return hasScores ? 'it has no scores, and rows before it have' : 'it has scores, and rows before it have none';
  }
  if (scores === undefined) return undefined;
  if (scores.length !== items.length) return `it ranks ${items.length} items and has ${scores.length} scores`;
  if (!scores.every(Number.isFinite)) return 'a score is not a finite number';
  const rising = scores.findIndex((score, place) => place > 0 && score > (scores[place - 1] ?? 0));
  return rising < 0 ? undefined : `the score of place ${rising + 1} is higher than that of the place before`;
}

interface RowReader {
  /** Lines before it are no rows. */
  readonly firstRow: number;
  /** What a line says, why it cannot be read, or undefined for a row of another experiment. */
  row(line: string): Row | string | undefined;
}

function rowReader(settings: Settings, lines: readonly string[]): RowReader {
  const guessed = /\.(tsv|csv|jsonl|ndjson)$/i.exec(settings.path)?.[1]?.toLowerCase();
  const format = settings.format ?? (guessed === 'ndjson' ? 'jsonl' : guessed);
  if (format === undefined) {
    const message = `cannot tell the format of ${settings.path} from its name; set format to tsv, csv or jsonl`;
    throw new LimbeckError('ERR_INVALID_ARGUMENT', message);
  }
  return format === 'jsonl' ? jsonRows(settings) : tableRows(settings, lines[0] ?? '', format === 'csv' ? ',' : '\t');
}

function tableRows({ path, columns, listSeparator, where }: Settings, header: string, delimiter: string): RowReader {
  const names = header.split(delimiter);
  const optional = (name: string) => (names.includes(name) ? findColumn(name, names, path) : undefined);
  const itemsAt = findColumn(columns.items, names, path);
  const historyAt = optional(columns.history);
  // Without a history, the user column must be there.
  const userAt = historyAt === undefined ? findColumn(columns.user, names, path) : optional(columns.user);
  const scoresAt = optional(columns.scores);
  const whereAt = where && findColumn(where.column, names, path);
  const listOf = (text: string) =>
    text.split(listSeparator ?? /\s+/).flatMap((value) => (value.trim() === '' ? [] : [value.trim()]));
  return {
    firstRow: 1,
    row: (line) => {
      const values = line.split(delimiter);
      if (values.length !== names.length) return `it has ${values.length} columns, the header ${names.length}`;
      if (whereAt !== undefined && values[whereAt] !== where?.equals) return undefined;
      const at = (place: number | undefined) => (place === undefined ? undefined : values[place]?.trim() || undefined);
      const history = at(historyAt);
      const scores = at(scoresAt);
      return {
        user: at(userAt),
        history: history === undefined ? undefined : listOf(history),
        items: listOf(at(itemsAt) ?? ''),
        scores: scores === undefined ? undefined : listOf(scores).map(Number),
      };
    },
  };
}

const jsonId = z.union([z.string(), z.number()]).transform(String);

function jsonRows({ columns, where }: Settings): RowReader {
  const row = z.object({
    user: jsonId.optional(),
    history: z.array(jsonId).optional(),
    items: z.array(jsonId),
    scores: z.array(z.number()).optional(),
  });
  return {
    firstRow: 0,
    row: (line) => {
      let value: unknown;
      try {
        value = JSON.parse(line);
      } catch {
        return `not JSON: ${JSON.stringify(line.slice(0, 80))}`;
      }
      if (typeof value !== 'object' || value === null || Array.isArray(value)) return 'not a JSON object';
      const object = value as Record<string, unknown>;
      if (where !== undefined && String(object[where.column]) !== where.equals) return undefined;
      const named = Object.fromEntries(Object.entries(columns).map(([key, name]) => [key, object[name]]));
      const parsed = row.safeParse(named);
      if (parsed.success) {
        const { user, history, items, scores } = parsed.data;
        return { user, history, items, scores };
      }
      const issue = parsed.error.issues[0];
      const [key, ...rest] = issue?.path ?? [];
      return `${[columns[key as keyof typeof columns] ?? key, ...rest].join('.')}: ${issue?.message}`;
    },
  };
}

const FORMAT = { format: 'limbeck-rankings', version: '1' };
const ARRAYS = ['histories', 'historyOffsets', 'items', 'itemOffsets'] as const;

/** Writes rankings to one safetensors file. @throws LimbeckError ERR_NO_SPACE, ERR_IO */
export async function saveRankings(path: string, rankings: Rankings): Promise<void> {
  checkRankings(rankings);
  const tensors: [string, WritableTensor][] = ARRAYS.map((name) => {
    const data = rankings[name];
    return [name, { shape: [data.length], data }];
  });
  const { scores, catalogue } = rankings;
  if (scores) tensors.push(['scores', { shape: [scores.length], data: scores }]);
  await writeSafetensors(path, tensors, { ...FORMAT, catalogue });
}

/**
 * Reads what {@link saveRankings} wrote.
 *
 * @param dataset that the rankings must be over
 * @throws LimbeckError ERR_CHECKPOINT_MISMATCH for another catalogue; ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT, ERR_SAFETENSORS,
 * ERR_IO
 */
export async function loadRankings(path: string, dataset: Dataset): Promise<Rankings> {
  checkPath(path, 'path');
  checkDataset(dataset);
  const { tensors, metadata } = await readSafetensors(path);
  if (metadata['format'] !== FORMAT.format || metadata['version'] !== FORMAT.version) {
    throw new LimbeckError('ERR_FILE_FORMAT', `'${path}': expected rankings that limbeck knowledge import wrote`);
  }
  if (metadata['catalogue'] !== catalogueOf(dataset)) {
    throw new LimbeckError(
      'ERR_CHECKPOINT_MISMATCH',
      `'${path}' ranks the items of another catalogue than the ${dataset.items.length} of the data. Import it again.`,
    );
  }
  const integers = (name: (typeof ARRAYS)[number]): Int32Array => {
    const data = tensors.get(name)?.data;
    if (data instanceof Int32Array) return data;
    throw new LimbeckError('ERR_FILE_FORMAT', `'${path}': expected an int32 tensor '${name}'`);
  };
  const scores = tensors.get('scores')?.data;
  const rankings: Rankings = {
    catalogue: metadata['catalogue'],
    histories: integers('histories'),
    historyOffsets: integers('historyOffsets'),
    items: integers('items'),
    itemOffsets: integers('itemOffsets'),
    ...(scores instanceof Float32Array && { scores }),
  };
  checkArrays(path, rankings, dataset.items.length);
  return rankings;
}

function checkArrays(
  path: string,
  { histories, historyOffsets, items, itemOffsets, scores }: Rankings,
  numItems: number,
): void {
  const ascends = (offsets: Int32Array, last: number, least: number) =>
    offsets[0] === 0 &&
    offsets.at(-1) === last &&
    offsets.every((offset, i) => i === 0 || offset >= (offsets[i - 1] ?? 0) + least);
  const isItem = (item: number) => item >= 0 && item < numItems;
  const areDistinct = (end: number, row: number) => {
    const ranked = items.subarray(itemOffsets[row], end);
    return new Set(ranked).size === ranked.length;
  };
  const isWhole =
    historyOffsets.length === itemOffsets.length &&
    ascends(historyOffsets, histories.length, 1) &&
    ascends(itemOffsets, items.length, 2) &&
    histories.every(isItem) &&
    items.every(isItem) &&
    itemOffsets.subarray(1).every(areDistinct) &&
    (scores === undefined || (scores.length === items.length && scores.every(Number.isFinite)));
  if (!isWhole)
    throw new LimbeckError('ERR_FILE_FORMAT', `'${path}': its arrays do not belong together. Import it again.`);
}
