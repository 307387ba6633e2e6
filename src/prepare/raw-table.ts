import { type Database, sqlLiteral } from './duckdb.js';
import type { ResolvedTableSource } from './options.js';
import type { BrokenRow } from './report.js';

/** How many broken rows a report shows. */
export const MAX_BROKEN_EXAMPLES = 5;

/**
 * A file as a temporary table `name`: columns v0, v1 … hold the wanted columns as text or lists of texts, in the order
 * asked; rowid is the order of the file. Rows that cannot be taken apart are not in it.
 */
export interface RawTable {
  readonly name: string;
  readonly path: string;
  readonly rows: number;
  readonly brokenRows: number;
  readonly brokenExamples: readonly BrokenRow[];
  /** Line of the file that a row came from. */
  lineOf(rowid: number): Promise<number>;
}

/** A column to read: one text a row, or a list of texts. */
export interface WantedColumn {
  readonly name: string;
  /** Lists of JSON and Parquet are taken as they are; one text is cut at the separator, or is a list of its own. */
  readonly list?: { readonly separator?: string | undefined } | undefined;
}

/** SQL for what a column wants, from SQL for one text. */
export function fromText({ list }: WantedColumn, text: string): string {
  if (list === undefined) return text;
  return list.separator === undefined ? `[${text}]` : `string_split(${text}, ${sqlLiteral(list.separator)})`;
}

/** A file about to be read into a table of the database. */
export interface OpenFile {
  readonly database: Database;
  readonly name: string;
  readonly source: ResolvedTableSource;
  /** See `literalPath`; for messages and for Node, `source.path`. */
  readonly path: string;
  readonly gzip: boolean;
  readonly wanted: readonly WantedColumn[];
  readonly signal: AbortSignal | undefined;
}
