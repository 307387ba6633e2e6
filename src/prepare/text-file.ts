import { isUtf8 } from 'node:buffer';
import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import type { Readable } from 'node:stream';
import { createGunzip } from 'node:zlib';
import { LimbeckError } from '../errors.js';
import { throwIfAborted } from './hooks.js';

/** A header longer than this is not a header (a generous 10,000 columns with names of 100 letters). */
const MAX_FIRST_LINE_BYTES = 1 << 20;

const LINE_FEED = 10;
const CARRIAGE_RETURN = 13;
const BYTE_ORDER_MARK = '\ufeff';

/** What a text file looks like from outside. */
export interface TextFileFacts {
  /** Without its line break and byte order mark. */
  readonly firstLine: string;
  /** Lines that are not empty. */
  readonly lines: number;
  /** What ends a line; `\n` also stands for `\r\n`. */
  readonly lineBreak: '\n' | '\r';
  /** Whether some lines end with `\r\n` and some with `\n`. */
  readonly mixedLineBreaks: boolean;
}

/**
 * Checks that a file is there and is a file.
 *
 * @throws ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT (not a file), ERR_EMPTY_DATA (no bytes), ERR_IO
 */
export async function checkFile(path: string): Promise<void> {
  const facts = await stat(path).catch((cause: NodeJS.ErrnoException) => {
    throw fileError(path, cause);
  });
  if (!facts.isFile())
    throw new LimbeckError('ERR_FILE_FORMAT', `${path} is not a file; give the path of one data file`);
  if (facts.size === 0) throw new LimbeckError('ERR_EMPTY_DATA', `${path} is empty (0 bytes)`);
}

/**
 * Reads a text file once, to count its lines and to check what the database would let pass: a gzip stream that stops
 * early, and text that is not UTF-8. DuckDB 1.5 reads as much of a truncated gzip file as there is, without an error.
 *
 * @throws ERR_FILE_FORMAT, ERR_EMPTY_DATA, ERR_IO, ERR_ABORTED
 */
export async function inspectTextFile(
  path: string,
  options: { gzip: boolean; signal?: AbortSignal | undefined },
): Promise<TextFileFacts> {
  const counter = new LineCounter(path);
  const file = createReadStream(path, { highWaterMark: 1 << 18 });
  const text: Readable = options.gzip ? file.pipe(createGunzip({ chunkSize: 1 << 18 })) : file;
  file.on('error', (error) => text.destroy(error));
  try {
    for await (const chunk of text) {
      throwIfAborted(options.signal);
      counter.add(chunk as Buffer);
    }
  } catch (cause) {
    throw cause instanceof LimbeckError ? cause : fileError(path, cause as NodeJS.ErrnoException);
  } finally {
    file.destroy();
    text.destroy();
  }
  return counter.finish();
}

/** Counts lines over chunks of any size, and checks that the whole is UTF-8. */
class LineCounter {
  readonly #path: string;
  readonly #firstLine: Buffer[] = [];
  #firstLineBytes = 0;
  #lineBreak: '\n' | '\r' | undefined;
  /** Whether any line ended with `\r\n`, and with `\n` alone. */
  #crlf = false;
  #lf = false;
  #lines = 0;
  #lineBytes = 0;
  #lastByte = 0;
  /** The first bytes of a character that the next chunk completes. */
  #partial: Buffer = Buffer.alloc(0);

  constructor(path: string) {
    this.#path = path;
  }

