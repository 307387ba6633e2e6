/** Training in bfloat16 on the example's data, beside training in fp32. */
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { evaluationSet } from '../../src/evaluate/recommendation.js';
import { createEngine, type EngineOptions } from '../../src/index.js';
import { trainSequences } from '../../src/prepare/dataset.js';

const example = join(import.meta.dirname, '../../examples/movietweetings');

async function finalLosses(precision: NonNullable<EngineOptions['precision']>) {
  const engine = await createEngine({ threads: 2, precision });
  const dataset = await engine.prepare({
    interactions: {
      path: join(example, 'interactions.csv.gz'),
      columns: { user: 'user', item: 'item', rating: 'rating', time: 'time' },
    },
    items: { path: join(example, 'items.csv.gz'), columns: { id: 'id', text: ['title', 'year', 'genres'] } },
  });
  const architecture = { hiddenSize: 64, numHiddenLayers: 2, numAttentionHeads: 2, maxHistory: 50, dropout: 0.2 };
  const model = engine.createSequenceModel(architecture, { numItems: dataset.items.length, seed: 1 });
  const data = {
    train: trainSequences(dataset),
    validation: evaluationSet(dataset, 'validation'),
    numItems: dataset.items.length,
  };
  const { epochs } = await engine.fineTune(model, data, { epochs: 3, learningRate: 0.004, batchTokens: 2048, seed: 1 });
  engine.dispose();
  return epochs.map(({ trainLoss }) => trainLoss);
}

test('training in bfloat16 ends within 1 % of the loss of training in fp32', async () => {
  const exact = await finalLosses('float32');
  const rounded = await finalLosses('bfloat16');
  expect(rounded).not.toEqual(exact); // it was rounded
  expect(exact.at(-1)).toBeLessThan(0.97 * (exact[0] ?? 0)); // and trained
  expect(Math.abs((rounded.at(-1) ?? 0) / (exact.at(-1) ?? 0) - 1)).toBeLessThan(0.01);
});
