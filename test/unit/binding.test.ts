import { createHash } from 'node:crypto';
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { open, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  type LossOptions,
  loadAddon,
  loadBinding,
  type NativeEngine,
  type NativeTrainer,
  type NativeTransformer,
  type OptimizerOptions,
  type StepRequest,
  type TransformerConfig,
} from '../../src/binding.js';
import { runProgram } from '../support/run-program.js';

const binding = loadBinding();
const addonFile = fileURLToPath(new URL('../../build/Release/limbeck.node', import.meta.url));

const CONFIG: TransformerConfig = {
  vocabSize: 11,
  hiddenSize: 8,
  numHiddenLayers: 2,
  numAttentionHeads: 2,
  numKeyValueHeads: 2,
  headDim: 4,
  intermediateSize: 16,
  maxPositionEmbeddings: 6,
  typeVocabSize: 0,
  norm: 'layerNorm',
  normPlacement: 'before',
  normEps: 1e-5,
  positions: 'learned',
  ropeTheta: 10000,
  attention: 'causal',
  hiddenAct: 'gelu_new',
  qkvBias: true,
  attentionOutputBias: true,
  mlpBias: true,
  tieWordEmbeddings: true,
  maskedLmHead: false,
  itemFeatureSize: 0,
  embeddingDropout: 0,
  attentionDropout: 0,
  hiddenDropout: 0,
};

const OPTIMIZER: OptimizerOptions = {
  optimizer: 'adamw',
  beta1: 0.9,
  beta2: 0.999,
  epsilon: 1e-8,
  weightDecay: 0.01,
  momentum: 0,
  maxGradNorm: 1,
};

const LOSSES: LossOptions = { ce: 1, kd: 0, hidden: 0, attention: 0, temperature: 1, fusion: 1, gate: 1 };

/** Two sequences of 3 and 2 tokens. */
const BATCH = { inputIds: Int32Array.of(1, 2, 3, 4, 5), sequenceOffsets: Int32Array.of(0, 3, 5) };

const STEP: StepRequest = {
  ...BATCH,
  labels: Int32Array.of(2, 3, -100, 5, 6),
  learningRate: 0.01,
  dropoutSeed: -1,
  losses: LOSSES,
  sampledNegatives: 0,
};

let engine: NativeEngine;
beforeEach(() => {
  engine = binding.createEngine({ threads: 2 });
});
afterEach(() => engine.dispose());

function createModel(overrides: Partial<TransformerConfig> = {}, seed = 1): NativeTransformer {
  const model = engine.createTransformer({ ...CONFIG, ...overrides });
  model.initialize(seed, 0.1);
  return model;
}

/** What TypeScript would not let pass. */
function untyped(value: unknown): never {
  return value as never;
}

function codeOf(call: () => unknown): unknown {
  try {
    call();
  } catch (error) {
    expect(error).toBeInstanceOf(Error);
    return (error as { code?: unknown }).code;
  }
  return undefined;
}

async function rejectionOf(promise: Promise<unknown>): Promise<{ name: string; code: string; message: string }> {
  return promise.then(
    () => {
      throw new Error('The promise was resolved.');
    },
    (error) => error,
  );
}

describe('the addon', () => {
  it('exports what NativeBinding declares', () => {
    expect(Object.keys(binding).sort()).toEqual([
      'cpuInfo',
      'crc32c',
      'createEngine',
      'cudaInfo',
      'exchangeNames',
      'narrow',
      'openRecommender',
      'openTextEncoder',
      'packTopK',
      'tryLockFile',
      'unpackTopK',
    ]);
  });

  it('exchanges the names of two directories, and leaves both when one is not there', () => {
    const folder = mkdtempSync(join(tmpdir(), 'limbeck-exchange-'));
    const [a, b] = [join(folder, 'a'), join(folder, 'b')];
    for (const path of [a, b]) mkdirSync(path);
    writeFileSync(join(a, 'of-a'), '');
    if (binding.exchangeNames(a, b)) {
      expect([readdirSync(a), readdirSync(b)]).toEqual([[], ['of-a']]);
      expect(codeOf(() => binding.exchangeNames(a, join(folder, 'none')))).toBe('ERR_IO');
      expect([readdirSync(a), readdirSync(b)]).toEqual([[], ['of-a']]);
    } else {
      expect([readdirSync(a), readdirSync(b)]).toEqual([['of-a'], []]); // a file system without it
    }
    for (const value of [undefined, 1]) {
      expect(codeOf(() => binding.exchangeNames(untyped(value), b))).toBe('ERR_INVALID_ARGUMENT');
    }
    rmSync(folder, { recursive: true });
  });

  it('computes the check value of CRC-32C', () => {
    expect(binding.crc32c(new TextEncoder().encode('123456789'))).toBe(0xe3069283);
    expect(binding.crc32c(new Uint8Array())).toBe(0);
    const [head, tail] = [new TextEncoder().encode('12345'), new TextEncoder().encode('6789')];
    expect(binding.crc32c(tail, binding.crc32c(head))).toBe(0xe3069283);
    expect(codeOf(() => binding.crc32c(head, -1))).toBe('ERR_INVALID_ARGUMENT');
    expect(codeOf(() => binding.crc32c(untyped('123456789')))).toBe('ERR_INVALID_ARGUMENT');
  });

  it('locks an open file against other open files until it is closed', async () => {
    const path = join(tmpdir(), `limbeck-lock-${process.pid}`);
    const [first, second] = [await open(path, 'w'), await open(path, 'r+')];
    expect(binding.tryLockFile(first.fd)).toBe(true);
    expect(binding.tryLockFile(first.fd)).toBe(true); // its own
    expect(binding.tryLockFile(second.fd)).toBe(false);
    const { fd } = first;
    await first.close();
    expect(binding.tryLockFile(second.fd)).toBe(true);
    await second.close();
    await rm(path);
    expect(codeOf(() => binding.tryLockFile(fd + 1000))).toBe('ERR_IO');
    for (const value of [-1, 1.5, '1', undefined, 2 ** 31]) {
      expect(codeOf(() => binding.tryLockFile(untyped(value)))).toBe('ERR_INVALID_ARGUMENT');
    }
  });

  it('names the instruction set in use', () => {
    const info = binding.cpuInfo();
    expect(['avx512bf16', 'avx512', 'avx2', 'portable']).toContain(info.isa);
    expect(info.availableThreads).toBeGreaterThanOrEqual(1);
    expect(Array.isArray(info.features)).toBe(true);
  });

  it('multiplies in bfloat16 when asked: near fp32, not the same', async () => {
    const inputIds = Int32Array.from({ length: 10 }, (_, i) => (i * 5) % CONFIG.vocabSize);
    const batch = { inputIds, sequenceOffsets: Int32Array.of(0, 5, 10) };
    const hidden: Float32Array[] = [];
    for (const precision of ['float32', 'bfloat16'] as const) {
      const other = binding.createEngine({ threads: 1, precision });
      expect(other.precision).toBe(precision);
      const model = other.createTransformer(CONFIG);
      model.initialize(3, 0.2);
      const result = await model.forward({ ...batch, hiddenStates: [CONFIG.numHiddenLayers] });
      hidden.push(result.hiddenStates[0] ?? new Float32Array());
      other.dispose();
    }
    const [wide, narrow] = hidden as [Float32Array, Float32Array];
    const difference = Math.hypot(...wide.map((x, i) => x - Number(narrow[i]))) / Math.hypot(...wide);
    expect(difference).toBeGreaterThan(1e-5);
    expect(difference).toBeLessThan(2e-2);
    const fastest = binding.createEngine({ threads: 1, precision: 'fastest' });
    expect(['float32', 'bfloat16']).toContain(fastest.precision);
    fastest.dispose();
  });

  it('is loaded once and refused with a remedy when there is none', () => {
    expect(loadBinding()).toBe(binding);
    expect(codeOf(() => loadAddon(['/nowhere/limbeck.node']))).toBe('ERR_NATIVE_ADDON');
    expect(codeOf(() => loadAddon([fileURLToPath(import.meta.url)]))).toBe('ERR_NATIVE_ADDON');
  });

  it('gives every error a name and a code', () => {
    try {
      binding.createEngine({ threads: -1 });
      expect.unreachable();
    } catch (error) {
      expect(error).toMatchObject({ name: 'LimbeckError', code: 'ERR_INVALID_ARGUMENT' });
      expect((error as Error).message).toMatch(/threads.*from 0 to 256.*-1/);
    }
  });
});

