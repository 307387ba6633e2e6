/** The command from outside: in this process, and compiled as a child process (`npm test` compiles it first). */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { loadBinding } from '../../src/binding.js';
import { run } from '../../src/cli/main.js';
import { generatingModel } from '../support/generating-model.js';
import { tinyOptions } from '../support/tiny.js';

const fixtures = join(import.meta.dirname, '../fixtures');
const student = join(fixtures, 'student');
let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'limbeck-cli-'));
});
afterEach(() => {
  rmSync(folder, { recursive: true });
});

async function limbeck(...argv: string[]) {
  const written = { stdout: [] as string[], stderr: [] as string[] };
  const streams = {
    stdout: { write: (text: string) => written.stdout.push(text) > 0 },
    stderr: { write: (text: string) => written.stderr.push(text) > 0 },
  };
  const exitCode = await run(argv, streams as unknown as Parameters<typeof run>[1]);
  const stdout = written.stdout.join('');
  const stderr = written.stderr.join('');
  return { exitCode, stdout, stderr, json: () => JSON.parse(stdout.trim().split('\n').at(-1) ?? '') };
}

describe('limbeck', () => {
  test('prints the version of the package', async () => {
    const { exitCode, stdout } = await limbeck('--version');
    const { version } = JSON.parse(readFileSync(join(import.meta.dirname, '../../package.json'), 'utf8'));
    expect([exitCode, stdout.trim()]).toEqual([0, version]);
  });

  test('documents its exit codes in the help', async () => {
    const { exitCode, stdout } = await limbeck('--help');
    expect(exitCode).toBe(0);
    expect(stdout).toContain('Exit codes');
  });

  test('doctor finds the addon and the instruction set', async () => {
    const { exitCode, json } = await limbeck('doctor', '--json');
    expect(exitCode).toBe(0);
    expect(json()).toMatchObject({
      addonError: null,
      cpu: { threads: expect.any(Number) },
      backends: { cpu: 'ready' },
    });
  });

  test('recommends from ids, with texts of new items, and as JSON', async () => {
    const byId = await limbeck('recommend', student, '--history', 'tt1583421,tt1483013', '--k', '3', '--json');
    expect(byId.exitCode).toBe(0);
    expect(byId.json().items).toHaveLength(3);
    const byText = await limbeck('recommend', student, '--text', 'Alien. 1979. Horror', '--k', '2');
    expect(byText.exitCode).toBe(0);
    expect(byText.stdout.trim().split('\n')).toHaveLength(2);
  });

  test('an unknown history is an error of its own', async () => {
    const { exitCode, json } = await limbeck('recommend', student, '--history', 'nothing', '--json');
    expect(exitCode).toBe(3);
    expect(json()).toMatchObject({ error: { code: 'ERR_UNKNOWN_ITEMS' } });
  });

  test('inspect tells a checkpoint, a student and a safetensors file apart', async () => {
    expect((await limbeck('inspect', join(fixtures, 'gpt2'), '--json')).json()).toMatchObject({
      kind: 'gpt2 checkpoint',
      parameters: 92_736,
    });
    expect((await limbeck('inspect', student, '--json')).json()).toMatchObject({ kind: 'student', numItems: 36 });
    const file = (await limbeck('inspect', join(student, 'item_features.safetensors'), '--json')).json();
    expect(file).toMatchObject({ kind: 'safetensors file', tensors: [{ name: 'item_features', shape: [36, 8] }] });
  });

  test.each([
    ['an unknown command', ['frobnicate'], 2],
    ['a k that is not a number', ['recommend', student, '--history', 'x', '--k', 'ten'], 2],
    ['a directory that is not there', ['inspect', join(fixtures, 'nothing')], 3],
    ['a config that is not there', ['distill', join(fixtures, 'nothing.yaml')], 3],
    ['a directory of something else', ['inspect', fixtures], 3],
  ])('%s ends with its exit code and one line on stderr', async (_, argv, code) => {
    const { exitCode, stdout, stderr } = await limbeck(...argv);
    expect(exitCode).toBe(code);
    expect(stdout).toBe('');
    expect(stderr.trim().split('\n').length).toBeLessThanOrEqual(2);
    expect(stderr).toMatch(/^error: /);
  });

  test('a misspelled key of a config names the nearest one', async () => {
    const config = join(folder, 'config.yaml');
    const columns = '{ user: u, item: i }';
    writeFileSync(
      config,
      `output: ${folder}/out\nsedes: [1]\ndata: { interactions: { path: a.csv, columns: ${columns} } }\n`,
    );
    const { exitCode, stderr } = await limbeck('distill', config);
    expect(exitCode).toBe(2);
    expect(stderr).toContain('"sedes"');
    expect(stderr).toContain('"seeds"');
    expect(stderr).toContain('ERR_UNKNOWN_OPTION');
  });
});

const root = join(import.meta.dirname, '../..');
const program = join(root, 'dist/cli/main.js');
const gpt2 = join(fixtures, 'gpt2');
const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));

interface Result {
  readonly exitCode: number;
  readonly stdout: string;
  readonly stderr: string;
}

