/**
 * Two tokenisations of one text, aligned by the places of the text where both have the end of a token.
 *
 * There both models have read the same text, and what one says of its next token can be told the other: see
 * ../student/aligned-teacher.ts.
 */
import { LimbeckError } from '../errors.js';
import type { TokenSpelling } from '../formats/token-spelling.js';

/**
 * Where each token of a text ends, in bytes of its UTF-8; -1 where that cannot be told: inside a character that the
 * tokenizer rewrites, after white space that it does not keep, after a text that it has no token for.
 *
 * A tokenizer that keeps every byte is followed byte by byte, also inside characters. Of others, what is left of text and
 * tokens without case, accents, white space and compatibility forms is compared.
 *
 * @param ids of the text alone, without special tokens around it
 * @throws LimbeckError ERR_TOKENIZER when the tokens do not spell the text
 */
export function tokenEnds(text: string, ids: Int32Array, spelling: TokenSpelling): Int32Array {
  const pieces = Array.from(ids, (id) => spelling.bytesOf(id));
  const bytes = Buffer.from(text.toWellFormed());
  return exactEnds(bytes, pieces) ?? foldedEnds(text.toWellFormed(), pieces);
}

function exactEnds(text: Buffer, pieces: readonly (Uint8Array | undefined)[]): Int32Array | undefined {
  if (pieces.includes(undefined)) return undefined;
  const spelled = Buffer.concat(pieces as Uint8Array[]);
  // SentencePiece puts a space before the first word.
  const added = spelled.length === text.length + 1 && spelled[0] === 0x20 ? 1 : 0;
  if (!spelled.subarray(added).equals(text)) return undefined;
  let end = -added;
  return Int32Array.from(pieces as Uint8Array[], (piece) => (end += piece.length));
}

/** White space, controls, marks, what decoders put for broken bytes, and SentencePiece's space. */
const IGNORED = /[\s\p{C}\p{M}\ufffd\u2581]/gu;
const MARK = /^[\p{M}\p{Cf}]/u;

const foldedCharacters = new Map<string, string>();

/** What is left of a character; there are few, which come again and again. */
function folded(character: string): string {
  let left = foldedCharacters.get(character);
  if (left === undefined) {
    left = character.normalize('NFKD').toLowerCase().normalize('NFKD').replace(IGNORED, '');
    foldedCharacters.set(character, left);
  }
  return left;
}

/** A text without what tokenizers change. */
interface FoldedText {
  readonly text: string;
  /** For each of its UTF-16 units, the end of its character in bytes of the whole text; -1 inside a character. */
  readonly ends: Int32Array;
}

function foldText(text: string): FoldedText {
  let whole = '';
  let byte = 0;
  const ends: number[] = [];
  for (const character of text) {
    const begin = byte;
    byte += Buffer.byteLength(character);
    const part = folded(character);
    if (part === '') {
      // Marks belong to the character before them.
      if (MARK.test(character) && ends.at(-1) === begin) ends[ends.length - 1] = byte;
      continue;
    }
    whole += part;
    for (let unit = 1; unit < part.length; unit++) ends.push(-1);
    ends.push(byte);
  }
  return { text: whole, ends: Int32Array.from(ends) };
}

function foldedEnds(text: string, pieces: readonly (Uint8Array | undefined)[]): Int32Array {
  const whole = foldText(text);
  const ends = new Int32Array(pieces.length).fill(-1);
  const runs = runsOf(pieces);
  let from = 0;
  runs.forEach((run, i) => {
    const { text: spelled, ends: places } = foldText(run.text);
    const isFirst = i === 0;
    const isLast = i === runs.length - 1;
    // Between two runs is a text without a token: the first place that goes on with the next run is taken.
    let begin = isFirst ? 0 : whole.text.indexOf(spelled, from);
    if (isLast && !isFirst) begin = Math.max(from, whole.text.length - spelled.length);
    const fits = begin >= 0 && whole.text.startsWith(spelled, begin);
    if (!fits || (isLast && begin + spelled.length !== whole.text.length)) throw notSpelled(whole.text, from, spelled);
    const unitOf = new Map(Array.from(places, (byte, unit) => [byte, unit]));
    run.ends.forEach((byte, token) => {
      const unit = byte === -1 ? undefined : unitOf.get(byte);
      if (unit !== undefined) ends[run.first + token] = whole.ends[begin + unit] ?? -1;
    });
    from = begin + spelled.length;
  });
  return ends;
}

/** Tokens in a row that have a spelling. */
interface Run {
  readonly first: number;
  readonly text: string;
  /** In bytes of `text`; -1 inside a character. */
  readonly ends: number[];
}

/** One run more than there are texts without a token; the first and the last may be empty. */
function runsOf(pieces: readonly (Uint8Array | undefined)[]): Run[] {
  const runs: Run[] = [];
  let first = 0;
  for (let i = 0; i <= pieces.length; i++) {
    if (i < pieces.length && pieces[i] !== undefined) continue;
    const run = pieces.slice(first, i) as Uint8Array[];
    const bytes = Buffer.concat(run);
    let end = 0;
    const ends = run.map((piece) => {
      end += piece.length;
      // The next byte goes on with a character.
      return ((bytes[end] ?? 0) & 0xc0) === 0x80 ? -1 : end;
    });
    runs.push({ first, text: bytes.toString(), ends });
    first = i + 1;
  }
  return runs;
}

function notSpelled(text: string, from: number, spelled: string): LimbeckError {
  const sample = (part: string) => JSON.stringify(part.slice(0, 40));
  return new LimbeckError(
    'ERR_TOKENIZER',
    `The text cannot be told from its tokens: expected ${sample(text.slice(from))}, they spell ${sample(spelled)}. Its ` +
      'tokenizer leaves out or rewrites a part, so that another vocabulary cannot be aligned with it',
  );
}

/**
 * For each place where a token of `ends` ends, the last such token: the one whose successor begins there.
 *
 * @returns token by place
 */
function lastTokens(ends: Int32Array): Map<number, number> {
  const byPlace = new Map<number, number>();
  ends.forEach((end, token) => {
    if (end > 0) byPlace.set(end, token);
  });
  return byPlace;
}

/**
 * Tokens of the teacher that have read what a student's token has read, and no more.
 *
 * @param text [bytes] where `needsSpaces`: a WordPiece vocabulary meets one that spells spaces. Its tokens are told apart
 * only inside a word or where white space follows
 * @returns for each token of the student a token of the teacher, -1 = none
 */
export function sharedEnds(
  student: Int32Array,
  teacher: Int32Array,
  text: Buffer,
  { needsSpaces }: { readonly needsSpaces: boolean },
): Int32Array {
  const teacherTokens = lastTokens(teacher);
  const shared = new Int32Array(student.length).fill(-1);
  for (const [end, token] of lastTokens(student)) {
    const match = teacherTokens.get(end);
    if (match === undefined || (needsSpaces && !tellsSpaces(text, end))) continue;
    const isAtEnd = token === student.length - 1;
    // One has come to the end of the text, the other not: white space follows that only one of them keeps.
    if (isAtEnd === (match === teacher.length - 1)) shared[token] = match;
  }
  return shared;
}

function tellsSpaces(text: Buffer, end: number): boolean {
  const next = text.subarray(end, end + 4).toString();
  if (next === '' || /^\s/u.test(next)) return true;
  let begin = end - 1;
  while (begin > 0 && ((text[begin] ?? 0) & 0xc0) === 0x80) begin--;
  return /[\p{L}\p{N}\p{M}]$/u.test(text.subarray(begin, end).toString());
}
