import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { loadBinding, type NativeEngine } from '../../../src/binding.js';
import { fineTuneSequenceModel } from '../../../src/student/fine-tune.js';
import { SequenceEnsemble } from '../../../src/student/sequence-ensemble.js';
import { SequenceModel, sequenceConfig } from '../../../src/student/sequence-model.js';
import { cacheSequenceTeacher } from '../../../src/student/teacher-cache.js';

const ITEMS = 30;
const WIDTH = 8;
const HISTORY = 6;
const histories = [[3, 4, 5], [29], [7, 1, 7, 2, 9, 11, 13, 28], [0, 2]];
const cases = {
  users: Int32Array.from(histories.keys()),
  sequences: Int32Array.from(histories.flat()),
  sequenceOffsets: Int32Array.from([0, 3, 4, 12, 14]),
  targets: Int32Array.from([8, 0, 21, 4]),
  excludeIds: Int32Array.from([3, 4, 5, 29, 0, 2]),
  excludeOffsets: Int32Array.from([0, 3, 4, 4, 6]),
};

let engine: NativeEngine;
let folder: string;
beforeAll(() => {
  engine = loadBinding().createEngine({ threads: 2 });
  folder = mkdtempSync(join(tmpdir(), 'limbeck-ensemble-'));
});
afterAll(() => {
  engine.dispose();
  rmSync(folder, { recursive: true });
});

function member(seed: number, { hiddenSize = WIDTH, numFeatures = 0 } = {}): SequenceModel {
  const shape = { hiddenSize, numHiddenLayers: 2, numAttentionHeads: 2, maxHistory: HISTORY, dropout: 0 };
  const features = Float32Array.from({ length: ITEMS * numFeatures }, (_, i) => Math.sin(i * seed));
  const model = SequenceModel.create(engine, sequenceConfig(shape, ITEMS, numFeatures), {
    seed,
    itemFeatures: numFeatures > 0 ? features : undefined,
  });
  // Weights of 0.02 leave every item with nearly the same score.
  for (const { name } of model.native.parameters()) {
    if (name.endsWith('weight') || name === 'embeddings.word') {
      model.native.setParameter(
        name,
        model.native.getParameter(name).map((value) => value * 20),
      );
    }
  }
  return model;
}

/** Weighted mean of the members' logits after the last item of a history. */
async function meanLogits(
  members: readonly SequenceModel[],
  history: readonly number[],
  shares = members.map(() => 1 / members.length),
): Promise<Float64Array> {
  const inputIds = Int32Array.from(history.slice(-HISTORY));
  const mean = new Float64Array(ITEMS);
  for (const [i, { native }] of members.entries()) {
    const { logits = new Float32Array(0) } = await native.forward({
      inputIds,
      sequenceOffsets: Int32Array.from([0, inputIds.length]),
      logits: 'dense',
      logitRows: Int32Array.from([inputIds.length - 1]),
    });
    logits.forEach((value, item) => {
      mean[item] = (mean[item] ?? 0) + value * (shares[i] ?? Number.NaN);
    });
  }
  return mean;
}

