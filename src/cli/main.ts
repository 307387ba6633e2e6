#!/usr/bin/env node
/** The `limbeck` command. */
import { existsSync, realpathSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Command, CommanderError, InvalidArgumentError } from 'commander';
import { LimbeckError } from '../errors.js';
import { type BenchQualityFlags, benchQualityCommand } from './bench.js';
import { type DistillFlags, distillCommand } from './distill.js';
import { doctorCommand, packageVersion } from './doctor.js';
import { codeOf, EXIT, EXIT_CODE_HELP, exitCodeOf } from './exit-codes.js';
import { type GenerateFlags, generateCommand } from './generate.js';
import { inspectCommand } from './inspect.js';
import {
  type ExtractFlags,
  extractKnowledgeCommand,
  type ImportRankingsFlags,
  importRankingsCommand,
  mergeKnowledgeCommand,
} from './knowledge.js';
import { type CommandContext, printable, type Streams } from './output.js';
import { evaluateCommand, type RecommendFlags, recommendCommand } from './recommend.js';
import { createKeyCommand, type ServeFlags, serveCommand } from './serve.js';

/** One Ctrl-C under npm or timeout arrives twice: from the terminal, and passed on by them. */
const ONE_KEY_PRESS_MS = 100;

interface JsonFlag {
  readonly json?: boolean;
}

/**
 * Runs the command.
 *
 * @param argv arguments after the program's name
 * @returns the exit code
 */
export async function run(
  argv: readonly string[],
  streams: Streams = { stdout: process.stdout, stderr: process.stderr },
): Promise<number> {
  let exitCode: number = EXIT.ok;
  try {
    const program = commands({ streams }, (code) => {
      exitCode = code;
    });
    await program.parseAsync([...argv], { from: 'user' });
  } catch (error) {
    // --help and --version also end by throwing.
    if (error instanceof CommanderError && error.exitCode === 0) return EXIT.ok;
    const failure = error instanceof CommanderError ? usageError(error) : error;
    report(failure, argv.includes('--json'), streams);
    return exitCodeOf(failure);
  }
  return exitCode;
}

