/** Adapters beside PEFT's own: `test/fixtures/adapters/make.py`. */
import { cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, describe, expect, test } from 'vitest';
import { loadBinding } from '../../../src/binding.js';
import { asFloat32, asInt32, readSafetensors, writeSafetensors } from '../../../src/formats/safetensors.js';
import { LanguageModel } from '../../../src/teacher/language-model.js';
import { expectClose } from '../../support/tiny-models.js';
import { temporaryDirectory } from './fake-model.js';
import { createNativeEngine } from './texts.js';

const fixtures = join(import.meta.dirname, '../../fixtures');
const adapters = join(fixtures, 'adapters');
const BASES: Record<string, string> = {
  gpt2: 'gpt2',
  bert: 'bert',
  llama: 'llama',
  distilbert: 'families/distilbert',
  roberta: 'families/roberta',
  qwen3: 'families/qwen3',
  mistral: 'families/mistral',
};
const folder = temporaryDirectory();
const engine = createNativeEngine();
const models: LanguageModel[] = [];
afterEach(() => {
  for (const model of models.splice(0)) model.dispose();
});
afterAll(() => engine.dispose());

const code = (value: string, message = /./) =>
  expect.objectContaining({ code: value, message: expect.stringMatching(message) });

async function load(name: string): Promise<LanguageModel> {
  const model = await LanguageModel.load(engine, join(fixtures, BASES[name] ?? name));
  models.push(model);
  return model;
}

async function expectedOf(name: string) {
  const { tensors } = await readSafetensors(join(adapters, name, 'expected.safetensors'));
  const get = (tensor: string) => tensors.get(tensor) ?? expect.unreachable(tensor);
  return {
    ids: [...asInt32(get('input_ids'))],
    logits: asFloat32(get('logits')),
    baseLogits: asFloat32(get('base_logits')),
  };
}

async function logitsOf(model: LanguageModel, ids: number[]): Promise<Float32Array> {
  const { logits } = await model.forward({ inputIds: [ids] }, { logits: 'dense' });
  return logits ?? expect.unreachable();
}

const parametersOf = ({ native }: LanguageModel) =>
  new Map(native.parameters().map(({ name }) => [name, native.getParameter(name)]));

/** A copy of a fixture's adapter, changed. */
function changed(name: string, as: string, change: (json: Record<string, unknown>) => void): string {
  const directory = join(folder, as);
  cpSync(join(adapters, name), directory, { recursive: true });
  const path = join(directory, 'adapter_config.json');
  const json = JSON.parse(readFileSync(path, 'utf8')) as Record<string, unknown>;
  change(json);
  writeFileSync(path, JSON.stringify(json));
  return directory;
}

test('every case is there', () => {
  const found = readdirSync(adapters, { withFileTypes: true }).filter((entry) => entry.isDirectory());
  expect(found.map(({ name }) => name).sort()).toEqual(Object.keys(BASES).sort());
});

describe.each(Object.keys(BASES))('%s', (name) => {
  test("an adapter of PEFT's gives PEFT's logits; merged and saved, it still does; removed, nothing is left", async () => {
    const { ids, logits, baseLogits } = await expectedOf(name);
    const model = await load(name);
    const before = parametersOf(model);
    const base = await logitsOf(model, ids);
    expectClose(base, baseLogits, 1e-5, 'base');

    await model.loadAdapter(join(adapters, name));
    expect(model.adapter).toMatchObject({ rank: 3, alpha: 5, dropout: 0.1 });
    expectClose(await logitsOf(model, ids), logits, 1e-5, 'adapted');

    await model.save(join(folder, `${name}-merged`));
    const merged = await LanguageModel.load(engine, join(folder, `${name}-merged`));
    models.push(merged);
    expectClose(await logitsOf(merged, ids), logits, 1e-5, 'merged');
    const effective = parametersOf(model);

    model.removeAdapter();
    expect(model.adapter).toBeUndefined();
    expect(parametersOf(model)).toEqual(before);
    expect(await logitsOf(model, ids)).toEqual(base);

    await model.loadAdapter(join(adapters, name));
    await model.mergeAdapter();
    expect(model.adapter).toBeUndefined();
    expect(parametersOf(model)).toEqual(effective);
    expect(parametersOf(merged)).toEqual(effective);
  });

  test("is written with PEFT's names, shapes and settings, and opens again to the same bits", async () => {
    const model = await load(name);
    await model.loadAdapter(join(adapters, name));
    const directory = join(folder, `${name}-saved`);
    await model.saveAdapter(directory);
    expect(readdirSync(directory).sort()).toEqual(['adapter_config.json', 'adapter_model.safetensors']);
    const [ours, theirs] = await Promise.all(
      [directory, join(adapters, name)].map((at) => readSafetensors(join(at, 'adapter_model.safetensors'))),
    );
    expect(ours?.tensors).toEqual(theirs?.tensors);
    const json = JSON.parse(readFileSync(join(directory, 'adapter_config.json'), 'utf8'));
    const peft = JSON.parse(readFileSync(join(adapters, name, 'adapter_config.json'), 'utf8'));
    for (const key of ['peft_type', 'task_type', 'r', 'lora_alpha', 'lora_dropout', 'fan_in_fan_out', 'bias']) {
      expect([key, json[key]]).toEqual([key, peft[key]]);
    }
    const again = await load(name);
    await again.loadAdapter(directory);
    const { ids } = await expectedOf(name);
    expect(await logitsOf(again, ids)).toEqual(await logitsOf(model, ids));
    expect(again.adapter).toEqual(model.adapter);
  });
});

