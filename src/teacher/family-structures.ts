import type { TransformerConfig } from '../binding.js';
import type { ModelFamily } from '../formats/model-config.js';

/** What a model is whatever its size. */
export type FamilyStructure = Omit<
  TransformerConfig,
  | 'vocabSize'
  | 'hiddenSize'
  | 'numHiddenLayers'
  | 'numAttentionHeads'
  | 'numKeyValueHeads'
  | 'headDim'
  | 'intermediateSize'
  | 'maxPositionEmbeddings'
  | 'tieWordEmbeddings'
  | 'embeddingDropout'
  | 'attentionDropout'
  | 'hiddenDropout'
>;

const BIASED = { qkvBias: true, attentionOutputBias: true, mlpBias: true } as const;

const GPT2: FamilyStructure = {
  typeVocabSize: 0,
  norm: 'layerNorm',
  normPlacement: 'before',
  normEps: 1e-5,
  positions: 'learned',
  ropeTheta: 10_000,
  attention: 'causal',
  hiddenAct: 'gelu_new',
  ...BIASED,
  maskedLmHead: false,
  itemFeatureSize: 0,
};

const BERT: FamilyStructure = {
  ...GPT2,
  typeVocabSize: 2,
  normPlacement: 'after',
  normEps: 1e-12,
  attention: 'bidirectional',
  hiddenAct: 'gelu',
  maskedLmHead: true,
};

const LLAMA: FamilyStructure = {
  ...GPT2,
  norm: 'rmsNorm',
  normEps: 1e-6,
  positions: 'rotary',
  hiddenAct: 'swiglu',
  qkvBias: false,
  attentionOutputBias: false,
  mlpBias: false,
};

/** The plain model of each family: what transformers makes of a `config.json` that names sizes alone. */
export const FAMILY_STRUCTURES: Readonly<Record<ModelFamily, FamilyStructure>> = {
  gpt2: GPT2,
  bert: BERT,
  distilbert: { ...BERT, typeVocabSize: 0 },
  // Positions are counted from the padding token's id + 1, which the tokenizer decides.
  roberta: { ...BERT, typeVocabSize: 1, normEps: 1e-5 },
  'xlm-roberta': { ...BERT, typeVocabSize: 1, normEps: 1e-5 },
  llama: LLAMA,
  mistral: LLAMA,
  qwen2: { ...LLAMA, qkvBias: true },
  qwen3: { ...LLAMA, qkNorm: true },
};