function commands(context: CommandContext, setExitCode: (code: number) => void): Command {
  const { streams } = context;
  const program = new Command('limbeck')
    .description('Distils a language model into a small recommender and serves it.')
    .version(packageVersion())
    .exitOverride()
    .configureOutput({
      writeOut: (text) => streams.stdout.write(text),
      writeErr: (text) => streams.stderr.write(text),
      // run() reports errors, all in the same form.
      outputError: () => {},
    })
    .addHelpText('after', EXIT_CODE_HELP);
  const json = ['--json', 'print one JSON object as the last line of stdout'] as const;

  program
    .command('distill <config>')
    .description('run all eight steps; CONFIG is a YAML or JSON file')
    .option('--output <dir>', 'directory of the results, instead of the one that CONFIG names')
    .option('--seeds <list>', 'training seeds, separated by commas, instead of those of CONFIG', numbers)
    .option('--threads <count>', 'compute threads; 0 = all that this machine allows', wholeNumber)
    .option('--device <name>', 'cpu, cuda, or auto: the GPU where it can be used (default: auto)')
    .option('--precision <name>', 'float32, bfloat16, or fastest: what operands of products are rounded to')
    .option('--quiet', 'show no progress')
    .option(...json)
    .action((config: string, flags: DistillFlags) =>
      stoppable((signal) => distillCommand(config, flags, { streams, signal })),
    );
  program
    .command('evaluate <dir>')
    .description('rank the test cases of a distillation again, with its student')
    .option(...json)
    .action((directory: string, flags: JsonFlag) =>
      stoppable((signal) => evaluateCommand(directory, flags, { streams, signal })),
    );
  program
    .command('recommend <dir>')
    .description('recommend items after a history; DIR is a student or the output of a distillation')
    .option('--history <id...>', 'what the user chose, oldest first; ids separated by spaces or commas')
    .option('--text <text...>', 'texts of items that the catalogue does not have, after those of --history')
    .option('--exclude <id...>', 'items never to be recommended')
    .option('--k <count>', 'how many items', wholeNumber, 10)
    .option(...json)
    .action((directory: string, flags: RecommendFlags) => recommendCommand(directory, flags, context));
  program
    .command('generate <model> <prompt...>')
    .description('continue a text; MODEL is a directory or hf://owner/model, PROMPT may be - for stdin')
    .option('--max-new-tokens <count>', 'the text ends there at the latest', wholeNumber, 128)
    .option('--min-new-tokens <count>', 'before so many, it does not end (default: 0)', wholeNumber)
    .option('--temperature <number>', '0 = the best token each time (default: 0)', decimal)
    .option('--top-k <count>', 'candidates of a draw; 0 = all (default: 0)', wholeNumber)
    .option('--top-p <number>', 'of these, the fewest best whose probabilities sum to so much (default: 1)', decimal)
    .option('--repetition-penalty <number>', 'of tokens that were there already; 1 = none (default: 1)', decimal)
    .option('--stop <text>', 'ends the text, which does not hold it; may be given several times', texts)
    .option('--seed <number>', 'the same seed draws the same text (default: 0)', wholeNumber)
    .option('--long-prompt <name>', 'of more tokens than can be read: error, or truncateLeft (default: error)')
    .option('--threads <count>', 'compute threads; 0 = all that this machine allows', wholeNumber)
    .option('--device <name>', 'cpu, cuda, or auto; texts are generated on the processor', 'cpu')
    .option('--precision <name>', 'float32, bfloat16, or fastest: what operands of products are rounded to')
    .option('--quiet', 'show no progress of a download')
    .option(...json)
    .action((model: string, words: string[], flags: GenerateFlags) =>
      stoppable((signal) => generateCommand(model, words, flags, { streams, signal })),
    );
  program
    .command('serve <student>')
    .description('answer requests over HTTP; STUDENT is a student, the output of a distillation, or a model registry')
    .option('--data <dir>', 'where events and changes of the catalogue are kept', 'limbeck-data')
    .option('--redis <url>', 'Redis server over which several services share their events')
    .option('--retain-days <count>', 'drop events of the log that are older (default: keep all)', wholeNumber)
    .option('--host <address>', 'address to bind to (default: 127.0.0.1; any other needs --keys)')
    .option('--port <port>', 'port to bind to; 0 = any (default: 8080)', wholeNumber)
    .option('--keys <file>', 'file of API keys, made by create-key')
    .option('--rate-limit <count>', 'requests a second of one key or address (default: no limit)', wholeNumber)
    .option('--body-limit <bytes>', 'longest body of a request (default: 1048576)', wholeNumber)
    .option('--max-queue <ms>', 'how long requests may wait before others get 503 (default: 10)', wholeNumber)
    .option('--drain-delay <ms>', 'from not ready to accepting no more, at the end (default: 2000)', wholeNumber)
    .option('--drain-timeout <ms>', 'how long requests at work may take, at the end (default: 25000)', wholeNumber)
    .option('--log-level <level>', 'trace, debug (every request), info, warn, error or silent (default: info)')
    .option('--no-console', 'without the page at /')
    .action((student: string, flags: ServeFlags) => serveCommand(student, flags, context));
  program
    .command('create-key <file>')
    .description('add an API key for serve to a file, and show it once')
    .option('--scopes <scope...>', 'what it allows: read, write; both when not said', ids)
    .option(...json)
    .action((file: string, flags: { scopes?: string[]; json?: boolean }) => createKeyCommand(file, flags, context));
  program
    .command('bench')
    .description('measure recommenders on data of the literature, or on your own')
    .command('quality')
    .description('baselines, teacher and students by full ranking, with intervals; finished rows are not run again')
    .requiredOption('--data <set>', 'beauty, ml-1m, or a config as distill reads it, with students, rows and published')
    .option('--path <dir>', 'folder with the files of beauty or ml-1m (default: its folder in $LIMBECK_DATA)')
    .option(
      '--encoder <dir>',
      'model2vec encoder for their texts (default: models/model2vec-bge-vq128 beside the data)',
    )
    .option('--output <dir>', 'directory of the results (default: out/quality-SET, or what the config says)')
    .option('--seeds <list>', 'training seeds, separated by commas (default: 0,1,2)', numbers)
    .option('--rows <list>', 'rows to run, separated by commas (default: all)', ids)
    .option('--threads <count>', 'compute threads; 0 = all that this machine allows', wholeNumber)
    .option('--device <name>', 'cpu, cuda, or auto: the GPU where it can be used (default: auto)')
    .option(
      '--precision <name>',
      'of products in training: float32, bfloat16 or fastest (default: float32, or what the set says)',
    )
    .option('--quiet', 'show no progress')
    .option(...json)
    .action((flags: BenchQualityFlags) => stoppable((signal) => benchQualityCommand(flags, { streams, signal })));
  const knowledge = program.command('knowledge').description('what teachers know');
  knowledge
    .command('extract <teacher> <texts>')
    .description('run a language model over a file of one text a line and keep what it says; goes on where it stopped')
    .requiredOption('--output <dir>', 'directory of the store')
    .option('--hidden-states <list>', 'layers, separated by commas; 0 = embeddings', numbers)
    .option('--pooling <name>', 'one row a text instead of one a token: mean, last, cls or attention (default: none)')
    .option('--attentions <list>', 'blocks whose attention maps are kept, from 1', numbers)
    .option('--value-relations <list>', 'blocks whose value relations are kept, from 1', numbers)
    .option('--relation-heads <count>', "heads of value relations (default: the teacher's)", wholeNumber)
    .option('--dtype <name>', 'float32, float16 or bfloat16: what states, maps and relations are rounded to')
    .option('--logits <count>', 'how many of the best logits of each token, or dense')
    .option('--pieces', 'texts as training reads them: for a student that is trained from the store')
    .option('--max-length <count>', "tokens of a piece at most (default: the teacher's positions)", wholeNumber)
    .option('--shard <i/n>', 'only part I of N, as one of N processes; limbeck knowledge merge joins them')
    .option('--shard-texts <count>', 'texts of one file (default: 4096)', wholeNumber)
    .option('--batch-tokens <count>', 'tokens of one pass (default: 4096; on a GPU 32768)', wholeNumber)
    .option('--threads <count>', 'compute threads; 0 = all that this machine allows', wholeNumber)
    .option('--device <name>', 'cpu, cuda, or auto: the GPU where it can be used (default: auto)')
    .option('--precision <name>', 'float32, bfloat16, or fastest: what operands of products are rounded to')
    .option('--quiet', 'show no progress')
    .option(...json)
    .action((teacher: string, texts: string, flags: ExtractFlags) =>
      stoppable((signal) => extractKnowledgeCommand(teacher, texts, flags, { streams, signal })),
    );
  knowledge
    .command('merge <dir> [others...]')
    .description('make one store of the parts in DIR, and of those in other directories, which are copied into it')
    .option(...json)
    .action((directory: string, others: string[], flags: JsonFlag) =>
      stoppable((signal) => mergeKnowledgeCommand(directory, others, flags, { streams, signal })),
    );
  knowledge
    .command('import <rankings>')
    .description('check rankings that another teacher made (TSV, CSV or JSON lines), for "rankings" of a distillation')
    .requiredOption('--data <config>', 'config whose data the rankings are over')
    .requiredOption('--output <file>', 'safetensors file to write')
    .option('--format <name>', 'tsv, csv or jsonl (default: by the name)')
    .option('--user <column>', 'column of the user whose training history was ranked after (default: user)')
    .option('--history <column>', 'column of the items that were ranked after (default: history)')
    .option('--items <column>', 'column of the ranked items, best first (default: items)')
    .option('--scores <column>', 'column of their scores (default: scores, where there is one)')
    .option('--separator <text>', 'what stands between the values of a list (default: white space)')
    .option(
      '--item-column <column>',
      'column of the item file whose values the rankings name items by (default: the id)',
    )
    .option('--where <column=value>', 'only rows with this value')
    .option('--skip-broken', 'leave out rows that cannot be used, instead of refusing the file')
    .option(...json)
    .action((rankings: string, flags: ImportRankingsFlags) =>
      stoppable((signal) => importRankingsCommand(rankings, flags, { streams, signal })),
    );
  program
    .command('inspect <path>')
    .description('describe a safetensors file, a model, a student, a knowledge store or an output directory')
    .option(...json)
    .action(async (path: string, flags: JsonFlag) => {
      if (!(await inspectCommand(path, flags, context))) setExitCode(EXIT.file);
    });
  program
    .command('doctor')
    .description('say what this machine offers and what is missing')
    .option(...json)
    .action((flags: JsonFlag) => {
      if (!doctorCommand(flags, context)) setExitCode(EXIT.installation);
    });
  return program;
}

