import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { loadBinding, type NativeEngine } from '../../../src/binding.js';
import { boostRareItems } from '../../../src/student/rare-items.js';
import { SequenceModel, sequenceConfig } from '../../../src/student/sequence-model.js';

const ITEMS = 30;
const USERS = 40;
/** Items of the histories; the others are only ever scored. */
const READ = 20;

let engine: NativeEngine;
beforeAll(() => {
  engine = loadBinding().createEngine({ threads: 1 });
});
afterAll(() => engine.dispose());

function create(normPlacement: 'before' | 'after', featureSize = 0): SequenceModel {
  const shape = { hiddenSize: 16, numHiddenLayers: 1, numAttentionHeads: 2, maxHistory: 8, dropout: 0 };
  const features = Float32Array.from({ length: ITEMS * featureSize }, (_, i) => Math.sin(i * 2.3));
  const config = sequenceConfig({ ...shape, normPlacement }, ITEMS, featureSize);
  const model = SequenceModel.create(engine, config, {
    seed: 3,
    itemFeatures: featureSize > 0 ? features : undefined,
  });
  // Gains and shifts as training leaves them.
  for (const { name } of model.native.parameters().filter(({ name }) => name.includes('norm'))) {
    const values = model.native.getParameter(name);
    const around = name.endsWith('weight') ? 1.2 : 0;
    model.native.setParameter(
      name,
      values.map((_, i) => around + 0.05 * Math.cos(i * 1.3)),
    );
  }
  return model;
}

const cases = (targets: Int32Array) => ({
  sequences: Int32Array.from({ length: USERS * 3 }, (_, i) => (i * 7) % READ),
  sequenceOffsets: Int32Array.from({ length: USERS + 1 }, (_, i) => i * 3),
  users: Int32Array.from({ length: USERS }, (_, i) => i),
  targets,
  excludeIds: new Int32Array(0),
  excludeOffsets: new Int32Array(USERS + 1),
});

async function logits(model: SequenceModel): Promise<Float32Array> {
  const { sequences, sequenceOffsets } = cases(new Int32Array(USERS));
  const { logits } = await model.native.forward({ inputIds: sequences, sequenceOffsets, logits: 'dense' });
  return logits ?? new Float32Array(0);
}

describe('boosting rare items', () => {
  test.each(['before', 'after'] as const)(
    'a bias is added to every logit (norms %s), and adds up',
    async (placement) => {
      const model = create(placement, 3);
      const before = await logits(model);
      expect(before).toHaveLength(USERS * 3 * ITEMS);
      // Nothing is added yet, and what is read changes little.
      model.native.addItemBias(new Float32Array(ITEMS));
      const folded = await logits(model);
      const scale = Math.max(...before.map(Math.abs));
      folded.forEach((value, i) => {
        expect(Math.abs(value - (before[i] ?? 0))).toBeLessThan(0.1 * scale);
      });
      const bias = Float32Array.from({ length: ITEMS }, (_, i) => (i < READ ? 0 : (i % 3) - 0.5));
      model.native.addItemBias(bias);
      model.native.addItemBias(bias);
      const after = await logits(model);
      after.forEach((value, i) => {
        expect(value - (folded[i] ?? 0)).toBeCloseTo(2 * (bias[i % ITEMS] ?? 0), 4);
      });
      model.dispose();
    },
  );

  test('keeps the largest weight that does not lower validation', async () => {
    // Rare items are what comes next, so that more is better, until all weights are tried.
    const counts = Int32Array.from({ length: ITEMS }, (_, i) => (i < 10 ? 1 : 9));
    const model = create('after');
    const validation = cases(Int32Array.from({ length: USERS }, (_, i) => i % 10));
    const before = (await model.rank(validation, validation)).ranks;
    expect(await boostRareItems(model, { validation, counts }, { weights: [1, 3] })).toBe(3);
    const after = (await model.rank(validation, validation)).ranks;
    expect(after.reduce((sum, rank) => sum + rank)).toBeLessThan(before.reduce((sum, rank) => sum + rank));
    expect(Math.max(...after)).toBeLessThanOrEqual(10);
    model.dispose();
  });

  test('changes nothing where rare items do not come next, or none is rare', async () => {
    const counts = Int32Array.from({ length: ITEMS }, (_, i) => (i < 20 ? 0 : 9));
    const model = create('after');
    const validation = cases(Int32Array.from({ length: USERS }, (_, i) => 20 + (i % 10)));
    const scores = await logits(model);
    const before = (await model.rank(validation, validation)).ranks;
    expect(await boostRareItems(model, { validation, counts }, { weights: [4, 8] })).toBe(0);
    expect((await model.rank(validation, validation)).ranks).toEqual(before);
    expect(await logits(model)).toEqual(scores);
    expect(await boostRareItems(model, { validation, counts: counts.fill(9) })).toBe(0);
    model.dispose();
  });

  test('leaves a model that was stopped half-way as it came', async () => {
    const counts = Int32Array.from({ length: ITEMS }, (_, i) => (i < 20 ? 0 : 9));
    const model = create('after');
    const validation = cases(new Int32Array(USERS));
    const scores = await logits(model);
    const controller = new AbortController();
    let rankings = 0;
    const stopped = {
      config: model.config,
      native: model.native,
      rank(...[inputs, request, hooks]: Parameters<SequenceModel['rank']>) {
        if (++rankings === 3) controller.abort(); // without, and with the first weight, it was ranked
        return model.rank(inputs, request, hooks);
      },
    } as SequenceModel;
    const boosting = boostRareItems(stopped, { validation, counts }, {}, { signal: controller.signal });
    await expect(boosting).rejects.toMatchObject({ code: 'ERR_ABORTED' });
    expect(rankings).toBe(3);
    expect(await logits(model)).toEqual(scores);
    model.dispose();
  });

  test('refuses counts of another catalogue, weights that fall, and models without layer norms', async () => {
    const model = create('after');
    const validation = cases(new Int32Array(USERS));
    const refused = (counts: Int32Array, weights: number[]) =>
      boostRareItems(model, { validation, counts }, { weights });
    await expect(refused(new Int32Array(3), [1])).rejects.toMatchObject({ code: 'ERR_SHAPE_MISMATCH' });
    await expect(refused(new Int32Array(ITEMS), [2, 1])).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
    const codeOf = (call: () => void) => {
      try {
        call();
      } catch (error) {
        return (error as { code: string }).code;
      }
      return undefined;
    };
    expect(codeOf(() => model.native.addItemBias(new Float32Array(3)))).toBe('ERR_SHAPE_MISMATCH');
    expect(codeOf(() => model.native.addItemBias(new Float32Array(ITEMS).fill(Number.NaN)))).toBe(
      'ERR_INVALID_ARGUMENT',
    );
    const rms = engine.createTransformer({ ...model.config, norm: 'rmsNorm' });
    expect(codeOf(() => rms.addItemBias(new Float32Array(ITEMS)))).toBe('ERR_INVALID_ARGUMENT');
    rms.dispose();
    model.dispose();
  });
});
