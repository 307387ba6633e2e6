import { copyFileSync, mkdirSync, readdirSync, readFileSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import {
  loadBinding,
  type NativeEngine,
  type NativeTransformer,
  type StoredValues,
  type TransformerConfig,
} from '../../../src/binding.js';
import { loadCheckpoint, saveCheckpoint } from '../../../src/formats/checkpoint.js';
import { CheckpointTensors } from '../../../src/formats/checkpoint-files.js';
import { writeDirectoryAtomic } from '../../../src/formats/files.js';
import { readModelConfig } from '../../../src/formats/model-config.js';
import {
  asFloat32,
  readSafetensors,
  type SafetensorsTensor,
  type WritableTensor,
  writeSafetensors,
} from '../../../src/formats/safetensors.js';
import { temporaryDirectory } from './temporary-directory.js';

const fixtures = join(import.meta.dirname, '../../fixtures');
const root = temporaryDirectory();
let count = 0;

function freshDirectory(): string {
  const directory = join(root, `case-${count++}`);
  mkdirSync(directory);
  return directory;
}

/** A real engine that remembers its models. */
function watchedEngine() {
  const engine = loadBinding().createEngine({ threads: 1 });
  onTestFinished(() => engine.dispose());
  const models: NativeTransformer[] = [];
  const createTransformer = (config: TransformerConfig) => {
    const model = engine.createTransformer(config);
    models.push(model);
    return model;
  };
  return { engine: { createTransformer } as unknown as NativeEngine, models };
}

function parameterValues(model: NativeTransformer): Map<string, Float32Array> {
  return new Map(model.parameters().map(({ name }) => [name, model.getParameter(name)]));
}

/** A safetensors file of tensors in any dtype. */
function rawSafetensors(
  tensors: Record<string, { dtype: string; shape: readonly number[]; data: Uint8Array }>,
): Buffer {
  let end = 0;
  const header = JSON.stringify(
    Object.fromEntries(
      Object.entries(tensors).map(([name, { dtype, shape, data }]) => {
        const begin = end;
        end += data.byteLength;
        return [name, { dtype, shape, data_offsets: [begin, end] }];
      }),
    ),
  );
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(Buffer.byteLength(header)));
  return Buffer.concat([length, Buffer.from(header), ...Object.values(tensors).map(({ data }) => data)]);
}

/** A copy of a fixture whose tensors were changed. */
async function changedFixture(
  change: (tensors: Map<string, WritableTensor>) => void,
  { name = 'gpt2', config = {} } = {},
): Promise<string> {
  const directory = freshDirectory();
  const json = JSON.parse(readFileSync(join(fixtures, name, 'config.json'), 'utf8'));
  writeFileSync(join(directory, 'config.json'), JSON.stringify({ ...json, ...config }));
  const { tensors } = await readSafetensors(join(fixtures, name, 'model.safetensors'));
  const writable = tensors as Map<string, WritableTensor>;
  change(writable);
  await writeSafetensors(join(directory, 'model.safetensors'), writable);
  return directory;
}

describe.each(['gpt2', 'bert', 'llama'])('a %s checkpoint', (name) => {
  test('is saved as it was loaded, byte for byte', async () => {
    const { engine } = watchedEngine();
    const checkpoint = await loadCheckpoint(engine, join(fixtures, name));
    const path = join(freshDirectory(), 'saved');
    await writeDirectoryAtomic(path, (temporaryPath) => saveCheckpoint(temporaryPath, checkpoint));
    expect(readdirSync(path).sort()).toEqual(['config.json', 'model.safetensors']);
    const original = readFileSync(join(fixtures, name, 'model.safetensors'));
    expect(readFileSync(join(path, 'model.safetensors')).equals(original)).toBe(true);

    const again = await loadCheckpoint(engine, path);
    expect(again.config).toEqual(checkpoint.config);
    expect(parameterValues(again.model)).toEqual(parameterValues(checkpoint.model));
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
  ])('%s', async (_, code, change) => {
    const { engine, models } = watchedEngine();
    await expect(loadCheckpoint(engine, await changedFixture(change))).rejects.toMatchObject({ code });
    expect(models).toEqual([]);
  });

  test('the file is truncated', async () => {
    const { engine, models } = watchedEngine();
    const directory = await changedFixture(() => undefined);
    const path = join(directory, 'model.safetensors');
    writeFileSync(path, readFileSync(path).subarray(0, -1));
    await expect(loadCheckpoint(engine, directory)).rejects.toMatchObject({ code: 'ERR_SAFETENSORS' });
    expect(models).toEqual([]);
  });

  test('the config asks for more than the file has', async () => {
    const { engine, models } = watchedEngine();
    const directory = await changedFixture(() => undefined);
    const config = JSON.parse(readFileSync(join(directory, 'config.json'), 'utf8'));
    writeFileSync(join(directory, 'config.json'), JSON.stringify({ ...config, vocab_size: 16_000_000 }));
    await expect(loadCheckpoint(engine, directory)).rejects.toMatchObject({ code: 'ERR_CHECKPOINT_MISMATCH' });
    expect(models).toEqual([]);
  });
});

