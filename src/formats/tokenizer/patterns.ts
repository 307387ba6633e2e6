/** Patterns of a tokenizer.json, and how a text is cut at their matches. */
import { asOfUnicode16 } from './characters.js';
import { invalid, isRecord, type Part, unsupported } from './json.js';

/** White space of Oniguruma is the property, which JavaScript's \s is not. Inside a character class, too. */
const ESCAPES: Readonly<Record<string, string>> = { '\\s': '\\p{White_Space}', '\\S': '\\P{White_Space}' };
/** Without case: ſ is a small s. */
const CONTRACTIONS = "(?:'(?:[sS\\u017f]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD]))";

/**
 * The patterns of the supported families: GPT-2, GPT-4 and Llama 3, Qwen2 and 3, GPT-4o, Mistral's Tekken, T5 and XLM-R,
 * DeepSeek, Falcon. They run in linear time on any text, which an unknown pattern need not.
 */
const KNOWN_PATTERNS: ReadonlySet<string> = new Set([
  "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
  "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
  '[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+',
  '\\s+',
  ' {2,}',
  '[\\r\\n]',
  '\\s?\\p{L}+',
  '\\s?\\p{P}+',
  '[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+',
  '\\p{N}+',
  '\\p{N}{1,3}',
  '[0-9][0-9][0-9]',
]);

/**
 * Reads `{ "String": … }` or `{ "Regex": … }` as an expression that finds every match.
 *
 * @throws LimbeckError ERR_TOKENIZER; ERR_UNSUPPORTED_TOKENIZER for a pattern that is not known to run in linear time
 */
export function readPattern({ json, place }: Part, key = 'pattern'): RegExp {
  const pattern = json[key];
  const text = isRecord(pattern) ? pattern['String'] : undefined;
  if (typeof text === 'string' && text !== '') return new RegExp(escapePattern(text), 'gu');
  const source = isRecord(pattern) ? pattern['Regex'] : undefined;
  if (typeof source !== 'string') {
    throw invalid(place, `expected "${key}" as {"String": text} or {"Regex": text}, got ${JSON.stringify(pattern)}`);
  }
  const known = source.replaceAll('\r', '\\r').replaceAll('\n', '\\n'); // some files hold the characters
  if (!KNOWN_PATTERNS.has(known)) {
    throw unsupported(place, `the pattern ${JSON.stringify(source)} is not one of the known linear-time ones`);
  }
  const translated = known
    .replaceAll("(?i:'s|'t|'re|'ve|'m|'ll|'d)", CONTRACTIONS)
    .replace(/\\[sS]/g, (name) => ESCAPES[name] as string);
  return new RegExp(translated, 'gu');
}

export function escapePattern(text: string): string {
  return text.replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&');
}

const BEHAVIORS = ['removed', 'isolated', 'mergedwithprevious', 'mergedwithnext', 'contiguous'] as const;
/** What becomes of the matches: dropped, pieces of their own, joined to a neighbour, or joined to each other. */
export type Behavior = (typeof BEHAVIORS)[number];

export function readBehavior({ json, place }: Part, byDefault?: Behavior): Behavior {
  const value = json['behavior'] ?? byDefault;
  const behavior = BEHAVIORS.find((name) => typeof value === 'string' && name === value.toLowerCase());
  if (behavior === undefined) throw invalid(place, `expected a "behavior" of Split, got ${JSON.stringify(value)}`);
  return behavior;
}

/**
 * Cuts a text at the matches of a pattern. Between them, and at both ends, lie the parts that do not match.
 *
 * @param options.invert takes what lies between the matches for the matches
 * @param options.knowsAll the pattern knows the characters of the latest Unicode, not those of version 16 alone
 * @param options.dropped is told that the piece at the very beginning was removed
 */
export function splitText(
  text: string,
  pattern: RegExp,
  behavior: Behavior,
  {
    invert = false,
    knowsAll = false,
    dropped,
  }: { readonly invert?: boolean; readonly knowsAll?: boolean; readonly dropped?: () => void } = {},
): string[] {
  const cuts: { begin: number; end: number; isMatch: boolean }[] = [];
  const add = (begin: number, end: number, isMatch: boolean) => {
    if (begin < end) cuts.push({ begin, end, isMatch: isMatch !== invert });
  };
  let previous = 0;
  for (const match of (knowsAll ? text : asOfUnicode16(text)).matchAll(pattern)) {
    add(previous, match.index, false);
    previous = match.index + match[0].length;
    add(match.index, previous, true);
  }
  add(previous, text.length, false);
  if (behavior === 'removed') {
    if (cuts[0]?.isMatch) dropped?.();
    return cuts.filter(({ isMatch }) => !isMatch).map(({ begin, end }) => text.slice(begin, end));
  }
  return joined(cuts, behavior).map(([begin, end]) => text.slice(begin, end));
}

function joined(
  cuts: readonly { begin: number; end: number; isMatch: boolean }[],
  behavior: Exclude<Behavior, 'removed'>,
): [number, number][] {
  const pieces: [number, number][] = [];
  let wasMatch = false;
  if (behavior === 'mergedwithnext') {
    for (const { begin, end, isMatch } of cuts.toReversed()) {
      const next = pieces.at(-1);
      if (isMatch && !wasMatch && next) next[0] = begin;
      else pieces.push([begin, end]);
      wasMatch = isMatch;
    }
    return pieces.reverse();
  }
  for (const { begin, end, isMatch } of cuts) {
    const last = pieces.at(-1);
    const joins =
      behavior === 'contiguous' ? isMatch === wasMatch : behavior === 'mergedwithprevious' && isMatch && !wasMatch;
    if (joins && last) last[1] = end;
    else pieces.push([begin, end]);
    wasMatch = isMatch;
  }
  return pieces;
}