describe('a transformer', () => {
  it.each([
    ['a missing key', { vocabSize: undefined }],
    ['a number that is no integer', { hiddenSize: 8.5 }],
    ['a number as a string', { hiddenSize: '8' }],
    ['an unknown word', { norm: 'batchNorm' }],
    ['a boolean as a number', { qkvBias: 1 }],
    ['NaN', { normEps: Number.NaN }],
    ['a dropout of 1', { hiddenDropout: 1 }],
    ['heads that do not divide', { numAttentionHeads: 3, numKeyValueHeads: 2 }],
    ['no layers', { numHiddenLayers: 0 }],
  ])('refuses a configuration with %s', (_, overrides) => {
    expect(codeOf(() => engine.createTransformer(untyped({ ...CONFIG, ...overrides })))).toBe('ERR_INVALID_ARGUMENT');
  });

  it('refuses a configuration that does not fit into memory', () => {
    const huge = { ...CONFIG, vocabSize: 2 ** 28, hiddenSize: 2 ** 20 };
    expect(codeOf(() => engine.createTransformer(huge))).toBe('ERR_OUT_OF_MEMORY');
  });

  it('names the key that is wrong', () => {
    expect(() => engine.createTransformer(untyped({ ...CONFIG, norm: 'batchNorm' }))).toThrow(
      "Expected config.norm to be one of 'layerNorm', 'rmsNorm', got 'batchNorm'.",
    );
  });

  it('lists its parameters', () => {
    const model = createModel();
    const list = model.parameters();
    expect(list[0]).toEqual({ name: 'embeddings.word', shape: [11, 8] });
    const total = list.reduce((sum, { shape }) => sum + shape.reduce((product, size) => product * size, 1), 0);
    expect(model.numParameters).toBe(total);
  });

  it('gives back the values that were set', async () => {
    const model = createModel();
    const values = Float32Array.from({ length: 8 }, (_, i) => i / 4);
    model.setParameter('final_norm.bias', values);
    expect(model.getParameter('final_norm.bias')).toEqual(values);
    await model.interpolate('final_norm.bias', new Float32Array(8), 0.5);
    expect(model.getParameter('final_norm.bias')).toEqual(values.map((value) => value / 2));
  });

  it('refuses unknown names, wrong lengths and wrong types', async () => {
    const model = createModel();
    expect(codeOf(() => model.getParameter('nothing'))).toBe('ERR_INVALID_ARGUMENT');
    expect(codeOf(() => model.getParameter(untyped(3)))).toBe('ERR_INVALID_ARGUMENT');
    expect(codeOf(() => model.setParameter('final_norm.bias', new Float32Array(7)))).toBe('ERR_SHAPE_MISMATCH');
    expect(codeOf(() => model.setParameter('final_norm.bias', untyped(new Float64Array(8))))).toBe(
      'ERR_INVALID_ARGUMENT',
    );
    const target = new Float32Array(8);
    expect((await rejectionOf(model.interpolate('final_norm.bias', target, Number.NaN))).code).toBe(
      'ERR_INVALID_ARGUMENT',
    );
    expect((await rejectionOf(model.interpolate('nothing', target, 1))).code).toBe('ERR_INVALID_ARGUMENT');
    expect((await rejectionOf(model.interpolate('final_norm.bias', new Float32Array(7), 1))).code).toBe(
      'ERR_SHAPE_MISMATCH',
    );
    expect(codeOf(() => model.initialize(-1, 0.1))).toBe('ERR_INVALID_ARGUMENT');
    expect(codeOf(() => model.setItemFeatures(new Float32Array(8)))).toBe('ERR_INVALID_ARGUMENT');
    expect(codeOf(() => model.getGradient('final_norm.bias'))).toBe('ERR_INVALID_ARGUMENT');
  });

  it('refuses memory that another thread could change', () => {
    const shared = new Float32Array(new SharedArrayBuffer(32));
    expect(codeOf(() => createModel().setParameter('final_norm.bias', untyped(shared)))).toBe('ERR_INVALID_ARGUMENT');
  });

  it('folds item features into the item table', () => {
    const model = createModel({ itemFeatureSize: 2 });
    expect(codeOf(() => model.itemTable())).toBe('ERR_INVALID_ARGUMENT');
    const features = Float32Array.from({ length: 22 }, (_, i) => i % 3);
    model.setItemFeatures(features);
    const word = model.getParameter('embeddings.word');
    const projection = model.getParameter('item_projection.weight'); // [8, 2]
    const table = model.itemTable();
    for (const [item, column] of [
      [0, 0],
      [4, 7],
      [10, 3],
    ] as const) {
      const at = item * 8 + column;
      const added =
        (features[item * 2] ?? 0) * (projection[column * 2] ?? 0) +
        (features[item * 2 + 1] ?? 0) * (projection[column * 2 + 1] ?? 0);
      expect(table[at]).toBeCloseTo((word[at] ?? 0) + added, 5);
    }
  });
});

describe('forward', () => {
  it('gives hidden states by token, by mean and by last token', async () => {
    const model = createModel();
    const all = await model.forward({ ...BATCH, hiddenStates: [0, 2] });
    const mean = await model.forward({ ...BATCH, hiddenStates: [2], pooling: 'mean' });
    const last = await model.forward({ ...BATCH, hiddenStates: [2], pooling: 'last' });
    expect(all.hiddenStates.map((state) => state.length)).toEqual([40, 40]);
    const [, top = new Float32Array()] = all.hiddenStates;
    expect(last.hiddenStates[0]).toEqual(Float32Array.of(...top.slice(16, 24), ...top.slice(32, 40)));
    expect(mean.hiddenStates[0]?.[8]).toBeCloseTo(((top[24] ?? 0) + (top[32] ?? 0)) / 2, 6);
  });

  it('gives attention maps whose rows sum to 1', async () => {
    const { attentions } = await createModel().forward({ ...BATCH, attentions: [1, 2] });
    expect(attentions.map((maps) => maps.length)).toEqual([26, 26]); // 2 heads · (9 + 4)
    const [first = new Float32Array()] = attentions;
    expect(first.slice(0, 3)).toEqual(Float32Array.of(1, 0, 0));
    expect((first[6] ?? 0) + (first[7] ?? 0) + (first[8] ?? 0)).toBeCloseTo(1, 6);
  });

  it('gives the same logits dense, as top k, and through the loss', async () => {
    const model = createModel();
    const logitRows = Int32Array.of(4, 0);
    const { logits = new Float32Array() } = await model.forward({ ...BATCH, logits: 'dense', logitRows });
    expect(logits.length).toBe(22);
    const { topK } = await model.forward({ ...BATCH, logits: { topK: 3 }, logitRows });
    for (const row of [0, 1]) {
      const values = [...logits.slice(row * 11, row * 11 + 11)];
      const order = values.map((_, i) => i).sort((a, b) => (values[b] ?? 0) - (values[a] ?? 0));
      expect([...(topK?.indices.slice(row * 3, row * 3 + 3) ?? [])]).toEqual(order.slice(0, 3));
      expect(topK?.values[row * 3]).toBeCloseTo(Math.max(...values), 5);
      expect(topK?.logSumExp[row]).toBeCloseTo(Math.log(values.reduce((sum, x) => sum + Math.exp(x), 0)), 5);
    }
    const labels = Int32Array.of(7, -100, -100, -100, 3);
    const scored = await model.forward({ ...BATCH, labels });
    const expected = (topK?.logSumExp[0] ?? 0) - (logits[3] ?? 0) + (topK?.logSumExp[1] ?? 0) - (logits[11 + 7] ?? 0);
    expect(scored.numLabels).toBe(2);
    expect(scored.lossSum).toBeCloseTo(expected, 4);
    expect(scored.loss).toBeCloseTo(expected / 2, 4);
  });

  it('gives no mean loss without a label', async () => {
    const result = await createModel().forward({ ...BATCH, labels: new Int32Array(5).fill(-100) });
    expect(result).toMatchObject({ lossSum: 0, numLabels: 0 });
    expect(result.loss).toBeUndefined();
  });

  it('gives the same bits on any number of threads', async () => {
    const hashes = [];
    for (const threads of [1, 3]) {
      const other = binding.createEngine({ threads });
      expect(other.threads).toBe(threads);
      const model = other.createTransformer(CONFIG);
      model.initialize(5, 0.1);
      const { logits = new Float32Array() } = await model.forward({ ...BATCH, logits: 'dense' });
      hashes.push(createHash('sha256').update(logits).digest('hex'));
      other.dispose();
    }
    expect(hashes[0]).toBe(hashes[1]);
  });

  it.each([
    ['an id outside the vocabulary', { inputIds: Int32Array.of(1, 2, 3, 4, 11) }, 'ERR_INVALID_ARGUMENT'],
    ['a negative id', { inputIds: Int32Array.of(1, 2, 3, 4, -1) }, 'ERR_INVALID_ARGUMENT'],
    ['offsets that do not reach N', { sequenceOffsets: Int32Array.of(0, 3, 4) }, 'ERR_INVALID_ARGUMENT'],
    ['offsets that descend', { sequenceOffsets: Int32Array.of(0, 6, 5) }, 'ERR_INVALID_ARGUMENT'],
    ['no offsets', { sequenceOffsets: new Int32Array() }, 'ERR_INVALID_ARGUMENT'],
    ['token types of a wrong length', { tokenTypeIds: new Int32Array(4) }, 'ERR_SHAPE_MISMATCH'],
    ['token types that the model has not', { tokenTypeIds: new Int32Array(5) }, 'ERR_INVALID_ARGUMENT'],
    ['a layer that is not there', { hiddenStates: [3] }, 'ERR_INVALID_ARGUMENT'],
    ['attention 0', { attentions: [0] }, 'ERR_INVALID_ARGUMENT'],
    ['an unknown pooling', { pooling: 'max' }, 'ERR_INVALID_ARGUMENT'],
    ['an unknown form of logits', { logits: 'sparse' }, 'ERR_INVALID_ARGUMENT'],
    ['topK above V', { logits: { topK: 12 } }, 'ERR_INVALID_ARGUMENT'],
    ['a logit row outside the batch', { logits: 'dense', logitRows: Int32Array.of(5) }, 'ERR_INVALID_ARGUMENT'],
    ['a label outside the vocabulary', { labels: Int32Array.of(0, 0, 0, 0, 11) }, 'ERR_INVALID_ARGUMENT'],
    ['a label of -1', { labels: Int32Array.of(0, 0, 0, 0, -1) }, 'ERR_INVALID_ARGUMENT'],
    ['labels of a wrong length', { labels: new Int32Array(4) }, 'ERR_SHAPE_MISMATCH'],
    ['ids of a wrong type', { inputIds: [1, 2, 3, 4, 5] }, 'ERR_INVALID_ARGUMENT'],
  ])('rejects %s', async (_, overrides, code) => {
    const error = await rejectionOf(createModel().forward(untyped({ ...BATCH, ...overrides })));
    expect(error).toMatchObject({ name: 'LimbeckError', code });
  });

  it('passes on what a getter of the request throws', async () => {
    const request = {
      get inputIds(): never {
        throw new RangeError('mine');
      },
    };
    expect(await rejectionOf(createModel().forward(untyped(request)))).toBeInstanceOf(RangeError);
  });

  it('survives a getter of the request that disposes of the object at work, or gives its memory away', async () => {
    const trainer = engine.createTrainer(createModel(), OPTIMIZER);
    const step = {
      ...STEP,
      get labels() {
        trainer.dispose();
        return STEP.labels;
      },
    };
    expect((await rejectionOf(trainer.step(step))).code).toBe('ERR_DISPOSED');

    const model = createModel();
    const values = {
      dtype: 'F32' as const,
      offset: 0,
      isTransposed: false,
      get bytes() {
        model.dispose();
        return new Uint8Array(4);
      },
    };
    expect(codeOf(() => model.loadParameter('embeddings.word', values))).toBe('ERR_DISPOSED');

    const logSumExp = Float32Array.of(1);
    const rows = {
      logSumExp,
      topK: 2,
      vocabSize: 11,
      get values() {
        structuredClone(logSumExp.buffer, { transfer: [logSumExp.buffer] });
        return Float32Array.of(0.5, 0.25);
      },
      indices: Int32Array.of(1, 2),
    };
    expect(codeOf(() => binding.packTopK(rows))).toBe('ERR_SHAPE_MISMATCH');
  });
});

