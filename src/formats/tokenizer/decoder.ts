/** Decoders of a tokenizer.json: from tokens back to text. */
import { tokenBytes } from './byte-level.js';
import {
  asPart,
  type Part,
  readBoolean,
  readCharacter,
  readCount,
  readParts,
  readString,
  typeOf,
  unsupported,
} from './json.js';
import { readPattern } from './patterns.js';

/** The texts that it gives are joined without anything between them. */
export type Decoder = (tokens: readonly string[]) => string[];

/** @throws LimbeckError ERR_TOKENIZER, ERR_UNSUPPORTED_TOKENIZER */
export function readDecoder(value: unknown, place: string): Decoder {
  if (value === null || value === undefined) return (tokens) => [tokens.join(' ')];
  const part = asPart(value, place);
  const type = typeOf(part);
  switch (type) {
    case 'Sequence': {
      const steps = readParts(part, 'decoders').map(({ json, place: at }) => readDecoder(json, at));
      return (tokens) => steps.reduce<string[]>((state, decode) => decode(state), [...tokens]);
    }
    case 'ByteLevel': {
      const utf8 = new TextDecoder('utf-8', { ignoreBOM: true });
      return (tokens) => [utf8.decode(Buffer.concat(tokens.map(tokenBytes)))];
    }
    case 'ByteFallback':
      return byteFallback;
    case 'Fuse':
      return (tokens) => [tokens.join('')];
    case 'Metaspace': {
      const mark = readCharacter(part, 'replacement', '▁');
      const first = readString(part, 'prepend_scheme', 'always') === 'never' ? ' ' : '';
      return (tokens) => tokens.map((token, i) => token.replaceAll(mark, i === 0 ? first : ' '));
    }
    case 'Replace': {
      const pattern = readPattern(part);
      const content = readString(part, 'content');
      return (tokens) => tokens.map((token) => token.replace(pattern, () => content));
    }
    case 'Strip':
      return strip(part);
    case 'WordPiece': {
      const prefix = readString(part, 'prefix', '##');
      const clean = readBoolean(part, 'cleanup', true) ? cleanUpSpaces : (text: string) => text;
      return (tokens) =>
        tokens.map((token, i) => {
          if (i === 0) return clean(token);
          return clean(token.startsWith(prefix) ? token.slice(prefix.length) : ` ${token}`);
        });
    }
    case 'BPEDecoder': {
      const suffix = readString(part, 'suffix', '</w>');
      return (tokens) => tokens.map((token, i) => token.replaceAll(suffix, i === tokens.length - 1 ? '' : ' '));
    }
    default:
      throw unsupported(place, `the decoder ${JSON.stringify(type)} is not supported`);
  }
}

/** Tokens <0x00> to <0xFF> in a row become the text of their bytes, or a replacement character for each. */
function byteFallback(tokens: readonly string[]): string[] {
  const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
  const texts: string[] = [];
  let bytes: number[] = [];
  const flush = () => {
    if (bytes.length === 0) return;
    try {
      texts.push(utf8.decode(Uint8Array.from(bytes)));
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // a TypeError says that they are not UTF-8
      texts.push(...bytes.map(() => '\ufffd'));
    }
    bytes = [];
  };
  for (const token of tokens) {
    const hex = /^<0x([0-9A-Fa-f]{2})>$/.exec(token)?.[1];
    if (hex !== undefined) {
      bytes.push(Number.parseInt(hex, 16));
    } else {
      flush();
      texts.push(token);
    }
  }
  flush();
  return texts;
}

function strip(part: Part): Decoder {
  const content = readCharacter(part, 'content');
  const start = readCount(part, 'start', 0);
  const stop = readCount(part, 'stop', 0);
  return (tokens) =>
    tokens.map((token) => {
      const characters = Array.from(token);
      let begin = 0;
      while (begin < start && characters[begin] === content) begin++;
      let end = characters.length;
      while (end > begin && characters.length - end < stop && characters[end - 1] === content) end--;
      return characters.slice(begin, end).join('');
    });
}

/** Spaces that WordPiece puts before punctuation and English contractions. */
export function cleanUpSpaces(text: string): string {
  return text
    .replaceAll(' .', '.')
    .replaceAll(' ?', '?')
    .replaceAll(' !', '!')
    .replaceAll(' ,', ',')
    .replaceAll(" ' ", "'")
    .replaceAll(" n't", "n't")
    .replaceAll(" 'm", "'m")
    .replaceAll(' do not', " don't")
    .replaceAll(" 's", "'s")
    .replaceAll(" 've", "'ve")
    .replaceAll(" 're", "'re");
}
