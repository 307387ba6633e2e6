/**
 * Versions of a student under one directory, of which one is current:
 *
 *   versions/NAME/         a student directory that never changes, and version.json, which tells its bytes
 *   promotions/N.json      what is current since the N-th promotion (see PromotionLog)
 *
 * A process can be killed at any moment, and several can work on one directory: `current` is always a version that was
 * whole when it was promoted.
 */
import fs from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { z } from 'zod';
import { checkInstance, checkPath, described } from '../arguments.js';
import type { NativeEngine } from '../binding.js';
import { LimbeckError } from '../errors.js';
import {
  isTemporaryName,
  makeDirectory,
  pathExists,
  readDirectory,
  remove,
  syncDirectory,
  temporarySibling,
  writeDirectoryAtomic,
  writeError,
} from '../formats/files.js';
import { parseOptions } from '../prepare/parse-options.js';
import { loadStudent } from '../recommend/load-student.js';
import { Student } from '../recommend/student.js';
import { checkMetadata, type ModelMetadata, readManifest, verifyManifest, writeManifest } from './model-manifest.js';
import { type Head, PromotionLog } from './promotion-log.js';

const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;
/** What a killed process left unfinished is removed when it is older: no write takes as long. */
const STALE_MS = 3_600_000;

const registryOptionsSchema = z.strictObject({
  /** Newest versions that are kept; the current one and the one before it always are. */
  keep: z.int().min(1).max(10_000).default(5),
});

export type ModelRegistryOptions = z.input<typeof registryOptionsSchema>;

export interface ModelVersion {
  readonly name: string;
  readonly isCurrent: boolean;
  /** ms since epoch, later than that of the versions before it; 0 where `problem` tells why it is not known. */
  readonly createdAt: number;
  readonly sizeBytes: number;
  readonly metadata: ModelMetadata;
  /** Why the version cannot be read. Its bytes are compared by `load` and `promote` only. */
  readonly problem?: string;
}

export class ModelRegistry {
  readonly #engine: NativeEngine;
  readonly #keep: number;
  readonly #log: PromotionLog;

  private constructor(
    engine: NativeEngine,
    readonly directory: string,
    keep: number,
  ) {
    this.#engine = engine;
    this.#keep = keep;
    this.#log = new PromotionLog(join(directory, 'promotions'));
  }

  /**
   * Opens the registry of a directory, which is made where it is missing.
   *
   * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION, ERR_NO_SPACE, ERR_IO
   */
  static async open(
    engine: NativeEngine,
    directory: string,
    options: ModelRegistryOptions = {},
  ): Promise<ModelRegistry> {
    const { keep } = parseOptions(registryOptionsSchema, options, 'openModelRegistry');
    checkPath(directory, 'directory');
    const registry = new ModelRegistry(engine, resolve(directory), keep);
    for (const folder of ['versions', 'promotions']) {
      await makeDirectory(join(registry.directory, folder));
      await removeStale(join(registry.directory, folder));
    }
    return registry;
  }

