/**
 * A JSON parser for files that strangers wrote. It accepts RFC 8259 and nothing else, and is stricter than `JSON.parse`:
 * duplicate keys, deep nesting, infinite numbers and lone surrogates are errors; objects inherit nothing, so a key such as
 * `__proto__` is only a key.
 */
import { LimbeckError, type LimbeckErrorCode } from '../errors.js';

export type JsonValue = null | boolean | number | string | JsonValue[] | JsonObject;
/** Inherits nothing. */
export interface JsonObject {
  [key: string]: JsonValue;
}

export interface StrictJsonOptions {
  /** Named in messages. */
  readonly file: string;
  /** @defaultValue 64 */
  readonly maxDepth?: number;
  /** `unsignedIntegers`: digits only, at most 2^53 - 1. @defaultValue any finite number */
  readonly numbers?: 'any' | 'unsignedIntegers';
  /** @defaultValue ERR_FILE_FORMAT */
  readonly code?: LimbeckErrorCode;
}

const MAX_DEPTH = 64;

/** Parses one JSON text. @throws LimbeckError with `options.code`, the file, and the offset in characters */
export function parseStrictJson(text: string, options: StrictJsonOptions): JsonValue {
  return new Parser(text, options).parse();
}

/** Narrows to an object. */
export function isJsonObject(value: JsonValue | undefined): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const ESCAPES: Readonly<Record<string, string>> = {
  '"': '"',
  '\\': '\\',
  '/': '/',
  b: '\b',
  f: '\f',
  n: '\n',
  r: '\r',
  t: '\t',
};
const NUMBER = /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y;
const UNSIGNED_INTEGER = /^[0-9]+$/;
const HEX4 = /[0-9a-fA-F]{4}/y;

/** Makes objects that inherit nothing; those of Object.create(null) are hash tables, which take several times the memory. */
class Heirless {
  [key: string]: JsonValue;
}
Object.setPrototypeOf(Heirless.prototype, null);
Reflect.deleteProperty(Heirless.prototype, 'constructor');

class Parser {
  private offset = 0;
  private readonly maxDepth: number;

  constructor(
    private readonly text: string,
    private readonly options: StrictJsonOptions,
  ) {
    this.maxDepth = options.maxDepth ?? MAX_DEPTH;
  }

  parse(): JsonValue {
    const value = this.value(1);
    this.skipWhitespace();
    if (this.offset < this.text.length) this.fail('the end of the text');
    return value;
  }

  private value(depth: number): JsonValue {
    this.skipWhitespace();
    switch (this.text[this.offset]) {
      case '{':
        return this.object(depth);
      case '[':
        return this.array(depth);
      case '"':
        return this.string();
      case 't':
        return this.literal('true', true);
      case 'f':
        return this.literal('false', false);
      case 'n':
        return this.literal('null', null);
      default:
        return this.number();
    }
  }

  private object(depth: number): JsonObject {
    const object: JsonObject = new Heirless();
    for (let more = this.open('}', depth); more; more = this.next('}')) {
      this.skipWhitespace();
      if (this.text[this.offset] !== '"') this.fail('a key in quotes');
      const keyOffset = this.offset;
      const key = this.string();
      if (key in object) {
        this.offset = keyOffset;
        this.fail(`no second key ${JSON.stringify(shorten(key))}`);
      }
      this.skipWhitespace();
      if (this.text[this.offset] !== ':') this.fail("':'");
      this.offset++;
      object[key] = this.value(depth + 1);
    }
    return object;
  }

  private array(depth: number): JsonValue[] {
    const array: JsonValue[] = [];
    for (let more = this.open(']', depth); more; more = this.next(']')) array.push(this.value(depth + 1));
    return array;
  }

  /** Steps over the opening bracket; false when the closing one follows at once. */
  private open(close: string, depth: number): boolean {
    if (depth > this.maxDepth) this.fail(`at most ${this.maxDepth} levels of nesting`);
    this.offset++;
    this.skipWhitespace();
    if (this.text[this.offset] !== close) return true;
    this.offset++;
    return false;
  }

  /** Steps over a comma (true) or the closing bracket (false). */
  private next(close: string): boolean {
    this.skipWhitespace();
    const character = this.text[this.offset];
    if (character !== ',' && character !== close) this.fail(`',' or '${close}'`);
    this.offset++;
    return character === ',';
  }

  private string(): string {
    let begin = ++this.offset;
    let value = '';
    for (;;) {
      const code = this.text.charCodeAt(this.offset);
      if (code === QUOTE) break;
      if (code === BACKSLASH) {
        value += this.text.slice(begin, this.offset) + this.escape();
        begin = this.offset;
      } else if (code >= 0x20) {
        this.offset++;
      } else {
        this.fail(Number.isNaN(code) ? 'a closing quote' : 'no control character in a string');
      }
    }
    value += this.text.slice(begin, this.offset);
    this.offset++;
    if (!value.isWellFormed()) this.fail('no lone surrogate in the string before');
    return value;
  }

  private escape(): string {
    const letter = this.text[this.offset + 1];
    if (letter === 'u') {
      HEX4.lastIndex = this.offset + 2;
      const digits = HEX4.exec(this.text)?.[0] ?? this.fail("four hexadecimal digits after '\\u'");
      this.offset += 6;
      return String.fromCharCode(Number.parseInt(digits, 16));
    }
    const character = letter === undefined ? undefined : ESCAPES[letter];
    if (character === undefined) return this.fail('a JSON escape');
    this.offset += 2;
    return character;
  }

  private number(): number {
    NUMBER.lastIndex = this.offset;
    const literal = NUMBER.exec(this.text)?.[0] ?? this.fail('a JSON value');
    const value = Number(literal);
    if (this.options.numbers === 'unsignedIntegers') {
      if (!UNSIGNED_INTEGER.test(literal) || !Number.isSafeInteger(value)) this.fail('an integer from 0 to 2^53 - 1');
    } else if (!Number.isFinite(value)) {
      this.fail('a finite number');
    }
    this.offset += literal.length;
    return value;
  }

  private literal<T>(word: string, value: T): T {
    if (!this.text.startsWith(word, this.offset)) this.fail('a JSON value');
    this.offset += word.length;
    return value;
  }

  private skipWhitespace(): void {
    for (;;) {
      const code = this.text.charCodeAt(this.offset);
      if (code !== 0x20 && code !== 0x0a && code !== 0x0d && code !== 0x09) return;
      this.offset++;
    }
  }

  private fail(expected: string): never {
    const found =
      this.offset < this.text.length ? JSON.stringify(this.text.slice(this.offset, this.offset + 16)) : 'the end';
    throw new LimbeckError(
      this.options.code ?? 'ERR_FILE_FORMAT',
      `'${this.options.file}' is not valid JSON: expected ${expected} at character ${this.offset}, found ${found}`,
    );
  }
}

function shorten(text: string): string {
  return text.length <= 64 ? text : `${text.slice(0, 64)}…`;
}
