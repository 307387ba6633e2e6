import { afterAll, beforeAll, expect, test } from 'vitest';
import { type ForwardRequest, type ForwardResult, loadBinding, type NativeEngine } from '../../../src/binding.js';
import { describeEmulated, emulatedEngine } from '../../support/emulated-cuda.js';
import { createTinyModel, expectClose, TINY_MODELS, tinyBatch } from '../../support/tiny-models.js';

const KINDS = Object.keys(TINY_MODELS) as (keyof typeof TINY_MODELS)[];

describeEmulated('forward() on the GPU', () => {
  let cpu: NativeEngine;
  const gpu = { float32: undefined as unknown as NativeEngine, bfloat16: undefined as unknown as NativeEngine };
  beforeAll(() => {
    cpu = loadBinding().createEngine({ threads: 1 });
    gpu.float32 = emulatedEngine();
    gpu.bfloat16 = emulatedEngine({ precision: 'bfloat16' });
  });
  afterAll(() => {
    for (const engine of [cpu, gpu.float32, gpu.bfloat16]) engine.dispose();
  });

  function expectSame(actual: ForwardResult, expected: ForwardResult, tolerance: number): void {
    for (const key of ['hiddenStates', 'attentions', 'valueRelations'] as const) {
      expect(actual[key].length, key).toBe(expected[key].length);
      for (const [i, values] of expected[key].entries()) expectClose(actual[key][i], values, tolerance, `${key}[${i}]`);
    }
    expectClose(actual.logits, expected.logits, tolerance, 'logits');
    expectClose(actual.topK?.values, expected.topK?.values, tolerance, 'topK.values');
    expectClose(actual.topK?.logSumExp, expected.topK?.logSumExp, tolerance, 'topK.logSumExp');
    expect(actual.numLabels).toBe(expected.numLabels);
    if (expected.loss === undefined) expect(actual.loss).toBeUndefined();
    else expect(Math.abs((actual.loss ?? Number.NaN) - expected.loss)).toBeLessThan(tolerance * 4);
  }

  const REQUESTS: [string, Omit<ForwardRequest, 'inputIds' | 'sequenceOffsets'>][] = [
    [
      'states, maps and relations',
      { hiddenStates: [0, 1, 2, 1], attentions: [2, 1], valueRelations: [1, 2], relationHeads: 4 },
    ],
    ['means', { hiddenStates: [0, 2], pooling: 'mean' }],
    ['last tokens', { hiddenStates: [1, 2], pooling: 'last' }],
    ['first tokens', { hiddenStates: [2], pooling: 'cls' }],
    ['weighted by attention', { hiddenStates: [0, 1, 2], pooling: 'attention' }],
    ['logits', { logits: 'dense' }],
    ['logits of some rows', { logits: 'dense', logitRows: Int32Array.of(19, 0, 7, 7) }],
    ['the best logits', { logits: { topK: 5 } }],
    ['the best logits of a row', { logits: { topK: 37 }, logitRows: Int32Array.of(3) }],
  ];

  test.each(KINDS.flatMap((kind) => REQUESTS.map(([name, request]) => [kind, name, request] as const)))(
    'of %s gives %s as the processor does',
    async (kind, _, request) => {
      const { labels, ...batch } = tinyBatch(TINY_MODELS[kind]);
      const models = [cpu, gpu.float32].map((engine) => createTinyModel(engine, TINY_MODELS[kind], 3));
      const [expected, actual] = await Promise.all(models.map((model) => model.forward({ ...batch, ...request })));
      if (expected === undefined || actual === undefined) throw new Error('unreachable');
      expectSame(actual, expected, 2e-5);
      expect(actual.topK?.indices).toEqual(expected.topK?.indices);
    },
  );

  test.each(KINDS)('of %s gives the loss as the processor does', async (kind) => {
    const batch = tinyBatch(TINY_MODELS[kind]);
    const models = [cpu, gpu.float32].map((engine) => createTinyModel(engine, TINY_MODELS[kind], 4));
    const [expected, actual] = await Promise.all(models.map((model) => model.forward(batch)));
    expect(expected?.loss).toBeGreaterThan(0);
    expect(actual?.loss).toBeCloseTo(expected?.loss ?? Number.NaN, 5);
    expect(actual?.numLabels).toBe(expected?.numLabels);
    const unlabelled = await models[1]?.forward({ ...batch, labels: batch.labels.map(() => -100) });
    expect(unlabelled).toMatchObject({ numLabels: 0, lossSum: 0 });
    expect(unlabelled?.loss).toBeUndefined();
  });

  test.each(KINDS)('of %s in bfloat16 is near', async (kind) => {
    const batch = tinyBatch(TINY_MODELS[kind]);
    const request = { ...batch, hiddenStates: [0, 1, 2], attentions: [1, 2], valueRelations: [1], relationHeads: 2 };
    const models = [cpu, gpu.bfloat16].map((engine) => createTinyModel(engine, TINY_MODELS[kind], 3));
    const [expected, actual] = await Promise.all(models.map((model) => model.forward({ ...request, logits: 'dense' })));
    if (expected === undefined || actual === undefined) throw new Error('unreachable');
    expectSame(actual, expected, 0.06);
    expect(gpu.bfloat16.precision).toBe('bfloat16');
  });

  test('follows what the host writes', async () => {
    const config = TINY_MODELS.sequence;
    const { labels, ...batch } = tinyBatch(config);
    const request = { ...batch, hiddenStates: [2] };
    const models = [cpu, gpu.float32].map((engine) => createTinyModel(engine, config, 5));
    const compare = async () => {
      const [expected, actual] = await Promise.all(models.map((model) => model.forward(request)));
      expectClose(actual?.hiddenStates[0], expected?.hiddenStates[0], 2e-5);
    };
    await compare();
    for (const model of models) model.setParameter('layers.0.mlp_norm.bias', new Float32Array(16).fill(0.3));
    await compare();
    for (const model of models) model.setItemFeatures(new Float32Array(37 * 3).fill(0.25));
    await compare();
    for (const model of models) await model.interpolate('embeddings.position', new Float32Array(12 * 16), 0.5);
    await compare();
  });

  test('refuses what the processor refuses', async () => {
    const model = createTinyModel(gpu.float32, TINY_MODELS.gpt2, 1);
    const { labels, ...batch } = tinyBatch(TINY_MODELS.gpt2);
    const bad: Partial<ForwardRequest>[] = [
      { inputIds: batch.inputIds.map(() => 37) },
      { logits: 'dense', logitRows: Int32Array.of(20) },
      { labels: labels.map(() => 37) },
      { valueRelations: [1], relationHeads: 3 },
    ];
    for (const request of bad) {
      await expect(model.forward({ ...batch, ...request })).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
    }
    expect((await model.forward({ ...batch, hiddenStates: [1] })).hiddenStates[0]?.every(Number.isFinite)).toBe(true);
  });
});
