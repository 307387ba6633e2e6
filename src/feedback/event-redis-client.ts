/** One connection to a Redis server, which is made again when it breaks. */
import { LimbeckError } from '../errors.js';

/** @internal Optional packages are in no declaration: TypeScript would miss them where they are not installed. */
type RedisModule = typeof import('@redis/client');

const CONNECT_TIMEOUT_MS = 5_000;
const MAX_RECONNECT_DELAY_MS = 1_000;
/** First words of replies that say "not now": starting, failing over, or at work on a long script. */
const TEMPORARY = new Set(['LOADING', 'READONLY', 'MASTERDOWN', 'CLUSTERDOWN', 'TRYAGAIN', 'BUSY', 'NOREPLICAS']);

/** @internal @throws LimbeckError ERR_MISSING_DEPENDENCY */
export async function loadRedis(
  importModule: () => Promise<RedisModule> = () => import('@redis/client'),
): Promise<RedisModule> {
  try {
    return await importModule();
  } catch (cause) {
    throw new LimbeckError(
      'ERR_MISSING_DEPENDENCY',
      'Events in Redis need the optional package @redis/client, which cannot be loaded here. ' +
        'Install it with: npm install @redis/client@6.3.1',
      { cause },
    );
  }
}

/** What a command rejects with when no reply came: the connection broke, or there is none now. */
export class ConnectionLostError extends Error {}

export class RedisConnection {
  readonly #module: RedisModule;
  readonly #client: ReturnType<RedisModule['createClient']>;
  /** How often it was made: what one connection was told, the next does not know. */
  epoch = 0;
  /** What broke it last. */
  #trouble: unknown;

  private constructor(module: RedisModule, url: string) {
    this.#module = module;
    this.#client = module.createClient({
      url,
      RESP: 2,
      // A command on a broken connection fails at once; who sent it decides whether it can be sent again.
      disableOfflineQueue: true,
      socket: {
        connectTimeout: CONNECT_TIMEOUT_MS,
        // The first connection is made once, so that a wrong address is told at once.
        reconnectStrategy: (retries) => this.epoch > 0 && Math.min(20 * 2 ** retries, MAX_RECONNECT_DELAY_MS),
      },
    }) as ReturnType<RedisModule['createClient']>;
    this.#client.on('ready', () => {
      this.epoch++;
    });
    this.#client.on('error', (error: unknown) => {
      this.#trouble = error;
    });
  }

  /** @throws LimbeckError ERR_INVALID_ARGUMENT (no URL of Redis), ERR_IO (no server answers), ERR_MISSING_DEPENDENCY */
  static async open(url: string): Promise<RedisConnection> {
    const module = await loadRedis();
    let connection: RedisConnection;
    try {
      connection = new RedisConnection(module, url);
    } catch (cause) {
      throw new LimbeckError('ERR_INVALID_ARGUMENT', 'Expected store.redis to be a URL such as redis://host:6379.', {
        cause,
      });
    }
    try {
      await connection.#client.connect();
    } catch (cause) {
      const { message } = (connection.#trouble ?? cause) as Error;
      throw new LimbeckError('ERR_IO', `Cannot connect to Redis: ${message}`, { cause });
    }
    return connection;
  }

  /** The server's reply: a string, a number, null, or an array of those. @throws ErrorReply, ConnectionLostError */
  async command(...args: readonly (string | number)[]): Promise<unknown> {
    try {
      return await this.#client.sendCommand(args.map(String));
    } catch (cause) {
      if (cause instanceof this.#module.ErrorReply) throw cause;
      throw new ConnectionLostError((cause as Error).message, { cause });
    }
  }

  /** Whether the same command can succeed later: the connection broke, or the server is not ready. */
  isTemporary(error: unknown): boolean {
    if (error instanceof ConnectionLostError) return true;
    return error instanceof this.#module.ErrorReply && TEMPORARY.has(firstWord(error));
  }

  close(): void {
    this.#client.destroy();
  }
}

/** What a failed command is reported as: ERR_NO_SPACE when Redis is out of memory or its disk is full, else ERR_IO. */
export function redisError(error: unknown, doing: string): LimbeckError {
  if (error instanceof LimbeckError) return error;
  const { message } = error as Error;
  const isFull = firstWord(error) === 'OOM' || /no space left/i.test(message);
  return new LimbeckError(isFull ? 'ERR_NO_SPACE' : 'ERR_IO', `Redis failed while ${doing}: ${message}`, {
    cause: error,
  });
}

export function firstWord(error: unknown): string {
  return /^\w*/.exec((error as Error).message)?.[0] ?? '';
}

/**
 * What in the server's configuration weakens what a store promises. Managed servers may refuse CONFIG; then nothing is
 * known, which is said.
 */
export async function findWarnings(connection: RedisConnection): Promise<string[]> {
  const config = new Map<string, string>();
  try {
    const reply = (await connection.command(
      'CONFIG',
      'GET',
      'appendonly',
      'appendfsync',
      'maxmemory-policy',
    )) as string[];
    for (let i = 0; i + 1 < reply.length; i += 2) config.set(String(reply[i]), String(reply[i + 1]));
  } catch (error) {
    if (connection.isTemporary(error)) throw error;
    return [`The server does not tell its configuration (${firstWord(error)}): whether events survive it is unknown.`];
  }
  const warnings: string[] = [];
  if (config.get('appendonly') !== 'yes') {
    warnings.push('appendonly is off: events since the last snapshot are lost when the server stops.');
  } else if (config.get('appendfsync') !== 'always') {
    warnings.push(
      `appendfsync is ${config.get('appendfsync')}: a power failure loses events of the last second or more.`,
    );
  }
  const policy = config.get('maxmemory-policy') ?? 'noeviction';
  if (policy !== 'noeviction') {
    warnings.push(`maxmemory-policy is ${policy}: a server that is out of memory may drop events, or ids too early.`);
  }
  return warnings;
}