/** Work that Ctrl-C stops in order; a second Ctrl-C ends the process at once. */
async function stoppable(work: (signal: AbortSignal) => Promise<void>): Promise<void> {
  const controller = new AbortController();
  let stoppedAt = 0;
  const stop = () => {
    if (!controller.signal.aborted) {
      stoppedAt = performance.now();
      controller.abort();
    } else if (performance.now() - stoppedAt > ONE_KEY_PRESS_MS) {
      process.off('SIGINT', stop);
      process.kill(process.pid, 'SIGINT');
    }
  };
  process.on('SIGINT', stop);
  try {
    await work(controller.signal);
  } finally {
    process.off('SIGINT', stop);
  }
}

function wholeNumber(text: string): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(value)) throw new InvalidArgumentError('Expected a whole number.');
  return value;
}

function decimal(text: string): number {
  const value = Number(text);
  if (text.trim() === '' || !Number.isFinite(value)) throw new InvalidArgumentError('Expected a number.');
  return value;
}

function texts(text: string, earlier: readonly string[] = []): string[] {
  return [...earlier, text];
}

function numbers(text: string): number[] {
  return text.split(',').map(wholeNumber);
}

function ids(text: string, earlier: readonly string[] = []): string[] {
  const named = text.split(',').map((id) => id.trim());
  return [...earlier, ...named.filter((id) => id !== '')];
}

