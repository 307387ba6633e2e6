import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import type { NativeEngine } from '../../../src/binding.js';
import { extractKnowledge } from '../../../src/knowledge/extract.js';
import { distillLanguageModel } from '../../../src/student/language-student.js';
import { adaptLanguageModel } from '../../../src/teacher/adapt.js';
import { LanguageModel } from '../../../src/teacher/language-model.js';
import { pretrainLanguageModel } from '../../../src/teacher/pretrain.js';
import { copyParameters } from '../../../src/teacher/training-checkpoint.js';
import { expectClose } from '../../support/tiny-models.js';
import { temporaryDirectory } from './fake-model.js';
import { CORPUS, createNativeEngine, TEXTS, TINY } from './texts.js';

const folder = temporaryDirectory();
const teacher = join(folder, 'teacher');
let engine: NativeEngine;
const models: LanguageModel[] = [];
/** What the teacher was not trained on. */
const OTHER = {
  train: CORPUS.train.map((text) => text.split(' ').reverse().join(' ')),
  validation: CORPUS.validation.map((text) => text.split(' ').reverse().join(' ')),
};
const TRAINING = { epochs: 6, learningRate: 2e-2, batchTokens: 128, seed: 3 };
const LORA = { rank: 4, dropout: 0.1, targets: ['attention.qkv', 'attention.output', 'mlp.input', 'mlp.output'] };

beforeAll(async () => {
  engine = createNativeEngine();
  const { model } = await pretrainLanguageModel(engine, CORPUS, TINY);
  await model.save(teacher);
  model.dispose();
});
afterEach(() => {
  for (const model of models.splice(0)) model.dispose();
});
afterAll(() => engine.dispose());

const code = (value: string) => expect.objectContaining({ code: value });
const parametersOf = ({ native }: LanguageModel) =>
  new Map(native.parameters().map(({ name }) => [name, native.getParameter(name)]));

async function load(directory = teacher): Promise<LanguageModel> {
  const model = await LanguageModel.load(engine, directory);
  models.push(model);
  return model;
}

async function adapted(): Promise<LanguageModel> {
  const model = await load();
  await adaptLanguageModel(engine, model, OTHER, { ...TRAINING, lora: LORA });
  return model;
}

describe('training an adapter', () => {
  test('learns other texts, and leaves the weights under it as they are, to the bit', async () => {
    const model = await load();
    const base = parametersOf(model);
    const before = (await model.loss(OTHER.validation)).loss;
    const options = { ...TRAINING, epochs: 24, lora: LORA };
    const { epochs, bestEpoch } = await adaptLanguageModel(engine, model, OTHER, options);
    const { loss } = await model.loss(OTHER.validation);
    expect(loss).toBeLessThan(0.5 * before);
    expect(loss).toBeCloseTo(epochs[bestEpoch - 1]?.validationLoss ?? Number.NaN, 10);
    expect(model.adapter?.numParameters).toBeLessThan(0.35 * model.numParameters);
    model.removeAdapter();
    expect(parametersOf(model)).toEqual(base);
    expect((await model.loss(OTHER.validation)).loss).toBe(before);
  });

  test('goes on from a checkpoint, small as the adapter, with the bits of an uninterrupted run', async () => {
    const options = { ...TRAINING, epochs: 3, lora: LORA };
    const whole = await load();
    await adaptLanguageModel(engine, whole, OTHER, options);

    const checkpoint = { path: join(folder, 'state'), fingerprint: 'f', everySteps: 1 };
    const run = async (model: LanguageModel, stopAt = Number.POSITIVE_INFINITY) => {
      const controller = new AbortController();
      const steps: number[] = [];
      const result = adaptLanguageModel(engine, model, OTHER, options, {
        checkpoint,
        signal: controller.signal,
        onProgress: ({ done, total }) => {
          steps.push(done);
          if (done >= stopAt * total) controller.abort();
        },
      });
      return { steps, result };
    };
    const stopped = await load();
    await expect((await run(stopped, 0.3)).result).rejects.toThrow(code('ERR_ABORTED'));
    // Three copies of the adapter and its moments, and no more than one of the best epoch.
    const bytes = 4 * (stopped.adapter?.numParameters ?? Number.NaN);
    expect(statSync(checkpoint.path).size).toBeLessThan(4 * bytes + 20_000);
    expect(statSync(checkpoint.path).size).toBeGreaterThan(3 * bytes);

    // Another base, and another adapter.
    const other = await load();
    const [one = { name: '' }] = other.native.parameters();
    other.native.setParameter(
      one.name,
      other.native.getParameter(one.name).map((value) => 1.5 * value),
    );
    await expect((await run(other)).result).rejects.toThrow(code('ERR_CHECKPOINT_MISMATCH'));
    const context = { checkpoint };
    for (const lora of [{ ...LORA, alpha: 3 }, { ...LORA, rank: 2 }, undefined]) {
      const again = adaptLanguageModel(engine, await load(), OTHER, { ...options, lora }, context);
      await expect(again).rejects.toThrow(code('ERR_CHECKPOINT_MISMATCH'));
    }

    // In the process that stopped, and stopped again in the last epoch; then in another one.
    await expect((await run(stopped, 0.8)).result).rejects.toThrow(code('ERR_ABORTED'));
    const resumed = await load();
    const { steps, result } = await run(resumed);
    await result;
    expect(steps[0]).toBeGreaterThan(2);
    expect(copyParameters(resumed.native)).toEqual(copyParameters(whole.native));
  });

  test('one seed gives one adapter, on any number of threads', async () => {
    const one = copyParameters((await adapted()).native);
    const threads = engine;
    engine = (await import('../../../src/binding.js')).loadBinding().createEngine({ threads: 3 });
    try {
      const model = await LanguageModel.load(engine, teacher);
      await adaptLanguageModel(engine, model, OTHER, { ...TRAINING, lora: LORA });
      expect(copyParameters(model.native)).toEqual(one);
    } finally {
      engine.dispose();
      engine = threads;
    }
  });

  test('an adapter that is there is trained further, without lora as with the same', async () => {
    const model = await adapted();
    const before = copyParameters(model.native);
    await adaptLanguageModel(engine, model, CORPUS, { ...TRAINING, epochs: 1 });
    expect(copyParameters(model.native)).not.toEqual(before);
    await adaptLanguageModel(engine, model, CORPUS, { ...TRAINING, epochs: 1, lora: LORA });
    const again = adaptLanguageModel(engine, model, CORPUS, { ...TRAINING, lora: { rank: 1 } });
    await expect(again).rejects.toThrow(code('ERR_INVALID_ARGUMENT'));
  });

  test('a trainer that was made before the adapter is refused', async () => {
    const model = await load();
    const options = { optimizer: 'adamw', beta1: 0.9, beta2: 0.9, epsilon: 1e-8, weightDecay: 0, momentum: 0 } as const;
    const trainer = engine.createTrainer(model.native, { ...options, maxGradNorm: 0 });
    const { first } = trainer.getState();
    await model.addAdapter(LORA);
    const { labels, batch } = model.label(model.encode(['the cat likes']), { probability: 0.1, seed: 0, position: 0 });
    const losses = { ce: 1, kd: 0, hidden: 0, attention: 0, temperature: 1, fusion: 1, gate: 1 };
    const request = { ...batch, labels, learningRate: 0.1, dropoutSeed: -1, losses, sampledNegatives: 0 };
    await expect(trainer.step(request)).rejects.toThrow(code('ERR_INVALID_ARGUMENT'));
    // Its moments are those of the model.
    expect(trainer.getState().first).toEqual(first);
    trainer.setState({ stepCount: 1, first, second: first });
    const next = engine.createTrainer(model.native, { ...options, maxGradNorm: 0 });
    expect(next.getState().first.length).toBeLessThan(first.length);
    expect((await next.step(request)).gradNorm).toBeGreaterThan(0);
    expect(() => next.setState({ stepCount: 1, first, second: first })).toThrow(code('ERR_SHAPE_MISMATCH'));
  });
});

