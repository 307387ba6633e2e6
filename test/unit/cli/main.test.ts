import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { afterAll, afterEach, describe, expect, it, vi } from 'vitest';
import { packageVersion } from '../../../src/cli/doctor.js';
import { run } from '../../../src/cli/main.js';
import { createEngine } from '../../../src/engine.js';
import { Knowledge } from '../../../src/knowledge/knowledge.js';

const directory = mkdtempSync(join(tmpdir(), 'limbeck-cli-'));
afterAll(() => rmSync(directory, { recursive: true, force: true }));
afterEach(() => vi.unstubAllEnvs());

async function limbeck(...argv: string[]) {
  const stdout = new PassThrough();
  const stderr = new PassThrough();
  const exitCode = await run(argv, { stdout, stderr });
  return { exitCode, stdout: String(stdout.read() ?? ''), stderr: String(stderr.read() ?? '') };
}

describe('run', () => {
  it('prints the version', async () => {
    expect(await limbeck('--version')).toEqual({ exitCode: 0, stdout: `${packageVersion()}\n`, stderr: '' });
  });

  it('documents every command and exit code in --help', async () => {
    const { exitCode, stdout } = await limbeck('--help');
    expect(exitCode).toBe(0);
    for (const command of ['distill', 'evaluate', 'recommend', 'generate', 'bench', 'knowledge', 'inspect', 'doctor']) {
      expect(stdout).toMatch(new RegExp(`^  ${command} `, 'm'));
    }
    for (const code of [0, 1, 2, 3, 4, 5, 130]) expect(stdout).toMatch(new RegExp(`\\b${code} [a-z]`));
  });

  it.each([
    ['an unknown command', ['distil', 'x'], 'ERR_INVALID_ARGUMENT', 'distill'],
    ['an unknown option', ['doctor', '--josn'], 'ERR_UNKNOWN_OPTION', '--json'],
    ['a missing argument', ['inspect'], 'ERR_INVALID_ARGUMENT', 'path'],
    ['one argument too many', ['inspect', 'a', 'b'], 'ERR_INVALID_ARGUMENT', 'Expected 1'],
    ['an option without its value', ['distill', 'x', '--output'], 'ERR_INVALID_ARGUMENT', '--output'],
    ['threads that are no number', ['distill', 'x', '--threads', '-1'], 'ERR_INVALID_ARGUMENT', 'whole number'],
    ['a bench without data', ['bench', 'quality'], 'ERR_INVALID_ARGUMENT', '--data'],
    ['an unknown bench', ['bench', 'speed'], 'ERR_INVALID_ARGUMENT', 'speed'],
    ['an import without data', ['knowledge', 'import', 'x.tsv'], 'ERR_INVALID_ARGUMENT', '--data'],
    [
      'events that are kept for no time',
      ['serve', 'x', '--retain-days', '0'],
      'ERR_INVALID_ARGUMENT',
      'retention.maxAge',
    ],
    ['seeds that are no numbers', ['distill', 'x', '--seeds', '0,a'], 'ERR_INVALID_ARGUMENT', 'whole number'],
  ])('refuses %s with exit code 2', async (_, argv, code, hint) => {
    const { exitCode, stdout, stderr } = await limbeck(...argv);
    expect(exitCode).toBe(2);
    expect(stdout).toBe('');
    expect(stderr).toMatch(new RegExp(`^error: .* \\(${code}\\)\\n$`));
    expect(stderr).toContain(hint);
  });

  it('runs on the device that it is told to, or says what is missing', async () => {
    const config = join(directory, 'device.json');
    const texts = join(directory, 'texts.txt');
    writeFileSync(config, '{}');
    writeFileSync(texts, 'One text.\n');
    vi.stubEnv('LIMBECK_CUDA_LIBRARY', join(directory, 'nowhere.so'));
    const commands = [
      ['distill', config],
      ['knowledge', 'extract', directory, texts, '--output', join(directory, 'store')],
      ['bench', 'quality', '--data', config],
      ['generate', directory, 'x'],
    ];
    for (const command of commands) {
      const missing = await limbeck(...command, '--device', 'cuda', '--quiet');
      expect(missing.stderr).toContain('(ERR_CUDA_UNAVAILABLE)');
      expect(missing.exitCode).toBe(5);
      expect((await limbeck(...command, '--device', 'tpu')).stderr).toMatch(/device.*\(ERR_INVALID_ARGUMENT\)/);
    }
  });

  it('extracts knowledge that a student can be trained from', async () => {
    const texts = join(directory, 'lines.txt');
    writeFileSync(texts, 'the quiet river and the morning train\n\nthe train\n');
    const teacher = join(directory, 'teacher');
    const engine = await createEngine({ threads: 1, device: 'cpu' });
    const { model } = await engine.pretrain(
      { train: { path: texts }, validation: ['the river'] },
      {
        architecture: { hiddenSize: 8, numHiddenLayers: 1, numAttentionHeads: 2, maxPositionEmbeddings: 32 },
        tokenizer: { vocabSize: 260 },
        training: { epochs: 1 },
      },
    );
    await model.save(teacher);
    engine.dispose();
    const store = join(directory, 'pieces');
    const command = ['knowledge', 'extract', teacher, texts, '--output', store, '--device', 'cpu', '--logits', '4'];
    expect((await limbeck(...command, '--max-length', '12', '--quiet')).stderr).toMatch(/pieces: true/);
    const { exitCode, stdout } = await limbeck(...command, '--pieces', '--max-length', '12', '--quiet', '--json');
    expect(exitCode).toBe(0);
    const { manifest } = await Knowledge.open(store);
    expect(manifest.pieceLength).toBe(12);
    expect(manifest.numTexts).toBeGreaterThan(2);
    expect(JSON.parse(stdout).numTexts).toBe(manifest.numTexts);
    expect((await limbeck('inspect', store)).stdout).toContain('pieces of up to 12 tokens');
  });

  it('shows the help where no command is given', async () => {
    const { exitCode, stdout, stderr } = await limbeck();
    expect(exitCode).toBe(2);
    expect(stdout).toBe('');
    expect(stderr).toContain('Usage: limbeck');
  });

  it('gives every error as JSON too, with nothing else on stdout', async () => {
    const { exitCode, stdout } = await limbeck('inspect', join(directory, 'none'), '--json');
    expect(exitCode).toBe(3);
    expect(JSON.parse(stdout)).toEqual({
      error: { code: 'ERR_FILE_NOT_FOUND', message: expect.stringContaining('none') },
    });
    const usage = await limbeck('nothing', '--json');
    expect(JSON.parse(usage.stdout).error.code).toBe('ERR_INVALID_ARGUMENT');
  });

  it('shows the stack only when it is asked for', async () => {
    const path = join(directory, 'none');
    expect((await limbeck('inspect', path)).stderr).not.toContain('    at ');
    vi.stubEnv('LIMBECK_DEBUG', '1');
    expect((await limbeck('inspect', path)).stderr).toContain('    at ');
  });

  it('keeps a path from commanding the terminal', async () => {
    const { stderr } = await limbeck('inspect', 'x\x1b[2J');
    expect(stderr).toContain("'x [2J'");
  });

  it('leaves no listener for Ctrl-C behind', async () => {
    const before = process.listenerCount('SIGINT');
    await limbeck('evaluate', join(directory, 'none'));
    expect(process.listenerCount('SIGINT')).toBe(before);
  });
});

describe('limbeck distill', () => {
  it('names the nearest key for a misspelled one, before it makes a directory', async () => {
    const config = join(directory, 'misspelled.yaml');
    writeFileSync(config, `ouput: ${join(directory, 'out')}\ndata: { interactions: { path: a.csv } }\n`);
    const { exitCode, stderr } = await limbeck('distill', config);
    expect(exitCode).toBe(2);
    expect(stderr).toContain('Did you mean "output"?');
  });

  it('lets --output and --seeds stand in for those of the config', async () => {
    const config = join(directory, 'no-output.yaml');
    const columns = '{ user: user, item: item }';
    writeFileSync(config, `data: { interactions: { path: none.csv, columns: ${columns} } }\n`);
    const output = join(directory, 'out');
    const missingData = await limbeck('distill', config, '--output', output, '--quiet');
    expect(missingData.exitCode).toBe(3);
    expect(missingData.stderr).toContain(join(directory, 'none.csv'));
    const seeds = await limbeck('distill', config, '--output', output, '--seeds', '1,99999999999', '--quiet');
    expect(seeds.exitCode).toBe(2);
    expect(seeds.stderr).toContain('seeds.1');
  });
});
