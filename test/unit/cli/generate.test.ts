import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough, Readable } from 'node:stream';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadBinding, type NativeEngine } from '../../../src/binding.js';
import { type GenerateFlags, generateCommand } from '../../../src/cli/generate.js';
import { run } from '../../../src/cli/main.js';
import type { GenerateOptions } from '../../../src/teacher/generate.js';
import { LanguageModel } from '../../../src/teacher/language-model.js';
import { generatingModel } from '../../support/generating-model.js';

const directory = mkdtempSync(join(tmpdir(), 'limbeck-cli-'));
const withoutTokenizer = join(import.meta.dirname, '../../fixtures/gpt2');
const DRAWN = ['--max-new-tokens', '30', '--temperature', '1', '--top-k', '50', '--top-p', '0.9'];
const PENALTY = ['--repetition-penalty', '1.2'];
const options = { maxNewTokens: 30, temperature: 1, topK: 50, topP: 0.9, repetitionPenalty: 1.2 };

let engine: NativeEngine;
let model: LanguageModel;
beforeAll(async () => {
  engine = loadBinding().createEngine({ threads: 1 });
  const made = await generatingModel(engine, { family: 'gpt2', hiddenSize: 16, maxPositionEmbeddings: 64 });
  await made.save(directory);
  made.dispose();
  model = await LanguageModel.load(engine, directory);
});
afterAll(() => {
  engine.dispose();
  rmSync(directory, { recursive: true, force: true });
});

const code = (name: string) => expect.objectContaining({ code: name });

async function generate(...argv: string[]) {
  const stdout = new PassThrough();
  const stderr = new PassThrough();
  const exitCode = await run(['generate', ...argv], { stdout, stderr });
  return { exitCode, stdout: String(stdout.read() ?? ''), stderr: String(stderr.read() ?? '') };
}

/** The pieces that were written to stdout, for a prompt from stdin. */
async function fromStdin(
  chunks: Iterable<Uint8Array> | Readable,
  { signal = new AbortController().signal, isTTY = false, onPiece = () => {}, ...flags }: FromStdin = {},
): Promise<string[]> {
  const pieces: string[] = [];
  const stdout = Object.assign(new PassThrough(), { isTTY });
  stdout.on('data', (piece) => {
    pieces.push(String(piece));
    onPiece(String(piece), stdout);
  });
  const stdin = chunks instanceof Readable ? chunks : Readable.from(chunks);
  const context = { streams: { stdout, stderr: new PassThrough() }, signal };
  try {
    await generateCommand(directory, ['-'], { maxNewTokens: 10, device: 'cpu', threads: 1, ...flags }, context, stdin);
  } finally {
    // What was written is read before this.
    await new Promise((resolve) => setImmediate(resolve));
  }
  return pieces;
}

interface FromStdin extends Partial<GenerateFlags> {
  readonly signal?: AbortSignal;
  readonly isTTY?: boolean;
  readonly onPiece?: (piece: string, stdout: PassThrough) => void;
}

