import { randomUUID } from 'node:crypto';
import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { DuckDBConnection, DuckDBInstance } from '@duckdb/node-api';
import { LimbeckError } from '../errors.js';
import { throwIfAborted } from './hooks.js';

/** @internal Optional packages are in no declaration: TypeScript would miss them where they are not installed. */
type DuckDBModule = typeof import('@duckdb/node-api');

/** What a statement's parameters may be. */
type Value = string | number | boolean | null;

/** An interrupt that falls between two statements is lost, so an abort repeats it until the statement ends. */
const INTERRUPT_INTERVAL_MS = 10;

/**
 * Loads the embedded database, which is an optional dependency.
 *
 * @internal
 * @throws ERR_MISSING_DEPENDENCY
 */
export async function loadDuckDB(
  importModule: () => Promise<DuckDBModule> = () => import('@duckdb/node-api'),
): Promise<DuckDBModule> {
  try {
    return await importModule();
  } catch (cause) {
    throw new LimbeckError(
      'ERR_MISSING_DEPENDENCY',
      'preparing data needs the optional package @duckdb/node-api, which cannot be loaded here. ' +
        'Install it with: npm install @duckdb/node-api@1.5.5-r.5',
      { cause },
    );
  }
}

/** An embedded database in memory, which spills to the system's temporary directory. One statement at a time. */
export class Database {
  readonly #instance: DuckDBInstance;
  readonly #connection: DuckDBConnection;
  readonly #spillDirectory: string;
  readonly #signal: AbortSignal | undefined;

  private constructor(
    instance: DuckDBInstance,
    connection: DuckDBConnection,
    spillDirectory: string,
    signal: AbortSignal | undefined,
  ) {
    this.#instance = instance;
    this.#connection = connection;
    this.#spillDirectory = spillDirectory;
    this.#signal = signal;
  }

  static async open(options: { threads: number; signal?: AbortSignal | undefined }): Promise<Database> {
    const { DuckDBInstance } = await loadDuckDB();
    const spillDirectory = join(tmpdir(), `limbeck-${randomUUID()}`);
    const instance = await DuckDBInstance.create(':memory:', {
      threads: String(options.threads),
      temp_directory: spillDirectory,
      autoinstall_known_extensions: 'false',
      autoload_known_extensions: 'false',
    });
    const connection = await instance.connect();
    // Not the machine's zone: a date without an offset means the same everywhere.
    await connection.run("SET TimeZone = 'UTC'");
    return new Database(instance, connection, spillDirectory, options.signal);
  }

  /**
   * Runs one statement.
   *
   * @param file the file that the statement reads: what goes wrong is then blamed on it
   * @returns the number of rows changed
   */
  async run(sql: string, values: readonly Value[] = [], file?: string): Promise<number> {
    return this.#guard(async () => (await this.#connection.run(sql, [...values])).rowsChanged, file);
  }

  /** All rows of a small result, as arrays in column order. */
  async rows(sql: string, values: readonly Value[] = [], file?: string): Promise<unknown[][]> {
    return this.#guard(async () => (await this.#connection.runAndReadAll(sql, [...values])).getRowsJS(), file);
  }

  /** The only value of the only row, a number. */
  async number(sql: string, values: readonly Value[] = []): Promise<number> {
    const [row] = await this.rows(sql, values);
    return Number(row?.[0] ?? 0);
  }

  /** Passes the rows of a large result to `visit`, chunk by chunk, as columns. */
  async scan(sql: string, visit: (columns: readonly (readonly unknown[])[]) => void): Promise<void> {
    await this.#guard(async () => {
      const result = await this.#connection.stream(sql);
      for (let chunk = await result.fetchChunk(); chunk && chunk.rowCount > 0; chunk = await result.fetchChunk()) {
        this.throwIfAborted();
        visit(chunk.getColumns());
      }
    });
  }

  /** The only column of a result of `length` rows. The column must be of type INTEGER and hold no null. */
  async int32Column(sql: string, length: number): Promise<Int32Array> {
    const values = new Int32Array(length);
    let filled = 0;
    await this.scan(sql, ([column = []]) => {
      values.set(column as readonly number[], filled);
      filled += column.length;
    });
    return values;
  }

  /** @throws ERR_ABORTED */
  throwIfAborted(): void {
    throwIfAborted(this.#signal);
  }

  async close(): Promise<void> {
    this.#connection.closeSync();
    this.#instance.closeSync();
    await rm(this.#spillDirectory, { recursive: true, force: true });
  }

  async #guard<Result>(work: () => Promise<Result>, file?: string): Promise<Result> {
    this.throwIfAborted();
    let repeat: NodeJS.Timeout | undefined;
    const interrupt = () => {
      this.#connection.interrupt();
      repeat = setInterval(() => this.#connection.interrupt(), INTERRUPT_INTERVAL_MS);
    };
    this.#signal?.addEventListener('abort', interrupt, { once: true });
    try {
      return await work();
    } catch (error) {
      this.throwIfAborted();
      throw error instanceof LimbeckError ? error : databaseError(error, file);
    } finally {
      clearInterval(repeat);
      this.#signal?.removeEventListener('abort', interrupt);
    }
  }
}

/** Text as a SQL literal. */
export function sqlLiteral(text: string): string {
  return `'${text.replaceAll("'", "''")}'`;
}

/** A name as a SQL identifier. */
export function sqlIdentifier(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

function databaseError(cause: unknown, file: string | undefined): LimbeckError {
  const message = cause instanceof Error ? cause.message : String(cause);
  const summary = message.split('\n', 1)[0] ?? message;
  if (/^Out of Memory/i.test(message)) return new LimbeckError('ERR_OUT_OF_MEMORY', summary, { cause });
  if (/No space left/i.test(message)) return new LimbeckError('ERR_NO_SPACE', summary, { cause });
  if (file !== undefined) return new LimbeckError('ERR_FILE_FORMAT', `${file} cannot be read: ${summary}`, { cause });
  return new LimbeckError('ERR_INTERNAL', `the embedded database failed: ${summary}`, { cause });
}