describe('a tensor that should be a copy of another', () => {
  const copy = (from: string, to: string, add: number) => (tensors: Map<string, WritableTensor>) => {
    const { shape, data } = tensors.get(from) as WritableTensor;
    tensors.set(to, {
      shape,
      data: Float32Array.from(data as Float32Array, (value, i) => value + (i === 5 ? add : 0)),
    });
  };

  test.each([
    ['gpt2', 'transformer.wte.weight', 'lm_head.weight'],
    ['bert', 'bert.embeddings.word_embeddings.weight', 'cls.predictions.decoder.weight'],
    ['bert', 'cls.predictions.bias', 'cls.predictions.decoder.bias'],
  ])('of %s is passed over, unless it differs', async (name, from, to) => {
    const { engine, models } = watchedEngine();
    await loadCheckpoint(engine, await changedFixture(copy(from, to, 0), { name }));
    const differing = await changedFixture(copy(from, to, 1), { name });
    await expect(loadCheckpoint(engine, differing)).rejects.toMatchObject({
      code: 'ERR_CHECKPOINT_MISMATCH',
      message: expect.stringContaining(`'${to}' differs from '${from}'`),
    });
    expect(models.length).toBe(1);
  });

  test.each([
    ['bert', 'cls.predictions'],
    ['families/roberta', 'lm_head'],
  ])('is written for %s where the embeddings are not tied', async (name, head) => {
    const { engine } = watchedEngine();
    const words = `${name === 'bert' ? 'bert' : 'roberta'}.embeddings.word_embeddings.weight`;
    const config = { tie_word_embeddings: false };
    const directory = await changedFixture(copy(words, `${head}.decoder.weight`, 1), { name, config });
    const loaded = await loadCheckpoint(engine, directory);
    const saved = freshDirectory();
    await saveCheckpoint(saved, loaded);
    const { tensors } = await readSafetensors(join(saved, 'model.safetensors'));
    expect(tensors.get(`${head}.decoder.bias`)?.data).toEqual(tensors.get(`${head}.bias`)?.data);
    expect(tensors.get(`${head}.decoder.weight`)?.data).not.toEqual(tensors.get(words)?.data);
    expect(parameterValues((await loadCheckpoint(engine, saved)).model)).toEqual(parameterValues(loaded.model));
  });
});

describe('loadCheckpoint disposes of the model', () => {
  const isDisposed = (model: NativeTransformer | undefined) => {
    expect(() => model?.getParameter('final_norm.bias')).toThrowError(
      expect.objectContaining({ code: 'ERR_DISPOSED' }),
    );
  };

  test.each([Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY])('when a weight is %d', async (value) => {
    const { engine, models } = watchedEngine();
    const directory = await changedFixture((tensors) => {
      tensors.set('transformer.ln_f.bias', { shape: [48], data: new Float32Array(48).fill(value, 5, 7) });
    });
    await expect(loadCheckpoint(engine, directory)).rejects.toMatchObject({
      code: 'ERR_NOT_FINITE',
      message: expect.stringMatching(/'transformer\.ln_f\.bias'.*index 5/),
    });
    expect(models.length).toBe(1);
    isDisposed(models[0]);
  });

  test('when it has other parameters than the reader knows', async () => {
    const { engine, models } = watchedEngine();
    const other = {
      createTransformer: (config: TransformerConfig) => engine.createTransformer({ ...config, intermediateSize: 7 }),
    } as unknown as NativeEngine;
    await expect(loadCheckpoint(other, join(fixtures, 'gpt2'))).rejects.toMatchObject({ code: 'ERR_INTERNAL' });
    isDisposed(models[0]);
  });
});

