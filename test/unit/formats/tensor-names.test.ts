import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { type ModelConfig, parseModelConfig, readModelConfig } from '../../../src/formats/model-config.js';
import { readSafetensors, type SafetensorsTensor, type TensorInfo } from '../../../src/formats/safetensors.js';
import { huggingFaceFromNative, nativeParameterShapes, placeTensors } from '../../../src/formats/tensor-names.js';

/** What messages call it. */
const directory = 'some/model';
const fixtures = join(import.meta.dirname, '../../fixtures');

interface Case extends ModelConfig {
  readonly tensors: Map<string, SafetensorsTensor>;
}

async function load(name: string): Promise<Case> {
  const model = await readModelConfig(join(fixtures, name));
  const { tensors } = await readSafetensors(join(fixtures, name, 'model.safetensors'));
  return { ...model, tensors };
}

function place({ family, config, tensors }: Case) {
  return placeTensors(family, config, tensors as unknown as ReadonlyMap<string, TensorInfo>, directory);
}

/** Native parameters, filled as the placements say; NaN where they leave a hole. */
function toNative(model: Case): Map<string, { shape: number[]; data: Float32Array }> {
  const native = new Map(
    Array.from(nativeParameterShapes(model.config), ([name, shape]) => {
      const data = new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(Number.NaN);
      return [name, { shape, data }];
    }),
  );
  for (const { fileName, parameter, offset, isTransposed } of place(model)) {
    const values = model.tensors.get(fileName)?.data as Float32Array;
    const { shape, data } = native.get(parameter) as { shape: number[]; data: Float32Array };
    const [rows = 1, columns = 1] = shape;
    for (let i = 0; i < values.length; i++) {
      data[isTransposed ? (i % rows) * columns + Math.floor(i / rows) : offset + i] = values[i] as number;
    }
  }
  return native;
}

function roundTrip(model: Case) {
  const native = toNative(model);
  return huggingFaceFromNative(model.family, model.config, (name) => native.get(name)?.data as Float32Array);
}

const tensor = (...shape: number[]): SafetensorsTensor => ({
  dtype: 'F32',
  shape,
  data: new Float32Array(shape.reduce((a, b) => a * b, 1)),
});

function expectSameTensors(
  actual: Map<string, { shape: readonly number[]; data: unknown }>,
  expected: Case['tensors'],
): void {
  expect([...actual.keys()].sort()).toEqual([...expected.keys()].sort());
  for (const [name, { shape, data }] of expected) {
    expect(actual.get(name)?.shape, name).toEqual(shape);
    expect(actual.get(name)?.data, name).toEqual(data);
  }
}

describe.each(['gpt2', 'bert', 'llama', 'distil/teacher', 'distil/student'])('the %s fixture', (name) => {
  test('comes back bit for bit', async () => {
    const model = await load(name);
    expectSameTensors(roundTrip(model), model.tensors);
  });

  test('fills exactly the native parameters', async () => {
    const model = await load(name);
    const shapes = new Map(Array.from(toNative(model), ([key, { shape }]) => [key, shape]));
    expect(shapes).toEqual(nativeParameterShapes(model.config));
  });
});

test.each(['gpt2', 'bert', 'llama', 'distil/student'])(
  'the %s fixture has one gradient for each written name',
  async (name) => {
    const model = await load(name);
    const expected = await readSafetensors(join(fixtures, name.split('/')[0] as string, 'expected.safetensors'));
    const gradients = [...expected.tensors].filter(
      ([key]) => key.startsWith('grad.') && !key.startsWith('grad.projection'),
    );
    const written = roundTrip(model);
    expect(gradients.map(([key]) => key.slice(5)).sort()).toEqual([...written.keys()].sort());
    for (const [key, { shape }] of gradients) expect(written.get(key.slice(5))?.shape).toEqual(shape);
  },
);

