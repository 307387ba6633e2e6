/** Step 3 of distillation: what a teacher knows about texts, written shard by shard so that it resumes. */
import { join } from 'node:path';
import { z } from 'zod';
import { type ForwardRequest, loadBinding } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { makeDirectory, pathExists } from '../formats/files.js';
import { createPacer } from '../formats/pacer.js';
import { type WritableTensor, writeSafetensors } from '../formats/safetensors.js';
import { parseOptions } from '../prepare/parse-options.js';
import type { Hooks } from '../teacher/hooks.js';
import type { LanguageModel, LanguageModelOutput } from '../teacher/language-model.js';
import { fileChecksum, hexadecimal, Knowledge } from './knowledge.js';
import { type Manifest, readManifest, writeManifest } from './manifest.js';

const extractOptionsSchema = z.strictObject({
  /** Where the store is written. An unfinished one of the same teacher, texts and request is gone on with. */
  directory: z.string().min(1),
  /** 0 = embeddings … L = the last block. */
  hiddenStates: z.array(z.int().min(0)).default([]),
  /** `mean` and `last` give one row a text, `none` one a token. */
  pooling: z.enum(['none', 'mean', 'last']).default('none'),
  /** Blocks 1 … L. */
  attentions: z.array(z.int().min(1)).default([]),
  logits: z.union([z.literal('dense'), z.strictObject({ topK: z.int().min(1) })]).optional(),
  /** Tokens of one pass. */
  batchTokens: z.int().min(1).default(4096),
  /** Texts of one file. */
  shardTexts: z.int().min(1).default(4096),
});

export type ExtractOptions = z.input<typeof extractOptionsSchema>;
type Settings = z.output<typeof extractOptionsSchema>;

/**
 * Runs the teacher over texts and keeps what was asked for in a directory: safetensors shards and a manifest with their
 * checksums. Each shard is written whole or not at all; after a kill, the same call goes on with the first one missing.
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION, ERR_EMPTY_DATA; ERR_CHECKPOINT_MISMATCH when the
 * directory holds knowledge of another teacher, request or other texts; ERR_FILE_FORMAT, ERR_ABORTED, ERR_NO_SPACE,
 * ERR_IO, ERR_OUT_OF_MEMORY
 */
export async function extractKnowledge(
  model: LanguageModel,
  texts: readonly string[],
  options: ExtractOptions,
  hooks: Hooks = {},
): Promise<Knowledge> {
  const settings = parseOptions(extractOptionsSchema, options, 'extract');
  checkRequest(model, texts, settings);
  const { directory, shardTexts } = settings;
  const fingerprint = fingerprintOf(model, texts, settings);
  await makeDirectory(directory);
  let manifest = await openManifest(model, texts, settings, fingerprint);
  let done = manifest.shards.reduce((sum, shard) => sum + shard.texts, 0);
  const report = () =>
    hooks.onProgress?.({
      step: 'extract',
      name: 'hidden states',
      done: Math.min(done, texts.length),
      total: texts.length,
    });
  report();
  while (done < texts.length) {
    const part = texts.slice(done, done + shardTexts);
    const file = `knowledge-${String(manifest.shards.length).padStart(5, '0')}.safetensors`;
    const shard = await extractShard(model, part, settings, hooks);
    await writeSafetensors(join(directory, file), shard.tensors);
    const crc32c = await fileChecksum(join(directory, file));
    done += part.length;
    manifest = {
      ...manifest,
      truncatedTexts: manifest.truncatedTexts + shard.truncated,
      shards: [...manifest.shards, { file, texts: part.length, tokens: shard.tokens, crc32c }],
      complete: done === texts.length,
    };
    await writeManifest(directory, manifest);
    report();
  }
  return Knowledge.open(directory);
}

