import { resolve } from 'node:path';
import type { DistillOptions } from '../engine/options.js';
import { createEngine } from '../engine.js';
import { LimbeckError } from '../errors.js';
import type { DistillationReport, ExampleUser } from '../evaluate/report-types.js';
import { formatTable } from '../evaluate/table.js';
import { readConfig } from './config.js';
import { type LongCommandContext, print } from './output.js';
import { showProgress } from './progress.js';

export interface DistillFlags {
  readonly json?: boolean;
  readonly quiet?: boolean;
  readonly output?: string;
  readonly seeds?: readonly number[];
  readonly threads?: number;
  /** Both checked by the engine. */
  readonly precision?: string;
  readonly device?: string;
}

const USERS_SHOWN = 3;
const ITEMS_SHOWN = 5;

/** `limbeck distill CONFIG` */
export async function distillCommand(
  path: string,
  flags: DistillFlags,
  { streams, signal }: LongCommandContext,
): Promise<void> {
  const start = performance.now();
  const config = await readConfig(path);
  const engine = await createEngine({
    ...(flags.threads === undefined ? {} : { threads: flags.threads }),
    ...(flags.precision === undefined ? {} : { precision: flags.precision as 'fastest' }),
    ...(flags.device === undefined ? {} : { device: flags.device as 'auto' }),
  });
  const progress = flags.quiet ? undefined : showProgress(streams);
  try {
    const options = {
      ...config,
      ...(flags.output === undefined ? {} : { output: flags.output }),
      ...(flags.seeds === undefined ? {} : { seeds: flags.seeds }),
    };
    // The engine checks every key; the cast only says that it is the one to do so.
    const result = await engine.distill(options as DistillOptions, { signal, onProgress: progress?.onProgress });
    const { report, reportPath, directory } = result;
    const seconds = Math.round((performance.now() - start) / 100) / 10;
    print(streams, flags.json ?? false, summary(report, resolve(reportPath), resolve(directory), seconds), () =>
      [
        '',
        formatTable(report.rows),
        '',
        ...report.examples.slice(0, USERS_SHOWN).map(formatUser),
        `Report: ${resolve(reportPath)}`,
        `Student: ${resolve(directory, 'student')}   (${seconds} s)`,
      ].join('\n'),
    );
  } catch (error) {
    if (!(error instanceof LimbeckError && error.code === 'ERR_ABORTED')) throw error;
    throw new LimbeckError('ERR_ABORTED', 'Stopped. The same command goes on from here.', { cause: error });
  } finally {
    progress?.close();
    engine.dispose();
  }
}

function summary(report: DistillationReport, reportPath: string, directory: string, seconds: number): object {
  return {
    rows: report.rows.map(({ metrics: _metrics, ...row }) => row),
    comparison: report.comparison,
    ...(report.lm ? { lm: report.lm } : {}),
    compressionRatio: report.compressionRatio,
    examples: report.examples.slice(0, USERS_SHOWN),
    reportPath,
    directory,
    seconds,
  };
}

function formatUser({ user, history, recommendations, next }: ExampleUser): string {
  const hits = recommendations.slice(0, ITEMS_SHOWN).map(({ text, id }, i) => {
    const mark = id === next?.id ? '  ← what came next' : '';
    return `    ${i + 1}. ${text}${mark}`;
  });
  const last = history.slice(-ITEMS_SHOWN).map(({ text }) => `    · ${text}`);
  return [`User ${user} chose`, ...last, '  and is recommended', ...hits, ''].join('\n');
}
