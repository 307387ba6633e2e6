import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  loadBinding,
  type NativeEngine,
  type OptimizerOptions,
  type StepMemory,
  type StepRequest,
  type StepResult,
  type TransformerConfig,
} from '../../../src/binding.js';
import {
  extractedStates,
  LAYERS,
  NO_LOSS,
  POSSIBLE,
  SEVERAL,
  tinyStep,
  withDropout,
} from '../../support/tiny-losses.js';
import { createTinyModel, expectClose, TINY_MODELS } from '../../support/tiny-models.js';

const OPTIMIZER: OptimizerOptions = {
  optimizer: 'adamw',
  beta1: 0.9,
  beta2: 0.99,
  epsilon: 1e-8,
  weightDecay: 0.05,
  momentum: 0.9,
  maxGradNorm: 0.5,
};
const TERMS = ['loss', 'ce', 'kd', 'hidden', 'attention', 'relation', 'gradNorm'] as const;

let engine: NativeEngine;
beforeAll(() => {
  engine = loadBinding().createEngine({ threads: 2 });
});
afterAll(() => {
  engine.dispose();
});

/** Loss and gradients of one step of a fresh model. */
async function gradientsOf(config: TransformerConfig, step: StepRequest, on = engine) {
  const model = createTinyModel(on, config, 2);
  const trainer = on.createTrainer(model, OPTIMIZER);
  const result = await trainer.computeGradients(step);
  const gradients = new Map(model.parameters().map(({ name }) => [name, model.getGradient(name)]));
  const pairs = step.losses.hidden > 0 ? [step.teacher ?? []].flat().flatMap(({ layerMap }) => layerMap) : [];
  for (const i of pairs.keys()) gradients.set(`${i}`, trainer.getProjectionGradient(i));
  trainer.dispose();
  model.dispose();
  return { result, gradients };
}
type Gradients = Awaited<ReturnType<typeof gradientsOf>>;

/** Equal but for rounding: of each term to 1e-5, of each gradient to 1e-5 of the largest. */
function expectSame(actual: Gradients, expected: Gradients): void {
  for (const term of TERMS) {
    const value = expected.result[term];
    expect(Math.abs(actual.result[term] - value), term).toBeLessThanOrEqual(1e-5 * Math.abs(value));
  }
  expect(actual.result.numLabels).toBe(expected.result.numLabels);
  const largest = Math.max(...[...expected.gradients.values()].map((values) => Math.max(...values.map(Math.abs))));
  expect(largest).toBeGreaterThan(0);
  for (const [name, values] of expected.gradients) {
    const other = actual.gradients.get(name);
    const difference = Math.max(...values.map((value, i) => Math.abs(value - (other?.[i] ?? Number.NaN))));
    expect(difference, name).toBeLessThanOrEqual(1e-5 * largest);
  }
}

/** The second of the four sequences, of one token, learns nothing. */
function withoutOneLabel(step: StepRequest): StepRequest {
  const end = step.sequenceOffsets[2] ?? 0;
  return { ...step, labels: step.labels.map((label, i) => (i === end - 1 ? -100 : label)) };
}

describe('activation checkpointing', () => {
  test.each([...POSSIBLE, ...SEVERAL])(
    'of %s by %s has the bits of a step that keeps all',
    async (kind, _, ...loss) => {
      const config = { ...withDropout(TINY_MODELS[kind]), numHiddenLayers: 4 };
      const [losses, signal, others] = loss;
      for (const dropoutSeed of [-1, 7]) {
        const step = await tinyStep(engine, config, losses, signal, { dropoutSeed, ...others });
        for (const microBatchTokens of [undefined, 6]) {
          const kept = await gradientsOf(config, { ...step, microBatchTokens });
          expect(await gradientsOf(config, { ...step, microBatchTokens, activationCheckpointing: true })).toEqual(kept);
        }
      }
    },
  );

  test('of one block, and in bfloat16, has the same bits, too', async () => {
    const half = loadBinding().createEngine({ threads: 2, precision: 'bfloat16' });
    for (const [on, numHiddenLayers] of [
      [engine, 1],
      [half, 3],
    ] as const) {
      const config = { ...withDropout(TINY_MODELS.llama), numHiddenLayers };
      const step = await tinyStep(on, config, { ce: 1 }, undefined, { dropoutSeed: 2 });
      const kept = await gradientsOf(config, step, on);
      expect(await gradientsOf(config, { ...step, activationCheckpointing: true }, on)).toEqual(kept);
    }
    half.dispose();
  });

  test('and micro batches train an adapter as they train a model', async () => {
    const config = { ...TINY_MODELS.gpt2, numHiddenLayers: 3 };
    const step = await tinyStep(engine, config, { ce: 1 }, undefined, { dropoutSeed: 7 });
    const stateAfter = async (memory: StepMemory) => {
      const model = createTinyModel(engine, config, 2);
      const targets = [0, 1, 2].map((l) => ({
        name: `${l}`,
        linear: `layers.${l}.mlp.output`,
        firstRow: 0,
        numRows: 16,
      }));
      model.attachAdapter({ rank: 2, scale: 1, dropout: 0.4, seed: 3, targets });
      // Of zeros, which B is at the start, A would have no gradient, and its dropout no effect.
      for (const { name } of model.trainableParameters()) {
        model.setParameter(
          name,
          model.getParameter(name).map((_, i) => Math.sin(i + 1)),
        );
      }
      const trainer = engine.createTrainer(model, { ...OPTIMIZER, optimizer: 'sgd' });
      await trainer.step({ ...step, ...memory });
      return trainer.getState().first;
    };
    const kept = await stateAfter({});
    expect(kept.some((value) => value !== 0)).toBe(true);
    expect(await stateAfter({ activationCheckpointing: true })).toEqual(kept);
    expectClose(await stateAfter({ microBatchTokens: 6 }), kept, 1e-5);
  });

  test('is a yes or a no', async () => {
    const trainer = engine.createTrainer(createTinyModel(engine, TINY_MODELS.gpt2, 2), OPTIMIZER);
    const step = await tinyStep(engine, TINY_MODELS.gpt2, { ce: 1 }, undefined);
    await expect(async () => trainer.step({ ...step, activationCheckpointing: 1 as never })).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
    });
  });
});