/** The shards that are whole; a shard behind a broken one is extracted again with it. */
async function openManifest(
  model: LanguageModel,
  texts: readonly string[],
  settings: Settings,
  fingerprint: string,
): Promise<Manifest> {
  const { directory, hiddenStates, pooling, attentions, logits } = settings;
  const fresh: Manifest = {
    format: 'limbeck-knowledge',
    version: 1,
    fingerprint,
    hiddenStates,
    pooling,
    attentions,
    logits: logits ?? 'none',
    hiddenSize: model.config.hiddenSize,
    vocabSize: model.config.vocabSize,
    numAttentionHeads: model.config.numAttentionHeads,
    numTexts: texts.length,
    truncatedTexts: 0,
    shards: [],
    complete: false,
  };
  if (!(await pathExists(join(directory, 'manifest.json')))) return fresh;
  const found = await readManifest(directory);
  if (found.fingerprint !== fingerprint) {
    throw new LimbeckError(
      'ERR_CHECKPOINT_MISMATCH',
      `'${directory}' holds what another teacher, request or other texts gave. Name another directory, or delete it.`,
    );
  }
  const whole: Manifest['shards'] = [];
  for (const shard of found.shards) {
    const path = join(directory, shard.file);
    if (!(await pathExists(path)) || (await fileChecksum(path)) !== shard.crc32c) break;
    whole.push(shard);
  }
  return whole.length === found.shards.length ? found : fresh;
}

async function extractShard(
  model: LanguageModel,
  texts: readonly string[],
  settings: Settings,
  hooks: Hooks,
): Promise<{ tensors: [string, WritableTensor][]; tokens: number; truncated: number }> {
  const { hiddenStates, pooling, attentions, logits } = settings;
  const request: Pick<ForwardRequest, 'hiddenStates' | 'pooling' | 'attentions' | 'logits'> = {
    hiddenStates,
    pooling,
    attentions,
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
  hiddenStates.forEach((layer, i) => {
    add(`hidden_states.${layer}`, model.config.hiddenSize, (output) => output.hiddenStates[i]);
  });
  attentions.forEach((layer, i) => {
    add(`attentions.${layer}`, 1, (output) => output.attentions[i]);
  });
  if (logits === 'dense') add('logits', model.config.vocabSize, (output) => output.logits);
  else if (logits !== undefined) {
    add('top_k.values', logits.topK, (output) => output.topK?.values);
    add('top_k.log_sum_exp', 1, (output) => output.topK?.logSumExp);
    const indices = Int32Array.from(outputs.flatMap((output) => Array.from(output.topK?.indices ?? [])));
    tensors.push(['top_k.indices', { shape: [indices.length / logits.topK, logits.topK], data: indices }]);
  }
  return {
    tensors,
    tokens: outputs.reduce((sum, { inputIds }) => sum + inputIds.length, 0),
    truncated: outputs.reduce((sum, output) => sum + output.truncated, 0),
  };
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
  const { hiddenStates, attentions, logits } = settings;
  const layers = model.config.numHiddenLayers;
  const wrong = [...hiddenStates, ...attentions].find((layer) => layer > layers);
  if (wrong !== undefined) {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `extract: the teacher has layers 0 to ${layers}, got ${wrong}`);
  }
  if (hiddenStates.length + attentions.length === 0 && logits === undefined) {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', 'extract: name hiddenStates, attentions or logits to extract');
  }
  if (texts.length === 0) throw new LimbeckError('ERR_EMPTY_DATA', 'extract: expected at least one text, got none');
}

function fingerprintOf(model: LanguageModel, texts: readonly string[], settings: Settings): string {
  const { crc32c } = loadBinding();
  const { directory: _directory, batchTokens: _batchTokens, ...request } = settings;
  // A config that was read from a file has its keys in another order.
  const config = Object.entries(model.config).sort(([a], [b]) => (a < b ? -1 : 1));
  const weights = model.native.parameters().map(({ name }) => {
    const { buffer, byteOffset, byteLength } = model.native.getParameter(name);
    return `${name} ${crc32c(new Uint8Array(buffer, byteOffset, byteLength))}`;
  });
  return hexadecimal(crc32c(new TextEncoder().encode(JSON.stringify([weights, config, request, texts]))));
}
