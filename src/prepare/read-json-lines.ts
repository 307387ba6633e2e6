import { findColumn } from './columns.js';
import { sqlLiteral } from './duckdb.js';
import { fromText, MAX_BROKEN_EXAMPLES, type OpenFile, type RawTable } from './raw-table.js';
import { inspectTextFile } from './text-file.js';

/** A control character that JSON forbids in raw form, so no valid line is cut at it. */
const NEVER_IN_JSON = '\u0001';

/**
 * Reads a file of one JSON object a line; see `readTable`. A missing key or null is an empty value, and so is an object or
 * array where one text is wanted. Where a list is, arrays in an array are laid end to end; a row with an object, or with more
 * in those, is broken.
 */
export async function readJsonLines(file: OpenFile): Promise<RawTable> {
  const { database, name, source, path, gzip, wanted, signal } = file;
  const facts = await inspectTextFile(source.path, { gzip, signal });
  const compression = gzip ? 'gzip' : 'none';
  await database.run(
    `CREATE TEMP TABLE ${name}_lines AS SELECT line FROM read_csv(?, auto_detect = false, parallel = false,
       hive_partitioning = false, compression = '${compression}', header = false, strict_mode = false,
       delim = ${sqlLiteral(NEVER_IN_JSON)}, quote = '', escape = '', columns = {line: 'VARCHAR'},
       store_rejects = true, rejects_table = '${name}_rejects', rejects_scan = '${name}_scans', rejects_limit = 0)`,
    [path],
    source.path,
  );
  const isObject = `CASE WHEN json_valid(line) THEN json_type(line) = 'OBJECT' ELSE false END`;
  const keys = await database.rows(
    `SELECT DISTINCT unnest(json_keys(line)) AS key FROM ${name}_lines WHERE ${isObject} ORDER BY key`,
  );
  const available = keys.map(([key]) => String(key));
  if (available.length > 0) for (const { name: key } of wanted) findColumn(key, available, source.path);
  const problems = [`WHEN NOT (${isObject}) THEN 'not a JSON object'`];
  const values = wanted.map((column, index) => {
    const pointer = sqlLiteral(`/${column.name.replaceAll('~', '~0').replaceAll('/', '~1')}`);
    const type = `json_type(line, ${pointer})`;
    const array = `json_extract(line, ${pointer})`;
    const isText = `WHEN ${type} NOT IN ('OBJECT', 'ARRAY')`;
    const text = fromText(column, `json_extract_string(line, ${pointer})`);
    if (column.list === undefined) return `CASE ${isText} THEN ${text} END AS v${index}`;
    // An array may hold arrays, as where categories are paths; those hold texts.
    const isNested =
      `${type} = 'OBJECT' OR list_has_any(json_type(${array}, '$[*]'), ['OBJECT'])` +
      ` OR list_has_any(json_type(${array}, '$[*][*]'), ['OBJECT', 'ARRAY'])`;
    const problem = sqlLiteral(`${JSON.stringify(column.name)} is neither a text nor a list of texts`);
    problems.push(`WHEN ${isNested} THEN ${problem}`);
    const ofElement =
      "CASE json_type(e) WHEN 'ARRAY' THEN json_extract_string(e, '$[*]') ELSE [json_extract_string(e, '$')] END";
    const texts = `flatten(list_transform(json_extract(${array}, '$[*]'), e -> ${ofElement}))`;
    return `CASE ${isText} THEN ${text} ELSE ${texts} END AS v${index}`;
  });
  const judged = `(SELECT rowid, line, CASE ${problems.join(' ')} END AS problem FROM ${name}_lines)`;
  await database.run(
    `CREATE TEMP TABLE ${name} AS SELECT rowid + 1 AS line, ${values.join(', ')} FROM ${judged} WHERE problem IS NULL`,
  );
  const examples = await database.rows(
    `SELECT rowid::DOUBLE + 1, problem, left(line, 80) FROM ${judged} WHERE line <> '' AND problem IS NOT NULL
     ORDER BY rowid LIMIT ${MAX_BROKEN_EXAMPLES}`,
  );
  const rejects = await database.rows(
    `SELECT DISTINCT line::DOUBLE FROM ${name}_rejects ORDER BY 1 LIMIT ${MAX_BROKEN_EXAMPLES}`,
  );
  const brokenExamples = [
    ...examples.map(([line, problem, text]) => ({
      line: Number(line),
      reason: `${problem}: ${JSON.stringify(text)}`,
    })),
    ...rejects.map(([line]) => ({
      line: Number(line),
      reason: 'not a line of JSON (control character, or over 2 MB)',
    })),
  ].slice(0, MAX_BROKEN_EXAMPLES);
  const rows = await database.number(`SELECT count(*)::DOUBLE FROM ${name}`);
  const lineOf = (rowid: number) => database.number(`SELECT line::DOUBLE FROM ${name} WHERE rowid = ?`, [rowid]);
  return { name, path: source.path, rows, brokenRows: facts.lines - rows, brokenExamples, lineOf };
}