describe('limbeck generate', () => {
  it('writes the text that the model generates, and a line break', async () => {
    const expected = await model.generate('the cat', { ...options, seed: 7 });
    const { exitCode, stdout, stderr } = await generate(directory, 'the', 'cat', ...DRAWN, ...PENALTY, '--seed', '7');
    expect({ exitCode, stdout, stderr }).toEqual({ exitCode: 0, stdout: `${expected}\n`, stderr: '' });
    expect((await generate(directory, 'the cat', ...DRAWN, ...PENALTY, '--seed', '8')).stdout).not.toBe(stdout);
  });

  it('takes the best token each time when nothing is said, up to the last position', async () => {
    const expected = await model.generate('the cat', { maxNewTokens: 128 });
    expect((await generate(directory, 'the cat')).stdout).toBe(`${expected}\n`);
  });

  it('gives text, prompt and all options as one line of JSON', async () => {
    const { exitCode, stdout } = await generate(directory, 'the cat', ...DRAWN, '--json');
    expect(exitCode).toBe(0);
    expect(stdout.trimEnd().split('\n')).toHaveLength(1);
    const expected = { ...options, repetitionPenalty: 1, minNewTokens: 0, seed: 0, longPrompt: 'error', stop: [] };
    expect(JSON.parse(stdout)).toEqual({
      prompt: 'the cat',
      text: await model.generate('the cat', expected as GenerateOptions),
      options: expected,
    });
  });

  it('ends before any of the stop texts', async () => {
    const whole = await model.generate('the cat', options);
    const stop = whole.slice(6, 9);
    const { stdout } = await generate(directory, ...DRAWN, ...PENALTY, '--stop', '-x-', '--stop', stop, 'the cat');
    expect(stdout).toBe(`${whole.slice(0, whole.indexOf(stop))}\n`);
  });

  it('cuts a long prompt only where it is told to', async () => {
    const long = 'the dog '.repeat(60);
    const refused = await generate(directory, long, '--max-new-tokens', '4');
    expect(refused).toMatchObject({
      exitCode: 2,
      stdout: '',
      stderr: expect.stringMatching(/at most 64.*truncateLeft/),
    });
    const cut = await generate(directory, long, '--max-new-tokens', '4', '--long-prompt', 'truncateLeft');
    const expected = await model.generate(long, { maxNewTokens: 4, longPrompt: 'truncateLeft' });
    expect(cut).toMatchObject({ exitCode: 0, stdout: `${expected}\n` });
  });

  it.each([
    ['a missing prompt', [directory], 2, 'ERR_INVALID_ARGUMENT', 'prompt'],
    ['an empty prompt', [directory, ''], 2, 'ERR_INVALID_ARGUMENT', 'at least one token'],
    [
      'a temperature that is no number',
      [directory, 'x', '--temperature', 'hot'],
      2,
      'ERR_INVALID_ARGUMENT',
      'a number',
    ],
    ['a temperature that is nothing', [directory, 'x', '--temperature', ''], 2, 'ERR_INVALID_ARGUMENT', 'a number'],
    ['a temperature below 0', [directory, 'x', '--temperature', '-1'], 2, 'ERR_INVALID_ARGUMENT', 'got -1'],
    ['a top p above 1', ['nowhere', 'x', '--top-p', '1.5'], 2, 'ERR_INVALID_ARGUMENT', 'generate.topP'],
    ['an empty stop', ['nowhere', 'x', '--stop', ''], 2, 'ERR_INVALID_ARGUMENT', 'generate.stop.0'],
    ['an unknown way with long prompts', ['nowhere', 'x', '--long-prompt', 'cut'], 2, 'ERR_INVALID_ARGUMENT', 'cut'],
    ['an unknown precision', ['nowhere', 'x', '--precision', 'int3'], 2, 'ERR_INVALID_ARGUMENT', 'precision'],
    ['a device that is not there', ['nowhere', 'x', '--device', 'tpu'], 2, 'ERR_INVALID_ARGUMENT', 'device'],
    ['a model that is not there', [join(directory, 'none'), 'x'], 3, 'ERR_FILE_NOT_FOUND', 'none'],
    ['a model without a tokenizer', [withoutTokenizer, 'x'], 3, 'ERR_TOKENIZER', 'tokenizer.json'],
  ])('refuses %s', async (_, argv, exitCode, name, hint) => {
    const failed = await generate(...argv);
    expect(failed).toMatchObject({ exitCode, stdout: '' });
    expect(failed.stderr).toMatch(new RegExp(`^error: .* \\(${name}\\)\\n$`));
    expect(failed.stderr).toContain(hint);
    const asJson = await generate(...argv, '--json');
    expect(JSON.parse(asJson.stdout)).toEqual({ error: { code: name, message: expect.stringContaining(hint) } });
  });

  it('refuses a model that reads both ways', async () => {
    const masked = join(directory, 'masked');
    const bert = await generatingModel(engine, { family: 'bert', hiddenSize: 16, maxPositionEmbeddings: 64 });
    await bert.save(masked);
    bert.dispose();
    const { exitCode, stderr } = await generate(masked, 'x');
    expect(exitCode).toBe(2);
    expect(stderr).toContain('Only a causal model generates');
  });
});

