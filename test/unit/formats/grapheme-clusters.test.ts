import { expect, test } from 'vitest';
import { clusterLengths } from '../../../src/formats/tokenizer/precompiled.js';

const segmenter = new Intl.Segmenter('en', { granularity: 'grapheme' });
/** Of every rule that joins or parts; the long ones fill a window, and more. */
const PARTS = [
  ...[
    'a',
    'é',
    'e\u0301',
    '👨‍👩‍👧‍👦',
    '🇩🇪',
    '🇩',
    '한',
    'ᄒ',
    'ᅡ',
    'ᆫ',
    '\r\n',
    '\r',
    '\n',
    'क्ष',
    'क',
    '्',
    'ि',
    '\u200d',
    '\ufe0f',
  ],
  ...['👍🏽', '\u{1d165}', '\u{e0100}', '\u0600', 'ก', 'ำ', 'x'.repeat(300), '\u0301'.repeat(700), '🇩🇪'.repeat(300)],
  '👍\u200d'.repeat(400),
];

test('clusters are those of the whole text, wherever a window ends', () => {
  let random = 7;
  const next = (n: number) => {
    random = (random * 48_271) % 0x7fffffff;
    return random % n;
  };
  for (let round = 0; round < 300; round++) {
    const text = Array.from({ length: next(100) }, () => PARTS[next(PARTS.length)]).join('');
    const expected = Array.from(segmenter.segment(text), ({ segment }) => segment.length);
    expect([...clusterLengths(text)]).toEqual(expected);
  }
});

test('a long text takes no longer for each character than a short one', () => {
  // V8 took half a minute for it as a whole.
  expect([...clusterLengths('ab c'.repeat(50_000))]).toHaveLength(200_000);
});
