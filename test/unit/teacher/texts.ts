import { loadBinding, type NativeEngine } from '../../../src/binding.js';

const SUBJECTS = ['the cat', 'the dog', 'a bird', 'my sister', 'the old man'];
const VERBS = ['likes', 'sees', 'follows', 'forgets'];
const OBJECTS = ['the red house', 'a quiet river', 'the morning train'];

/** Sixty short texts in which much can be predicted. */
export const TEXTS: readonly string[] = SUBJECTS.flatMap((subject) =>
  VERBS.flatMap((verb) => OBJECTS.map((object) => `${subject} ${verb} ${object}`)),
);

/** Every fifth text is held out. */
export const CORPUS = {
  train: TEXTS.filter((_, i) => i % 5 !== 0),
  validation: TEXTS.filter((_, i) => i % 5 === 0),
};

export function createNativeEngine(): NativeEngine {
  return loadBinding().createEngine({ threads: 1 });
}

/** Trains in a second. */
export const TINY = {
  architecture: { hiddenSize: 32, numHiddenLayers: 2, numAttentionHeads: 2, maxPositionEmbeddings: 32, dropout: 0.1 },
  tokenizer: { vocabSize: 320 },
  training: { epochs: 24, learningRate: 5e-3, batchTokens: 128, seed: 3 },
} as const;
