/** `config.json` of models that continue texts: GPT-2, Llama, Qwen2, Qwen3 and Mistral. */
import type { TransformerConfig } from '../binding.js';
import { GELU_NAMES, MAX_POSITIONS, MAX_WIDTH, readCommon, sharedKeys, UNUSED_ROPE_THETA } from './common-config.js';
import type { ConfigReader } from './config-reader.js';
import { readRope, ropeKeys } from './rope-config.js';

export function readGpt2(reader: ConfigReader): TransformerConfig {
  reader.only('scale_attn_weights', [true]);
  reader.only('scale_attn_by_inverse_layer_idx', [false]);
  // Scores in float32 before the softmax, as they are here in any case.
  reader.boolean('reorder_and_upcast_attn', false);
  const hiddenSize = reader.integer('n_embd', 1, MAX_WIDTH);
  const numAttentionHeads = reader.integer('n_head', 1, hiddenSize);
  return {
    ...readCommon(reader, 'n_layer', 'n_positions', 1024),
    hiddenSize,
    numAttentionHeads,
    numKeyValueHeads: numAttentionHeads,
    headDim: hiddenSize / numAttentionHeads,
    intermediateSize: reader.integer('n_inner', 1, MAX_WIDTH, 4 * hiddenSize),
    typeVocabSize: 0,
    norm: 'layerNorm',
    normPlacement: 'before',
    normEps: reader.positive('layer_norm_epsilon', 1e-5),
    positions: 'learned',
    ropeTheta: UNUSED_ROPE_THETA,
    attention: 'causal',
    hiddenAct: reader.choice('activation_function', GELU_NAMES, 'gelu_new'),
    qkvBias: true,
    attentionOutputBias: true,
    mlpBias: true,
    tieWordEmbeddings: readTied(reader, 'GPT2Model', true),
    maskedLmHead: false,
    embeddingDropout: reader.probability('embd_pdrop', 0.1),
    attentionDropout: reader.probability('attn_pdrop', 0.1),
    hiddenDropout: reader.probability('resid_pdrop', 0.1),
  };
}

export function readLlama(reader: ConfigReader): TransformerConfig {
  const heads = readHeads(reader);
  const attentionBias = reader.boolean('attention_bias', false);
  return {
    ...readRmsNormed(reader, 'LlamaModel', 2_048),
    ...heads,
    numKeyValueHeads: reader.integer('num_key_value_heads', 1, heads.numAttentionHeads, heads.numAttentionHeads),
    headDim: reader.integer('head_dim', 1, MAX_WIDTH, heads.hiddenSize / heads.numAttentionHeads),
    qkvBias: attentionBias,
    attentionOutputBias: attentionBias,
    mlpBias: reader.boolean('mlp_bias', false),
    ...readWindow(reader, 0),
  };
}

export function readMistral(reader: ConfigReader): TransformerConfig {
  const heads = readHeads(reader);
  // Not keys of the family; some files say that there are none.
  reader.only('attention_bias', [false, null]);
  reader.only('mlp_bias', [false, null]);
  return {
    ...readRmsNormed(reader, 'MistralModel', 131_072),
    ...heads,
    ...requiredKeyValueHeads(reader, heads.numAttentionHeads),
    headDim: reader.integer('head_dim', 1, MAX_WIDTH, heads.hiddenSize / heads.numAttentionHeads),
    qkvBias: false,
    attentionOutputBias: false,
    mlpBias: false,
    ...readWindow(reader, reader.optionalInteger('sliding_window', 1, MAX_POSITIONS, DEFAULT_WINDOW)),
  };
}

export function readQwen2(reader: ConfigReader): TransformerConfig {
  const heads = readHeads(reader);
  return {
    ...readRmsNormed(reader, 'Qwen2Model', 32_768),
    ...heads,
    ...requiredKeyValueHeads(reader, heads.numAttentionHeads),
    headDim: reader.integer('head_dim', 1, MAX_WIDTH, heads.hiddenSize / heads.numAttentionHeads),
    qkvBias: true,
    attentionOutputBias: false,
    mlpBias: false,
    ...readQwenWindow(reader),
  };
}

