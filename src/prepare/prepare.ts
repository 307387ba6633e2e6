import { LimbeckError } from '../errors.js';
import type { Dataset } from './dataset.js';
import { denoise } from './denoise.js';
import { Database } from './duckdb.js';
import { checkHooks, type Hooks } from './hooks.js';
import { readInteractions } from './interactions.js';
import { type Item, itemColumns, readCatalogue, readItemTexts } from './items.js';
import { type PrepareOptions, prepareOptionsSchema } from './options.js';
import { parseOptions } from './parse-options.js';
import type { FileReport, PrepareReport } from './report.js';
import { type Split, splitSequences } from './split.js';

/** Item indices and offsets are 32-bit. */
const MAX_INTERACTIONS = 2 ** 31 - 1;

/**
 * Step 1 of distillation: reads interactions and item texts, drops noise, numbers users and items, and splits.
 * Everything up to the final arrays happens in an embedded database, which spills to disk what memory does not hold.
 * The same files and options give the same dataset, on any number of threads.
 *
 * @throws ERR_UNKNOWN_OPTION, ERR_INVALID_ARGUMENT, ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT, ERR_COLUMN_NOT_FOUND,
 * ERR_EMPTY_DATA, ERR_MISSING_DEPENDENCY, ERR_ABORTED, ERR_IO, ERR_OUT_OF_MEMORY, ERR_NO_SPACE
 * @example
 * const dataset = await prepareDataset({
 *   interactions: { path: 'interactions.csv.gz', columns: { user: 'user', item: 'item', time: 'time' } },
 *   items: { path: 'items.csv.gz', columns: { id: 'id', text: ['title', 'genres'] } },
 * });
 */
export async function prepareDataset(options: PrepareOptions, hooks: Pick<Hooks, 'signal'> = {}): Promise<Dataset> {
  checkHooks(hooks);
  const {
    interactions,
    items,
    denoise: filters,
    split,
    threads,
  } = parseOptions(prepareOptionsSchema, options, 'prepare');
  const database = await Database.open({ threads, signal: hooks.signal });
  try {
    const interactionFile = await readInteractions(database, interactions, hooks.signal);
    refuseAllBroken(interactionFile);
    const itemFile = items && (await readItemTexts(database, items, hooks.signal));
    if (itemFile) refuseAllBroken(itemFile);

    const filtered = await denoise(database, {
      ...filters,
      hasItems: items !== undefined,
      dropMissingItems: items?.missing === 'drop',
    });
    await refuseNothingLeft(database, interactionFile, filtered.dropped);

    const { users, sequences, sequenceOffsets } = await readSequences(database);
    const catalogue = await readCatalogue(database, itemColumns(items));
    const splitArrays = await splitSequences(database, split, users.length);
    database.throwIfAborted();

    const { rowsBackwardsInTime, rowsWithoutItem, ...drops } = filtered;
    const report: PrepareReport = {
      interactions: { ...interactionFile, rowsBackwardsInTime, rowsWithoutItem },
      ...(itemFile && { items: { ...itemFile, itemsWithoutText: catalogue.itemsWithoutText } }),
      ...drops,
      final: finalCounts(catalogue.items, sequenceOffsets, splitArrays),
    };
    return { items: catalogue.items, users, sequences, sequenceOffsets, split: splitArrays, report };
  } finally {
    await database.close();
  }
}

function refuseAllBroken(file: FileReport): void {
  if (file.brokenRows < file.rowsRead) return;
  const examples = file.brokenExamples.map(({ line, reason }) => `line ${line}: ${reason}`).join('; ');
  throw new LimbeckError('ERR_EMPTY_DATA', `${file.path}: all ${file.rowsRead} rows are broken (${examples})`);
}

async function refuseNothingLeft(
  database: Database,
  file: FileReport,
  dropped: PrepareReport['dropped'],
): Promise<void> {
  const left = await database.number('SELECT count(*)::DOUBLE FROM kept');
  if (left > MAX_INTERACTIONS) {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `expected at most ${MAX_INTERACTIONS} interactions, got ${left}`);
  }
  if (left > 0) return;
  const steps = Object.entries({ brokenRows: file.brokenRows, ...dropped }).filter(([, rows]) => rows > 0);
  const where = steps.map(([step, rows]) => `${step} ${rows}`).join(', ');
  throw new LimbeckError(
    'ERR_EMPTY_DATA',
    `no interaction of the ${file.rowsRead} in ${file.path} is left: ${where}. Loosen the denoise options.`,
  );
}

/** Numbers the users and items that are left by first appearance in the file, and reads the sequences. */
async function readSequences(database: Database): Promise<Pick<Dataset, 'users' | 'sequences' | 'sequenceOffsets'>> {
  const number = (table: string, kind: 'user' | 'item') =>
    database.run(
      `CREATE TEMP TABLE ${table} AS
       SELECT "${kind}", ${kind}_id, row_number() OVER (ORDER BY first_row) - 1 AS ${kind}_index
       FROM (SELECT "${kind}", min(row) AS first_row FROM kept GROUP BY "${kind}") JOIN ${kind}_ids USING ("${kind}")`,
    );
  await number('audience', 'user');
  await number('catalogue', 'item');
  await database.run(
    `CREATE TEMP TABLE sequences AS SELECT user_index, item_index, time, row
     FROM kept JOIN audience USING ("user") JOIN catalogue USING (item)`,
  );
  const users: string[] = [];
  await database.scan('SELECT user_id FROM audience ORDER BY user_index', ([ids = []]) => {
    for (const id of ids) users.push(String(id));
  });
  const lengths = await database.int32Column(
    'SELECT count(*)::INTEGER FROM sequences GROUP BY user_index ORDER BY user_index',
    users.length,
  );
  const sequenceOffsets = new Int32Array(users.length + 1);
  lengths.forEach((length, user) => {
    sequenceOffsets[user + 1] = (sequenceOffsets[user] ?? 0) + length;
  });
  const sequences = await database.int32Column(
    'SELECT item_index::INTEGER FROM sequences ORDER BY user_index, time, row',
    sequenceOffsets[users.length] ?? 0,
  );
  return { users, sequences, sequenceOffsets };
}

function finalCounts(items: readonly Item[], sequenceOffsets: Int32Array, split: Split): PrepareReport['final'] {
  const users = sequenceOffsets.length - 1;
  const interactions = sequenceOffsets[users] ?? 0;
  const lengths = sequenceOffsets.subarray(1).map((end, user) => end - (sequenceOffsets[user] ?? 0));
  return {
    users,
    items: items.length,
    interactions,
    density: interactions / (users * items.length),
    singleInteractionUsers: lengths.filter((length) => length === 1).length,
    trainInteractions: split.trainLength.reduce((sum, length) => sum + length, 0),
    validationCases: split.validationPosition.filter((position) => position >= 0).length,
    testCases: split.testPosition.filter((position) => position >= 0).length,
  };
}
