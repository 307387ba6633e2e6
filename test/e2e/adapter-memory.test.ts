/** An adapter is trained in little more memory than the model needs to run: measured in processes of their own. */
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { expect, test } from 'vitest';
import { outputOfNode } from '../support/run-program.js';

const root = join(import.meta.dirname, '../..');

/** What a training run of one epoch adds at its peak to a model of 25.4 million parameters that is there already. */
function measure(options: object): { growth: number; modelBytes: number; trained: number; numParameters: number } {
  const url = (path: string) => JSON.stringify(pathToFileURL(join(root, 'dist', path)).href);
  const script = `
    const { loadBinding } = await import(${url('binding.js')});
    const { trainBytePairTokenizer } = await import(${url('formats/bpe-trainer.js')});
    const { createTokenizer } = await import(${url('formats/tokenizer.js')});
    const { LanguageModel } = await import(${url('teacher/language-model.js')});
    const { languageModelConfig } = await import(${url('teacher/pretrain.js')});
    const { adaptLanguageModel } = await import(${url('teacher/adapt.js')});
    const engine = loadBinding().createEngine({ threads: 1 });
    const texts = ['the cat sees the red house', 'a dog follows the morning train', 'my sister likes a quiet river'];
    const tokenizer = createTokenizer(await trainBytePairTokenizer(texts, { vocabSize: 300 }));
    const run = async (hiddenSize, numHiddenLayers) => {
      const shape = { hiddenSize, numHiddenLayers, numAttentionHeads: 8, maxPositionEmbeddings: 32 };
      const config = languageModelConfig('gpt2', tokenizer.vocabSize, shape);
      const model = LanguageModel.create(engine, 'gpt2', config, tokenizer, { seed: 1 });
      const before = process.memoryUsage.rss();
      await adaptLanguageModel(engine, model, { train: texts, validation: texts }, {
        epochs: 1, batchTokens: 32, ...${JSON.stringify(options)},
      });
      const growth = process.resourceUsage().maxRSS * 1024 - before;
      const { numParameters, adapter } = model;
      model.dispose();
      return { growth, modelBytes: 4 * numParameters, trained: adapter?.numParameters ?? numParameters, numParameters };
    };
    await run(16, 1); // what the first run of all takes
    console.log(JSON.stringify(await run(512, 8)));
    engine.dispose();`;
  return JSON.parse(outputOfNode(['--input-type=module', '-e', script]));
}

test('LoRA against training in full', { timeout: 240_000 }, () => {
  const full = measure({});
  const lora = measure({ lora: { rank: 8 } });
  for (const [name, { growth, modelBytes, trained, numParameters }] of Object.entries({ full, lora })) {
    const share = ((100 * trained) / numParameters).toFixed(2);
    console.log(`${name}: ${(growth / modelBytes).toFixed(2)} × the model, ${share} % of its parameters trained`);
  }
  expect(full.trained).toBe(full.numParameters);
  expect(lora.trained / lora.numParameters).toBeLessThan(0.02);
  // Gradients, two moments, the best epoch's copy; packed weights for the validation.
  expect(full.growth).toBeGreaterThan(4 * full.modelBytes);
  // The packed weights, each in whole huge pages.
  expect(lora.growth).toBeLessThan(2 * lora.modelBytes);
});
