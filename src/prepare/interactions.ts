import type { Database } from './duckdb.js';
import type { ResolvedPrepareOptions } from './options.js';
import { MAX_BROKEN_EXAMPLES } from './raw-table.js';
import { readTable } from './read-table.js';
import type { BrokenRow, FileReport } from './report.js';

/** What is wrong with a row, in the order of the checks; v0 … v3 are user, item, rating and time. */
const PROBLEMS = {
  user: 'the user id is empty',
  item: 'the item id is empty',
  nan: 'the rating is NaN',
  rating: 'the rating is not a finite number',
  time: 'the time is neither a finite number nor an ISO 8601 date',
} as const;

type Problem = keyof typeof PROBLEMS;

/**
 * Reads the interactions into the temporary table `interactions`: row (order of the file), user_id, item_id, rating,
 * event, time. Rating and event are null, and time is 0, where no column holds them.
 *
 * @throws what readTable throws
 */
export async function readInteractions(
  database: Database,
  source: ResolvedPrepareOptions['interactions'],
  signal: AbortSignal | undefined,
): Promise<FileReport & { nanRatings: number }> {
  const { user, item, rating, event, time } = source.columns;
  const wanted = [user, item];
  /** SQL for an optional column: its place among the wanted ones, or `otherwise`. */
  const place = (column: string | undefined, otherwise: string): string => {
    return column === undefined ? otherwise : `v${wanted.push(column) - 1}`;
  };
  const ratingText = place(rating, 'NULL::VARCHAR');
  const timeText = place(time, "'0'");
  const eventText = place(event, 'NULL::VARCHAR');
  const raw = await readTable(
    database,
    'raw_interactions',
    source,
    wanted.map((name) => ({ name })),
    signal,
  );

  const ratingProblems =
    rating === undefined ? '' : "WHEN isnan(rating) THEN 'nan' WHEN rating IS NULL OR isinf(rating) THEN 'rating'";
  await database.run(
    `CREATE TEMP TABLE parsed_interactions AS
     WITH parsed AS (
       SELECT rowid AS row, v0 AS user_id, v1 AS item_id, ${eventText} AS event,
         TRY_CAST(${ratingText} AS DOUBLE) AS rating,
         coalesce(TRY_CAST(${timeText} AS DOUBLE), epoch(TRY_CAST(${timeText} AS TIMESTAMPTZ))) AS time,
         ${ratingText} AS rating_text, ${timeText} AS time_text
       FROM raw_interactions)
     SELECT *, CASE
         WHEN trim(coalesce(user_id, '')) = '' THEN 'user'
         WHEN trim(coalesce(item_id, '')) = '' THEN 'item'
         ${ratingProblems}
         WHEN time IS NULL OR NOT isfinite(time) THEN 'time'
       END AS problem
     FROM parsed`,
  );
  const counts = await database.rows(
    'SELECT problem, count(*)::DOUBLE FROM parsed_interactions WHERE problem IS NOT NULL GROUP BY problem',
  );
  const byProblem = new Map(counts.map(([problem, count]) => [problem as Problem, Number(count)]));
  const unparsed = [...byProblem.values()].reduce((sum, count) => sum + count, 0);
  const examples = await database.rows(
    `SELECT row::DOUBLE, problem, left(CASE problem WHEN 'rating' THEN rating_text WHEN 'time' THEN time_text END, 80)
     FROM parsed_interactions WHERE problem IS NOT NULL ORDER BY row LIMIT ${MAX_BROKEN_EXAMPLES}`,
  );
  const brokenExamples: BrokenRow[] = [...raw.brokenExamples];
  for (const [row, problem, text] of examples) {
    const value = problem === 'rating' || problem === 'time' ? `: ${JSON.stringify(text ?? '')}` : '';
    brokenExamples.push({ line: await raw.lineOf(Number(row)), reason: PROBLEMS[problem as Problem] + value });
  }
  brokenExamples.sort((a, b) => a.line - b.line);

  await database.run(
    `CREATE TEMP TABLE interactions AS
     SELECT row, user_id, item_id, rating, event, time FROM parsed_interactions WHERE problem IS NULL`,
  );
  await database.run('DROP TABLE parsed_interactions');
  await database.run('DROP TABLE raw_interactions');
  return {
    path: source.path,
    rowsRead: raw.rows + raw.brokenRows,
    brokenRows: raw.brokenRows + unparsed,
    brokenExamples: brokenExamples.slice(0, MAX_BROKEN_EXAMPLES),
    nanRatings: byProblem.get('nan') ?? 0,
  };
}