test.each<[string, (values: Float32Array) => Uint8Array, (value: number) => number]>([
  [
    'BF16',
    (values) => new Uint8Array(Uint16Array.from(new Uint32Array(values.buffer), (bits) => bits >>> 16).buffer),
    (value) => new Float32Array(Uint32Array.of((float32Bits(value) >>> 16) << 16).buffer)[0] as number,
  ],
  ['F64', (values) => new Uint8Array(Float64Array.from(values).buffer), (value) => value],
])('loads %s weights, transposed ones too', async (dtype, store, rounded) => {
  const { engine } = watchedEngine();
  const directory = freshDirectory();
  copyFileSync(join(fixtures, 'gpt2/config.json'), join(directory, 'config.json'));
  const { tensors } = await readSafetensors(join(fixtures, 'gpt2/model.safetensors'));
  const stored = Array.from(tensors, ([name, { shape, data }]) => {
    return [name, { dtype, shape: [...shape], data: store(Float32Array.from(data as Float32Array)) }] as const;
  });
  writeFileSync(join(directory, 'model.safetensors'), rawSafetensors(Object.fromEntries(stored)));
  const expected = parameterValues((await loadCheckpoint(engine, join(fixtures, 'gpt2'))).model);
  const actual = parameterValues((await loadCheckpoint(engine, directory)).model);
  for (const [name, values] of expected) expect(actual.get(name), name).toEqual(values.map(rounded));
});

const float32Bits = (value: number) => new Uint32Array(Float32Array.of(value).buffer)[0] as number;

test('loads every half float exactly', async () => {
  const { engine } = watchedEngine();
  const directory = freshDirectory();
  const { config } = await readModelConfig(join(fixtures, 'gpt2'));
  const model = engine.createTransformer({ ...config, hiddenSize: 16, headDim: 4, vocabSize: 4096 });
  const finite = Uint16Array.from({ length: 65_536 }, (_, bits) => (((bits >> 10) & 31) === 31 ? 0 : bits));
  const load = (bits: Uint16Array) =>
    model.loadParameter('embeddings.word', {
      dtype: 'F16',
      bytes: new Uint8Array(bits.buffer),
      offset: 0,
      isTransposed: false,
    });
  expect(load(finite)).toBe(-1);
  writeFileSync(
    join(directory, 'half.safetensors'),
    rawSafetensors({ half: { dtype: 'F16', shape: [65_536], data: new Uint8Array(finite.buffer) } }),
  );
  const { tensors } = await readSafetensors(join(directory, 'half.safetensors'));
  expect(model.getParameter('embeddings.word')).toEqual(asFloat32(tensors.get('half') as SafetensorsTensor));
  for (const bits of [0x7c00, 0xfc00, 0x7e00]) expect(load(finite.with(77, bits))).toBe(77);
});

test('a piece of a transposed parameter lands where the whole puts it', async () => {
  const { engine } = watchedEngine();
  const { config } = await readModelConfig(join(fixtures, 'gpt2'));
  const model = engine.createTransformer(config);
  const name = 'layers.0.attention.qkv.weight'; // [144, 48], in the file [48, 144]
  const values = Float32Array.from({ length: 144 * 48 }, (_, i) => i);
  for (let first = 0; first < values.length; first += 1000) {
    const piece = values.slice(first, first + 1000);
    const bytes = new Uint8Array(piece.buffer);
    model.loadParameter(name, { dtype: 'F32', bytes, offset: first, isTransposed: true });
  }
  const loaded = model.getParameter(name);
  for (let out = 0; out < 144; out += 13) {
    for (let column = 0; column < 48; column++) expect(loaded[out * 48 + column]).toBe(column * 144 + out);
  }
});

describe('loadParameter refuses', () => {
  const bytes = new Uint8Array(16);
  test.each<[string, string, Partial<StoredValues>]>([
    ['values past the end', 'final_norm.bias', { offset: 45 }],
    ['a part of a value', 'final_norm.bias', { bytes: bytes.subarray(1) }],
    ['to transpose a vector', 'final_norm.bias', { isTransposed: true }],
    ['another dtype', 'final_norm.bias', { dtype: 'I32' as 'F32' }],
    ['another array', 'final_norm.bias', { bytes: new Float32Array(4) as unknown as Uint8Array }],
    ['a name that is not there', 'final_norm.gain', {}],
  ])('%s', async (_, name, change) => {
    const { engine } = watchedEngine();
    const { config } = await readModelConfig(join(fixtures, 'gpt2'));
    const model = engine.createTransformer(config);
    expect(() =>
      model.loadParameter(name, { dtype: 'F32', bytes, offset: 0, isTransposed: false, ...change }),
    ).toThrowError(expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }));
  });
});

async function openTensors(directory: string) {
  const checkpoint = await CheckpointTensors.open(directory);
  await checkpoint.close();
  return checkpoint;
}

