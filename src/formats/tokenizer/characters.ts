/**
 * Classes of characters as the Rust tokenizers see them. Each of its libraries stopped at some version of Unicode, and
 * which ids a text gets depends on it; JavaScript knows later versions. Each list below is what later versions added.
 */

/** Code points as hexadecimal ranges, e.g. `61d 1b4e-1b4f`, as the inside of a character class. */
function characterClass(ranges: string): string {
  return ranges
    .split(' ')
    .map((range) => range.replace(/[0-9a-f]+/g, (hex) => `\\u{${hex}}`))
    .join('');
}

/** Punctuation after Unicode 8 (crate unicode_categories). */
const LATER_PUNCTUATION = characterClass(
  '61d 9fd a76 c77 c84 1b4e-1b4f 1b7d-1b7f 2e43-2e4f 2e52-2e5d 10d6e 10ead 10ed0 10f55-10f59 10f86-10f89 ' +
    '113d4-113d5 113d7-113d8 1144b-1144f 1145a-1145b 1145d 11660-1166c 116b9 1183b 11944-11946 119e2 11a3f-11a46 ' +
    '11a9a-11a9c 11a9e-11aa2 11b00-11b09 11be1 11c41-11c45 11c70-11c71 11ef7-11ef8 11f43-11f4f 11fff 12ff1-12ff2 ' +
    '16d6d-16d6f 16e97-16e9a 16fe2 1e5ff 1e95e-1e95f',
);
/** Format characters after Unicode 8. */
const LATER_OTHER = characterClass('890-891 8e2 110cd 13430-1343f');
/** Non-spacing marks after Unicode 8. */
const LATER_NONSPACING_MARKS = characterClass(
  '7fd 897-89f 8ca-8e1 9fe afa-aff b55 c04 c3c d00 d3b-d3c d81 eba ece 180f 1885-1886 1abf-1add 1ae0-1aeb 1df6-1dfb ' +
    'a82c a8c5 a8ff a9bd 10d24-10d27 10d69-10d6d 10eab-10eac 10efa-10eff 10f46-10f50 10f82-10f85 11070 11073-11074 ' +
    '110c2 111c9 111cf 1123e 11241 1133b 113bb-113c0 113ce 113d0 113d2 113e1-113e2 11438-1143f 11442-11444 11446 ' +
    '1145e 1182f-11837 11839-1183a 1193b-1193c 1193e 11943 119d4-119d7 119da-119db 119e0 11a01-11a0a 11a33-11a38 ' +
    '11a3b-11a3e 11a47 11a51-11a56 11a59-11a5b 11a8a-11a96 11a98-11a99 11b60 11b62-11b64 11b66 11c30-11c36 ' +
    '11c38-11c3d 11c3f 11c92-11ca7 11caa-11cb0 11cb2-11cb3 11cb5-11cb6 11d31-11d36 11d3a 11d3c-11d3d 11d3f-11d45 ' +
    '11d47 11d90-11d91 11d95 11d97 11ef3-11ef4 11f00-11f01 11f36-11f3a 11f40 11f42 11f5a 13440 13447-13455 ' +
    '1611e-16129 1612d-1612f 16f4f 16fe4 1cf00-1cf2d 1cf30-1cf46 1e000-1e006 1e008-1e018 1e01b-1e021 1e023-1e024 ' +
    '1e026-1e02a 1e08f 1e130-1e136 1e2ae 1e2ec-1e2ef 1e4ec-1e4ef 1e5ee-1e5ef 1e6e3 1e6e6 1e6ee-1e6ef 1e6f5 ' +
    '1e944-1e94a',
);
/** Marks after Unicode 9 (crate unicode-normalization-alignments). */
const LATER_MARKS = characterClass(
  '7fd 897-89f 8ca-8d3 9fe afa-aff b55 c04 c3c cf3 d00 d3b-d3c d81 eba ece 1715 180f 1abf-1add 1ae0-1aeb 1cf7 ' +
    '1df6-1dfa a82c a8ff 10d24-10d27 10d69-10d6d 10eab-10eac 10efa-10eff 10f46-10f50 10f82-10f85 11070 11073-11074 ' +
    '110c2 11145-11146 111c9 111ce-111cf 11241 1133b 113b8-113c0 113c2 113c5 113c7-113ca 113cc-113d0 113d2 ' +
    '113e1-113e2 1145e 1182c-1183a 11930-11935 11937-11938 1193b-1193e 11940 11942-11943 119d1-119d7 119da-119e0 ' +
    '119e4 11a01-11a0a 11a33-11a39 11a3b-11a3e 11a47 11a51-11a5b 11a8a-11a99 11b60-11b67 11d31-11d36 11d3a ' +
    '11d3c-11d3d 11d3f-11d45 11d47 11d8a-11d8e 11d90-11d91 11d93-11d97 11ef3-11ef6 11f00-11f01 11f03 11f34-11f3a ' +
    '11f3e-11f42 11f5a 13440 13447-13455 1611e-1612f 16f4f 16f7f-16f87 16fe4 16ff0-16ff1 1cf00-1cf2d 1cf30-1cf46 ' +
    '1e08f 1e130-1e136 1e2ae 1e2ec-1e2ef 1e4ec-1e4ef 1e5ee-1e5ef 1e6e3 1e6e6 1e6ee-1e6ef 1e6f5',
);
/** Characters that got a decomposition or a combining class after Unicode 9. */
const LATER_NORMALIZED = characterClass(
  '7fd 897-89f 8ca-8d3 9fe c3c d3b-d3c eba 1715 1abf-1add 1ae0-1aeb 1df6-1dfa 32ff a7f1-a7f4 a82c ab69 105c9 105e4 ' +
    '10781-10785 10787-107b0 107b2-107ba 10d24-10d27 10d69-10d6d 10eab-10eac 10efa-10efb 10efd-10eff 10f46-10f50 ' +
    '10f82-10f85 11070 1133b 11383 11385 1138e 11391 113c5 113c7-113c8 113ce-113d0 1145e 11839-1183a 11938 ' +
    '1193d-1193e 11943 119e0 11a34 11a47 11a99 11d42 11d44-11d45 11d97 11f41-11f42 16121-16128 1612f 16d68-16d6a ' +
    '16ff0-16ff1 1ccd6-1ccf9 1e030-1e06d 1e08f 1e130-1e136 1e2ae 1e2ec-1e2ef 1e4ec-1e4ef 1e5ee-1e5ef 1e6e3 1e6e6 ' +
    '1e6ee-1e6ef 1e6f5 1f16c 1fbf0-1fbf9',
);
/** Letters, marks and numbers after Unicode 16 (Oniguruma, crate regex). */
const LATER_WORDS = characterClass(
  '88f c5c cdc 1acf-1add 1ae0-1aeb a7ce-a7cf a7d2 a7d4 a7f1 10940-10959 10ec5-10ec7 10efa-10efb 11b60-11b67 ' +
    '11db0-11ddb 11de0-11de9 16ea0-16eb8 16ebb-16ed3 16ff2-16ff6 187f8-187ff 18d09-18d1e 18d80-18df2 1e6c0-1e6de ' +
    '1e6e0-1e6f5 1e6fe-1e6ff 2b73a-2b73f 2cea2-2cead 323b0-33479',
);