describe('placeTensors', () => {
  test('transposes Conv1D weights of GPT-2', async () => {
    const model = await load('gpt2');
    const source = model.tensors.get('transformer.h.1.attn.c_attn.weight') as SafetensorsTensor; // [48, 144]
    const native = toNative(model).get('layers.1.attention.qkv.weight');
    expect(native?.shape).toEqual([144, 48]);
    expect(native?.data[100 * 48 + 7]).toBe(source.data[7 * 144 + 100]);
  });

  test('lays q, k, v and gate, up end to end', async () => {
    const model = await load('llama');
    const native = toNative(model);
    const values = (name: string) => model.tensors.get(`model.layers.0.${name}.weight`)?.data as Float32Array;
    expect(native.get('layers.0.attention.qkv.weight')?.data).toEqual(
      Float32Array.of(...values('self_attn.q_proj'), ...values('self_attn.k_proj'), ...values('self_attn.v_proj')),
    );
    expect(native.get('layers.0.mlp.input.weight')?.data).toEqual(
      Float32Array.of(...values('mlp.gate_proj'), ...values('mlp.up_proj')),
    );
  });

  test('puts the norms of BERT after their sublayers', async () => {
    const model = await load('bert');
    const native = toNative(model);
    const values = (name: string) => model.tensors.get(`bert.encoder.layer.1.${name}.LayerNorm.weight`)?.data;
    expect(native.get('layers.1.attention_norm.weight')?.data).toEqual(values('attention.output'));
    expect(native.get('layers.1.mlp_norm.weight')?.data).toEqual(values('output'));
  });

  test.each([
    ['gpt2', 'transformer.'],
    ['bert', 'bert.'],
    ['llama', 'model.'],
  ])('reads %s files without the prefix', async (name, prefix) => {
    const model = await load(name);
    const bare = new Map(
      Array.from(model.tensors, ([key, value]) => [key.replace(new RegExp(`^${prefix}`), ''), value]),
    );
    expect(bare).not.toEqual(model.tensors);
    expectSameTensors(roundTrip({ ...model, tensors: bare }), model.tensors);
  });

  test('reads gamma and beta of old BERT files', async () => {
    const model = await load('bert');
    const old = new Map(
      Array.from(model.tensors, ([key, value]) => [
        key.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta'),
        value,
      ]),
    );
    expectSameTensors(roundTrip({ ...model, tensors: old }), model.tensors);
  });

  test.each([
    ['gpt2', 'transformer.h.0.attn.bias'],
    ['gpt2', 'h.0.attn.masked_bias'],
    ['gpt2', 'lm_head.weight'],
    ['bert', 'bert.embeddings.position_ids'],
    ['bert', 'bert.pooler.dense.weight'],
    ['bert', 'pooler.dense.bias'],
    ['bert', 'cls.seq_relationship.weight'],
    ['bert', 'cls.predictions.decoder.weight'],
    ['bert', 'cls.predictions.decoder.bias'],
    ['llama', 'model.layers.0.self_attn.rotary_emb.inv_freq'],
  ])('passes over %s tensor %s', async (name, extra) => {
    const model = await load(name);
    const tensors = new Map(model.tensors).set(extra, tensor(1));
    expectSameTensors(roundTrip({ ...model, tensors }), model.tensors);
  });

  test.each([
    ['gpt2', 'transformer.h.3.ln_1.weight'],
    ['gpt2', 'transformer.h.0.attn.c_attn.weight.lora'],
    ['bert', 'classifier.weight'],
    ['bert', 'lm_head.weight'],
    ['llama', 'model.layers.0.self_attn.q_proj.bias'],
    ['llama', '__proto__'],
  ])('refuses the extra %s tensor %s', async (name, extra) => {
    const model = await load(name);
    const tensors = new Map(model.tensors).set(extra, tensor(1));
    expect(() => toNative({ ...model, tensors })).toThrowError(
      expect.objectContaining({ code: 'ERR_CHECKPOINT_MISMATCH', message: expect.stringContaining(extra) }),
    );
  });

  test('refuses a tensor under both of its names', async () => {
    const model = await load('gpt2');
    const tensors = new Map(model.tensors).set('wte.weight', tensor(131, 48));
    expect(() => toNative({ ...model, tensors })).toThrowError(
      expect.objectContaining({ code: 'ERR_CHECKPOINT_MISMATCH', message: expect.stringContaining('wte.weight') }),
    );
  });

  test.each(['gpt2', 'bert', 'llama'])('names each tensor that %s misses', async (name) => {
    const model = await load(name);
    for (const missing of model.tensors.keys()) {
      const tensors = new Map(model.tensors);
      tensors.delete(missing);
      expect(() => toNative({ ...model, tensors })).toThrowError(
        expect.objectContaining({ code: 'ERR_CHECKPOINT_MISMATCH', message: expect.stringContaining(missing) }),
      );
    }
  });

  test.each<[string, Partial<SafetensorsTensor>, string]>([
    ['the wrong shape', { shape: [144, 48] }, 'expected [48, 144]'],
    ['the wrong rank', { shape: [48 * 144] }, 'expected [48, 144]'],
    ['an integer dtype', { dtype: 'I32' }, 'dtype I32'],
    ['a 16-bit integer dtype', { dtype: 'U16' }, 'dtype U16'],
  ])('refuses %s', async (_, change, message) => {
    const model = await load('gpt2');
    const name = 'transformer.h.0.attn.c_attn.weight';
    const tensors = new Map(model.tensors).set(name, { ...(model.tensors.get(name) as SafetensorsTensor), ...change });
    expect(() => toNative({ ...model, tensors })).toThrowError(
      expect.objectContaining({ code: 'ERR_CHECKPOINT_MISMATCH', message: expect.stringContaining(message) }),
    );
  });

  test('takes bfloat16, half and double weights', async () => {
    const model = await load('gpt2');
    for (const [dtype, valueBytes] of [
      ['BF16', 2],
      ['F16', 2],
      ['F64', 8],
    ] as const) {
      const changed = { ...(model.tensors.get('transformer.ln_f.bias') as SafetensorsTensor), dtype };
      const tensors = new Map(model.tensors).set('transformer.ln_f.bias', changed);
      const placement = place({ ...model, tensors }).find(({ parameter }) => parameter === 'final_norm.bias');
      expect(placement).toMatchObject({ dtype, valueBytes, offset: 0, isTransposed: false });
    }
  });
});

test('an untied head and item features have places of their own', () => {
  const { family, config } = parseModelConfig(
    {
      model_type: 'gpt2',
      n_embd: 8,
      n_head: 2,
      n_layer: 1,
      vocab_size: 11,
      n_positions: 4,
      tie_word_embeddings: false,
      item_feature_size: 5,
    },
    'config.json',
  );
  const shapes = nativeParameterShapes(config);
  expect(shapes.get('head.output.weight')).toEqual([11, 8]);
  expect(shapes.get('item_projection.weight')).toEqual([8, 5]);
  const written = huggingFaceFromNative(
    family,
    config,
    (name) => tensor(...(shapes.get(name) ?? [])).data as Float32Array,
  );
  expect(written.get('lm_head.weight')?.shape).toEqual([11, 8]);
  expect(written.get('item_projection.weight')?.shape).toEqual([8, 5]);
});

test('huggingFaceFromNative refuses an array of another length', async () => {
  const { family, config } = await load('gpt2');
  expect(() => huggingFaceFromNative(family, config, () => new Float32Array(3))).toThrowError(
    expect.objectContaining({ code: 'ERR_SHAPE_MISMATCH' }),
  );
});