const PLAIN_GENERATION = { minNewTokens: 0, topP: 1, repetitionPenalty: 1 };

describe('generate and project', () => {
  it('generates ids of the vocabulary, the same for the same seed', async () => {
    const model = createModel();
    const request = {
      inputIds: Int32Array.of(1, 2),
      maxNewTokens: 4,
      temperature: 1,
      topK: 0,
      seed: 3,
      eosTokenIds: new Int32Array(),
      ...PLAIN_GENERATION,
    };
    const ids = await model.startGeneration(request).next(4);
    expect(ids.length).toBe(4);
    expect(Math.max(...ids)).toBeLessThan(11);
    const again = model.startGeneration(request);
    expect([...(await again.next(1)), ...(await again.next(3))]).toEqual([...ids]);
    expect((await again.next(1)).length).toBe(0);
    again.dispose();
    expect((await rejectionOf(again.next(1))).code).toBe('ERR_DISPOSED');
    for (const wrong of [{ temperature: -1 }, { topP: 0 }, { topP: 2 }, { repetitionPenalty: 0 }, { inputIds: [] }]) {
      const code = 'ERR_INVALID_ARGUMENT';
      expect(() => model.startGeneration(untyped({ ...request, ...wrong }))).toThrow(expect.objectContaining({ code }));
    }
  });

  it('projects a model onto its own shape as itself', async () => {
    const source = createModel();
    const target = createModel({}, 2);
    const projected = await target.project(source, { layers: [1, 2], width: 'selection' });
    const word = projected.find(({ name }) => name === 'embeddings.word');
    expect(word?.values).toEqual(source.getParameter('embeddings.word'));
    const components = new Float32Array(63);
    const error = await rejectionOf(target.project(source, { layers: [1, 2], width: 'pca', components }));
    expect(error.code).toBe('ERR_SHAPE_MISMATCH');
    expect((await rejectionOf(target.project(source, { layers: [1, 3], width: 'selection' }))).code).toBe(
      'ERR_INVALID_ARGUMENT',
    );
    expect((await rejectionOf(target.project(untyped(engine), { layers: [1, 2], width: 'selection' }))).code).toBe(
      'ERR_INVALID_ARGUMENT',
    );
  });

  it('refuses a model of another engine', async () => {
    const other = binding.createEngine({ threads: 1 });
    const foreign = other.createTransformer(CONFIG);
    const error = await rejectionOf(createModel().project(foreign, { layers: [1, 2], width: 'selection' }));
    expect(error.code).toBe('ERR_INVALID_ARGUMENT');
    expect(codeOf(() => engine.createTrainer(foreign, OPTIMIZER))).toBe('ERR_INVALID_ARGUMENT');
    other.dispose();
  });
});

