import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import type { TransformerConfig } from '../../../src/binding.js';
import { parseModelConfig, readModelConfig, toHuggingFaceConfig } from '../../../src/formats/model-config.js';
import { temporaryDirectory } from './temporary-directory.js';

const fixtures = join(import.meta.dirname, '../../fixtures');
const gpt2 = { model_type: 'gpt2', n_embd: 48, n_head: 4, n_layer: 3, vocab_size: 131 };
const bert = {
  model_type: 'bert',
  hidden_size: 32,
  num_attention_heads: 4,
  num_hidden_layers: 2,
  vocab_size: 101,
  intermediate_size: 64,
};
const llama = { ...bert, model_type: 'llama' };
const parse = (json: object) => parseModelConfig(json, 'config.json').config;

describe('readModelConfig', () => {
  test('reads a GPT-2 checkpoint', async () => {
    const { family, config } = await readModelConfig(join(fixtures, 'gpt2'));
    expect(family).toBe('gpt2');
    expect(config).toEqual<TransformerConfig>({
      vocabSize: 131,
      hiddenSize: 48,
      numHiddenLayers: 3,
      numAttentionHeads: 4,
      numKeyValueHeads: 4,
      headDim: 12,
      intermediateSize: 192,
      maxPositionEmbeddings: 32,
      typeVocabSize: 0,
      norm: 'layerNorm',
      normPlacement: 'before',
      normEps: 1e-5,
      positions: 'learned',
      ropeTheta: 10_000,
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
    });
  });

  test('reads a BERT checkpoint', async () => {
    expect((await readModelConfig(join(fixtures, 'bert'))).config).toMatchObject({
      typeVocabSize: 2,
      norm: 'layerNorm',
      normPlacement: 'after',
      normEps: 1e-12,
      positions: 'learned',
      attention: 'bidirectional',
      hiddenAct: 'gelu',
      maskedLmHead: true,
      tieWordEmbeddings: true,
    });
  });

  test('reads a Llama checkpoint', async () => {
    expect((await readModelConfig(join(fixtures, 'llama'))).config).toMatchObject({
      numKeyValueHeads: 2,
      headDim: 16,
      norm: 'rmsNorm',
      positions: 'rotary',
      hiddenAct: 'swiglu',
      qkvBias: false,
      attentionOutputBias: false,
      mlpBias: false,
      tieWordEmbeddings: false,
    });
  });

  test('takes a parsed config', async () => {
    expect((await readModelConfig(gpt2)).config.maxPositionEmbeddings).toBe(1024);
  });

  test.each([
    ['broken JSON', '{', 'ERR_FILE_FORMAT'],
    ['a list', '[]', 'ERR_FILE_FORMAT'],
    ['an empty file', '', 'ERR_FILE_FORMAT'],
    ['an empty object', '{}', 'ERR_UNSUPPORTED_MODEL'],
    ['only a prototype', '{"__proto__": {"model_type": "gpt2"}}', 'ERR_UNSUPPORTED_MODEL'],
  ])('refuses %s', async (name, text, code) => {
    const directory = join(root, name);
    mkdirSync(directory);
    writeFileSync(join(directory, 'config.json'), text);
    await expect(readModelConfig(directory)).rejects.toMatchObject({ code });
  });

  test('names a missing config.json', async () => {
    await expect(readModelConfig(join(root, 'absent'))).rejects.toMatchObject({ code: 'ERR_FILE_NOT_FOUND' });
  });
});

const root = temporaryDirectory();

