/**
 * The one place where a Hugging Face `config.json` becomes a {@link TransformerConfig}, and back. What the native
 * transformer cannot compute exactly is refused by name, never approximated.
 */
import { join } from 'node:path';
import type { TransformerConfig } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { ConfigReader } from './config-reader.js';
import { readJsonFile } from './files.js';

export type ModelFamily = 'gpt2' | 'bert' | 'llama' | 'qwen2';

export interface ModelConfig {
  readonly family: ModelFamily;
  readonly config: TransformerConfig;
  /** The file's own content. */
  readonly huggingFace: object;
}

const MAX_LAYERS = 1_024;
/** Largest published vocabularies stay under 300,000; an item catalogue may be larger. */
const MAX_VOCABULARY = 16_000_000;
const MAX_WIDTH = 1 << 20;
const MAX_POSITIONS = 1 << 24;

const GELU_NAMES = { gelu_new: 'gelu_new', gelu_pytorch_tanh: 'gelu_new', gelu: 'gelu' } as const;

/**
 * Reads `config.json` of a checkpoint directory, or checks one that was parsed before.
 *
 * @throws LimbeckError ERR_UNSUPPORTED_MODEL naming the key and its value; for a directory also ERR_FILE_NOT_FOUND,
 * ERR_FILE_FORMAT, ERR_IO
 */
export async function readModelConfig(source: string | object): Promise<ModelConfig> {
  if (typeof source !== 'string') return parseModelConfig(source, 'config');
  const path = join(source, 'config.json');
  const json = await readJsonFile(path);
  if (typeof json !== 'object' || json === null || Array.isArray(json)) {
    throw new LimbeckError('ERR_FILE_FORMAT', `'${path}': expected a JSON object`);
  }
  return parseModelConfig(json, path);
}

/** Checks a parsed `config.json`; `file` is named in messages. @throws LimbeckError ERR_UNSUPPORTED_MODEL */
export function parseModelConfig(huggingFace: object, file: string): ModelConfig {
  const reader = new ConfigReader(huggingFace, file);
  reader.only('quantization_config', [null]);
  reader.only('quantization', [null]);
  reader.only('is_encoder_decoder', [false]);
  reader.only('add_cross_attention', [false]);
  const family = reader.choice('model_type', {
    gpt2: 'gpt2',
    bert: 'bert',
    llama: 'llama',
    qwen2: 'qwen2',
  } as const);
  const config = FAMILIES[family](reader);
  checkHeads(reader, config);
  return { family, config, huggingFace };
}

/**
 * The `config.json` that transformers needs to open a saved model.
 *
 * @throws LimbeckError ERR_UNSUPPORTED_MODEL when the family cannot express the config
 */
export function toHuggingFaceConfig(family: ModelFamily, config: TransformerConfig): object {
  const json = WRITERS[family](config);
  if (config.itemFeatureSize > 0) json['item_feature_size'] = config.itemFeatureSize;
  const { config: back } = parseModelConfig(json, `${family} config`);
  for (const key of Object.keys(back) as (keyof TransformerConfig)[]) {
    if (back[key] === config[key] || isUnused(key, config)) continue;
    throw new LimbeckError(
      'ERR_UNSUPPORTED_MODEL',
      `A ${family} config.json cannot say ${key} = ${config[key]} (it would be read as ${back[key]})`,
    );
  }
  return json;
}

function readGpt2(reader: ConfigReader): TransformerConfig {
  reader.only('scale_attn_weights', [true]);
  reader.only('scale_attn_by_inverse_layer_idx', [false]);
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
    tieWordEmbeddings: reader.boolean('tie_word_embeddings', true),
    maskedLmHead: false,
    embeddingDropout: reader.probability('embd_pdrop', 0.1),
    attentionDropout: reader.probability('attn_pdrop', 0.1),
    hiddenDropout: reader.probability('resid_pdrop', 0.1),
  };
}

