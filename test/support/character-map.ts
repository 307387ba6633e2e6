/** A small `precompiled_charsmap`, built as SentencePiece builds them: a double array over UTF-8 keys. */

const REPLACEMENTS: Readonly<Record<string, string>> = {
  '\u00a0': ' ',
  '\u3000': ' ',
  '\u2003': ' ',
  '\t': ' ',
  '\n': ' ',
  '\u200b': '',
  '\u00ad': '',
  '\u0000': '',
  '\u0007': '',
  ﬁ: 'fi',
  '½': '1⁄2',
  '①': '1',
  ａ: 'a',
  ｂ: 'b',
  '㎏': 'kg',
  'e\u0301': 'é',
  'o\u0328': 'ǫ',
  '\u212b': 'Å',
  '👍': '+1',
};

const LABEL_MASK = 0x800000ff;

/** Base64 of a trie size, a trie (darts-clone's layout), and NUL-ended texts. */
export function characterMap(): string {
  const texts: Buffer[] = [];
  let textBytes = 0;
  const root = new Map<number, TrieNode>();
  const keys = Object.keys(REPLACEMENTS).filter((key) => key !== '\u0000'); // a key ends at NUL
  for (const key of keys) {
    const text = Buffer.from(`${REPLACEMENTS[key]}\0`);
    let children = root;
    const bytes = [...Buffer.from(key)];
    bytes.forEach((byte, i) => {
      let node = children.get(byte);
      if (node === undefined) {
        node = { children: new Map() };
        children.set(byte, node);
      }
      if (i === bytes.length - 1) node.value = textBytes;
      children = node.children;
    });
    texts.push(text);
    textBytes += text.length;
  }
  const units: number[] = [0];
  const used = new Set([0]);
  let nextBlock = 256;
  /** Puts children at base ^ byte, each base in a block of its own, and returns the bits of the offset from `position`. */
  const place = (position: number, children: Map<number, TrieNode>, value: number | undefined): void => {
    // A base that is a multiple of 256, XORed with the position, must be an offset that a unit can hold.
    const base = nextBlock | (position & 0xff);
    nextBlock += 256;
    const offset = base ^ position;
    units[position] = ((units[position] ?? 0) | (offset << 10) | (value === undefined ? 0 : 0x100)) >>> 0;
    if (value !== undefined) {
      units[base] = (0x80000000 | value) >>> 0;
      used.add(base);
    }
    for (const [byte, node] of children) {
      units[base ^ byte] = byte;
      used.add(base ^ byte);
      place(base ^ byte, node.children, node.value);
    }
  };
  place(0, root, undefined);
  const size = nextBlock + 256;
  const trie = Buffer.alloc(4 + 4 * size);
  trie.writeUInt32LE(4 * size, 0);
  for (let i = 0; i < size; i++) trie.writeUInt32LE(used.has(i) ? (units[i] as number) : LABEL_MASK >>> 0, 4 + 4 * i);
  return Buffer.concat([trie, ...texts]).toString('base64');
}

interface TrieNode {
  readonly children: Map<number, TrieNode>;
  value?: number;
}
