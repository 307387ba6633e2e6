import { basename, join, resolve } from 'node:path';
import type { ModelRegistry } from '../engine/model-registry.js';
import type { Engine } from '../engine.js';
import { LimbeckError } from '../errors.js';
import { pathExists } from '../formats/files.js';
import { HttpError } from './http-error.js';
import { StudentLoader } from './load-student.js';
import type { ModelSource } from './model-host.js';

/**
 * What serves as models at a path: one student directory, that of a distillation's output, or a registry.
 *
 * @throws LimbeckError ERR_FILE_NOT_FOUND and what the registry throws
 */
export async function openModelSource(engine: Engine, path: string): Promise<ModelSource> {
  const loader = new StudentLoader(engine);
  for (const directory of [path, join(path, 'student')]) {
    if (await pathExists(join(directory, 'config.json'))) return directorySource(loader, resolve(directory));
  }
  if (!(await pathExists(join(path, 'versions')))) {
    throw new LimbeckError(
      'ERR_FILE_NOT_FOUND',
      `'${path}' is no student directory (config.json), no output of a distillation (student/) and no model registry (versions/)`,
    );
  }
  return registrySource(loader, await engine.openModelRegistry(path));
}

function directorySource(loader: StudentLoader, directory: string): ModelSource {
  const base = basename(directory).replace(/[^A-Za-z0-9._-]/g, '-');
  const name = /^[A-Za-z0-9]/.test(base) ? base.slice(0, 128) : 'student';
  return {
    list: async () => [name],
    current: async () => name,
    load: () => loader.load({ directory }),
    promote: async () => {},
    async rollback() {
      throw new HttpError(409, 'ERR_CONFLICT', 'The service was started with one student, not with a registry.');
    },
    close: () => loader.close(),
  };
}

function registrySource(loader: StudentLoader, registry: ModelRegistry): ModelSource {
  return {
    list: async () => (await registry.list()).map(({ name }) => name),
    async current() {
      const name = await registry.current();
      if (name !== undefined) return name;
      throw new LimbeckError(
        'ERR_EMPTY_DATA',
        `No model of the registry '${registry.directory}' has been promoted; promote one first`,
      );
    },
    load: (name) => loader.load({ directory: registry.directory, version: name }),
    promote: async (name) => {
      await registry.promote(name);
    },
    async rollback() {
      try {
        return await registry.rollback();
      } catch (error) {
        if (!(error instanceof LimbeckError) || error.code !== 'ERR_INVALID_ARGUMENT') throw error;
        throw new HttpError(409, 'ERR_CONFLICT', 'There is no earlier model to go back to.', undefined, {
          cause: error,
        });
      }
    },
    close: () => loader.close(),
  };
}
