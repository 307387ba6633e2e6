import { isIP } from 'node:net';
import { z } from 'zod';
import { LimbeckError } from '../errors.js';
import { parseOptions } from '../prepare/parse-options.js';

const milliseconds = z.int().min(0).max(3_600_000);

const serverOptionsSchema = z.strictObject({
  /** A student directory, the output directory of a distillation, or a model registry. */
  student: z.string().min(1),
  /** Where events and changes of the catalogue are kept; without it, events are refused. */
  data: z.string().min(1).optional(),
  /** URL of a Redis server that several services share their events over; `data` is still wanted. */
  redis: z.url().optional(),
  /** Events of the log that are over one of these go, once what was learned of them is saved; without limits none do. */
  retention: z
    .strictObject({
      /** Since the receipt. */
      maxAgeMs: z.int().min(1).optional(),
      /** Of the log's files. */
      maxBytes: z.int().min(1).optional(),
      maxEvents: z.int().min(1).optional(),
    })
    .optional(),
  host: z.string().min(1).default('127.0.0.1'),
  /** 0 = any that is free. */
  port: z.int().min(0).max(65_535).default(8080),
  /** File of API keys, made by `limbeck create-key`. Without it, the service binds to loopback alone. */
  keys: z.string().min(1).optional(),
  /** Folder of the page at `/`. @defaultValue the package's own; false = none */
  console: z.union([z.string().min(1), z.literal(false)]).optional(),
  limits: z
    .strictObject({
      bodyBytes: z
        .int()
        .min(1024)
        .max(64 * 1024 * 1024)
        .default(1024 * 1024),
      /** Time that the requests of one turn of the event loop may take together; those behind it get 503. */
      maxQueueMs: z.number().gt(0).max(10_000).default(10),
      connections: z.int().min(1).max(1_000_000).default(10_000),
      /** Requests that wait for the disk, or for a change of models and items, at a time. */
      waiting: z.int().min(1).max(100_000).default(256),
      /** Requests a second of one key, or of one address where there are no keys; 0 = as many as can be answered. */
      requestsPerSecond: z.int().min(0).max(1_000_000).default(0),
      /** Models in memory besides the current one. */
      extraModels: z.int().min(0).max(64).default(2),
    })
    .prefault({}),
  timeouts: z
    .strictObject({
      /** From the first byte of a request to the end of its headers. */
      headersMs: milliseconds.default(10_000),
      /** To the end of its body. */
      requestMs: milliseconds.default(15_000),
      /** How long a connection without a request is kept. */
      keepAliveMs: milliseconds.default(72_000),
      /** How long a connection may do nothing while a request is at work. */
      idleMs: milliseconds.default(30_000),
      /** Between `/readyz` saying no and the end of accepting: what a load balancer needs to notice. */
      drainDelayMs: milliseconds.default(2000),
      /** After that, requests that are still at work are cut off. */
      drainMs: milliseconds.default(25_000),
      /** Between snapshots of what was learned; a restart replays what came since. */
      saveEveryMs: milliseconds.min(1000).default(300_000),
      /** Between looks at the file of keys: how long a key that was taken out may still be good. */
      refreshKeysEveryMs: milliseconds.min(10).default(2000),
      /** Between looks at the registry for a model that another process promoted. */
      refreshModelsEveryMs: milliseconds.min(10).default(2000),
    })
    .prefault({}),
  /** `debug` logs every request, `info` changes and failures. */
  logLevel: z.enum(['trace', 'debug', 'info', 'warn', 'error', 'silent']).default('info'),
});

/** Options of {@link createServer}. */
export type ServerOptions = z.input<typeof serverOptionsSchema>;
export type ServerSettings = z.output<typeof serverOptionsSchema>;

/** @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION */
export function parseServerOptions(options: ServerOptions): ServerSettings {
  const settings = parseOptions(serverOptionsSchema, options, 'server');
  if (settings.redis !== undefined && settings.data === undefined) {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', 'redis: give a data directory too; snapshots are kept there');
  }
  if (settings.redis !== undefined && settings.retention !== undefined) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      'retention: expected none with redis, whose events other services may still need; drop those that all have saved ' +
        'with XTRIM',
    );
  }
  if (settings.keys === undefined && !isLoopback(settings.host)) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `host: '${settings.host}' can be reached from other machines, and there are no keys. ` +
        'Give a file of keys (limbeck create-key makes one), or bind to 127.0.0.1.',
    );
  }
  return settings;
}

/** Whether an address is of this machine alone. A name counts as one only when it is `localhost`. */
export function isLoopback(host: string): boolean {
  if (host === 'localhost' || host === '::1') return true;
  return isIP(host) === 4 && host.startsWith('127.');
}
