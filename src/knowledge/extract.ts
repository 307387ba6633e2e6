/** Step 3 of distillation: what a teacher knows about texts, written shard by shard so that it resumes. */
import { createHash } from 'node:crypto';
import fs from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { checkInstance, checkObject } from '../arguments.js';
import { type ForwardRequest, loadBinding, type PackedBatch } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { lockFile } from '../formats/file-lock.js';
import {
  isTemporaryName,
  makeDirectory,
  pathExists,
  readDirectory,
  remove,
  writeFileAtomic,
} from '../formats/files.js';
import { toHuggingFaceConfig } from '../formats/model-config.js';
import { createPacer } from '../formats/pacer.js';
import { SafetensorsWriter, type TensorDtype, type TensorLayout, type WritableTensor } from '../formats/safetensors.js';
import { truncateIds } from '../formats/tokenizer.js';
import { withoutModelKeys } from '../formats/tokenizer-config.js';
import { countCharacters, type TokenizedTexts, TokenizerPool } from '../formats/tokenizer-workers.js';
import { eachOnce } from '../prepare/each-once.js';
import { type Hooks, throwIfAborted } from '../prepare/hooks.js';
import { parseOptions } from '../prepare/parse-options.js';
import { checkTexts, isTextFile, type Texts } from '../prepare/text-lines.js';
import type { PieceSource } from '../teacher/corpus.js';
import { hashParameters } from '../teacher/fingerprint.js';
import { LanguageModel, type LanguageModelOutput } from '../teacher/language-model.js';
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
  teacherDirectory,
  textRange,
  writeManifest,
} from './manifest.js';
import { packedRowBytes } from './reader.js';

const extractOptionsSchema = z.strictObject({
  /** Where the store is written. An unfinished one of the same teacher, texts and request is gone on with. */
  directory: z.string().min(1),
  /** 0 = embeddings … L = the last block. */
  hiddenStates: eachOnce(z.array(z.int().min(0))).default([]),
  /**
   * One row a text instead of one a token: the mean of its tokens, the last, the first (`cls`), or their mean by the
   * attention that they receive in the block before.
   */
  pooling: z.enum(['none', 'mean', 'last', 'cls', 'attention']).default('none'),
  /** Blocks 1 … L. */
  attentions: eachOnce(z.array(z.int().min(1))).default([]),
  /** Blocks 1 … L, whose value relations are kept: maps that students of other head counts can learn from. */
  valueRelations: eachOnce(z.array(z.int().min(1))).default([]),
  /** Heads that values are cut into anew; divides their columns in teacher and student. @defaultValue the teacher's */
  relationHeads: z.int().min(1).optional(),
  /**
   * `packed` keeps top-k logits in ⌈log2 vocabSize⌉ + 12 bits each, at a KL divergence of at most 3.1e-5 nats, instead of
   * in 64.
   */
  logits: z
    .union([z.literal('dense'), z.strictObject({ topK: z.int().min(1), packed: z.boolean().default(true) })])
    .optional(),
  /** What hidden states, attention maps and value relations are rounded to; float16 ends at 65504. */
  dtype: z.enum(['float32', 'float16', 'bfloat16']).default('float32'),
  /** Tokens of one pass. @defaultValue 4,096; on a GPU 32,768, or fewer that give a GiB of results, but no less than one text */
  batchTokens: z.int().min(1).optional(),
  /** Texts of one file. */
  shardTexts: z.int().min(1).default(4096),
  /**
   * For training from the store: texts as training reads them, with the end-of-text token, and a long one in pieces
   * instead of cut off. Rows are those of pieces then, as if each were a text.
   */
  pieces: z.boolean().default(false),
  /** Tokens of a piece at most, as in the training. @defaultValue the teacher's positions */
  maxLength: z.int().min(2).optional(),
});

const CPU_BATCH_TOKENS = 4096;
/** Below, a GPU waits for the host between passes. */
const GPU_BATCH_TOKENS = 32_768;
const MAX_RESULT_BYTES = 2 ** 30;
/** A GPU has three passes at once, works on two of them, and a fourth waits in the engine until the first is done. */
const GPU_PASSES_AHEAD = 4;

