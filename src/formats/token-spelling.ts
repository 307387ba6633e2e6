/** What the tokens of a tokenizer spell: their bytes in a text, and which of two vocabularies are the same pieces. */
import { LimbeckError } from '../errors.js';
import { tokenBytes } from './tokenizer/byte-level.js';
import { asPart, isRecord, type Json, type Part, readParts, readString, typeOf } from './tokenizer/json.js';
import type { Tokenizer } from './tokenizer.js';
import { checkTokenizerJson } from './tokenizer-json.js';

export interface TokenSpelling {
  /** The bytes that a token adds to the text of those before it; undefined = a text without a token of its own. */
  bytesOf(id: number): Uint8Array | undefined;
  /** The same with the space before a word that WordPiece leaves out; undefined for special and unknown tokens. */
  pieceOf(id: number): Uint8Array | undefined;
  /** `words`: white space is not spelled. */
  readonly style: 'exact' | 'words';
  /** Ids that the tokenizer puts around a text. */
  readonly before: readonly number[];
  readonly after: readonly number[];
  /** What the model sees after the last token of a text, undefined = nothing. */
  readonly endTokenId: number | undefined;
  /** Whether upper and lower case, letters with and without accents are one to it. */
  readonly foldsCase: boolean;
  readonly foldsAccents: boolean;
}

/**
 * @throws LimbeckError ERR_UNSUPPORTED_TOKENIZER for decoders that do not say what a token spells, ERR_TOKENIZER
 */
export function createTokenSpelling(tokenizer: Tokenizer): TokenSpelling {
  const { tokenOf, addedTokens } = checkTokenizerJson(tokenizer.json, 'tokenizer.json');
  const json = tokenizer.json as Json;
  const decoders = decodersOf(json['decoder']);
  const spell = spellerOf(decoders);
  const unknownId = unknownIdOf(json, tokenOf);
  const added = new Map(addedTokens.map((token) => [token.id, token]));
  const { before, after } = surroundingsOf(tokenizer);
  const wordPrefix = decoders.find((part) => typeOf(part) === 'WordPiece');
  const prefix = wordPrefix === undefined ? undefined : readString(wordPrefix, 'prefix', '##');

  const bytesOf = (id: number): Uint8Array | undefined => {
    const token = tokenOf.get(id);
    if (token === undefined) throw new LimbeckError('ERR_TOKENIZER', `The tokenizer has no token with id ${id}`);
    if (id === unknownId) return undefined;
    return added.has(id) ? Buffer.from(token) : spell(token);
  };
  return {
    bytesOf,
    pieceOf(id) {
      const token = tokenOf.get(id);
      // Rows of a model's table that no token has.
      if (token === undefined || id === unknownId || added.get(id)?.isSpecial) return undefined;
      return prefix !== undefined && !token.startsWith(prefix) && WORD.test(token)
        ? Buffer.from(` ${token}`)
        : bytesOf(id);
    },
    style: prefix === undefined ? 'exact' : 'words',
    before,
    after,
    endTokenId: after[0] ?? tokenizer.eosTokenId,
    foldsCase: isSame(tokenizer, 'A', 'a', unknownId),
    foldsAccents: isSame(tokenizer, 'é', 'e', unknownId),
  };
}

/** Chinese characters are words without spaces to WordPiece. */
const WORD = /^(?!\p{Script=Han})[\p{L}\p{N}]/u;
const SPACE_BEFORE_SIGN = /^ (?![\p{L}\p{N} ])/u;

/** Tokens of two vocabularies, gathered in classes that both know. */
export interface SharedClasses {
  /** The class of each token, [vocabulary]; -1 = none. */
  readonly first: Int32Array;
  readonly second: Int32Array;
  readonly numClasses: number;
}

/**
 * What a text goes on with, as far as two vocabularies agree on it. A token is in the class of its longest beginning, byte
 * by byte, that is a token of both: what one model says of " Parisian" and the other of " Par" is about texts that go on
 * with " Par", if that is the longest. So a class has the same meaning on both sides, however either goes on.
 *
 * Letters are one to the classes that are one to either tokenizer (case, accents). Where one of them is WordPiece, spaces
 * before signs do not count, since it does not tell them. The tokens at the end of a text are one class.
 */