describe('a trainer', () => {
  it('lowers the loss and leaves gradients', async () => {
    const model = createModel();
    const trainer = engine.createTrainer(model, OPTIMIZER);
    const first = await trainer.step(STEP);
    for (let i = 0; i < 20; i += 1) await trainer.step(STEP);
    const last = await trainer.computeGradients(STEP);
    expect(first.numLabels).toBe(4);
    expect(first.gradNorm).toBeGreaterThan(0);
    expect(last.loss).toBeLessThan(first.loss);
    expect(model.getGradient('embeddings.word').some((value) => value !== 0)).toBe(true);
    expect(trainer.getState().stepCount).toBe(21);
  });

  it('matches the loss of forward', async () => {
    const model = createModel();
    const { loss } = await model.forward({ ...BATCH, labels: STEP.labels });
    const { ce } = await engine.createTrainer(model, OPTIMIZER).computeGradients(STEP);
    expect(ce).toBeCloseTo(loss ?? Number.NaN, 5);
  });

  it('takes the teacher as a model or as arrays, with the same result', async () => {
    const teacher = createModel({}, 9);
    const layers = [1, 2] as const;
    const said = await teacher.forward({ ...BATCH, hiddenStates: [2], attentions: [2], logits: 'dense' });
    const sparse = await teacher.forward({ ...BATCH, logits: { topK: 11 } });
    const [hidden = new Float32Array()] = said.hiddenStates;
    const { logits: dense = new Float32Array(), attentions } = said;
    const losses = { ...LOSSES, kd: 0.5, hidden: 0.5, attention: 0.5, temperature: 2 };
    const layerMap = [layers];
    const arrays = { layerMap, hidden: [hidden], attentions };
    const teachers = [
      { model: teacher, layerMap },
      { ...arrays, logits: { dense } },
      { ...arrays, logits: { hidden, head: teacher } },
      { ...arrays, logits: { topK: 11, ...(sparse.topK ?? expect.unreachable()) } },
    ];
    const results = [];
    for (const signal of teachers) {
      const trainer = engine.createTrainer(createModel(), OPTIMIZER);
      results.push(await trainer.computeGradients({ ...STEP, losses, teacher: signal }));
    }
    for (const result of results) {
      expect(result.kd).toBeGreaterThan(0);
      expect(result.loss).toBeCloseTo(results[0]?.loss ?? Number.NaN, 4);
      expect(result.gradNorm).toBeCloseTo(results[0]?.gradNorm ?? Number.NaN, 4);
    }
  });

  it('resumes from its state to the same bits', async () => {
    const model = createModel();
    const trainer = engine.createTrainer(model, OPTIMIZER);
    trainer.setProjection(
      0,
      3,
      8,
      Float32Array.from({ length: 24 }, (_, i) => i / 24),
    );
    const losses = { ...LOSSES, hidden: 1 };
    const teacher = { layerMap: [[1, 1]] as const, hidden: [new Float32Array(15).fill(0.5)] };
    const request = { ...STEP, losses, teacher };
    await trainer.step(request);
    const copy = createModel();
    for (const { name } of model.parameters()) copy.setParameter(name, model.getParameter(name));
    const resumed = engine.createTrainer(copy, OPTIMIZER);
    expect(codeOf(() => resumed.setState(trainer.getState()))).toBe('ERR_SHAPE_MISMATCH');
    resumed.setProjection(0, 3, 8, trainer.getProjection(0));
    resumed.setState(trainer.getState());
    expect(await resumed.step(request)).toEqual(await trainer.step(request));
    expect(copy.getParameter('embeddings.word')).toEqual(model.getParameter('embeddings.word'));
    expect(resumed.getProjection(0)).toEqual(trainer.getProjection(0));
    expect(resumed.getProjectionGradient(0).length).toBe(24);
  });

  it('keeps one moment with SGD', async () => {
    const trainer = engine.createTrainer(createModel(), { ...OPTIMIZER, optimizer: 'sgd', momentum: 0.9 });
    await trainer.step(STEP);
    const state = trainer.getState();
    expect(state.second.length).toBe(0);
    trainer.setState(state);
    expect(trainer.getState()).toEqual(state);
  });

  it('samples negatives', async () => {
    const trainer = engine.createTrainer(createModel(), OPTIMIZER);
    const full = await trainer.computeGradients(STEP);
    const sampled = await trainer.computeGradients({ ...STEP, sampledNegatives: 3, dropoutSeed: 1 });
    expect(sampled.ce).toBeLessThan(full.ce);
  });

  const teacher = { layerMap: [[1, 1]] };
  const kd = { ...LOSSES, kd: 1 };
  const hidden = { ...LOSSES, hidden: 1 };
  it.each([
    ['a label outside the vocabulary', { labels: Int32Array.of(11, 0, 0, 0, 0) }, 'ERR_INVALID_ARGUMENT'],
    ['labels of a wrong length', { labels: new Int32Array(4) }, 'ERR_SHAPE_MISMATCH'],
    ['no label', { labels: new Int32Array(5).fill(-100) }, 'ERR_INVALID_ARGUMENT'],
    ['an infinite learning rate', { learningRate: Number.POSITIVE_INFINITY }, 'ERR_INVALID_ARGUMENT'],
    ['a temperature of 0', { losses: { ...LOSSES, temperature: 0 } }, 'ERR_INVALID_ARGUMENT'],
    ['losses without a weight', { losses: { ...LOSSES, kd: undefined } }, 'ERR_INVALID_ARGUMENT'],
    ['kd without a teacher', { losses: kd }, 'ERR_INVALID_ARGUMENT'],
    ['a teacher that is no model', { teacher: { ...teacher, model: {} } }, 'ERR_INVALID_ARGUMENT'],
    ['a layer map that names no layer', { teacher: { layerMap: [[3, 1]] } }, 'ERR_INVALID_ARGUMENT'],
    ['a layer map of triples', { teacher: { layerMap: [[1, 1, 1]] } }, 'ERR_SHAPE_MISMATCH'],
    ['hidden states of no width', { losses: hidden, teacher: { ...teacher, hidden: [new Float32Array(4)] } }],
    ['ragged hidden states', { losses: hidden, teacher: { ...teacher, hidden: [new Float32Array(11)] } }],
    ['one hidden state too many', { teacher: { ...teacher, hidden: [new Float32Array(5), new Float32Array(5)] } }],
    ['attention maps of a wrong length', { teacher: { ...teacher, attentions: [new Float32Array(25)] } }],
    [
      'dense logits of a wrong length',
      { losses: kd, teacher: { ...teacher, logits: { dense: new Float32Array(54) } } },
    ],
    [
      'packed logits of a wrong length',
      { losses: kd, teacher: { ...teacher, logits: { topK: 2, packed: new Uint8Array(5 * 10 + 1) } } },
    ],
    [
      'packed logits that are no bytes',
      { losses: kd, teacher: { ...teacher, logits: { topK: 2, packed: new Float32Array(5 * 10) } } },
      'ERR_INVALID_ARGUMENT',
    ],
    [
      'packed logits of an index outside the vocabulary',
      { losses: kd, teacher: { ...teacher, logits: { topK: 2, packed: new Uint8Array(5 * 10).fill(255) } } },
      'ERR_INVALID_ARGUMENT',
    ],
    ['logits of no form', { losses: kd, teacher: { ...teacher, logits: {} } }, 'ERR_INVALID_ARGUMENT'],
    [
      'a top-k index outside the vocabulary',
      {
        losses: kd,
        teacher: {
          ...teacher,
          logits: {
            topK: 1,
            indices: new Int32Array(5).fill(11),
            values: new Float32Array(5),
            logSumExp: new Float32Array(5),
          },
        },
      },
      'ERR_INVALID_ARGUMENT',
    ],
  ])('rejects %s', async (_, overrides, code = 'ERR_SHAPE_MISMATCH') => {
    const trainer = engine.createTrainer(createModel(), OPTIMIZER);
    expect(await rejectionOf(trainer.step(untyped({ ...STEP, ...overrides })))).toMatchObject({ code });
    expect(trainer.getState().stepCount).toBe(0);
  });

  it('refuses wrong options, projections and states', () => {
    const model = createModel();
    const options = { ...OPTIMIZER, optimizer: 'lion' };
    expect(codeOf(() => engine.createTrainer(model, untyped(options)))).toBe('ERR_INVALID_ARGUMENT');
    expect(codeOf(() => engine.createTrainer(untyped({}), OPTIMIZER))).toBe('ERR_INVALID_ARGUMENT');
    const trainer = engine.createTrainer(model, OPTIMIZER);
    expect(codeOf(() => trainer.getProjection(0))).toBe('ERR_INVALID_ARGUMENT');
    expect(codeOf(() => trainer.setProjection(2 ** 31, 2, 8, new Float32Array(16)))).toBe('ERR_INVALID_ARGUMENT');
    expect(codeOf(() => trainer.setProjection(0, 2, 7, new Float32Array(14)))).toBe('ERR_SHAPE_MISMATCH');
    expect(codeOf(() => trainer.setProjection(0, 2, 8, new Float32Array(15)))).toBe('ERR_SHAPE_MISMATCH');
    const { first, second } = trainer.getState();
    expect(codeOf(() => trainer.setState({ stepCount: 1, first: first.slice(1), second }))).toBe('ERR_SHAPE_MISMATCH');
    expect(codeOf(() => trainer.setState({ stepCount: -1, first, second }))).toBe('ERR_INVALID_ARGUMENT');
  });

  it('leaves the parameters alone when the loss is not finite', async () => {
    const model = createModel();
    model.setParameter('final_norm.weight', new Float32Array(8).fill(Number.NaN));
    const before = model.getParameter('embeddings.word');
    const error = await rejectionOf(engine.createTrainer(model, OPTIMIZER).step(STEP));
    expect(error.code).toBe('ERR_NOT_FINITE');
    expect(model.getParameter('embeddings.word')).toEqual(before);
  });
});

