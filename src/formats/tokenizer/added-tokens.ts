/** Added tokens: texts that are tokens wherever they stand, cut out before a model sees the rest. */
import { asOfUnicode16, WHITE_SPACE, WORD_CHARACTER } from './characters.js';
import { invalid, type Part, readBoolean, readCount, readString } from './json.js';
import { type Normalized, type Normalizer, trailingSpace } from './normalizer.js';
import { escapePattern } from './patterns.js';

export interface AddedToken {
  readonly id: number;
  readonly content: string;
  readonly isSpecial: boolean;
  /** Is looked for in the normalised text, by its normalised content. */
  readonly isNormalized: boolean;
  /** Stands between characters that belong to no word. */
  readonly isSingleWord: boolean;
  /** Swallow the white space before and after. */
  readonly stripsLeft: boolean;
  readonly stripsRight: boolean;
}

export function readAddedToken(part: Part): AddedToken {
  const isSpecial = readBoolean(part, 'special', false);
  return {
    id: readCount(part, 'id'),
    content: readString(part, 'content'),
    isSpecial,
    isNormalized: readBoolean(part, 'normalized', !isSpecial),
    isSingleWord: readBoolean(part, 'single_word', false),
    stripsLeft: readBoolean(part, 'lstrip', false),
    stripsRight: readBoolean(part, 'rstrip', false),
  };
}

/** A piece of a text, or the id of an added token. */
export type Section = Normalized | number;

/**
 * Cuts out the added tokens: those that are not normalised first, then, from what lies between, normalised, the others.
 *
 * @throws LimbeckError ERR_TOKENIZER when nothing is left of a token that is normalised
 */
export function createSplitter(
  tokens: readonly AddedToken[],
  normalize: Normalizer,
  place: string,
): (text: string) => Section[] {
  const findRaw = createFinder(tokens.filter((token) => !token.isNormalized).map((token) => [token.content, token]));
  const normalized = tokens.filter((token) => token.isNormalized);
  const contents = normalized.map((token): [string, AddedToken] => {
    const { text } = normalize({ text: token.content, isStart: true });
    if (text === '')
      throw invalid(place, `nothing is left of the added token '${token.content}' when it is normalised`);
    return [text, token];
  });
  const findNormalized = createFinder(contents);
  return (text) =>
    findRaw({ text, isStart: true }).flatMap((section) =>
      typeof section === 'number' ? [section] : findNormalized(normalize(section)),
    );
}

const WORD_AT_START = new RegExp(`^${WORD_CHARACTER}`, 'v');
const WORD_AT_END = new RegExp(`${WORD_CHARACTER}$`, 'v');
const SPACE_AT_START = new RegExp(`^${WHITE_SPACE}*`, 'u');

/** Of the tokens that begin first, the longest is taken. */
function createFinder(
  tokens: readonly (readonly [content: string, token: AddedToken])[],
): (input: Normalized) => Section[] {
  const whole = (input: Normalized): Section[] => (input.text === '' ? [] : [input]);
  if (tokens.length === 0) return whole;
  // Of equal contents the special one counts, then the first.
  const inOrder = [
    ...tokens.filter(([, { isSpecial }]) => isSpecial),
    ...tokens.filter(([, { isSpecial }]) => !isSpecial),
  ];
  const byContent = new Map(inOrder.reverse());
  const longestFirst = [...byContent.keys()].sort((a, b) => b.length - a.length);
  const pattern = new RegExp(longestFirst.map(escapePattern).join('|'), 'gu');

  return (input) => {
    const { text } = input;
    const sections: Section[] = [];
    let end = 0;
    for (const match of text.matchAll(pattern)) {
      const token = byContent.get(match[0]) as AddedToken;
      let begin = match.index;
      let stop = begin + match[0].length;
      if (token.isSingleWord && isInsideWord(text, begin, stop)) continue;
      if (token.stripsLeft) begin = Math.max(trailingSpace(text.slice(0, begin)), end);
      if (token.stripsRight) stop += (SPACE_AT_START.exec(text.slice(stop)) as RegExpExecArray)[0].length;
      if (end < begin) sections.push({ text: text.slice(end, begin), isStart: input.isStart && end === 0 });
      sections.push(token.id);
      end = stop;
    }
    if (end === 0) return whole(input);
    if (end < text.length) sections.push({ text: text.slice(end), isStart: false });
    return sections;
  };
}

function isInsideWord(text: string, begin: number, end: number): boolean {
  // A character has one or two units.
  return (
    WORD_AT_END.test(asOfUnicode16(text.slice(Math.max(0, begin - 2), begin))) ||
    WORD_AT_START.test(asOfUnicode16(text.slice(end, end + 2)))
  );
}