export function readQwen3(reader: ConfigReader): TransformerConfig {
  const heads = readHeads(reader);
  const attentionBias = reader.boolean('attention_bias', false);
  return {
    ...readRmsNormed(reader, 'Qwen3Model', 32_768),
    ...heads,
    ...requiredKeyValueHeads(reader, heads.numAttentionHeads),
    headDim: reader.integer('head_dim', 1, MAX_WIDTH, QWEN3_HEAD_DIM),
    qkvBias: attentionBias,
    attentionOutputBias: attentionBias,
    mlpBias: false,
    qkNorm: true,
    ...readQwenWindow(reader),
  };
}

/** What transformers takes where the key is absent. */
const QWEN3_HEAD_DIM = 128;
const DEFAULT_WINDOW = 4_096;
const QWEN_WINDOW_LAYERS = 28;

function readHeads(reader: ConfigReader) {
  const hiddenSize = reader.integer('hidden_size', 1, MAX_WIDTH);
  return { hiddenSize, numAttentionHeads: reader.integer('num_attention_heads', 1, hiddenSize) };
}

/** Where the key is absent, transformers takes a number that says nothing about the checkpoint. */
function requiredKeyValueHeads(reader: ConfigReader, numAttentionHeads: number) {
  return { numKeyValueHeads: reader.integer('num_key_value_heads', 1, numAttentionHeads) };
}

function readRmsNormed(reader: ConfigReader, bareArchitecture: string, defaultPositions: number) {
  reader.only('pretraining_tp', [1, null]);
  reader.only('use_mrope', [false, null]);
  reader.choice('hidden_act', { silu: 'silu', swish: 'silu' } as const, 'silu');
  const common = readCommon(reader, 'num_hidden_layers', 'max_position_embeddings', defaultPositions);
  return {
    ...common,
    intermediateSize: reader.integer('intermediate_size', 1, MAX_WIDTH),
    typeVocabSize: 0,
    norm: 'rmsNorm',
    normPlacement: 'before',
    normEps: reader.positive('rms_norm_eps', 1e-6),
    positions: 'rotary',
    ...readRope(reader, common.maxPositionEmbeddings),
    attention: 'causal',
    hiddenAct: 'swiglu',
    tieWordEmbeddings: readTied(reader, bareArchitecture, false),
    maskedLmHead: false,
    embeddingDropout: reader.probability('embd_pdrop', 0),
    attentionDropout: reader.probability('attention_dropout', 0),
    hiddenDropout: reader.probability('resid_pdrop', 0),
  } as const;
}

/** A bare model, as text encoders are saved, has no head: its logits, if anybody asks, are of its word embeddings. */
function readTied(reader: ConfigReader, bareArchitecture: string, whenAbsent: boolean): boolean {
  const architectures = reader.strings('architectures');
  const isBare = architectures.length > 0 && architectures.every((name) => name === bareArchitecture);
  return reader.boolean('tie_word_embeddings', whenAbsent) || isBare;
}

function readQwenWindow(reader: ConfigReader) {
  const window = reader.optionalInteger('sliding_window', 1, MAX_POSITIONS, DEFAULT_WINDOW);
  const maxWindowLayers = reader.integer('max_window_layers', 0, MAX_POSITIONS, QWEN_WINDOW_LAYERS);
  return readWindow(reader, reader.boolean('use_sliding_window', false) ? window : 0, maxWindowLayers);
}

