import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { run } from '../../src/cli/main.js';

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