describe('a recommender', () => {
  function createRequest(k: number) {
    const outputs = { itemIds: new Int32Array(k), scores: new Float32Array(k) };
    return { history: Int32Array.of(1, 2), exclude: Int32Array.of(1, 2), k, ...outputs };
  }

  it('lists the best items, and adds items known by their features', () => {
    const model = createModel({ itemFeatureSize: 2 });
    model.setItemFeatures(new Float32Array(22).fill(0.5));
    const recommender = engine.createRecommender(model);
    const request = createRequest(20);
    expect(recommender.recommend(request)).toBe(9);
    expect([...request.itemIds.slice(0, 9)].sort((a, b) => a - b)).toEqual([0, 3, 4, 5, 6, 7, 8, 9, 10]);
    expect(recommender.addItems(Float32Array.of(1, 2, 3, 4))).toBe(11);
    expect(recommender.numItems).toBe(13);
    expect(recommender.recommend(request)).toBe(11);
    const features = Float32Array.of(1, 2);
    const known = createRequest(1);
    recommender.recommend({ ...known, history: Int32Array.of(11) });
    const unknown = createRequest(1);
    recommender.recommend({ ...unknown, history: Int32Array.of(-1), features });
    expect(unknown.scores).toEqual(known.scores);
  });

  it('ranks as it recommends', async () => {
    const recommender = engine.createRecommender(createModel());
    const request = createRequest(3);
    recommender.recommend(request);
    const rank = {
      inputIds: request.history,
      sequenceOffsets: Int32Array.of(0, 2),
      targets: Int32Array.of(request.itemIds[1] ?? 0),
      excludeIds: request.exclude,
      excludeOffsets: Int32Array.of(0, 2),
      topK: 3,
    };
    const { ranks, topK, topKScores } = await recommender.rank(rank);
    expect([...ranks]).toEqual([2]);
    expect(topK).toEqual(request.itemIds);
    expect(topKScores[0]).toBeCloseTo(request.scores[0] ?? Number.NaN, 5);
    const padded = await recommender.rank({ ...rank, topK: 10 });
    expect([...padded.topK.slice(-1), ...padded.topKScores.slice(-1)]).toEqual([-1, Number.NEGATIVE_INFINITY]);
    for (const wrong of [
      { targets: Int32Array.of(11) },
      { excludeIds: Int32Array.of(1) },
      { excludeIds: Int32Array.of(1, 11) },
      { excludeOffsets: Int32Array.of(1, 2) },
      { topK: -1 },
    ]) {
      expect((await rejectionOf(recommender.rank({ ...rank, ...wrong }))).code).toBe('ERR_INVALID_ARGUMENT');
    }
    expect((await rejectionOf(recommender.rank({ ...rank, states: new Float32Array(3) }))).code).toBe(
      'ERR_SHAPE_MISMATCH',
    );
    expect((await rejectionOf(recommender.rank({ ...rank, targets: new Int32Array(2) }))).code).toBe(
      'ERR_SHAPE_MISMATCH',
    );
  });

  it('is a snapshot', () => {
    const model = createModel();
    const recommender = engine.createRecommender(model);
    const before = createRequest(3);
    recommender.recommend(before);
    model.initialize(99, 1);
    const after = createRequest(3);
    recommender.recommend(after);
    expect(after).toEqual(before);
  });

  it('answers requests together, and refuses those that are not whole', async () => {
    const recommender = engine.createRecommender(createModel());
    const requests = Int32Array.of(2, 3, 0, 2, 1, 1, 2, 5, 2, 7, 1, 0, 4, 99);
    const weights = Float32Array.of(0, 0, 0, 0.5, 0, 0, 9);
    const { itemIds, scores } = recommender.serveAll(requests, weights);
    const alone = createRequest(3);
    recommender.recommend({ ...alone, history: Int32Array.of(1, 2), exclude: Int32Array.of(1, 2, 5) });
    expect([...itemIds.slice(0, 3)]).toEqual([...alone.itemIds]);
    expect([...scores.slice(0, 3)]).toEqual([...alone.scores]);
    expect([itemIds.length, itemIds[5], scores[5]]).toEqual([6, -1, Number.NEGATIVE_INFINITY]);
    expect(await recommender.serveAllAside(requests, weights)).toEqual({ itemIds, scores });
    recommender.nameItems(Array.from({ length: 11 }, (_, i) => `"i${i}"`));
    const texts = await recommender.answerAllAside(requests, weights, ['', '"what"']);
    expect(texts.map((text) => JSON.parse(`{${text}}`).items.map(({ id }: { id: string }) => id))).toEqual([
      [...itemIds.slice(0, 3)].map((id) => `i${id}`),
      [...itemIds.slice(3, 5)].map((id) => `i${id}`),
    ]);
    expect(texts[1]?.endsWith('"unknownItems":["what"]')).toBe(true);

    const changed = (place: number, value: number) => requests.with(place, value);
    const wrong: [Int32Array, Float32Array, string][] = [
      [new Int32Array(), weights, 'ERR_SHAPE_MISMATCH'],
      [changed(0, 0), weights, 'ERR_INVALID_ARGUMENT'],
      [changed(0, 2147483647), weights, 'ERR_SHAPE_MISMATCH'],
      [requests, weights.slice(0, 5), 'ERR_SHAPE_MISMATCH'],
      [changed(1, 0), weights, 'ERR_INVALID_ARGUMENT'],
      [changed(1, 12), weights, 'ERR_INVALID_ARGUMENT'],
      [changed(3, 0), weights, 'ERR_INVALID_ARGUMENT'],
      [changed(3, -1), weights, 'ERR_SHAPE_MISMATCH'],
      [changed(4, 2147483647), weights, 'ERR_SHAPE_MISMATCH'],
      [changed(5, 11), weights, 'ERR_INVALID_ARGUMENT'],
      [changed(7, -1), weights, 'ERR_INVALID_ARGUMENT'],
      [requests, weights.with(0, 1.5), 'ERR_INVALID_ARGUMENT'],
      [requests, weights.with(1, 1), 'ERR_INVALID_ARGUMENT'],
      [requests, weights.with(2, Number.NaN), 'ERR_INVALID_ARGUMENT'],
    ];
    for (const [ints, numbers, code] of wrong) {
      expect(codeOf(() => recommender.serveAll(ints, numbers))).toBe(code);
      expect((await rejectionOf(recommender.serveAllAside(ints, numbers))).code).toBe(code);
    }
    expect((await rejectionOf(recommender.answerAllAside(requests, weights, ['']))).code).toBe('ERR_SHAPE_MISMATCH');
  });

  it('serves packed requests, and refuses those whose counts, lists or arrays are wrong', () => {
    const recommender = engine.createRecommender(createModel());
    const empty = { categories: new Int32Array(), categoryOffsets: new Int32Array(12) };
    recommender.describeItems({ ...empty, boosts: new Float32Array(11), hidden: new Int32Array(11) });
    const plain = createRequest(3);
    recommender.recommend(plain);
    const header = (counts: Partial<Record<number, number>>, ...lists: number[]) => {
      const ints = Int32Array.of(3, 2, 2, 0, 0, 0, -1, 0, 0, 1, 2, 1, 2, ...lists);
      for (const [place, count] of Object.entries(counts)) ints[Number(place)] = count ?? 0;
      return ints;
    };
    const numbers = new Float32Array(4);
    const out = () => ({ itemIds: new Int32Array(3), scores: new Float32Array(3) });
    const serve = (ints: Int32Array, floats = numbers, { itemIds, scores } = out()) =>
      recommender.serve(ints, floats, itemIds, scores);
    const answer = out();
    expect(serve(header({}), numbers, answer)).toBe(3);
    expect(answer).toEqual({ itemIds: plain.itemIds, scores: plain.scores });

    const ints = header({});
    const wrong: [() => unknown, string][] = [
      [() => serve(new Int32Array(8)), 'ERR_SHAPE_MISMATCH'],
      [() => serve(header({}), new Float32Array(2)), 'ERR_SHAPE_MISMATCH'],
      [() => serve(header({ 0: 0 })), 'ERR_INVALID_ARGUMENT'],
      [() => serve(header({ 0: 4 })), 'ERR_SHAPE_MISMATCH'],
      [() => serve(header({ 0: -1 })), 'ERR_INVALID_ARGUMENT'],
      [() => serve(header({ 1: -1 })), 'ERR_SHAPE_MISMATCH'],
      [() => serve(header({ 2: 3 })), 'ERR_SHAPE_MISMATCH'],
      [() => serve(header({ 3: 2147483647 })), 'ERR_SHAPE_MISMATCH'],
      [() => serve(header({ 6: 1 })), 'ERR_SHAPE_MISMATCH'],
      [() => serve(header({ 6: 1 }, 11)), 'ERR_INVALID_ARGUMENT'],
      [() => serve(header({ 9: 11 })), 'ERR_INVALID_ARGUMENT'],
      [() => serve(header({ 9: -1 })), 'ERR_INVALID_ARGUMENT'],
      [() => serve(header({ 11: -1 })), 'ERR_INVALID_ARGUMENT'],
      [() => serve(header({ 3: 1 }, -2)), 'ERR_INVALID_ARGUMENT'],
      [() => serve(header({ 7: 1 }, 11)), 'ERR_INVALID_ARGUMENT'],
      [() => serve(header({ 7: 2 }, 3, 4)), 'ERR_SHAPE_MISMATCH'],
      [() => serve(header({}), Float32Array.of(Number.NaN, 0, 0)), 'ERR_INVALID_ARGUMENT'],
      [() => serve(header({}), Float32Array.of(0, 1, 0)), 'ERR_INVALID_ARGUMENT'],
      [() => serve(ints, numbers, { itemIds: ints, scores: new Float32Array(3) }), 'ERR_INVALID_ARGUMENT'],
      [() => serve(ints, numbers, { itemIds: new Int32Array(3), scores: numbers }), 'ERR_INVALID_ARGUMENT'],
      [() => recommender.similar(11, ints, numbers, out().itemIds, out().scores), 'ERR_INVALID_ARGUMENT'],
      [() => recommender.explain(ints, numbers, Int32Array.of(-1)), 'ERR_INVALID_ARGUMENT'],
      [() => recommender.interests(ints, numbers), 'ERR_INVALID_ARGUMENT'],
      [() => recommender.search(new Float32Array(1), ints, numbers, out().itemIds, out().scores), 'ERR_SHAPE_MISMATCH'],
      [() => recommender.hideItems(Int32Array.of(11)), 'ERR_INVALID_ARGUMENT'],
      [() => recommender.setPopularity(new Float32Array(10)), 'ERR_SHAPE_MISMATCH'],
      [() => recommender.setPopularity(new Float32Array(11).fill(-1)), 'ERR_INVALID_ARGUMENT'],
      [() => recommender.setTopics(new Float32Array(7)), 'ERR_SHAPE_MISMATCH'],
      [() => recommender.findTopics(0, 0), 'ERR_INVALID_ARGUMENT'],
      [() => recommender.topicsOf(new Float32Array(8)), 'ERR_INVALID_ARGUMENT'],
      [() => recommender.describeItems(untyped({ ...empty, boosts: [], hidden: [] })), 'ERR_INVALID_ARGUMENT'],
      [
        () => recommender.describeItems({ ...empty, boosts: new Float32Array(11), hidden: new Int32Array(11) }),
        'ERR_INVALID_ARGUMENT',
      ],
      [() => binding.openRecommender('nothing'), 'ERR_DISPOSED'],
      [() => binding.openTextEncoder(recommender.share()), 'ERR_DISPOSED'],
    ];
    wrong.forEach(([call, code], i) => {
      expect(codeOf(call), `case ${i}`).toBe(code);
    });
    const again = out();
    serve(header({}), numbers, again);
    expect(again).toEqual(answer);
  });

  it('answers texts once its items are named, whatever the lists do that it reads', async () => {
    const model = createModel({ itemFeatureSize: 2 });
    model.setItemFeatures(new Float32Array(22).fill(0.5));
    const recommender = engine.createRecommender(model);
    const names = Array.from({ length: 11 }, (_, i) => `"i${i}"`);
    const text = new TextEncoder().encode('{"history":["i1"],"k":11}');
    const rows = new Int32Array(1);
    /** Does something while the only entry of a list is read. */
    const listOf = <T>(entry: T, meanwhile: () => void): T[] => {
      const get = () => {
        meanwhile();
        return entry;
      };
      return Object.defineProperty([] as T[], '0', { get });
    };
    const unnamed = () => codeOf(() => recommender.answerTexts([text], 11, rows));
    expect(unnamed()).toBe('ERR_INVALID_ARGUMENT');
    recommender.nameItems(names);
    const [answer] = recommender.answerTexts([text], 11, rows);
    const add = () => recommender.addItems(Float32Array.of(1, 2));

    expect(codeOf(() => recommender.answerTexts(listOf(text, add), 11, rows))).toBe('ERR_INVALID_ARGUMENT');
    expect(unnamed()).toBe('ERR_INVALID_ARGUMENT');
    expect((await rejectionOf(recommender.answerTextsAside([text], 11, rows))).code).toBe('ERR_INVALID_ARGUMENT');
    recommender.hideItems(Int32Array.of(11)); // which has no name
    expect(codeOf(() => recommender.nameItems(listOf('"new"', add)))).toBe('ERR_SHAPE_MISMATCH');
    recommender.nameItems(['"new"', '"newer"']);
    recommender.hideItems(Int32Array.of(12));
    expect(recommender.answerTexts([text], 11, rows)).toEqual([answer]);

    const shared = binding.openRecommender(recommender.share());
    const texts = listOf(text, () => shared.dispose());
    expect(codeOf(() => shared.answerTexts(texts, 11, rows))).toBe('ERR_DISPOSED');
    const last = listOf('"a"', () => recommender.dispose());
    expect(codeOf(() => recommender.nameItems(last))).toBe('ERR_DISPOSED');
  });

  it('opened from a key serves, and ranks nothing', async () => {
    const recommender = engine.createRecommender(createModel());
    const request = createRequest(3);
    recommender.recommend(request);
    const opened = binding.openRecommender(recommender.share());
    recommender.dispose();
    const same = createRequest(3);
    expect(opened.recommend(same)).toBe(3);
    expect(same).toEqual(request);
    const rank = { ...BATCH, targets: Int32Array.of(1, 2), excludeIds: new Int32Array(), topK: 0 };
    const error = await rejectionOf(opened.rank({ ...rank, excludeOffsets: new Int32Array(3) }));
    expect(error.code).toBe('ERR_INVALID_ARGUMENT');
  });

  it('refuses wrong requests and stays usable', () => {
    const recommender = engine.createRecommender(createModel());
    const request = createRequest(3);
    const wrong: [object, string][] = [
      [{ history: new Int32Array() }, 'ERR_INVALID_ARGUMENT'],
      [{ history: Int32Array.of(11) }, 'ERR_INVALID_ARGUMENT'],
      [{ history: Int32Array.of(-1) }, 'ERR_INVALID_ARGUMENT'],
      [{ history: new Float32Array(1) }, 'ERR_INVALID_ARGUMENT'],
      [{ exclude: Int32Array.of(-1) }, 'ERR_INVALID_ARGUMENT'],
      [{ exclude: undefined }, 'ERR_INVALID_ARGUMENT'],
      [{ k: 0 }, 'ERR_INVALID_ARGUMENT'],
      [{ k: 4 }, 'ERR_SHAPE_MISMATCH'],
      [{ features: Float32Array.of(1) }, 'ERR_INVALID_ARGUMENT'],
      [{ exclude: request.itemIds }, 'ERR_INVALID_ARGUMENT'],
      [{ scores: new Float32Array(request.itemIds.buffer) }, 'ERR_INVALID_ARGUMENT'],
    ];
    for (const [overrides, code] of wrong) {
      expect(codeOf(() => recommender.recommend(untyped({ ...request, ...overrides })))).toBe(code);
    }
    expect(codeOf(() => recommender.recommend(untyped(undefined)))).toBe('ERR_INVALID_ARGUMENT');
    expect(codeOf(() => recommender.addItems(Float32Array.of(1)))).toBe('ERR_INVALID_ARGUMENT');
    expect(recommender.recommend(request)).toBe(3);
    expect(codeOf(() => engine.createRecommender(createModel({ attention: 'bidirectional' })))).toBe(
      'ERR_INVALID_ARGUMENT',
    );
  });
});

