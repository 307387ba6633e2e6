import { cpSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { GoldenCase, LayoutError } from '../../scripts/parity/golden-case.mjs';
import { RelativeErrors } from '../../scripts/parity/relative-errors.mjs';
import {
  readSafetensors,
  type SafetensorsTensor,
  type WritableTensor,
  writeSafetensors,
} from '../../src/formats/safetensors.js';
import { runProgram } from '../support/run-program.js';

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
  const { status, stdout, stderr } = runProgram(process.execPath, ['scripts/parity.mjs', ...directories], {
    cwd: root,
    env: { ...process.env, ...(isa === undefined ? {} : { LIMBECK_FORCE_ISA: isa }) },
  });
  return { status, stderr, output: stdout === '' ? undefined : JSON.parse(stdout) };
}

/** A copy of a golden case. */
function copyCase(name: string, copyName: string): string {
  const copy = join(folder, copyName);
  cpSync(join(fixtures, name), copy, { recursive: true });
  return copy;
}

async function changeTensor(path: string, name: string, change: (values: Float32Array) => void): Promise<void> {
  const { tensors } = await readSafetensors(path);
  const values = tensors.get(name)?.data;
  if (!(values instanceof Float32Array)) throw new Error(`${path} has no float32 tensor '${name}'`);
  change(values);
  await writeSafetensors(path, tensors as unknown as Map<string, WritableTensor>);
}

function addTo(index: number, amount: number) {
  return (values: Float32Array) => {
    values[index] = Number(values[index]) + amount;
  };
}

/** Groups out of tolerance. */
function failedGroups({ groups, tolerances }: { groups: object; tolerances: Record<string, number> }): string[] {
  return Object.entries(groups)
    .filter(([group, error]) => error === 'NaN' || error > Number(tolerances[group]))
    .map(([group]) => group);
}

