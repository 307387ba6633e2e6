import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { QualityOptions } from '../engine/quality-options.js';
import { QUALITY_RECIPES } from '../engine/quality-recipes.js';
import { createEngine, type EngineOptions } from '../engine.js';
import { LimbeckError } from '../errors.js';
import { formatQualityTable } from '../evaluate/quality-table.js';
import { readConfig } from './config.js';
import { packageVersion } from './doctor.js';
import { type LongCommandContext, print, type Streams } from './output.js';
import { showProgress } from './progress.js';

/** Where a static encoder is looked for beside the data. */
const ENCODER_FOLDER = 'models/model2vec-bge-vq128';

export interface BenchQualityFlags {
  /** A built-in set, or a config file. */
  readonly data: string;
  /** Folder of the files of a built-in set. */
  readonly path?: string;
  /** A model2vec directory, for the texts of a built-in set. */
  readonly encoder?: string;
  readonly output?: string;
  readonly seeds?: readonly number[];
  readonly rows?: readonly string[];
  readonly threads?: number;
  readonly precision?: string;
  readonly device?: string;
  readonly quiet?: boolean;
  readonly json?: boolean;
}

/** `limbeck bench quality --data beauty|ml-1m|CONFIG` */
export async function benchQualityCommand(
  flags: BenchQualityFlags,
  { streams, signal }: LongCommandContext,
): Promise<void> {
  const start = performance.now();
  const { config, precision } = await benchConfig(flags, streams);
  const engine = await createEngine({
    ...(flags.threads === undefined ? {} : { threads: flags.threads }),
    // The engine checks both words.
    ...(flags.device === undefined ? {} : { device: flags.device as 'auto' }),
    precision: (flags.precision ?? precision) as EngineOptions['precision'],
  });
  const progress = flags.quiet ? undefined : showProgress(streams);
  try {
    const options = {
      ...config,
      output: flags.output ?? config['output'] ?? join('out', `quality-${flags.data}`),
      ...(flags.seeds === undefined ? {} : { seeds: flags.seeds }),
      ...(flags.rows === undefined ? {} : { rows: flags.rows }),
    };
    // The engine checks every key; the cast only says that it is the one to do so.
    const result = await engine.benchQuality(options as QualityOptions, {
      signal,
      onProgress: progress?.onProgress,
      version: packageVersion(),
      commit: checkoutCommit(),
    });
    const { report, jsonPath, reportPath } = result;
    const seconds = Math.round((performance.now() - start) / 100) / 10;
    const { rows, published, machine, data, seeds } = report;
    const summary = {
      rows: rows.map(({ metrics: _metrics, ...row }) => row),
      published,
      data,
      seeds,
      machine,
      jsonPath: resolve(jsonPath),
      reportPath: resolve(reportPath),
      seconds,
    };
    print(streams, flags.json ?? false, summary, () =>
      [
        '',
        formatQualityTable(report),
        '',
        `Numbers: ${resolve(jsonPath)}`,
        `Report: ${resolve(reportPath)}   (${seconds} s)`,
      ].join('\n'),
    );
  } finally {
    progress?.close();
    engine.dispose();
  }
}

/** The settings of a built-in set over the user's copy of its files, or those of a config file. */
async function benchConfig(
  { data, path, encoder }: BenchQualityFlags,
  { stderr }: Streams,
): Promise<{ config: Record<string, unknown>; precision: string }> {
  const recipe = Object.hasOwn(QUALITY_RECIPES, data) ? QUALITY_RECIPES[data] : undefined;
  if (recipe === undefined) {
    const flag = path !== undefined ? '--path' : encoder !== undefined ? '--encoder' : undefined;
    if (flag !== undefined) {
      throw new LimbeckError(
        'ERR_INVALID_ARGUMENT',
        `${flag}: expected with --data ${Object.keys(QUALITY_RECIPES).join(' or ')} alone; a config names its own files`,
      );
    }
    return { config: await readConfig(data), precision: 'float32' };
  }
  const root = process.env['LIMBECK_DATA'];
  const folder = path ?? (root === undefined || root === '' ? undefined : join(root, recipe.folder));
  const names = recipe.files.join(' and ');
  if (folder === undefined) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `--data ${data}: expected the folder that holds ${names}, in --path or as ${recipe.folder}/ in the folder that ` +
        'the environment variable LIMBECK_DATA names',
    );
  }
  const missing = recipe.files.find((file) => !existsSync(join(folder, file)));
  if (missing !== undefined) {
    throw new LimbeckError(
      'ERR_FILE_NOT_FOUND',
      `--data ${data}: expected ${names} in '${folder}'; there is no ${missing}`,
    );
  }
  const usual = join(folder, '..', ENCODER_FOLDER);
  const found = encoder ?? (existsSync(usual) ? usual : undefined);
  if (found === undefined) {
    stderr.write(
      'Texts are known by the words of the catalogue alone: give a model2vec directory in --encoder for more.\n',
    );
  }
  return { config: { ...recipe.options(folder, found) }, precision: recipe.precision };
}

/** The commit that the program runs from, with `-dirty` where files differ from it; undefined in an installed package. */
function checkoutCommit(): string | undefined {
  const root = fileURLToPath(new URL('../..', import.meta.url));
  if (!existsSync(join(root, '.git'))) return undefined;
  const { status, stdout } = spawnSync(
    'git',
    ['-C', root, 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*'],
    {
      encoding: 'utf8',
    },
  );
  // Without git there is no commit to name.
  return status === 0 ? stdout.trim() : undefined;
}