describe('features', () => {
  const x = Float32Array.from({ length: 40 }, (_, i) => Math.sin(i * i));
  const pca = { x, rows: 10, columns: 4, components: 2, seed: 1, whiten: false };

  it('finds components with which the transformed columns are uncorrelated, and of variance 1 when whitened', async () => {
    const { mean, components, explainedVariance } = await engine.pca({ ...pca, whiten: true });
    expect(explainedVariance[0]).toBeGreaterThan(explainedVariance[1] ?? 0);
    const y = await engine.pcaTransform({ x, rows: 10, columns: 4, mean, components });
    const product = (a: number, b: number) =>
      Array.from({ length: 10 }, (_, row) => (y[row * 2 + a] ?? 0) * (y[row * 2 + b] ?? 0)).reduce((s, v) => s + v, 0);
    expect(product(0, 1)).toBeCloseTo(0, 4);
    expect(product(0, 0) / 9).toBeCloseTo(1, 3);
    expect(product(1, 1) / 9).toBeCloseTo(1, 3);
  });

  it('whitens a direction without variance to zeros', async () => {
    const flat = await engine.pca({ ...pca, x: new Float32Array(40).fill(3), whiten: true });
    expect(flat.components).toEqual(new Float32Array(8));
  });

  it('decomposes a sparse matrix, and rejects a malformed one', async () => {
    // [[3, 0], [0, 0], [0, −2]]
    const matrix = {
      rowOffsets: Int32Array.of(0, 1, 1, 2),
      columns: Int32Array.of(0, 1),
      values: Float32Array.of(3, -2),
      numColumns: 2,
      components: 2,
      seed: 1,
    };
    const { singularValues, components, projected } = await engine.sparseSvd(matrix);
    const close = (values: Float32Array, expected: number[]) => {
      expect(values.length).toBe(expected.length);
      values.forEach((value, i) => {
        expect(value).toBeCloseTo(expected[i] ?? Number.NaN, 5);
      });
    };
    close(singularValues, [3, 2]);
    close(components, [1, 0, 0, 1]);
    close(projected, [3, 0, 0, 0, 0, -2]);
    const rejected: [object, string][] = [
      [{ components: 3 }, 'ERR_INVALID_ARGUMENT'],
      [{ rowOffsets: Int32Array.of(0) }, 'ERR_INVALID_ARGUMENT'],
      [{ rowOffsets: Int32Array.of(0, 2, 1, 2) }, 'ERR_INVALID_ARGUMENT'],
      [{ rowOffsets: Int32Array.of(0, 1, 1, 3) }, 'ERR_SHAPE_MISMATCH'],
      [{ columns: Int32Array.of(0, 2) }, 'ERR_INVALID_ARGUMENT'],
      [{ values: Float32Array.of(1) }, 'ERR_SHAPE_MISMATCH'],
      [{ values: Float32Array.of(1, Number.NaN) }, 'ERR_INVALID_ARGUMENT'],
    ];
    for (const [change, code] of rejected) {
      expect((await rejectionOf(engine.sparseSvd({ ...matrix, ...change }))).code).toBe(code);
    }
  });

  it('sums tensors by weight', async () => {
    const tensors = [Float32Array.of(1, 2, 3), Float32Array.of(10, 20, 30)];
    expect(await engine.weightedSum({ tensors, weights: [2, 0.5] })).toEqual(Float32Array.of(7, 14, 21));
    const large = new Float32Array(600_000).fill(2); // above the size that is copied
    const sum = await engine.weightedSum({ tensors: [large, large], weights: [1, 0.5] });
    expect([sum.length, sum[0], sum[599_999]]).toEqual([600_000, 3, 3]);
  });

  it('learns layer weights that sum to 1', async () => {
    const noise = Float32Array.from({ length: 64 }, (_, i) => Math.sin(i * 78.233) * 10);
    const signal = Float32Array.from({ length: 64 }, (_, i) => Math.sin(Math.floor(i / 16) * 3 + (i % 8)));
    const { weights, firstLoss, lastLoss } = await engine.learnLayerWeights({
      layers: [noise, signal],
      rows: 8,
      columns: 8,
      queries: Int32Array.of(0, 2, 4, 6),
      targets: Int32Array.of(1, 3, 5, 7),
      steps: 100,
      seed: 1,
    });
    expect((weights[0] ?? 0) + (weights[1] ?? 0)).toBeCloseTo(1, 5);
    expect(weights[1]).toBeGreaterThan(weights[0] ?? 1);
    expect(lastLoss).toBeLessThan(firstLoss);
  });

  it('fits a classifier on a column that tells two classes apart', async () => {
    const request = {
      x: Float32Array.of(5, 1, 5, 2, 5, 3, 5, 11, 5, 12, 5, 13),
      rows: 6,
      columns: 2,
      labels: Int32Array.of(0, 0, 0, 1, 1, 1),
      classes: 2,
      learningRate: 0.1,
      l2: 0,
      batchSize: 6,
      maxEpochs: 50,
      patience: 50,
      heldOut: 0.34,
      seed: 1,
    };
    const { weight, bias, heldOutRows, heldOutLoss, epochs, bestEpoch } = await engine.fitClassifier(request);
    expect([weight[0], weight[2], heldOutRows.length, epochs, bestEpoch]).toEqual([0, 0, 2, 50, 50]);
    expect(heldOutLoss).toBeLessThan(0.1);
    const head = { ...request, weight, bias };
    const probabilities = await engine.classProbabilities(head);
    for (let row = 0; row < 6; row++) expect(probabilities[2 * row + 1]).toBeCloseTo(row < 3 ? 0 : 1, 1);
    const rejected: [() => Promise<unknown>, string][] = [
      [() => engine.fitClassifier({ ...request, rows: 5 }), 'ERR_SHAPE_MISMATCH'],
      [() => engine.fitClassifier({ ...request, labels: new Int32Array(5) }), 'ERR_SHAPE_MISMATCH'],
      [() => engine.fitClassifier({ ...request, labels: new Int32Array(6) }), 'ERR_INVALID_ARGUMENT'],
      [() => engine.fitClassifier({ ...request, heldOut: 1 }), 'ERR_INVALID_ARGUMENT'],
      [() => engine.classProbabilities({ ...head, bias: new Float32Array(3) }), 'ERR_SHAPE_MISMATCH'],
      [() => engine.classProbabilities({ ...head, weight: new Float32Array(3) }), 'ERR_SHAPE_MISMATCH'],
      [() => engine.classProbabilities({ ...head, x: new Float32Array(3) }), 'ERR_SHAPE_MISMATCH'],
    ];
    for (const [call, code] of rejected) expect((await rejectionOf(call())).code).toBe(code);
  });

  it('rejects wrong shapes', async () => {
    const transform = { x, rows: 10, columns: 4, mean: new Float32Array(4), components: new Float32Array(4) };
    const rejected: [() => Promise<unknown>, string][] = [
      [() => engine.pca({ ...pca, rows: 11 }), 'ERR_SHAPE_MISMATCH'],
      [() => engine.pca({ ...pca, components: 5 }), 'ERR_INVALID_ARGUMENT'],
      [() => engine.pca({ ...pca, x: x.map(() => Number.NaN) }), 'ERR_INVALID_ARGUMENT'],
      [() => engine.pca(untyped(null)), 'ERR_INVALID_ARGUMENT'],
      [() => engine.pcaTransform({ ...transform, mean: new Float32Array(3) }), 'ERR_SHAPE_MISMATCH'],
      [() => engine.pcaTransform({ ...transform, components: new Float32Array(5) }), 'ERR_SHAPE_MISMATCH'],
      [() => engine.weightedSum({ tensors: [], weights: [] }), 'ERR_INVALID_ARGUMENT'],
      [() => engine.weightedSum({ tensors: [x, new Float32Array(3)], weights: [1, 1] }), 'ERR_SHAPE_MISMATCH'],
      [() => engine.weightedSum({ tensors: [x], weights: [1, 1] }), 'ERR_SHAPE_MISMATCH'],
      [() => engine.weightedSum({ tensors: [x], weights: [Number.NaN] }), 'ERR_INVALID_ARGUMENT'],
    ];
    for (const [call, code] of rejected) expect((await rejectionOf(call())).code).toBe(code);
    const layers = { layers: [x], rows: 10, columns: 4, targets: Int32Array.of(1, 2), steps: 1, seed: 1 };
    const outside = engine.learnLayerWeights({ ...layers, queries: Int32Array.of(0, 10) });
    expect((await rejectionOf(outside)).code).toBe('ERR_INVALID_ARGUMENT');
  });

  it('refuses histories and neighbours whose lengths or ids are wrong', async () => {
    const histories = { sequences: Int32Array.of(0, 1, 2), sequenceOffsets: Int32Array.of(0, 3), numItems: 3 };
    const rows = await engine.itemNeighbors({ ...histories, begin: 0, end: 3 });
    expect([...rows.offsets, ...rows.items]).toEqual([0, 2, 4, 6, 1, 2, 0, 2, 0, 1]);
    const request = {
      ...rows,
      numItems: 3,
      decay: 1,
      inputIds: Int32Array.of(0),
      sequenceOffsets: Int32Array.of(0, 1),
      targets: Int32Array.of(1),
      excludeIds: new Int32Array(0),
      excludeOffsets: new Int32Array(2),
      topK: 2,
    };
    expect(await engine.rankByNeighbors(request)).toEqual({ ranks: Int32Array.of(2), topK: Int32Array.of(1, 2) });
    const rejected: [() => Promise<unknown>, string][] = [
      [() => engine.itemNeighbors({ ...histories, begin: 2, end: 1 }), 'ERR_INVALID_ARGUMENT'],
      [() => engine.itemNeighbors({ ...histories, begin: 0, end: 4 }), 'ERR_INVALID_ARGUMENT'],
      [() => engine.itemNeighbors({ ...histories, numItems: 2, begin: 0, end: 1 }), 'ERR_INVALID_ARGUMENT'],
      [
        () => engine.itemNeighbors({ ...histories, sequenceOffsets: new Int32Array(0), begin: 0, end: 1 }),
        'ERR_INVALID_ARGUMENT',
      ],
      [() => engine.rankByNeighbors({ ...request, offsets: Int32Array.of(0, 6) }), 'ERR_SHAPE_MISMATCH'],
      [() => engine.rankByNeighbors({ ...request, cosines: new Float32Array(5) }), 'ERR_SHAPE_MISMATCH'],
      [() => engine.rankByNeighbors({ ...request, excludeOffsets: Int32Array.of(0, 1) }), 'ERR_INVALID_ARGUMENT'],
      [() => engine.rankByNeighbors({ ...request, targets: Int32Array.of(3) }), 'ERR_INVALID_ARGUMENT'],
      [() => engine.rankByNeighbors({ ...request, decay: 0 }), 'ERR_INVALID_ARGUMENT'],
      [() => engine.rankByNeighbors({ ...request, topK: 4 }), 'ERR_INVALID_ARGUMENT'],
    ];
    for (const [call, code] of rejected) expect((await rejectionOf(call())).code).toBe(code);
  });

  it('encodes texts as forward, weighted sum and pcaTransform do', async () => {
    const model = createModel();
    const weights = Float32Array.of(0.25, 0.75);
    const mean = Float32Array.from({ length: 8 }, (_, i) => i / 100);
    const components = Float32Array.from({ length: 24 }, (_, i) => Math.cos(i));
    const options = { model, layers: [0, 2], fusion: 'sum', weights, mean, components } as const;
    const encoder = engine.createTextEncoder(options);
    expect(encoder.featureSize).toBe(3);
    const { hiddenStates } = await model.forward({ ...BATCH, hiddenStates: [0, 2], pooling: 'mean' });
    const fused = await engine.weightedSum({ tensors: hiddenStates, weights: [...weights] });
    const expected = await engine.pcaTransform({ x: fused, rows: 2, columns: 8, mean, components });
    const encoded = encoder.encode(BATCH);
    expect(encoded.length).toBe(6);
    encoded.forEach((value, i) => {
      expect(value).toBeCloseTo(expected[i] ?? Number.NaN, 4);
    });
    expect(codeOf(() => encoder.encode({ ...BATCH, inputIds: new Int32Array(5).fill(11) }))).toBe(
      'ERR_INVALID_ARGUMENT',
    );
    expect(codeOf(() => engine.createTextEncoder({ ...options, layers: [0, 3] }))).toBe('ERR_INVALID_ARGUMENT');
    expect(codeOf(() => engine.createTextEncoder({ ...options, fusion: 'concat' }))).toBe('ERR_SHAPE_MISMATCH');
    encoder.dispose();
    expect(codeOf(() => encoder.encode(BATCH))).toBe('ERR_DISPOSED');
  });
});