test('target_modules means the adapted modules and no other, by PEFT’s rule: a name, or its last parts', async () => {
  const cases: [string, string[], string[] | RegExp][] = [
    ['gpt2', ['attention.qkv'], ['attn.c_attn']],
    ['gpt2', ['mlp.output'], ['mlp.c_proj']],
    ['gpt2', ['c_proj'], ['attn.c_proj', 'mlp.c_proj']],
    ['llama', ['attention.qkv', 'mlp.input'], /^(self_attn\.[qkv]_proj|mlp\.(gate|up)_proj)$/],
    // The end of attention.output.dense, too.
    ['bert', ['mlp.output'], /^bert\.encoder\.layer\.\d+\.output\.dense$/],
    ['bert', ['output.dense'], ['attention.output.dense', 'output.dense']],
  ];
  for (const [i, [name, targets, expected]] of cases.entries()) {
    const model = await load(name);
    await model.addAdapter({ rank: 2, targets });
    const directory = join(folder, `targets-${i}`);
    await model.saveAdapter(directory);
    const { target_modules: found } = JSON.parse(readFileSync(join(directory, 'adapter_config.json'), 'utf8')) as {
      target_modules: string[];
    };
    if (expected instanceof RegExp) for (const one of found) expect(one).toMatch(expected);
    else expect(found.sort()).toEqual(expected);
  }
});

test('a model without a head is adapted as transformers’ bare model, whose modules have no prefix', async () => {
  const { config } = await load('bert');
  const bare = (seed: number) => {
    const native = engine.createTransformer({ ...config, maskedLmHead: false });
    native.initialize(seed, 0.3);
    const model = new LanguageModel(native, 'bert', { ...config, maskedLmHead: false }, undefined);
    models.push(model);
    return model;
  };
  const model = bare(1);
  await model.addAdapter({ rank: 1, targets: ['query', 'mlp.output'] });
  const directory = join(folder, 'bare');
  await model.saveAdapter(directory);
  const { tensors } = await readSafetensors(join(directory, 'adapter_model.safetensors'));
  const modules = ['attention.self.query', 'output.dense'].map((one) => `encoder.layer.0.${one}`);
  for (const name of modules) expect([...tensors.keys()]).toContain(`base_model.model.${name}.lora_A.weight`);
  const json = JSON.parse(readFileSync(join(directory, 'adapter_config.json'), 'utf8'));
  expect(json).toMatchObject({ task_type: 'FEATURE_EXTRACTION', target_modules: expect.arrayContaining(modules) });
  const again = bare(1);
  await again.loadAdapter(directory);
  expect(again.adapter).toEqual(model.adapter);
});