function spawned(args: readonly string[], file = program): Promise<Result> {
  return new Promise((resolve) => {
    const child = execFile(process.execPath, [file, ...args], (_, stdout, stderr) => {
      resolve({ exitCode: child.exitCode ?? -1, stdout, stderr });
    });
  });
}

/** Resolves when the child has written `text` to stderr. */
async function written(child: ChildProcess, text: string): Promise<void> {
  let seen = '';
  for await (const chunk of child.stderr ?? []) {
    seen += String(chunk);
    if (seen.includes(text)) return;
  }
  throw new Error(`The command ended without writing '${text}': ${seen}`);
}

describe('limbeck as a program', () => {
  test('prints its version', async () => {
    expect(await spawned(['--version'])).toEqual({ exitCode: 0, stdout: `${version}\n`, stderr: '' });
  });

  test('runs through the link that npm makes', async () => {
    const link = join(folder, 'limbeck');
    symlinkSync(program, link);
    expect((await spawned(['--version'], link)).stdout).toBe(`${version}\n`);
  });

  test('diagnoses this machine as JSON', async () => {
    const { exitCode, stdout } = await spawned(['doctor', '--json']);
    expect(exitCode).toBe(0);
    expect(stdout.trimEnd().split('\n')).toHaveLength(1);
    expect(JSON.parse(stdout)).toMatchObject({ version, node: process.version, addonError: null });
  });

  test('inspects a checkpoint as JSON', async () => {
    const { exitCode, stdout } = await spawned(['inspect', gpt2, '--json']);
    expect(exitCode).toBe(0);
    // 3 layers of 48: 131 tokens, 32 positions, 28,272 parameters a layer, and the last norm.
    expect(JSON.parse(stdout)).toMatchObject({ family: 'gpt2', parameters: (131 + 32) * 48 + 3 * 28_272 + 96 });
  });

  test('ends with 2 for an unknown command', async () => {
    const { exitCode, stdout, stderr } = await spawned(['distil']);
    expect({ exitCode, stdout }).toEqual({ exitCode: 2, stdout: '' });
    expect(stderr).toContain('Did you mean distill?');
  });

  test('ends with 3 for a missing file', async () => {
    const { exitCode, stderr } = await spawned(['inspect', join(folder, 'none.safetensors')]);
    expect(exitCode).toBe(3);
    expect(stderr).toContain('ERR_FILE_NOT_FOUND');
  });

  test('ends with 2 for a config with a misspelled key, and names the nearest', async () => {
    const config = join(folder, 'misspelled.yaml');
    writeFileSync(config, 'output: out\nevalution: { ks: [10] }\ndata: {}\n');
    const { exitCode, stdout } = await spawned(['distill', config, '--json']);
    expect(exitCode).toBe(2);
    expect(JSON.parse(stdout).error).toEqual({
      code: 'ERR_UNKNOWN_OPTION',
      message: expect.stringContaining('Did you mean "evaluation"?'),
    });
  });

  test('does not fail when its reader leaves early', async () => {
    const child = spawn(process.execPath, [program, 'inspect', join(gpt2, 'model.safetensors')]);
    child.stdout.destroy();
    const errors = child.stderr.toArray();
    const [exitCode] = await once(child, 'close');
    expect({ exitCode, errors: await errors }).toEqual({ exitCode: 0, errors: [] });
  });
});

describe('limbeck distill, stopped with Ctrl-C', () => {
  const config = join(root, 'examples/movietweetings/distill.yaml');
  const start = (name: string) => {
    const args = ['distill', config, '--output', join(folder, name), '--threads', '1', '--json'];
    return spawn(process.execPath, [program, ...args]);
  };

  test('ends with 130 and says so, and the run can go on', async () => {
    const child = start('stopped');
    const stdout = child.stdout.toArray();
    await written(child, 'pretrain');
    child.kill('SIGINT');
    // npm passes on what the terminal has sent already.
    child.kill('SIGINT');
    const [exitCode] = await once(child, 'close');
    expect(exitCode).toBe(130);
    expect(JSON.parse((await stdout).join('')).error).toMatchObject({
      code: 'ERR_ABORTED',
      message: expect.stringContaining('The same command goes on'),
    });
    const inspected = await spawned(['inspect', join(folder, 'stopped'), '--json']);
    expect(JSON.parse(inspected.stdout)).toMatchObject({ isUnfinished: true });
  });
});