describe('an object at work', () => {
  it('refuses synchronous calls until its promises are settled', async () => {
    const model = createModel();
    const trainer = engine.createTrainer(model, OPTIMIZER);
    const state = trainer.getState();
    const running = trainer.step(STEP);
    const calls = [
      () => model.getParameter('embeddings.word'),
      () => model.setParameter('final_norm.bias', new Float32Array(8)),
      () => model.getGradient('embeddings.word'),
      () => model.initialize(1, 0.1),
      () => model.itemTable(),
      () => model.dispose(),
      () => engine.createRecommender(model),
      () => trainer.getState(),
      () => trainer.setState(state),
      () => trainer.setProjection(0, 1, 8, new Float32Array(8)),
      () => trainer.getProjection(0),
      () => trainer.dispose(),
    ];
    expect(calls.map(codeOf)).toEqual(calls.map(() => 'ERR_BUSY'));
    expect(model.numParameters).toBeGreaterThan(0);
    await running;
    expect(model.getParameter('embeddings.word').length).toBe(88);
    expect(trainer.getState().stepCount).toBe(1);
  });

  it('counts a teacher and a head as at work', async () => {
    const teacher = createModel();
    const trainer = engine.createTrainer(createModel(), OPTIMIZER);
    const losses = { ...LOSSES, kd: 1 };
    const asModel = trainer.step({ ...STEP, losses, teacher: { model: teacher, layerMap: [] } });
    expect(codeOf(() => teacher.initialize(1, 0.1))).toBe('ERR_BUSY');
    await asModel;
    const logits = { hidden: new Float32Array(40), head: teacher };
    const asHead = trainer.step({ ...STEP, losses, teacher: { layerMap: [], logits } });
    expect(codeOf(() => teacher.initialize(1, 0.1))).toBe('ERR_BUSY');
    await asHead;
    teacher.initialize(1, 0.1);
  });

  it('runs its tasks in the order of the calls', async () => {
    const model = createModel();
    const trainer = engine.createTrainer(model, OPTIMIZER);
    const score = () => model.forward({ ...BATCH, labels: STEP.labels });
    const [before, , , after] = await Promise.all([score(), trainer.step(STEP), trainer.step(STEP), score()]);
    expect(after.loss).toBeLessThan(before.loss ?? 0);
  });

  it('recommends and adds items while it ranks', async () => {
    const model = createModel({ itemFeatureSize: 1 });
    model.setItemFeatures(new Float32Array(11));
    const recommender = engine.createRecommender(model);
    const ranking = recommender.rank({
      ...BATCH,
      targets: Int32Array.of(1, 2),
      excludeIds: new Int32Array(),
      excludeOffsets: new Int32Array(3),
      topK: 0,
    });
    expect(recommender.addItems(Float32Array.of(1))).toBe(11);
    const outputs = { itemIds: new Int32Array(2), scores: new Float32Array(2) };
    expect(recommender.recommend({ history: Int32Array.of(1), exclude: new Int32Array(), k: 2, ...outputs })).toBe(2);
    expect((await ranking).topK.length).toBe(0);
    expect(recommender.addItems(Float32Array.of(1))).toBe(12);
  });

  it('copies small inputs at the call', async () => {
    const model = createModel();
    const inputIds = Int32Array.from(BATCH.inputIds);
    const expected = await model.forward({ ...BATCH, hiddenStates: [2] });
    const promise = model.forward({ ...BATCH, inputIds, hiddenStates: [2] });
    inputIds.fill(999);
    expect(await promise).toEqual(expected);
  });
});

