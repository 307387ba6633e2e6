import { LimbeckError } from '../errors.js';
import type { Database } from './duckdb.js';
import type { ResolvedPrepareOptions } from './options.js';

/** Which part of each user's sequence is for what. Positions count from the start of the user's sequence. */
export interface Split {
  readonly strategy: 'leaveOneOut' | 'globalTime';
  /** Items 0 … trainLength − 1 are for training. */
  readonly trainLength: Int32Array; // [users]
  /** Position of the item to predict for validation, from all items before it; −1 = none. Never below trainLength. */
  readonly validationPosition: Int32Array; // [users]
  /** Position of the item to predict for the test, from all items before it; −1 = none. Never below trainLength. */
  readonly testPosition: Int32Array; // [users]
}

/** A user with fewer interactions would keep no history to train on, and is for training only. */
const MIN_LEAVE_ONE_OUT = 3;

/**
 * Splits the table `sequences` (user_index, item_index, time).
 *
 * @throws ERR_EMPTY_DATA when a time cut leaves nothing to train on
 */
export async function splitSequences(
  database: Database,
  options: ResolvedPrepareOptions['split'],
  users: number,
): Promise<Split> {
  const { strategy } = options;
  await database.run(strategy === 'leaveOneOut' ? leaveOneOutSql() : globalTimeSql(options));
  const column = (name: string) =>
    database.int32Column(`SELECT ${name}::INTEGER FROM split ORDER BY user_index`, users);
  const trainLength = await column('train_length');
  if (!trainLength.some((length) => length > 0)) {
    throw new LimbeckError(
      'ERR_EMPTY_DATA',
      'split.strategy globalTime left no interaction before the cut; lower the fractions, or check that times differ',
    );
  }
  return {
    strategy,
    trainLength,
    validationPosition: await column('validation_position'),
    testPosition: await column('test_position'),
  };
}

function leaveOneOutSql(): string {
  return `CREATE TEMP TABLE split AS
    SELECT user_index,
      CASE WHEN n >= ${MIN_LEAVE_ONE_OUT} THEN n - 2 ELSE n END AS train_length,
      CASE WHEN n >= ${MIN_LEAVE_ONE_OUT} THEN n - 2 ELSE -1 END AS validation_position,
      CASE WHEN n >= ${MIN_LEAVE_ONE_OUT} THEN n - 1 ELSE -1 END AS test_position
    FROM (SELECT user_index, count(*) AS n FROM sequences GROUP BY user_index)`;
}

/** A cut falls before every interaction of its moment, so that equal times stay on one side. */
function globalTimeSql(options: { validationFraction: number; testFraction: number }): string {
  const testCut = 1 - options.testFraction;
  const validationCut = testCut - options.validationFraction;
  return `CREATE TEMP TABLE split AS
    WITH cuts AS (
      SELECT quantile_disc(time, ${validationCut}) AS validation_time, quantile_disc(time, ${testCut}) AS test_time
      FROM sequences),
    counts AS (
      SELECT user_index, count(*) AS n,
        count(*) FILTER (time < validation_time) AS before_validation,
        count(*) FILTER (time < test_time) AS before_test
      FROM sequences, cuts GROUP BY user_index)
    SELECT user_index, before_validation AS train_length,
      CASE WHEN before_validation > 0 AND before_test > before_validation THEN before_validation ELSE -1 END
        AS validation_position,
      CASE WHEN before_test > 0 AND n > before_test THEN before_test ELSE -1 END AS test_position
    FROM counts`;
}
