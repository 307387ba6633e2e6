/** Loading a checkpoint takes little more memory than the model itself: measured in a process of its own. */
import { closeSync, mkdirSync, mkdtempSync, openSync, rmSync, statSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { TransformerConfig } from '../../src/binding.js';
import { type ModelFamily, parseModelConfig } from '../../src/formats/model-config.js';
import { huggingFaceFromNative, nativeParameterShapes } from '../../src/formats/tensor-names.js';
import { outputOfNode } from '../support/run-program.js';

const root = join(import.meta.dirname, '../..');
let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'limbeck-memory-'));
});
afterAll(() => rmSync(folder, { recursive: true }));

/** More than a third of it in the word table, as in small language models. */
const GPT2 = { model_type: 'gpt2', n_embd: 512, n_head: 8, n_layer: 8, vocab_size: 40_000, n_positions: 512 };
const LLAMA = {
  model_type: 'llama',
  hidden_size: 512,
  num_attention_heads: 8,
  num_hidden_layers: 8,
  vocab_size: 20_000,
  intermediate_size: 1_536,
};

/** Writes a checkpoint of equal weights in `numShards` files; returns the bytes of the model in float32. */
function writeCheckpoint(directory: string, json: object, dtype: 'F32' | 'BF16', numShards: number): number {
  mkdirSync(directory);
  writeFileSync(join(directory, 'config.json'), JSON.stringify(json));
  const { family, config } = parseModelConfig(json, 'config.json');
  const tensors = [...shapesOf(family, config)];
  const weightMap: Record<string, string> = {};
  let sizeBytes = 0;
  for (let shard = 0; shard < numShards; shard++) {
    const name = numShards === 1 ? 'model.safetensors' : `model-${shard + 1}-of-${numShards}.safetensors`;
    const part = tensors.filter((_, i) => i % numShards === shard);
    for (const [tensor] of part) weightMap[tensor] = name;
    sizeBytes += writeShard(join(directory, name), part, dtype);
  }
  if (numShards > 1) {
    const index = { metadata: { total_size: sizeBytes }, weight_map: weightMap };
    writeFileSync(join(directory, 'model.safetensors.index.json'), JSON.stringify(index));
  }
  return dtype === 'F32' ? sizeBytes : 2 * sizeBytes;
}

function shapesOf(family: ModelFamily, config: TransformerConfig): Map<string, readonly number[]> {
  const shapes = nativeParameterShapes(config);
  const zeros = (name: string) => new Float32Array((shapes.get(name) ?? []).reduce((a, b) => a * b, 1));
  return new Map(
    Array.from(huggingFaceFromNative(family, config, zeros), ([name, { shape }]) => [name, shape] as const),
  );
}

function writeShard(path: string, tensors: [string, readonly number[]][], dtype: 'F32' | 'BF16'): number {
  let end = 0;
  const header = Object.fromEntries(
    tensors.map(([name, shape]) => {
      const begin = end;
      end += shape.reduce((a, b) => a * b, 1) * (dtype === 'F32' ? 4 : 2);
      return [name, { dtype, shape, data_offsets: [begin, end] }];
    }),
  );
  const json = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  const file = openSync(path, 'w');
  writeSync(file, Buffer.concat([length, json]));
  const piece = Buffer.alloc(1 << 20, 0x3c); // every value is 0.0115
  for (let left = end; left > 0; left -= piece.length) writeSync(file, piece, 0, Math.min(left, piece.length));
  closeSync(file);
  expect(statSync(path).size).toBe(8 + json.length + end);
  return end;
}

/** Growth of the largest resident size over what the process had after loading a tiny model, in bytes. */
function measureLoading(directory: string): number {
  const url = (path: string) => JSON.stringify(pathToFileURL(join(root, 'dist', path)).href);
  const script = `
    const { loadBinding } = await import(${url('binding.js')});
    const { loadCheckpoint } = await import(${url('formats/checkpoint.js')});
    const engine = loadBinding().createEngine({ threads: 1 });
    (await loadCheckpoint(engine, ${JSON.stringify(join(root, 'test/fixtures/gpt2'))})).model.dispose();
    const before = process.memoryUsage.rss();
    const { model } = await loadCheckpoint(engine, ${JSON.stringify(directory)});
    console.log(process.resourceUsage().maxRSS * 1024 - before);
    for (const { name } of model.parameters()) {
      if (model.getParameter(name).some((value) => Math.abs(value - 0.0115) > 1e-3)) throw new Error(name);
    }
    engine.dispose();`;
  return Number(outputOfNode(['--input-type=module', '-e', script]));
}

test.each([
  ['a GPT-2 in float32, one file', GPT2, 'F32', 1],
  ['a Llama in bfloat16, three shards', LLAMA, 'BF16', 3],
] as const)('%s', (name, json, dtype, numShards) => {
  const directory = join(folder, name.replaceAll(' ', '-'));
  const modelBytes = writeCheckpoint(directory, json, dtype, numShards);
  expect(modelBytes).toBeGreaterThan(150_000_000);
  const growth = measureLoading(directory);
  console.log(`${name}: ${(growth / modelBytes).toFixed(3)} × ${modelBytes} bytes`);
  expect(growth).toBeGreaterThan(0.9 * modelBytes);
  expect(growth).toBeLessThan(1.1 * modelBytes);
});
