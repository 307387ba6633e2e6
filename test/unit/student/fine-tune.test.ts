import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { loadBinding, type NativeEngine } from '../../../src/binding.js';
import { writeSafetensors } from '../../../src/formats/safetensors.js';
import { fineTuneSequenceModel } from '../../../src/student/fine-tune.js';
import type { FineTuneOptions } from '../../../src/student/options.js';
import { SequenceEnsemble } from '../../../src/student/sequence-ensemble.js';
import { SequenceModel, sequenceConfig } from '../../../src/student/sequence-model.js';
import { cacheSequenceTeacher } from '../../../src/student/teacher-cache.js';
import { sequenceProjection } from '../../../src/student/transfer.js';

const ITEMS = 50;
const USERS = 80;
const LENGTH = 10;
const successor = (item: number) => (item * 7 + 3) % ITEMS;

/** Every user walks from item to successor; the last step is held out. */
const data = (() => {
  const sequences = new Int32Array(USERS * LENGTH);
  const targets = new Int32Array(USERS);
  for (let user = 0; user < USERS; user++) {
    let item = (user * 13) % ITEMS;
    for (let i = 0; i < LENGTH; i++) {
      sequences[user * LENGTH + i] = item;
      item = successor(item);
    }
    targets[user] = item;
  }
  const sequenceOffsets = Int32Array.from({ length: USERS + 1 }, (_, i) => i * LENGTH);
  const users = Int32Array.from({ length: USERS }, (_, i) => i);
  const none = { excludeIds: new Int32Array(0), excludeOffsets: new Int32Array(USERS + 1) };
  const train = { sequences, sequenceOffsets, users };
  return { train, validation: { ...train, targets, ...none } };
})();

const OPTIONS: FineTuneOptions = { epochs: 40, learningRate: 0.01, batchTokens: 128, patience: 0, seed: 1 };
let engine: NativeEngine;
let folder: string;
beforeAll(() => {
  engine = loadBinding().createEngine({ threads: 2 });
  folder = mkdtempSync(join(tmpdir(), 'limbeck-fine-tune-'));
});
afterAll(() => {
  engine.dispose();
  rmSync(folder, { recursive: true });
});

function create(hiddenSize: number, seed: number, features?: Float32Array): SequenceModel {
  const shape = { hiddenSize, numHiddenLayers: 1, numAttentionHeads: 2, maxHistory: LENGTH, dropout: 0.1 };
  const config = sequenceConfig(shape, ITEMS, features ? features.length / ITEMS : 0);
  return SequenceModel.create(engine, config, { seed, itemFeatures: features });
}

async function trainTeacher() {
  const teacher = create(32, 9);
  await fineTuneSequenceModel(engine, teacher, data, OPTIONS);
  return {
    teacher,
    cached: await cacheSequenceTeacher(SequenceEnsemble.of(engine, [teacher]), data.train, { layers: [1] }),
  };
}

