/** Pre-tokenizers of a tokenizer.json: how a text is cut into the words that a model sees one by one. */
import { bytesToCharacters } from './byte-level.js';
import { NUMBER, PUNCTUATION, WHITE_SPACE, WORD_CHARACTER } from './characters.js';
import {
  asPart,
  invalid,
  type Part,
  readBoolean,
  readCharacter,
  readParts,
  readString,
  typeOf,
  unsupported,
} from './json.js';
import { type Behavior, escapePattern, readBehavior, readPattern, splitText } from './patterns.js';

/** Words in the order of the text. */
export interface Words {
  readonly texts: readonly string[];
  /** Whether the first word begins where the caller's text does. */
  readonly isStart: boolean;
}

export type PreTokenizer = (words: Words) => Words;

const GPT2_PATTERN =
  "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\p{White_Space}\\p{L}\\p{N}]+|\\p{White_Space}+(?!\\P{White_Space})|\\p{White_Space}+";

/** @throws LimbeckError ERR_TOKENIZER, ERR_UNSUPPORTED_TOKENIZER */
export function readPreTokenizer(value: unknown, place: string): PreTokenizer {
  if (value === null || value === undefined) return (words) => words;
  const part = asPart(value, place);
  const type = typeOf(part);
  switch (type) {
    case 'Sequence': {
      const steps = readParts(part, 'pretokenizers').map(({ json, place: at }) => readPreTokenizer(json, at));
      return inOrder(steps);
    }
    case 'ByteLevel':
      return byteLevel(part);
    case 'Metaspace':
      return metaspace(part);
    case 'Split': {
      const pattern = readPattern(part);
      // Code points are what they are in any Unicode.
      const knowsAll = !pattern.source.includes('\\p');
      return splitting(pattern, readBehavior(part), { invert: readBoolean(part, 'invert', false), knowsAll });
    }
    case 'Digits':
      return splitting(unicode(NUMBER), readBoolean(part, 'individual_digits', false) ? 'isolated' : 'contiguous', {
        knowsAll: true, // Rust's own tables
      });
    case 'Punctuation':
      return splitting(unicode(PUNCTUATION), readBehavior(part, 'isolated'));
    case 'Whitespace':
      return splitting(unicode(`${WORD_CHARACTER}+|[^${WORD_CHARACTER}${WHITE_SPACE}]+`), 'removed', {
        invert: true,
      });
    case 'WhitespaceSplit':
      return splitting(unicode(WHITE_SPACE), 'removed');
    case 'BertPreTokenizer':
      return inOrder([splitting(unicode(WHITE_SPACE), 'removed'), splitting(unicode(PUNCTUATION), 'isolated')]);
    case 'CharDelimiterSplit':
      return splitting(unicode(escapePattern(readCharacter(part, 'delimiter'))), 'removed');
    default:
      throw unsupported(place, `the pre-tokenizer ${JSON.stringify(type)} is not supported`);
  }
}

function unicode(pattern: string): RegExp {
  return new RegExp(pattern, 'gv');
}

function inOrder(steps: readonly PreTokenizer[]): PreTokenizer {
  return (words) => steps.reduce((state, step) => step(state), words);
}

function splitting(
  pattern: RegExp,
  behavior: Behavior,
  options: { readonly invert?: boolean; readonly knowsAll?: boolean } = {},
): PreTokenizer {
  return ({ texts, isStart }) => {
    let keepsStart = isStart;
    const pieces: string[] = [];
    texts.forEach((text, i) => {
      const dropped = () => {
        if (i === 0) keepsStart = false;
      };
      for (const piece of splitText(text, pattern, behavior, { ...options, dropped })) pieces.push(piece);
    });
    return { texts: pieces, isStart: keepsStart };
  };
}

function byteLevel(part: Part): PreTokenizer {
  const addsSpace = readBoolean(part, 'add_prefix_space', true);
  const split = splitting(new RegExp(GPT2_PATTERN, 'gu'), 'isolated');
  const cuts = readBoolean(part, 'use_regex', true);
  return ({ texts, isStart }) => {
    const spaced = addsSpace ? texts.map((text) => (text.startsWith(' ') ? text : ` ${text}`)) : texts;
    const words = cuts ? split({ texts: spaced, isStart }) : { texts: spaced, isStart };
    return { texts: words.texts.map(bytesToCharacters), isStart: words.isStart };
  };
}

/** SentencePiece's: a visible mark for a space, put before the text, too. */
function metaspace(part: Part): PreTokenizer {
  const mark = readCharacter(part, 'replacement', '▁');
  const scheme = readString(part, 'prepend_scheme', 'always');
  if (scheme !== 'always' && scheme !== 'first' && scheme !== 'never') {
    throw invalid(part.place, `expected "prepend_scheme" always, first or never, got ${JSON.stringify(scheme)}`);
  }
  if (!readBoolean(part, 'add_prefix_space', true) && scheme !== 'never') {
    throw invalid(part.place, '"add_prefix_space" is false, and "prepend_scheme" is not never');
  }
  const splits = readBoolean(part, 'split', true);
  const split = splitting(new RegExp(escapePattern(mark), 'gu'), 'mergedwithnext');
  return ({ texts, isStart }) => {
    const marked = texts.map((text, i) => {
      const spaced = text.replaceAll(' ', mark);
      const prepends = scheme === 'always' || (scheme === 'first' && isStart && i === 0);
      return prepends && !spaced.startsWith(mark) ? mark + spaced : spaced;
    });
    return splits ? split({ texts: marked, isStart }) : { texts: marked, isStart };
  };
}
