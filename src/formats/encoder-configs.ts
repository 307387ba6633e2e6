/** `config.json` of models that read both ways, and of BERT's decoder: BERT, DistilBERT, RoBERTa and XLM-RoBERTa. */
import type { TransformerConfig } from '../binding.js';
import { GELU_NAMES, MAX_VOCABULARY, MAX_WIDTH, readCommon, sharedKeys, UNUSED_ROPE_THETA } from './common-config.js';
import type { ConfigReader } from './config-reader.js';

/** What the four have in common. */
const POST_NORM = {
  norm: 'layerNorm',
  normPlacement: 'after',
  positions: 'learned',
  ropeTheta: UNUSED_ROPE_THETA,
  qkvBias: true,
  attentionOutputBias: true,
  mlpBias: true,
} as const;

export function readBert(reader: ConfigReader): TransformerConfig {
  reader.only('position_embedding_type', ['absolute', null]);
  const isDecoder = reader.boolean('is_decoder', false);
  const maskedLmHead = hasMaskedLmHead(reader, 'BertModel');
  if (isDecoder && maskedLmHead) reader.only('is_decoder', [false]);
  return {
    ...readCommon(reader, 'num_hidden_layers', 'max_position_embeddings', 512),
    ...readBertSizes(reader),
    attention: isDecoder ? 'causal' : 'bidirectional',
    maskedLmHead,
  };
}

/**
 * DistilBERT. It drops nothing between attention and its norm, where `hiddenDropout` does: that is seen in training
 * alone.
 */
export function readDistilbert(reader: ConfigReader): TransformerConfig {
  reader.only('tie_weights_', [true, null]);
  // Sine and cosine only initialise the table; the file holds it.
  reader.boolean('sinusoidal_pos_embds', false);
  const hiddenSize = reader.integer('dim', 1, MAX_WIDTH);
  const numAttentionHeads = reader.integer('n_heads', 1, hiddenSize);
  const dropout = reader.probability('dropout', 0.1);
  return {
    ...readCommon(reader, 'n_layers', 'max_position_embeddings', 512),
    ...POST_NORM,
    hiddenSize,
    numAttentionHeads,
    numKeyValueHeads: numAttentionHeads,
    headDim: hiddenSize / numAttentionHeads,
    intermediateSize: reader.integer('hidden_dim', 1, MAX_WIDTH, 4 * hiddenSize),
    typeVocabSize: 0,
    normEps: DISTILBERT_EPS,
    attention: 'bidirectional',
    hiddenAct: reader.choice('activation', GELU_NAMES, 'gelu'),
    tieWordEmbeddings: reader.boolean('tie_word_embeddings', true),
    maskedLmHead: hasMaskedLmHead(reader, 'DistilBertModel'),
    embeddingDropout: dropout,
    attentionDropout: reader.probability('attention_dropout', 0.1),
    hiddenDropout: dropout,
  };
}

/** RoBERTa and XLM-RoBERTa: positions are counted from `pad_token_id` + 1, in a table that has those rows too. */
export function readRoberta(reader: ConfigReader, bareArchitecture: string): TransformerConfig {
  reader.only('position_embedding_type', ['absolute', null]);
  reader.only('is_decoder', [false]);
  const maskedLmHead = hasMaskedLmHead(reader, bareArchitecture);
  const common = readCommon(reader, 'num_hidden_layers', 'max_position_embeddings', 512);
  const positionOffset = reader.integer('pad_token_id', 0, common.vocabSize - 1, 1) + 1;
  const maxPositionEmbeddings = common.maxPositionEmbeddings - positionOffset;
  if (maxPositionEmbeddings < 1) {
    reader.refuse('max_position_embeddings', common.maxPositionEmbeddings, `above pad_token_id + 1, ${positionOffset}`);
  }
  // Its head is the erf form whatever the blocks have.
  if (maskedLmHead) reader.only('hidden_act', ['gelu']);
  return {
    ...common,
    ...readBertSizes(reader),
    maxPositionEmbeddings,
    positionOffset,
    attention: 'bidirectional',
    maskedLmHead,
  };
}