describe('a new adapter', () => {
  test('changes nothing, and counts its parameters', async () => {
    const model = await load('llama');
    const { ids } = await expectedOf('llama');
    const before = await logitsOf(model, ids);
    await model.addAdapter({ rank: 2 });
    expect(await logitsOf(model, ids)).toEqual(before);
    expect(model.adapter).toMatchObject({ rank: 2, alpha: 4, dropout: 0 });
    expect(model.adapter?.targets.filter((name) => name.includes('layers.0'))).toEqual(
      ['q', 'k', 'v', 'o'].map((one) => `model.layers.0.self_attn.${one}_proj`),
    );
    const counted = model.native
      .trainableParameters()
      .reduce((sum, { shape }) => sum + shape.reduce((product, size) => product * size, 1), 0);
    expect(model.adapter?.numParameters).toBe(counted);
  });

  test('is checked by name: rank, alpha, dropout, targets', async () => {
    const model = await load('gpt2');
    const refuse = async (options: object, wanted: unknown) => {
      await expect(model.addAdapter(options)).rejects.toThrow(wanted as Error);
      expect(model.adapter).toBeUndefined();
    };
    await refuse({ rank: 0 }, code('ERR_INVALID_ARGUMENT', /lora\.rank/));
    await refuse({ rank: 1.5 }, code('ERR_INVALID_ARGUMENT', /lora\.rank/));
    await refuse({ rank: 49 }, code('ERR_INVALID_ARGUMENT', /lora\.rank.*at most 48.*49/));
    await refuse({ alpha: 0 }, code('ERR_INVALID_ARGUMENT', /lora\.alpha/));
    await refuse({ dropout: 1 }, code('ERR_INVALID_ARGUMENT', /lora\.dropout/));
    await refuse({ targets: [] }, code('ERR_INVALID_ARGUMENT', /lora\.targets/));
    await refuse({ targets: ['q_proj'] }, code('ERR_INVALID_ARGUMENT', /lora\.targets\[0\].*q_proj.*attn\.c_attn/));
    await refuse({ targets: ['c_attn', 'attn'] }, code('ERR_INVALID_ARGUMENT', /lora\.targets\[1\]/));
    await refuse({ r: 8 }, code('ERR_UNKNOWN_OPTION'));
  });

  test('is one: the same is kept, another is refused, and the weights under it are not written', async () => {
    const model = await load('gpt2');
    await model.addAdapter({ rank: 2, seed: 5 });
    const adapter = model.adapter;
    await model.addAdapter({ rank: 2, alpha: 4 });
    expect(model.adapter).toEqual(adapter);
    await expect(model.addAdapter({ rank: 3 })).rejects.toThrow(code('ERR_INVALID_ARGUMENT', /rank 2/));
    await expect(model.addAdapter({ rank: 2, targets: ['mlp.input'] })).rejects.toThrow(code('ERR_INVALID_ARGUMENT'));
    await expect(model.loadAdapter(join(adapters, 'gpt2'))).rejects.toThrow(code('ERR_INVALID_ARGUMENT'));
    const { native } = model;
    const [one = { name: '' }] = native.parameters();
    const values = native.getParameter(one.name);
    const other = await load('gpt2');
    const refused = code('ERR_INVALID_ARGUMENT', /adapter/);
    expect(() => native.setParameter(one.name, values)).toThrow(refused);
    expect(() => native.initialize(1, 0.1)).toThrow(refused);
    expect(() => native.addItemBias(new Float32Array(131))).toThrow(refused);
    expect(() => engine.createImportance(native)).toThrow(refused);
    expect(() => engine.createRecommender(native)).toThrow(refused);
    await expect(native.interpolate(one.name, values, 0.5)).rejects.toThrow(refused);
    await expect(native.interpolateFrom(other.native, 0.5)).rejects.toThrow(refused);
    await expect(other.native.interpolateFrom(native, 0.5)).rejects.toThrow(refused);
    expect(() => native.getGradient(one.name)).toThrow(code('ERR_INVALID_ARGUMENT'));
  });

  test('is in the checksums of the parameters that it changes, as a copy of them has it', async () => {
    const model = await load('gpt2');
    const { crc32c } = loadBinding();
    const checksums = () =>
      model.native.parameters().map(({ name }) => {
        const { buffer } = model.native.getParameter(name);
        expect(model.native.parameterChecksum(name), name).toBe(crc32c(new Uint8Array(buffer)));
        return model.native.parameterChecksum(name);
      });
    const before = checksums();
    await model.loadAdapter(join(adapters, 'gpt2'));
    const adapted = checksums();
    const names = model.native.parameters().map(({ name }) => name);
    const differ = names.filter((_, i) => adapted[i] !== before[i]);
    expect(differ).toEqual(names.filter((name) => /(qkv|output)\.weight$/.test(name)));
    expect(() => model.native.parameterChecksum('gone')).toThrow(code('ERR_INVALID_ARGUMENT'));
  });

  test('goes with a copy of the model', async () => {
    const model = await load('qwen3');
    await model.loadAdapter(join(adapters, 'qwen3'));
    const { ids, logits } = await expectedOf('qwen3');
    const copy = new LanguageModel(model.native.copy(), model.family, model.config, undefined);
    models.push(copy);
    model.removeAdapter();
    expectClose(await logitsOf(copy, ids), logits, 1e-5);
  });

  test('without one, there is nothing to save or to merge', async () => {
    const model = await load('gpt2');
    await expect(model.saveAdapter(join(folder, 'none'))).rejects.toThrow(code('ERR_INVALID_ARGUMENT'));
    await expect(model.mergeAdapter()).rejects.toThrow(code('ERR_INVALID_ARGUMENT'));
    model.removeAdapter();
  });
});

