/**
 * Low-rank adapters as PEFT keeps them: `adapter_config.json` beside `adapter_model.safetensors`, whose tensors are
 * `base_model.model.MODULE.lora_A.weight` [rank, in] and `….lora_B.weight` [out, rank], of GPT-2's Conv1D as well.
 *
 * @see https://huggingface.co/docs/peft/developer_guides/checkpoint
 */
import { join } from 'node:path';
import type { TransformerConfig } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { ConfigReader } from './config-reader.js';
import { readJsonFile, writeFileAtomic } from './files.js';
import type { ModelFamily } from './model-config.js';
import { asFloat32, checkFinite, readSafetensors, writeSafetensors } from './safetensors.js';
import { isJsonObject, type JsonValue } from './strict-json.js';
import { type LinearModule, linearModules } from './tensor-names.js';
import { modelPrefix, normalizeFileName } from './tensor-sources.js';

/** What the four linear layers of a block are called whatever the family. */
export const LINEAR_LAYERS = ['attention.qkv', 'attention.output', 'mlp.input', 'mlp.output'] as const;

export interface AdapterShape {
  readonly rank: number;
  /** The adapter's share is multiplied with alpha / rank. */
  readonly alpha: number;
  /** Of what A reads, in training. */
  readonly dropout: number;
  readonly modules: readonly LinearModule[];
}

export interface AdapterFiles extends AdapterShape {
  /** `MODULE.lora_A.weight` [rank, in] and `MODULE.lora_B.weight` [out, rank]. */
  readonly tensors: ReadonlyMap<string, Float32Array>;
  /** Fingerprint of the model that it was trained over, where the file says so. */
  readonly base: string | undefined;
}

const CONFIG_FILE = 'adapter_config.json';
const WEIGHTS_FILE = 'adapter_model.safetensors';
const PREFIX = 'base_model.model.';
const FINGERPRINT_KEY = 'limbeck_base';
const MAX_RANK = 1 << 16;

/** Keys of adapter_config.json that change no result, or only say what the tensors say themselves. */
const HARMLESS_KEYS: ReadonlySet<string> = new Set([
  ...['auto_mapping', 'base_model_name_or_path', 'revision', 'task_type', 'inference_mode', 'peft_version'],
  ...['target_modules', 'exclude_modules', 'layers_to_transform', 'layers_pattern', 'fan_in_fan_out'],
  ...['runtime_config', 'megatron_core', 'qalora_group_size'],
]);

/**
 * Linear layers by names: those of {@link LINEAR_LAYERS}, or the last parts of a module's name as PEFT's `target_modules`
 * has them (`q_proj`, `attn.c_attn`).
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT for a name that the model does not have
 */
export function selectLinearModules(
  family: ModelFamily,
  config: TransformerConfig,
  targets: readonly string[],
): LinearModule[] {
  const modules = linearModules(family, config);
  const matches = ({ name, linear }: LinearModule, target: string) =>
    `.${linear}`.endsWith(`.${target}`) || `.${name}`.endsWith(`.${target}`);
  targets.forEach((target, i) => {
    if (modules.some((module) => matches(module, target))) return;
    const known = new Set([...LINEAR_LAYERS, ...modules.map(({ name }) => withoutLayer(name))]);
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `lora.targets[${i}]: '${target}' is no linear layer of a ${family} model, which has ${[...known].join(', ')}`,
    );
  });
  return modules.filter((module) => targets.some((target) => matches(module, target)));
}

/**
 * Writes both files into a directory that is there.
 *
 * @throws LimbeckError ERR_NO_SPACE, ERR_IO
 */
export async function writeAdapter(
  directory: string,
  family: ModelFamily,
  config: TransformerConfig,
  adapter: AdapterFiles,
): Promise<void> {
  const { rank, alpha, dropout, modules, tensors, base } = adapter;
  const inFile = (name: string) => (isBare(config) ? name.slice(modelPrefix(family).length) : name);
  const named = modules.flatMap(({ name, inFeatures, numRows }) =>
    Object.entries({ lora_A: [rank, inFeatures], lora_B: [numRows, rank] }).map(([part, shape]) => {
      const data = tensors.get(`${name}.${part}.weight`) ?? new Float32Array(0);
      return [`${PREFIX}${inFile(name)}.${part}.weight`, { shape, data }] as const;
    }),
  );
  const metadata = { format: 'pt', ...(base === undefined ? {} : { [FINGERPRINT_KEY]: base }) };
  await writeSafetensors(join(directory, WEIGHTS_FILE), named, metadata);
  const json = {
    peft_type: 'LORA',
    task_type: config.attention === 'causal' ? 'CAUSAL_LM' : isBare(config) ? 'FEATURE_EXTRACTION' : null,
    base_model_name_or_path: null,
    r: rank,
    lora_alpha: alpha,
    lora_dropout: dropout,
    target_modules: targetModules(linearModules(family, config), modules).map(inFile),
    fan_in_fan_out: family === 'gpt2',
    bias: 'none',
    init_lora_weights: true,
    inference_mode: true,
    use_rslora: false,
    use_dora: false,
  };
  await writeFileAtomic(join(directory, CONFIG_FILE), `${JSON.stringify(json, null, 2)}\n`);
}

