/**
 * Trains a byte-level BPE tokenizer, as GPT-2's: the most frequent pair of neighbouring tokens becomes a new token, again
 * and again. Counts are kept up to date word by word, and the next pair comes from a heap.
 *
 * @see Sennrich et al. 2016, section 3.2 (arXiv:1508.07909); Radford et al. 2019, section 2.2 (byte level)
 */
import { LimbeckError } from '../errors.js';
import { createPacer, type Pause } from './pacer.js';
import { byteAlphabet } from './tokenizer/byte-level.js';
import { byteLevelJson, MAX_TOKEN_ID } from './tokenizer-json.js';

export interface BytePairOptions {
  /** Special tokens + 256 bytes + merges; at least special tokens + 256. The result is smaller when pairs run out. */
  readonly vocabSize: number;
  /** They get the first ids, and are cut out of the texts. @defaultValue ['<|endoftext|>'] */
  readonly specialTokens?: readonly string[];
  /** A pair seen less often is not merged. @defaultValue 2 */
  readonly minFrequency?: number;
}

const WORDS = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;
/** Longer words are counted in pieces: one endless word would cost its length at every merge. */
const MAX_WORD_BYTES = 256;
/** Tokens that every byte-level vocabulary has. */
export const NUM_BYTES = 256;
/** Pair (a, b) as one exact number: a · 2^24 + b. */
const PAIR_BASE = 1 << 24;

interface Word {
  symbols: number[];
  readonly count: number;
}

interface Pair {
  count: number;
  /** Words that had the pair at some time. */
  readonly words: Set<number>;
}

/**
 * The content of a tokenizer.json. Equal texts and options give an equal result: the more frequent pair goes first, then
 * the pair of lower ids.
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT (options), ERR_EMPTY_DATA (no text)
 */
export async function trainBytePairTokenizer(
  texts: Iterable<string> | AsyncIterable<string>,
  options: BytePairOptions,
): Promise<object> {
  const { vocabSize, specialTokens = ['<|endoftext|>'], minFrequency = 2 } = options;
  const smallest = specialTokens.length + NUM_BYTES;
  if (!Number.isInteger(vocabSize) || vocabSize < smallest || vocabSize > MAX_TOKEN_ID) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `Expected vocabSize to be an integer from ${smallest} (special tokens + 256 bytes) to ${MAX_TOKEN_ID}, got ${vocabSize}`,
    );
  }
  if (!Number.isInteger(minFrequency) || minFrequency < 1) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `Expected minFrequency to be an integer from 1, got ${minFrequency}`,
    );
  }
  const { characters, order } = byteAlphabet();
  const tokens = [...specialTokens, ...order.map((byte) => characters[byte] as string)];
  if (new Set(tokens).size !== tokens.length || specialTokens.includes('')) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `Expected different, non-empty specialTokens of more than one byte, got ${JSON.stringify(specialTokens)}`,
    );
  }
  const idOfByte = new Array<number>(NUM_BYTES);
  order.forEach((byte, index) => {
    idOfByte[byte] = specialTokens.length + index;
  });
  const pause = createPacer();
  const words = await countWords(pause, texts, specialTokens, idOfByte);
  if (words.length === 0) throw new LimbeckError('ERR_EMPTY_DATA', 'Expected text to train a tokenizer on, got none');
  const merges = await learnMerges(pause, words, tokens, vocabSize, minFrequency);
  const vocab = Object.fromEntries(tokens.map((token, id) => [token, id]));
  return byteLevelJson(vocab, merges, specialTokens);
}

/** Appends new tokens to `tokens` until there are `vocabSize`; returns the merges in order. */
async function learnMerges(
  pause: Pause,
  words: readonly Word[],
  tokens: string[],
  vocabSize: number,
  minFrequency: number,
): Promise<string[]> {
  const idOf = new Map(tokens.map((token, id) => [token, id]));
  const pairs = new Map<number, Pair>();
  words.forEach(({ symbols, count }, index) => {
    for (let i = 1; i < symbols.length; i++) {
      addToPair(pairs, pairKey(symbols[i - 1] as number, symbols[i] as number), count, index);
    }
  });
  const queue = new PairQueue();
  for (const [key, { count }] of pairs) queue.push(key, count);

  const merges = new Set<string>();
  while (tokens.length < vocabSize) {
    await pause();
    const top = queue.pop();
    if (top === undefined || top.count < minFrequency) break;
    const pair = pairs.get(top.key);
    if (pair === undefined) continue;
    if (pair.count !== top.count) {
      // The count fell since the pair was queued; rises are queued when they happen.
      if (pair.count < top.count) queue.push(top.key, pair.count);
      continue;
    }
    const left = Math.floor(top.key / PAIR_BASE);
    const right = top.key % PAIR_BASE;
    const token = `${tokens[left]}${tokens[right]}`;
    let merged = idOf.get(token);
    if (merged === undefined) {
      merged = tokens.push(token) - 1;
      idOf.set(token, merged);
    }
    merges.add(`${tokens[left]} ${tokens[right]}`);
    const risen = new Set<number>();
    for (const index of pair.words) mergeInWord(pairs, words[index] as Word, index, left, right, merged, risen);
    if (pair.count === 0) pairs.delete(top.key);
    for (const key of risen) queue.push(key, (pairs.get(key) as Pair).count);
  }
  return [...merges];
}

