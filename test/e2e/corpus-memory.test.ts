/** A corpus on disk is tokenised and read in a fraction of its size: measured in a process of its own. */
import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, expect, test } from 'vitest';
import { outputOfNode } from '../support/run-program.js';

const root = join(import.meta.dirname, '../..');
const folder = mkdtempSync(join(tmpdir(), 'limbeck-corpus-'));
afterAll(() => rmSync(folder, { recursive: true }));

const LINES = 240_000;
const LINE = 'a quiet river and the morning train '.repeat(6);

/** Growth of the largest resident size over what the process had after a tiny corpus, in bytes; and the bytes of the ids. */
const measure = (path: string) => `
  const { trainBytePairTokenizer } = await import(${JSON.stringify(pathToFileURL(join(root, 'dist/formats/bpe-trainer.js')))});
  const { createTokenizer } = await import(${JSON.stringify(pathToFileURL(join(root, 'dist/formats/tokenizer.js')))});
  const { openTokenFiles } = await import(${JSON.stringify(pathToFileURL(join(root, 'dist/teacher/token-files.js')))});
  const { writeFileSync } = await import('node:fs');
  const tokenizer = createTokenizer(await trainBytePairTokenizer(['a'], { vocabSize: 257 })); // a token a byte
  const read = async (path) => {
    const pieces = await openTokenFiles(tokenizer, { path }, { maxLength: 128, addEos: true });
    const last = pieces.offsets.length - 1;
    for (let batch = 0; batch < 500; batch++) {
      await pieces.read(Int32Array.from({ length: 16 }, (_, i) => (batch * 7919 + i * 104729) % last));
    }
    await pieces.close();
    return pieces.offsets[last] * 4;
  };
  writeFileSync(${JSON.stringify(join(folder, 'tiny.txt'))}, ${JSON.stringify(LINE)});
  await read(${JSON.stringify(join(folder, 'tiny.txt'))});
  const before = process.resourceUsage().maxRSS;
  const sizeBytes = await read(${JSON.stringify(path)});
  console.log(JSON.stringify({ sizeBytes, growth: (process.resourceUsage().maxRSS - before) * 1024 }));
`;

test('a corpus of 208 MB of ids takes less than 160 MB to tokenise, and 48 MB to read', () => {
  const path = join(folder, 'corpus.txt');
  const file = openSync(path, 'w');
  const lines = `${LINE}\n`.repeat(1000);
  for (let written = 0; written < LINES; written += 1000) writeSync(file, lines);
  closeSync(file);
  const run = () =>
    JSON.parse(
      outputOfNode(['--max-semi-space-size=2', '--input-type=module', '--eval', measure(path)], { limitMs: 140_000 }),
    );
  const [tokenised, read] = [run(), run()];
  expect(tokenised.sizeBytes).toBeGreaterThan(200e6);
  expect(tokenised.growth).toBeLessThan(160e6);
  expect(read.growth).toBeLessThan(48e6);
}, 300_000);