describe('parity with the reference framework', () => {
  const names = ['gpt2', 'bert', 'llama', 'distil'];

  test.each([undefined, 'portable'])('holds for every golden case (instruction set: %s)', (isa) => {
    const directories = names.map((name) => join(fixtures, name));
    const { status, stderr, output } = parity(directories, isa);
    expect(status, stderr).toBe(0);
    expect(output.passed).toBe(true);
    expect(output.cases.map(({ directory }: { directory: string }) => directory)).toEqual(directories);
    expect(output.cases.map((one: { groups: object }) => Object.keys(one.groups).sort())).toEqual([
      ...Array.from({ length: 3 }, () => ['adamw', 'attentions', 'gradients', 'hiddenStates', 'logits', 'loss']),
      ['gradients', 'logits', 'lossTerms'],
    ]);
    for (const { passed, groups, tolerances } of output.cases) {
      expect(passed).toBe(true);
      for (const [group, error] of Object.entries(groups)) {
        expect(tolerances[group], group).toBe(['gradients', 'adamw'].includes(group) ? 1e-4 : 1e-5);
        expect(error, group).toBeLessThanOrEqual(tolerances[group]);
        expect(error, group).toBeGreaterThan(0); // an exact match of float32 with float64 would mean that nothing ran
      }
    }
  });

  test('fails and names the groups when one weight of a model differs', async () => {
    const changed = copyCase('gpt2', 'changed-gpt2');
    await changeTensor(join(changed, 'model.safetensors'), 'transformer.h.1.mlp.c_fc.weight', addTo(7, 0.05));
    const { status, stderr, output } = parity([join(fixtures, 'bert'), changed]);
    expect(status, stderr).toBe(1);
    expect(output.passed).toBe(false);
    expect(output.cases.map(({ passed }: { passed: boolean }) => passed)).toEqual([true, false]);
    expect(failedGroups(output.cases[1])).toEqual(expect.arrayContaining(['hiddenStates', 'logits', 'gradients']));
  });

  test('fails and names the groups when one weight of a student differs', async () => {
    const changed = copyCase('distil', 'changed-distil');
    const weights = join(changed, 'student/model.safetensors');
    await changeTensor(weights, 'transformer.h.1.mlp.c_fc.weight', addTo(7, 0.05));
    const { status, stderr, output } = parity([changed]);
    expect(status, stderr).toBe(1);
    expect(failedGroups(output.cases[0]).sort()).toEqual(['gradients', 'logits', 'lossTerms']);
  });

  test.each([
    ['hidden_states.1', 'hiddenStates'],
    ['attentions.1', 'attentions'],
    ['logits', 'logits'],
    ['loss', 'loss'],
    ['grad.model.layers.1.self_attn.k_proj.weight', 'gradients'],
    ['adamw.model.norm.weight', 'adamw'],
    ['adamw_losses', 'adamw'],
  ])('fails in one group alone when the reference has another %s', async (name, group) => {
    const changed = copyCase('llama', `changed-${name}`);
    await changeTensor(join(changed, 'expected.safetensors'), name, addTo(0, 0.5));
    const { status, stderr, output } = parity([changed]);
    expect(status, stderr).toBe(1);
    expect(failedGroups(output.cases[0])).toEqual([group]);
  });

  test("prints 'NaN' and fails when the model overflows", async () => {
    const changed = copyCase('gpt2', 'overflow');
    const weights = join(changed, 'model.safetensors');
    await changeTensor(weights, 'transformer.h.1.mlp.c_fc.weight', (values) => values.fill(1e38));
    const { status, stderr, output } = parity([changed]);
    expect(status, stderr).toBe(1);
    expect(output.cases[0].groups).toMatchObject({ logits: 'NaN', loss: 'NaN', gradients: 'NaN', adamw: 'NaN' });
  });

  const otherLayouts: [string, () => string, string][] = [
    ['has no expected.safetensors', () => join(fixtures, 'student'), 'ERR_FILE_NOT_FOUND'],
    ['does not exist', () => join(folder, 'nowhere'), 'ERR_FILE_NOT_FOUND'],
    ['has no weights', () => withoutWeights(), 'ERR_FILE_NOT_FOUND'],
    ["holds another case's reference", () => withReferenceOf('bert'), 'ERR_SHAPE_MISMATCH'],
    ['has broken JSON as distil.json', () => withSettings('{'), 'ERR_FILE_FORMAT'],
    ['has null as distil.json', () => withSettings('null'), 'ERR_FILE_FORMAT'],
    ['has no weights in distil.json', () => withSettings('{"layer_map": [], "temperature": 2}'), 'ERR_FILE_FORMAT'],
    [
      'has half a pair in distil.json',
      () =>
        withSettings(
          '{"layer_map": [{"student": 1}], "temperature": 2, "weights": {"ce": 1, "kd": 1, "hidden": 1, "attention": 1}}',
        ),
      'ERR_FILE_FORMAT',
    ],
  ];
  function withoutWeights() {
    const copy = copyCase('gpt2', 'without-weights');
    rmSync(join(copy, 'model.safetensors'));
    return copy;
  }
  function withReferenceOf(name: string) {
    const copy = copyCase('gpt2', 'mixed');
    cpSync(join(fixtures, name, 'expected.safetensors'), join(copy, 'expected.safetensors'));
    return copy;
  }
  function withSettings(json: string) {
    const copy = copyCase('distil', 'settings');
    writeFileSync(join(copy, 'distil.json'), json);
    return copy;
  }

  test.each(otherLayouts)('refuses a folder that %s', (_, prepare, code) => {
    const directory = prepare();
    const { status, stderr, output } = parity([directory]);
    expect(status).toBe(2);
    expect(stderr).toContain(`${directory}: `);
    expect(stderr).toContain(`(${code})`);
    expect(stderr).not.toContain('    at '); // a message, not a stack
    expect(output).toBeUndefined();
  });

  test('asks for a folder', () => {
    const { status, stderr } = parity([]);
    expect(status).toBe(2);
    expect(stderr).toContain('Usage: ');
  });
});