const WORD = '[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\u200c\\u200d]';

/** General categories P, and ASCII symbols. Two characters have left the category since Unicode 8. */
export const PUNCTUATION = `[[\\p{P}$+<=>^\`\\|~\\u166d\\u{111c9}]--[${LATER_PUNCTUATION}]]`;
/** Control, format and private-use characters. */
export const OTHER = `[[\\p{Cc}\\p{Cf}\\p{Co}]--[${LATER_OTHER}]]`;
/** General category Mn. Two characters have left it since Unicode 8. */
export const NONSPACING_MARK = `[[\\p{Mn}\\u1734\\u{1171e}]--[${LATER_NONSPACING_MARKS}]]`;
/** General categories M. Two characters have left them since Unicode 9. */
export const MARK = `[[\\p{M}\\u1cf2\\u1cf3]--[${LATER_MARKS}]]`;
export const NUMBER = '\\p{N}';
/** The property White_Space; JavaScript's \\s differs from it in U+0085 and U+FEFF. */
export const WHITE_SPACE = '\\p{White_Space}';
/** `\\w` of the crate regex. */
export const WORD_CHARACTER = `[${WORD}--[${LATER_WORDS}]]`;

const LATER_WORD = new RegExp(`[${LATER_WORDS}]`, 'gu');

/**
 * A text for patterns to run on in place of `text`, of the same length: characters that the patterns of the Rust tokenizers
 * take for unassigned are replaced by ones that nobody knows.
 */
export function asOfUnicode16(text: string): string {
  return text.replace(LATER_WORD, (character) => (character.length === 1 ? '\u0378' : '\u{effff}'));
}

const LATER_NORMALIZED_RUN = new RegExp(`([${LATER_NORMALIZED}]+)`, 'u');

/** Normalises as Unicode 9 does: what it does not know stays as it is, and nothing moves across it. */
export function normalizeUnicode(text: string, form: 'NFC' | 'NFD' | 'NFKC' | 'NFKD'): string {
  const parts = text.split(LATER_NORMALIZED_RUN); // every second part is such a run
  return parts.map((part, i) => (i % 2 === 1 ? part : part.normalize(form))).join('');
}
