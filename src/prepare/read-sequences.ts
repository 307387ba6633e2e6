import { findColumn } from './columns.js';
import { sqlLiteral } from './duckdb.js';
import { fromText, MAX_BROKEN_EXAMPLES, type OpenFile, type RawTable } from './raw-table.js';
import { inspectTextFile } from './text-file.js';

/** The columns that a file of sequences has; it has no line that names them. */
const COLUMNS = ['user', 'item'] as const;

/** No line of text holds it, so no line is cut. */
const NEVER_IN_TEXT = '\u0001';

/**
 * Reads a file of one user a line: the user's id, then the items in time order, as S3-Rec and others publish their data;
 * see `readTable`. Every item becomes a row (user, item). Between ids stands `delimiter`, or any white space.
 */
export async function readSequences(file: OpenFile): Promise<RawTable> {
  const { database, name, source, path, gzip, wanted, signal } = file;
  const facts = await inspectTextFile(source.path, { gzip, signal });
  // Position 1 is the user; the order of the file is the order of the rows.
  const places = ['ids[1]', 'ids[position]'];
  const values = wanted.map((column, index) => {
    const place = places[findColumn(column.name, COLUMNS, source.path)] as string;
    return `${fromText(column, place)} AS v${index}`;
  });
  const ids =
    source.delimiter === undefined
      ? `string_split_regex(trim(coalesce(line, ''), ' ' || chr(9) || chr(13)), '\\s+')`
      : `string_split(coalesce(line, ''), ${sqlLiteral(source.delimiter)})`;
  await database.run(
    `CREATE TEMP TABLE ${name}_lines AS SELECT ${ids} AS ids FROM read_csv(?, auto_detect = false, parallel = false,
       hive_partitioning = false, compression = '${gzip ? 'gzip' : 'none'}', header = false, strict_mode = false,
       delim = ${sqlLiteral(NEVER_IN_TEXT)}, quote = '', escape = '', columns = {line: 'VARCHAR'},
       store_rejects = true, rejects_table = '${name}_rejects', rejects_scan = '${name}_scans', rejects_limit = 0)`,
    [path],
    source.path,
  );
  await database.run(
    `CREATE TEMP TABLE ${name} AS
     SELECT rowid + 1 AS line, ${values.join(', ')}
     FROM (SELECT rowid, ids, unnest(range(2, len(ids) + 1)) AS position FROM ${name}_lines)
     ORDER BY rowid, position`,
  );
  const isBroken = "len(ids) < 2 AND ids[1] <> ''";
  const examples = await database.rows(
    `SELECT rowid::DOUBLE + 1, left(ids[1], 80) FROM ${name}_lines WHERE ${isBroken}
     ORDER BY rowid LIMIT ${MAX_BROKEN_EXAMPLES}`,
  );
  const rejects = await database.rows(
    `SELECT DISTINCT line::DOUBLE FROM ${name}_rejects ORDER BY 1 LIMIT ${MAX_BROKEN_EXAMPLES}`,
  );
  const brokenExamples = [
    ...examples.map(([line, id]) => ({ line: Number(line), reason: `no item after the user ${JSON.stringify(id)}` })),
    ...rejects.map(([line]) => ({ line: Number(line), reason: 'the line is longer than 2 MB' })),
  ].slice(0, MAX_BROKEN_EXAMPLES);
  const [[whole, rows] = []] = await database.rows(
    `SELECT (SELECT count(*)::DOUBLE FROM ${name}_lines WHERE len(ids) >= 2), (SELECT count(*)::DOUBLE FROM ${name})`,
  );
  const lineOf = (rowid: number) => database.number(`SELECT line::DOUBLE FROM ${name} WHERE rowid = ?`, [rowid]);
  return {
    name,
    path: source.path,
    rows: Number(rows),
    brokenRows: facts.lines - Number(whole),
    brokenExamples,
    lineOf,
  };
}