describe('dispose', () => {
  function createAll(): { model: NativeTransformer; trainer: NativeTrainer } {
    const model = createModel();
    return { model, trainer: engine.createTrainer(model, OPTIMIZER) };
  }

  it('may be repeated, and ends the use of one object', async () => {
    const { model, trainer } = createAll();
    model.dispose();
    model.dispose();
    expect(codeOf(() => model.numParameters)).toBe('ERR_DISPOSED');
    expect(codeOf(() => model.getParameter('embeddings.word'))).toBe('ERR_DISPOSED');
    expect((await rejectionOf(model.forward(BATCH))).code).toBe('ERR_DISPOSED');
    expect(codeOf(() => engine.createTrainer(model, OPTIMIZER))).toBe('ERR_DISPOSED');
    // A trainer keeps its model.
    expect((await trainer.step(STEP)).numLabels).toBe(4);
    trainer.dispose();
    expect((await rejectionOf(trainer.step(STEP))).code).toBe('ERR_DISPOSED');
  });

  it('of the engine ends everything that it made', async () => {
    const { model, trainer } = createAll();
    const recommender = engine.createRecommender(model);
    engine.dispose();
    engine.dispose();
    expect(codeOf(() => engine.threads)).toBe('ERR_DISPOSED');
    expect(codeOf(() => engine.createTransformer(CONFIG))).toBe('ERR_DISPOSED');
    expect(codeOf(() => model.getParameter('embeddings.word'))).toBe('ERR_DISPOSED');
    expect(codeOf(() => recommender.numItems)).toBe('ERR_DISPOSED');
    expect((await rejectionOf(trainer.step(STEP))).code).toBe('ERR_DISPOSED');
    expect((await rejectionOf(engine.weightedSum({ tensors: [], weights: [] }))).code).toBe('ERR_DISPOSED');
    model.dispose();
  });

  it('of the engine settles every promise', async () => {
    const { trainer } = createAll();
    const promises = Array.from({ length: 50 }, () => trainer.step(STEP));
    engine.dispose();
    const results = await Promise.allSettled(promises);
    const codes = results.map((result) => (result.status === 'rejected' ? result.reason.code : 'done'));
    const started = codes.filter((code) => code === 'done').length;
    expect(codes).toEqual([...Array(started).fill('done'), ...Array(50 - started).fill('ERR_DISPOSED')]);
    expect(started).toBeLessThan(50);
  });

  it('of the engine ends a long generation early', async () => {
    const model = createModel({ maxPositionEmbeddings: 100_000, positions: 'rotary' });
    const request = { maxNewTokens: 99_000, temperature: 0, topK: 0, seed: 1, eosTokenIds: new Int32Array() };
    const promise = model.startGeneration({ inputIds: Int32Array.of(1), ...request, ...PLAIN_GENERATION }).next(99_000);
    await new Promise((resolve) => setTimeout(resolve, 50));
    engine.dispose();
    expect((await rejectionOf(promise)).code).toBe('ERR_DISPOSED');
  });

  it('happens by itself when nothing refers to an engine', () => {
    const script = `
      const addon = require(${JSON.stringify(addonFile)});
      for (let i = 0; i < 300; i += 1) {
        const engine = addon.createEngine({ threads: 2 });
        engine.createTransformer(${JSON.stringify(CONFIG)});
        if (i % 50 === 0) gc();
      }
      setTimeout(() => { gc(); setTimeout(() => console.log('collected'), 20); }, 20);`;
    expect(run(['--expose-gc', '-e', script])).toEqual({ status: 0, stdout: 'collected\n', stderr: '' });
  });
});

describe('a class', () => {
  it('makes only empty objects from JavaScript', () => {
    const Transformer = createModel().constructor as new () => NativeTransformer;
    const empty = new Transformer();
    expect(codeOf(() => empty.numParameters)).toBe('ERR_DISPOSED');
    expect(codeOf(() => empty.getParameter('embeddings.word'))).toBe('ERR_DISPOSED');
    empty.dispose();
    const Engine = engine.constructor as new () => NativeEngine;
    expect(codeOf(() => new Engine().createTransformer(CONFIG))).toBe('ERR_DISPOSED');
  });

  it('refuses methods and getters on objects of another class', () => {
    const model = createModel();
    expect(() => model.getParameter.call(untyped(engine), 'embeddings.word')).toThrow();
    const getter = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(model), 'numParameters')?.get;
    expect(() => getter?.call(engine)).toThrow();
    expect(() => getter?.call({})).toThrow();
  });
});

/** A node process of its own. */
const run = (args: readonly string[]) => runProgram(process.execPath, args);

/** Hands over 30 batches of requests, and disposes of the recommender. */
const BATCHES = `
  const addon = require(${JSON.stringify(addonFile)});
  const engine = addon.createEngine({ threads: 1 });
  const model = engine.createTransformer({ ...${JSON.stringify(CONFIG)}, vocabSize: 20000, maxPositionEmbeddings: 512 });
  const recommender = engine.createRecommender(model);
  recommender.nameItems(Array.from({ length: 20000 }, (_, i) => '"' + i + '"'));
  const text = Buffer.from(JSON.stringify({ history: Array.from({ length: 500 }, (_, i) => String(i)) }));
  const promises = Array.from({ length: 30 }, () => recommender.answerTextsAside(Array(8).fill(text), 10, new Int32Array(8)));
  recommender.dispose();`;

/** Starts 30 forward passes of a larger model. */
const WORK = `
  const addon = require(${JSON.stringify(addonFile)});
  const engine = addon.createEngine({ threads: 2 });
  const model = engine.createTransformer({ ...${JSON.stringify(CONFIG)}, numHiddenLayers: 12, maxPositionEmbeddings: 512 });
  const request = { inputIds: new Int32Array(512), sequenceOffsets: Int32Array.of(0, 512), hiddenStates: [1] };
  const promises = Array.from({ length: 30 }, () => model.forward(request));`;

describe('a process', () => {
  it('ends with an idle engine', () => {
    const script = `require(${JSON.stringify(addonFile)}).createEngine({ threads: 2 }); console.log('idle');`;
    expect(run(['-e', script])).toEqual({ status: 0, stdout: 'idle\n', stderr: '' });
  });

  describe.each([
    ['forward passes', WORK],
    ['batches of requests', BATCHES],
  ])('with %s', (_, work) => {
    it('lives until pending work is done', () => {
      const script = `${work} Promise.all(promises).then((all) => console.log(all.length));`;
      expect(run(['-e', script])).toEqual({ status: 0, stdout: '30\n', stderr: '' });
    });

    it('ends at process.exit() with pending work', () => {
      const script = `${work} setTimeout(() => process.exit(3), 5);`;
      expect(run(['-e', script])).toEqual({ status: 3, stdout: '', stderr: '' });
    });

    it('survives workers that are terminated at work', () => {
      const script = `
        const { Worker } = require('node:worker_threads');
        (async () => {
          for (let i = 0; i < 5; i += 1) {
            const worker = new Worker(${JSON.stringify(`${work} require('node:worker_threads').parentPort.postMessage(0);`)}, { eval: true });
            await new Promise((resolve) => worker.once('message', resolve));
            await worker.terminate();
          }
          console.log('alive');
        })();`;
      expect(run(['-e', script])).toEqual({ status: 0, stdout: 'alive\n', stderr: '' });
    });
  });
});

describe('a worker thread', () => {
  it('has engines of its own, beside those of the main thread', async () => {
    const model = createModel();
    const script = `
      ${WORK}
      Promise.all(promises).then((all) => {
        engine.dispose();
        require('node:worker_threads').parentPort.postMessage(all.length);
      });`;
    const worker = new Worker(script, { eval: true });
    const [count, result] = await Promise.all([
      new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject)),
      model.forward({ ...BATCH, hiddenStates: [2] }),
    ]);
    expect(count).toBe(30);
    expect(result.hiddenStates[0]?.length).toBe(40);
    await worker.terminate();
    expect(model.getParameter('final_norm.bias').length).toBe(8);
  });
});