/** Joins the pair in one word, and moves its count from the old neighbours to the new ones. */
function mergeInWord(
  pairs: Map<number, Pair>,
  word: Word,
  index: number,
  left: number,
  right: number,
  merged: number,
  risen: Set<number>,
): void {
  const { symbols, count } = word;
  const result: number[] = [];
  let isChanged = false;
  for (let i = 0; i < symbols.length; i++) {
    const isPair = symbols[i] === left && symbols[i + 1] === right;
    result.push(isPair ? merged : (symbols[i] as number));
    if (isPair) {
      i++;
      isChanged = true;
    }
  }
  if (!isChanged) return;
  for (let i = 1; i < symbols.length; i++) {
    (pairs.get(pairKey(symbols[i - 1] as number, symbols[i] as number)) as Pair).count -= count;
  }
  for (let i = 1; i < result.length; i++) {
    const key = pairKey(result[i - 1] as number, result[i] as number);
    addToPair(pairs, key, count, index);
    if (result[i - 1] === merged || result[i] === merged) risen.add(key);
  }
  word.symbols = result;
}

function addToPair(pairs: Map<number, Pair>, key: number, count: number, wordIndex: number): void {
  let pair = pairs.get(key);
  if (pair === undefined) {
    pair = { count: 0, words: new Set() };
    pairs.set(key, pair);
  }
  pair.count += count;
  pair.words.add(wordIndex);
}

function pairKey(left: number, right: number): number {
  return left * PAIR_BASE + right;
}

/** Binary heap: higher count first, then lower key. */
class PairQueue {
  private readonly heap: { key: number; count: number }[] = [];

  push(key: number, count: number): void {
    const { heap } = this;
    const entry = { key, count };
    let child = heap.push(entry) - 1;
    while (child > 0) {
      const parent = (child - 1) >> 1;
      const above = heap[parent] as { key: number; count: number };
      if (!isBefore(entry, above)) break;
      heap[child] = above;
      child = parent;
    }
    heap[child] = entry;
  }

  pop(): { key: number; count: number } | undefined {
    const { heap } = this;
    const top = heap[0];
    const last = heap.pop();
    if (last === undefined || heap.length === 0) return top;
    let parent = 0;
    for (;;) {
      let child = 2 * parent + 1;
      const rightChild = heap[child + 1];
      if (rightChild !== undefined && isBefore(rightChild, heap[child] as { key: number; count: number })) child++;
      const below = heap[child];
      if (below === undefined || !isBefore(below, last)) break;
      heap[parent] = below;
      parent = child;
    }
    heap[parent] = last;
    return top;
  }
}

function isBefore(a: { key: number; count: number }, b: { key: number; count: number }): boolean {
  return a.count > b.count || (a.count === b.count && a.key < b.key);
}

async function countWords(
  pause: Pause,
  texts: Iterable<string> | AsyncIterable<string>,
  specialTokens: readonly string[],
  idOfByte: readonly number[],
): Promise<Word[]> {
  const counts = new Map<string, number>();
  const special = new RegExp(specialTokens.map((token) => token.replace(/[\\^$.*+?()[\]{}|/-]/g, '\\$&')).join('|'));
  for await (const text of texts) {
    await pause();
    for (const section of specialTokens.length === 0 ? [text] : text.split(special)) {
      for (const word of section.match(WORDS) ?? []) {
        const count = counts.get(word);
        counts.set(count === undefined ? ownString(word) : word, (count ?? 0) + 1);
      }
    }
  }
  return Array.from(counts).flatMap(([word, count]) => {
    const symbols = Array.from(Buffer.from(word), (byte) => idOfByte[byte] as number);
    const pieces: Word[] = [];
    for (let begin = 0; begin < symbols.length; begin += MAX_WORD_BYTES) {
      pieces.push({ symbols: symbols.slice(begin, begin + MAX_WORD_BYTES), count });
    }
    return pieces;
  });
}

/** A copy: a part of a string keeps the whole of it in memory. */
function ownString(part: string): string {
  return Buffer.from(part, 'utf16le').toString('utf16le');
}