describe('CheckpointTensors', () => {
  const scalar = { shape: [1], data: Float32Array.of(1) };
  const first = 'model-00001-of-00002.safetensors';
  const second = 'model-00002-of-00002.safetensors';

  async function sharded(weightMap: unknown, metadata?: unknown): Promise<string> {
    const directory = freshDirectory();
    await writeSafetensors(join(directory, first), [['a', scalar]], { format: 'pt' });
    await writeSafetensors(join(directory, second), [
      ['b', scalar],
      ['c', scalar],
    ]);
    writeFileSync(join(directory, 'model.safetensors.index.json'), JSON.stringify({ metadata, weight_map: weightMap }));
    return directory;
  }

  test('joins the shards of an index', async () => {
    const { tensors } = await openTensors(await sharded({ a: first, b: second, c: second }));
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
    await expect(openTensors(await sharded(weightMap))).rejects.toMatchObject({ code });
  });

  const complete = { a: first, b: second, c: second };

  test('takes an index that says how many bytes there are', async () => {
    expect((await openTensors(await sharded(complete, { total_size: 12 }))).tensors.size).toBe(3);
  });

  test.each<[string, string, unknown]>([
    ['another size', 'ERR_CHECKPOINT_MISMATCH', { total_size: 16 }],
    ['a size in words', 'ERR_FILE_FORMAT', { total_size: '12' }],
  ])('refuses an index of %s', async (_, code, metadata) => {
    await expect(openTensors(await sharded(complete, metadata))).rejects.toMatchObject({ code });
  });

  test('refuses an index that names a tensor twice', async () => {
    const directory = await sharded(complete);
    const path = join(directory, 'model.safetensors.index.json');
    writeFileSync(path, `{"weight_map": {"a": "${first}", "b": "${second}", "c": "${second}", "a": "${second}"}}`);
    await expect(openTensors(directory)).rejects.toMatchObject({ code: 'ERR_FILE_FORMAT' });
  });

  test('refuses a tensor that two shards hold', async () => {
    const directory = await sharded(complete);
    await writeSafetensors(join(directory, second), [
      ['a', scalar],
      ['b', scalar],
      ['c', scalar],
    ]);
    await expect(openTensors(directory)).rejects.toMatchObject({
      code: 'ERR_CHECKPOINT_MISMATCH',
      message: expect.stringContaining("'a'"),
    });
  });

  test('refuses a truncated shard', async () => {
    const directory = await sharded(complete);
    const path = join(directory, second);
    writeFileSync(path, readFileSync(path).subarray(0, -1));
    await expect(openTensors(directory)).rejects.toMatchObject({
      code: 'ERR_SAFETENSORS',
      message: expect.stringContaining(second),
    });
  });

  test('says when a shard became shorter after it was opened', async () => {
    const directory = await sharded(complete);
    const checkpoint = await CheckpointTensors.open(directory);
    onTestFinished(() => checkpoint.close());
    truncateSync(join(directory, second), 20);
    const read = async () => {
      for await (const _ of checkpoint.read('c', new Uint8Array(8)));
    };
    await expect(read()).rejects.toMatchObject({ code: 'ERR_SAFETENSORS' });
  });

  test('reads a tensor in pieces', async () => {
    const directory = freshDirectory();
    const data = Float32Array.from({ length: 5 }, (_, i) => i);
    await writeSafetensors(join(directory, 'model.safetensors'), [['a', { shape: [5], data }]]);
    const checkpoint = await CheckpointTensors.open(directory);
    onTestFinished(() => checkpoint.close());
    const pieces: [number, number][] = [];
    for await (const { bytes, offset } of checkpoint.read('a', new Uint8Array(8))) pieces.push([offset, bytes.length]);
    expect(pieces).toEqual([
      [0, 8],
      [8, 8],
      [16, 4],
    ]);
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
    expect((await openTensors(snapshot)).tensors.size).toBe(1);

    const directory = await sharded({ a: 'link.safetensors' });
    symlinkSync(join(root, 'outside.safetensors'), join(directory, 'link.safetensors'));
    await expect(openTensors(directory)).rejects.toMatchObject({
      code: 'ERR_FILE_FORMAT',
      message: expect.stringContaining('outside.safetensors'),
    });
  });

  test('explains what is missing, and never opens a pickle', async () => {
    const directory = freshDirectory();
    await expect(openTensors(directory)).rejects.toMatchObject({ code: 'ERR_FILE_NOT_FOUND' });
    writeFileSync(join(directory, 'pytorch_model.bin'), 'code');
    await expect(openTensors(directory)).rejects.toMatchObject({
      code: 'ERR_FILE_NOT_FOUND',
      message: expect.stringContaining('pytorch_model.bin'),
    });
    await expect(openTensors(join(directory, 'absent'))).rejects.toMatchObject({
      code: 'ERR_FILE_NOT_FOUND',
    });
  });
});