export type ExtractOptions = z.input<typeof extractOptionsSchema>;
type Settings = z.output<typeof extractOptionsSchema>;

/**
 * Runs the teacher over texts and keeps what was asked for in a directory: safetensors shards and a manifest with their
 * checksums. Each shard is written whole or not at all; after a kill, the same call goes on with those that are missing
 * or damaged, and ends with the same bytes.
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION, ERR_EMPTY_DATA; ERR_CHECKPOINT_MISMATCH when the
 * directory holds knowledge of another teacher, request or other texts; ERR_LOCKED while another process extracts into
 * it; ERR_NOT_FINITE for a value that float16 cannot hold; ERR_FILE_FORMAT, ERR_ABORTED, ERR_NO_SPACE, ERR_IO,
 * ERR_OUT_OF_MEMORY
 */
export async function extractKnowledge(
  model: LanguageModel,
  texts: Texts,
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
  texts: Texts,
  options: ExtractOptions,
  part: KnowledgePart,
  hooks: Hooks = {},
): Promise<{ numTexts: number }> {
  checkObject(part, 'part', '{ index, count }');
  const { index, count } = part;
  if (!Number.isInteger(index) || !Number.isInteger(count) || index < 1 || count < index) {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `part: expected 1 ≤ index ≤ count, got ${index} of ${count}`);
  }
  const { shards } = await extract(model, texts, options, part, hooks);
  return { numTexts: shards.reduce((sum, shard) => sum + shard.texts, 0) };
}

async function extract(
  model: LanguageModel,
  input: Texts,
  options: ExtractOptions,
  part: KnowledgePart | undefined,
  hooks: Hooks,
): Promise<Manifest> {
  checkInstance(model, LanguageModel, 'model');
  const settings = parseOptions(extractOptionsSchema, options, 'extract');
  checkRequest(model, input, settings);
  const { directory } = settings;
  await makeDirectory(directory);
  const lockPath = join(directory, `.${manifestFile(part)}.lock`);
  const lock = await lockFile(lockPath, `Another process extracts into '${directory}' already: wait for it or stop it`);
  try {
    const texts = await openTexts(model, input, settings, hooks);
    try {
      const fresh = await describeStore(model, texts, settings, part, hooks);
      const found = await findWhole(directory, fresh);
      if (settings.pieces) await keepTeacher(model, teacherDirectory(directory));
      const manifest = await extractMissingShards(model, texts, settings, found, hooks);
      await fs.rm(lockPath, { force: true });
      return manifest;
    } finally {
      await texts.close();
    }
  } finally {
    await lock.close();
  }
}

/** What the teacher reads, a range at a time. */
interface TextRanges {
  readonly count: number;
  readonly hash: () => Promise<string>;
  /** @param ranges all that will be asked for, in this order */
  readonly start: (ranges: readonly TextRange[]) => void;
  readonly tokens: (range: TextRange) => Promise<TokenizedTexts>;
  readonly close: () => Promise<void>;
}

/** Texts: the first, and the one after the last. */
interface TextRange {
  readonly begin: number;
  readonly end: number;
}

async function openTexts(model: LanguageModel, texts: Texts, settings: Settings, hooks: Hooks): Promise<TextRanges> {
  const { signal } = hooks;
  if (settings.pieces) {
    const pieces = await model.openPieces(texts, { name: 'texts', maxLength: settings.maxLength, signal });
    return {
      count: pieces.offsets.length - 1,
      hash: () => hashPieces(pieces, signal),
      start: () => {},
      tokens: async (range) => {
        const { inputIds, sequenceOffsets } = await pieces.read(piecesOf(range));
        return { ids: inputIds, offsets: sequenceOffsets };
      },
      close: () => pieces.close(),
    };
  }
  const all = texts as readonly string[]; // checkRequest() refuses others
  let pool = new TokenizerPool(model.tokenizer, 0);
  return {
    count: all.length,
    hash: () => hashTexts(all, hooks),
    start: (ranges) => {
      const characters = ranges.reduce((sum, { begin, end }) => sum + countCharacters(all.slice(begin, end)), 0);
      pool = new TokenizerPool(model.tokenizer, characters);
    },
    tokens: ({ begin, end }) => pool.encode(all.slice(begin, end), () => throwIfAborted(signal)),
    close: () => pool.close(),
  };
}

