import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { Tokenizer as RustTokenizer } from '@anush008/tokenizers';
import { describe, expect, test } from 'vitest';
import { createTokenSpelling } from '../../../src/formats/token-spelling.js';
import { createTokenizer, loadTokenizer } from '../../../src/formats/tokenizer.js';
import { sharedEnds, tokenEnds } from '../../../src/teacher/alignment.js';
import { nastyTexts } from '../../support/nasty-texts.js';
import { tokenizerKinds } from '../../support/tokenizer-kinds.js';

const kinds = await tokenizerKinds();
const texts = nastyTexts(400, 5);

/**
 * What belongs to the character before it, or to none, for a tokenizer that rewrites: white space, controls, marks, and
 * the vowels and finals of Korean syllables, of which Rust counts the first letter alone.
 */
const IS_NOTHING = /^[\s\p{C}\p{M}\ufffd\u1160-\u11ff]*$/u;

/** The places where the Rust tokenizers say that the tokens of a text end, in bytes. */
async function rustEnds(rust: RustTokenizer, text: string, ids: Int32Array): Promise<number[] | undefined> {
  const encoding = await rust.encode(text, undefined, { addSpecialTokens: false } as never);
  if (encoding.getIds().join() !== ids.join()) return undefined; // its special tokens cannot always be left out
  const bytes = [0];
  for (const character of text.toWellFormed()) bytes.push((bytes.at(-1) ?? 0) + Buffer.byteLength(character));
  return encoding.getOffsets().map(([, end = -1]) => bytes[end] ?? Number.NaN);
}

describe('ends of tokens on nasty texts', () => {
  test.each(['GPT-2', 'Llama 3', 'Tekken', 'GPT-4o'])(
    '%s: every byte is followed, inside of characters too',
    (kind) => {
      const tokenizer = createTokenizer(kinds[kind] as object);
      const spelling = createTokenSpelling(tokenizer);
      for (const text of texts) {
        const ids = Int32Array.from(tokenizer.encode(text, { addSpecialTokens: false }));
        const bytes = Buffer.from(text.toWellFormed());
        let begin = 0;
        tokenEnds(text, ids, spelling).forEach((end, i) => {
          expect(bytes.subarray(begin, end)).toEqual(Buffer.from(spelling.bytesOf(ids[i] ?? -1) ?? []));
          begin = end;
        });
        expect(begin).toBe(bytes.length);
      }
    },
  );

  test.each(['Qwen', 'RoBERTa', 'Llama, prepended', 'Mistral, first', 'BERT', 'BERT, cased', 'BERT, accents kept'])(
    '%s: they are those of the Rust tokenizers, but for white space, controls and marks',
    async (kind) => {
      const tokenizer = createTokenizer(kinds[kind] as object);
      const spelling = createTokenSpelling(tokenizer);
      const rust = RustTokenizer.fromString(JSON.stringify(tokenizer.json));
      let [known, all] = [0, 0];
      for (const text of texts) {
        const ids = Int32Array.from(tokenizer.encode(text, { addSpecialTokens: false }));
        const expected = await rustEnds(rust, text, ids);
        // What lies before and after a text without a token can be told apart by luck alone.
        if (expected === undefined || ids.some((id) => spelling.bytesOf(id) === undefined)) continue;
        const bytes = Buffer.from(text.toWellFormed());
        const ends = tokenEnds(text, ids, spelling);
        all += ends.length;
        ends.forEach((end, i) => {
          if (end === -1) return;
          known++;
          if (end === 0) return; // the space that SentencePiece adds; for Rust it is the first character
          const other = expected[i] ?? Number.NaN;
          const isInside = ((bytes[end] ?? 0) & 0xc0) === 0x80; // Rust names the whole character
          const between = bytes.subarray(Math.min(end, other), Math.max(end, other)).toString();
          if (!isInside && !IS_NOTHING.test(between)) expect({ text, i, end }).toEqual({ text, i, end: other });
        });
      }
      expect(known).toBeGreaterThan(0.75 * all);
      expect(all).toBeGreaterThan(500);
    },
  );

  test('a text whose tokens spell another is refused, with the place', () => {
    const tokenizer = createTokenizer(kinds['GPT-2'] as object);
    const ids = Int32Array.from(tokenizer.encode('a good film'));
    expect(() => tokenEnds('a bad film', ids, createTokenSpelling(tokenizer))).toThrowError(
      expect.objectContaining({ code: 'ERR_TOKENIZER', message: expect.stringContaining('abadfilm') }),
    );
  });

  test('a decoder that does not say what tokens spell is refused', () => {
    const json = { ...(kinds['BERT'] as object), decoder: { type: 'BPEDecoder' } };
    expect(() => createTokenSpelling(createTokenizer(json))).toThrowError(
      expect.objectContaining({ code: 'ERR_UNSUPPORTED_TOKENIZER', message: expect.stringContaining('BPEDecoder') }),
    );
  });
});

