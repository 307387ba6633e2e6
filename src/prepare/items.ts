import type { DuckDBListValue } from '@duckdb/node-api';
import { Database } from './duckdb.js';
import type { ItemSource, ResolvedPrepareOptions, ResolvedTableSource } from './options.js';
import { MAX_BROKEN_EXAMPLES } from './raw-table.js';
import { readTable } from './read-table.js';
import type { FileReport } from './report.js';
import { cleanText, joinTexts } from './text.js';

/** One item of the catalogue. */
export interface Item {
  readonly id: string;
  /** Clean text (see `cleanText`), or the id where there is none. */
  readonly text: string;
  /** Different ones, in the order of the file. Missing when it names none. */
  readonly categories?: readonly string[];
}

/** Which columns of `item_texts` hold what: texts first, then the categories. */
export interface ItemColumns {
  readonly numTexts: number;
  readonly hasCategories: boolean;
}

/**
 * Other names of items, from a column of the item file: name → id. The first row of a name wins; rows without a name or
 * an id have none.
 *
 * @throws what readTable throws
 */
export async function readItemNames(
  source: ItemSource,
  column: string,
  signal?: AbortSignal,
): Promise<Record<string, string>> {
  const database = await Database.open({ threads: 1, signal });
  try {
    // The schema of the whole options fills in what reading does not need.
    const resolved = {
      ...source,
      categorySeparator: ',',
      missing: 'keep',
      columns: { ...source.columns, text: [column] },
    };
    const wanted = [{ name: column }, { name: source.columns.id }];
    await readTable(database, 'names', resolved as ResolvedTableSource, wanted, signal);
    const names: Record<string, string> = Object.create(null);
    const has = (column: string) => `trim(coalesce(${column}, '')) <> ''`;
    await database.scan(
      `SELECT v0, v1 FROM names WHERE ${has('v0')} AND ${has('v1')} ORDER BY rowid DESC`,
      ([values = [], ids = []]) => {
        values.forEach((name, row) => {
          names[String(name)] = String(ids[row]);
        });
      },
    );
    return names;
  } finally {
    await database.close();
  }
}

/** Where {@link readItemTexts} puts the columns of an item file. */
export function itemColumns(source: ResolvedPrepareOptions['items']): ItemColumns {
  return { numTexts: source?.columns.text.length ?? 0, hasCategories: source?.columns.categories !== undefined };
}

/**
 * Reads the item file into the temporary table `item_texts`: item_id, v1, v2 … (lists of raw texts). The first row of an
 * id wins.
 *
 * @throws what readTable throws
 */
export async function readItemTexts(
  database: Database,
  source: NonNullable<ResolvedPrepareOptions['items']>,
  signal: AbortSignal | undefined,
): Promise<FileReport & { duplicateIds: number }> {
  const { id, text, categories } = source.columns;
  const columns = [{ name: id }, ...text.map((name) => ({ name, list: {} }))];
  if (categories !== undefined) columns.push({ name: categories, list: { separator: source.categorySeparator } });
  const raw = await readTable(database, 'raw_items', source, columns, signal);
  const noId = "trim(coalesce(v0, '')) = ''";
  const examples = await database.rows(
    `SELECT rowid::DOUBLE FROM raw_items WHERE ${noId} ORDER BY rowid LIMIT ${MAX_BROKEN_EXAMPLES}`,
  );
  const brokenExamples = [...raw.brokenExamples];
  for (const [row] of examples) {
    brokenExamples.push({ line: await raw.lineOf(Number(row)), reason: 'the item id is empty' });
  }
  brokenExamples.sort((a, b) => a.line - b.line);
  await database.run(
    `CREATE TEMP TABLE item_texts AS SELECT v0 AS item_id, * EXCLUDE (v0) FROM raw_items WHERE NOT (${noId})
     QUALIFY row_number() OVER (PARTITION BY v0 ORDER BY rowid) = 1`,
  );
  const withoutId = await database.number(`SELECT count(*)::DOUBLE FROM raw_items WHERE ${noId}`);
  const distinct = await database.number('SELECT count(*)::DOUBLE FROM item_texts');
  await database.run('DROP TABLE raw_items');
  return {
    path: source.path,
    rowsRead: raw.rows + raw.brokenRows,
    brokenRows: raw.brokenRows + withoutId,
    brokenExamples: brokenExamples.slice(0, MAX_BROKEN_EXAMPLES),
    duplicateIds: raw.rows - withoutId - distinct,
  };
}

/**
 * The catalogue: items of the table `catalogue` (item_index, item_id) in the order of their index, with their texts.
 *
 * @param columns those of `item_texts`; no texts = there is no item file
 */
export async function readCatalogue(
  database: Database,
  { numTexts, hasCategories }: ItemColumns,
): Promise<{ items: Item[]; itemsWithoutText: number }> {
  const numColumns = numTexts + (hasCategories ? 1 : 0);
  const values = Array.from({ length: numColumns }, (_, index) => `, v${index + 1}`).join('');
  const join = numTexts === 0 ? '' : 'LEFT JOIN item_texts USING (item_id)';
  const items: Item[] = [];
  let itemsWithoutText = 0;
  await database.scan(
    `SELECT item_id${values} FROM catalogue ${join} ORDER BY item_index`,
    ([ids = [], ...columns]) => {
      ids.forEach((value, row) => {
        const id = String(value);
        const text = joinTexts(columns.slice(0, numTexts).flatMap((column) => textsOf(column[row])));
        if (text === '') itemsWithoutText++;
        const names = textsOf(columns[numTexts]?.[row]).map(cleanText);
        const categories = [...new Set(names.filter((name) => name !== ''))];
        items.push({ id, text: text === '' ? id : text, ...(categories.length > 0 && { categories }) });
      });
    },
  );
  return { items, itemsWithoutText };
}

/** Of a list of the database; an item that is in no row of the file has none. */
function textsOf(list: unknown): string[] {
  return ((list as DuckDBListValue | null | undefined)?.items ?? []).map((text) => String(text ?? ''));
}
