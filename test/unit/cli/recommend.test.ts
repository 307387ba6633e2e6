import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { run } from '../../../src/cli/main.js';
import { createEngine } from '../../../src/engine.js';

const output = mkdtempSync(join(tmpdir(), 'limbeck-cli-'));
const NUM_ITEMS = 20;

beforeAll(async () => {
  const engine = await createEngine({ threads: 1 });
  const architecture = { hiddenSize: 16, numHiddenLayers: 1, numAttentionHeads: 2, maxHistory: 10, dropout: 0 };
  const items = Array.from({ length: NUM_ITEMS }, (_, i) => ({ id: `i${i}`, text: `title ${i}` }));
  const student = engine.createStudent(
    engine.createSequenceModel(architecture, { numItems: NUM_ITEMS, seed: 3 }),
    items,
  );
  await student.save(join(output, 'student'));
  student.dispose();
  engine.dispose();
});
afterAll(() => rmSync(output, { recursive: true, force: true }));

async function recommend(...args: string[]) {
  const stdout = new PassThrough();
  const exitCode = await run(['recommend', ...args, '--json'], { stdout, stderr: new PassThrough() });
  return { exitCode, answer: JSON.parse(String(stdout.read())) };
}

describe('limbeck recommend', () => {
  it('recommends from an output directory as from its student', async () => {
    const { exitCode, answer } = await recommend(output, '--history', 'i1', 'i2', '--k', '3');
    expect(exitCode).toBe(0);
    expect(answer.items).toHaveLength(3);
    expect(answer.items[0]).toEqual({
      id: expect.stringMatching(/^i\d+$/),
      text: answer.items[0].id.replace('i', 'title '),
      score: expect.any(Number),
    });
    expect((await recommend(join(output, 'student'), '--history', 'i1', 'i2', '--k', '3')).answer).toEqual(answer);
  });

  it('takes ids separated by commas as by spaces', async () => {
    const spaces = await recommend(output, '--history', 'i1', 'i2', 'i3');
    expect((await recommend(output, '--history', 'i1,i2', 'i3,')).answer).toEqual(spaces.answer);
    expect(spaces.answer.items).toHaveLength(10);
  });

  it('takes an id that has commas', async () => {
    const engine = await createEngine({ threads: 1 });
    const student = await engine.loadStudent(join(output, 'student'));
    const items = student.items.map((item, i) => (i === 3 ? { ...item, id: 'Crime, Drama' } : item));
    const architecture = { hiddenSize: 16, numHiddenLayers: 1, numAttentionHeads: 2, maxHistory: 10, dropout: 0 };
    const model = engine.createSequenceModel(architecture, { numItems: NUM_ITEMS, seed: 3 });
    const renamed = engine.createStudent(model, items);
    await renamed.save(join(output, 'commas'));
    engine.dispose();
    const commas = await recommend(join(output, 'commas'), '--history', 'i1,i2', 'Crime, Drama');
    const plain = await recommend(output, '--history', 'i1,i2', 'i3');
    expect(commas.answer).toEqual(plain.answer);
    const excluded = await recommend(
      join(output, 'commas'),
      '--history',
      'i1',
      '--exclude',
      'Crime, Drama',
      '--k',
      '18',
    );
    expect(excluded.answer.items.map(({ id }: { id: string }) => id)).not.toContain('Crime, Drama');
  });

  it('leaves out the history and what is excluded', async () => {
    const { answer } = await recommend(output, '--history', 'i1,i2', '--exclude', 'i3', 'i4', '--k', String(NUM_ITEMS));
    const ids = answer.items.map(({ id }: { id: string }) => id);
    expect(ids).toHaveLength(NUM_ITEMS - 4);
    for (const id of ['i1', 'i2', 'i3', 'i4']) expect(ids).not.toContain(id);
  });

  it('names the ids that it does not know', async () => {
    const { answer } = await recommend(output, '--history', 'i1', 'nobody');
    expect(answer.unknownItems).toEqual(['nobody']);
  });

  it.each([
    ['no history', 2, 'ERR_INVALID_ARGUMENT', []],
    ['an empty history', 2, 'ERR_INVALID_ARGUMENT', ['--history', ',']],
    ['k = 0', 2, 'ERR_INVALID_ARGUMENT', ['--history', 'i1', '--k', '0']],
    ['k that is no number', 2, 'ERR_INVALID_ARGUMENT', ['--history', 'i1', '--k', 'ten']],
    ['a text, to a student that reads none', 2, 'ERR_INVALID_ARGUMENT', ['--text', 'a film about space']],
    ['unknown ids alone', 3, 'ERR_UNKNOWN_ITEMS', ['--history', 'nobody']],
  ])('refuses %s', async (_, exitCode, code, args) => {
    expect(await recommend(output, ...args)).toMatchObject({ exitCode, answer: { error: { code } } });
  });

  it('says that there is no student', async () => {
    const { exitCode, answer } = await recommend(join(output, 'none'), '--history', 'i1');
    expect(exitCode).toBe(3);
    expect(answer.error.code).toBe('ERR_FILE_NOT_FOUND');
  });
});
