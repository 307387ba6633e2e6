/** SentencePiece's normalisation table: a double array of UTF-8 keys, and the texts that replace them. */
import { asOfUnicode16 } from './characters.js';
import { invalid } from './json.js';

/** Longer clusters are looked up character by character. */
const MAX_CLUSTER_BYTES = 5;
const CLUSTERS = new Intl.Segmenter('en', { granularity: 'grapheme' });
const HIGH_SURROGATE = /[\ud800-\udbff]/;
/** UTF-16 units that are segmented at a time: V8 takes as long as the square of their number. */
const WINDOW = 512;

/**
 * Reads `precompiled_charsmap`: base64 of a trie size in bytes (uint32), the trie, and NUL-ended replacements.
 *
 * @see sentencepiece src/normalizer.cc; darts-clone (layout of a unit)
 * @throws LimbeckError ERR_TOKENIZER
 */
export function precompiledCharacterMap(base64: string, place: string): (text: string) => string {
  const bytes = Buffer.from(base64, 'base64');
  const trieBytes = bytes.length >= 4 ? bytes.readUInt32LE(0) : -1;
  if (trieBytes < 4 || trieBytes % 4 !== 0 || 4 + trieBytes > bytes.length) {
    throw invalid(place, 'expected "precompiled_charsmap" as base64 of a size, a trie of that size, and texts');
  }
  const units = Uint32Array.from({ length: trieBytes / 4 }, (_, i) => bytes.readUInt32LE(4 + 4 * i));
  const replacements = bytes.subarray(4 + trieBytes);

  /** What replaces a text that begins with a key of the table: that of the shortest such key. */
  const lookUp = (text: string): string | undefined => {
    const offset = (unit: number) => (unit >>> 10) << ((unit & 0x200) >>> 6);
    let node = offset(units[0] as number);
    for (const byte of Buffer.from(text)) {
      if (byte === 0) return undefined;
      node ^= byte;
      const unit = units[node];
      if (unit === undefined || (unit & 0x800000ff) >>> 0 !== byte) return undefined;
      node ^= offset(unit);
      if ((unit & 0x100) === 0) continue;
      const begin = (units[node] ?? 0) & 0x7fffffff;
      const end = replacements.indexOf(0, begin);
      return replacements.toString('utf8', begin, end === -1 ? replacements.length : end);
    }
    return undefined;
  };
  const known = new Map<string, string>();
  const replacementOf = (character: string): string => {
    let replacement = known.get(character);
    if (replacement === undefined) {
      replacement = lookUp(character) ?? character;
      known.set(character, replacement);
    }
    return replacement;
  };
  return (text) => {
    let result = '';
    let index = 0;
    for (const length of clusterLengths(asOfUnicode16(text))) {
      const segment = text.slice(index, index + length);
      index += length;
      const isShort = segment.length <= MAX_CLUSTER_BYTES && Buffer.byteLength(segment) <= MAX_CLUSTER_BYTES;
      const whole = isShort ? lookUp(segment) : undefined;
      if (whole !== undefined) result += whole;
      else for (const character of segment) result += replacementOf(character);
    }
    return result;
  };
}

/** Lengths of the grapheme clusters of a well-formed text. */
export function* clusterLengths(text: string): Generator<number, void, undefined> {
  let begin = 0;
  for (let width = WINDOW; begin < text.length; ) {
    const isHalved = HIGH_SURROGATE.test(text[begin + width - 1] ?? '');
    const window = text.slice(begin, begin + width - (isHalved ? 1 : 0));
    const isLast = begin + window.length === text.length;
    const start = begin;
    for (const { index, segment } of CLUSTERS.segment(window)) {
      // The last cluster may go on behind the window; where those before it end does not depend on what comes there.
      if (!isLast && index + segment.length === window.length) break;
      yield segment.length;
      begin += segment.length;
    }
    width = begin === start ? 2 * width : WINDOW;
  }
}
