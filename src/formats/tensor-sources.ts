/** The Hugging Face names of every native parameter, family by family. */
import { LimbeckError } from '../errors.js';
import type { ModelFamily } from './model-config.js';

export interface TensorSources {
  /** As written by transformers; the rows of several are laid end to end. */
  readonly names: readonly string[];
  /** The file has [in, out]. */
  readonly isTransposed: boolean;
}

interface FamilyNames {
  /** Before every tensor of the base model; files of the bare base model leave it out. */
  readonly prefix: string;
  /** Native module → modules in the file; `{i}` is the layer. */
  readonly modules: Readonly<Record<string, readonly string[]>>;
  /** Modules whose weight is stored [in, out]. */
  readonly transposed: readonly string[];
  /** Tensors that hold no parameter of the model. */
  readonly harmless: readonly RegExp[];
  /** The copy of the word embeddings, when they are tied. */
  readonly tied: string;
  /** The head's bias under a second name. */
  readonly secondBias?: string;
}

const LLAMA: FamilyNames = {
  prefix: 'model.',
  modules: {
    'embeddings.word': ['model.embed_tokens.weight'],
    'layers.{i}.attention_norm': ['model.layers.{i}.input_layernorm'],
    'layers.{i}.attention.qkv': [
      'model.layers.{i}.self_attn.q_proj',
      'model.layers.{i}.self_attn.k_proj',
      'model.layers.{i}.self_attn.v_proj',
    ],
    'layers.{i}.attention.q_norm': ['model.layers.{i}.self_attn.q_norm'],
    'layers.{i}.attention.k_norm': ['model.layers.{i}.self_attn.k_norm'],
    'layers.{i}.attention.output': ['model.layers.{i}.self_attn.o_proj'],
    'layers.{i}.mlp_norm': ['model.layers.{i}.post_attention_layernorm'],
    'layers.{i}.mlp.input': ['model.layers.{i}.mlp.gate_proj', 'model.layers.{i}.mlp.up_proj'],
    'layers.{i}.mlp.output': ['model.layers.{i}.mlp.down_proj'],
    final_norm: ['model.norm'],
    'head.output': ['lm_head'],
    item_projection: ['item_projection'],
  },
  transposed: [],
  harmless: [/\.rotary_emb\.inv_freq$/],
  tied: 'lm_head.weight',
};

/** RoBERTa and XLM-RoBERTa: BERT's encoder, and a head of their own. */
const ROBERTA: FamilyNames = {
  prefix: 'roberta.',
  modules: {
    ...encoderModules('roberta'),
    'head.dense': ['lm_head.dense'],
    'head.norm': ['lm_head.layer_norm'],
    'head.bias': ['lm_head.bias'],
    'head.output': ['lm_head.decoder'],
    item_projection: ['item_projection'],
  },
  transposed: [],
  harmless: [/^roberta\.embeddings\.position_ids$/, /^roberta\.pooler\./],
  tied: 'lm_head.decoder.weight',
  secondBias: 'lm_head.decoder.bias',
};

const FAMILIES: Record<ModelFamily, FamilyNames> = {
  gpt2: {
    prefix: 'transformer.',
    modules: {
      'embeddings.word': ['transformer.wte.weight'],
      'embeddings.position': ['transformer.wpe.weight'],
      'layers.{i}.attention_norm': ['transformer.h.{i}.ln_1'],
      'layers.{i}.attention.qkv': ['transformer.h.{i}.attn.c_attn'],
      'layers.{i}.attention.output': ['transformer.h.{i}.attn.c_proj'],
      'layers.{i}.mlp_norm': ['transformer.h.{i}.ln_2'],
      'layers.{i}.mlp.input': ['transformer.h.{i}.mlp.c_fc'],
      'layers.{i}.mlp.output': ['transformer.h.{i}.mlp.c_proj'],
      final_norm: ['transformer.ln_f'],
      'head.output': ['lm_head'],
      item_projection: ['item_projection'],
    },
    transposed: [
      'layers.{i}.attention.qkv',
      'layers.{i}.attention.output',
      'layers.{i}.mlp.input',
      'layers.{i}.mlp.output',
    ],
    // The causal mask, stored as a buffer by old versions.
    harmless: [/\.attn\.(bias|masked_bias)$/],
    tied: 'lm_head.weight',
  },
  bert: {
    prefix: 'bert.',
    modules: {
      ...encoderModules('bert'),
      'head.dense': ['cls.predictions.transform.dense'],
      'head.norm': ['cls.predictions.transform.LayerNorm'],
      'head.bias': ['cls.predictions.bias'],
      'head.output': ['cls.predictions.decoder'],
      item_projection: ['item_projection'],
    },
    transposed: [],
    harmless: [/^bert\.embeddings\.position_ids$/, /^bert\.pooler\./, /^cls\.seq_relationship\./],
    tied: 'cls.predictions.decoder.weight',
    secondBias: 'cls.predictions.decoder.bias',
  },
  distilbert: {
    prefix: 'distilbert.',
    modules: {
      'embeddings.word': ['distilbert.embeddings.word_embeddings.weight'],
      'embeddings.position': ['distilbert.embeddings.position_embeddings.weight'],
      'embeddings.norm': ['distilbert.embeddings.LayerNorm'],
      'layers.{i}.attention_norm': ['distilbert.transformer.layer.{i}.sa_layer_norm'],
      'layers.{i}.attention.qkv': [
        'distilbert.transformer.layer.{i}.attention.q_lin',
        'distilbert.transformer.layer.{i}.attention.k_lin',
        'distilbert.transformer.layer.{i}.attention.v_lin',
      ],
      'layers.{i}.attention.output': ['distilbert.transformer.layer.{i}.attention.out_lin'],
      'layers.{i}.mlp_norm': ['distilbert.transformer.layer.{i}.output_layer_norm'],
      'layers.{i}.mlp.input': ['distilbert.transformer.layer.{i}.ffn.lin1'],
      'layers.{i}.mlp.output': ['distilbert.transformer.layer.{i}.ffn.lin2'],
      'head.dense': ['vocab_transform'],
      'head.norm': ['vocab_layer_norm'],
      'head.bias': ['vocab_projector.bias'],
      'head.output': ['vocab_projector'],
      item_projection: ['item_projection'],
    },
    transposed: [],
    harmless: [/^distilbert\.embeddings\.position_ids$/],
    tied: 'vocab_projector.weight',
  },
  roberta: ROBERTA,
  'xlm-roberta': ROBERTA,
  llama: LLAMA,
  qwen2: LLAMA,
  qwen3: LLAMA,
  mistral: LLAMA,
};

