import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { Tokenizer as RustTokenizer } from '@anush008/tokenizers';
import { describe, expect, test } from 'vitest';
import { createTokenizer, loadTokenizer, type Tokenizer } from '../../../src/formats/tokenizer.js';
import { nastyTexts } from '../../support/nasty-texts.js';
import { tokenizerKinds } from '../../support/tokenizer-kinds.js';

/** All 100,000 texts take minutes: LIMBECK_PARITY_TEXTS=100000. */
const NUM_TEXTS = Number(process.env['LIMBECK_PARITY_TEXTS'] ?? 1_000);
const SEED = 20_261_125;
const BATCH = 2_000;

const texts = nastyTexts(NUM_TEXTS, SEED);
const kinds = await tokenizerKinds();

/** Ids with and without special tokens, and the texts of both kinds of ids, must agree. */
async function compare(tokenizer: Tokenizer): Promise<void> {
  const rust = RustTokenizer.fromString(JSON.stringify(tokenizer.json));
  for (let begin = 0; begin < texts.length; begin += BATCH) {
    const batch = texts.slice(begin, begin + BATCH);
    const encodings = await rust.encodeBatch(batch);
    const expected = encodings.map((encoding) => encoding.getIds());
    batch.forEach((text, i) => {
      const ids = tokenizer.encode(text);
      if (ids.join() !== expected[i]?.join()) {
        expect({ text: JSON.stringify(text), ids }).toEqual({ text: JSON.stringify(text), ids: expected[i] });
      }
    });
    for (const skipSpecialTokens of [false, true]) {
      const decoded = await rust.decodeBatch(expected, skipSpecialTokens);
      expected.forEach((ids, i) => {
        const text = tokenizer.decode(ids, { skipSpecialTokens });
        if (text !== decoded[i]) expect({ ids, text }).toEqual({ ids, text: decoded[i] });
      });
    }
  }
}

describe(`ids and texts equal those of the Rust tokenizers on ${NUM_TEXTS} nasty texts`, () => {
  test.each(Object.entries(kinds))('%s', (_, json) => compare(createTokenizer(json)), 600_000);
});

const shared = join(import.meta.dirname, '../../../../shared/data');
const published = {
  'GPT-2': 'tokenizers/gpt2',
  'BERT uncased': 'tokenizers/bert-uncased',
  model2vec: 'models/model2vec-bge-vq128',
};

describe.each(Object.entries(published))('published %s', (_, folder) => {
  const directory = join(shared, folder);
  test.skipIf(!existsSync(directory))(
    `gives the ids of the Rust tokenizers (skipped without ${folder})`,
    async () => compare(await loadTokenizer(directory)),
    600_000,
  );
});

test('the corpus has what it is for', () => {
  const all = texts.join('\n');
  for (const kind of [
    /\p{M}/u,
    /\p{Script=Hebrew}/u,
    /\p{Script=Han}/u,
    /\u200d/,
    /\p{Cc}/u,
    /[\ud800-\udbff](?![\udc00-\udfff])/,
    /<mask>/,
  ]) {
    expect(all).toMatch(kind);
  }
  expect(texts.some((text) => text !== text.normalize('NFC'))).toBe(true);
  expect(texts.some((text) => text.length > 200)).toBe(true);
});

// Rust's own table of digits is of a later Unicode than its patterns; before 17, JavaScript does not know this one.
test.skipIf(Number(process.versions.unicode) < 17)('digits of Unicode 17 are cut off', async () => {
  for (const [kind, json] of Object.entries(kinds).filter(([name]) => name.includes('digits'))) {
    const tokenizer = createTokenizer(json);
    const rust = RustTokenizer.fromString(JSON.stringify(tokenizer.json));
    const text = '\u2014\u{11de3}\u02c0 3';
    expect(tokenizer.encode(text), kind).toEqual((await rust.encode(text)).getIds());
  }
});
