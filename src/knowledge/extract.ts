/** Step 3 of distillation: what a teacher knows about texts, written shard by shard so that it resumes. */
import { createHash } from 'node:crypto';
import fs from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { type ForwardRequest, loadBinding, type PackedBatch } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { lockFile } from '../formats/file-lock.js';
import { isTemporaryName, makeDirectory, pathExists, readDirectory, remove } from '../formats/files.js';
import { createPacer } from '../formats/pacer.js';
import { type WritableTensor, writeSafetensors } from '../formats/safetensors.js';
import { parseOptions } from '../prepare/parse-options.js';
import { type Hooks, throwIfAborted } from '../teacher/hooks.js';
import type { LanguageModel, LanguageModelOutput } from '../teacher/language-model.js';
import { fileChecksum, Knowledge } from './knowledge.js';
import {
  checkSameStore,
  type KnowledgePart,
  type Manifest,
  type ManifestShard,
  manifestFile,
  readManifest,
  shardFile,
  shardRange,
  textRange,
  writeManifest,
} from './manifest.js';
import { packedRowBytes } from './reader.js';

const extractOptionsSchema = z.strictObject({
  /** Where the store is written. An unfinished one of the same teacher, texts and request is gone on with. */
  directory: z.string().min(1),
  /** 0 = embeddings … L = the last block. */
  hiddenStates: z.array(z.int().min(0)).default([]),
  /**
   * One row a text instead of one a token: the mean of its tokens, the last, the first (`cls`), or their mean by the
   * attention that they receive in the block before.
   */
  pooling: z.enum(['none', 'mean', 'last', 'cls', 'attention']).default('none'),
  /** Blocks 1 … L. */
  attentions: z.array(z.int().min(1)).default([]),
  /** Blocks 1 … L, whose value relations are kept: maps that students of other head counts can learn from. */
  valueRelations: z.array(z.int().min(1)).default([]),
  /** Heads that values are cut into anew; divides their columns in teacher and student. @defaultValue the teacher's */
  relationHeads: z.int().min(1).optional(),
  /**
   * `packed` keeps top-k logits in ⌈log2 vocabSize⌉ + 12 bits each, at a KL divergence of at most 3.1e-5 nats, instead of
   * in 64.
   */
  logits: z
    .union([z.literal('dense'), z.strictObject({ topK: z.int().min(1), packed: z.boolean().default(true) })])
    .optional(),
  /** What hidden states, attention maps and value relations are rounded to. */
  dtype: z.enum(['float32', 'float16', 'bfloat16']).default('float32'),
  /** Tokens of one pass. */
  batchTokens: z.int().min(1).default(4096),
  /** Texts of one file, which is held in memory until it is written. */
  shardTexts: z.int().min(1).default(4096),
});

export type ExtractOptions = z.input<typeof extractOptionsSchema>;
type Settings = z.output<typeof extractOptionsSchema>;

/**
 * Runs the teacher over texts and keeps what was asked for in a directory: safetensors shards and a manifest with their
 * checksums. Each shard is written whole or not at all; after a kill, the same call goes on with those that are missing
 * or damaged, and ends with the same bytes.
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION, ERR_EMPTY_DATA; ERR_CHECKPOINT_MISMATCH when the
 * directory holds knowledge of another teacher, request or other texts; ERR_LOCKED while another process extracts into
 * it; ERR_FILE_FORMAT, ERR_ABORTED, ERR_NO_SPACE, ERR_IO, ERR_OUT_OF_MEMORY
 */
export async function extractKnowledge(
  model: LanguageModel,
  texts: readonly string[],
  options: ExtractOptions,
  hooks: Hooks = {},
): Promise<Knowledge> {
  await extract(model, texts, options, undefined, hooks);
  return Knowledge.open(options.directory);
}

/**
 * One part of {@link extractKnowledge}: the shards that fall to process `part.index` of `part.count`. Processes may write
 * into one directory or into several; `mergeKnowledge` makes one store of them, of the same bytes as without parts.
 *
 * @returns how many texts fell to this part
 * @throws LimbeckError as {@link extractKnowledge}
 */
