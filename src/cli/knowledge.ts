import { dirname, resolve } from 'node:path';
import { LimbeckError } from '../errors.js';
import { makeDirectory } from '../formats/files.js';
import { type ImportRankingsOptions, importRankings, saveRankings } from '../knowledge/rankings.js';
import { readItemNames } from '../prepare/items.js';
import type { PrepareOptions } from '../prepare/options.js';
import { prepareDataset } from '../prepare/prepare.js';
import { readConfig } from './config.js';
import { type LongCommandContext, print } from './output.js';

export interface ImportRankingsFlags {
  /** A config, whose `data` says what the rankings are over. */
  readonly data: string;
  readonly output: string;
  readonly format?: string;
  readonly user?: string;
  readonly history?: string;
  readonly items?: string;
  readonly scores?: string;
  readonly separator?: string;
  readonly itemColumn?: string;
  readonly where?: string;
  readonly skipBroken?: boolean;
  readonly json?: boolean;
}

/** `limbeck knowledge import RANKINGS --data CONFIG --output FILE` */
export async function importRankingsCommand(
  path: string,
  flags: ImportRankingsFlags,
  { streams, signal }: LongCommandContext,
): Promise<void> {
  const config = await readConfig(flags.data);
  // prepareDataset checks every key; the casts only say that it is the one to do so.
  const data = config['data'] as PrepareOptions;
  const dataset = await prepareDataset(data, { signal });
  const { user, history, items, scores } = flags;
  const columns = Object.entries({ user, history, items, scores }).filter(([, name]) => name !== undefined);
  const options = {
    path,
    format: flags.format,
    columns: Object.fromEntries(columns),
    listSeparator: flags.separator,
    where: flags.where === undefined ? undefined : condition(flags.where),
    itemIds: flags.itemColumn === undefined ? undefined : await namesIn(data, flags.itemColumn, signal),
    skipBroken: flags.skipBroken,
  };
  const { rankings, report } = await importRankings(dataset, options as ImportRankingsOptions, { signal });
  await makeDirectory(dirname(resolve(flags.output)));
  await saveRankings(flags.output, rankings);
  print(streams, flags.json ?? false, { ...report, output: resolve(flags.output) }, () =>
    [
      `${report.rankings} rankings of ${report.meanLength.toFixed(1)} items on average, of ${report.rowsRead} rows`,
      `left out: ${report.brokenRows} broken rows, ${report.unknownUsers} of unknown users, ` +
        `${report.unknownHistories} of unknown histories, ${report.tooShort} with fewer than two items`,
      `left out of the lists: ${report.unknownItems} items not in the catalogue, ${report.seenItems} of the history`,
      `Rankings: ${resolve(flags.output)}`,
    ].join('\n'),
  );
}

function namesIn({ items }: PrepareOptions, column: string, signal: AbortSignal): Promise<Record<string, string>> {
  if (items === undefined) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `--item-column ${column}: expected data.items in the config, got none`,
    );
  }
  return readItemNames(items, column, signal);
}

function condition(text: string): { column: string; equals: string } {
  const at = text.indexOf('=');
  if (at < 1)
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `--where: expected COLUMN=VALUE, got ${JSON.stringify(text)}`);
  return { column: text.slice(0, at), equals: text.slice(at + 1) };
}
