import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { evaluationSettings, loadEvaluation, saveEvaluation } from '../../../src/engine/evaluation-file.js';

const folder = mkdtempSync(join(tmpdir(), 'limbeck-evaluation-'));
const path = join(folder, 'evaluation.safetensors');
afterAll(() => {
  rmSync(folder, { recursive: true });
});

/** Two users over five items. */
const cases = {
  sequences: Int32Array.of(0, 1, 2, 3),
  sequenceOffsets: Int32Array.of(0, 1, 4),
  users: Int32Array.of(7, 9),
  targets: Int32Array.of(4, 0),
  excludeIds: Int32Array.of(0, 1, 2),
  excludeOffsets: Int32Array.of(0, 0, 3),
};
const trainCounts = Int32Array.of(1, 2, 3, 0, 5);

test('gives back what was saved', async () => {
  await saveEvaluation(path, { test: cases, trainCounts });
  expect(await loadEvaluation(path)).toEqual({ test: cases, trainCounts });
});

test.each([
  ['an offset beyond the end', { sequenceOffsets: Int32Array.of(0, 2 ** 31 - 1, 4) }],
  ['an empty history', { sequenceOffsets: Int32Array.of(0, 4, 4) }],
  ['offsets that fall', { excludeOffsets: Int32Array.of(0, 4, 3) }],
  ['fewer offsets than cases', { excludeOffsets: Int32Array.of(0, 3) }],
  ['no offsets', { sequenceOffsets: new Int32Array() }],
  ['a target outside the catalogue', { targets: Int32Array.of(4, 5) }],
  ['a history outside the catalogue', { sequences: Int32Array.of(0, -1, 2, 3) }],
  ['an excluded item outside the catalogue', { excludeIds: Int32Array.of(0, 1, 2 ** 30) }],
  ['another number of users', { users: Int32Array.of(7) }],
])('refuses %s', async (_, change) => {
  await saveEvaluation(path, { test: { ...cases, ...change }, trainCounts });
  await expect(loadEvaluation(path)).rejects.toMatchObject({
    code: 'ERR_CHECKPOINT_MISMATCH',
    message: expect.stringContaining(path),
  });
});

test('the cut-offs and the seed are those of the run, or the defaults where there are no settings', async () => {
  const settings = join(folder, 'distill.json');
  expect(await evaluationSettings(settings)).toEqual({ ks: [1, 5, 10, 20], seed: 0 });
  writeFileSync(settings, JSON.stringify({ title: 'x', seeds: [4, 2], evaluation: { ks: [1, 3], examples: 10 } }));
  expect(await evaluationSettings(settings)).toEqual({ ks: [1, 3], seed: 4 });
  writeFileSync(settings, JSON.stringify({ seeds: [4], evaluation: { ks: [0] } }));
  await expect(evaluationSettings(settings)).rejects.toMatchObject({
    code: 'ERR_FILE_FORMAT',
    message: expect.stringContaining('evaluation.ks'),
  });
});