describe('what reads an adapted model reads its adapter', () => {
  test('loss, states, text and vectors are those of the saved model, which is merged', async () => {
    const model = await adapted();
    const plain = await load();
    await model.save(join(folder, 'merged'));
    const merged = await load(join(folder, 'merged'));
    expect(merged.adapter).toBeUndefined();
    expect(readFileSync(join(folder, 'merged', 'config.json'))).toEqual(readFileSync(join(teacher, 'config.json')));

    const [ours, theirs, base] = await Promise.all(
      [model, merged, plain].map(async (one) => ({
        loss: (await one.loss(OTHER.validation)).loss,
        vectors: await one.embed(TEXTS.slice(0, 9)),
        text: await one.generate('house', { maxNewTokens: 16 }),
        sampled: await one.generate('house', { maxNewTokens: 16, temperature: 1, seed: 2 }),
      })),
    );
    expect(ours?.loss).toBeCloseTo(theirs?.loss ?? Number.NaN, 5);
    expectClose(ours?.vectors, theirs?.vectors, 1e-5);
    expect(ours?.text).toBe(theirs?.text);
    expect(ours?.sampled).toBe(theirs?.sampled);
    expect(ours?.text).not.toBe(base?.text);
    expect(base?.loss).toBeGreaterThan(1.2 * (ours?.loss ?? Number.NaN));
  });

  test('knowledge: states of the adapter, in a store that the model without it is refused', async () => {
    const model = await adapted();
    const options = { directory: join(folder, 'knowledge'), hiddenStates: [2], pooling: 'mean' as const };
    const texts = TEXTS.slice(0, 8);
    const knowledge = await extractKnowledge(model, texts, options);
    expectClose(await knowledge.hiddenState(2), await model.embed(texts), 1e-5);
    await expect(extractKnowledge(await load(), texts, options)).rejects.toThrow(code('ERR_CHECKPOINT_MISMATCH'));
    await model.mergeAdapter();
    // The merged model is the same teacher.
    await extractKnowledge(model, texts, options);
  });

  test('students start from the adapted weights, and learn its distribution', async () => {
    const model = await adapted();
    const students: LanguageModel[] = [];
    for (const one of [model, await merge(model)]) {
      const result = await distillLanguageModel(engine, one, OTHER, {
        architecture: { ...TINY.architecture, numHiddenLayers: 1 },
        initialise: 'layers',
        training: { ...TRAINING, epochs: 1 },
      });
      students.push(result.model);
      models.push(result.model);
    }
    const [one, two] = students.map((student) => copyParameters(student.native));
    for (const [name, values] of one ?? []) expectClose(values, two?.get(name), 2e-3, name);
  });

  async function merge(model: LanguageModel): Promise<LanguageModel> {
    await model.save(join(folder, 'merged-teacher'));
    return load(join(folder, 'merged-teacher'));
  }
});