export function sharedClasses(
  first: TokenSpelling,
  firstSize: number,
  second: TokenSpelling,
  secondSize: number,
): SharedClasses {
  const sides = [first, second];
  const name = nameOf(sides);
  const [ours, theirs] = (
    [
      [first, firstSize],
      [second, secondSize],
    ] as const
  ).map(([spelling, size]) =>
    Array.from({ length: size }, (_, id) => {
      const piece = spelling.pieceOf(id);
      return piece === undefined ? undefined : name(piece);
    }),
  ) as [(string | undefined)[], (string | undefined)[]];
  const known = new Set(theirs);
  const classOf = new Map<string, number>();
  for (const piece of ours) {
    if (piece !== undefined && piece !== '' && known.has(piece) && !classOf.has(piece))
      classOf.set(piece, classOf.size);
  }
  const classify = (pieces: readonly (string | undefined)[]) =>
    Int32Array.from(pieces, (piece = '') => {
      for (let length = piece.length; length > 0; length--) {
        const found = classOf.get(piece.slice(0, length));
        if (found !== undefined) return found;
      }
      return -1;
    });
  const classes = [classify(ours), classify(theirs)] as const;
  const hasEnds = first.endTokenId !== undefined && second.endTokenId !== undefined;
  if (hasEnds) {
    sides.forEach(({ endTokenId = -1 }, i) => {
      (classes[i] as Int32Array)[endTokenId] = classOf.size;
    });
  }
  return { first: classes[0], second: classes[1], numClasses: classOf.size + (hasEnds ? 1 : 0) };
}

/** Pieces of two vocabularies are the same when their names are; bytes as Latin-1, which need not be whole characters. */
function nameOf(sides: readonly TokenSpelling[]): (piece: Uint8Array) => string {
  const foldsCase = sides.some((side) => side.foldsCase);
  const foldsAccents = sides.some((side) => side.foldsAccents);
  const isMixed = sides.some(({ style }) => style === 'words') && sides.some(({ style }) => style === 'exact');
  return (piece) => {
    const bytes = Buffer.from(piece);
    let text = bytes.toString();
    // Parts of characters are as they are.
    if (text.includes('\ufffd')) return bytes.toString('latin1');
    if (foldsCase) text = text.toLowerCase();
    if (foldsAccents) text = text.normalize('NFD').replace(/\p{Mn}/gu, '');
    if (isMixed) text = text.replace(SPACE_BEFORE_SIGN, '');
    return Buffer.from(text).toString('latin1');
  };
}

function decodersOf(value: unknown): Part[] {
  if (!isRecord(value)) return [];
  const part = asPart(value, 'decoder');
  if (typeOf(part) !== 'Sequence') return [part];
  return readParts(part, 'decoders').flatMap(({ json }) => decodersOf(json));
}

function spellerOf(decoders: readonly Part[]): (token: string) => Uint8Array {
  const types = decoders.map(typeOf);
  if (types.includes('ByteLevel')) return tokenBytes;
  const wordPiece = decoders[types.indexOf('WordPiece')];
  if (wordPiece !== undefined) {
    const prefix = readString(wordPiece, 'prefix', '##');
    return (token) => Buffer.from(token.startsWith(prefix) ? token.slice(prefix.length) : token);
  }
  const mark = markOf(decoders);
  if (mark === undefined) {
    throw new LimbeckError(
      'ERR_UNSUPPORTED_TOKENIZER',
      `Expected a ByteLevel, WordPiece or Metaspace decoder to align another vocabulary with, got ${types.join(', ') || 'none'}`,
    );
  }
  const hasBytes = types.includes('ByteFallback');
  return (token) => {
    const byte = hasBytes ? /^<0x([0-9A-Fa-f]{2})>$/.exec(token)?.[1] : undefined;
    return byte === undefined ? Buffer.from(token.replaceAll(mark, ' ')) : Uint8Array.of(Number.parseInt(byte, 16));
  };
}

/** The character that stands for a space. */
function markOf(decoders: readonly Part[]): string | undefined {
  for (const part of decoders) {
    if (typeOf(part) === 'Metaspace') return readString(part, 'replacement', '▁');
    const { pattern, content } = part.json;
    if (typeOf(part) === 'Replace' && content === ' ' && isRecord(pattern) && typeof pattern['String'] === 'string') {
      return pattern['String'];
    }
  }
  return undefined;
}

function unknownIdOf(json: Json, tokenOf: ReadonlyMap<number, string>): number | undefined {
  const model = json['model'] as Json;
  if (typeof model['unk_id'] === 'number') return model['unk_id'];
  const token = model['unk_token'];
  if (typeof token !== 'string' || token === '') return undefined;
  for (const [id, text] of tokenOf) if (text === token) return id;
  return undefined;
}

function surroundingsOf(tokenizer: Tokenizer): { before: number[]; after: number[] } {
  const whole = tokenizer.encode('a');
  const { length } = tokenizer.encode('a', { addSpecialTokens: false });
  const bare = tokenizer.encode('a', { addSpecialTokens: false }).join();
  for (let begin = 0; begin + length <= whole.length; begin++) {
    if (whole.slice(begin, begin + length).join() === bare) {
      return { before: whole.slice(0, begin), after: whole.slice(begin + length) };
    }
  }
  throw new LimbeckError('ERR_TOKENIZER', 'The tokenizer changes a text when it puts special tokens around it');
}

function isSame(tokenizer: Tokenizer, a: string, b: string, unknownId: number | undefined): boolean {
  const ids = [a, b].map((text) => tokenizer.encode(text, { addSpecialTokens: false }));
  return ids[0]?.join() === ids[1]?.join() && !ids.flat().some((id) => id === unknownId);
}