describe('RelativeErrors', () => {
  test('keeps the worst error of a group', () => {
    const errors = new RelativeErrors();
    errors.compare('logits', [3, 4], [3, 4]);
    errors.compare('logits', [3, 4.5], [3, 4]); // 0.5 / 5
    errors.compare('logits', [3, 4.1], [3, 4]);
    expect(errors.report()).toEqual({ groups: { logits: 0.1 }, tolerances: { logits: 1e-5 }, passed: false });
  });

  test.each([
    [[Number.NaN], [1]],
    [[1], [Number.NaN]],
    [[Number.POSITIVE_INFINITY], [1]],
    [[Number.POSITIVE_INFINITY], [Number.POSITIVE_INFINITY]],
  ])('counts %j against %j as the worst, whatever comes after', (out, reference) => {
    const errors = new RelativeErrors();
    errors.compare('loss', out, reference);
    errors.compare('loss', [1], [1]);
    expect(errors.report()).toMatchObject({ groups: { loss: 'NaN' }, passed: false });
  });

  test('measures a reference of rounding noise against its group, and no larger one', () => {
    const noise = new RelativeErrors();
    noise.compare('gradients', [0], [1e-17], 10);
    expect(noise.report().passed).toBe(true);
    noise.compare('gradients', [0.01], [1e-17], 10);
    expect(noise.report()).toMatchObject({ groups: { gradients: expect.closeTo(1e-3, 9) }, passed: false });

    const small = new RelativeErrors();
    small.compare('gradients', [0], [1e-5], 10);
    expect(small.report()).toMatchObject({ groups: { gradients: 1 }, passed: false });
  });

  test('takes tensors of any size', () => {
    const errors = new RelativeErrors();
    errors.compare('gradients', new Float32Array(1_000_000).fill(1), new Float32Array(1_000_000).fill(2));
    expect(errors.report().groups['gradients']).toBeCloseTo(0.5, 12);
  });

  test('refuses tensors of different lengths', () => {
    expect(() => new RelativeErrors().compare('loss', [1, 2], [1])).toThrow(LayoutError);
  });
});

describe('GoldenCase', () => {
  const integers = (shape: number[], values: number[]) => ({
    dtype: 'I64' as const,
    shape,
    data: BigInt64Array.from(values, BigInt),
  });
  const floats = (shape: number[]) => ({
    dtype: 'F32' as const,
    shape,
    data: Float32Array.from({ length: shape.reduce((a, b) => a * b) }, (_, i) => i),
  });
  const padded = new Map([
    ['attention_mask', integers([2, 3], [1, 1, 0, 1, 1, 1])],
    ['input_ids', integers([2, 3], [5, 6, 0, 7, 8, 9])],
    ['labels', integers([2, 3], [6, -100, -100, 8, 9, -100])],
  ]);

  test('packs unmasked tokens', () => {
    const golden = new GoldenCase(padded);
    expect(golden.batch).toEqual({
      inputIds: Int32Array.of(5, 6, 7, 8, 9),
      sequenceOffsets: Int32Array.of(0, 2, 5),
    });
    expect(golden.labels).toEqual(Int32Array.of(6, -100, 8, 9, -100));
  });

  test('drops the rows of padding', () => {
    const golden = new GoldenCase(new Map<string, SafetensorsTensor>(padded).set('logits', floats([2, 3, 2])));
    expect(golden.rows('logits')).toEqual(Float32Array.of(0, 1, 2, 3, 6, 7, 8, 9, 10, 11));
  });

  test('cuts the corner of each head out of an attention map', () => {
    const golden = new GoldenCase(new Map<string, SafetensorsTensor>(padded).set('attentions.0', floats([2, 2, 3, 3])));
    const first = [0, 1, 3, 4, 9, 10, 12, 13]; // two heads of 2 × 2
    const second = Array.from({ length: 18 }, (_, i) => 18 + i);
    expect(golden.maps('attentions.0')).toEqual(Float32Array.of(...first, ...second));
  });

  test.each([[[0, 1, 1]], [[1, 0, 1]], [[0, 0, 0]]])('refuses the mask %j', (mask) => {
    const tensors = new Map([['attention_mask', integers([1, 3], mask)]]);
    expect(() => new GoldenCase(tensors)).toThrow('attention_mask');
  });

  test('names a tensor that is missing', () => {
    expect(() => new GoldenCase(padded).rows('logits')).toThrow("'logits'");
  });
});
