import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  loadBinding,
  type NativeEngine,
  type NativeTrainer,
  type NativeTransformer,
  type OptimizerOptions,
  type StepRequest,
  type TransformerConfig,
} from '../../../src/binding.js';
import { interpolateParameters, projectTeacher } from '../../../src/student/transfer.js';
import { describeEmulated, emulatedEngine } from '../../support/emulated-cuda.js';
import {
  extractedStates,
  LAYERS,
  NO_LOSS,
  POSSIBLE,
  TEACHER,
  teacherOn,
  tinyStep,
  withDropout,
} from '../../support/tiny-losses.js';
import { createTinyModel, expectClose, TINY_MODELS, tinyBatch, wave } from '../../support/tiny-models.js';

const OPTIMIZER: OptimizerOptions = {
  optimizer: 'adamw',
  beta1: 0.9,
  beta2: 0.99,
  epsilon: 1e-3, // so large that a gradient of nearly zero, in whatever sign, moves little
  weightDecay: 0.05,
  momentum: 0.9,
  maxGradNorm: 0.5,
};

/** A model and its trainer, with the same values on every engine. */
interface Student {
  readonly engine: NativeEngine;
  readonly model: NativeTransformer;
  readonly trainer: NativeTrainer;
}

describeEmulated('training on the GPU', () => {
  let cpu: NativeEngine;
  let gpu: NativeEngine;
  beforeAll(() => {
    cpu = loadBinding().createEngine({ threads: 1 });
    gpu = emulatedEngine();
  });
  afterAll(() => {
    cpu.dispose();
    gpu.dispose();
  });

  function students(config: TransformerConfig, options: Partial<OptimizerOptions> = {}): [Student, Student] {
    const start = (engine: NativeEngine): Student => {
      const model = createTinyModel(engine, config, 2);
      return { engine, model, trainer: engine.createTrainer(model, { ...OPTIMIZER, ...options }) };
    };
    return [start(cpu), start(gpu)];
  }

  function expectSameParameters(actual: NativeTransformer, expected: NativeTransformer, tolerance: number): void {
    for (const { name } of expected.parameters()) {
      expectClose(actual.getParameter(name), expected.getParameter(name), tolerance, name);
    }
  }

  test.each(POSSIBLE)(
    'of %s by %s has the gradients and takes the steps of the processor',
    async (kind, _, losses, signal, others) => {
      const config = withDropout(TINY_MODELS[kind]);
      const pair = students(config);
      const [expected, actual] = await Promise.all(
        pair.map(async (student) => {
          const step = await tinyStep(student.engine, config, losses, signal, others);
          const first = await student.trainer.computeGradients(step);
          const names = student.model.parameters().map(({ name }) => name);
          const gradients = new Map(names.map((name) => [name, student.model.getGradient(name)]));
          const projections =
            (losses.hidden ?? 0) > 0 ? LAYERS.map((_, i) => student.trainer.getProjectionGradient(i)) : [];
          const steps = [];
          for (let i = 0; i < 3; i++) steps.push(await student.trainer.step(step));
          return { first, gradients, projections, steps };
        }),
      );
      if (expected === undefined || actual === undefined) throw new Error('unreachable');
      const largest = Math.max(...[...expected.gradients.values()].map((values) => Math.max(...values.map(Math.abs))));
      for (const [name, gradient] of expected.gradients) {
        const difference = actual.gradients.get(name)?.map((value, i) => Math.abs(value - (gradient[i] ?? 0)));
        expect(Math.max(...(difference ?? [Number.NaN])), name).toBeLessThan(2e-5 * largest);
      }
      for (const [i, values] of expected.projections.entries()) {
        expectClose(actual.projections[i], values, 1e-4, `projection ${i}`);
      }
      for (const [a, e] of [
        [actual.first, expected.first] as const,
        ...actual.steps.map((a, i) => [a, expected.steps[i]] as const),
      ]) {
        for (const key of ['loss', 'ce', 'kd', 'hidden', 'attention', 'relation', 'gradNorm', 'numLabels'] as const) {
          const value = e?.[key] ?? Number.NaN;
          expect(Math.abs(a[key] - value), key).toBeLessThan(1e-4 * Math.max(1, Math.abs(value)));
        }
      }
      expect(expected.steps[2]?.loss).not.toBe(expected.steps[0]?.loss);
      expectSameParameters(pair[1].model, pair[0].model, 2e-4);
    },
  );

  test.each(POSSIBLE.filter(([kind]) => kind === 'gpt2'))(
    'of %s by %s in micro batches, without what blocks keep, has the gradients of the whole batch on the processor',
    async (kind, _, losses, signal, others) => {
      const config = withDropout(TINY_MODELS[kind]);
      const [whole, cut] = students(config);
      const memory = [{}, { microBatchTokens: 6, activationCheckpointing: true }];
      const results = [];
      for (const [i, student] of [whole, cut].entries()) {
        const step = await tinyStep(student.engine, config, losses, signal, { dropoutSeed: 7, ...others });
        results.push(await student.trainer.computeGradients({ ...step, ...memory[i] }));
      }
      const [expected, actual] = results;
      for (const key of ['loss', 'ce', 'kd', 'hidden', 'attention', 'relation', 'gradNorm', 'numLabels'] as const) {
        const value = expected?.[key] ?? Number.NaN;
        expect(Math.abs((actual?.[key] ?? Number.NaN) - value), key).toBeLessThan(1e-4 * Math.max(1, Math.abs(value)));
      }
      const names = whole.model.parameters().map(({ name }) => name);
      const flat = ({ model }: Student) => Float32Array.from(names.flatMap((name) => [...model.getGradient(name)]));
      expectClose(flat(cut), flat(whole), 2e-5, 'gradients');
    },
  );

  test.each([
    ['token types that the student lacks', { typeVocabSize: 2 }, TINY_MODELS.gpt2],
    ['positions from another one on', { positionOffset: 2 }, TINY_MODELS.gpt2],
    ['fewer positions than the student', {}, { ...TINY_MODELS.gpt2, positionOffset: 2 }],
  ] as const)('under a teacher with %s has the losses of the processor', async (_, teacherChange, config) => {
    // Twelve tokens are a batch of their own, beside whose pass the teacher's runs; the whole is run as a graph at last.
    for (const memory of [{}, { microBatchTokens: 12 }]) {
      const results = [];
      for (const { engine, model, trainer } of students(config)) {
        const teacher = createTinyModel(engine, { ...TEACHER, ...teacherChange }, 8);
        const step = await tinyStep(engine, config, { ce: 0.5, kd: 0.5, hidden: 0.3 }, () => () => ({
          model: teacher,
          layerMap: LAYERS,
        }));
        const steps = [];
        for (let i = 0; i < 4; i++) steps.push(await trainer.step({ ...step, ...memory }));
        results.push({ steps, word: model.getParameter('embeddings.word') });
      }
      const [expected, actual] = results;
      for (const [i, { kd, hidden }] of (expected?.steps ?? []).entries()) {
        expect(actual?.steps[i]?.kd).toBeCloseTo(kd, 4);
        expect(actual?.steps[i]?.hidden).toBeCloseTo(hidden, 4);
      }
      expectClose(actual?.word, expected?.word, 2e-4);
    }
  });

  test.each([{ optimizer: 'sgd' }, { optimizer: 'sgd', momentum: 0, maxGradNorm: 0 }, { maxGradNorm: 0 }] as const)(
    'with %j takes the steps of the processor',
    async (options) => {
      const config = TINY_MODELS.gpt2;
      const pair = students(config, options);
      for (const student of pair) {
        const step = await tinyStep(student.engine, config, { ce: 1, hidden: 0.5 }, extractedStates);
        for (let i = 0; i < 3; i++) await student.trainer.step(step);
      }
      expectSameParameters(pair[1].model, pair[0].model, 2e-4);
      for (const i of [0, 1]) {
        expectClose(pair[1].trainer.getProjection(i), pair[0].trainer.getProjection(i), 2e-4, `projection ${i}`);
      }
      const [expected, actual] = pair.map(({ trainer }) => trainer.getState());
      expect(actual?.stepCount).toBe(3);
      expectClose(actual?.first, expected?.first, 1e-4, 'first');
      expectClose(actual?.second, expected?.second, 1e-4, 'second');
    },
  );

  test.each(Object.entries(TINY_MODELS))('of %s in bfloat16 is near', async (_, config) => {
    const engine = emulatedEngine({ precision: 'bfloat16' });
    const [expected] = students(config);
    const model = createTinyModel(engine, config, 2);
    const actual = { engine, model, trainer: engine.createTrainer(model, OPTIMIZER) };
    const results = [];
    for (const student of [expected, actual]) {
      const step = await tinyStep(
        student.engine,
        config,
        { ce: 1, kd: 0.5, hidden: 0.5, relation: 0.5 },
        (c) => () => ({
          model: teacherOn(student.engine, c),
          layerMap: LAYERS,
          relationHeads: 2,
        }),
      );
      const first = await student.trainer.computeGradients(step);
      const gradient = student.model.getGradient('layers.0.attention.qkv.weight');
      for (let i = 0; i < 3; i++) await student.trainer.step(step);
      results.push({ first, gradient, last: await student.trainer.step(step) });
    }
    const [onCpu, onGpu] = results;
    if (onCpu === undefined || onGpu === undefined) throw new Error('unreachable');
    for (const key of ['first', 'last'] as const) {
      for (const term of ['loss', 'ce', 'kd', 'hidden', 'relation', 'gradNorm'] as const) {
        const value = onCpu[key][term];
        expect(Math.abs(onGpu[key][term] - value), `${key} ${term}`).toBeLessThan(
          0.05 * Math.max(0.1, Math.abs(value)),
        );
      }
    }
    expectClose(onGpu.gradient, onCpu.gradient, 0.1, 'gradient');
    engine.dispose();
  });

  test('goes on from a saved state with the same bits', async () => {
    const config = TINY_MODELS.gpt2;
    const [, one] = students(config);
    const [, other] = students(config);
    const step = await tinyStep(one.engine, config, { ce: 1, hidden: 1 }, extractedStates);
    for (let i = 0; i < 2; i++) await one.trainer.step(step);
    for (const { name } of one.model.parameters()) other.model.setParameter(name, one.model.getParameter(name));
    for (const i of [0, 1]) other.trainer.setProjection(i, 24, 16, one.trainer.getProjection(i));
    other.trainer.setState(one.trainer.getState());
    expect(other.trainer.getState()).toEqual(one.trainer.getState());
    expect(await other.trainer.step(step)).toEqual(await one.trainer.step(step));
    for (const { name } of one.model.parameters()) {
      expect(other.model.getParameter(name), name).toEqual(one.model.getParameter(name));
    }
    expect(() =>
      other.trainer.setState({ stepCount: 1, first: new Float32Array(3), second: new Float32Array(3) }),
    ).toThrow(expect.objectContaining({ code: 'ERR_SHAPE_MISMATCH' }));
    expect(() => other.trainer.setProjection(0, 23, 16, new Float32Array(23 * 16))).toThrow(
      expect.objectContaining({ code: 'ERR_SHAPE_MISMATCH' }),
    );
    expect(() => other.trainer.getProjection(2)).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }));
  });

  test('gives the same bits each time', async () => {
    const config = withDropout(TINY_MODELS.sequence);
    const runs = await Promise.all(
      [0, 1].map(async () => {
        const [, student] = students(config);
        const step = await tinyStep(student.engine, config, { ce: 1 }, undefined, { dropoutSeed: 3 });
        const results = [await student.trainer.step(step), await student.trainer.step(step)];
        return { results, table: student.model.itemTable() };
      }),
    );
    expect(runs[1]).toEqual(runs[0]);
  });

  test('takes steps that are asked for at once as one after the other, and none after one that is not finite', async () => {
    const config = withDropout(TINY_MODELS.sequence);
    const [, one] = students(config);
    const [, other] = students(config);
    const steps = await Promise.all(
      [3, 4, 5, 6].map((seed) =>
        tinyStep(one.engine, config, { ce: 1 }, undefined, { dropoutSeed: seed, sampledNegatives: 9 }),
      ),
    );
    const results = [];
    for (const step of steps) results.push(await one.trainer.step(step));
    expect(await Promise.all(steps.map((step) => other.trainer.step(step)))).toEqual(results);
    expect(() => other.trainer.getState()).not.toThrow();
    expect(other.trainer.getState()).toEqual(one.trainer.getState());
    expect(other.model.itemTable()).toEqual(one.model.itemTable());

    const [good, far] = steps as [StepRequest, StepRequest];
    const outcomes = await Promise.allSettled([
      other.trainer.step({ ...far, learningRate: 3e37 }),
      other.trainer.step(good),
      other.trainer.step(good),
    ]);
    expect(outcomes.map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'rejected']);
    for (const outcome of outcomes.slice(1)) {
      expect(outcome).toMatchObject({ reason: { code: 'ERR_NOT_FINITE' } });
    }
    expect(other.trainer.getState().stepCount).toBe(5);
  });

  const TEXT = { inputIds: Int32Array.of(1, 2), sequenceOffsets: Int32Array.of(0, 2) };
  const READERS: [string, (engine: NativeEngine, model: NativeTransformer) => Promise<Float32Array> | Float32Array][] =
    [
      ['getParameter()', (_, model) => model.getParameter('layers.1.mlp.output.weight')],
      ['itemTable()', (_, model) => model.itemTable()],
      ['copy()', (_, model) => model.copy().getParameter('layers.0.attention.qkv.weight')],
      [
        'interpolate()',
        async (_, model) => {
          await model.interpolate('embeddings.position', new Float32Array(12 * 16), 0.5);
          return model.getParameter('embeddings.position');
        },
      ],
      [
        'project()',
        async (engine, model) => {
          const [first] = await engine
            .createTransformer(TINY_MODELS.gpt2)
            .project(model, { layers: [1, 2], width: 'selection' });
          return first?.values ?? new Float32Array();
        },
      ],
      [
        'importance',
        async (engine, model) => {
          const importance = engine.createImportance(model);
          await importance.add({ ...TEXT, labels: Int32Array.of(3, -100) });
          return importance.squaredGradient('embeddings.position');
        },
      ],
      [
        'a recommender',
        (engine, model) => {
          const answer = { itemIds: new Int32Array(3), scores: new Float32Array(3) };
          engine
            .createRecommender(model)
            .recommend({ history: TEXT.inputIds, exclude: new Int32Array(), k: 3, ...answer });
          return answer.scores;
        },
      ],
      [
        'a text encoder',
        (engine, model) => {
          const reduction = { mean: new Float32Array(16), components: wave(2 * 16, 1) };
          const options = { model, layers: [2], fusion: 'sum', weights: Float32Array.of(1), ...reduction } as const;
          return engine.createTextEncoder(options).encode(TEXT);
        },
      ],
      [
        'a generation',
        async (_, model) => {
          const sampling = {
            temperature: 0,
            topK: 0,
            topP: 1,
            repetitionPenalty: 1,
            seed: 0,
            eosTokenIds: new Int32Array(),
          };
          const limits = { maxNewTokens: 5, minNewTokens: 5 };
          return Float32Array.from(
            await model.startGeneration({ inputIds: TEXT.inputIds, ...limits, ...sampling }).next(5),
          );
        },
      ],
    ];

  test.each(READERS)('is seen by %s on the host', async (_, read) => {
    const config = TINY_MODELS.gpt2;
    const values = [];
    for (const student of students(config)) {
      const step = await tinyStep(student.engine, config, { ce: 1 }, undefined, { learningRate: 0.1 });
      await student.trainer.step(step);
      const first = await read(student.engine, student.model);
      await student.trainer.step(step);
      values.push({ first, second: await read(student.engine, student.model) });
    }
    expectClose(values[1]?.first, values[0]?.first, 1e-3, 'first');
    expectClose(values[1]?.second, values[0]?.second, 1e-3, 'second');
  });

  test('starts from what the host writes between steps', async () => {
    const config = TINY_MODELS.bert;
    const pair = students(config);
    for (const student of pair) {
      const step = await tinyStep(student.engine, config, { ce: 1 }, undefined);
      await student.trainer.step(step);
      student.model.setParameter('layers.1.mlp.output.weight', wave(16 * 40, 3));
      await student.trainer.step(step);
    }
    expectSameParameters(pair[1].model, pair[0].model, 2e-4);
  });

  describe('interpolation', () => {
    const map = { layers: [1, 3], width: 'selection' } as const;

    test('towards a teacher stays on the GPU', async () => {
      const pair = students(TINY_MODELS.gpt2);
      for (const { engine, model } of pair) {
        const projected = await projectTeacher(model, teacherOn(engine, TINY_MODELS.gpt2), map);
        expect(projected.model !== undefined).toBe(engine === gpu);
        for (const alpha of [0.25, 0, 1.5]) await interpolateParameters(model, projected, alpha);
      }
      expectSameParameters(pair[1].model, pair[0].model, 1e-5);
    });

    test('by weights is that of the processor', async () => {
      const pair = students(TINY_MODELS.gpt2);
      for (const { engine, model } of pair) {
        const projected = await projectTeacher(model, teacherOn(engine, TINY_MODELS.gpt2), map);
        const weights = new Map(
          projected.parameters.map(({ name, values }) => [name, wave(values.length, 1).map(Math.abs)]),
        );
        await interpolateParameters(model, projected, 0.5, weights);
      }
      expectSameParameters(pair[1].model, pair[0].model, 1e-5);
    });

    test('takes models with the same parameters alone', async () => {
      const [, { model, engine }] = students(TINY_MODELS.gpt2);
      await expect(model.interpolateFrom(teacherOn(engine, TINY_MODELS.gpt2), 0.5)).rejects.toMatchObject({
        code: 'ERR_SHAPE_MISMATCH',
      });
      const copy = model.copy();
      copy.setParameter('final_norm.bias', new Float32Array(16).fill(2));
      await model.interpolateFrom(copy, 1);
      expect(model.getParameter('final_norm.bias')).toEqual(new Float32Array(16).fill(2));
    });
  });

  test('refuses what the processor refuses, and is as it was', async () => {
    const config = TINY_MODELS.gpt2;
    const [, student] = students(config);
    const before = student.model.getParameter('embeddings.word');
    const step = await tinyStep(student.engine, config, { ce: 1 }, undefined);
    // What the processor takes and a GPU does not: several teachers, weights, lists of another vocabulary.
    const heard = (weight: number) => ({ weight, layerMap: [], model: teacherOn(gpu, config) });
    const [numTokens, topK] = [step.inputIds.length, 2];
    const short = {
      topK,
      indices: new Int32Array(numTokens * topK).fill(-1),
      values: new Float32Array(numTokens * topK),
      logSumExp: new Float32Array(numTokens),
    };
    const bad: [Partial<StepRequest>, string][] = [
      [{ labels: step.labels.map(() => -100) }, 'ERR_INVALID_ARGUMENT'],
      [{ labels: step.labels.map(() => 37) }, 'ERR_INVALID_ARGUMENT'],
      [{ inputIds: step.inputIds.map(() => -1) }, 'ERR_INVALID_ARGUMENT'],
      [{ losses: { ...NO_LOSS, kd: 1 } }, 'ERR_INVALID_ARGUMENT'],
      [
        {
          losses: { ...NO_LOSS, ce: 1, kd: 1 },
          sampledNegatives: 9,
          teacher: { layerMap: [], model: teacherOn(gpu, config) },
        },
        'ERR_INVALID_ARGUMENT',
      ],
      [
        {
          losses: { ...NO_LOSS, kd: 1 },
          teacher: { layerMap: [], model: createTinyModel(gpu, { ...TEACHER, vocabSize: 38 }, 1) },
        },
        'ERR_SHAPE_MISMATCH',
      ],
      [{ losses: { ...NO_LOSS, kd: 1 }, teacher: [0.5, 0.5].map(heard) }, 'ERR_INVALID_ARGUMENT'],
      [{ losses: { ...NO_LOSS, kd: 1 }, teacher: heard(0.5) }, 'ERR_INVALID_ARGUMENT'],
      [{ losses: { ...NO_LOSS, kd: 1 }, teacher: { layerMap: [], logits: short } }, 'ERR_INVALID_ARGUMENT'],
      [{ losses: { ...NO_LOSS, ce: 3e38 } }, 'ERR_NOT_FINITE'],
    ];
    for (const [change, code] of bad) {
      await expect(student.trainer.step({ ...step, ...change })).rejects.toMatchObject({ code });
    }
    expect(student.model.getParameter('embeddings.word')).toEqual(before);
    expect(student.trainer.getState().stepCount).toBe(0);
    await student.trainer.step(step);
  });

  test('refuses adapters by name, and is as it was', async () => {
    const model = createTinyModel(gpu, TINY_MODELS.gpt2, 1);
    const targets = [{ name: 'a', linear: 'layers.0.mlp.output', firstRow: 0, numRows: 16 }];
    expect(() => model.attachAdapter({ rank: 2, scale: 1, dropout: 0, seed: 0, targets })).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT', message: expect.stringMatching(/processor/) }),
    );
    expect(model.trainableParameters()).toEqual(model.parameters());
    await model.forward({ ...tinyBatch(TINY_MODELS.gpt2), logits: 'dense' });
  });
});
