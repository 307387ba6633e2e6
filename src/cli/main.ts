#!/usr/bin/env node
/** The `limbeck` command. */
import { realpathSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Command, CommanderError, InvalidArgumentError } from 'commander';
import { type DistillFlags, distillCommand } from './distill.js';
import { doctorCommand, packageVersion } from './doctor.js';
import { codeOf, EXIT, EXIT_CODE_HELP, exitCodeOf } from './exit-codes.js';
import { inspectCommand } from './inspect.js';
import type { CommandContext, Streams } from './output.js';
import { evaluateCommand, type RecommendFlags, recommendCommand } from './recommend.js';

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
  const controller = new AbortController();
  const stop = () => controller.abort();
  // The second Ctrl-C meets Node's own handler and ends the process at once.
  process.once('SIGINT', stop);
  let exitCode: number = EXIT.ok;
  try {
    const program = commands({ streams, signal: controller.signal }, (code) => {
      exitCode = code;
    });
    await program.parseAsync([...argv], { from: 'user' });
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.ok : EXIT.usage;
    report(error, argv.includes('--json'), streams);
    return exitCodeOf(error);
  } finally {
    process.off('SIGINT', stop);
  }
  return exitCode;
}

function commands(context: CommandContext, setExitCode: (code: number) => void): Command {
  const { streams } = context;
  const program = new Command('limbeck')
    .description('Distils a language model into a small recommender and serves it.')
    .version(packageVersion())
    .exitOverride()
    .configureOutput({ writeOut: (text) => streams.stdout.write(text), writeErr: (text) => streams.stderr.write(text) })
    .addHelpText('after', EXIT_CODE_HELP);
  const json = ['--json', 'print one JSON object as the last line of stdout'] as const;

  program
    .command('distill <config>')
    .description('run all eight steps; CONFIG is a YAML or JSON file')
    .option('--output <dir>', 'directory of the results, instead of the one that CONFIG names')
    .option('--threads <count>', 'compute threads', wholeNumber)
    .option('--quiet', 'show no progress')
    .option(...json)
    .action((config: string, flags: DistillFlags) => distillCommand(config, flags, context));
  program
    .command('evaluate <dir>')
    .description('rank the test cases of a distillation again, with its student')
    .option(...json)
    .action((directory: string, flags: { json?: boolean }) => evaluateCommand(directory, flags, context));
  program
    .command('recommend <dir>')
    .description('recommend items after a history; DIR is a student or the output of a distillation')
    .option('--history <id...>', 'what the user chose, oldest first; ids separated by spaces or commas', ids)
    .option('--text <text...>', 'texts of items that the catalogue does not have, after those of --history')
    .option('--exclude <id...>', 'items never to be recommended', ids)
    .option('--k <count>', 'how many items', wholeNumber, 10)
    .option(...json)
    .action((directory: string, flags: RecommendFlags) => recommendCommand(directory, flags, context));
  program
    .command('inspect <path>')
    .description('describe a safetensors file, a model, a student, a knowledge store or an output directory')
    .option(...json)
    .action((path: string, flags: { json?: boolean }) => inspectCommand(path, flags, context));
  program
    .command('doctor')
    .description('say what this machine offers and what is missing')
    .option(...json)
    .action((flags: { json?: boolean }) => {
      if (!doctorCommand(flags, context)) setExitCode(EXIT.installation);
    });
  return program;
}

function wholeNumber(text: string): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(value)) throw new InvalidArgumentError('Expected a whole number.');
  return value;
}

function ids(text: string, earlier: readonly string[] = []): string[] {
  return [...earlier, ...text.split(',').filter((id) => id !== '')];
}

function report(error: unknown, json: boolean, { stdout, stderr }: Streams): void {
  const message = error instanceof Error ? error.message : String(error);
  const code = codeOf(error) ?? 'ERR_INTERNAL';
  stderr.write(`error: ${message} (${code})\n`);
  if (process.env['LIMBECK_DEBUG'] === '1' && error instanceof Error) stderr.write(`${error.stack}\n`);
  if (json) stdout.write(`${JSON.stringify({ error: { code, message } })}\n`);
}

if (process.argv[1] !== undefined && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  process.exitCode = await run(process.argv.slice(2));
}
