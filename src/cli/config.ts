/** The file that `limbeck distill` reads: YAML or JSON. */
import { dirname, extname, resolve } from 'node:path';
import { Lexer, Parser, parseDocument } from 'yaml';
import { LimbeckError } from '../errors.js';
import { readTextFile } from '../formats/files.js';
import { parseStrictJson } from '../formats/strict-json.js';
import { isHubName } from '../teacher/model-hub.js';

type Json = Record<string, unknown>;

/** In characters; real ones have a few thousand. */
const MAX_CONFIG_LENGTH = 2 ** 20;
/** Of the parser's stack, on which a level of YAML is one or two entries; the options have about 5 levels. */
const MAX_YAML_DEPTH = 64;
/** A few lines of YAML whose aliases refer to each other could unfold into gigabytes. */
const MAX_ALIASES = 100;

/**
 * Reads a config file: JSON when its name ends in `.json`, else YAML. Paths of data files and of the teacher count from
 * the file's own folder, `output` from the current one. Keys and values are checked by whoever uses them.
 *
 * @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT (broken, a key twice, too long or too deep; with the line where
 * there is one), ERR_IO
 */
export async function readConfig(path: string): Promise<Json> {
  const text = await readTextFile(path);
  if (text.length > MAX_CONFIG_LENGTH) {
    throw new LimbeckError(
      'ERR_FILE_FORMAT',
      `'${path}' has ${text.length} characters; a config may have at most ${MAX_CONFIG_LENGTH}. Is it a data file?`,
    );
  }
  const isJson = extname(path).toLowerCase() === '.json';
  const content = isJson ? parseStrictJson(text, { file: path }) : parseYaml(text, path);
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
    ...(isObject(content['teacher']) &&
      isObject(content['teacher']['static']) && {
        teacher: { ...content['teacher'], ...withResolved(content['teacher'], 'static', 'directory', folder) },
      }),
    ...withResolved(content, 'rankings', 'path', folder),
  };
}

/** `{ [key]: object }` with the path at object[name] made absolute, or nothing when there is none: a name on the hub is no path. */
function withResolved(parent: Json, key: string, name: string, folder: string): Json {
  const object = parent[key];
  if (!isObject(object) || typeof object[name] !== 'string' || isHubName(object[name])) return {};
  return { [key]: { ...object, [name]: resolve(folder, object[name]) } };
}

function parseYaml(text: string, path: string): unknown {
  checkYamlDepth(text, path);
  const document = parseDocument(text, { uniqueKeys: true, prettyErrors: true });
  const [error] = document.errors;
  if (error) throw yamlError(path, error);
  try {
    return document.toJS({ maxAliasCount: MAX_ALIASES });
  } catch (error) {
    // Aliases without an anchor, or too many of them.
    throw yamlError(path, error);
  }
}

/** The parser builds its tree by recursion, where deep nesting would end the process; its first pass keeps a stack. */
function checkYamlDepth(text: string, path: string): void {
  const parser = new Parser();
  let line = 1;
  for (const lexeme of new Lexer().lex(text)) {
    for (const _ of parser.next(lexeme)); // The parser moves on only when it is read.
    if (lexeme.includes('\n')) line += lexeme.split('\n').length - 1;
    if (parser.stack.length > MAX_YAML_DEPTH) {
      throw new LimbeckError('ERR_FILE_FORMAT', `'${path}': the nesting at line ${line} is too deep for a config`);
    }
  }
}

function yamlError(path: string, cause: unknown): LimbeckError {
  const message = cause instanceof Error ? cause.message : String(cause);
  // What follows the first line is a drawing of the place.
  const [reason = ''] = message.trim().split('\n');
  return new LimbeckError('ERR_FILE_FORMAT', `'${path}': ${reason.replace(/:$/, '')}`, { cause });
}

function isObject(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
