/** A small model with random weights, almost every token of which is one byte. */
import type { NativeEngine } from '../../src/binding.js';
import { trainBytePairTokenizer } from '../../src/formats/bpe-trainer.js';
import { createTokenizer } from '../../src/formats/tokenizer.js';
import { LanguageModel } from '../../src/teacher/language-model.js';
import { languageModelConfig } from '../../src/teacher/pretrain.js';

export async function generatingModel(
  engine: NativeEngine,
  { family, ...shape }: { family: 'gpt2' | 'bert'; hiddenSize: number; maxPositionEmbeddings: number },
): Promise<LanguageModel> {
  const tokenizer = createTokenizer(
    await trainBytePairTokenizer(['the cat', 'the dog'], { vocabSize: 262, specialTokens: ['<|endoftext|>'] }),
  );
  const config = languageModelConfig(family, tokenizer.vocabSize, {
    ...shape,
    numHiddenLayers: 2,
    numAttentionHeads: 2,
  });
  return LanguageModel.create(engine, family, config, tokenizer, { seed: 5, initializerRange: 0.5 });
}
