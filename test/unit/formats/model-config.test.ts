import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import type { TransformerConfig } from '../../../src/binding.js';
import {
  type ModelFamily,
  parseModelConfig,
  readModelConfig,
  toHuggingFaceConfig,
} from '../../../src/formats/model-config.js';
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
const qwen2 = { ...llama, model_type: 'qwen2', num_key_value_heads: 2 };
const qwen3 = { ...qwen2, model_type: 'qwen3', head_dim: 16 };
const mistral = { ...qwen2, model_type: 'mistral' };
const roberta = { ...bert, model_type: 'roberta', max_position_embeddings: 66, type_vocab_size: 1 };
const distilbert = { model_type: 'distilbert', dim: 32, n_heads: 4, n_layers: 2, hidden_dim: 64, vocab_size: 101 };
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

/** Where another key is to blame. */
const NAMED_OTHERWISE: Readonly<Record<string, string>> = {
  'n_heads 5': 'hidden size',
  'pad_token_id 65': 'max_position_embeddings',
};

describe('parseModelConfig', () => {
  test('knows the other names of an activation', () => {
    expect(parse({ ...gpt2, activation_function: 'gelu_pytorch_tanh' }).hiddenAct).toBe('gelu_new');
    expect(parse({ ...gpt2, activation_function: 'gelu' }).hiddenAct).toBe('gelu');
    expect(parse({ ...bert, hidden_act: 'gelu_new' }).hiddenAct).toBe('gelu_new');
    expect(parse({ ...bert, hidden_act: 'gelu_fast' }).hiddenAct).toBe('gelu_new');
    expect(parse({ ...bert, hidden_act: 'gelu_python' }).hiddenAct).toBe('gelu');
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
    const config = parse({ ...qwen2, use_sliding_window: false, sliding_window: 4096 });
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

  test('refuses two places of rotary positions that disagree', () => {
    const [linear, plain] = [{ rope_type: 'linear', factor: 2 }, { rope_type: 'default' }];
    expect(parse({ ...llama, rope_scaling: linear, rope_parameters: linear })).toEqual(
      parse({ ...llama, rope_scaling: linear }),
    );
    for (const json of [
      { rope_scaling: linear, rope_parameters: plain },
      { rope_scaling: plain, rope_parameters: linear },
      { rope_theta: 1e4, rope_parameters: { rope_type: 'default', rope_theta: 5e5 } },
    ]) {
      expect(() => parse({ ...llama, ...json })).toThrowError(
        expect.objectContaining({ code: 'ERR_UNSUPPORTED_MODEL', message: expect.stringContaining('rope_parameters') }),
      );
    }
  });

  test('sees that a bare BertModel has no head', () => {
    expect(parse({ ...bert, architectures: ['BertModel'] }).maskedLmHead).toBe(false);
    expect(parse({ ...bert, architectures: ['BertForPreTraining'] }).maskedLmHead).toBe(true);
  });

  test.each([
    ['LlamaModel', 'LlamaForCausalLM', 'llama'],
    ['MistralModel', 'MistralForCausalLM', 'mistral'],
    ['Qwen2Model', 'Qwen2ForCausalLM', 'qwen2'],
    ['Qwen3Model', 'Qwen3ForCausalLM', 'qwen3'],
  ])('sees that a bare %s has no head', (bare, whole, model_type) => {
    const untied = { ...llama, model_type, num_key_value_heads: 2, tie_word_embeddings: false };
    expect(parse({ ...untied, architectures: [bare] }).tieWordEmbeddings).toBe(true);
    expect(parse({ ...untied, architectures: [whole] }).tieWordEmbeddings).toBe(false);
    expect(parse(untied).tieWordEmbeddings).toBe(false);
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
    ['layer_norm_epsilon', 1e-60, gpt2],
    ['layer_norm_epsilon', 1e300, gpt2],
    ['rope_theta', 1e39, llama],
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
    ['rope_scaling', 'linear', llama],
    ['rope_scaling', { type: 'linear' }, llama],
    ['rope_scaling', { type: 'linear', factor: 0.5 }, llama],
    ['rope_scaling', { type: 'linear', rope_type: 'yarn', factor: 2 }, llama],
    ['rope_scaling', { type: 'linear', factor: 2, short_factor: [1] }, llama],
    ['rope_scaling', { rope_type: 'longrope', factor: 2 }, llama],
    ['rope_scaling', { rope_type: 'dynamic', factor: 2, original_max_position_embeddings: 64 }, llama],
    ['rope_scaling', { rope_type: 'yarn', factor: 2, mscale: 0.7 }, llama],
    ['rope_scaling', { rope_type: 'yarn', factor: 2, truncate: false }, llama],
    ['rope_scaling', { rope_type: 'yarn', factor: 2, beta_fast: 1 }, llama],
    ['rope_parameters', { rope_type: 'llama3', factor: 8 }, llama],
    ['rope_parameters', { partial_rotary_factor: 0.5 }, llama],
    ['partial_rotary_factor', 0.5, llama],
    ['use_sliding_window', 'yes', qwen2],
    ['layer_types', ['full_attention', 'sliding_attention'], qwen2],
    ['layer_types', ['full_attention'], qwen2],
    ['layer_types', ['full_attention', 'linear_attention'], mistral],
    ['layer_types', ['sliding_attention', 'full_attention'], mistral],
    ['sliding_window', 0, mistral],
    ['sliding_window', 1024, llama],
    ['num_key_value_heads', undefined, mistral],
    ['num_key_value_heads', undefined, qwen3],
    ['attention_bias', 1, qwen3],
    ['attention_bias', true, mistral],
    ['mlp_bias', true, qwen2],
    ['use_qk_norm', true, llama],
    ['logit_scale', 0.1, llama],
    ['auto_map', { AutoModel: 'modeling.Model' }, bert],
    ['pruned_heads', { 1: [0] }, bert],
    ['alibi', true, bert],
    ['activation', 'relu', distilbert],
    ['n_heads', 5, distilbert],
    ['dim', undefined, distilbert],
    ['tie_weights_', false, distilbert],
    ['pad_token_id', -1, roberta],
    ['pad_token_id', 65, roberta],
    ['hidden_act', 'gelu_new', roberta],
    ['is_decoder', true, roberta],
    ['position_embedding_type', 'relative_key_query', roberta],
  ])('refuses %s = %j', (key, value, base) => {
    expect(() => parse({ ...base, [key]: value })).toThrowError(
      expect.objectContaining({
        code: 'ERR_UNSUPPORTED_MODEL',
        message: expect.stringContaining(NAMED_OTHERWISE[`${key} ${JSON.stringify(value)}`] ?? key),
      }),
    );
  });

  test('takes keys that change no result, and any key without a value', () => {
    const harmless = {
      _name_or_path: 'x',
      torch_dtype: 'bfloat16',
      use_cache: true,
      eos_token_id: [1, 2],
      id2label: {},
    };
    const plain = { reorder_and_upcast_attn: true, pruned_heads: {}, something_new: null, quantization_config: null };
    expect(parse({ ...gpt2, ...harmless, ...plain })).toEqual(parse(gpt2));
  });

  test('takes what SmolLM2 and Mistral files say beside the model', () => {
    const smolLm2 = { is_llama_config: true, rope_interleaved: false, 'transformers.js_config': { dtype: 'q4' } };
    expect(parse({ ...llama, ...smolLm2 })).toEqual(parse(llama));
    for (const none of [false, null]) {
      expect(parse({ ...mistral, attention_bias: none, mlp_bias: none })).toEqual(parse(mistral));
    }
  });

  test('reads DistilBERT under its own names', () => {
    expect(parse({ ...distilbert, dropout: 0.2, sinusoidal_pos_embds: false, qa_dropout: 0.1 })).toMatchObject({
      hiddenSize: 32,
      intermediateSize: 64,
      maxPositionEmbeddings: 512,
      typeVocabSize: 0,
      normEps: 1e-12,
      normPlacement: 'after',
      attention: 'bidirectional',
      hiddenAct: 'gelu',
      maskedLmHead: true,
      embeddingDropout: 0.2,
      hiddenDropout: 0.2,
    });
    expect(parse({ ...distilbert, architectures: ['DistilBertModel'] }).maskedLmHead).toBe(false);
  });

  test('counts RoBERTa positions after those of padding', () => {
    expect(parse(roberta)).toMatchObject({ maxPositionEmbeddings: 64, positionOffset: 2, typeVocabSize: 1 });
    expect(parse({ ...roberta, pad_token_id: 0 })).toMatchObject({ maxPositionEmbeddings: 65, positionOffset: 1 });
    const encoder = { ...roberta, model_type: 'xlm-roberta', architectures: ['XLMRobertaModel'] };
    expect(parse(encoder)).toMatchObject({ positionOffset: 2, maskedLmHead: false });
    expect(parse({ ...encoder, hidden_act: 'gelu_new' }).hiddenAct).toBe('gelu_new');
  });

  test('gives Mistral a window unless it says null', () => {
    expect(parse(mistral)).toMatchObject({ slidingWindow: 4096, numKeyValueHeads: 2, qkvBias: false });
    expect(parse({ ...mistral, sliding_window: 7 }).slidingWindow).toBe(7);
    expect(parse({ ...mistral, sliding_window: null })).not.toHaveProperty('slidingWindow');
  });

  test('gives Qwen a window in the later layers, where it is used', () => {
    const windowed = { ...qwen2, use_sliding_window: true, sliding_window: 5 };
    expect(parse({ ...windowed, max_window_layers: 1 })).toMatchObject({ slidingWindow: 5, maxWindowLayers: 1 });
    expect(parse({ ...windowed, max_window_layers: 0 })).not.toHaveProperty('maxWindowLayers');
    expect(parse(windowed)).not.toHaveProperty('slidingWindow'); // all 2 layers are among the first 28
    const types = ['full_attention', 'sliding_attention'];
    expect(parse({ ...windowed, layer_types: types })).toMatchObject({ slidingWindow: 5, maxWindowLayers: 1 });
    expect(parse({ ...qwen2, sliding_window: 5 })).not.toHaveProperty('slidingWindow');
  });

  test('gives Qwen3 norms of queries and keys, and heads of 128 unless it says otherwise', () => {
    expect(parse(qwen3)).toMatchObject({ qkNorm: true, headDim: 16, qkvBias: false, attentionOutputBias: false });
    const { head_dim: _, ...silent } = qwen3;
    expect(parse(silent).headDim).toBe(128);
    expect(parse({ ...qwen3, attention_bias: true })).toMatchObject({ qkvBias: true, attentionOutputBias: true });
  });

  test('reads scaled rotary positions', () => {
    const scaled = (scaling: object) => parse({ ...llama, rope_scaling: scaling }).ropeScaling;
    expect(scaled({ type: 'linear', factor: 2 })).toEqual({ ropeType: 'linear', factor: 2 });
    expect(scaled({ rope_type: 'dynamic', factor: 4 })).toEqual({ ropeType: 'dynamic', factor: 4 });
    const llama3 = { factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 8192 };
    expect(scaled({ rope_type: 'llama3', ...llama3 })).toEqual({
      ropeType: 'llama3',
      factor: 8,
      lowFreqFactor: 1,
      highFreqFactor: 4,
      originalMaxPositionEmbeddings: 8192,
    });
    expect(scaled({ type: 'yarn', factor: 4 })).toEqual({
      ropeType: 'yarn',
      factor: 4,
      originalMaxPositionEmbeddings: 2048,
      betaFast: 32,
      betaSlow: 1,
      attentionFactor: 0.1 * Math.log(4) + 1,
    });
    const newer = { rope_parameters: { rope_type: 'linear', factor: 2, rope_theta: 5e5 } };
    expect(parse({ ...llama, ...newer })).toMatchObject({ ropeTheta: 5e5, ropeScaling: { factor: 2 } });
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

  test('says where yarn began only where it must: some versions of transformers take their factor from it', () => {
    const yarn = { rope_type: 'yarn', factor: 4 };
    const written = (scaling: object, key: string) =>
      (toHuggingFaceConfig('llama', parse({ ...llama, rope_scaling: scaling })) as Record<string, object>)[key];
    const original = 'original_max_position_embeddings';
    expect(JSON.parse(JSON.stringify(written(yarn, 'rope_scaling')))).not.toHaveProperty(original);
    expect(written({ ...yarn, [original]: 512 }, 'rope_scaling')).toHaveProperty(original, 512);
  });

  test('keeps what only this product uses', () => {
    const config = { ...parse(llama), embeddingDropout: 0.2, hiddenDropout: 0.3, itemFeatureSize: 64 };
    expect(parse(toHuggingFaceConfig('llama', config))).toEqual(config);
    const encoder = { ...parse(bert), embeddingDropout: 0.25, maskedLmHead: false };
    expect(parse(toHuggingFaceConfig('bert', encoder))).toEqual(encoder);
  });

  test.each<[ModelFamily, object]>([
    ['distilbert', distilbert],
    ['distilbert', { ...distilbert, architectures: ['DistilBertModel'], tie_word_embeddings: false }],
    ['roberta', roberta],
    ['roberta', { ...roberta, pad_token_id: 5, architectures: ['RobertaModel'] }],
    ['xlm-roberta', { ...roberta, model_type: 'xlm-roberta' }],
    ['mistral', mistral],
    ['mistral', { ...mistral, sliding_window: null, head_dim: 4 }],
    ['qwen2', { ...qwen2, use_sliding_window: true, max_window_layers: 1 }],
    ['qwen3', { ...qwen3, attention_bias: true, tie_word_embeddings: true }],
    ['llama', { ...llama, rope_scaling: { rope_type: 'linear', factor: 2 }, attention_bias: true, mlp_bias: true }],
    ['llama', { ...llama, rope_scaling: { rope_type: 'dynamic', factor: 2 } }],
    ['llama', { ...llama, rope_scaling: { rope_type: 'yarn', factor: 2, attention_factor: 1.25 } }],
    [
      'llama',
      {
        ...llama,
        rope_scaling: {
          rope_type: 'llama3',
          factor: 8,
          low_freq_factor: 1,
          high_freq_factor: 4,
          original_max_position_embeddings: 512,
        },
      },
    ],
  ])('a %s comes back from its file: %j', (family, json) => {
    const config = parse(json);
    const written = JSON.parse(JSON.stringify(toHuggingFaceConfig(family, config)));
    expect(written.model_type).toBe(family);
    expect(parse(written)).toEqual(config);
  });

  test.each<[string, ModelFamily, Partial<TransformerConfig>]>([
    ['qkNorm', 'llama', { qkNorm: true }],
    ['slidingWindow', 'llama', { slidingWindow: 8 }],
    ['maxWindowLayers', 'mistral', { slidingWindow: 8, maxWindowLayers: 1 }],
    ['ropeScaling', 'gpt2', { ropeScaling: { ropeType: 'linear', factor: 2 } }],
    ['positionOffset', 'bert', { positionOffset: 2 }],
  ])('refuses %s of a %s', (key, family, change) => {
    const plain = { gpt2, bert, llama, mistral }[family as 'gpt2'];
    expect(() => toHuggingFaceConfig(family, { ...parse(plain), ...change })).toThrowError(
      expect.objectContaining({ code: 'ERR_UNSUPPORTED_MODEL', message: expect.stringContaining(key) }),
    );
  });

  test('refuses what the family cannot say', () => {
    expect(() => toHuggingFaceConfig('gpt2', { ...parse(gpt2), attention: 'bidirectional' })).toThrowError(
      expect.objectContaining({ code: 'ERR_UNSUPPORTED_MODEL', message: expect.stringContaining('attention') }),
    );
  });
});
