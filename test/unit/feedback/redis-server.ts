/** A Redis server for one test file, on a free port of the loopback and with a directory of its own. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** Why there can be none; undefined when there can. */
export const NO_REDIS =
  spawnSync('redis-server', ['--version']).status === 0
    ? undefined
    : 'redis-server is not installed (apt-get install redis-server)';

export class RedisServer {
  readonly #directory = mkdtempSync(join(tmpdir(), 'limbeck-redis-'));
  readonly #args: readonly string[];
  #process: ChildProcess | undefined;
  port = 0;

  constructor(
    args: readonly string[] = ['--appendonly', 'yes', '--appendfsync', 'always', '--repl-diskless-sync-delay', '0'],
  ) {
    this.#args = args;
  }

  get url(): string {
    return `redis://127.0.0.1:${this.port}`;
  }

  /** Resolves when it answers; on the port that it had before. */
  async start(): Promise<void> {
    this.port ||= await freePort();
    const settings = ['--port', String(this.port), '--bind', '127.0.0.1', '--dir', this.#directory, '--save', ''];
    const child = spawn('redis-server', [...settings, ...this.#args], { stdio: ['ignore', 'pipe', 'inherit'] });
    this.#process = child;
    for await (const text of child.stdout) {
      if (String(text).includes('Ready to accept connections')) break;
    }
    child.stdout.resume();
  }

  async kill(signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    const child = this.#process;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    child.kill(signal);
    await once(child, 'exit');
  }

  signal(signal: NodeJS.Signals): void {
    this.#process?.kill(signal);
  }

  async remove(): Promise<void> {
    await this.kill();
    rmSync(this.#directory, { recursive: true });
  }
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  server.close();
  await once(server, 'close');
  return typeof address === 'object' && address !== null ? address.port : 0;
}