function readBert(reader: ConfigReader): TransformerConfig {
  reader.only('position_embedding_type', ['absolute', null]);
  const isDecoder = reader.boolean('is_decoder', false);
  const hiddenSize = reader.integer('hidden_size', 1, MAX_WIDTH);
  const numAttentionHeads = reader.integer('num_attention_heads', 1, hiddenSize);
  const hiddenDropout = reader.probability('hidden_dropout_prob', 0.1);
  const architectures = reader.strings('architectures');
  // Sentence encoders, and decoders without a head of their own, are saved as the bare BertModel.
  const maskedLmHead = architectures.length === 0 || architectures.some((name) => name !== 'BertModel');
  if (isDecoder && maskedLmHead) reader.only('is_decoder', [false]);
  return {
    ...readCommon(reader, 'num_hidden_layers', 'max_position_embeddings', 512),
    hiddenSize,
    numAttentionHeads,
    numKeyValueHeads: numAttentionHeads,
    headDim: hiddenSize / numAttentionHeads,
    intermediateSize: reader.integer('intermediate_size', 1, MAX_WIDTH),
    typeVocabSize: reader.integer('type_vocab_size', 1, MAX_VOCABULARY, 2),
    norm: 'layerNorm',
    normPlacement: 'after',
    normEps: reader.positive('layer_norm_eps', 1e-12),
    positions: 'learned',
    ropeTheta: UNUSED_ROPE_THETA,
    attention: isDecoder ? 'causal' : 'bidirectional',
    hiddenAct: reader.choice('hidden_act', GELU_NAMES, 'gelu'),
    qkvBias: true,
    attentionOutputBias: true,
    mlpBias: true,
    tieWordEmbeddings: reader.boolean('tie_word_embeddings', true),
    maskedLmHead,
    embeddingDropout: reader.probability('embd_pdrop', hiddenDropout),
    attentionDropout: reader.probability('attention_probs_dropout_prob', 0.1),
    hiddenDropout,
  };
}

function readLlama(reader: ConfigReader, isQwen2: boolean): TransformerConfig {
  reader.only('partial_rotary_factor', [1, null]);
  reader.only('pretraining_tp', [1, null]);
  reader.only('use_sliding_window', [false, null]);
  for (const layerType of reader.strings('layer_types')) {
    if (layerType !== 'full_attention') reader.refuse('layer_types', layerType, "'full_attention'");
  }
  const hiddenSize = reader.integer('hidden_size', 1, MAX_WIDTH);
  const numAttentionHeads = reader.integer('num_attention_heads', 1, hiddenSize);
  const attentionBias = reader.boolean('attention_bias', false);
  reader.choice('hidden_act', { silu: 'silu', swish: 'silu' } as const, 'silu');
  return {
    ...readCommon(reader, 'num_hidden_layers', 'max_position_embeddings', isQwen2 ? 32_768 : 2_048),
    hiddenSize,
    numAttentionHeads,
    numKeyValueHeads: reader.integer('num_key_value_heads', 1, numAttentionHeads, numAttentionHeads),
    headDim: reader.integer('head_dim', 1, MAX_WIDTH, hiddenSize / numAttentionHeads),
    intermediateSize: reader.integer('intermediate_size', 1, MAX_WIDTH),
    typeVocabSize: 0,
    norm: 'rmsNorm',
    normPlacement: 'before',
    normEps: reader.positive('rms_norm_eps', 1e-6),
    positions: 'rotary',
    ropeTheta: reader.ropeTheta(),
    attention: 'causal',
    hiddenAct: 'swiglu',
    qkvBias: isQwen2 || attentionBias,
    attentionOutputBias: !isQwen2 && attentionBias,
    mlpBias: reader.boolean('mlp_bias', false),
    tieWordEmbeddings: reader.boolean('tie_word_embeddings', false),
    maskedLmHead: false,
    embeddingDropout: reader.probability('embd_pdrop', 0),
    attentionDropout: reader.probability('attention_dropout', 0),
    hiddenDropout: reader.probability('resid_pdrop', 0),
  };
}

function readCommon(reader: ConfigReader, layersKey: string, positionsKey: string, defaultPositions: number) {
  return {
    vocabSize: reader.integer('vocab_size', 1, MAX_VOCABULARY),
    numHiddenLayers: reader.integer(layersKey, 1, MAX_LAYERS),
    maxPositionEmbeddings: reader.integer(positionsKey, 1, MAX_POSITIONS, defaultPositions),
    itemFeatureSize: reader.integer('item_feature_size', 0, MAX_WIDTH, 0),
  };
}

