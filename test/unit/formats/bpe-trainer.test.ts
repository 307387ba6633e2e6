import { describe, expect, test } from 'vitest';
import { trainBytePairTokenizer } from '../../../src/formats/bpe-trainer.js';
import { createTokenizer } from '../../../src/formats/tokenizer.js';
import { cpuTimeMs } from '../../support/cpu-time.js';

const text =
  'low lower lowest new newer newest wide wider widest café 🎉 the the the lower newer\n\n  the\tend. '.repeat(20);

const NASTY = [
  'plain text',
  '  leading, trailing  \n\n\t mixed \r\n white  space   ',
  "I'll've we're 'tis can't",
  'e\u0301 é ﬁ ﷺ ß İ',
  '👩‍👩‍👧‍👦🏳️‍🌈🇩🇪',
  '中文 日本語 한국어 עברית العربية हिन्दी ไทย',
  '\0\u0001\u007f\u0080\u00a0\u00ad\u200b\u2028\ufeff\uffff',
  'z̸̡̛̖̱̗̳̜͍̫̯̮͚̯̓̈́a̷l̵g̶o̷',
  '0123456789 ٠١٢ ½ ² Ⅷ',
  '\u{10ffff}\u{1d11e}',
  '<|endoftext|',
  '"\\{}[]()^$.*+?/|',
];

interface BpeJson {
  model: { vocab: Record<string, number>; merges: string[] };
}
const modelOf = (json: object) => (json as BpeJson).model;

/** The definition: count every pair, join the most frequent one everywhere, repeat. */
function naiveMerges(words: string[][], numMerges: number): string[] {
  const merges: string[] = [];
  for (let step = 0; step < numMerges; step++) {
    const counts = new Map<string, number>();
    for (const word of words) {
      for (let i = 1; i < word.length; i++) {
        const pair = `${word[i - 1]} ${word[i]}`;
        counts.set(pair, (counts.get(pair) ?? 0) + 1);
      }
    }
    const best = Math.max(...counts.values());
    if (best < 2) break;
    const ties = [...counts].filter(([, count]) => count === best).map(([pair]) => pair);
    const order = ['l', 'o', 'w', 'e', 'r', 's', 't', 'n', 'i', 'd', 'a', 'b', 'Ġ'].sort();
    const ids = new Map([...order, ...merges.map((merge) => merge.replace(' ', ''))].map((token, id) => [token, id]));
    const key = (pair: string) => pair.split(' ').map((token) => ids.get(token) as number);
    ties.sort((a, b) => (key(a)[0] as number) - (key(b)[0] as number) || (key(a)[1] as number) - (key(b)[1] as number));
    const [left, right] = (ties[0] as string).split(' ') as [string, string];
    merges.push(`${left} ${right}`);
    words = words.map((word) => {
      const joined: string[] = [];
      for (let i = 0; i < word.length; i++) {
        const isPair = word[i] === left && word[i + 1] === right;
        joined.push(isPair ? left + right : (word[i] as string));
        if (isPair) i++;
      }
      return joined;
    });
  }
  return merges;
}