describe('shared ends', () => {
  const share = (student: number[], teacher: number[], text = 'abcdefgh', needsSpaces = false) => [
    ...sharedEnds(Int32Array.from(student), Int32Array.from(teacher), Buffer.from(text), { needsSpaces }),
  ];

  test('are where both have one, whatever lies between', () => {
    expect(share([1, 3, 4, 8], [2, 3, 5, 8])).toEqual([-1, 1, -1, 3]);
    expect(share([2, 4, 8], [1, 3, 8])).toEqual([-1, -1, 2]);
  });

  test('belong to the last token that ends there, and never to one whose end is not known', () => {
    expect(share([3, 3, 8], [3, -1, 3, 8])).toEqual([-1, 2, 3]);
    expect(share([-1, 0, 8], [-1, 0, 8])).toEqual([-1, -1, 2]);
  });

  test('are none where one has come to the end of the text and the other has not', () => {
    expect(share([3, 4], [3], 'abc ')).toEqual([-1, -1]);
  });

  test('between WordPiece and others are inside words and before white space', () => {
    //                 3.5  ->  after "3" (digit), "." (nothing tells), "5"
    expect(share([1, 2, 3, 5], [1, 2, 3, 5], '3.5 x', true)).toEqual([0, -1, 2, 3]);
    expect(share([1, 2, 4], [1, 2, 4], 'a. b', true)).toEqual([0, 1, 2]);
  });
});

const published = join(import.meta.dirname, '../../../../shared/data/tokenizers');
test.skipIf(!existsSync(published))('GPT-2’s and BERT’s own vocabularies (skipped without tokenizers)', async () => {
  const [gpt2, bert] = [
    await loadTokenizer(join(published, 'gpt2')),
    await loadTokenizer(join(published, 'bert-uncased')),
  ];
  const text = 'Caf\u00e9 ﬁne 😀 日本 \ufeffBOM e\u0301t';
  const ends = (tokenizer: typeof gpt2) =>
    tokenEnds(
      text,
      Int32Array.from(tokenizer.encode(text, { addSpecialTokens: false })),
      createTokenSpelling(tokenizer),
    );
  // Caf|é| |fi…: the emoji has three tokens, two of them inside the character.
  expect([...ends(gpt2)]).toContain(Buffer.byteLength('Caf\u00e9'));
  expect([...ends(gpt2)].at(-1)).toBe(Buffer.byteLength(text));
  expect([...ends(bert)]).toEqual(
    [
      'Café',
      'Café ﬁ',
      'Café ﬁne',
      '',
      'Café ﬁne 😀 日',
      'Café ﬁne 😀 日本',
      'Café ﬁne 😀 日本 \ufeffBO',
      'Café ﬁne 😀 日本 \ufeffBOM',
      text,
    ].map((part) => (part === '' ? -1 : Buffer.byteLength(part))),
  );
});