/**
 * Reads an adapter for a model of this shape, whoever wrote it.
 *
 * @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT, ERR_SAFETENSORS, ERR_IO; ERR_UNSUPPORTED_MODEL for what is no
 * plain LoRA; ERR_CHECKPOINT_MISMATCH for an adapter of another family or shape; ERR_NOT_FINITE
 */
export async function readAdapter(
  directory: string,
  family: ModelFamily,
  config: TransformerConfig,
): Promise<AdapterFiles> {
  const settings = await readAdapterConfig(join(directory, CONFIG_FILE));
  const path = join(directory, WEIGHTS_FILE);
  const file = await readSafetensors(path);
  const all = linearModules(family, config);
  const names = new Set(all.map(({ name }) => name));
  const tensors = new Map<string, Float32Array>();
  const shapes = new Map<string, string>();
  for (const [fileName, tensor] of file.tensors) {
    const [, module = '', part = ''] = /^base_model\.model\.(.+)\.(lora_[AB])\.weight$/.exec(fileName) ?? [];
    const name = normalizeFileName(family, module, names);
    if (!names.has(name)) {
      throw mismatch(path, `tensor '${fileName}' belongs to no linear layer of this ${family} model`);
    }
    const values = asFloat32(tensor);
    checkFinite(values, fileName, path);
    tensors.set(`${name}.${part}.weight`, values);
    shapes.set(`${name}.${part}.weight`, tensor.shape.join(', '));
  }
  const modules = all.filter(
    ({ name }) => tensors.has(`${name}.lora_A.weight`) || tensors.has(`${name}.lora_B.weight`),
  );
  for (const { name, inFeatures, numRows } of modules) {
    for (const [part, shape] of [
      ['lora_A', `${settings.rank}, ${inFeatures}`],
      ['lora_B', `${numRows}, ${settings.rank}`],
    ] as const) {
      const found = shapes.get(`${name}.${part}.weight`);
      if (found === shape) continue;
      throw mismatch(path, `'${name}.${part}.weight' is ${found ? `[${found}]` : 'missing'}; expected [${shape}]`);
    }
  }
  if (modules.length === 0) throw mismatch(path, 'it has no tensor');
  return { ...settings, modules, tensors, base: file.metadata[FINGERPRINT_KEY] };
}

async function readAdapterConfig(path: string): Promise<Omit<AdapterShape, 'modules'>> {
  const json = await readJsonFile(path);
  if (!isJsonObject(json)) throw new LimbeckError('ERR_FILE_FORMAT', `'${path}': expected a JSON object`);
  // PEFT writes every key that it knows; what is off says nothing.
  const set = Object.fromEntries(Object.entries(json).filter(([, value]) => !isOff(value)));
  const reader = new ConfigReader(set, path);
  reader.choice('peft_type', { LORA: 'LORA' });
  for (const key of ['use_dora', 'use_rslora', 'lora_bias']) reader.only(key, [false]);
  for (const key of ['rank_pattern', 'alpha_pattern', 'modules_to_save']) reader.only(key, [null]);
  reader.only('bias', ['none']);
  // The others start from another base than the checkpoint's.
  reader.only('init_lora_weights', [true, 'gaussian']);
  const settings = {
    rank: reader.integer('r', 1, MAX_RANK),
    alpha: reader.positive('lora_alpha'),
    dropout: reader.probability('lora_dropout', 0),
  };
  reader.refuseUnknown(HARMLESS_KEYS);
  return settings;
}

function isOff(value: JsonValue): boolean {
  return value === null || value === false || (typeof value === 'object' && Object.keys(value).length === 0);
}

/** Saved as transformers' bare model, whose modules have no prefix. */
function isBare(config: TransformerConfig): boolean {
  return config.normPlacement === 'after' && !config.maskedLmHead;
}

/** `attn.c_attn` of `transformer.h.0.attn.c_attn`. */
function withoutLayer(name: string): string {
  return name.replace(/^.*?\.\d+\./, '');
}

/** The last parts of the names where they say which modules are meant, as PEFT reads them; else the names. */
function targetModules(all: readonly LinearModule[], chosen: readonly LinearModule[]): string[] {
  const ends = [...new Set(chosen.map(({ name }) => withoutLayer(name)))];
  const meant = all.filter(({ name }) => ends.some((end) => name.endsWith(`.${end}`)));
  return meant.length === chosen.length ? ends : chosen.map(({ name }) => name);
}

function mismatch(path: string, what: string): LimbeckError {
  return new LimbeckError('ERR_CHECKPOINT_MISMATCH', `'${path}' is an adapter for another model: ${what}`);
}
