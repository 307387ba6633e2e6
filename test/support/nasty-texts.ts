/** Texts that tokenizers trip over, made from a seed. */
import { randomNumbers } from '../../src/teacher/batches.js';

const WORDS = (
  "the of and cat sat mat film love night House WORLD I'll don't we've IT'S she'd 1984 3.14 50% e-mail foo_bar " +
  "naïve café cafe\u0301 Straße STRASSE İstanbul ΣΊΣΥΦΟΣ ὀδυσσεύς ﬁnal ½ ① Ⅷ ㎏ ａｂｃ ﷺ Ǆ ǆ 'ſ Москва привет"
).split(' ');
const SNIPPETS = [
  ...['日本語のテキスト', '你好世界', '한국어 문장', '\u1112\u1161\u11ab', '𠀀𪛖𫝀𫠝', '㐀豈丽', 'ｶﾞｷﾞ', '「引用」、。'],
  ...['שלום עולם', 'مرحبا بالعالم', '\u202eRTL\u202c', 'हिन्दी क्षत्रिय', 'ภาษาไทย', 'தமிழ்', 'বাংলা'],
  ...['👩‍👩‍👧‍👦', '🇩🇪🇫🇷', '👍🏽', '❤️', '1️⃣', '🏴󠁧󠁢󠁥󠁮󠁧󠁿', '😀😀😀', '\u{1f9d1}\u200d\u{1f680}'],
  ...[
    '\ud83c',
    '\udf89',
    'a\ud800b',
    '\udc00\ud800',
    '\ufffd',
    '\ufeff',
    '\u0000',
    '\u0007',
    '\u001b[0m',
    '\u007f\u0085\u009f',
  ],
  ...['\u00a0', '\u2003', '\u200b', '\u200c', '\u200d', '\u2028', '\u3000', '\u00ad', '\u180e', '\u2581', '▁▁a', ' ▁ '],
  ...[
    'e\u0301\u0300\u0327',
    'o\u0328\u0304',
    '\u0301',
    'ṩ',
    's\u0307\u0323',
    'q\u0307\u0323',
    'Å',
    '\u212b',
    '\u1e9b\u0323',
    '\u0344',
  ],
  ...[
    ' ',
    '  ',
    '\t',
    '\n',
    '\r\n',
    '\n\n \n',
    '   \t ',
    '\u000b\u000c',
    '...',
    '!!!',
    '¿?',
    '—',
    '’s',
    '$1,000.00',
    '#@!',
    '<0x0A>',
  ],
  ...[
    '<s>',
    '</s>',
    '<unk>',
    '<mask>',
    '<pad>',
    '[MASK]',
    '[CLS]',
    '[SEP]',
    '[UNK]',
    '[mask]',
    '<|endoftext|>',
    '<|im_start|>',
  ],
  ...[
    'x<mask>y',
    '  <mask>  ',
    'Ab<Keep>',
    ' <keep> ',
    'cat<keep>s',
    'newword',
    'NEWWORD',
    'anewwordb',
    ' newword ',
    'É<É>',
    '<|endof',
    '##s',
    '##',
  ],
];

/** A character from anywhere, or from where scripts are dense. */
function anyCharacter(random: () => number): string {
  const blocks = [0x250, 0x500, 0x1000, 0x3000, 0x10000, 0x20000, 0x110000];
  const limit = blocks[Math.floor(random() * blocks.length)] as number;
  return String.fromCodePoint(Math.floor(random() * limit));
}

/** `count` texts; equal seeds give equal texts. */
export function nastyTexts(count: number, seed: number): string[] {
  const random = randomNumbers(seed);
  const pick = <T>(list: readonly T[]) => list[Math.floor(random() * list.length)] as T;
  const piece = (): string => {
    const kind = random();
    if (kind < 0.4) return pick(WORDS);
    if (kind < 0.75) return pick(SNIPPETS);
    if (kind < 0.9) return anyCharacter(random);
    if (kind < 0.93) return pick(SNIPPETS).normalize(pick(['NFC', 'NFD', 'NFKC', 'NFKD']));
    if (kind < 0.95) return pick(WORDS).toUpperCase();
    if (kind < 0.96) return pick([...WORDS, ...SNIPPETS]).repeat(1 + Math.floor(random() * 40));
    return `${pick(WORDS)}${'\u0301\u0323\u0315'[Math.floor(random() * 3)]}`;
  };
  return Array.from({ length: count }, () => {
    const length = Math.floor(random() * random() * 16);
    let text = '';
    for (let i = 0; i < length; i++) text += piece() + (random() < 0.4 ? ' ' : '');
    return text;
  });
}
