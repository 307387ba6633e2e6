/** A program that a test runs to its end, which has a limit: the thread of the test waits, and so do the limits of Vitest. */
import { type SpawnSyncOptions, spawnSync } from 'node:child_process';

export interface ProgramOptions extends Pick<SpawnSyncOptions, 'cwd' | 'env'> {
  /** Default 120,000 ms. */
  readonly limitMs?: number;
}

export interface ProgramResult {
  /** Null when it was killed. */
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** @throws Error when it cannot be started, or does not end in time; with what it wrote */
export function runProgram(
  command: string,
  args: readonly string[],
  { limitMs = 120_000, ...options }: ProgramOptions = {},
): ProgramResult {
  const limit = { timeout: limitMs, killSignal: 'SIGKILL' } as const;
  const { status, stdout, stderr, error } = spawnSync(command, args, { ...options, ...limit, encoding: 'utf8' });
  if (error === undefined) return { status, stdout, stderr };
  if ((error as NodeJS.ErrnoException).code !== 'ETIMEDOUT') throw error;
  throw new Error(`${command} ${args.join(' ')} did not end within ${limitMs} ms. It wrote:\n${stdout}${stderr}`);
}

/** @returns what Node.js wrote to stdout @throws Error when it fails */
export function outputOfNode(args: readonly string[], options?: ProgramOptions): string {
  const { status, stdout, stderr } = runProgram(process.execPath, args, options);
  if (status !== 0) throw new Error(`node ${args.join(' ')} ended with ${status}:\n${stdout}${stderr}`);
  return stdout;
}
