/** The file that `limbeck distill` reads: YAML or JSON. */
import { dirname, extname, resolve } from 'node:path';
import { parseDocument } from 'yaml';
import { LimbeckError } from '../errors.js';
import { readJsonFile, readTextFile } from '../formats/files.js';

type Json = Record<string, unknown>;

/**
 * Reads a config file. Paths of data files and of the teacher count from the file's own folder, `output` from the
 * current one.
 *
 * @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT (with the line), ERR_IO
 */
export async function readConfig(path: string): Promise<Json> {
  const content = extname(path) === '.json' ? await readJsonFile(path) : parseYaml(await readTextFile(path), path);
  if (!isObject(content)) throw new LimbeckError('ERR_FILE_FORMAT', `'${path}': expected keys and values at the top`);
  const folder = dirname(resolve(path));
  const data = isObject(content['data']) ? content['data'] : undefined;
  return {
    ...content,
    ...(data && {
      data: {
        ...data,
        ...withResolved(data, 'interactions', 'path', folder),
        ...withResolved(data, 'items', 'path', folder),
      },
    }),
    ...withResolved(content, 'teacher', 'directory', folder),
  };
}

/** `{ [key]: object }` with the path at object[name] made absolute, or nothing when there is none. */
function withResolved(parent: Json, key: string, name: string, folder: string): Json {
  const object = parent[key];
  if (!isObject(object) || typeof object[name] !== 'string') return {};
  return { [key]: { ...object, [name]: resolve(folder, object[name]) } };
}

function parseYaml(text: string, path: string): unknown {
  const document = parseDocument(text, { uniqueKeys: true, prettyErrors: true });
  const [error] = document.errors;
  if (error) throw new LimbeckError('ERR_FILE_FORMAT', `'${path}': ${error.message.trim()}`);
  return document.toJS({ maxAliasCount: 100 });
}

function isObject(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
