import { findColumn } from './columns.js';
import { sqlIdentifier } from './duckdb.js';
import type { OpenFile, RawTable } from './raw-table.js';

/** Reads a Parquet file; see `readTable`. Values of any type become text. */
export async function readParquet(file: OpenFile): Promise<RawTable> {
  const { database, name, source, path, wanted } = file;
  const columns = await database.rows(
    'DESCRIBE SELECT * FROM read_parquet(?, hive_partitioning = false)',
    [path],
    source.path,
  );
  const available = columns.map(([column]) => String(column));
  for (const column of wanted) findColumn(column, available, source.path);
  const values = wanted.map((column, index) => `${sqlIdentifier(column)}::VARCHAR AS v${index}`);
  await database.run(
    `CREATE TEMP TABLE ${name} AS SELECT ${values.join(', ')} FROM read_parquet(?, hive_partitioning = false)`,
    [path],
    source.path,
  );
  const rows = await database.number(`SELECT count(*)::DOUBLE FROM ${name}`);
  return { name, path: source.path, rows, brokenRows: 0, brokenExamples: [], lineOf: async (rowid) => rowid + 1 };
}
