import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { createTokenizer, type Tokenizer } from '../../../src/formats/tokenizer.js';
import { encodeTexts, TokenizerPool } from '../../../src/formats/tokenizer-workers.js';
import { nastyTexts } from '../../support/nasty-texts.js';
import { runProgram } from '../../support/run-program.js';
import { tokenizerKinds } from '../../support/tokenizer-kinds.js';

const ROOT = join(import.meta.dirname, '../../..');
const kinds = await tokenizerKinds();
/** Several jobs' worth, with empty texts and lone surrogates among them. */
const texts = nastyTexts(3000, 1).map((text, i) => `${text} the cat sat ${i} \ud800`);
texts[7] = '';

/** Once every thread works, so that none of `texts` falls to the thread of the test. */
async function warmPool(tokenizer: Tokenizer, threads: number): Promise<TokenizerPool> {
  const pool = new TokenizerPool(tokenizer, 0, { threads });
  while (pool.readyThreads < threads) await new Promise((resolve) => setTimeout(resolve, 5));
  return pool;
}

/** Counts what is tokenised in this thread. */
function counted(tokenizer: Tokenizer): { calls: number } {
  const counter = { calls: 0 };
  const { encode } = tokenizer;
  tokenizer.encode = (text, options) => {
    counter.calls++;
    return encode.call(tokenizer, text, options);
  };
  return counter;
}

function expected(tokenizer: Tokenizer) {
  const sequences = texts.map((text) => tokenizer.encode(text));
  const offsets = new Int32Array(texts.length + 1);
  sequences.forEach((ids, i) => {
    offsets[i + 1] = (offsets[i] ?? 0) + ids.length;
  });
  return { ids: Int32Array.from(sequences.flat()), offsets };
}

describe('threads that tokenise', () => {
  test('are compiled: npm test does it', () => {
    expect(existsSync(join(ROOT, 'dist/formats/tokenizer-worker.js'))).toBe(true);
  });

  test.each(['GPT-2', 'BERT', 'T5'])('give the ids of one thread, in its order: %s', async (kind) => {
    const tokenizer = createTokenizer(kinds[kind] as object);
    const wanted = expected(createTokenizer(kinds[kind] as object));
    const pool = await warmPool(tokenizer, 2);
    const counter = counted(tokenizer);
    const [first, second] = await Promise.all([pool.encode(texts), pool.encode([...texts].reverse())]);
    expect(first).toEqual(wanted);
    expect(second.ids).toHaveLength(wanted.ids.length);
    expect(second.ids).not.toEqual(wanted.ids);
    expect(counter.calls).toBe(0);
    await pool.close();
  });

  test('leave the work to this one until they are ready', async () => {
    const tokenizer = createTokenizer(kinds['GPT-2'] as object);
    const wanted = expected(tokenizer);
    const counter = counted(tokenizer);
    const pool = new TokenizerPool(tokenizer, 0, { threads: 1 });
    expect(await pool.encode(texts)).toEqual(wanted);
    expect(counter.calls).toBeGreaterThan(0);
    await pool.close();
  });

  test('fail with the error of one thread', async () => {
    const json = { model: { type: 'WordPiece', vocab: { a: 0, b: 1, '##b': 2 } } };
    const tokenizer = createTokenizer(json, {}, 'mine.json');
    const pool = await warmPool(tokenizer, 1);
    let message = '';
    try {
      tokenizer.encode('az');
    } catch (error) {
      ({ message } = error as Error);
    }
    expect(message).toContain('mine.json');
    await expect(pool.encode(['ab', 'az', 'b'])).rejects.toMatchObject({ code: 'ERR_TOKENIZER', message });
    expect((await pool.encode(['ab', 'a'])).ids).toEqual(Int32Array.of(0, 2, 0));
    await pool.close();
  });

  test('end with what the check throws, and refuse work after close', async () => {
    const pool = await warmPool(createTokenizer(kinds['GPT-2'] as object), 1);
    const stopped = new Error('stopped');
    let checks = 0;
    const check = () => {
      if (++checks === 2) throw stopped;
    };
    await expect(pool.encode(texts, check)).rejects.toBe(stopped);
    const unfinished = pool.encode(texts);
    await Promise.all([
      expect(unfinished).rejects.toMatchObject({ code: 'ERR_DISPOSED' }),
      pool.close().then(() => expect(pool.readyThreads).toBe(0)),
    ]);
    await expect(pool.encode(['a'])).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
  });

  test('are not started for few texts, nor for a tokenizer that only this thread has', async () => {
    const tokenizer = createTokenizer(kinds['GPT-2'] as object);
    const few = new TokenizerPool(tokenizer, 1000);
    const own = new TokenizerPool({ ...tokenizer, encode: () => [5, 6] }, 1e9, { threads: 1 });
    expect(await own.encode(['a', 'b'])).toEqual({ ids: Int32Array.of(5, 6, 5, 6), offsets: Int32Array.of(0, 2, 4) });
    await new Promise((resolve) => setTimeout(resolve, 1000));
    expect([few.readyThreads, own.readyThreads]).toEqual([0, 0]);
    expect(await encodeTexts(tokenizer, [])).toEqual({ ids: new Int32Array(0), offsets: Int32Array.of(0) });
  });

  test.each([
    ['left open', ''],
    ['closed', 'await pool.close();'],
  ])('never keep a process alive, and let it wait for their work: %s', (_, end) => {
    const program = `
      import { createTokenizer } from './dist/formats/tokenizer.js';
      import { TokenizerPool } from './dist/formats/tokenizer-workers.js';
      const pool = new TokenizerPool(createTokenizer(JSON.parse(process.argv[1])), 0, { threads: 2 });
      while (pool.readyThreads < 2) await new Promise((resolve) => setTimeout(resolve, 5));
      const texts = Array.from({ length: 9000 }, (_, i) => 'the cat sat ' + i);
      console.log((await pool.encode(texts)).offsets.length);
      ${end}
      console.log('done');`;
    const argv = ['--input-type=module', '-e', program, JSON.stringify(kinds['GPT-2'])];
    expect(runProgram(process.execPath, argv, { cwd: ROOT })).toEqual({
      stdout: '9001\ndone\n',
      stderr: '',
      status: 0,
    });
  });
});
