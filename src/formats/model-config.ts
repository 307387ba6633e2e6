/**
 * The one place where a Hugging Face `config.json` becomes a {@link TransformerConfig}, and back. What the native
 * transformer cannot compute exactly is refused by name, never approximated.
 */
import { join } from 'node:path';
import type { TransformerConfig } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { HARMLESS_KEYS, refuseOtherKinds } from './common-config.js';
import { ConfigReader } from './config-reader.js';
import {
  readGpt2,
  readLlama,
  readMistral,
  readQwen2,
  readQwen3,
  writeGpt2,
  writeLlama,
  writeMistral,
  writeQwen2,
  writeQwen3,
} from './decoder-configs.js';
import { readBert, readDistilbert, readRoberta, writeBert, writeDistilbert, writeRoberta } from './encoder-configs.js';
import { readJsonFile } from './files.js';

/** Values of `model_type`. */
export const FAMILY_NAMES = {
  gpt2: 'gpt2',
  bert: 'bert',
  distilbert: 'distilbert',
  roberta: 'roberta',
  'xlm-roberta': 'xlm-roberta',
  llama: 'llama',
  qwen2: 'qwen2',
  qwen3: 'qwen3',
  mistral: 'mistral',
} as const;

export type ModelFamily = keyof typeof FAMILY_NAMES;

export interface ModelConfig {
  readonly family: ModelFamily;
  readonly config: TransformerConfig;
  /** The file's own content. */
  readonly huggingFace: object;
}

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
  refuseOtherKinds(reader);
  const family = reader.choice('model_type', FAMILY_NAMES);
  const config = FAMILIES[family].read(reader);
  checkHeads(reader, config);
  reader.refuseUnknown(HARMLESS_KEYS);
  return { family, config, huggingFace };
}

/**
 * The `config.json` that transformers needs to open a saved model.
 *
 * @throws LimbeckError ERR_UNSUPPORTED_MODEL when the family cannot express the config
 */
export function toHuggingFaceConfig(family: ModelFamily, config: TransformerConfig): object {
  const json = { ...FAMILIES[family].write(config), torch_dtype: 'float32' } as Record<string, unknown>;
  if (config.itemFeatureSize > 0) json['item_feature_size'] = config.itemFeatureSize;
  const { config: back } = parseModelConfig(json, `${family} config`);
  for (const key of new Set([...Object.keys(back), ...Object.keys(config)]) as Set<keyof TransformerConfig>) {
    if (isSame(back[key], config[key]) || isUnused(key, config)) continue;
    throw new LimbeckError(
      'ERR_UNSUPPORTED_MODEL',
      `A ${family} config.json cannot say ${key} = ${show(config[key])} (it would be read as ${show(back[key])})`,
    );
  }
  return json;
}

/** Absent means without: as 0 and `false` do. */
function isSame(a: unknown, b: unknown): boolean {
  return JSON.stringify(a || undefined) === JSON.stringify(b || undefined);
}

function show(value: unknown): string {
  return typeof value === 'object' ? JSON.stringify(value) : String(value);
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

/** Values that no learned-position model reads. */
function isUnused(key: keyof TransformerConfig, config: TransformerConfig): boolean {
  return key === 'ropeTheta' && config.positions === 'learned';
}

interface Family {
  read(reader: ConfigReader): TransformerConfig;
  write(config: TransformerConfig): Record<string, unknown>;
}

const FAMILIES: Record<ModelFamily, Family> = {
  gpt2: { read: readGpt2, write: writeGpt2 },
  bert: { read: readBert, write: writeBert },
  distilbert: { read: readDistilbert, write: writeDistilbert },
  roberta: {
    read: (reader) => readRoberta(reader, 'RobertaModel'),
    write: (config) => writeRoberta('roberta', 'Roberta', config),
  },
  'xlm-roberta': {
    read: (reader) => readRoberta(reader, 'XLMRobertaModel'),
    write: (config) => writeRoberta('xlm-roberta', 'XLMRoberta', config),
  },
  llama: { read: readLlama, write: writeLlama },
  qwen2: { read: readQwen2, write: writeQwen2 },
  qwen3: { read: readQwen3, write: writeQwen3 },
  mistral: { read: readMistral, write: writeMistral },
};