function checkHeads(reader: ConfigReader, config: TransformerConfig): void {
  const { hiddenSize, numAttentionHeads, numKeyValueHeads, headDim } = config;
  if (!Number.isInteger(headDim)) {
    reader.refuse('hidden size', hiddenSize, `a multiple of the ${numAttentionHeads} attention heads`);
  }
  if (numAttentionHeads % numKeyValueHeads !== 0) {
    reader.refuse('num_key_value_heads', numKeyValueHeads, `a divisor of the ${numAttentionHeads} attention heads`);
  }
  if (config.positions === 'rotary' && headDim % 2 !== 0) {
    reader.refuse('head_dim', headDim, 'an even number (rotary positions turn pairs)');
  }
}

const UNUSED_ROPE_THETA = 10_000;

/** Values that no learned-position model reads. */
function isUnused(key: keyof TransformerConfig, config: TransformerConfig): boolean {
  return key === 'ropeTheta' && config.positions === 'learned';
}

const FAMILIES: Record<ModelFamily, (reader: ConfigReader) => TransformerConfig> = {
  gpt2: readGpt2,
  bert: readBert,
  llama: (reader) => readLlama(reader, false),
  qwen2: (reader) => readLlama(reader, true),
};

type Writer = (config: TransformerConfig) => Record<string, unknown>;

const WRITERS: Record<ModelFamily, Writer> = {
  gpt2: (config) => ({
    model_type: 'gpt2',
    architectures: ['GPT2LMHeadModel'],
    torch_dtype: 'float32',
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
  }),
  bert: (config) => ({
    model_type: 'bert',
    architectures: [config.maskedLmHead ? 'BertForMaskedLM' : 'BertModel'],
    torch_dtype: 'float32',
    hidden_act: config.hiddenAct,
    layer_norm_eps: config.normEps,
    type_vocab_size: config.typeVocabSize,
    ...(config.attention === 'causal' ? { is_decoder: true } : {}),
    ...sharedKeys(config),
    intermediate_size: config.intermediateSize,
    tie_word_embeddings: config.tieWordEmbeddings,
    attention_probs_dropout_prob: config.attentionDropout,
    hidden_dropout_prob: config.hiddenDropout,
    // Not a BERT key; transformers would use hidden_dropout_prob for both.
    ...(config.embeddingDropout === config.hiddenDropout ? {} : { embd_pdrop: config.embeddingDropout }),
  }),
  llama: (config) => llamaKeys('llama', 'LlamaForCausalLM', config),
  qwen2: (config) => llamaKeys('qwen2', 'Qwen2ForCausalLM', config),
};

function llamaKeys(
  family: 'llama' | 'qwen2',
  architecture: string,
  config: TransformerConfig,
): Record<string, unknown> {
  return {
    model_type: family,
    architectures: [architecture],
    torch_dtype: 'float32',
    hidden_act: 'silu',
    rms_norm_eps: config.normEps,
    rope_theta: config.ropeTheta,
    ...sharedKeys(config),
    num_key_value_heads: config.numKeyValueHeads,
    head_dim: config.headDim,
    intermediate_size: config.intermediateSize,
    tie_word_embeddings: config.tieWordEmbeddings,
    attention_dropout: config.attentionDropout,
    ...(family === 'llama' ? { attention_bias: config.attentionOutputBias } : {}),
    ...(config.mlpBias ? { mlp_bias: true } : {}),
    // Not Llama keys; transformers ignores them.
    ...(config.embeddingDropout > 0 ? { embd_pdrop: config.embeddingDropout } : {}),
    ...(config.hiddenDropout > 0 ? { resid_pdrop: config.hiddenDropout } : {}),
  };
}

function sharedKeys(config: TransformerConfig): Record<string, unknown> {
  return {
    hidden_size: config.hiddenSize,
    num_attention_heads: config.numAttentionHeads,
    num_hidden_layers: config.numHiddenLayers,
    vocab_size: config.vocabSize,
    max_position_embeddings: config.maxPositionEmbeddings,
  };
}