  /** Name of the current version; undefined before the first promotion. @throws LimbeckError ERR_FILE_FORMAT, ERR_IO */
  async current(): Promise<string | undefined> {
    return (await this.#log.head()).name;
  }

  /** All versions, newest first; those that cannot be read come last and tell why. @throws LimbeckError ERR_IO */
  async list(): Promise<ModelVersion[]> {
    const { name: current } = await this.#log.head();
    const versions: ModelVersion[] = [];
    for (const { name } of await readDirectory(this.#versions)) {
      if (!NAME.test(name)) continue;
      const isCurrent = name === current;
      try {
        const { createdAt, metadata, files } = await readManifest(await this.#existing(name));
        const sizeBytes = files.reduce((sum, file) => sum + file.sizeBytes, 0);
        versions.push({ name, isCurrent, createdAt, sizeBytes, metadata });
      } catch (error) {
        if (!(error instanceof LimbeckError)) throw error;
        versions.push({ name, isCurrent, createdAt: 0, sizeBytes: 0, metadata: {}, problem: error.message });
      }
    }
    return versions.sort((a, b) => b.createdAt - a.createdAt || (a.name < b.name ? -1 : 1));
  }

  /**
   * Adds a version, which must load. It is not promoted.
   *
   * @param name letters, digits, dots, dashes and underscores; at most 128; not in use
   * @param source a student, or a directory that one was saved to
   * @param metadata kept beside it, e.g. the report of its fine-tuning
   * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_NO_SPACE, ERR_IO, and the codes of {@link loadStudent}
   */
  async add(name: string, source: Student | string, metadata: ModelMetadata = {}): Promise<void> {
    const path = this.#pathOf(name);
    const kept = checkMetadata(metadata);
    if (typeof source !== 'string') checkInstance(source, Student, 'source');
    // Later than every other, also by a clock that is behind: the oldest versions are removed.
    const [newest] = await this.list();
    const createdAt = Math.max(Date.now(), (newest?.createdAt ?? 0) + 1);
    await writeDirectoryAtomic(
      path,
      async (temporaryPath) => {
        const student = typeof source === 'string' ? await loadStudent(this.#engine, source) : source;
        try {
          await student.save(temporaryPath);
        } finally {
          if (student !== source) student.dispose();
        }
        (await loadStudent(this.#engine, temporaryPath)).dispose();
        await writeManifest(temporaryPath, { name, createdAt, metadata: kept });
      },
      { replace: false },
    );
    await this.#removeOldest();
  }

  /**
   * Opens a version after comparing its bytes with those that were added. Nothing changes when it is refused.
   *
   * @throws LimbeckError ERR_INVALID_ARGUMENT for what cannot be a name, ERR_FILE_NOT_FOUND, ERR_CHECKPOINT_MISMATCH for
   * a damaged version, and the codes of {@link loadStudent}
   */
  async load(name: string): Promise<Student> {
    const path = await this.#existing(name);
    await verifyManifest(path, name);
    return loadStudent(this.#engine, path);
  }

  /**
   * Makes a version current after comparing its bytes. When it is refused, the current one stays.
   *
   * @throws LimbeckError ERR_NO_SPACE and the codes of {@link load}
   */
  async promote(name: string): Promise<void> {
    await verifyManifest(await this.#existing(name), name);
    await this.#change((head) => {
      if (head.name === name) return undefined;
      return { name, earlier: head.name === undefined ? [] : [...head.earlier, head.name] };
    });
    await this.#removeOldest();
  }

  /**
   * Makes the version current that was so before; once more goes back further.
   *
   * @returns its name
   * @throws LimbeckError ERR_INVALID_ARGUMENT when there is none; and the codes of {@link promote}
   */
  async rollback(): Promise<string> {
    const next = await this.#change(async ({ earlier }) => {
      for (let i = earlier.length - 1; i >= 0; i--) {
        const name = earlier[i] ?? '';
        if (!(await pathExists(this.#pathOf(name)))) continue; // removed long after it was current
        await verifyManifest(await this.#existing(name), name);
        return { name, earlier: earlier.slice(0, i) };
      }
      throw new LimbeckError('ERR_INVALID_ARGUMENT', 'rollback: there is no earlier version to go back to');
    });
    return next?.name ?? '';
  }

  /** Appends what `next` makes of the log's head, again while other processes are faster. */
  async #change(next: (head: Head) => Change | undefined | Promise<Change | undefined>): Promise<Change | undefined> {
    for (;;) {
      const head = await this.#log.head();
      const change = await next(head);
      if (change === undefined) return undefined;
      if (!(await this.#log.append(head, change.name, change.earlier))) continue;
      if (await pathExists(this.#pathOf(change.name))) return change;
      // Another process removed it as one of the oldest, between our look and our record.
      const now = await this.#log.head();
      if (now.name === change.name && head.name !== undefined) await this.#log.append(now, head.name, head.earlier);
      throw new LimbeckError('ERR_FILE_NOT_FOUND', `Version '${change.name}' was removed while it was promoted`);
    }
  }

  /** Removes versions beyond the newest `keep`, never the current one or the one before it; none while none is current. */
  async #removeOldest(): Promise<void> {
    if ((await this.current()) === undefined) return;
    const versions = (await this.list()).filter(({ problem }) => problem === undefined);
    for (const { name } of versions.slice(this.#keep)) {
      if (await this.#isWanted(name)) continue;
      const path = this.#pathOf(name);
      const aside = temporarySibling(path);
      try {
        await fs.rename(path, aside);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === 'ENOENT') continue; // another process was faster
        throw writeError(error, path);
      }
      // Promoted by another process just now: it comes back. That process finds it missing meanwhile, and takes its
      // promotion back; either way, what is current is there.
      if (await this.#isWanted(name)) await fs.rename(aside, path);
      else await remove(aside);
      await syncDirectory(this.#versions);
    }
  }

  async #isWanted(name: string): Promise<boolean> {
    const { name: current, earlier } = await this.#log.head();
    return name === current || name === earlier.at(-1);
  }

  /** @throws LimbeckError ERR_INVALID_ARGUMENT for what cannot be a name: nothing outside the registry can be one */
  #pathOf(name: string): string {
    if (typeof name !== 'string' || !NAME.test(name)) {
      throw new LimbeckError(
        'ERR_INVALID_ARGUMENT',
        `name: expected 1 to 128 letters, digits, '.', '_' or '-', the first a letter or digit, got ${typeof name === 'string' ? JSON.stringify(name.slice(0, 140)) : described(name)}`,
      );
    }
    return join(this.#versions, name);
  }

  /** Path of a version that is a directory of its own, and not a link to one elsewhere. */
  async #existing(name: string): Promise<string> {
    const path = this.#pathOf(name);
    const entry = (await readDirectory(this.#versions)).find((one) => one.name === name);
    if (entry === undefined) throw new LimbeckError('ERR_FILE_NOT_FOUND', `There is no version '${name}'`);
    if (entry.isDirectory()) return path;
    throw new LimbeckError('ERR_FILE_FORMAT', `Version '${name}': expected a directory, got a file or a link`);
  }

  get #versions(): string {
    return join(this.directory, 'versions');
  }
}

interface Change {
  readonly name: string;
  readonly earlier: readonly string[];
}

async function removeStale(directory: string): Promise<void> {
  for (const { name } of await readDirectory(directory)) {
    const path = join(directory, name);
    const stats = isTemporaryName(name) ? await fs.lstat(path).catch(() => undefined) : undefined;
    if (stats && Date.now() - stats.mtimeMs > STALE_MS) await remove(path);
  }
}
