/** Texts that are read from disk piece by piece, so that they may be more than memory holds. */
import { checkList, described } from '../arguments.js';
import { LimbeckError } from '../errors.js';
import { openRegularFile, readError } from '../formats/files.js';
import { throwIfAborted } from './hooks.js';

/** A file of UTF-8 with one text a line; with one JSON object a line where its name ends with .jsonl or .ndjson. */
export interface TextFile {
  readonly path: string;
  /** JSON lines: the key of the text. @defaultValue text */
  readonly column?: string;
  /** Directory that keeps the tokens for the next run. @defaultValue the path with `.tokens` behind it */
  readonly tokens?: string;
}

/** Texts in memory or on disk. */
export type Texts = readonly string[] | TextFile;

/** Some lines of a file. */
export interface TextRun {
  /** Lines that have a text. */
  readonly texts: readonly string[];
  /** Where the next run begins. */
  readonly end: number;
  /** The bytes from where the run before ended. */
  readonly bytes: Uint8Array;
}

export function isTextFile(texts: Texts): texts is TextFile {
  return !Array.isArray(texts);
}

const READ_BYTES = 1 << 20;
const MAX_LINE_BYTES = 1 << 26;
const LINE_FEED = 10;
const BYTE_ORDER_MARK = '\ufeff';
/** A byte order mark is one at the start of the file alone. */
const UTF8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/**
 * The texts of a file in their order, a mebibyte or a line at a time. Lines of nothing but white space are left out.
 *
 * @param begin in bytes: where a run ended
 * @throws LimbeckError ERR_INVALID_ARGUMENT; ERR_FILE_NOT_FOUND; ERR_FILE_FORMAT for what is not UTF-8, not JSON or has no
 * text in its column, and for a line of more than 64 MiB; ERR_IO
 */
export async function* readTexts(source: TextFile, begin = 0): AsyncGenerator<TextRun, void, undefined> {
  const { path } = source;
  const read = lineReader(source);
  const { file, sizeBytes } = await openRegularFile(path);
  try {
    let held: Buffer = Buffer.alloc(0); // from `end` on
    let end = begin;
    while (end + held.length < sizeBytes) {
      const chunk = Buffer.allocUnsafe(Math.min(READ_BYTES, sizeBytes - end - held.length));
      const { bytesRead } = await file.read(chunk, 0, chunk.length, end + held.length).catch((error: Error) => {
        throw readError(error, path);
      });
      if (bytesRead === 0) throw new LimbeckError('ERR_IO', `'${path}' became shorter while it was read`);
      held = Buffer.concat([held, chunk.subarray(0, bytesRead)]);
      const isLast = end + held.length === sizeBytes;
      const length = isLast ? held.length : held.lastIndexOf(LINE_FEED) + 1;
      if (held.length - length > MAX_LINE_BYTES) {
        throw new LimbeckError(
          'ERR_FILE_FORMAT',
          `'${path}' has a line of more than ${MAX_LINE_BYTES} bytes, at byte ${end + length}: expected one text a line`,
        );
      }
      if (length === 0) continue;
      const bytes = held.subarray(0, length);
      const texts = read(bytes, end);
      end += length;
      held = held.subarray(length);
      yield { texts, end, bytes };
    }
  } finally {
    await file.close();
  }
}

/** The texts of a file one by one. @throws LimbeckError as {@link readTexts}; ERR_ABORTED */
export async function* eachText(source: TextFile, signal?: AbortSignal): AsyncGenerator<string, void, undefined> {
  for await (const { texts } of readTexts(source)) {
    throwIfAborted(signal);
    yield* texts;
  }
}

/** @throws LimbeckError ERR_INVALID_ARGUMENT for what is no list of texts, as a column with gaps makes */
export function checkTexts(texts: readonly string[], name: string): void {
  checkList(texts, name, 'a list of texts');
  const wrong = texts.findIndex((text) => typeof text !== 'string');
  if (wrong < 0) return;
  throw new LimbeckError('ERR_INVALID_ARGUMENT', `${name}[${wrong}]: expected a text, got ${described(texts[wrong])}`);
}

/** @throws LimbeckError ERR_INVALID_ARGUMENT */
export function checkTextFile(source: TextFile, name: string): void {
  if (typeof source !== 'object' || source === null) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `${name}: expected an array of texts or { path }, got ${described(source)}`,
    );
  }
  const keys = Object.entries({ path: source.path, column: source.column, tokens: source.tokens });
  for (const [key, value] of keys) {
    if (typeof value === 'string' && value !== '') continue;
    if (value === undefined && key !== 'path') continue;
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `${name}: expected an array of texts or { path, column?, tokens? }, got ${key} ${JSON.stringify(value)}`,
    );
  }
  const unknown = Object.keys(source).find((key) => !['path', 'column', 'tokens'].includes(key));
  if (unknown !== undefined) {
    throw new LimbeckError(
      'ERR_UNKNOWN_OPTION',
      `${name} has no option "${unknown}": there are path, column and tokens`,
    );
  }
  if (source.column !== undefined && !isJsonLines(source)) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `${name}.column: '${source.path}' is plain text; columns are for files named .jsonl or .ndjson`,
    );
  }
}

function isJsonLines({ path }: TextFile): boolean {
  return /\.(jsonl|ndjson)$/i.test(path);
}

/** Reads whole lines that begin at a byte of the file. */
function lineReader(source: TextFile): (bytes: Buffer, begin: number) => string[] {
  const { path, column = 'text' } = source;
  const isJson = isJsonLines(source);
  return (bytes, begin) => {
    let text: string;
    try {
      text = UTF8.decode(bytes);
    } catch (cause) {
      throw new LimbeckError(
        'ERR_FILE_FORMAT',
        `'${path}' is not UTF-8 text, between bytes ${begin} and ${begin + bytes.length}; convert it to UTF-8 first`,
        { cause },
      );
    }
    if (begin === 0 && text.startsWith(BYTE_ORDER_MARK)) text = text.slice(1);
    const lines = text.split('\n');
    const texts: string[] = [];
    for (const [number, line] of lines.entries()) {
      const bare = line.endsWith('\r') ? line.slice(0, -1) : line;
      if (bare.trim() === '') continue;
      const value = isJson ? textOf(bare, column, () => place(path, begin, number, lines)) : bare;
      if (value.trim() !== '') texts.push(value);
    }
    return texts;
  };
}

function textOf(line: string, column: string, where: () => string): string {
  let row: unknown;
  try {
    row = JSON.parse(line);
  } catch (cause) {
    throw new LimbeckError('ERR_FILE_FORMAT', `${where()} is not JSON: ${JSON.stringify(line.slice(0, 80))}`, {
      cause,
    });
  }
  const text = typeof row === 'object' && row !== null ? (row as Record<string, unknown>)[column] : undefined;
  if (typeof text === 'string') return text;
  throw new LimbeckError(
    'ERR_FILE_FORMAT',
    `${where()} has no text '${column}': ${JSON.stringify(line.slice(0, 80))}. Name the column of the texts.`,
  );
}

function place(path: string, begin: number, number: number, lines: readonly string[]): string {
  const before = lines.slice(0, number).reduce((sum, line) => sum + Buffer.byteLength(line) + 1, 0);
  return `The line at byte ${begin + before} of '${path}'`;
}