describe('limbeck generate, from stdin', () => {
  const bytes = new TextEncoder().encode('the cat – 日本\nthe dog\n');

  it('reads the prompt, whose characters may be cut anywhere, without its last line break', async () => {
    const expected = await model.generate('the cat – 日本\nthe dog', { maxNewTokens: 10 });
    const pieces = await fromStdin([...bytes].map((byte) => Uint8Array.of(byte)));
    expect(pieces.join('')).toBe(`${expected}\n`);
    expect(pieces.length).toBeGreaterThan(3);
  });

  it('refuses bytes that are no text, and more than a prompt may have', async () => {
    await expect(fromStdin([Uint8Array.of(0x61, 0xff)])).rejects.toThrow(code('ERR_FILE_FORMAT'));
    function* endless() {
      for (;;) yield new Uint8Array(2 ** 22).fill(0x61);
    }
    await expect(fromStdin(endless())).rejects.toThrow(code('ERR_INVALID_ARGUMENT'));
  });

  it('says when it cannot be read', async () => {
    const broken = new Readable({ read: () => broken.destroy(new Error('EIO: the disk is gone')) });
    const failure = expect.objectContaining({ code: 'ERR_IO', message: expect.stringContaining('the disk is gone') });
    await expect(fromStdin(broken)).rejects.toThrow(failure);
  });

  it('can be stopped while it waits for the prompt', async () => {
    const silent = new Readable({ read: () => {} });
    const controller = new AbortController();
    const waiting = fromStdin(silent, { signal: controller.signal });
    setImmediate(() => controller.abort());
    await expect(waiting).rejects.toThrow(code('ERR_ABORTED'));
    expect(silent.destroyed).toBe(true);
    await expect(fromStdin([bytes], { signal: controller.signal })).rejects.toThrow(code('ERR_ABORTED'));
  });

  it('can be stopped within the text, and leaves the line ended', async () => {
    const controller = new AbortController();
    const seen: string[] = [];
    const stopped = fromStdin([bytes], {
      signal: controller.signal,
      minNewTokens: 30,
      maxNewTokens: 30,
      onPiece: (piece) => {
        seen.push(piece);
        controller.abort();
      },
    });
    await expect(stopped).rejects.toThrow(code('ERR_ABORTED'));
    expect(seen.at(-1)).toBe('\n');
    expect(seen.length).toBeLessThan(20);
  });

  it('keeps a model from commanding the terminal, and gives programs every character', async () => {
    // So many draws at such a temperature that some of them are control characters.
    const drawn = { maxNewTokens: 40, minNewTokens: 40, temperature: 1000, seed: 4 };
    const exact = (await fromStdin([Buffer.from('a')], drawn)).join('');
    expect(exact).toBe(`${await model.generate('a', drawn)}\n`);
    expect(exact).toMatch(/[^\P{Cc}\n]/u);
    const shown = (await fromStdin([Buffer.from('a')], { ...drawn, isTTY: true })).join('');
    expect(shown).toBe(exact.replace(/[^\P{Cc}\n]/gu, ' '));
  });

  it('ends when its reader leaves', async () => {
    let count = 0;
    const flags = { maxNewTokens: 40, minNewTokens: 40 };
    await fromStdin([bytes], {
      ...flags,
      onPiece: (_, stdout) => {
        count++;
        stdout.end();
      },
    });
    const whole = await fromStdin([bytes], flags);
    expect(count).toBeLessThan(whole.length);
  });
});
