/** `limbeck serve` as a process of its own, compiled (`npm test` compiles it first). */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';

const MAIN = join(import.meta.dirname, '../../dist/cli/main.js');

export interface ServeProcess {
  readonly url: string;
  readonly port: number;
  readonly child: ChildProcess;
  /** Lines of the log so far. */
  readonly log: Record<string, unknown>[];
  /** Sends SIGTERM and waits. @returns the exit code */
  stop(): Promise<number | null>;
}

/** @throws Error with what the process wrote, when it ends before it listens */
export async function spawnServe(student: string, ...args: string[]): Promise<ServeProcess> {
  // A test machine that is busy with other things is no overload.
  const fixed = ['--port', '0', '--drain-delay', '50', '--max-queue', '10000', '--no-console'];
  const argv = [MAIN, 'serve', student, ...fixed, ...args];
  const child = spawn(process.execPath, argv, { stdio: ['ignore', 'pipe', 'pipe'] });
  const log: Record<string, unknown>[] = [];
  let stderr = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  // Not 'exit', which may come before the last of what it wrote.
  const ended = once(child, 'close') as Promise<[number | null]>;
  const url = await new Promise<string>((resolve, reject) => {
    let rest = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      const lines = (rest + text).split('\n');
      rest = lines.pop() ?? '';
      for (const line of lines) {
        const entry = JSON.parse(line) as Record<string, unknown>;
        log.push(entry);
        if (entry['msg'] === 'listening') resolve(String(entry['url']));
      }
    });
    void ended.then(([code]) => reject(new Error(`limbeck serve ended with ${code}: ${stderr}`)));
  });
  return {
    url,
    port: Number(new URL(url).port),
    child,
    log,
    async stop() {
      child.kill('SIGTERM');
      return (await ended)[0];
    },
  };
}