/** What a student needs of the teacher beside what it said. Parts that write it at once write the same. */
async function keepTeacher(model: LanguageModel, directory: string): Promise<void> {
  await makeDirectory(directory);
  const config = toHuggingFaceConfig(model.family, model.config);
  await writeFileAtomic(join(directory, 'config.json'), `${JSON.stringify(config, null, 2)}\n`);
  await model.tokenizer.save(directory);
}

/**
 * While one batch runs in the engine, the next one is tokenised and the results of the one before are written: no more
 * than the results of two are in memory, or of four where a GPU computes some while those of others cross the bus.
 */
async function extractMissingShards(
  model: LanguageModel,
  texts: TextRanges,
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

  const written = new Set(found.shards.map(({ index }) => index));
  const missing: TextsOfShard[] = [];
  for (let index = begin; index < end; index++) {
    if (!written.has(index)) missing.push({ index, ...textRange(found, index) });
  }
  const tensors = tensorsOf(model, settings);
  const request = forwardRequest(model, settings);
  texts.start(missing);
  const running: { batch: Batch; output: Promise<LanguageModelOutput> }[] = [];
  const passesAhead = model.native.device === 'cuda' ? GPU_PASSES_AHEAD : 1;
  let writer: SafetensorsWriter | undefined;
  let finishing: Promise<void> | undefined;

  /** Makes durable and lists a shard; the next one is written meanwhile. */
  const finish = async ({ index, lengths, tokens, truncatedTexts }: Shard, file: SafetensorsWriter) => {
    try {
      await file.finish();
    } finally {
      await file.discard();
    }
    const crc32c = await fileChecksum(join(directory, shardFile(index)));
    const shard: ManifestShard = { index, texts: lengths.length, tokens, truncatedTexts, crc32c };
    manifest = { ...manifest, shards: [...manifest.shards, shard].sort((a, b) => a.index - b.index) };
    await writeManifest(directory, manifest);
    report();
  };
  const write = async ({ shard, isLast }: Batch, output: LanguageModelOutput) => {
    throwIfAborted(hooks.signal);
    writer ??= await createShard(join(directory, shardFile(shard.index)), shard, tensors);
    for (const { name, data } of tensors) await writer.append(name, data(output));
    if (!isLast) return;
    await finishing;
    finishing = handled(finish(shard, writer));
    writer = undefined;
  };
  try {
    for await (const batch of endingEmpty(batchesOf(model, missing, settings, texts))) {
      if (batch === undefined) {
        for (let next = running.shift(); next; next = running.shift()) await write(next.batch, await next.output);
        continue;
      }
      const before = running.length === passesAhead ? running.shift() : undefined;
      const output = await before?.output;
      running.push({ batch, output: handled(model.forward({ inputIds: batch.inputIds }, request, hooks)) });
      if (before && output) await write(before.batch, output);
    }
    await finishing;
  } finally {
    await Promise.allSettled([...running.map(({ output }) => output), finishing]);
    await writer?.discard();
  }
  return manifest;
}

/** A promise that is awaited later: until then, its failure is no unhandled one. */
function handled<T>(promise: Promise<T>): Promise<T> {
  promise.catch(() => {});
  return promise;
}

/** Ends with `undefined`, also before an error: what was given before is then done with first. */
async function* endingEmpty<T>(values: AsyncIterable<T>): AsyncGenerator<T | undefined, void, undefined> {
  try {
    yield* values;
  } catch (error) {
    yield undefined;
    throw error;
  }
  yield undefined;
}

function textsOf(manifest: Manifest, begin: number, end: number): number {
  return begin === end ? 0 : textRange(manifest, end - 1).end - textRange(manifest, begin).begin;
}