describe('parseModelConfig', () => {
  test('knows the other names of an activation', () => {
    expect(parse({ ...gpt2, activation_function: 'gelu_pytorch_tanh' }).hiddenAct).toBe('gelu_new');
    expect(parse({ ...gpt2, activation_function: 'gelu' }).hiddenAct).toBe('gelu');
    expect(parse({ ...bert, hidden_act: 'gelu_new' }).hiddenAct).toBe('gelu_new');
  });

  test('fills in what Hugging Face leaves out', () => {
    expect(parse({ ...gpt2, n_inner: null }).intermediateSize).toBe(192);
    expect(parse(gpt2).embeddingDropout).toBe(0.1);
    expect(parse(llama)).toMatchObject({
      numKeyValueHeads: 4,
      headDim: 8,
      ropeTheta: 10_000,
      tieWordEmbeddings: false,
    });
    expect(parse({ ...llama, head_dim: 64 }).headDim).toBe(64);
  });

  test('gives Qwen2 biases on q, k and v alone', () => {
    const config = parse({ ...llama, model_type: 'qwen2', use_sliding_window: false, sliding_window: 4096 });
    expect(config).toMatchObject({ qkvBias: true, attentionOutputBias: false, mlpBias: false });
    expect(parse({ ...llama, attention_bias: true, mlp_bias: true })).toMatchObject({
      qkvBias: true,
      attentionOutputBias: true,
      mlpBias: true,
    });
  });

  test('reads rope_theta from its newer place', () => {
    expect(parse({ ...llama, rope_parameters: { rope_type: 'default', rope_theta: 5e5 } }).ropeTheta).toBe(5e5);
    expect(parse({ ...llama, rope_theta: 1e6, rope_scaling: null }).ropeTheta).toBe(1e6);
  });

  test('sees that a bare BertModel has no head', () => {
    expect(parse({ ...bert, architectures: ['BertModel'] }).maskedLmHead).toBe(false);
    expect(parse({ ...bert, architectures: ['BertForPreTraining'] }).maskedLmHead).toBe(true);
  });

  test.each<[string, unknown, object]>([
    ['model_type', 'mamba', gpt2],
    ['model_type', 'toString', gpt2],
    ['model_type', undefined, gpt2],
    ['activation_function', 'relu', gpt2],
    ['scale_attn_by_inverse_layer_idx', true, gpt2],
    ['scale_attn_weights', false, gpt2],
    ['add_cross_attention', true, gpt2],
    ['quantization_config', { bits: 4 }, gpt2],
    ['n_layer', 0, gpt2],
    ['n_layer', 1025, gpt2],
    ['n_layer', 1e308, gpt2],
    ['n_layer', '3', gpt2],
    ['n_layer', 2.5, gpt2],
    ['n_layer', null, gpt2],
    ['vocab_size', 0, gpt2],
    ['vocab_size', 16_000_001, gpt2],
    ['n_embd', -48, gpt2],
    ['n_embd', 2 ** 31, gpt2],
    ['n_head', 0, gpt2],
    ['n_head', 49, gpt2],
    ['n_inner', 0, gpt2],
    ['n_positions', 0, gpt2],
    ['layer_norm_epsilon', 0, gpt2],
    ['layer_norm_epsilon', Number.NaN, gpt2],
    ['attn_pdrop', 1, gpt2],
    ['attn_pdrop', -0.1, gpt2],
    ['tie_word_embeddings', 'yes', gpt2],
    ['item_feature_size', -1, gpt2],
    ['hidden_act', 'relu', bert],
    ['position_embedding_type', 'relative_key', bert],
    ['is_decoder', true, bert],
    ['type_vocab_size', 0, bert],
    ['architectures', 'BertModel', bert],
    ['hidden_act', 'gelu', llama],
    ['num_key_value_heads', 3, llama],
    ['num_key_value_heads', 8, llama],
    ['head_dim', 7, llama],
    ['rope_theta', 0, llama],
    ['rope_scaling', { type: 'linear', factor: 2 }, llama],
    ['rope_parameters', { rope_type: 'llama3', factor: 8 }, llama],
    ['rope_parameters', { partial_rotary_factor: 0.5 }, llama],
    ['partial_rotary_factor', 0.5, llama],
    ['use_sliding_window', true, { ...llama, model_type: 'qwen2' }],
    ['layer_types', ['full_attention', 'sliding_attention'], { ...llama, model_type: 'qwen2' }],
  ])('refuses %s = %j', (key, value, base) => {
    expect(() => parse({ ...base, [key]: value })).toThrowError(
      expect.objectContaining({
        code: 'ERR_UNSUPPORTED_MODEL',
        message: expect.stringContaining(key.startsWith('rope_parameters') ? 'r' : key),
      }),
    );
  });

  test('a BERT decoder reads causally; one with a head of its own is refused', () => {
    const decoder = { ...bert, is_decoder: true, architectures: ['BertModel'] };
    const config = parse(decoder);
    expect(config).toMatchObject({ attention: 'causal', normPlacement: 'after', maskedLmHead: false });
    expect(toHuggingFaceConfig('bert', config)).toMatchObject({ is_decoder: true, architectures: ['BertModel'] });
    expect(toHuggingFaceConfig('bert', parse(bert))).not.toHaveProperty('is_decoder');
    expect(() => parse({ ...decoder, architectures: ['BertLMHeadModel'] })).toThrowError(/is_decoder/);
  });

  test('refuses heads that do not divide the width', () => {
    expect(() => parse({ ...gpt2, n_head: 5 })).toThrowError(/48/);
  });
});

describe('toHuggingFaceConfig', () => {
  test.each(['gpt2', 'bert', 'llama', 'distil/student'])('keeps every key of the %s fixture', async (name) => {
    const { family, config, huggingFace } = await readModelConfig(join(fixtures, name));
    const json = toHuggingFaceConfig(family, config);
    const { pad_token_id: _, ...expected } = huggingFace as Record<string, unknown>;
    expect(json).toMatchObject(expected);
    expect(parse(json)).toEqual(config);
  });

  test('keeps what only this product uses', () => {
    const config = { ...parse(llama), embeddingDropout: 0.2, hiddenDropout: 0.3, itemFeatureSize: 64 };
    expect(parse(toHuggingFaceConfig('llama', config))).toEqual(config);
    const encoder = { ...parse(bert), embeddingDropout: 0.25, maskedLmHead: false };
    expect(parse(toHuggingFaceConfig('bert', encoder))).toEqual(encoder);
  });

  test('refuses what the family cannot say', () => {
    expect(() => toHuggingFaceConfig('gpt2', { ...parse(gpt2), attention: 'bidirectional' })).toThrowError(
      expect.objectContaining({ code: 'ERR_UNSUPPORTED_MODEL', message: expect.stringContaining('attention') }),
    );
  });
});
