import { describe, expect, test } from 'vitest';
import type { Tokenizer } from '../../../src/formats/tokenizer.js';
import { causalLabels, IGNORED_LABEL, maskTokens, tokenizeCorpus } from '../../../src/teacher/corpus.js';

const EOS = 99;
/** A token a letter: a = 0, b = 1, … */
const letters = (eosTokenId?: number): Tokenizer => ({
  vocabSize: 100,
  ...(eosTokenId === undefined ? {} : { eosTokenId }),
  json: {},
  config: {},
  encode: (text) => Array.from(text, (letter) => letter.charCodeAt(0) - 97),
  decode: (ids) => String.fromCharCode(...Array.from(ids, (id) => id + 97)),
  save: async () => {},
});

describe('tokenizeCorpus', () => {
  test('lays texts end to end, each with the end-of-text token after it', async () => {
    const { ids, offsets } = await tokenizeCorpus(letters(EOS), ['ab', 'c'], { maxLength: 8, addEos: true });
    expect(ids).toEqual(Int32Array.of(0, 1, EOS, 2, EOS));
    expect(offsets).toEqual(Int32Array.of(0, 3, 5));
  });

  test('adds no end-of-text token that is not wanted, not known, or there already', async () => {
    const of = async (tokenizer: Tokenizer, text: string, addEos: boolean) =>
      Array.from((await tokenizeCorpus(tokenizer, [text], { maxLength: 8, addEos })).ids);
    expect(await of(letters(EOS), 'ab', false)).toEqual([0, 1]);
    expect(await of(letters(), 'ab', true)).toEqual([0, 1]);
    expect(await of(letters(1), 'ab', true)).toEqual([0, 1]);
  });

  test('cuts long texts into pieces of maxLength, and drops a last piece in which nothing can be predicted', async () => {
    const { ids, offsets } = await tokenizeCorpus(letters(), ['abcdefg', 'hi'], { maxLength: 3, addEos: false });
    expect(ids).toEqual(Int32Array.of(0, 1, 2, 3, 4, 5, 7, 8));
    expect(offsets).toEqual(Int32Array.of(0, 3, 6, 8));
  });

  test('refuses texts without a token', async () => {
    const tokenize = (texts: string[]) => tokenizeCorpus(letters(), texts, { maxLength: 3, addEos: false });
    await expect(tokenize([])).rejects.toThrow(expect.objectContaining({ code: 'ERR_EMPTY_DATA' }));
    await expect(tokenize(['', ''])).rejects.toThrow(expect.objectContaining({ code: 'ERR_EMPTY_DATA' }));
    expect((await tokenize(['', 'ab'])).offsets).toEqual(Int32Array.of(0, 2));
  });
});

test('a causal label is the next token of the same sequence; the last token has none', () => {
  const inputIds = Int32Array.of(5, 6, 7, 8, 9, 4);
  const labels = causalLabels({ inputIds, sequenceOffsets: Int32Array.of(0, 3, 4, 6) });
  expect(labels).toEqual(Int32Array.of(6, 7, IGNORED_LABEL, IGNORED_LABEL, 4, IGNORED_LABEL));
});

describe('maskTokens', () => {
  const MASK = 50;
  const VOCABULARY = 1_000;
  const inputIds = Int32Array.from({ length: 40_000 }, (_, i) => 100 + (i % 800));
  const batch = { inputIds, sequenceOffsets: Int32Array.of(0, inputIds.length) };
  const options = {
    maskTokenId: MASK,
    specialTokenIds: new Set([MASK]),
    vocabSize: VOCABULARY,
    probability: 0.15,
    seed: 3,
    position: 0,
  };
  const labelled = (labels: Int32Array) => labels.filter((label) => label !== IGNORED_LABEL);

  test('labels the tokens drawn with what they were, and changes no other', () => {
    const masked = maskTokens(batch, options);
    masked.labels.forEach((label, i) => {
      if (label === IGNORED_LABEL) expect(masked.batch.inputIds[i]).toBe(inputIds[i]);
      else expect(label).toBe(inputIds[i]);
    });
    expect(masked.batch.sequenceOffsets).toEqual(batch.sequenceOffsets);
    expect(inputIds[1]).toBe(101); // the batch that was given stays as it was
  });

  test('draws 15 %; of them 80 % become the mask, 10 % another token, 10 % stay', () => {
    const { batch: masked, labels } = maskTokens(batch, options);
    const drawn = Array.from(labels.keys()).filter((i) => labels[i] !== IGNORED_LABEL);
    const asMask = drawn.filter((i) => masked.inputIds[i] === MASK).length;
    const kept = drawn.filter((i) => masked.inputIds[i] === inputIds[i]).length;
    const random = drawn.length - asMask - kept;
    // Five deviations of the binomial: 0.0018 of 40,000, and about 0.0052 and 0.0039 of 6,000.
    expect(Math.abs(drawn.length / inputIds.length - 0.15)).toBeLessThan(0.009);
    expect(Math.abs(asMask / drawn.length - 0.8)).toBeLessThan(0.026);
    expect(Math.abs(kept / drawn.length - 0.1)).toBeLessThan(0.02);
    expect(Math.abs(random / drawn.length - 0.1)).toBeLessThan(0.02);
    expect(masked.inputIds.every((id) => id >= 0 && id < VOCABULARY)).toBe(true);
  });

  test('is decided by the seed and the position', () => {
    const labels = (seed: number, position: number) => maskTokens(batch, { ...options, seed, position }).labels;
    expect(labels(3, 0)).toEqual(labels(3, 0));
    expect(labels(3, 0)).not.toEqual(labels(3, 1));
    expect(labels(3, 0)).not.toEqual(labels(4, 0));
  });

  test('draws at least one token of every batch', () => {
    const short = { inputIds: Int32Array.of(7, 8, 9), sequenceOffsets: Int32Array.of(0, 3) };
    for (let position = 0; position < 50; position++) {
      const { labels } = maskTokens(short, { ...options, probability: 1e-9, position });
      expect(labelled(labels)).toHaveLength(1);
    }
  });

  test('draws special tokens only of a batch that has no others, and other tokens as if they were not there', () => {
    const [CLS, SEP] = [1, 2];
    const special = { ...options, specialTokenIds: new Set([CLS, SEP, MASK]) };
    const of = (ids: number[], position: number, probability = 0.15) => {
      const inputIds = Int32Array.from(ids);
      const sequenceOffsets = Int32Array.of(0, inputIds.length);
      return maskTokens({ inputIds, sequenceOffsets }, { ...special, position, probability }).labels;
    };
    for (let position = 0; position < 200; position++) {
      const labels = of([CLS, 7, 8, MASK, 9, SEP], position);
      const plain = of([7, 8, 9], position);
      expect([1, 2, 4].map((i) => labels[i])).toEqual([...plain]);
      expect(labelled(labels)).toEqual(labelled(plain));
      expect(labelled(of([CLS, 7, SEP], position, 1e-9))).toEqual(Int32Array.of(7));
      expect(labelled(of([CLS, SEP], position))).toHaveLength(1);
    }
  });
});