/** Blocks without the window come first, `maxWindowLayers` of them unless `layer_types` says which. */
function readWindow(reader: ConfigReader, slidingWindow: number, maxWindowLayers = 0) {
  const types = reader.strings('layer_types');
  for (const type of types) {
    if (type === 'full_attention' || (type === 'sliding_attention' && slidingWindow > 0)) continue;
    const allowed = slidingWindow > 0 ? 'full_attention or sliding_attention' : "'full_attention' (there is no window)";
    reader.refuse('layer_types', type, allowed);
  }
  const numHiddenLayers = reader.integer('num_hidden_layers', 1, MAX_POSITIONS);
  if (types.length > 0 && types.length !== numHiddenLayers) {
    reader.refuse('layer_types', types, `one of each of the ${numHiddenLayers} layers`);
  }
  let first = types.length > 0 ? types.indexOf('sliding_attention') : maxWindowLayers;
  if (first < 0) first = numHiddenLayers;
  if (types.slice(first).includes('full_attention')) {
    reader.refuse('layer_types', types, 'full_attention layers first, then sliding_attention layers');
  }
  if (slidingWindow === 0 || first >= numHiddenLayers) return {};
  return { slidingWindow, ...(first > 0 ? { maxWindowLayers: first } : {}) };
}

export function writeGpt2(config: TransformerConfig): Record<string, unknown> {
  return {
    model_type: 'gpt2',
    architectures: ['GPT2LMHeadModel'],
    activation_function: config.hiddenAct,
    layer_norm_epsilon: config.normEps,
    tie_word_embeddings: config.tieWordEmbeddings,
    attn_pdrop: config.attentionDropout,
    embd_pdrop: config.embeddingDropout,
    resid_pdrop: config.hiddenDropout,
    n_embd: config.hiddenSize,
    n_head: config.numAttentionHeads,
    n_layer: config.numHiddenLayers,
    vocab_size: config.vocabSize,
    n_positions: config.maxPositionEmbeddings,
    n_ctx: config.maxPositionEmbeddings,
    n_inner: config.intermediateSize === 4 * config.hiddenSize ? null : config.intermediateSize,
  };
}

export function writeLlama(config: TransformerConfig): Record<string, unknown> {
  return {
    ...rmsNormedKeys('llama', 'LlamaForCausalLM', config),
    attention_bias: config.attentionOutputBias,
    ...(config.mlpBias ? { mlp_bias: true } : {}),
  };
}

export function writeMistral(config: TransformerConfig): Record<string, unknown> {
  return {
    ...rmsNormedKeys('mistral', 'MistralForCausalLM', config),
    sliding_window: config.slidingWindow ?? null,
  };
}

export function writeQwen2(config: TransformerConfig): Record<string, unknown> {
  return { ...rmsNormedKeys('qwen2', 'Qwen2ForCausalLM', config), ...qwenWindowKeys(config) };
}

export function writeQwen3(config: TransformerConfig): Record<string, unknown> {
  return {
    ...rmsNormedKeys('qwen3', 'Qwen3ForCausalLM', config),
    attention_bias: config.attentionOutputBias,
    ...qwenWindowKeys(config),
  };
}

function qwenWindowKeys({ slidingWindow, maxWindowLayers = 0, numHiddenLayers }: TransformerConfig) {
  if (slidingWindow === undefined) return { use_sliding_window: false };
  return {
    use_sliding_window: true,
    sliding_window: slidingWindow,
    max_window_layers: maxWindowLayers,
    layer_types: Array.from({ length: numHiddenLayers }, (_, layer) =>
      layer < maxWindowLayers ? 'full_attention' : 'sliding_attention',
    ),
  };
}

function rmsNormedKeys(family: string, architecture: string, config: TransformerConfig): Record<string, unknown> {
  return {
    model_type: family,
    architectures: [architecture],
    hidden_act: 'silu',
    rms_norm_eps: config.normEps,
    ...ropeKeys(config),
    ...sharedKeys(config),
    num_key_value_heads: config.numKeyValueHeads,
    head_dim: config.headDim,
    intermediate_size: config.intermediateSize,
    tie_word_embeddings: config.tieWordEmbeddings,
    attention_dropout: config.attentionDropout,
    // Not keys of these families; transformers ignores them.
    ...(config.embeddingDropout > 0 ? { embd_pdrop: config.embeddingDropout } : {}),
    ...(config.hiddenDropout > 0 ? { resid_pdrop: config.hiddenDropout } : {}),
  };
}
