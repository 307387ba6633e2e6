/** GPT-2's way of writing any bytes as visible text. */

const NUM_BYTES = 256;

/**
 * A visible character for each byte: printable Latin-1 stands for itself, every other byte for the next character from
 * U+0100 on. `order` lists the bytes by character, which is the order of their ids.
 *
 * @see Radford et al. 2019, section 2.2
 */
export function byteAlphabet(): { characters: string[]; order: number[] } {
  const isPrintable = (byte: number) => (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte !== 0xad);
  let next = 0x100;
  const bytes = Array.from({ length: NUM_BYTES }, (_, byte) => byte);
  const characters = bytes.map((byte) => String.fromCharCode(isPrintable(byte) ? byte : next++));
  const order = [...bytes.filter(isPrintable), ...bytes.filter((byte) => !isPrintable(byte))];
  return { characters, order };
}

const { characters } = byteAlphabet();
const byteOf = new Map(characters.map((character, byte) => [character, byte]));
const SPACE = characters[0x20] as string;

/** The UTF-8 bytes of a text as visible characters. */
export function bytesToCharacters(text: string): string {
  if (/^[ -~]*$/.test(text)) return text.replaceAll(' ', SPACE);
  let visible = '';
  for (const byte of Buffer.from(text)) visible += characters[byte];
  return visible;
}

/** The bytes that a token stands for; one that holds another character stands for itself. */
export function tokenBytes(token: string): Uint8Array {
  const bytes: number[] = [];
  for (const character of token) {
    const byte = byteOf.get(character);
    if (byte === undefined) return Buffer.from(token);
    bytes.push(byte);
  }
  return Uint8Array.from(bytes);
}