/** A manifest without shards. */
async function describeStore(
  model: LanguageModel,
  texts: TextRanges,
  settings: Settings,
  part: KnowledgePart | undefined,
  hooks: Hooks,
): Promise<Manifest> {
  const { hiddenStates, pooling, attentions, valueRelations, logits, dtype, shardTexts } = settings;
  return {
    format: 'limbeck-knowledge',
    version: 2,
    teacher: await hashTeacher(model, hooks),
    texts: await texts.hash(),
    hiddenStates,
    pooling,
    attentions,
    valueRelations,
    relationHeads: relationHeadsOf(model, settings),
    logits: logits ?? 'none',
    dtype,
    shardTexts,
    ...(settings.pieces && { pieceLength: model.pieceOptions(settings.maxLength).maxLength }),
    hiddenSize: model.config.hiddenSize,
    vocabSize: model.config.vocabSize,
    numAttentionHeads: model.config.numAttentionHeads,
    numTexts: texts.count,
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

interface TextsOfShard extends TextRange {
  readonly index: number;
}

/** A shard whose texts are tokenised. */
interface Shard {
  readonly index: number;
  /** Tokens of each text that the teacher reads. */
  readonly lengths: Int32Array;
  readonly tokens: number;
  readonly truncatedTexts: number;
}

/** Texts of one pass. */
interface Batch {
  readonly shard: Shard;
  readonly inputIds: readonly Int32Array[];
  /** Whether the shard ends with it. */
  readonly isLast: boolean;
}

/** The batches of shards in their order; a shard is tokenised while the one before is in the engine. */
async function* batchesOf(
  model: LanguageModel,
  shards: readonly TextsOfShard[],
  settings: Settings,
  texts: TextRanges,
): AsyncGenerator<Batch, void, undefined> {
  const isFull = batchLimit(model, settings);
  const tokenize = (at: number) => {
    const { begin = 0, end = 0 } = shards[at] ?? {};
    return handled(texts.tokens({ begin, end }));
  };
  let ahead = tokenize(0);
  for (const [at, { index }] of shards.entries()) {
    const { ids, offsets } = await ahead;
    ahead = tokenize(at + 1);
    const maxLength = model.config.maxPositionEmbeddings;
    const whole = Array.from(offsets.subarray(1), (end, text) => ids.subarray(offsets[text], end));
    const all = whole.map((text) => truncateIds(model.tokenizer, text, maxLength));
    const lengths = Int32Array.from(all, ({ length }) => length);
    const shard: Shard = {
      index,
      lengths,
      tokens: lengths.reduce((sum, length) => sum + length, 0),
      truncatedTexts: whole.filter(({ length }) => length > maxLength).length,
    };
    let inputIds: Int32Array[] = [];
    for (const text of all) {
      if (isFull(inputIds, text)) {
        yield { shard, inputIds, isLast: false };
        inputIds = [];
      }
      inputIds.push(text);
    }
    yield { shard, inputIds, isLast: true };
  }
}

/** Whether a batch is full before another text. */
function batchLimit(
  model: LanguageModel,
  settings: Settings,
): (batch: readonly Int32Array[], text: Int32Array) => boolean {
  const isGpu = model.native.device === 'cuda';
  const maxTokens = settings.batchTokens ?? (isGpu ? GPU_BATCH_TOKENS : CPU_BATCH_TOKENS);
  const maxBytes = isGpu && settings.batchTokens === undefined ? MAX_RESULT_BYTES : Number.POSITIVE_INFINITY;
  const tensors = tensorsOf(model, settings);
  let tokens = 0;
  let bytes = 0;
  return (batch, { length }) => {
    const textBytes =
      tensors.reduce((sum, { numValues }) => sum + numValues(length), 0) * Float32Array.BYTES_PER_ELEMENT;
    const isFull = batch.length > 0 && (tokens + length > maxTokens || bytes + textBytes > maxBytes);
    if (batch.length === 0 || isFull) tokens = bytes = 0;
    tokens += length;
    bytes += textBytes;
    return isFull;
  };
}

function forwardRequest(
  model: LanguageModel,
  settings: Settings,
): Omit<ForwardRequest, keyof PackedBatch | 'logitRows' | 'labels'> {
  const { hiddenStates, pooling, attentions, valueRelations, logits } = settings;
  const relationHeads = relationHeadsOf(model, settings);
  return {
    hiddenStates,
    pooling,
    attentions,
    ...(relationHeads === 0 ? {} : { valueRelations, relationHeads }),
    ...(logits === undefined ? {} : { logits }),
  };
}

/** A tensor of a shard. */
interface StoredTensor {
  readonly name: string;
  readonly dtype: TensorDtype;
  /** Without, the tensor has one dimension. */
  readonly columns?: number;
  /** Of a text with so many tokens. */
  readonly numValues: (tokens: number) => number;
  readonly data: (output: LanguageModelOutput) => WritableTensor['data'];
}

/** All tensors of a shard but `lengths`. */
function tensorsOf(model: LanguageModel, settings: Settings): StoredTensor[] {
  const { hiddenStates, pooling, attentions, valueRelations, logits, dtype } = settings;
  const { hiddenSize, vocabSize, numAttentionHeads } = model.config;
  const maps = (heads: number) => (tokens: number) => heads * tokens * tokens;
  const rounded = (
    name: string,
    columns: number,
    rows: (tokens: number) => number,
    valuesOf: (output: LanguageModelOutput) => Float32Array | undefined,
  ): StoredTensor => ({
    name,
    dtype: ({ float32: 'F32', float16: 'F16', bfloat16: 'BF16' } as const)[dtype],
    ...(columns === 1 ? {} : { columns }),
    numValues: (tokens) => rows(tokens) * columns,
    data: (output) => {
      const values = present(valuesOf(output));
      if (dtype === 'float32') return values;
      const bits = loadBinding().narrow(values, dtype);
      if (dtype === 'float16') checkFloat16(bits, values, name);
      return bits;
    },
  });
  const tokensOrTexts = (tokens: number) => (pooling === 'none' ? tokens : 1);
  const tensors = [
    ...hiddenStates.map((layer, i) =>
      rounded(`hidden_states.${layer}`, hiddenSize, tokensOrTexts, (output) => output.hiddenStates[i]),
    ),
    ...attentions.map((block, i) =>
      rounded(`attentions.${block}`, 1, maps(numAttentionHeads), (output) => output.attentions[i]),
    ),
    ...valueRelations.map((block, i) =>
      rounded(
        `value_relations.${block}`,
        1,
        maps(relationHeadsOf(model, settings)),
        (output) => output.valueRelations[i],
      ),
    ),
  ];
  const rows = (name: string, columns: number): Omit<StoredTensor, 'data'> => ({
    name,
    dtype: 'F32',
    ...(columns === 1 ? {} : { columns }),
    numValues: (tokens) => tokens * columns,
  });
  if (logits === 'dense') {
    tensors.push({ ...rows('logits', vocabSize), data: (output) => present(output.logits) });
  } else if (logits?.packed) {
    const columns = packedRowBytes(logits.topK, vocabSize);
    tensors.push({
      ...rows('top_k.packed', columns),
      dtype: 'U8',
      data: ({ topK }) => loadBinding().packTopK({ ...present(topK), topK: logits.topK, vocabSize }),
    });
  } else if (logits !== undefined) {
    tensors.push(
      { ...rows('top_k.values', logits.topK), data: ({ topK }) => present(topK).values },
      { ...rows('top_k.log_sum_exp', 1), data: ({ topK }) => present(topK).logSumExp },
      {
        ...rows('top_k.indices', logits.topK),
        columns: logits.topK,
        dtype: 'I32',
        data: ({ topK }) => present(topK).indices,
      },
    );
  }
  return tensors;
}

/** @throws LimbeckError ERR_NOT_FINITE for bits of a value that float16 cannot hold */
function checkFloat16(bits: Uint16Array, values: Float32Array, name: string): void {
  // Only an exponent of all ones, which is infinity or NaN, carries into the sign. Two at a time: all that is kept comes by.
  const pairs = new Uint32Array(bits.buffer, bits.byteOffset, bits.length >> 1);
  let carries = ((bits.at(-1) ?? 0) & 0x7c00) + 0x0400;
  for (let i = 0; i < pairs.length; i++) carries |= ((pairs[i] as number) & 0x7c007c00) + 0x04000400;
  if ((carries & 0x80008000) === 0) return;
  const value = values[bits.findIndex((half) => (half & 0x7c00) === 0x7c00)];
  throw new LimbeckError(
    'ERR_NOT_FINITE',
    `extract: expected values of at most 65504 in '${name}' to round them to float16, got ${value}; ` +
      (Number.isFinite(value) ? "use dtype 'bfloat16'" : 'check the weights of the teacher'),
  );
}

/** The file of a shard, with `lengths` alone. */
async function createShard(path: string, shard: Shard, tensors: readonly StoredTensor[]): Promise<SafetensorsWriter> {
  const { lengths } = shard;
  const layouts = tensors.map(({ name, dtype, columns, numValues }): [string, TensorLayout] => {
    const count = lengths.reduce((sum, length) => sum + numValues(length), 0);
    return [name, { dtype, shape: columns === undefined ? [count] : [count / columns, columns] }];
  });
  const writer = await SafetensorsWriter.create(path, [
    ['lengths', { dtype: 'I32', shape: [lengths.length] }],
    ...layouts,
  ]);
  try {
    await writer.append('lengths', lengths);
  } catch (error) {
    await writer.discard();
    throw error;
  }
  return writer;
}

function present<T>(result: T | undefined): T {
  if (result !== undefined) return result;
  throw new LimbeckError('ERR_INTERNAL', 'The native forward pass left out what was asked for');
}

/** 0 = no value relations are wanted. */
function relationHeadsOf({ config }: LanguageModel, { valueRelations, relationHeads }: Settings): number {
  return valueRelations.length === 0 ? 0 : (relationHeads ?? config.numKeyValueHeads);
}

function checkRequest(model: LanguageModel, texts: Texts, settings: Settings): void {
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
  if (settings.maxLength !== undefined && !settings.pieces) {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', 'extract.maxLength: this is the length of pieces; set pieces: true');
  }
  if (isTextFile(texts)) {
    if (settings.pieces) return;
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      'extract: a file of texts is read in pieces; set pieces: true, or give an array of texts',
    );
  }
  checkTexts(texts, 'texts');
  if (texts.length === 0) throw new LimbeckError('ERR_EMPTY_DATA', 'extract: expected at least one text, got none');
}

const HASH_DIGITS = 16;
const HASHED_PIECES = 4096;

/** Of weights, config and tokenizer. */
export async function hashTeacher(model: LanguageModel, hooks: Hooks): Promise<string> {
  const hash = createHash('sha256');
  await hashParameters(hash, model.native, hooks);
  // A config that was read from a file has its keys in another order.
  const config = Object.entries(model.config).sort(([a], [b]) => (a < b ? -1 : 1));
  hash.update(JSON.stringify([config, model.tokenizer.json, withoutModelKeys(model.tokenizer.config)]));
  return hash.digest('hex').slice(0, HASH_DIGITS);
}

/** Of the tokens of all pieces, some thousand at a time. */
export async function hashPieces(pieces: PieceSource, signal: AbortSignal | undefined): Promise<string> {
  const hash = createHash('sha256');
  const count = pieces.offsets.length - 1;
  const pause = createPacer();
  for (let begin = 0; begin < count; begin += HASHED_PIECES) {
    await pause();
    throwIfAborted(signal);
    const end = Math.min(begin + HASHED_PIECES, count);
    const { inputIds, sequenceOffsets } = await pieces.read(piecesOf({ begin, end }));
    hash.update(sequenceOffsets).update(inputIds);
  }
  return hash.digest('hex').slice(0, HASH_DIGITS);
}

function piecesOf({ begin, end }: TextRange): Int32Array {
  return Int32Array.from({ length: end - begin }, (_, i) => begin + i);
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
