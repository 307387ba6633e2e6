import { describe, expect, test } from 'vitest';
import { createTokenSpelling, sharedClasses } from '../../../src/formats/token-spelling.js';
import { createTokenizer, type Tokenizer } from '../../../src/formats/tokenizer.js';
import { byteLevelJson, wordPieceTokenizerJson } from '../../../src/formats/tokenizer-json.js';
import { tokenizerKinds } from '../../support/tokenizer-kinds.js';

const kinds = await tokenizerKinds();

/** Byte-level BPE with these tokens, `Ġ` for a space; merges do not matter here. */
function bytesOf(...tokens: string[]): Tokenizer {
  const bytes = ['a', 'b', 'Ġ', 'Ã', '©'];
  const vocab = Object.fromEntries(['<|endoftext|>', ...bytes, ...tokens].map((token, id) => [token, id]));
  return createTokenizer(byteLevelJson(vocab, [], ['<|endoftext|>']));
}

function words(...tokens: string[]): Tokenizer {
  const special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'];
  return createTokenizer(wordPieceTokenizerJson([...special, 'a', 'e', ...tokens].join('\n'), true));
}

/** Whether a token of one vocabulary and one of the other are in one class. */
function classes(first: Tokenizer, second: Tokenizer) {
  const found = sharedClasses(
    createTokenSpelling(first),
    first.vocabSize,
    createTokenSpelling(second),
    second.vocabSize,
  );
  return {
    ...found,
    ours: (token: string) => found.first[idOf(first, token)],
    theirs: (token: string) => found.second[idOf(second, token)],
  };
}

function vocabularyOf(tokenizer: Tokenizer): Map<string, number> {
  const { model, added_tokens: added } = tokenizer.json as {
    model: { vocab: Record<string, number> };
    added_tokens: { content: string; id: number }[];
  };
  return new Map([...Object.entries(model.vocab), ...added.map(({ content, id }): [string, number] => [content, id])]);
}

const idOf = (tokenizer: Tokenizer, token: string) => vocabularyOf(tokenizer).get(token) ?? Number.NaN;

describe('classes of two vocabularies', () => {
  test('are the longest beginnings, byte by byte, that are tokens of both', () => {
    const { ours, theirs } = classes(
      bytesOf('Ġfilm', 'films', 'fi', 'Ã©t'),
      bytesOf('Ã©', 'Ġfi', 'Ġfilms', 'fi', 'film'),
    );
    expect(ours('Ġfilm')).toBe(theirs('Ġ')); // " film" and " fi" meet in the space alone
    expect(theirs('Ġfilms')).toBe(theirs('Ġ'));
    expect(ours('films')).toBe(theirs('fi'));
    expect(theirs('film')).toBe(theirs('fi'));
    expect(ours('Ã©t')).toBe(theirs('Ã')); // "é" is a token of one only
    expect(ours('Ã')).toBe(theirs('Ã©'));
    expect(ours('a')).not.toBe(theirs('b'));
    expect(ours('<|endoftext|>')).toBe(theirs('<|endoftext|>'));
  });

  test('with WordPiece know a word from what goes on with one, and take no account of case, accents, spaces of signs', () => {
    const gpt = bytesOf('Ġfilm', 'ĠFilm', 'film', 'ing', ',', 'Ġ,', 'Ġ(', '(', '"', 'ĠcafÃ©', 'f', 'i');
    const bert = words('film', '##ing', '##film', ',', '(', '"', 'cafe', '日');
    const { ours, theirs } = classes(gpt, bert);
    expect(ours('Ġfilm')).toBe(theirs('film'));
    expect(ours('ĠFilm')).toBe(theirs('film'));
    expect(ours('film')).toBe(theirs('##film'));
    expect(ours('film')).not.toBe(theirs('film'));
    expect(ours('ing')).toBe(theirs('##ing'));
    for (const sign of [',', '(', '"']) expect(ours(sign), sign).toBe(theirs(sign));
    for (const sign of [',', '(']) expect(ours(`Ġ${sign}`), sign).toBe(theirs(sign));
    expect(ours('ĠcafÃ©')).toBe(theirs('cafe'));
    expect(ours('<|endoftext|>')).toBe(theirs('[SEP]'));
    expect([theirs('[UNK]'), theirs('[CLS]'), theirs('日'), ours('f')]).toEqual([-1, -1, -1, -1]);
    // The other way round.
    const back = classes(bert, gpt);
    expect(back.ours('film')).toBe(back.theirs('ĠFilm'));
  });

  test('of one vocabulary are its tokens', () => {
    for (const kind of ['GPT-2', 'Llama 3']) {
      const tokenizer = createTokenizer(kinds[kind] as object);
      const { first, second, numClasses } = classes(tokenizer, tokenizer);
      expect(first).toEqual(second);
      expect(new Set(first.filter((one) => one !== -1)).size).toBe(numClasses);
      expect(numClasses).toBeGreaterThan(0.95 * vocabularyOf(tokenizer).size - 8);
    }
  });

  test('are none for rows of a table that no token has', () => {
    const gpt = bytesOf('Ġfilm');
    const spelling = createTokenSpelling(gpt);
    expect([...sharedClasses(spelling, gpt.vocabSize + 3, spelling, gpt.vocabSize).first.slice(-3)]).toEqual([
      -1, -1, -1,
    ]);
  });
});

test('SentencePiece spells its spaces, and its byte tokens are bytes', () => {
  const llama = createTokenizer(kinds['Llama, prepended'] as object);
  const spelling = createTokenSpelling(llama);
  expect(Buffer.from(spelling.bytesOf(idOf(llama, '<0xF0>')) ?? [])).toEqual(Buffer.of(0xf0));
  const spaced = [...vocabularyOf(llama)].find(([token]) => /^▁[a-z]{2,}$/.test(token));
  expect(Buffer.from(spelling.bytesOf(spaced?.[1] ?? -1) ?? []).toString()).toBe(spaced?.[0].replace('▁', ' '));
});
