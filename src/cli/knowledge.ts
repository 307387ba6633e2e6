import { dirname, resolve } from 'node:path';
import { createEngine } from '../engine.js';
import { LimbeckError } from '../errors.js';
import { makeDirectory, readTextFile } from '../formats/files.js';
import type { ExtractOptions } from '../knowledge/extract.js';
import { mergeKnowledge } from '../knowledge/merge.js';
import { type ImportRankingsOptions, importRankings, saveRankings } from '../knowledge/rankings.js';
import { readItemNames } from '../prepare/items.js';
import type { PrepareOptions } from '../prepare/options.js';
import { prepareDataset } from '../prepare/prepare.js';
import { readConfig } from './config.js';
import { type LongCommandContext, print } from './output.js';
import { showProgress } from './progress.js';

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

export interface ExtractFlags {
  readonly output: string;
  readonly hiddenStates?: readonly number[];
  readonly pooling?: string;
  readonly attentions?: readonly number[];
  readonly valueRelations?: readonly number[];
  readonly relationHeads?: number;
  readonly dtype?: string;
  /** `dense`, or how many of the best. */
  readonly logits?: string;
  readonly pieces?: boolean;
  readonly maxLength?: number;
  readonly shard?: string;
  readonly shardTexts?: number;
  readonly batchTokens?: number;
  readonly threads?: number;
  /** Both checked by the engine. */
  readonly precision?: string;
  readonly device?: string;
  readonly quiet?: boolean;
  readonly json?: boolean;
}

/** `limbeck knowledge extract TEACHER TEXTS --output DIR` */
export async function extractKnowledgeCommand(
  teacher: string,
  path: string,
  flags: ExtractFlags,
  { streams, signal }: LongCommandContext,
): Promise<void> {
  const { output, pooling, relationHeads, dtype, shardTexts, batchTokens, logits } = flags;
  const part = flags.shard === undefined ? undefined : partOf(flags.shard);
  const texts = flags.pieces ? { path } : await readLines(path);
  const options = {
    directory: output,
    hiddenStates: flags.hiddenStates ?? [],
    attentions: flags.attentions ?? [],
    valueRelations: flags.valueRelations ?? [],
    ...(pooling === undefined ? {} : { pooling }),
    ...(relationHeads === undefined ? {} : { relationHeads }),
    ...(dtype === undefined ? {} : { dtype }),
    ...(logits === undefined ? {} : { logits: logits === 'dense' ? 'dense' : { topK: Number(logits) } }),
    ...(flags.pieces === undefined ? {} : { pieces: flags.pieces }),
    ...(flags.maxLength === undefined ? {} : { maxLength: flags.maxLength }),
    ...(shardTexts === undefined ? {} : { shardTexts }),
    ...(batchTokens === undefined ? {} : { batchTokens }),
    // The engine checks every value; the cast only says that it is the one to do so.
  } as ExtractOptions;
  const engine = await createEngine({
    ...(flags.threads === undefined ? {} : { threads: flags.threads }),
    ...(flags.precision === undefined ? {} : { precision: flags.precision as 'fastest' }),
    ...(flags.device === undefined ? {} : { device: flags.device as 'auto' }),
  });
  const progress = flags.quiet ? undefined : showProgress(streams);
  try {
    const hooks = { signal, onProgress: progress?.onProgress };
    const model = await engine.loadLanguageModel(teacher, hooks);
    const numTexts =
      part === undefined
        ? (await engine.extract(model, texts, options, hooks)).numTexts
        : (await engine.extractPart(model, texts, options, part, hooks)).numTexts;
    const directory = resolve(output);
    print(streams, flags.json ?? false, { numTexts, ...(part && { part }), directory }, () =>
      part === undefined
        ? `Knowledge of ${numTexts} texts: ${directory}`
        : `Part ${part.index} of ${part.count}, ${numTexts} texts: ${directory}; join all with limbeck knowledge merge`,
    );
  } finally {
    progress?.close();
    engine.dispose();
  }
}

async function readLines(path: string): Promise<string[]> {
  const lines = (await readTextFile(path)).split(/\r?\n/);
  return lines.filter((line) => line.trim() !== '');
}

/** `limbeck knowledge merge DIR [OTHER…]` */
export async function mergeKnowledgeCommand(
  directory: string,
  others: readonly string[],
  flags: { readonly json?: boolean },
  { streams, signal }: LongCommandContext,
): Promise<void> {
  const { numTexts } = await mergeKnowledge(directory, others, { signal });
  print(streams, flags.json ?? false, { numTexts, directory: resolve(directory) }, () => {
    return `Knowledge of ${numTexts} texts: ${resolve(directory)}`;
  });
}

function partOf(text: string): { index: number; count: number } {
  const [, index, count] = /^(\d{1,5})\/(\d{1,5})$/.exec(text) ?? [];
  if (index === undefined || count === undefined) {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `--shard: expected I/N, as in 1/4, got ${JSON.stringify(text)}`);
  }
  return { index: Number(index), count: Number(count) };
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