export async function extractKnowledgePart(
  model: LanguageModel,
  texts: readonly string[],
  options: ExtractOptions,
  part: KnowledgePart,
  hooks: Hooks = {},
): Promise<{ numTexts: number }> {
  const { index, count } = part;
  if (!Number.isInteger(index) || !Number.isInteger(count) || index < 1 || count < index) {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `part: expected 1 ≤ index ≤ count, got ${index} of ${count}`);
  }
  const { shards } = await extract(model, texts, options, part, hooks);
  return { numTexts: shards.reduce((sum, shard) => sum + shard.texts, 0) };
}

async function extract(
  model: LanguageModel,
  texts: readonly string[],
  options: ExtractOptions,
  part: KnowledgePart | undefined,
  hooks: Hooks,
): Promise<Manifest> {
  const settings = parseOptions(extractOptionsSchema, options, 'extract');
  checkRequest(model, texts, settings);
  const { directory } = settings;
  await makeDirectory(directory);
  const lockPath = join(directory, `.${manifestFile(part)}.lock`);
  const lock = await lockFile(lockPath, `Another process extracts into '${directory}' already: wait for it or stop it`);
  try {
    const fresh = await describeStore(model, texts, settings, part, hooks);
    const manifest = await extractMissingShards(model, texts, settings, await findWhole(directory, fresh), hooks);
    await fs.rm(lockPath, { force: true });
    return manifest;
  } finally {
    await lock.close();
  }
}

async function extractMissingShards(
  model: LanguageModel,
  texts: readonly string[],
  settings: Settings,
  found: Manifest,
  hooks: Hooks,
): Promise<Manifest> {
  const { directory } = settings;
  const { begin, end } = shardRange(found);
  const total = textsOf(found, begin, end);
  let manifest = found;
  const report = () => {
    const done = manifest.shards.reduce((sum, shard) => sum + shard.texts, 0);
    hooks.onProgress?.({ step: 'extract', name: 'hidden states', done, total });
  };
  await removeLeftovers(directory, manifest);
  if (begin === end) await writeManifest(directory, manifest);
  report();
  for (let index = begin; index < end; index++) {
    if (manifest.shards.some((shard) => shard.index === index)) continue;
    throwIfAborted(hooks.signal);
    const range = textRange(manifest, index);
    const { tensors, tokens, truncatedTexts } = await extractShard(
      model,
      texts.slice(range.begin, range.end),
      settings,
      hooks,
    );
    const path = join(directory, shardFile(index));
    await writeSafetensors(path, tensors);
    const shard: ManifestShard = {
      index,
      texts: range.end - range.begin,
      tokens,
      truncatedTexts,
      crc32c: await fileChecksum(path),
    };
    manifest = { ...manifest, shards: [...manifest.shards, shard].sort((a, b) => a.index - b.index) };
    await writeManifest(directory, manifest);
    report();
  }
  return manifest;
}

function textsOf(manifest: Manifest, begin: number, end: number): number {
  return begin === end ? 0 : textRange(manifest, end - 1).end - textRange(manifest, begin).begin;
}

/** A manifest without shards. */
async function describeStore(
  model: LanguageModel,
  texts: readonly string[],
  settings: Settings,
  part: KnowledgePart | undefined,
  hooks: Hooks,
): Promise<Manifest> {
  const { hiddenStates, pooling, attentions, valueRelations, logits, dtype, shardTexts } = settings;
  return {
    format: 'limbeck-knowledge',
    version: 2,
    teacher: await hashTeacher(model, hooks),
    texts: await hashTexts(texts, hooks),
    hiddenStates,
    pooling,
    attentions,
    valueRelations,
    relationHeads: relationHeadsOf(model, settings),
    logits: logits ?? 'none',
    dtype,
    shardTexts,
    hiddenSize: model.config.hiddenSize,
    vocabSize: model.config.vocabSize,
    numAttentionHeads: model.config.numAttentionHeads,
    numTexts: texts.length,
    ...(part === undefined ? {} : { part }),
    shards: [],
  };
}

/** The manifest that lies there with the shards that are whole, or `fresh`. */
async function findWhole(directory: string, fresh: Manifest): Promise<Manifest> {
  const path = join(directory, manifestFile(fresh.part));
  if (!(await pathExists(path))) return fresh;
  const found = await readManifest(directory, fresh.part);
  checkSameStore(found, fresh, path);
  const shards: ManifestShard[] = [];
  for (const shard of found.shards) {
    const file = join(directory, shardFile(shard.index));
    if ((await pathExists(file)) && (await fileChecksum(file)) === shard.crc32c) shards.push(shard);
  }
  return { ...found, shards };
}

