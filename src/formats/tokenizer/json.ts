/** Reading the parts of a tokenizer.json: every key is checked where it is used. */
import { LimbeckError } from '../../errors.js';

export type Json = Readonly<Record<string, unknown>>;

/** One part of a tokenizer.json, with its place for messages. */
export interface Part {
  readonly json: Json;
  /** e.g. `'tokenizer.json': pre_tokenizer`. */
  readonly place: string;
}

export function isRecord(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

export function invalid(place: string, what: string): LimbeckError {
  return new LimbeckError('ERR_TOKENIZER', `${place}: ${what}`);
}

export function unsupported(place: string, what: string): LimbeckError {
  return new LimbeckError('ERR_UNSUPPORTED_TOKENIZER', `${place}: ${what}`);
}

/** @throws LimbeckError ERR_TOKENIZER unless it is an object */
export function asPart(value: unknown, place: string): Part {
  if (!isRecord(value)) throw invalid(place, `expected an object, got ${JSON.stringify(value)}`);
  return { json: value, place };
}

/** Which component a part is. */
export function typeOf({ json, place }: Part): string {
  const type = json['type'];
  if (typeof type !== 'string') throw invalid(place, `expected a text "type", got ${JSON.stringify(type)}`);
  return type;
}

export function readBoolean({ json, place }: Part, key: string, byDefault: boolean): boolean {
  const value = json[key] ?? byDefault;
  if (typeof value !== 'boolean')
    throw invalid(place, `expected true or false as "${key}", got ${JSON.stringify(value)}`);
  return value;
}

export function readString({ json, place }: Part, key: string, byDefault?: string): string {
  const value = json[key] ?? byDefault;
  if (typeof value !== 'string') throw invalid(place, `expected a text "${key}", got ${JSON.stringify(value)}`);
  return value;
}

/** A count from 0. */
export function readCount({ json, place }: Part, key: string, byDefault?: number): number {
  const value = json[key] ?? byDefault;
  if (!Number.isSafeInteger(value) || (value as number) < 0) {
    throw invalid(place, `expected an integer from 0 as "${key}", got ${JSON.stringify(value)}`);
  }
  return value as number;
}

/** A single character. */
export function readCharacter(part: Part, key: string, byDefault?: string): string {
  const value = readString(part, key, byDefault);
  if (Array.from(value).length !== 1) {
    throw invalid(part.place, `expected one character as "${key}", got ${JSON.stringify(value)}`);
  }
  return value;
}

export function readParts({ json, place }: Part, key: string): Part[] {
  const list = json[key];
  if (!Array.isArray(list)) throw invalid(place, `expected a list "${key}", got ${JSON.stringify(list)}`);
  return list.map((value, i) => asPart(value, `${place}.${key}[${i}]`));
}
