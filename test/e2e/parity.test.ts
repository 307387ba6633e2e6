import { spawnSync } from 'node:child_process';
import { cpSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { readSafetensors, type WritableTensor, writeSafetensors } from '../../src/formats/safetensors.js';

const root = join(import.meta.dirname, '../..');
const fixtures = join(root, 'test/fixtures');
let folder: string;

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'limbeck-parity-'));
});
afterAll(() => {
  rmSync(folder, { recursive: true });
});

function parity(directories: readonly string[], isa?: string) {
  const { status, stdout, stderr } = spawnSync(process.execPath, ['scripts/parity.mjs', ...directories], {
    cwd: root,
    encoding: 'utf8',
    env: { ...process.env, ...(isa === undefined ? {} : { LIMBECK_FORCE_ISA: isa }) },
  });
  return { status, stderr, output: stdout === '' ? undefined : JSON.parse(stdout) };
}

describe('parity with the reference framework', () => {
  const names = ['gpt2', 'bert', 'llama', 'distil'];

  test.each([undefined, 'portable'])('holds for every golden case (instruction set: %s)', (isa) => {
    const { status, output } = parity(
      names.map((name) => join(fixtures, name)),
      isa,
    );
    expect(status).toBe(0);
    expect(output.passed).toBe(true);
    expect(output.cases.map((one: { groups: object }) => Object.keys(one.groups).sort())).toEqual([
      ...Array.from({ length: 3 }, () => ['adamw', 'attentions', 'gradients', 'hiddenStates', 'logits', 'loss']),
      ['gradients', 'logits', 'lossTerms'],
    ]);
    for (const { groups, tolerances } of output.cases) {
      for (const [group, error] of Object.entries(groups)) {
        expect(error, group).toBeLessThanOrEqual(tolerances[group]);
        expect(error, group).toBeGreaterThan(0); // an exact match of float32 with float64 would mean that nothing ran
      }
    }
  });

  test('fails and names the group when one weight differs', async () => {
    const changed = join(folder, 'changed');
    cpSync(join(fixtures, 'gpt2'), changed, { recursive: true });
    const path = join(changed, 'model.safetensors');
    const { tensors } = await readSafetensors(path);
    const weights = tensors.get('transformer.h.1.mlp.c_fc.weight')?.data as Float32Array;
    weights[7] = (weights[7] ?? 0) + 0.05;
    await writeSafetensors(path, tensors as unknown as Map<string, WritableTensor>);
    const { status, output } = parity([changed]);
    expect(status).toBe(1);
    const { groups, tolerances } = output.cases[0];
    expect(groups.logits).toBeGreaterThan(tolerances.logits);
  });

  test('refuses a folder of another layout', () => {
    const { status, stderr, output } = parity([join(fixtures, 'student')]);
    expect(status).toBe(2);
    expect(stderr).toContain('expected.safetensors');
    expect(output).toBeUndefined();
  });
});
