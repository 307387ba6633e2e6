import { setFlagsFromString } from 'node:v8';
import { LimbeckError } from '../errors.js';
import { createApiKey, SCOPES, type Scope } from '../server/api-keys.js';
import { createServer, type ServerOptions } from '../server/server.js';
import { type CommandContext, print, printable } from './output.js';

const DAY_MS = 86_400_000;

export interface ServeFlags {
  readonly data: string;
  readonly redis?: string;
  readonly retainDays?: number;
  readonly host?: string;
  readonly port?: number;
  readonly keys?: string;
  readonly console: boolean;
  readonly rateLimit?: number;
  readonly bodyLimit?: number;
  readonly maxQueue?: number;
  readonly drainDelay?: number;
  readonly drainTimeout?: number;
  readonly logLevel?: string;
}

/** `limbeck serve STUDENT`: until SIGTERM or SIGINT, after which it ends in order. */
export async function serveCommand(student: string, flags: ServeFlags, { streams }: CommandContext): Promise<void> {
  // V8 would let a heap of 70 MB become one of 230 before it collects. Collections are short, and a process that takes
  // what it needs is worth them.
  setFlagsFromString('--heap-growing-percent=25');
  const server = await createServer(optionsOf(student, flags), {
    log: streams.stdout as { write(line: string): void },
  });
  const stopped = stopSignal();
  try {
    const url = await server.listen();
    server.app.log.info({ url, pid: process.pid }, 'listening');
    await stopped.promise;
  } catch (error) {
    // Why it cannot serve is what the caller must hear.
    await server.close().catch((err: unknown) => server.app.log.error({ err }, 'closing failed'));
    stopped.forget();
    throw error;
  }
  const isFinished = await server.close();
  stopped.forget();
  if (!isFinished) throw new LimbeckError('ERR_ABORTED', 'Some requests were not finished in time and were cut off.');
}

/** `limbeck create-key FILE` */
export async function createKeyCommand(
  path: string,
  flags: { readonly scopes?: readonly string[]; readonly json?: boolean },
  { streams }: CommandContext,
): Promise<void> {
  const { id, key } = await createApiKey(path, (flags.scopes ?? SCOPES) as readonly Scope[]);
  print(streams, flags.json ?? false, { id, key }, () => key);
  streams.stderr.write(printable(`This is shown once: '${path}' keeps its hash alone.\n`));
}

function optionsOf(student: string, flags: ServeFlags): ServerOptions {
  const { data, redis, retainDays, host, port, keys, rateLimit, bodyLimit, maxQueue } = flags;
  const { drainDelay, drainTimeout, logLevel } = flags;
  const limits = { requestsPerSecond: rateLimit, bodyBytes: bodyLimit, maxQueueMs: maxQueue };
  const timeouts = { drainDelayMs: drainDelay, drainMs: drainTimeout };
  return given({
    student,
    data,
    redis,
    retention: retainDays === undefined ? undefined : { maxAgeMs: retainDays * DAY_MS },
    host,
    port,
    keys,
    logLevel,
    console: flags.console ? undefined : false,
    limits: given(limits),
    timeouts: given(timeouts),
  }) as ServerOptions;
}

/** Without what was not said. */
function given(options: object): object {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
}

/** Resolves at the first SIGTERM or SIGINT; a second one ends the process at once. */
function stopSignal(): { promise: Promise<void>; forget: () => void } {
  const signals = ['SIGTERM', 'SIGINT'] as const;
  let stop: () => void = () => {};
  const promise = new Promise<void>((resolve) => {
    stop = resolve;
  });
  const forget = () => {
    for (const signal of signals) process.off(signal, onSignal);
  };
  let count = 0;
  const onSignal = (signal: NodeJS.Signals) => {
    if (count++ === 0) return stop();
    forget();
    process.kill(process.pid, signal);
  };
  for (const signal of signals) process.on(signal, onSignal);
  return { promise, forget };
}
