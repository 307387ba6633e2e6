import { createHash } from 'node:crypto';
import {
  appendFileSync,
  cpSync,
  existsSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { beforeEach, describe, expect, test } from 'vitest';
import { loadBinding } from '../../../src/binding.js';
import { trainBytePairTokenizer } from '../../../src/formats/bpe-trainer.js';
import { createTokenizer } from '../../../src/formats/tokenizer.js';
import type { TextFile } from '../../../src/prepare/text-lines.js';
import { inMemory, type PieceSource, tokenizeCorpus } from '../../../src/teacher/corpus.js';
import { openTokenFiles } from '../../../src/teacher/token-files.js';
import { temporaryDirectory } from './fake-model.js';

const root = temporaryDirectory();
const words = ['river', 'train', 'house', 'morning', 'forgets', 'quiet'];
const line = (i: number) =>
  `${i} ${Array.from({ length: 1 + ((i * 7) % 23) }, (_, j) => words[(i * j + j) % 6]).join(' ')}`;
const tokenizer = createTokenizer(
  await trainBytePairTokenizer(
    Array.from({ length: 60 }, (_, i) => line(i)),
    { vocabSize: 300 },
  ),
);
const options = { maxLength: 8, addEos: true };
let source: TextFile;
let count = 0;
beforeEach(() => {
  source = { path: join(root, `${count++}.txt`) };
});

/** What an encoder of this process was asked. */
function counting() {
  const seen: string[] = [];
  const encode: typeof tokenizer.encode = (text, settings) => {
    seen.push(text);
    return tokenizer.encode(text, settings);
  };
  return { seen, tokenizer: { ...tokenizer, encode } };
}
const shardsOf = (file: TextFile) => {
  const [key = ''] = readdirSync(`${file.path}.tokens`);
  const directory = join(`${file.path}.tokens`, key);
  return readdirSync(directory)
    .filter((name) => name.endsWith('.safetensors'))
    .map((name) => join(directory, name));
};
async function contentOf(pieces: PieceSource) {
  const order = Int32Array.from({ length: pieces.offsets.length - 1 }, (_, i) => i);
  const { inputIds } = await pieces.read(order);
  await pieces.close();
  // Arrays of a million numbers are compared slowly.
  const hash = createHash('sha256').update(inputIds).update(Float64Array.from(pieces.offsets)).digest('hex');
  return { tokens: inputIds.length, pieces: order.length, hash };
}
const inMemoryContent = async (texts: string[]) => contentOf(inMemory(await tokenizeCorpus(tokenizer, texts, options)));
const code = (value: string) => expect.objectContaining({ code: value });

describe('tokens on disk', () => {
  test('are those of the same texts in memory, in any order that they are read', async () => {
    const lines = Array.from({ length: 25_000 }, (_, i) => line(i));
    writeFileSync(source.path, lines.join('\n'));
    const onDisk = await openTokenFiles(tokenizer, source, options, { shardTokens: 50_000 });
    expect(shardsOf(source).length).toBeGreaterThan(2);
    const memory = inMemory(await tokenizeCorpus(tokenizer, lines, options));
    expect(onDisk.offsets.join()).toBe(memory.offsets.join());
    const last = onDisk.offsets.length - 2;
    for (const pieces of [Int32Array.of(last, 3, 4, 5, 0, 3), Int32Array.of()]) {
      expect(await onDisk.read(pieces)).toEqual(await memory.read(pieces));
    }
    await expect(onDisk.read(Int32Array.of(last + 1))).rejects.toThrow(code('ERR_INVALID_ARGUMENT'));
    await onDisk.close();
  });

  test('are made once: for another tokenizer, length or column beside each other, for another source again', async () => {
    writeFileSync(source.path, 'river train\nquiet house');
    const first = counting();
    const before = await contentOf(await openTokenFiles(first.tokenizer, source, options));
    expect(first.seen).toHaveLength(2);
    const second = counting();
    expect(await contentOf(await openTokenFiles(second.tokenizer, source, options))).toEqual(before);
    expect(second.seen).toEqual([]);
    await contentOf(await openTokenFiles(second.tokenizer, source, { ...options, maxLength: 4 }));
    expect(second.seen).toHaveLength(2);
    const other = createTokenizer(await trainBytePairTokenizer(['a b'], { vocabSize: 260 }));
    await contentOf(await openTokenFiles(other, source, options));
    expect(readdirSync(`${source.path}.tokens`)).toHaveLength(3);

    writeFileSync(source.path, 'river train\nquiet trains');
    const after = await contentOf(await openTokenFiles(second.tokenizer, source, options));
    expect(after).toEqual(await inMemoryContent(['river train', 'quiet trains']));
    expect(after).not.toEqual(before);
  });

  test('of a file that grew keep the shards that are as they were; its last line may have gone on', async () => {
    const lines = Array.from({ length: 25_000 }, (_, i) => line(i));
    writeFileSync(source.path, lines.join('\n'));
    await contentOf(await openTokenFiles(tokenizer, source, options, { shardTokens: 50_000 }));
    const [kept = ''] = shardsOf(source);
    const { mtimeMs } = statSync(kept);
    appendFileSync(source.path, ' and more\nquiet');
    const { seen, tokenizer: counted } = counting();
    const content = await contentOf(await openTokenFiles(counted, source, options, { shardTokens: 50_000 }));
    expect(content).toEqual(await inMemoryContent([...lines.slice(0, -1), `${lines.at(-1)} and more`, 'quiet']));
    expect(statSync(kept).mtimeMs).toBe(mtimeMs);
    expect(seen.length).toBeLessThan(lines.length);
  });

  test('go on behind the last whole shard after a stop, and make damaged ones anew', async () => {
    const lines = Array.from({ length: 25_000 }, (_, i) => line(i));
    writeFileSync(source.path, lines.join('\n'));
    const expected = await inMemoryContent(lines);
    const stop = new AbortController();
    const stopping = counting();
    const encode: typeof tokenizer.encode = (text, settings) => {
      if (text === lines[20_000]) stop.abort();
      return stopping.tokenizer.encode(text, settings);
    };
    const small = { shardTokens: 50_000 };
    await expect(
      openTokenFiles({ ...tokenizer, encode }, source, options, { ...small, signal: stop.signal }),
    ).rejects.toThrow(code('ERR_ABORTED'));
    const done = shardsOf(source).length;
    expect(done).toBeGreaterThan(0);
    const resumed = counting();
    expect(await contentOf(await openTokenFiles(resumed.tokenizer, source, options, small))).toEqual(expected);
    expect(resumed.seen.length).toBeLessThan(lines.length);

    const [first = '', second = ''] = shardsOf(source);
    const bytes = readFileSync(second);
    bytes[bytes.length - 3] = (bytes[bytes.length - 3] ?? 0) ^ 1;
    writeFileSync(second, bytes);
    const leftover = join(dirname(second), '.tokens-00001.safetensors.7.0123456789ab.tmp');
    writeFileSync(leftover, 'of a process that was killed');
    const again = counting();
    expect(await contentOf(await openTokenFiles(again.tokenizer, source, options, small))).toEqual(expected);
    expect(again.seen.length).toBeLessThan(lines.length);
    expect(again.seen.length).toBeGreaterThan(0);
    expect(existsSync(leftover)).toBe(false);
    rmSync(first);
    expect(await contentOf(await openTokenFiles(tokenizer, source, options, small))).toEqual(expected);
    expect(existsSync(first)).toBe(true);
  });

  test('that are being read stay what they are while another run replaces them', async () => {
    writeFileSync(source.path, 'river train\nquiet house');
    const open = await openTokenFiles(tokenizer, source, options);
    writeFileSync(source.path, 'morning\nforgets\nhouse house');
    await contentOf(await openTokenFiles(tokenizer, source, options));
    expect(await contentOf(open)).toEqual(await inMemoryContent(['river train', 'quiet house']));
  });

  test('lie where they are told to; a broken description and one without a piece are refused', async () => {
    writeFileSync(source.path, 'river train\n');
    const tokens = join(root, 'elsewhere');
    await contentOf(await openTokenFiles(tokenizer, { ...source, tokens }, options));
    expect(existsSync(`${source.path}.tokens`)).toBe(false);
    const manifest = join(tokens, readdirSync(tokens)[0] ?? '', 'tokens.json');
    const { shards, ...rest } = JSON.parse(readFileSync(manifest, 'utf8'));
    for (const change of [{ pieces: 2 }, { pieces: 2 ** 40 }, { tokens: 2 ** 53 - 1 }]) {
      writeFileSync(manifest, JSON.stringify({ ...rest, shards: [{ ...shards[0], ...change }] }));
      await expect(openTokenFiles(tokenizer, { ...source, tokens }, options)).rejects.toThrow(code('ERR_FILE_FORMAT'));
    }
    writeFileSync(manifest, '{"format":"limbeck-tokens","version":2}');
    await expect(openTokenFiles(tokenizer, { ...source, tokens }, options)).rejects.toThrow(code('ERR_FILE_FORMAT'));
    for (const content of ['', '\n \n', 'a']) {
      writeFileSync(source.path, content);
      await expect(openTokenFiles(tokenizer, source, { ...options, addEos: false })).rejects.toThrow(
        code('ERR_EMPTY_DATA'),
      );
    }
    const missing = { path: join(root, 'missing.txt') };
    await expect(openTokenFiles(tokenizer, missing, options)).rejects.toThrow(code('ERR_FILE_NOT_FOUND'));
  });

  test('are tokenised by one process at a time', async () => {
    writeFileSync(source.path, 'river train\n');
    await contentOf(await openTokenFiles(tokenizer, source, options));
    const copy = { path: `${source.path}-copy` };
    cpSync(source.path, copy.path);
    cpSync(`${source.path}.tokens`, `${copy.path}.tokens`, { recursive: true });
    const { open } = await import('node:fs/promises');
    const lock = await open(join(`${copy.path}.tokens`, readdirSync(`${copy.path}.tokens`)[0] ?? '', '.lock'), 'a');
    expect(loadBinding().tryLockFile(lock.fd)).toBe(true);
    await expect(openTokenFiles(tokenizer, copy, options)).rejects.toThrow(code('ERR_LOCKED'));
    await lock.close();
    await contentOf(await openTokenFiles(tokenizer, copy, options));
  });
});
