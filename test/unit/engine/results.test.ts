import { afterAll, expect, test, vi } from 'vitest';
import { modelLatency } from '../../../src/engine/results.js';
import type { EvaluationSet } from '../../../src/evaluate/recommendation.js';
import type { Dataset } from '../../../src/prepare/dataset.js';
import { SequenceModel, sequenceConfig } from '../../../src/student/sequence-model.js';
import { createNativeEngine } from '../teacher/texts.js';

const engine = createNativeEngine();
afterAll(() => {
  engine.dispose();
});

test('what latency is measured with is freed, and the models are not', async () => {
  const items = Array.from({ length: 6 }, (_, i) => ({ id: `i${i}`, text: `Item ${i}` }));
  const architecture = { hiddenSize: 8, numHiddenLayers: 1, numAttentionHeads: 2, maxHistory: 4, dropout: 0 };
  const config = sequenceConfig(architecture, items.length, 0);
  const models = [1, 2].map((seed) => SequenceModel.create(engine, config, { seed }));
  const cases = {
    sequences: Int32Array.of(0, 1),
    sequenceOffsets: Int32Array.of(0, 2),
    users: Int32Array.of(0),
    targets: Int32Array.of(2),
  } as unknown as EvaluationSet;
  const create = vi.spyOn(engine, 'createRecommender');
  const { p50Ms } = await modelLatency(engine, models, { items } as unknown as Dataset, cases);
  expect(p50Ms).toBeGreaterThan(0);
  const recommenders = create.mock.results.map(({ value }) => value);
  expect(recommenders).toHaveLength(2);
  for (const recommender of recommenders) {
    expect(() => recommender.numItems).toThrow(expect.objectContaining({ code: 'ERR_DISPOSED' }));
  }
  for (const model of models) {
    expect(model.native.parameters().length).toBeGreaterThan(0);
    model.dispose();
  }
});