describe('trainBytePairTokenizer', () => {
  test.each([
    'low lower lowest newer newest wider widest low low lower new new',
    'aaaa aaa aa aaaaa baaab abab ababab bababa aabb',
    'wowowow tttt stst ststst lll ololo loll roll lolol wewewe wewe',
  ])('makes the merges of the definition for %s', async (sample) => {
    const words = (sample.match(/ ?\S+/g) as string[]).map((word) => [...word.replace(' ', 'Ġ')]);
    const { merges } = modelOf(await trainBytePairTokenizer([sample], { vocabSize: 257 + 40 }));
    expect(merges.length).toBeGreaterThan(3);
    expect(merges).toEqual(naiveMerges(words, 40));
  });

  test('reaches the vocabulary size exactly, with ids from 0 without holes', async () => {
    const json = await trainBytePairTokenizer([text], { vocabSize: 290 });
    const { vocab, merges } = modelOf(json);
    expect(Object.values(vocab).sort((a, b) => a - b)).toEqual(Array.from({ length: 290 }, (_, id) => id));
    expect(merges).toHaveLength(290 - 257);
    expect(createTokenizer(json).vocabSize).toBe(290);
  });

  test('stops early when no pair is frequent enough', async () => {
    expect(modelOf(await trainBytePairTokenizer(['abc'], { vocabSize: 1000 })).merges).toEqual([]);
    expect(modelOf(await trainBytePairTokenizer(['abc'], { vocabSize: 1000, minFrequency: 1 })).merges).toHaveLength(2);
  });

  test('gives equal results for equal texts, from any iterable', async () => {
    const texts = [text, 'other words', text];
    function* generate() {
      yield* texts;
    }
    const json = await trainBytePairTokenizer(texts, { vocabSize: 300 });
    expect(await trainBytePairTokenizer(generate(), { vocabSize: 300 })).toEqual(json);
    expect(await trainBytePairTokenizer(texts.toReversed(), { vocabSize: 300 })).toEqual(json);
  });

  test.each(NASTY)('brings back %j', async (nasty) => {
    const tokenizer = createTokenizer(await trainBytePairTokenizer([text, ...NASTY], { vocabSize: 400 }));
    expect(tokenizer.decode(tokenizer.encode(nasty))).toBe(nasty);
  });

  test('writes fewer tokens than bytes for the text it was trained on', async () => {
    const tokenizer = createTokenizer(await trainBytePairTokenizer([text], { vocabSize: 400 }));
    expect(tokenizer.encode(text).length).toBeLessThan(text.length / 2);
  });

  test('gives special tokens the first ids, and learns nothing across or from them', async () => {
    const json = await trainBytePairTokenizer(['ab<|endoftext|>ab<|endoftext|>ab', '[x]'], {
      vocabSize: 400,
      specialTokens: ['<|endoftext|>', '[x]'],
    });
    const { vocab, merges } = modelOf(json);
    expect([vocab['<|endoftext|>'], vocab['[x]']]).toEqual([0, 1]);
    expect(merges).toEqual(['a b']);
    const tokenizer = createTokenizer(json);
    expect(tokenizer.eosTokenId).toBe(0);
    expect(tokenizer.encode('ab<|endoftext|>')).toEqual([258, 0]);
    expect(tokenizer.decode([258, 0], { skipSpecialTokens: true })).toBe('ab');
  });

  test('does not slow down on one endless word', async () => {
    const train = () => trainBytePairTokenizer(['abcdefghijklmnop'.repeat(20_000)], { vocabSize: 500 });
    expect(await cpuTimeMs(train)).toBeLessThan(5_000);
  });

  test.each([
    ['a vocabulary below the bytes', ['x'], { vocabSize: 256 }, 'ERR_INVALID_ARGUMENT'],
    ['a fractional size', ['x'], { vocabSize: 300.5 }, 'ERR_INVALID_ARGUMENT'],
    ['a frequency of 0', ['x'], { vocabSize: 300, minFrequency: 0 }, 'ERR_INVALID_ARGUMENT'],
    ['a special token twice', ['x'], { vocabSize: 300, specialTokens: ['<s>', '<s>'] }, 'ERR_INVALID_ARGUMENT'],
    ['a special token of one byte', ['x'], { vocabSize: 300, specialTokens: ['a'] }, 'ERR_INVALID_ARGUMENT'],
    ['an empty special token', ['x'], { vocabSize: 300, specialTokens: [''] }, 'ERR_INVALID_ARGUMENT'],
    ['no text', [], { vocabSize: 300 }, 'ERR_EMPTY_DATA'],
    ['empty text', ['', '<|endoftext|>'], { vocabSize: 300 }, 'ERR_EMPTY_DATA'],
  ])('refuses %s', async (_, texts, options, code) => {
    await expect(trainBytePairTokenizer(texts, options)).rejects.toThrowError(expect.objectContaining({ code }));
  });
});
