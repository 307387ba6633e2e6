import { isUtf8 } from 'node:buffer';
import type { FastifyInstance } from 'fastify';
import secureJson from 'secure-json-parse';
import { HttpError } from './http-error.js';

/** Levels of brackets that a body may have; requests need four. */
export const MAX_JSON_DEPTH = 64;

const QUOTE = 0x22;
const BACKSLASH = 0x5c;

const CHARSET = /;\s*charset\s*=\s*"?([^\s;"]*)/i;

/**
 * Has an application take bodies of JSON alone, which a page of another origin cannot send unasked.
 *
 * @param read makes of the bytes what routes are given as the body
 */
export function takeJsonAlone(app: FastifyInstance, read: (bytes: Buffer) => unknown): void {
  app.removeAllContentTypeParsers();
  app.addContentTypeParser('application/json', { parseAs: 'buffer' }, ({ headers }, bytes, done) => {
    const charset = CHARSET.exec(headers['content-type'] ?? '')?.[1] ?? 'utf-8';
    if (!/^utf-?8$/i.test(charset)) {
      done(new HttpError(415, 'ERR_UNSUPPORTED_MEDIA_TYPE', 'Send the body in UTF-8, in which JSON is written.'));
      return;
    }
    try {
      done(null, read(bytes as Buffer));
    } catch (error) {
      done(error as HttpError);
    }
  });
}

/**
 * What a body says, without deep nesting and keys such as `__proto__`.
 *
 * @throws HttpError 400
 */
export function parseJson(bytes: Buffer): unknown {
  // A decoder would make one character of all that is broken, and one user of several.
  if (!isUtf8(bytes)) throw new HttpError(400, 'ERR_MALFORMED_REQUEST', 'The body is not valid UTF-8.');
  const text = bytes.toString();
  checkDepth(text);
  try {
    return secureJson.parse(text);
  } catch {
    throw new HttpError(400, 'ERR_MALFORMED_REQUEST', 'The body is not valid JSON, or has a forbidden key.');
  }
}

/**
 * Refuses JSON that is nested too deeply, before anything is made of it.
 *
 * @throws HttpError 400
 */
export function checkDepth(text: string): void {
  if (hasFewBrackets(text)) return;
  let depth = 0;
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    if (code === QUOTE) {
      // Strings are most of a body: the search for their end is the engine's own.
      i = endOfString(text, i + 1);
      // '[' and '{', ']' and '}' differ in one bit.
    } else if ((code & ~0x20) === 0x5b) {
      if (++depth > MAX_JSON_DEPTH) {
        throw new HttpError(400, 'ERR_MALFORMED_REQUEST', `JSON may be nested ${MAX_JSON_DEPTH} levels deep at most.`);
      }
    } else if ((code & ~0x20) === 0x5d) {
      depth--;
    }
  }
}

/** Whether no more are opened than may be nested, which is so in nearly every body. */
function hasFewBrackets(text: string): boolean {
  let count = 0;
  for (const bracket of '[{') {
    for (let i = text.indexOf(bracket); i >= 0; i = text.indexOf(bracket, i + 1)) {
      if (++count > MAX_JSON_DEPTH) return false;
    }
  }
  return true;
}

/** Index of the closing quote, or the end of a text that has none. */
function endOfString(text: string, start: number): number {
  for (let i = start; ; i++) {
    i = text.indexOf('"', i);
    if (i < 0) return text.length;
    let backslashes = 0;
    while (text.charCodeAt(i - 1 - backslashes) === BACKSLASH) backslashes++;
    if (backslashes % 2 === 0) return i;
  }
}