describe('fine-tuning', () => {
  test('learns what follows what', async () => {
    const model = create(16, 1);
    const { epochs, bestEpoch } = await fineTuneSequenceModel(engine, model, data, OPTIONS);
    expect(epochs).toHaveLength(40);
    expect(epochs[bestEpoch - 1]?.validationLoss).toBeLessThan(-0.9);
    const { ranks } = await model.rank(data.validation, data.validation);
    expect(ranks.filter((rank) => rank === 1).length).toBeGreaterThan(0.8 * USERS);
  });

  test('learns it with the norms after the blocks too, and is saved as a BERT decoder with item features', async () => {
    const features = Float32Array.from({ length: ITEMS * 3 }, (_, i) => Math.sin(i * 1.7));
    const shape = { hiddenSize: 16, numHiddenLayers: 1, numAttentionHeads: 2, maxHistory: LENGTH, dropout: 0.1 };
    const config = sequenceConfig({ ...shape, normPlacement: 'after' }, ITEMS, 3);
    const model = SequenceModel.create(engine, config, { seed: 1, itemFeatures: features });
    await fineTuneSequenceModel(engine, model, data, OPTIONS);
    const { ranks } = await model.rank(data.validation, data.validation);
    expect(ranks.filter((rank) => rank === 1).length).toBeGreaterThan(0.8 * USERS);

    const directory = join(folder, 'after');
    await model.save(directory);
    const again = await SequenceModel.load(engine, directory);
    expect(again.config).toEqual(config);
    expect((await again.rank(data.validation, data.validation)).ranks).toEqual(ranks);
    // One request at a time, as it is served: the best item is the one of the full ranking.
    const recommender = engine.createRecommender(again.native);
    const itemIds = new Int32Array(1);
    const history = data.train.sequences.slice(0, LENGTH);
    recommender.recommend({ history, exclude: new Int32Array(0), k: 1, itemIds, scores: new Float32Array(1) });
    expect(itemIds[0] === data.validation.targets[0]).toBe(ranks[0] === 1);
    for (const one of [recommender, again, model]) one.dispose();
  });

  test('with sampled negatives learns it too', async () => {
    const model = create(16, 1);
    const { epochs } = await fineTuneSequenceModel(engine, model, data, { ...OPTIONS, sampledNegatives: 20 });
    expect(Math.min(...epochs.map(({ validationLoss }) => validationLoss))).toBeLessThan(-0.8);
  });

  test('from a cached teacher alone, without labels, follows it', async () => {
    const { cached } = await trainTeacher();
    const student = create(16, 2);
    const losses = { ce: 0, kd: 1, temperature: 2 };
    const { epochs } = await fineTuneSequenceModel(engine, student, data, { ...OPTIONS, losses }, { teacher: cached });
    expect(epochs.at(-1)?.kd).toBeLessThan(0.3 * (epochs[0]?.kd ?? 0));
    expect(epochs.at(-1)?.validationLoss).toBeLessThan(-0.8);
  });

  test('the hidden loss falls with a learned feature mapping', async () => {
    const { cached } = await trainTeacher();
    const losses = { ce: 1, hidden: { from: 1, to: 0.5 } };
    const { epochs } = await fineTuneSequenceModel(
      engine,
      create(16, 2),
      data,
      { ...OPTIONS, losses },
      { teacher: cached },
    );
    expect(epochs[0]?.hidden).toBeGreaterThan(0);
    expect(epochs.at(-1)?.hidden).toBeLessThan(0.8 * (epochs[0]?.hidden ?? 0));
  });

  test('interpolation towards a teacher of the same shape pulls the student onto it', async () => {
    const { teacher, cached } = await trainTeacher();
    const student = create(32, 4);
    const interpolation = { alpha: 1, width: 'selection' } as const;
    await fineTuneSequenceModel(engine, student, data, { ...OPTIONS, epochs: 1, interpolation }, { teacher: cached });
    for (const { name } of student.native.parameters()) {
      expect(student.native.getParameter(name), name).toEqual(teacher.native.getParameter(name));
    }
  });

  test('a narrower student goes towards the principal axes of its teacher, which keep more than its channels', async () => {
    const { cached } = await trainTeacher();
    const missed = async (width: 'pca' | 'selection' | undefined) => {
      const student = create(16, 4);
      const interpolation = { alpha: 1, ...(width && { width }) };
      await fineTuneSequenceModel(engine, student, data, { ...OPTIONS, epochs: 1, interpolation }, { teacher: cached });
      const { ranks } = await student.rank(data.validation, data.validation);
      return ranks.filter((rank) => rank > 1).length;
    };
    const [turned, selected] = [await missed(undefined), await missed('selection')];
    expect(turned).toBeLessThan(0.5 * selected);
    expect(await missed('pca')).toBe(turned);
  });

  test('a student as wide as its teacher keeps the teacher’s channels, in fewer blocks or not', async () => {
    const { cached } = await trainTeacher();
    const shape = { hiddenSize: 32, numHiddenLayers: 1 };
    expect(await sequenceProjection(engine, cached, shape, 'pca')).toEqual({ layers: [1], width: 'pca' });
    const { width, components } = await sequenceProjection(engine, cached, { ...shape, hiddenSize: 8 }, 'pca');
    expect([width, components?.length]).toEqual(['pca', 8 * 32]);
  });

  test('interpolation refuses a teacher that is several models', async () => {
    const teacher = await cacheSequenceTeacher(SequenceEnsemble.of(engine, [create(32, 1), create(32, 2)]), data.train);
    const options = { ...OPTIONS, interpolation: { alpha: 0.5 } };
    await expect(fineTuneSequenceModel(engine, create(16, 1), data, options, { teacher })).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringContaining('several'),
    });
  });

  test.each([
    ['kd without a teacher', { losses: { kd: 1 } }, 'ERR_INVALID_ARGUMENT'],
    ['interpolation without a teacher', { interpolation: { alpha: 0.5 } }, 'ERR_INVALID_ARGUMENT'],
    ['an unknown option', { epoch: 3 }, 'ERR_UNKNOWN_OPTION'],
    ['no epochs', { epochs: 0 }, 'ERR_INVALID_ARGUMENT'],
  ])('refuses %s', async (_, options, code) => {
    const run = fineTuneSequenceModel(engine, create(16, 1), data, { ...OPTIONS, ...(options as FineTuneOptions) });
    await expect(run).rejects.toMatchObject({ code });
  });

  test('refuses a teacher that reads histories of another length, and one without the layers asked for', async () => {
    const { teacher } = await trainTeacher();
    const shape = { hiddenSize: 16, numHiddenLayers: 1, numAttentionHeads: 2, maxHistory: 5 };
    const short = SequenceModel.create(engine, sequenceConfig(shape, ITEMS, 0), { seed: 1 });
    const cached = await cacheSequenceTeacher(SequenceEnsemble.of(engine, [teacher]), data.train);
    const losses = { kd: 1 };
    await expect(
      fineTuneSequenceModel(engine, short, data, { ...OPTIONS, losses }, { teacher: cached }),
    ).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT', message: expect.stringContaining('5') });
    const layerMap: [number, number][] = [[1, 7]];
    await expect(
      fineTuneSequenceModel(engine, create(16, 1), data, { ...OPTIONS, losses, layerMap }, { teacher: cached }),
    ).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
  });
});

describe('a sequence model directory', () => {
  const features = Float32Array.from({ length: ITEMS * 4 }, (_, i) => Math.sin(i));

  test('saved and loaded again has the same bits and ranks', async () => {
    const model = create(16, 3, features);
    await model.save(join(folder, 'model'));
    const again = await SequenceModel.load(engine, join(folder, 'model'));
    for (const { name } of model.native.parameters()) {
      expect(again.native.getParameter(name), name).toEqual(model.native.getParameter(name));
    }
    expect(again.itemFeatures).toEqual(features);
    const ranks = async (one: SequenceModel) => (await one.rank(data.validation, data.validation)).ranks;
    expect(await ranks(again)).toEqual(await ranks(model));
  });

  test('refuses features of another shape', async () => {
    const path = join(folder, 'wrong');
    await create(16, 3, features).save(path);
    const wrong = { shape: [2, 2], data: new Float32Array(4).fill(1) };
    await writeSafetensors(join(path, 'item_features.safetensors'), [['item_features', wrong]]);
    await expect(SequenceModel.load(engine, path)).rejects.toMatchObject({ code: 'ERR_CHECKPOINT_MISMATCH' });
  });
});
