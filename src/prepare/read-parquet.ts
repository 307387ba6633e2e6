import { LimbeckError } from '../errors.js';
import { findColumn } from './columns.js';
import { sqlIdentifier } from './duckdb.js';
import { fromText, type OpenFile, type RawTable, type WantedColumn } from './raw-table.js';

/** Types whose values are no single text, as DuckDB writes them. */
const NESTED = /^(STRUCT|MAP|UNION)\b|\]$/;

/** Reads a Parquet file; see `readTable`. Values of any type become text, in lists too. */
export async function readParquet(file: OpenFile): Promise<RawTable> {
  const { database, name, source, path, wanted } = file;
  const columns = await database.rows(
    'DESCRIBE SELECT * FROM read_parquet(?, hive_partitioning = false)',
    [path],
    source.path,
  );
  const available = columns.map(([column]) => String(column));
  const values = wanted.map((column, index) => {
    const type = String(columns[findColumn(column.name, available, source.path)]?.[1]);
    return `${asWanted(column, type, source.path)} AS v${index}`;
  });
  await database.run(
    `CREATE TEMP TABLE ${name} AS SELECT ${values.join(', ')} FROM read_parquet(?, hive_partitioning = false)`,
    [path],
    source.path,
  );
  const rows = await database.number(`SELECT count(*)::DOUBLE FROM ${name}`);
  return { name, path: source.path, rows, brokenRows: 0, brokenExamples: [], lineOf: async (rowid) => rowid + 1 };
}

/** SQL for a column of the file. */
function asWanted(column: WantedColumn, type: string, path: string): string {
  const { name, list } = column;
  if (!NESTED.test(type)) return fromText(column, `${sqlIdentifier(name)}::VARCHAR`);
  const [, element = '', depth = ''] = /^(.*?)((?:\[\]){1,2})$/.exec(type) ?? [];
  if (list !== undefined && element !== '' && !NESTED.test(element)) {
    return depth === '[]' ? `${sqlIdentifier(name)}::VARCHAR[]` : `flatten(${sqlIdentifier(name)})::VARCHAR[]`;
  }
  const expected = list === undefined ? 'one value a row' : 'a text or a list of texts a row';
  throw new LimbeckError('ERR_FILE_FORMAT', `${path}: expected ${expected} in column "${name}", got ${type}`);
}
