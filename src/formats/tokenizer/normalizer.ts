/** Normalizers of a tokenizer.json: what happens to a text before it is cut. */
import { bytesToCharacters } from './byte-level.js';
import { MARK, NONSPACING_MARK, normalizeUnicode, OTHER, WHITE_SPACE } from './characters.js';
import { asPart, type Part, readBoolean, readParts, readString, typeOf, unsupported } from './json.js';
import { readPattern } from './patterns.js';
import { precompiledCharacterMap } from './precompiled.js';

/** A text on its way; a Metaspace that marks only the first word asks whether the beginning is still there. */
export interface Normalized {
  readonly text: string;
  /** Whether the text begins where the caller's text does. */
  readonly isStart: boolean;
}

export type Normalizer = (input: Normalized) => Normalized;

/** @throws LimbeckError ERR_TOKENIZER, ERR_UNSUPPORTED_TOKENIZER */
export function readNormalizer(value: unknown, place: string): Normalizer {
  if (value === null || value === undefined) return (input) => input;
  const part = asPart(value, place);
  const type = typeOf(part);
  switch (type) {
    case 'Sequence': {
      const normalizers = readParts(part, 'normalizers').map(({ json, place: at }) => readNormalizer(json, at));
      return (input) => normalizers.reduce((state, normalize) => normalize(state), input);
    }
    case 'NFC':
    case 'NFD':
    case 'NFKC':
    case 'NFKD':
      return keepingStart((text) => normalizeUnicode(text, type));
    case 'Lowercase':
      return keepingStart(lowercase);
    case 'StripAccents':
      return dropping(MARK);
    case 'BertNormalizer':
      return bertNormalizer(part);
    case 'Strip':
      return strip(part);
    case 'Replace': {
      const pattern = readPattern(part);
      const content = readString(part, 'content');
      return ({ text, isStart }) => ({
        text: text.replace(pattern, () => content),
        isStart: isStart && (content !== '' || text.search(pattern) !== 0),
      });
    }
    case 'Prepend': {
      const prefix = readString(part, 'prepend');
      return keepingStart((text) => (text === '' ? '' : prefix + text));
    }
    case 'ByteLevel':
      return keepingStart(bytesToCharacters);
    case 'Nmt':
      return inOrder([
        dropping('[\\u0001-\\u0008\\u000b\\u000e-\\u001f\\u007f\\u008f\\u009f]'),
        mapping(/[\t\n\f\r\u1680\u200b-\u200f\u2028\u2029\u2581\ufeff\ufffd]/g, ' '),
      ]);
    case 'Precompiled': {
      const map = precompiledCharacterMap(readString(part, 'precompiled_charsmap'), place);
      return keepingStart(map);
    }
    default:
      throw unsupported(place, `the normalizer ${JSON.stringify(type)} is not supported`);
  }
}

/** Unlike JavaScript's, Rust's lower case looks at one character at a time: a final sigma is no special case. */
function lowercase(text: string): string {
  return text.replaceAll('Σ', 'σ').toLowerCase();
}

/** BERT's: drops control characters, puts spaces around Chinese characters, strips accents, lower-cases. */
function bertNormalizer(part: Part): Normalizer {
  const isLowercased = readBoolean(part, 'lowercase', true);
  const steps: Normalizer[] = [];
  if (readBoolean(part, 'clean_text', true)) {
    steps.push(dropping(`[\\0\\ufffd[${OTHER}--[\\t\\n\\r]]]`), mapping(new RegExp(WHITE_SPACE, 'gu'), ' '));
  }
  if (readBoolean(part, 'handle_chinese_chars', true)) {
    steps.push(keepingStart((text) => text.replace(CHINESE, ' $& ')));
  }
  if (readBoolean(part, 'strip_accents', isLowercased)) {
    steps.push(
      keepingStart((text) => normalizeUnicode(text, 'NFD')),
      dropping(NONSPACING_MARK),
    );
  }
  if (isLowercased) steps.push(keepingStart(lowercase));
  return inOrder(steps);
}

/** As in BERT's own code; the Rust tokenizers begin the last but one block at 2B920. */
const CHINESE =
  /[\u4e00-\u9fff\u3400-\u4dbf\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2b81f}\u{2b920}-\u{2ceaf}\uf900-\ufaff\u{2f800}-\u{2fa1f}]/gu;

function strip(part: Part): Normalizer {
  const steps: Normalizer[] = [];
  if (readBoolean(part, 'strip_left', false)) steps.push(dropping(`^${WHITE_SPACE}+`));
  if (readBoolean(part, 'strip_right', false)) {
    steps.push(keepingStart((text) => text.slice(0, trailingSpace(text))));
  }
  return inOrder(steps);
}

/** Where the white space at the end begins. A pattern would try from every space of the text. */
export function trailingSpace(text: string): number {
  let end = text.length;
  while (end > 0 && IS_WHITE_SPACE.test(text[end - 1] as string)) end--;
  return end;
}

const IS_WHITE_SPACE = new RegExp(WHITE_SPACE, 'u');

function keepingStart(map: (text: string) => string): Normalizer {
  return ({ text, isStart }) => ({ text: map(text), isStart });
}

function mapping(pattern: RegExp, replacement: string): Normalizer {
  return keepingStart((text) => text.replace(pattern, replacement));
}

/** Removes the characters of a class; a text that loses its first one does not begin where the caller's does. */
function dropping(characterClass: string): Normalizer {
  const pattern = new RegExp(characterClass, 'gv');
  return ({ text, isStart }) => ({ text: text.replace(pattern, ''), isStart: isStart && text.search(pattern) !== 0 });
}

function inOrder(steps: readonly Normalizer[]): Normalizer {
  return (input) => steps.reduce((state, normalize) => normalize(state), input);
}