describe('an adapter for another model', () => {
  test('of another family, shape or weights is ERR_CHECKPOINT_MISMATCH, and leaves the model as it was', async () => {
    const model = await load('llama');
    const { ids } = await expectedOf('llama');
    const before = await logitsOf(model, ids);
    const refuse = async (directory: string, message: RegExp) => {
      await expect(model.loadAdapter(directory)).rejects.toThrow(code('ERR_CHECKPOINT_MISMATCH', message));
      expect(model.adapter).toBeUndefined();
      expect(await logitsOf(model, ids)).toEqual(before);
    };
    await refuse(join(adapters, 'gpt2'), /c_attn.*no linear layer of this llama model/);
    // The same names, other widths.
    await refuse(join(adapters, 'qwen3'), /lora_A\.weight' is \[3, \d+\]; expected \[3, 64\]/);
    const other = await load('llama');
    const [one = { name: '' }] = other.native.parameters();
    other.native.setParameter(
      one.name,
      other.native.getParameter(one.name).map((value, i) => (i === 7 ? value + 1 : value)),
    );
    await other.addAdapter({ rank: 2 });
    await other.saveAdapter(join(folder, 'other-weights'));
    await refuse(join(folder, 'other-weights'), /other weights/);
  });

  test('with a tensor missing, of another rank, or not finite', async () => {
    const model = await load('gpt2');
    const source = await readSafetensors(join(adapters, 'gpt2', 'adapter_model.safetensors'));
    const names = [...source.tensors.keys()];
    const write = async (
      as: string,
      change: (tensors: Map<string, { shape: readonly number[]; data: Float32Array }>) => void,
    ) => {
      const directory = changed('gpt2', as, () => {});
      const tensors = new Map(
        names.map((name) => {
          const tensor = source.tensors.get(name) ?? expect.unreachable();
          return [name, { shape: tensor.shape, data: Float32Array.from(asFloat32(tensor)) }] as const;
        }),
      );
      change(tensors);
      await writeSafetensors(join(directory, 'adapter_model.safetensors'), tensors);
      return directory;
    };
    const [first = ''] = names;
    const cases = [
      [await write('missing', (tensors) => tensors.delete(first)), 'ERR_CHECKPOINT_MISMATCH', /missing/],
      [await write('empty', (tensors) => tensors.clear()), 'ERR_CHECKPOINT_MISMATCH', /no tensor/],
      [await write('nan', (tensors) => tensors.get(first)?.data.fill(Number.NaN, 2, 3)), 'ERR_NOT_FINITE', /index 2/],
      [
        await write('extra', (tensors) =>
          tensors.set('base_model.model.lm_head.lora_A.weight', { shape: [1], data: new Float32Array(1) }),
        ),
        'ERR_CHECKPOINT_MISMATCH',
        /lm_head/,
      ],
      [changed('gpt2', 'rank', (json) => Object.assign(json, { r: 4 })), 'ERR_CHECKPOINT_MISMATCH', /expected \[4, /],
    ] as const;
    for (const [directory, errorCode, message] of cases) {
      await expect(model.loadAdapter(directory), directory).rejects.toThrow(code(errorCode, message));
      expect(model.adapter).toBeUndefined();
    }
  });

  test('that is no plain LoRA is ERR_UNSUPPORTED_MODEL, by its key', async () => {
    const model = await load('gpt2');
    for (const [key, value] of Object.entries({
      peft_type: 'LOHA',
      use_dora: true,
      use_rslora: true,
      lora_bias: true,
      bias: 'all',
      rank_pattern: { c_attn: 2 },
      alpha_pattern: { c_attn: 2 },
      modules_to_save: ['lm_head'],
      init_lora_weights: 'pissa',
      loftq_config: { bits: 4 },
      use_qalora: true,
      trainable_token_indices: [1, 2],
      r: 0,
      lora_alpha: -1,
      lora_dropout: 1,
      something_new: 'x',
    })) {
      const directory = changed('gpt2', `no-plain-${key}`, (json) => {
        json[key] = value;
      });
      await expect(model.loadAdapter(directory), key).rejects.toThrow(code('ERR_UNSUPPORTED_MODEL', new RegExp(key)));
    }
    const directory = changed('gpt2', 'future', (json) => {
      Object.assign(json, { something_new: null, another: false, more: {}, and: [] });
    });
    await model.loadAdapter(directory);
  });

  test('where there is none', async () => {
    const model = await load('gpt2');
    await expect(model.loadAdapter(join(folder, 'nowhere'))).rejects.toThrow(code('ERR_FILE_NOT_FOUND'));
    mkdirSync(join(folder, 'half'));
    writeFileSync(join(folder, 'half', 'adapter_config.json'), '[]');
    await expect(model.loadAdapter(join(folder, 'half'))).rejects.toThrow(code('ERR_FILE_FORMAT'));
  });
});