/** What commander found wrong with the arguments, as an error of ours. */
function usageError({ code, message }: CommanderError): LimbeckError {
  if (code === 'commander.help') return new LimbeckError('ERR_INVALID_ARGUMENT', 'name a command');
  const text = message.replace(/^error: /, '').replaceAll('\n', ' ');
  return new LimbeckError(code === 'commander.unknownOption' ? 'ERR_UNKNOWN_OPTION' : 'ERR_INVALID_ARGUMENT', text);
}

function report(error: unknown, json: boolean, { stdout, stderr }: Streams): void {
  const message = error instanceof Error ? error.message : String(error);
  const code = codeOf(error) ?? 'ERR_INTERNAL';
  stderr.write(printable(`error: ${message} (${code})\n`));
  if (process.env['LIMBECK_DEBUG'] === '1' && error instanceof Error) stderr.write(printable(`${error.stack}\n`));
  if (json) stdout.write(`${JSON.stringify({ error: { code, message } })}\n`);
}

/** Whether Node was started with this file, by its own path or through the link that npm makes. */
function isMain(): boolean {
  const [, program] = process.argv;
  return (
    program !== undefined &&
    existsSync(program) &&
    realpathSync(program) === realpathSync(fileURLToPath(import.meta.url))
  );
}

if (isMain()) {
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    // A reader that left, as in `limbeck inspect … | head`, wants no more lines: no failure.
    if (error.code === 'EPIPE') return;
    process.exitCode = EXIT.resources;
    process.stderr.write(`error: cannot write to stdout: ${error.message} (ERR_IO)\n`);
  });
  // Nobody is left to be told about stderr, and the work goes on.
  process.stderr.on('error', () => {});
  const exitCode = await run(process.argv.slice(2));
  process.exitCode ??= exitCode;
}
