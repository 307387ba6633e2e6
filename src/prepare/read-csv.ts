import { LimbeckError } from '../errors.js';
import { findColumn } from './columns.js';
import { type Database, sqlLiteral } from './duckdb.js';
import { fromText, MAX_BROKEN_EXAMPLES, type OpenFile, type RawTable } from './raw-table.js';
import type { BrokenRow } from './report.js';
import { splitCsvLine } from './split-csv-line.js';
import { inspectTextFile } from './text-file.js';

/** Reads a CSV or TSV file; see `readTable`. */
export async function readCsv(file: OpenFile, format: 'csv' | 'tsv'): Promise<RawTable> {
  const { database, name, source, path, gzip, wanted, signal } = file;
  const facts = await inspectTextFile(source.path, { gzip, signal });
  const delimiter = source.delimiter ?? (format === 'tsv' ? '\t' : ',');
  const quote = source.quote ?? (format === 'tsv' ? '' : '"');
  const hasHeader = source.header ?? source.names === undefined;
  if (!hasHeader && source.names === undefined) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `${source.path}: without a header, give the column names in "names"`,
    );
  }
  const available = source.names ?? splitCsvLine(facts.firstLine, delimiter, quote);
  const positions = wanted.map(({ name }) => findColumn(name, available, source.path));

  const values = wanted.map((column, index) => `${fromText(column, `c${positions[index]}`)} AS v${index}`);
  const all = available.map((_, index) => `c${index}`);
  const options = [
    'auto_detect = false',
    // DuckDB 1.5.5 loses rows near the seams between parallel chunks when some rows are broken.
    'parallel = false',
    'hive_partitioning = false',
    `compression = ${gzip ? "'gzip'" : "'none'"}`,
    `header = ${hasHeader}`,
    `delim = ${sqlLiteral(delimiter)}`,
    `quote = ${sqlLiteral(quote)}`,
    `escape = ${sqlLiteral(quote)}`,
    `columns = {${all.map((column) => `${column}: 'VARCHAR'`).join(', ')}}`,
    'store_rejects = true',
    `rejects_table = '${name}_rejects'`,
    `rejects_scan = '${name}_scans'`,
    'rejects_limit = 0',
  ];
  const mixed = facts.mixedLineBreaks
    ? '; it mixes \\r\\n and \\n line breaks, so try converting it to one of them'
    : '';
  await database
    .run(
      `CREATE TEMP TABLE ${name} AS
       SELECT ${values.join(', ')}, ${extraLines(all, facts.lineBreak)} AS extra_lines
       FROM read_csv(?, ${options.join(', ')})`,
      [path],
      source.path,
    )
    .catch((error: unknown) => {
      if (!(error instanceof LimbeckError) || error.code !== 'ERR_FILE_FORMAT' || mixed === '') throw error;
      throw new LimbeckError(error.code, `${error.message}${mixed}`, { cause: error });
    });

  const headerLines = hasHeader ? 1 : 0;
  return { path: source.path, ...(await accountForLines(database, name, facts.lines, headerLines)) };
}

/** Tells apart the lines of a file: those of the table `name`, the rejected ones, and the lost ones. */
async function accountForLines(
  database: Database,
  name: string,
  lines: number,
  headerLines: number,
): Promise<Omit<RawTable, 'path'>> {
  const [counts = []] = await database.rows(
    `SELECT count(*)::DOUBLE, coalesce(sum(extra_lines), 0)::DOUBLE FROM ${name}`,
  );
  const [rows = 0, extra = 0] = counts.map(Number);
  // Counting the lines of the file, not the rejects: DuckDB 1.5.5 does not report the rows that an unterminated quote
  // swallows beyond 2 MB.
  const brokenRows = lines - headerLines - rows - extra;
  const rejectedBelow = (line: number) =>
    database.number(`SELECT count(DISTINCT line)::DOUBLE FROM ${name}_rejects WHERE line < ?`, [line]);
  const extraBefore = (rowid: number) =>
    database.number(`SELECT coalesce(sum(extra_lines), 0)::DOUBLE FROM ${name} WHERE rowid < ?`, [rowid]);
  // DuckDB counts a row with line breaks inside quotes as one line.
  const brokenExamples: BrokenRow[] = [];
  const rejects = await database.rows(
    `SELECT line::DOUBLE, any_value(error_message) FROM ${name}_rejects
     GROUP BY line ORDER BY line LIMIT ${MAX_BROKEN_EXAMPLES}`,
  );
  for (const [index, [record, reason]] of rejects.entries()) {
    const line = Number(record) + (await extraBefore(Number(record) - headerLines - 1 - index));
    brokenExamples.push({ line, reason: String(reason).split('\n', 1)[0] ?? '' });
  }
  const rejectedRows = await rejectedBelow(Number.MAX_SAFE_INTEGER);
  if (brokenRows > rejectedRows && brokenExamples.length < MAX_BROKEN_EXAMPLES) {
    const line = headerLines + rows + extra + rejectedRows + 1;
    brokenExamples.push({
      line,
      reason: `${brokenRows - rejectedRows} lines belong to no row: a quote is never closed`,
    });
  }

  const lineOf = async (rowid: number): Promise<number> => {
    const withoutRejects = headerLines + 1 + rowid;
    // Rejected lines above push the row down, which may put more of them above it.
    for (let record = withoutRejects; ; ) {
      const pushed = withoutRejects + (await rejectedBelow(record + 1));
      if (pushed === record) return record + (await extraBefore(rowid));
      record = pushed;
    }
  };
  return { name, rows, brokenRows, brokenExamples, lineOf };
}

/** SQL for the lines a row takes beyond its first, without empty ones: line breaks inside quotes. */
function extraLines(columns: readonly string[], lineBreak: '\n' | '\r'): string {
  const code = lineBreak === '\n' ? 10 : 13;
  const hasBreak = columns.map((column) => `coalesce(contains(${column}, chr(${code})), false)`).join(' OR ');
  const pattern = lineBreak === '\n' ? '\\n[^\\r\\n]' : '\\r[^\\r]';
  // The quotes stand for those of the file: what follows the last line break of a value is never an empty line.
  const text = columns.map((column) => `'"', coalesce(${column}, ''), '"'`).join(', ');
  return `CASE WHEN ${hasBreak} THEN len(regexp_extract_all(concat(${text}), '${pattern}')) ELSE 0 END`;
}
