import { resolve } from 'node:path';
import { LimbeckError } from '../errors.js';
import type { Database } from './duckdb.js';
import type { ResolvedTableSource, TableFormat } from './options.js';
import type { OpenFile, RawTable, WantedColumn } from './raw-table.js';
import { readCsv } from './read-csv.js';
import { readJsonLines } from './read-json-lines.js';
import { readParquet } from './read-parquet.js';
import { readSequences } from './read-sequences.js';
import { checkFile } from './text-file.js';

/**
 * Reads the wanted columns of a CSV, TSV, JSON Lines, Parquet or sequence file into the database.
 *
 * @throws ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT, ERR_EMPTY_DATA, ERR_COLUMN_NOT_FOUND, ERR_INVALID_ARGUMENT, ERR_IO,
 * ERR_ABORTED
 */
export async function readTable(
  database: Database,
  name: string,
  source: ResolvedTableSource,
  wanted: readonly WantedColumn[],
  signal: AbortSignal | undefined,
): Promise<RawTable> {
  const { format, gzip } = detectFormat(source);
  await checkFile(source.path);
  const file: OpenFile = { database, name, source, path: literalPath(source.path), gzip, wanted, signal };
  const table = await readAs(format, file);
  if (table.rows + table.brokenRows === 0) throw new LimbeckError('ERR_EMPTY_DATA', `${source.path} has no rows`);
  return table;
}

function readAs(format: TableFormat, file: OpenFile): Promise<RawTable> {
  if (format === 'parquet') return readParquet(file);
  if (format === 'jsonl') return readJsonLines(file);
  if (format === 'sequences') return readSequences(file);
  return readCsv(file, format);
}

/** The path for DuckDB: absolute, which no URL or home directory is, and with nothing that it would expand. */
function literalPath(path: string): string {
  return resolve(path).replace(/[*?[]/g, '[$&]');
}

function detectFormat(source: ResolvedTableSource): { format: TableFormat; gzip: boolean } {
  const { path } = source;
  const gzip = /\.gz$/i.test(path);
  const extension = /\.(csv|tsv|jsonl|ndjson|parquet)(\.gz)?$/i.exec(path)?.[1]?.toLowerCase();
  const guessed = extension === 'ndjson' ? 'jsonl' : (extension as TableFormat | undefined);
  const format = source.format ?? guessed;
  if (format === undefined) {
    const message = `cannot tell the format of ${path} from its name; set format to csv, tsv, jsonl, parquet or sequences`;
    throw new LimbeckError('ERR_INVALID_ARGUMENT', message);
  }
  if (format === 'parquet' && gzip) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `${path}: a Parquet file compresses by itself; unpack it with gunzip`,
    );
  }
  const textOnly = (['delimiter', 'quote', 'header', 'names'] as const).find((option) => source[option] !== undefined);
  const isText = format === 'csv' || format === 'tsv' || (format === 'sequences' && textOnly === 'delimiter');
  if (textOnly !== undefined && !isText) {
    const message = `${path}: "${textOnly}" is for CSV and TSV files, and this one is ${format}`;
    throw new LimbeckError('ERR_INVALID_ARGUMENT', message);
  }
  return { format, gzip };
}
