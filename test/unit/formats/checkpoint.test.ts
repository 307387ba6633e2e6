import { copyFileSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import type { NativeEngine, NativeTransformer, TransformerConfig } from '../../../src/binding.js';
import { loadCheckpoint, saveCheckpoint } from '../../../src/formats/checkpoint.js';
import { readCheckpointTensors } from '../../../src/formats/checkpoint-files.js';
import { writeDirectoryAtomic } from '../../../src/formats/files.js';
import { readSafetensors, type WritableTensor, writeSafetensors } from '../../../src/formats/safetensors.js';
import { nativeParameterShapes } from '../../../src/formats/tensor-names.js';
import { temporaryDirectory } from './temporary-directory.js';

const fixtures = join(import.meta.dirname, '../../fixtures');
const root = temporaryDirectory();
let count = 0;

function freshDirectory(): string {
  const directory = join(root, `case-${count++}`);
  mkdirSync(directory);
  return directory;
}

/** Holds parameters as the native transformer does. */
class FakeTransformer {
  readonly values = new Map<string, Float32Array>();
  isDisposed = false;
  private readonly shapes: Map<string, number[]>;

  constructor(config: TransformerConfig, hidden?: string) {
    this.shapes = nativeParameterShapes(config);
    if (hidden !== undefined) this.shapes.delete(hidden);
  }

  parameters() {
    return Array.from(this.shapes, ([name, shape]) => ({ name, shape }));
  }

  setParameter(name: string, values: Float32Array) {
    this.values.set(name, Float32Array.from(values));
  }

  getParameter(name: string) {
    return this.values.get(name);
  }

  dispose() {
    this.isDisposed = true;
  }
}

function fakeEngine(hidden?: string) {
  const models: FakeTransformer[] = [];
  const createTransformer = (config: TransformerConfig) => {
    const model = new FakeTransformer(config, hidden);
    models.push(model);
    return model as unknown as NativeTransformer;
  };
  return { engine: { createTransformer } as unknown as NativeEngine, models };
}

/** A copy of a fixture whose tensors were changed. */
async function changedFixture(change: (tensors: Map<string, WritableTensor>) => void): Promise<string> {
  const directory = freshDirectory();
  copyFileSync(join(fixtures, 'gpt2/config.json'), join(directory, 'config.json'));
  const { tensors } = await readSafetensors(join(fixtures, 'gpt2/model.safetensors'));
  const writable = tensors as Map<string, WritableTensor>;
  change(writable);
  await writeSafetensors(join(directory, 'model.safetensors'), writable);
  return directory;
}

describe.each(['gpt2', 'bert', 'llama'])('a %s checkpoint', (name) => {
  test('is saved as it was loaded, byte for byte', async () => {
    const checkpoint = await loadCheckpoint(fakeEngine().engine, join(fixtures, name));
    const path = join(freshDirectory(), 'saved');
    await writeDirectoryAtomic(path, (temporaryPath) => saveCheckpoint(temporaryPath, checkpoint));
    expect(readdirSync(path).sort()).toEqual(['config.json', 'model.safetensors']);
    const original = readFileSync(join(fixtures, name, 'model.safetensors'));
    expect(readFileSync(join(path, 'model.safetensors')).equals(original)).toBe(true);

    const again = await loadCheckpoint(fakeEngine().engine, path);
    expect(again.config).toEqual(checkpoint.config);
    expect((again.model as unknown as FakeTransformer).values).toEqual(
      (checkpoint.model as unknown as FakeTransformer).values,
    );
  });
});

describe('loadCheckpoint makes no model when', () => {
  test.each<[string, string, (tensors: Map<string, WritableTensor>) => void]>([
    ['a tensor is missing', 'ERR_CHECKPOINT_MISMATCH', (tensors) => tensors.delete('transformer.wte.weight')],
    [
      'a tensor is extra',
      'ERR_CHECKPOINT_MISMATCH',
      (tensors) => tensors.set('transformer.h.9.ln_1.weight', { shape: [48], data: new Float32Array(48) }),
    ],
    [
      'a shape is wrong',
      'ERR_CHECKPOINT_MISMATCH',
      (tensors) => tensors.set('transformer.ln_f.bias', { shape: [47], data: new Float32Array(47) }),
    ],
    [
      'a dtype is wrong',
      'ERR_CHECKPOINT_MISMATCH',
      (tensors) => tensors.set('transformer.ln_f.bias', { shape: [48], data: new Int32Array(48) }),
    ],
    [
      'a weight is NaN',
      'ERR_NOT_FINITE',
      (tensors) => tensors.set('transformer.ln_f.bias', { shape: [48], data: new Float32Array(48).fill(Number.NaN) }),
    ],
  ])('%s', async (_, code, change) => {
    const { engine, models } = fakeEngine();
    await expect(loadCheckpoint(engine, await changedFixture(change))).rejects.toMatchObject({ code });
    expect(models).toEqual([]);
  });

  test('the file is truncated', async () => {
    const { engine, models } = fakeEngine();
    const directory = await changedFixture(() => undefined);
    const path = join(directory, 'model.safetensors');
    writeFileSync(path, readFileSync(path).subarray(0, -1));
    await expect(loadCheckpoint(engine, directory)).rejects.toMatchObject({ code: 'ERR_SAFETENSORS' });
    expect(models).toEqual([]);
  });

  test('the config asks for more than the file has', async () => {
    const { engine, models } = fakeEngine();
    const directory = await changedFixture(() => undefined);
    const config = JSON.parse(readFileSync(join(directory, 'config.json'), 'utf8'));
    writeFileSync(join(directory, 'config.json'), JSON.stringify({ ...config, vocab_size: 16_000_000 }));
    await expect(loadCheckpoint(engine, directory)).rejects.toMatchObject({ code: 'ERR_CHECKPOINT_MISMATCH' });
    expect(models).toEqual([]);
  });
});

test('loadCheckpoint disposes of a model with other parameters', async () => {
  const { engine, models } = fakeEngine('final_norm.bias');
  await expect(loadCheckpoint(engine, join(fixtures, 'gpt2'))).rejects.toMatchObject({ code: 'ERR_INTERNAL' });
  expect(models.map(({ isDisposed }) => isDisposed)).toEqual([true]);
});

describe('readCheckpointTensors', () => {
  const scalar = { shape: [1], data: Float32Array.of(1) };
  const first = 'model-00001-of-00002.safetensors';
  const second = 'model-00002-of-00002.safetensors';

  async function sharded(weightMap: unknown): Promise<string> {
    const directory = freshDirectory();
    await writeSafetensors(join(directory, first), [['a', scalar]], { format: 'pt' });
    await writeSafetensors(join(directory, second), [
      ['b', scalar],
      ['c', scalar],
    ]);
    writeFileSync(join(directory, 'model.safetensors.index.json'), JSON.stringify({ weight_map: weightMap }));
    return directory;
  }

  test('joins the shards of an index', async () => {
    const { tensors } = await readCheckpointTensors(await sharded({ a: first, b: second, c: second }));
    expect([...tensors.keys()]).toEqual(['a', 'b', 'c']);
  });

  test.each<[string, string, unknown]>([
    ['no weight_map', 'ERR_FILE_FORMAT', undefined],
    ['a weight_map that is a list', 'ERR_FILE_FORMAT', [first]],
    ['a shard that is a number', 'ERR_FILE_FORMAT', { a: 1 }],
    ['a shard above the folder', 'ERR_FILE_FORMAT', { a: '../model.safetensors' }],
    ['an absolute shard', 'ERR_FILE_FORMAT', { a: '/etc/model.safetensors' }],
    ['a shard in a folder', 'ERR_FILE_FORMAT', { a: 'x/model.safetensors' }],
    ['a backslash', 'ERR_FILE_FORMAT', { a: '..\\model.safetensors' }],
    ['a NUL', 'ERR_FILE_FORMAT', { a: 'model\0.safetensors' }],
    ['a hidden shard', 'ERR_FILE_FORMAT', { a: '.model.safetensors' }],
    ['a pickled shard', 'ERR_FILE_FORMAT', { a: 'pytorch_model.bin' }],
    ['a shard that is not there', 'ERR_FILE_NOT_FOUND', { a: 'model-00003.safetensors' }],
    ['a tensor that its shard lacks', 'ERR_CHECKPOINT_MISMATCH', { a: first, b: first, c: second }],
    ['a tensor that the index lacks', 'ERR_CHECKPOINT_MISMATCH', { a: first, b: second }],
  ])('refuses %s', async (_, code, weightMap) => {
    await expect(readCheckpointTensors(await sharded(weightMap))).rejects.toMatchObject({ code });
  });

  test('follows a link inside a cache, and refuses one that leaves', async () => {
    const cache = join(freshDirectory(), 'models--owner--name');
    const snapshot = join(cache, 'snapshots', 'abc');
    mkdirSync(join(cache, 'blobs'), { recursive: true });
    mkdirSync(snapshot, { recursive: true });
    await writeSafetensors(join(cache, 'blobs', 'hash'), [['a', scalar]]);
    await writeSafetensors(join(root, 'outside.safetensors'), [['a', scalar]]);
    writeFileSync(join(snapshot, 'model.safetensors.index.json'), JSON.stringify({ weight_map: { a: first } }));
    symlinkSync('../../blobs/hash', join(snapshot, first));
    expect((await readCheckpointTensors(snapshot)).tensors.size).toBe(1);

    const directory = await sharded({ a: 'link.safetensors' });
    symlinkSync(join(root, 'outside.safetensors'), join(directory, 'link.safetensors'));
    await expect(readCheckpointTensors(directory)).rejects.toMatchObject({
      code: 'ERR_FILE_FORMAT',
      message: expect.stringContaining('outside.safetensors'),
    });
  });

  test('explains what is missing, and never opens a pickle', async () => {
    const directory = freshDirectory();
    await expect(readCheckpointTensors(directory)).rejects.toMatchObject({ code: 'ERR_FILE_NOT_FOUND' });
    writeFileSync(join(directory, 'pytorch_model.bin'), 'code');
    await expect(readCheckpointTensors(directory)).rejects.toMatchObject({
      code: 'ERR_FILE_NOT_FOUND',
      message: expect.stringContaining('pytorch_model.bin'),
    });
    await expect(readCheckpointTensors(join(directory, 'absent'))).rejects.toMatchObject({
      code: 'ERR_FILE_NOT_FOUND',
    });
  });
});