/** What a killed run of the same part was writing. */
async function removeLeftovers(directory: string, manifest: Manifest): Promise<void> {
  const { begin, end } = shardRange(manifest);
  const own = new Set([manifestFile(manifest.part)]);
  for (let index = begin; index < end; index++) own.add(shardFile(index));
  for (const { name } of await readDirectory(directory)) {
    const [written] = /[^.].*(?=\.\d+\.[0-9a-f]{12}\.tmp$)/.exec(name) ?? [];
    if (isTemporaryName(name) && written !== undefined && own.has(written)) await remove(join(directory, name));
  }
}

async function extractShard(
  model: LanguageModel,
  texts: readonly string[],
  settings: Settings,
  hooks: Hooks,
): Promise<{ tensors: [string, WritableTensor][]; tokens: number; truncatedTexts: number }> {
  const { hiddenStates, pooling, attentions, valueRelations, logits } = settings;
  const relationHeads = relationHeadsOf(model, settings);
  const request: Omit<ForwardRequest, keyof PackedBatch | 'logitRows' | 'labels'> = {
    hiddenStates,
    pooling,
    attentions,
    ...(relationHeads === 0 ? {} : { valueRelations, relationHeads }),
    ...(logits === undefined ? {} : { logits }),
  };
  const pause = createPacer();
  const outputs: LanguageModelOutput[] = [];
  let batch: number[][] = [];
  let batchTokens = 0;
  const flush = async () => {
    if (batch.length > 0) outputs.push(await model.forward({ inputIds: batch }, request, hooks));
    batch = [];
    batchTokens = 0;
  };
  for (const text of texts) {
    await pause();
    const ids = model.tokenizer.encode(text);
    if (batchTokens + ids.length > settings.batchTokens) await flush();
    batch.push(ids);
    batchTokens += ids.length;
  }
  await flush();
  const lengths = Int32Array.from(
    outputs.flatMap(({ sequenceOffsets }) =>
      Array.from(sequenceOffsets.subarray(1), (offset, s) => offset - (sequenceOffsets[s] ?? 0)),
    ),
  );
  const tensors: [string, WritableTensor][] = [['lengths', { shape: [lengths.length], data: lengths }]];
  const add = (name: string, columns: number, part: (output: LanguageModelOutput) => Float32Array | undefined) => {
    const data = joined(outputs.map(part));
    tensors.push([name, { shape: columns === 1 ? [data.length] : [data.length / columns, columns], data }]);
  };
  const addRounded: typeof add = (name, columns, part) => {
    add(name, columns, part);
    const [, tensor] = tensors.at(-1) as [string, WritableTensor];
    tensors[tensors.length - 1] = [name, rounded(tensor, settings.dtype)];
  };
  hiddenStates.forEach((layer, i) => {
    addRounded(`hidden_states.${layer}`, model.config.hiddenSize, (output) => output.hiddenStates[i]);
  });
  attentions.forEach((layer, i) => {
    addRounded(`attentions.${layer}`, 1, (output) => output.attentions[i]);
  });
  valueRelations.forEach((layer, i) => {
    addRounded(`value_relations.${layer}`, 1, (output) => output.valueRelations[i]);
  });
  if (logits === 'dense') add('logits', model.config.vocabSize, (output) => output.logits);
  else if (logits?.packed) {
    const rows = outputs.map((output) => packTopK(output, logits.topK, model.config.vocabSize));
    const data = new Uint8Array(Buffer.concat(rows));
    const columns = packedRowBytes(logits.topK, model.config.vocabSize);
    tensors.push(['top_k.packed', { shape: [data.length / columns, columns], data }]);
  } else if (logits !== undefined) {
    add('top_k.values', logits.topK, (output) => output.topK?.values);
    add('top_k.log_sum_exp', 1, (output) => output.topK?.logSumExp);
    const indices = Int32Array.from(outputs.flatMap((output) => Array.from(output.topK?.indices ?? [])));
    tensors.push(['top_k.indices', { shape: [indices.length / logits.topK, logits.topK], data: indices }]);
  }
  return {
    tensors,
    tokens: outputs.reduce((sum, { inputIds }) => sum + inputIds.length, 0),
    truncatedTexts: outputs.reduce((sum, output) => sum + output.truncated, 0),
  };
}

