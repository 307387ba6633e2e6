/** Tags that stand inside a word or a phrase; every other tag separates words. */
const INLINE_TAGS = new Set(
  [
    'a',
    'abbr',
    'b',
    'bdi',
    'bdo',
    'cite',
    'code',
    'del',
    'dfn',
    'em',
    'font',
    'i',
    'ins',
    'kbd',
    'mark',
    'q',
    's',
  ].concat(['samp', 'small', 'span', 'strike', 'strong', 'sub', 'sup', 'tt', 'u', 'var', 'wbr']),
);

/** Elements whose content is not text. */
const HIDDEN_TAGS = new Set(['script', 'style', 'template']);

/** The entities that item texts have; any other stays as it is written. */
const NAMED_ENTITIES = new Map(
  Object.entries({
    amp: '&',
    lt: '<',
    gt: '>',
    quot: '"',
    apos: "'",
    nbsp: ' ',
    copy: '©',
    reg: '®',
    trade: '™',
    deg: '°',
    middot: '·',
    bull: '•',
    hellip: '…',
    ndash: '–',
    mdash: '—',
    lsquo: '‘',
    rsquo: '’',
    ldquo: '“',
    rdquo: '”',
    laquo: '«',
    raquo: '»',
    times: '×',
    euro: '€',
    pound: '£',
  }),
);

/** Numbers 128 … 159 of old pages mean Windows-1252 (HTML standard, §13.2.5.80). */
const WINDOWS_1252 = '€\u0081‚ƒ„…†‡ˆ‰Š‹Œ\u008dŽ\u008f\u0090‘’“”•–—˜™š›œ\u009džŸ';

/**
 * Plain text from what a shop or a page holds: HTML tags and comments are cut, entities decoded once, control and
 * invisible direction characters removed, white space collapsed to single spaces, and Unicode brought to NFC.
 * Linear in the length of the text.
 */
export function cleanText(raw: string): string {
  return decodeEntities(stripTags(raw))
    .replace(/\p{Cs}/gu, '\ufffd')
    .replace(/[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]/g, '')
    .replace(/[\p{Cc}\s]+/gu, ' ')
    .trim()
    .normalize('NFC');
}

/** Cleans texts and joins those that are left with `. `, or with a space after one that ends a sentence itself. */
export function joinTexts(texts: readonly string[]): string {
  return texts
    .map(cleanText)
    .filter((text) => text !== '')
    .reduce((joined, text) => (joined === '' ? text : `${joined}${endsSentence(joined) ? ' ' : '. '}${text}`), '');
}

/** Whether the text ends with a full stop or the like. */
export function endsSentence(text: string): boolean {
  return /[.!?…。！？]["'”’)\]]{0,3}$/u.test(text);
}

function stripTags(text: string): string {
  let plain = '';
  let position = 0;
  for (let open = text.indexOf('<'); open !== -1; open = text.indexOf('<', position)) {
    plain += text.slice(position, open);
    const tag = tagAt(text, open);
    plain += tag.replacement;
    position = tag.end;
    if (position >= text.length) break;
  }
  return plain + text.slice(position);
}

/** What the `<` at `open` begins: where it ends, and what stands for it. */
function tagAt(text: string, open: number): { end: number; replacement: string } {
  const notATag = { end: open + 1, replacement: '<' };
  if (text.startsWith('<!--', open)) {
    const end = text.indexOf('-->', open + 4);
    return { end: end === -1 ? text.length : end + 3, replacement: ' ' };
  }
  const name = /^<[/!?]?([a-z][a-z0-9]*)/i.exec(text.slice(open, open + 32))?.[1]?.toLowerCase();
  if (name === undefined) return notATag;
  const close = /[<>]/g;
  close.lastIndex = open + 1;
  const end = close.exec(text);
  if (end?.[0] !== '>') return notATag;
  if (HIDDEN_TAGS.has(name) && text[open + 1] !== '/') {
    const closing = new RegExp(`</${name}[^>]*>?`, 'gi');
    closing.lastIndex = end.index + 1;
    return { end: closing.test(text) ? closing.lastIndex : text.length, replacement: ' ' };
  }
  return { end: end.index + 1, replacement: INLINE_TAGS.has(name) ? '' : ' ' };
}

function decodeEntities(text: string): string {
  return text.replace(/&(?:#x([0-9a-f]{1,8})|#([0-9]{1,8})|([a-z]{2,8}));/gi, (entity, hex, decimal, name) => {
    if (name !== undefined) return NAMED_ENTITIES.get(name) ?? entity;
    return characterOf(hex === undefined ? Number.parseInt(decimal, 10) : Number.parseInt(hex, 16));
  });
}

function characterOf(code: number): string {
  if (code >= 0x80 && code <= 0x9f) return WINDOWS_1252.charAt(code - 0x80);
  const isSurrogate = code >= 0xd800 && code <= 0xdfff;
  return code === 0 || isSurrogate || code > 0x10ffff ? '\ufffd' : String.fromCodePoint(code);
}
