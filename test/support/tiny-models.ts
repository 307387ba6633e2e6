/** One tiny model of each kind, batches for them, and how close two computations of the same are. */
import { expect } from 'vitest';
import type { NativeEngine, NativeTransformer, PackedBatch, TransformerConfig } from '../../src/binding.js';

const GPT2: TransformerConfig = {
  vocabSize: 37,
  hiddenSize: 16,
  numHiddenLayers: 2,
  numAttentionHeads: 2,
  numKeyValueHeads: 2,
  headDim: 8,
  intermediateSize: 40,
  maxPositionEmbeddings: 12,
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

export const TINY_MODELS: Record<'gpt2' | 'bert' | 'llama' | 'sequence', TransformerConfig> = {
  gpt2: GPT2,
  bert: {
    ...GPT2,
    normPlacement: 'after',
    attention: 'bidirectional',
    hiddenAct: 'gelu',
    typeVocabSize: 2,
    maskedLmHead: true,
  },
  llama: {
    ...GPT2,
    norm: 'rmsNorm',
    positions: 'rotary',
    hiddenAct: 'swiglu',
    numAttentionHeads: 4,
    numKeyValueHeads: 2,
    qkvBias: false,
    attentionOutputBias: false,
    mlpBias: false,
    tieWordEmbeddings: false,
    qkNorm: true,
    slidingWindow: 4,
    maxWindowLayers: 1,
  },
  sequence: { ...GPT2, normPlacement: 'after', itemFeatureSize: 3 },
};

export function createTinyModel(engine: NativeEngine, config: TransformerConfig, seed: number): NativeTransformer {
  const model = engine.createTransformer(config);
  model.initialize(seed, 0.3);
  // Biases and gains away from 0 and 1, so that none can be left out unseen.
  for (const { name, shape } of model.parameters()) {
    if (shape.length > 1) continue;
    model.setParameter(
      name,
      model.getParameter(name).map((value, i) => value + 0.2 * Math.sin(seed + 1.7 * i + name.length)),
    );
  }
  const { vocabSize, itemFeatureSize } = config;
  if (itemFeatureSize > 0) model.setItemFeatures(wave(vocabSize * itemFeatureSize, 0.5 + seed));
  return model;
}

/** Four sequences, the first as long as the positions allow. */
export function tinyBatch(config: TransformerConfig): PackedBatch & { readonly labels: Int32Array } {
  const lengths = [config.maxPositionEmbeddings, 1, 5, 2];
  const offsets = [0, 1, 2, 3, 4].map((end) => lengths.slice(0, end).reduce((sum, length) => sum + length, 0));
  const numTokens = offsets.at(-1) ?? 0;
  const numbers = Int32Array.from({ length: numTokens }, (_, i) => (i * 11 + 3) % config.vocabSize);
  return {
    inputIds: numbers,
    sequenceOffsets: Int32Array.from(offsets),
    ...(config.typeVocabSize > 0 ? { tokenTypeIds: numbers.map((_, i) => i % config.typeVocabSize) } : {}),
    labels: numbers.map((id, i) => (i % 3 === 1 ? -100 : (id + 5) % config.vocabSize)),
  };
}

/** Numbers in [−1, 1] without a pattern. */
export function wave(length: number, phase: number): Float32Array {
  return Float32Array.from({ length }, (_, i) => Math.sin(phase + 12.9898 * i * (1 + (i % 7))));
}

/** The largest difference, over the largest magnitude expected. */
export function expectClose(
  actual: Float32Array | undefined,
  expected: Float32Array | undefined,
  tolerance: number,
  what = '',
): void {
  expect(actual?.length, what).toBe(expected?.length);
  let largest = 1e-6;
  let difference = 0;
  expected?.forEach((value, i) => {
    largest = Math.max(largest, Math.abs(value));
    const distance = Math.abs(value - (actual?.[i] ?? Number.NaN));
    difference = Number.isNaN(distance) ? Number.POSITIVE_INFINITY : Math.max(difference, distance);
  });
  expect(difference / largest, what).toBeLessThan(tolerance);
}