function packTopK({ topK: best }: LanguageModelOutput, topK: number, vocabSize: number): Uint8Array {
  if (best === undefined) throw new LimbeckError('ERR_INTERNAL', 'The native forward pass left out what was asked for');
  return loadBinding().packTopK({ ...best, topK, vocabSize });
}

function rounded(tensor: WritableTensor, dtype: Settings['dtype']): WritableTensor {
  if (dtype === 'float32' || !(tensor.data instanceof Float32Array)) return tensor;
  const data = loadBinding().narrow(tensor.data, dtype);
  return { shape: tensor.shape, data, dtype: dtype === 'float16' ? 'F16' : 'BF16' };
}

/** 0 = no value relations are wanted. */
function relationHeadsOf({ config }: LanguageModel, { valueRelations, relationHeads }: Settings): number {
  return valueRelations.length === 0 ? 0 : (relationHeads ?? config.numKeyValueHeads);
}

function joined(parts: readonly (Float32Array | undefined)[]): Float32Array {
  const data = new Float32Array(parts.reduce((sum, part) => sum + (part?.length ?? 0), 0));
  let offset = 0;
  for (const part of parts) {
    if (part === undefined)
      throw new LimbeckError('ERR_INTERNAL', 'The native forward pass left out what was asked for');
    data.set(part, offset);
    offset += part.length;
  }
  return data;
}

function checkRequest(model: LanguageModel, texts: readonly string[], settings: Settings): void {
  const { hiddenStates, pooling, attentions, valueRelations, logits } = settings;
  const { config } = model;
  const layers = config.numHiddenLayers;
  const wrong = [...hiddenStates, ...attentions, ...valueRelations].find((layer) => layer > layers);
  if (wrong !== undefined) {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `extract: the teacher has layers 0 to ${layers}, got ${wrong}`);
  }
  if (hiddenStates.length + attentions.length + valueRelations.length === 0 && logits === undefined) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      'extract: name hiddenStates, attentions, valueRelations or logits to extract',
    );
  }
  if (pooling === 'cls' && config.attention === 'causal') {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      'extract.pooling: the first token of a causal model has seen no other; use "last", "mean" or "attention"',
    );
  }
  if (
    settings.relationHeads !== undefined &&
    (config.numKeyValueHeads * config.headDim) % settings.relationHeads !== 0
  ) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `extract.relationHeads: expected a divisor of the teacher's ${config.numKeyValueHeads * config.headDim} columns of ` +
        `values, got ${settings.relationHeads}`,
    );
  }
  if (typeof logits === 'object' && logits.topK > config.vocabSize) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `extract.logits.topK: expected at most the vocabulary of ${config.vocabSize}, got ${logits.topK}`,
    );
  }
  if (texts.length === 0) throw new LimbeckError('ERR_EMPTY_DATA', 'extract: expected at least one text, got none');
}

const HASH_DIGITS = 16;

async function hashTeacher(model: LanguageModel, { signal }: Hooks): Promise<string> {
  const { crc32c } = loadBinding();
  const pause = createPacer();
  const hash = createHash('sha256');
  for (const { name } of model.native.parameters()) {
    await pause();
    throwIfAborted(signal);
    const { buffer, byteOffset, byteLength } = model.native.getParameter(name);
    hash.update(`${name} ${crc32c(new Uint8Array(buffer, byteOffset, byteLength))}\n`);
  }
  // A config that was read from a file has its keys in another order.
  const config = Object.entries(model.config).sort(([a], [b]) => (a < b ? -1 : 1));
  hash.update(JSON.stringify([config, model.tokenizer.json, model.tokenizer.config]));
  return hash.digest('hex').slice(0, HASH_DIGITS);
}

async function hashTexts(texts: readonly string[], { signal }: Hooks): Promise<string> {
  const pause = createPacer();
  const hash = createHash('sha256');
  for (const text of texts) {
    await pause();
    throwIfAborted(signal);
    hash.update(`${JSON.stringify(text)}\n`);
  }
  return hash.digest('hex').slice(0, HASH_DIGITS);
}