/** Embeddings and blocks as BERT names them. */
function encoderModules(model: string): Record<string, readonly string[]> {
  const layer = `${model}.encoder.layer.{i}`;
  return {
    'embeddings.word': [`${model}.embeddings.word_embeddings.weight`],
    'embeddings.position': [`${model}.embeddings.position_embeddings.weight`],
    'embeddings.token_type': [`${model}.embeddings.token_type_embeddings.weight`],
    'embeddings.norm': [`${model}.embeddings.LayerNorm`],
    'layers.{i}.attention_norm': [`${layer}.attention.output.LayerNorm`],
    'layers.{i}.attention.qkv': [
      `${layer}.attention.self.query`,
      `${layer}.attention.self.key`,
      `${layer}.attention.self.value`,
    ],
    'layers.{i}.attention.output': [`${layer}.attention.output.dense`],
    'layers.{i}.mlp_norm': [`${layer}.output.LayerNorm`],
    'layers.{i}.mlp.input': [`${layer}.intermediate.dense`],
    'layers.{i}.mlp.output': [`${layer}.output.dense`],
  };
}

/** Where a native parameter comes from. @throws LimbeckError ERR_UNSUPPORTED_MODEL when the family has no such part */
export function tensorSources(family: ModelFamily, nativeName: string): TensorSources {
  const { modules, transposed } = FAMILIES[family];
  const layer = /^layers\.(\d+)\./.exec(nativeName)?.[1];
  const template = layer === undefined ? nativeName : nativeName.replace(/^layers\.\d+/, 'layers.{i}');
  const whole = modules[template];
  const [, module = '', kind = ''] = /^(.*)\.(weight|bias)$/.exec(template) ?? [];
  const names = whole ?? modules[module]?.map((name) => `${name}.${kind}`);
  if (names === undefined) {
    throw new LimbeckError('ERR_UNSUPPORTED_MODEL', `A ${family} checkpoint has no place for '${nativeName}'`);
  }
  return {
    names: layer === undefined ? names : names.map((name) => name.replace('{i}', layer)),
    isTransposed: kind === 'weight' && transposed.includes(module),
  };
}

/** What stands before every tensor of the base model, such as `transformer.`. */
export function modelPrefix(family: ModelFamily): string {
  return FAMILIES[family].prefix;
}

/**
 * The name under which this product knows a file's tensor: with the model's prefix, and with the newer names of BERT's
 * norms (`gamma` and `beta` in files converted from TensorFlow).
 */
export function normalizeFileName(family: ModelFamily, fileName: string, wanted: ReadonlySet<string>): string {
  const { prefix, harmless } = FAMILIES[family];
  const name =
    family === 'bert'
      ? fileName.replace(/\.LayerNorm\.gamma$/, '.LayerNorm.weight').replace(/\.LayerNorm\.beta$/, '.LayerNorm.bias')
      : fileName;
  const prefixed = prefix + name;
  const isOfBareModel = wanted.has(prefixed) || harmless.some((pattern) => pattern.test(prefixed));
  return !name.startsWith(prefix) && !wanted.has(name) && isOfBareModel ? prefixed : name;
}

/** Whether a tensor that no parameter wants may be passed over. */
export function isHarmlessExtra(family: ModelFamily, isTied: boolean, name: string): boolean {
  return (
    FAMILIES[family].harmless.some((pattern) => pattern.test(name)) || copiesOfParameters(family, isTied).has(name)
  );
}

/** Tensors that hold a native parameter once more: name in the file → parameter. */
export function copiesOfParameters(family: ModelFamily, isTied: boolean): Map<string, string> {
  const { tied, secondBias } = FAMILIES[family];
  const copies = new Map(isTied ? [[tied, 'embeddings.word']] : []);
  if (secondBias !== undefined) copies.set(secondBias, 'head.bias');
  return copies;
}
