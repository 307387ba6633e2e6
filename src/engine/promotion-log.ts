/**
 * Which version is current, as a log of small files numbered from 1: the highest number tells. A file appears with its
 * whole content or not at all, and only where there was none, so that of two processes that promote at once one is told
 * to look again. Nothing is locked: a process that was killed leaves nothing behind that another one waits for.
 */
import { join } from 'node:path';
import { z } from 'zod';
import { LimbeckError } from '../errors.js';
import { createFileExclusive, readDirectory, readJsonFile, remove } from '../formats/files.js';

/** Records kept; older ones only tell what once was. */
const KEPT_RECORDS = 100;
/** Versions that a rollback can go back by. */
const MAX_EARLIER = 32;

const recordSchema = z.object({
  format: z.literal('limbeck-promotion'),
  version: z.literal(1),
  /** Version that is current from now on. */
  name: z.string(),
  /** Versions that were current before, oldest first: where a rollback goes. */
  earlier: z.array(z.string()).max(MAX_EARLIER),
  /** ms since epoch. */
  time: z.number(),
});

export interface Head {
  /** Number of the record; 0 = nothing was ever promoted. */
  readonly number: number;
  readonly name: string | undefined;
  readonly earlier: readonly string[];
}

export class PromotionLog {
  constructor(private readonly directory: string) {}

  /** @throws LimbeckError ERR_FILE_FORMAT for a damaged record, ERR_IO */
  async head(): Promise<Head> {
    const number = (await this.#numbers()).at(-1);
    if (number === undefined) return { number: 0, name: undefined, earlier: [] };
    const path = this.#path(number);
    const parsed = recordSchema.safeParse(await readJsonFile(path));
    if (parsed.success) return { number, name: parsed.data.name, earlier: parsed.data.earlier };
    throw new LimbeckError(
      'ERR_FILE_FORMAT',
      `'${path}' is not a promotion; delete it, and what was current before is so again`,
    );
  }

  /**
   * Makes a version current, unless another process was faster.
   *
   * @param after what {@link head} gave: the record that this one follows
   * @returns whether it is
   * @throws LimbeckError ERR_NO_SPACE, ERR_IO
   */
  async append(after: Head, name: string, earlier: readonly string[]): Promise<boolean> {
    const kept = earlier.slice(-MAX_EARLIER);
    const record = { format: 'limbeck-promotion', version: 1, name, earlier: kept, time: Date.now() };
    const number = after.number + 1;
    if (!(await createFileExclusive(this.#path(number), `${JSON.stringify(record)}\n`))) return false;
    for (const old of await this.#numbers()) {
      if (old <= number - KEPT_RECORDS) await remove(this.#path(old));
    }
    return true;
  }

  /** Ascending. */
  async #numbers(): Promise<number[]> {
    const entries = await readDirectory(this.directory);
    return entries
      .map(({ name }) => name)
      .filter((name) => /^[0-9]{8}\.json$/.test(name))
      .map((name) => Number.parseInt(name, 10));
  }

  #path(number: number): string {
    return join(this.directory, `${String(number).padStart(8, '0')}.json`);
  }
}
