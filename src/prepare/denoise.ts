import { LimbeckError } from '../errors.js';
import { type Database, sqlLiteral } from './duckdb.js';
import type { ResolvedPrepareOptions } from './options.js';
import type { PrepareReport } from './report.js';

type DenoiseReport = Pick<PrepareReport, 'dropped' | 'botUsers' | 'kCore'> & {
  readonly rowsBackwardsInTime: number;
  readonly rowsWithoutItem: number;
};

/**
 * Filters the table `interactions` in place: event, rating, missing item, duplicates, bot-like users, k-core.
 *
 * @param options.hasItems whether the table `item_texts` exists
 */
export async function denoise(
  database: Database,
  options: ResolvedPrepareOptions['denoise'] & { hasItems: boolean; dropMissingItems: boolean },
): Promise<DenoiseReport> {
  const rowsBackwardsInTime = await database.number(
    `SELECT count(*)::DOUBLE FROM (
       SELECT time < lag(time) OVER (PARTITION BY user_id ORDER BY row) AS is_backwards FROM interactions)
     WHERE is_backwards`,
  );
  const { events, minRating } = options;
  const otherEvents =
    events === undefined
      ? 0
      : await drop(database, `event IS NULL OR event NOT IN (${events.map(sqlLiteral).join(', ')})`);
  const belowMinRating = minRating === undefined ? 0 : await drop(database, 'rating < ?', [minRating]);

  const isMissing = 'item_id NOT IN (SELECT item_id FROM item_texts)';
  const rowsWithoutItem = options.hasItems
    ? await database.number(`SELECT count(*)::DOUBLE FROM interactions WHERE ${isMissing}`)
    : 0;
  if (rowsWithoutItem > 0) await refuseForeignItems(database, rowsWithoutItem);
  const withoutItem = options.dropMissingItems && rowsWithoutItem > 0 ? await drop(database, isMissing) : 0;

  const duplicates = options.duplicates === 'all' ? 0 : await dropDuplicates(database, options.duplicates);
  await encodeIds(database);
  const bots = await dropBotUsers(database, options.maxUserInteractions);
  const kCore = await dropOutsideKCore(database, options.minUserInteractions, options.minItemInteractions);
  return {
    rowsBackwardsInTime,
    rowsWithoutItem,
    dropped: { otherEvents, belowMinRating, withoutItem, duplicates, botUsers: bots.rows, kCore: kCore.rows },
    botUsers: bots.users,
    kCore: { rounds: kCore.rounds, usersDropped: kCore.usersDropped, itemsDropped: kCore.itemsDropped },
  };
}

function drop(database: Database, condition: string, values: readonly (string | number)[] = []): Promise<number> {
  return database.run(`DELETE FROM interactions WHERE ${condition}`, values);
}

/** When no id at all is in the item file, the columns were mixed up or the ids are written in two ways. */
async function refuseForeignItems(database: Database, rowsWithoutItem: number): Promise<void> {
  const rows = await database.number('SELECT count(*)::DOUBLE FROM interactions');
  if (rowsWithoutItem < rows) return;
  const [[item] = []] = await database.rows('SELECT left(item_id, 80) FROM interactions ORDER BY row LIMIT 1');
  const [[known] = []] = await database.rows('SELECT left(item_id, 80) FROM item_texts LIMIT 1');
  throw new LimbeckError(
    'ERR_INVALID_ARGUMENT',
    `no item of the interactions (e.g. ${JSON.stringify(item)}) is in the item file (e.g. ${JSON.stringify(known)}); ` +
      'check interactions.columns.item and items.columns.id',
  );
}

function dropDuplicates(database: Database, keep: 'first' | 'last'): Promise<number> {
  const direction = keep === 'first' ? 'ASC' : 'DESC';
  return drop(
    database,
    `row IN (SELECT row FROM interactions QUALIFY
       row_number() OVER (PARTITION BY user_id, item_id ORDER BY time ${direction}, row ${direction}) > 1)`,
  );
}

/**
 * Replaces the text ids by numbers, which the rest is faster on; the tables `user_ids` and `item_ids` translate back.
 */
async function encodeIds(database: Database): Promise<void> {
  for (const kind of ['user', 'item']) {
    await database.run(
      `CREATE TEMP TABLE ${kind}_ids AS
       SELECT ${kind}_id, row_number() OVER () AS ${kind} FROM interactions GROUP BY ${kind}_id`,
    );
  }
  await database.run(
    `CREATE TEMP TABLE kept AS SELECT row, "user", item, time
     FROM interactions JOIN user_ids USING (user_id) JOIN item_ids USING (item_id)`,
  );
  await database.run('DROP TABLE interactions');
}

async function dropBotUsers(database: Database, limit: number | undefined): Promise<{ users: number; rows: number }> {
  if (limit === undefined) return { users: 0, rows: 0 };
  const users = await countDistinct(database, 'user');
  const rows = await database.run(
    'DELETE FROM kept WHERE "user" IN (SELECT "user" FROM kept GROUP BY "user" HAVING count(*) > ?)',
    [limit],
  );
  return { users: users - (await countDistinct(database, 'user')), rows };
}

/**
 * Drops users and items with too few interactions until none is left; the order of dropping does not change the rest.
 */
async function dropOutsideKCore(database: Database, minUser: number, minItem: number) {
  const users = await countDistinct(database, 'user');
  const items = await countDistinct(database, 'item');
  const dropRare = (column: string, min: number) =>
    database.run(
      `DELETE FROM kept WHERE "${column}" IN (SELECT "${column}" FROM kept GROUP BY "${column}" HAVING count(*) < ?)`,
      [min],
    );
  let rows = 0;
  let rounds = 0;
  for (;;) {
    const dropped = (await dropRare('user', minUser)) + (await dropRare('item', minItem));
    if (dropped === 0) break;
    rows += dropped;
    rounds++;
  }
  const usersDropped = users - (await countDistinct(database, 'user'));
  const itemsDropped = items - (await countDistinct(database, 'item'));
  return { rounds, rows, usersDropped, itemsDropped };
}

function countDistinct(database: Database, column: 'user' | 'item'): Promise<number> {
  return database.number(`SELECT count(DISTINCT "${column}")::DOUBLE FROM kept`);
}