function readBertSizes(reader: ConfigReader) {
  const hiddenSize = reader.integer('hidden_size', 1, MAX_WIDTH);
  const numAttentionHeads = reader.integer('num_attention_heads', 1, hiddenSize);
  const hiddenDropout = reader.probability('hidden_dropout_prob', 0.1);
  return {
    ...POST_NORM,
    hiddenSize,
    numAttentionHeads,
    numKeyValueHeads: numAttentionHeads,
    headDim: hiddenSize / numAttentionHeads,
    intermediateSize: reader.integer('intermediate_size', 1, MAX_WIDTH),
    typeVocabSize: reader.integer('type_vocab_size', 1, MAX_VOCABULARY, 2),
    normEps: reader.positive('layer_norm_eps', 1e-12),
    hiddenAct: reader.choice('hidden_act', GELU_NAMES, 'gelu'),
    tieWordEmbeddings: reader.boolean('tie_word_embeddings', true),
    embeddingDropout: reader.probability('embd_pdrop', hiddenDropout),
    attentionDropout: reader.probability('attention_probs_dropout_prob', 0.1),
    hiddenDropout,
  };
}

/** Sentence encoders, and decoders without a head of their own, are saved as the bare model. */
function hasMaskedLmHead(reader: ConfigReader, bareArchitecture: string): boolean {
  const architectures = reader.strings('architectures');
  return architectures.length === 0 || architectures.some((name) => name !== bareArchitecture);
}

const DISTILBERT_EPS = 1e-12;

export function writeBert(config: TransformerConfig): Record<string, unknown> {
  return {
    model_type: 'bert',
    architectures: [config.maskedLmHead ? 'BertForMaskedLM' : 'BertModel'],
    ...(config.attention === 'causal' ? { is_decoder: true } : {}),
    ...bertKeys(config),
  };
}

export function writeDistilbert(config: TransformerConfig): Record<string, unknown> {
  return {
    model_type: 'distilbert',
    architectures: [config.maskedLmHead ? 'DistilBertForMaskedLM' : 'DistilBertModel'],
    activation: config.hiddenAct,
    dim: config.hiddenSize,
    n_heads: config.numAttentionHeads,
    n_layers: config.numHiddenLayers,
    hidden_dim: config.intermediateSize,
    vocab_size: config.vocabSize,
    max_position_embeddings: config.maxPositionEmbeddings,
    tie_word_embeddings: config.tieWordEmbeddings,
    attention_dropout: config.attentionDropout,
    dropout: config.hiddenDropout,
  };
}

export function writeRoberta(
  family: 'roberta' | 'xlm-roberta',
  architecture: 'Roberta' | 'XLMRoberta',
  config: TransformerConfig,
): Record<string, unknown> {
  const positionOffset = config.positionOffset ?? 0;
  return {
    model_type: family,
    architectures: [`${architecture}${config.maskedLmHead ? 'ForMaskedLM' : 'Model'}`],
    ...bertKeys(config),
    max_position_embeddings: config.maxPositionEmbeddings + positionOffset,
    pad_token_id: positionOffset - 1,
  };
}

function bertKeys(config: TransformerConfig): Record<string, unknown> {
  return {
    hidden_act: config.hiddenAct,
    layer_norm_eps: config.normEps,
    type_vocab_size: config.typeVocabSize,
    ...sharedKeys(config),
    intermediate_size: config.intermediateSize,
    tie_word_embeddings: config.tieWordEmbeddings,
    attention_probs_dropout_prob: config.attentionDropout,
    hidden_dropout_prob: config.hiddenDropout,
    // Not a BERT key; transformers would use hidden_dropout_prob for both.
    ...(config.embeddingDropout === config.hiddenDropout ? {} : { embd_pdrop: config.embeddingDropout }),
  };
}
