/** What the `config.json` of every family has in common: limits, names, and keys that change no result. */
import type { TransformerConfig } from '../binding.js';
import type { ConfigReader } from './config-reader.js';

export const MAX_LAYERS = 1_024;
/** Largest published vocabularies stay under 300,000; an item catalogue may be larger. */
export const MAX_VOCABULARY = 16_000_000;
export const MAX_WIDTH = 1 << 20;
export const MAX_POSITIONS = 1 << 24;

export const GELU_NAMES = {
  gelu_new: 'gelu_new',
  gelu_pytorch_tanh: 'gelu_new',
  gelu_fast: 'gelu_new',
  gelu_accurate: 'gelu_new',
  gelu: 'gelu',
  gelu_python: 'gelu',
} as const;

/** Of models with learned positions, which read no such key. */
export const UNUSED_ROPE_THETA = 10_000;

export function readCommon(reader: ConfigReader, layersKey: string, positionsKey: string, defaultPositions: number) {
  return {
    vocabSize: reader.integer('vocab_size', 1, MAX_VOCABULARY),
    numHiddenLayers: reader.integer(layersKey, 1, MAX_LAYERS),
    maxPositionEmbeddings: reader.integer(positionsKey, 1, MAX_POSITIONS, defaultPositions),
    itemFeatureSize: reader.integer('item_feature_size', 0, MAX_WIDTH, 0),
  };
}

/** Refuses whole kinds of models, whatever the family. */
export function refuseOtherKinds(reader: ConfigReader): void {
  reader.only('quantization_config', [null]);
  reader.only('quantization', [null]);
  reader.only('is_encoder_decoder', [false]);
  reader.only('add_cross_attention', [false]);
  // Code of the checkpoint's own, which is never run.
  reader.only('auto_map', [null]);
  if (reader.object('pruned_heads')?.isEmpty === false) {
    reader.refuse('pruned_heads', 'some', 'empty: heads that were taken out leave weights of other shapes');
  }
}

export function sharedKeys(config: TransformerConfig): Record<string, unknown> {
  return {
    hidden_size: config.hiddenSize,
    num_attention_heads: config.numAttentionHeads,
    num_hidden_layers: config.numHiddenLayers,
    vocab_size: config.vocabSize,
    max_position_embeddings: config.maxPositionEmbeddings,
  };
}

/** Keys of published checkpoints that say how a model was made, stored, trained or sampled, not what it computes. */
export const HARMLESS_KEYS: ReadonlySet<string> = new Set([
  // Where it comes from, and how it is stored.
  ...['_name_or_path', 'name_or_path', 'transformers_version', '_commit_hash', 'architectures', 'torch_dtype', 'dtype'],
  ...['_attn_implementation', '_attn_implementation_autoset', 'attn_implementation', '_flash_attn_2_enabled'],
  ...['torchscript', 'use_bfloat16', 'tf_legacy_loss', 'gradient_checkpointing', 'chunk_size_feed_forward'],
  ...['unsloth_fixed', 'unsloth_version', 'model_name', 'tokenizer_class', 'processor_class'],
  ...['is_llama_config', 'transformers.js_config'],
  // How it is called.
  ...[
    'use_cache',
    'output_attentions',
    'output_hidden_states',
    'output_past',
    'return_dict',
    'return_dict_in_generate',
  ],
  ...['cross_attention_hidden_size', 'tie_encoder_decoder', 'is_decoder'],
  // Its special tokens.
  ...['bos_token_id', 'eos_token_id', 'pad_token_id', 'sep_token_id', 'cls_token_id', 'mask_token_id', 'unk_token_id'],
  ...['decoder_start_token_id', 'eos_token_ids'],
  // How it was initialised and trained, and heads that are not read.
  ...['initializer_range', 'initializer_factor', 'finetuning_task', 'task_specific_params', 'problem_type'],
  ...['id2label', 'label2id', 'num_labels', '_num_labels', 'classifier_dropout', 'classifier_dropout_prob', 'prefix'],
  ...['summary_type', 'summary_use_proj', 'summary_activation', 'summary_proj_to_labels', 'summary_first_dropout'],
  ...['n_ctx', 'n_special', 'predict_special_tokens', 'directionality', 'pooler_fc_size', 'pooler_num_attention_heads'],
  ...['pooler_num_fc_layers', 'pooler_size_per_head', 'pooler_type', 'qa_dropout', 'seq_classif_dropout'],
  ...['max_sequence_length', 'model_max_length', 'sentence_transformers', 'neftune_noise_alpha'],
  // How it is sampled.
  ...['max_length', 'min_length', 'do_sample', 'early_stopping', 'num_beams', 'num_beam_groups', 'diversity_penalty'],
  ...['temperature', 'top_k', 'top_p', 'typical_p', 'repetition_penalty', 'length_penalty', 'no_repeat_ngram_size'],
  ...['encoder_no_repeat_ngram_size', 'bad_words_ids', 'num_return_sequences', 'output_scores', 'suppress_tokens'],
  ...['forced_bos_token_id', 'forced_eos_token_id', 'remove_invalid_values', 'exponential_decay_length_penalty'],
  ...['begin_suppress_tokens'],
]);