describe('an ensemble of sequence models', () => {
  test('ranks by the mean of its members’ logits, items with features too', async () => {
    const members = [member(1), member(2), member(3)];
    members[2]?.dispose();
    members[2] = member(4, { numFeatures: 3 });
    const ensemble = SequenceEnsemble.of(engine, members);
    const { ranks, topK } = await ensemble.rank(cases, { ...cases, topK: 4 });
    const alone = (await (members[0] as SequenceModel).rank(cases, cases)).ranks;
    expect(ranks).not.toEqual(alone);
    for (const [s, history] of histories.entries()) {
      const logits = await meanLogits(members, history);
      const excluded = cases.excludeIds.slice(cases.excludeOffsets[s], cases.excludeOffsets[s + 1]);
      const eligible = [...logits.keys()].filter((item) => !excluded.includes(item));
      const order = eligible.sort((a, b) => (logits[b] ?? 0) - (logits[a] ?? 0));
      expect(order.indexOf(cases.targets[s] ?? 0) + 1, `case ${s}`).toBe(ranks[s]);
      expect([...topK.subarray(4 * s, 4 * s + 4)], `case ${s}`).toEqual(order.slice(0, 4));
    }
    expect(ensemble.numParameters).toBe(members.reduce((sum, { numParameters }) => sum + numParameters, 0));
    ensemble.dispose();
  });

  test('ranks by the weighted mean, whatever the weights add up to', async () => {
    const members = [member(1), member(2)];
    const ensemble = SequenceEnsemble.of(engine, members, { weights: [6, 2] });
    const { topK } = await ensemble.rank(cases, { ...cases, topK: 3 });
    for (const [s, history] of histories.entries()) {
      const logits = await meanLogits(members, history, [0.75, 0.25]);
      const excluded = cases.excludeIds.slice(cases.excludeOffsets[s], cases.excludeOffsets[s + 1]);
      const eligible = [...logits.keys()].filter((item) => !excluded.includes(item));
      const order = eligible.sort((a, b) => (logits[b] ?? 0) - (logits[a] ?? 0));
      expect([...topK.subarray(3 * s, 3 * s + 3)], `case ${s}`).toEqual(order.slice(0, 3));
    }
    ensemble.dispose();
  });

  test.each([[[1]], [[1, 0]], [[1, -1]], [[1, Number.NaN]], [[Number.POSITIVE_INFINITY, 1]]])(
    'refuses the weights %j of two members',
    (weights) => {
      const members = [member(1), member(2)];
      expect(() => SequenceEnsemble.of(engine, members, { weights })).toThrowError(
        expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT', message: expect.stringContaining('weights') }),
      );
      for (const one of members) one.dispose();
    },
  );

  test('of one member is that member', async () => {
    const one = member(5);
    const ensemble = SequenceEnsemble.of(engine, [one]);
    expect(ensemble.head).toBe(one.native);
    expect(await ensemble.rank(cases, { ...cases, topK: 3 })).toEqual(await one.rank(cases, { ...cases, topK: 3 }));
    ensemble.dispose();
  });

  test('teaches by the mean of its members’ logits, and keeps the states of every layer side by side', async () => {
    const ensemble = SequenceEnsemble.of(engine, [member(6), member(7)]);
    const train = { users: cases.users, sequences: cases.sequences, sequenceOffsets: cases.sequenceOffsets };
    const cached = await cacheSequenceTeacher(ensemble, train, { layers: [1] });
    expect(cached.hiddenSize).toBe(2 * WIDTH);
    const states = cached.hiddenStates.get(2) as Float32Array;
    const table = ensemble.head.itemTable();
    const { inputIds, offsets } = cached.windows;
    for (let window = 0; window + 1 < offsets.length; window++) {
      const [begin = 0, end = 0] = [offsets[window], offsets[window + 1]];
      const logits = await meanLogits(ensemble.members, [...inputIds.subarray(begin, end)]);
      const state = states.subarray((end - 1) * 2 * WIDTH, end * 2 * WIDTH);
      for (let item = 0; item < ITEMS; item++) {
        const row = table.subarray(item * 2 * WIDTH, (item + 1) * 2 * WIDTH);
        const score = row.reduce((sum, value, i) => sum + value * (state[i] ?? 0), 0);
        expect(score).toBeCloseTo(logits[item] ?? Number.NaN, 4);
      }
    }
    const student = member(8);
    const losses = { ce: 0, kd: 1, hidden: 0.5 };
    const training = { epochs: 30, learningRate: 0.01, batchTokens: 64, patience: 0, losses };
    const { epochs } = await fineTuneSequenceModel(engine, student, { train, validation: cases }, training, {
      teacher: cached,
    });
    expect(epochs.at(-1)?.kd).toBeLessThan(0.3 * (epochs[0]?.kd ?? 0));
    expect(epochs.at(-1)?.hidden).toBeLessThan(0.8 * (epochs[0]?.hidden ?? 0));
    student.dispose();
    ensemble.dispose();
  });

  test('refuses members of other shapes, and none', () => {
    const [small, wide] = [member(1), member(2, { hiddenSize: 16 })];
    for (const members of [[small, wide], []]) {
      expect(() => SequenceEnsemble.of(engine, members)).toThrowError(
        expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }),
      );
    }
    small.dispose();
    wide.dispose();
  });

  test('saves one member as it is, and several in a directory each', async () => {
    const one = SequenceEnsemble.of(engine, [member(1)]);
    await one.save(join(folder, 'one'));
    expect(existsSync(join(folder, 'one/model.safetensors'))).toBe(true);
    const two = SequenceEnsemble.of(engine, [member(1), member(2)]);
    await two.save(join(folder, 'two'));
    const again = await Promise.all(
      [1, 2].map((i) => SequenceModel.load(engine, join(folder, `two/member-${i}`))),
    ).then((members) => SequenceEnsemble.of(engine, members));
    expect((await again.rank(cases, cases)).ranks).toEqual((await two.rank(cases, cases)).ranks);
    for (const ensemble of [one, two, again]) ensemble.dispose();
  });
});