describe('limbeck generate', () => {
  const MANY = ['--max-new-tokens', '60000', '--min-new-tokens', '60000'];
  let model: string;
  beforeEach(async () => {
    const engine = loadBinding().createEngine({ threads: 1 });
    model = join(folder, 'model');
    const made = await generatingModel(engine, { family: 'gpt2', hiddenSize: 64, maxPositionEmbeddings: 65_536 });
    await made.save(model);
    engine.dispose();
  });
  const start = (...args: string[]) => spawn(process.execPath, [program, 'generate', model, ...args]);

  test('reads the prompt from stdin as from its arguments', async () => {
    const child = start('-', '--max-new-tokens', '20');
    const stdout = child.stdout.toArray();
    child.stdin.end('the cat\n');
    const [exitCode] = await once(child, 'close');
    const asArguments = await spawned(['generate', model, 'the', 'cat', '--max-new-tokens', '20']);
    expect(asArguments).toEqual({ exitCode: 0, stdout: Buffer.concat(await stdout).toString(), stderr: '' });
    expect(exitCode).toBe(0);
    expect(asArguments.stdout.length).toBeGreaterThan(10);
  });

  test('writes while the text grows, and ends with 130 on Ctrl-C, at a line of its own', async () => {
    const child = start('the cat', ...MANY);
    const stderr = child.stderr.toArray();
    let text = '';
    child.stdout.on('data', (piece) => {
      if (text === '') child.kill('SIGINT');
      text += String(piece);
    });
    const [exitCode, signal] = await once(child, 'close');
    expect({ exitCode, signal }).toEqual({ exitCode: 130, signal: null });
    expect(text).toMatch(/.\n$/s);
    expect(Buffer.concat(await stderr).toString()).toMatch(/^error: .* \(ERR_ABORTED\)\n$/);
  });

  test('ends with 130 on Ctrl-C while it waits for the prompt', async () => {
    const child = start('-');
    const stdout = child.stdout.toArray();
    // More than a pipe holds, so that all is written only when the command reads.
    await new Promise((resolve) => child.stdin.write('the cat '.repeat(2 ** 18), resolve));
    child.kill('SIGINT');
    const [exitCode, signal] = await once(child, 'close');
    expect({ exitCode, signal, stdout: await stdout }).toEqual({ exitCode: 130, signal: null, stdout: [] });
  });

  test('ends when its reader leaves', async () => {
    const child = start('the cat', ...MANY);
    const stderr = child.stderr.toArray();
    await once(child.stdout, 'data');
    child.stdout.destroy();
    const [exitCode] = await once(child, 'close');
    expect({ exitCode, errors: await stderr }).toEqual({ exitCode: 0, errors: [] });
  });
});

describe('limbeck distill, to its end', () => {
  const metrics = ['recallAt10', 'ndcgAt10', 'f1At10', 'mrr', 'parameters', 'p50LatencyMs', 'intervals'];

  test('prints JSON alone on stdout, and leaves what the other commands read', async () => {
    const config = join(folder, 'config.json');
    writeFileSync(config, JSON.stringify(tinyOptions(folder, 'never written')));
    const output = join(folder, 'out');
    const distilled = await limbeck('distill', config, '--output', output, '--seeds', '4', '--threads', '1', '--json');
    expect(distilled.exitCode).toBe(0);
    expect(distilled.stdout.trimEnd().split('\n')).toHaveLength(1);
    const summary = distilled.json();
    expect(summary).toMatchObject({
      comparison: expect.any(Array),
      lm: { testLossByEpoch: [expect.any(Number), expect.any(Number)] },
      compressionRatio: expect.any(Number),
      reportPath: join(output, 'report.html'),
      directory: output,
      seconds: expect.any(Number),
    });
    expect(summary.examples).toHaveLength(3);
    const names = summary.rows.map(({ name }: { name: string }) => name);
    expect(names).toEqual(['popularity', 'student without distillation', 'teacher', 'distilled student']);
    for (const row of summary.rows) for (const metric of metrics) expect(row).toHaveProperty(metric);
    expect(summary.rows.at(-1).seeds).toEqual([4]);
    // Every step was shown, and none as a bar that is redrawn.
    for (const step of ['1 prepare', '2 teacher', '6 fine-tune', '8 evaluate'])
      expect(distilled.stderr).toContain(step);
    expect(distilled.stderr).not.toContain('\r');

    const inspected = (await limbeck('inspect', output, '--json')).json();
    expect(inspected).toMatchObject({ title: 'Tiny', isUnfinished: false });
    expect(inspected.rows).toEqual(summary.rows);
    const inspectedStudent = (await limbeck('inspect', join(output, 'student'), '--json')).json();
    expect(inspectedStudent.parameters).toBe(summary.rows.at(-1).parameters);
    const evaluated = (await limbeck('evaluate', output, '--json')).json();
    expect(evaluated.rows.at(-1).ndcgAt10).toBeCloseTo(summary.rows.at(-1).ndcgAt10, 6);
    const recommended = await limbeck('recommend', output, '--history', 'i1', '--text', 'Film number 2', '--json');
    expect(recommended.json().items).toHaveLength(10);
  });

  test('prints the table, three users and the report to people', async () => {
    const config = join(folder, 'config.json');
    writeFileSync(config, JSON.stringify(tinyOptions(folder)));
    const { exitCode, stdout, stderr } = await limbeck('distill', config, '--quiet');
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' });
    expect(stdout).toMatch(/^distilled student +\d\.\d{4} ± /m);
    expect(stdout.match(/^User u\d+ chose$/gm)).toHaveLength(3);
    expect(stdout).toMatch(/^ {4}· Film number \d+/m);
    expect(stdout).toMatch(/^ {4}1\. Film number \d+/m);
    expect(stdout).toContain(`Report: ${join(folder, 'out/report.html')}\n`);
  });
});