  add(chunk: Buffer): void {
    if (this.#lineBreak === undefined) this.#addToFirstLine(chunk);
    this.#checkUtf8(chunk);
    this.#count(chunk);
  }

  finish(): TextFileFacts {
    if (this.#partial.length > 0) throw this.#notUtf8();
    this.#endLine();
    const firstLine = Buffer.concat(this.#firstLine).toString('utf8').replace(BYTE_ORDER_MARK, '');
    if (this.#lines === 0) throw new LimbeckError('ERR_EMPTY_DATA', `${this.#path} holds no text`);
    return {
      firstLine,
      lines: this.#lines,
      lineBreak: this.#lineBreak ?? '\n',
      mixedLineBreaks: this.#crlf && this.#lf,
    };
  }

  #addToFirstLine(chunk: Buffer): void {
    const feed = chunk.indexOf(LINE_FEED);
    const end = feed === -1 ? chunk.length : feed;
    const carriage = chunk.subarray(0, end).indexOf(CARRIAGE_RETURN);
    // A lone carriage return ends lines (before Mac OS X); at the very end of a chunk it may be half of \r\n.
    const oldMac = carriage !== -1 && carriage + 1 < chunk.length && carriage + 1 !== feed;
    if (oldMac) this.#lineBreak = '\r';
    else if (feed !== -1) this.#lineBreak = '\n';
    const part = chunk.subarray(0, carriage === -1 ? end : carriage);
    this.#firstLineBytes += part.length;
    if (this.#firstLineBytes > MAX_FIRST_LINE_BYTES) {
      throw new LimbeckError(
        'ERR_FILE_FORMAT',
        `${this.#path}: the first line is longer than ${MAX_FIRST_LINE_BYTES} bytes`,
      );
    }
    this.#firstLine.push(Buffer.from(part));
  }

  #count(chunk: Buffer): void {
    const breakByte = this.#lineBreak === '\r' ? CARRIAGE_RETURN : LINE_FEED;
    let start = 0;
    for (let end = chunk.indexOf(breakByte); end !== -1; end = chunk.indexOf(breakByte, start)) {
      const before = end > 0 ? chunk[end - 1] : this.#lastByte;
      const isCrlf = before === CARRIAGE_RETURN && breakByte === LINE_FEED;
      this.#lineBytes += end - start - (isCrlf ? 1 : 0);
      this.#crlf ||= isCrlf;
      this.#lf ||= !isCrlf;
      this.#endLine();
      start = end + 1;
    }
    this.#lineBytes += chunk.length - start;
    this.#lastByte = chunk[chunk.length - 1] ?? this.#lastByte;
  }

  #endLine(): void {
    if (this.#lineBytes > 0) this.#lines++;
    this.#lineBytes = 0;
  }

  #checkUtf8(chunk: Buffer): void {
    const bytes = this.#partial.length === 0 ? chunk : Buffer.concat([this.#partial, chunk]);
    const end = bytes.length - unfinishedBytes(bytes);
    if (!isUtf8(bytes.subarray(0, end))) throw this.#notUtf8();
    this.#partial = Buffer.from(bytes.subarray(end));
  }

  #notUtf8(): LimbeckError {
    const mark = Buffer.concat(this.#firstLine).toString('hex', 0, 2);
    const [what, encoding] =
      mark === 'fffe' || mark === 'feff'
        ? ['UTF-16 text, and UTF-8 is expected', 'utf16']
        : [`not UTF-8 text (after line ${this.#lines})`, 'latin1'];
    return new LimbeckError(
      'ERR_FILE_FORMAT',
      `${this.#path} is ${what}; convert it, e.g. with: iconv -f ${encoding} -t utf8`,
    );
  }
}

/** How many bytes at the end start a character of UTF-8 that is longer than what is there: 0 to 3. */
function unfinishedBytes(bytes: Buffer): number {
  for (let back = 1; back <= Math.min(3, bytes.length); back++) {
    const byte = bytes[bytes.length - back] ?? 0;
    if (byte < 0x80) return 0;
    if (byte < 0xc0) continue; // a continuation byte: the lead byte is further back
    const length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : 2;
    return length > back ? back : 0;
  }
  return 0;
}

function fileError(path: string, cause: NodeJS.ErrnoException): LimbeckError {
  if (cause.code === 'ENOENT' || cause.code === 'ENOTDIR') {
    return new LimbeckError('ERR_FILE_NOT_FOUND', `${path} does not exist`, { cause });
  }
  if (cause.code?.startsWith('Z_')) {
    return new LimbeckError('ERR_FILE_FORMAT', `${path} is not a whole gzip file: ${cause.message}`, { cause });
  }
  return new LimbeckError('ERR_IO', `${path} cannot be read: ${cause.message}`, { cause });
}
