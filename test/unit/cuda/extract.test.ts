import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { loadBinding, type NativeEngine } from '../../../src/binding.js';
import { type ExtractOptions, extractKnowledge } from '../../../src/knowledge/extract.js';
import { LanguageModel } from '../../../src/teacher/language-model.js';
import { pretrainLanguageModel } from '../../../src/teacher/pretrain.js';
import { describeEmulated, type EmulatedMachine, emulatedEngine } from '../../support/emulated-cuda.js';
import { createTinyModel, TINY_MODELS, tinyBatch } from '../../support/tiny-models.js';

const texts = Array.from({ length: 24 }, (_, i) => `number ${i} of ${['red', 'green'][i % 2]} things`);

describeEmulated('extraction on the GPU', () => {
  let cpu: NativeEngine;
  let taught: LanguageModel;
  let root: string;
  beforeAll(async () => {
    root = mkdtempSync(join(tmpdir(), 'limbeck-cuda-extract-'));
    cpu = loadBinding().createEngine({ threads: 1 });
    const architecture = {
      hiddenSize: 16,
      numHiddenLayers: 2,
      numAttentionHeads: 2,
      maxPositionEmbeddings: 32,
      dropout: 0,
    };
    const options = { architecture, tokenizer: { vocabSize: 300 }, training: { epochs: 1 } };
    taught = (await pretrainLanguageModel(cpu, { train: texts, validation: texts.slice(0, 5) }, options)).model;
  });
  afterAll(() => {
    cpu.dispose();
    rmSync(root, { recursive: true });
  });

  const teacherOn = (engine: NativeEngine) =>
    LanguageModel.create(engine, taught.family, taught.config, taught.tokenizer, { seed: 3 });
  const request = (name: string): ExtractOptions => ({
    directory: join(root, name),
    hiddenStates: [1, 2],
    attentions: [2],
    logits: { topK: 4 },
    shardTexts: 10,
    batchTokens: 50,
  });
  const filesOf = (name: string) =>
    readdirSync(join(root, name))
      .sort()
      .map((file) => [file, readFileSync(join(root, name, file)).toString('latin1')]);
  const extractOn = async (
    name: string,
    options: { precision?: 'float32' | 'bfloat16'; machine?: EmulatedMachine } = {},
    changes: Partial<ExtractOptions> = {},
  ) => {
    const engine = emulatedEngine(options);
    try {
      await extractKnowledge(teacherOn(engine), texts, { ...request(name), ...changes });
    } finally {
      engine.dispose();
    }
    return filesOf(name);
  };

  test.each(['float32', 'bfloat16'] as const)(
    'in %s gives the same store however passes are cut',
    async (precision) => {
      const store = await extractOn(`${precision}-50`, { precision });
      expect(store.length).toBe(4);
      expect(await extractOn(`${precision}-1`, { precision }, { batchTokens: 1 })).toEqual(store);
      expect(await extractOn(`${precision}-all`, { precision }, { batchTokens: 10_000 })).toEqual(store);
    },
  );

  test('on a GPU that is lost leaves whole shards alone, and goes on with the same bytes', async () => {
    const expected = await extractOn('undisturbed');
    const wholeIn = (name: string) => readdirSync(join(root, name)).filter((file) => file.endsWith('safetensors'));
    // Lost after ever more calls, until some of the three shards were done.
    let calls = 100;
    for (let isDone = false; !isDone; calls += 20) {
      await expect(extractOn(`lost-${calls}`, { machine: { calls_until_lost: calls } })).rejects.toMatchObject({
        code: 'ERR_DEVICE_LOST',
      });
      expect(readdirSync(join(root, `lost-${calls}`)).filter((file) => file.endsWith('.tmp'))).toEqual([]);
      isDone = wholeIn(`lost-${calls}`).length > 0;
    }
    const name = `lost-${calls - 20}`;
    expect(wholeIn(name).length).toBeLessThan(3);
    expect(await extractOn(name)).toEqual(expected);
  });

  test('passes that overlap give what they give alone, and errors of one stay its own', async () => {
    const engine = emulatedEngine({ precision: 'bfloat16' });
    const models = [1, 2].map((seed) => createTinyModel(engine, TINY_MODELS.gpt2, seed));
    const { labels, ...batch } = tinyBatch(TINY_MODELS.gpt2);
    const requests = Array.from({ length: 12 }, (_, i) => ({
      ...batch,
      inputIds: batch.inputIds.map((id) => (id + i) % 37),
      hiddenStates: [i % 3],
      ...(i % 4 === 1 && { labels }),
      ...(i % 4 === 2 && { logits: 'dense' as const }),
    }));
    const alone = [];
    for (const [i, one] of requests.entries()) alone.push(await models[i % 2]?.forward(one));
    const begun = requests.map((one, i) => {
      const bad = i === 5 ? { inputIds: one.inputIds.map(() => 37) } : {};
      return models[i % 2]?.forward({ ...one, ...bad });
    });
    const results = await Promise.allSettled(begun);
    for (const [i, result] of results.entries()) {
      if (i === 5) expect(result).toMatchObject({ reason: { code: 'ERR_INVALID_ARGUMENT' } });
      else expect(result).toMatchObject({ value: alone[i] });
    }
    engine.dispose();
  });

  test('disposed of with passes at work settles them all', async () => {
    const engine = emulatedEngine();
    const model = createTinyModel(engine, TINY_MODELS.gpt2, 1);
    const passes = Array.from({ length: 8 }, () =>
      model.forward({ ...tinyBatch(TINY_MODELS.gpt2), hiddenStates: [2] }).then(
        ({ hiddenStates }) => hiddenStates[0]?.every(Number.isFinite),
        ({ code }) => code,
      ),
    );
    await new Promise((resolve) => setTimeout(resolve, 2));
    engine.dispose();
    for (const result of await Promise.all(passes)) expect([true, 'ERR_DISPOSED']).toContain(result);
  });
});