describe('a step in micro batches', () => {
  // Sequences of 12, 1, 5 and 2 tokens: each alone; 12 | 1, 5 | 2; 12, 1 | 5, 2; all at once.
  test.each([...POSSIBLE, ...SEVERAL])(
    'of %s by %s has the loss and the gradients of the whole batch',
    async (kind, _, ...loss) => {
      const config = withDropout(TINY_MODELS[kind]);
      const [losses, signal, others] = loss;
      const step = withoutOneLabel(await tinyStep(engine, config, losses, signal, { dropoutSeed: 7, ...others }));
      const whole = await gradientsOf(config, step);
      for (const microBatchTokens of [1, 6, 13]) {
        expectSame(await gradientsOf(config, { ...step, microBatchTokens }), whole);
      }
      expect(await gradientsOf(config, { ...step, microBatchTokens: 20 })).toEqual(whole);
    },
  );

  test('gives the same bits each time, and takes its step from them', async () => {
    const config = withDropout(TINY_MODELS.llama);
    const step = { ...(await tinyStep(engine, config, { ce: 1 }, undefined, { dropoutSeed: 3 })), microBatchTokens: 6 };
    const run = async () => {
      const model = createTinyModel(engine, config, 2);
      const trainer = engine.createTrainer(model, OPTIMIZER);
      const results: StepResult[] = [];
      for (let i = 0; i < 3; i++) results.push(await trainer.step(step));
      expect(trainer.getState().stepCount).toBe(3);
      return { results, values: model.getParameter('layers.0.attention.qkv.weight') };
    };
    const first = await run();
    expect(await run()).toEqual(first);
    expect(first.results[2]?.loss).toBeLessThan(first.results[0]?.loss ?? 0);
  });

  test('that meets what is no number, in whichever part, changes nothing', async () => {
    const config = TINY_MODELS.gpt2;
    const model = createTinyModel(engine, config, 2);
    const trainer = engine.createTrainer(model, OPTIMIZER);
    const good = await tinyStep(engine, config, { ce: 1, hidden: 0.5 }, extractedStates, { microBatchTokens: 6 });
    await trainer.step(good);
    const before = model.parameters().map(({ name }) => model.getParameter(name));
    const state = trainer.getState();
    const projection = trainer.getProjection(1);
    const hidden = [good.teacher ?? []].flat().flatMap((teacher) => teacher.hidden ?? []);
    for (const sequence of [0, 2, 3]) {
      const token = good.sequenceOffsets[sequence] ?? 0;
      const broken = hidden.map((array) => array.with(token * 24, Number.NaN));
      const step = { ...good, teacher: { layerMap: LAYERS, hidden: broken } };
      await expect(trainer.step(step)).rejects.toMatchObject({ code: 'ERR_NOT_FINITE' });
    }
    expect(model.parameters().map(({ name }) => model.getParameter(name))).toEqual(before);
    expect(trainer.getState()).toEqual(state);
    expect(trainer.getProjection(1)).toEqual(projection);
    expect(Number.isFinite((await trainer.step(good)).loss)).toBe(true);
  });

  test('refuses a size below one token, and a batch without any label', async () => {
    const config = TINY_MODELS.gpt2;
    const trainer = engine.createTrainer(createTinyModel(engine, config, 2), OPTIMIZER);
    const step = await tinyStep(engine, config, { ce: 1 }, undefined);
    const bad: Partial<StepRequest>[] = [
      { microBatchTokens: 0 },
      { microBatchTokens: 1.5 },
      { microBatchTokens: 4, labels: step.labels.map(() => -100) },
      { microBatchTokens: 4, labels: step.labels.with(19, 37) },
      { microBatchTokens: 4, losses: { ...NO_LOSS, kd: 1 } },
    ];
    for (const change of bad) {
      await expect(async () => trainer.step({ ...step, ...change })).rejects.toMatchObject({
        code: 'ERR_INVALID_ARGUMENT',
      });
    }
  });
});
