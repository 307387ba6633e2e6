/** What a teacher said about some of the texts of a store, read from where it lies in the shards. */
import { join } from 'node:path';
import { loadBinding } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { asFloat32, type OpenSafetensors, openSafetensors } from '../formats/safetensors.js';
import { type Manifest, type ManifestShard, shardFile } from './manifest.js';

/** Rows of some texts, end to end in the order asked for. */
export interface KnowledgeBatch {
  readonly sequenceOffsets: Int32Array; // [S + 1]
  /** By layer: [S, hiddenSize] when pooled, else [N, hiddenSize]. */
  readonly hiddenStates: ReadonlyMap<number, Float32Array>;
  /** By block: S maps [numAttentionHeads, t, t]. */
  readonly attentions: ReadonlyMap<number, Float32Array>;
  /** By block: S maps [relationHeads, t, t]. */
  readonly valueRelations: ReadonlyMap<number, Float32Array>;
  readonly logits?: Float32Array; // [N, vocabSize]
  readonly topK?: TopKLogits;
}

/** The best logits of each token and the log-sum-exp of its whole row. */
export interface TopKLogits {
  readonly topK: number;
  readonly indices: Int32Array; // [N, topK]
  readonly values: Float32Array; // [N, topK]
  readonly logSumExp: Float32Array; // [N]
}

/** What there is one of: a text, a token, or a pair of tokens of one text. */
type Unit = 'text' | 'token' | 'pair';

interface OpenShard {
  readonly file: OpenSafetensors;
  /** Where each text of the shard begins, and after the last: in units of this kind. */
  readonly offsets: Readonly<Record<Unit, Float64Array>>;
}

/** Reads any texts in any order. One reader may read several batches at once. */
export class KnowledgeReader {
  readonly #shards = new Map<number, Promise<OpenShard>>();

  /** @internal Use {@link Knowledge.openReader}. */
  constructor(
    readonly directory: string,
    readonly manifest: Manifest,
  ) {}

  /**
   * All that was extracted of these texts.
   *
   * @param texts numbers of texts, from 0
   * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_FILE_NOT_FOUND, ERR_SAFETENSORS, ERR_FILE_FORMAT, ERR_OUT_OF_MEMORY, ERR_IO
   */
  async read(texts: Int32Array): Promise<KnowledgeBatch> {
    const { manifest } = this;
    const byLayer = async (layers: readonly number[], read: (layer: number) => Promise<Float32Array>) =>
      new Map(await Promise.all(layers.map(async (layer) => [layer, await read(layer)] as const)));
    const [sequenceOffsets, hiddenStates, attentions, valueRelations, logits, topK] = await Promise.all([
      this.sequenceOffsets(texts),
      byLayer(manifest.hiddenStates, (layer) => this.hiddenState(layer, texts)),
      byLayer(manifest.attentions, (layer) => this.attentions(layer, texts)),
      byLayer(manifest.valueRelations, (layer) => this.valueRelations(layer, texts)),
      manifest.logits === 'dense' ? this.logits(texts) : undefined,
      typeof manifest.logits === 'object' ? this.topK(texts) : undefined,
    ]);
    return {
      sequenceOffsets,
      hiddenStates,
      attentions,
      valueRelations,
      ...(logits && { logits }),
      ...(topK && { topK }),
    };
  }

  async sequenceOffsets(texts: Int32Array): Promise<Int32Array> {
    const offsets = new Int32Array(texts.length + 1);
    for (const [i, text] of texts.entries()) {
      const { shard, place } = await this.#locate(text);
      const { token } = shard.offsets;
      offsets[i + 1] = (offsets[i] ?? 0) + (token[place + 1] ?? 0) - (token[place] ?? 0);
    }
    return offsets;
  }

  hiddenState(layer: number, texts: Int32Array): Promise<Float32Array> {
    const { pooling, hiddenSize } = this.manifest;
    return this.#floats(`hidden_states.${layer}`, pooling === 'none' ? 'token' : 'text', hiddenSize, texts);
  }

  attentions(layer: number, texts: Int32Array): Promise<Float32Array> {
    return this.#floats(`attentions.${layer}`, 'pair', this.manifest.numAttentionHeads, texts);
  }

  valueRelations(layer: number, texts: Int32Array): Promise<Float32Array> {
    return this.#floats(`value_relations.${layer}`, 'pair', this.manifest.relationHeads, texts);
  }

  logits(texts: Int32Array): Promise<Float32Array> {
    return this.#floats('logits', 'token', this.manifest.vocabSize, texts);
  }

  async topK(texts: Int32Array): Promise<TopKLogits> {
    const { logits, vocabSize } = this.manifest;
    if (typeof logits === 'string') throw notExtracted(this.directory, 'top-k logits');
    const { topK, packed } = logits;
    if (!packed) {
      const [indices, values, logSumExp] = await Promise.all([
        this.#bytes('top_k.indices', 'I32', 'token', topK, texts),
        this.#floats('top_k.values', 'token', topK, texts),
        this.#floats('top_k.log_sum_exp', 'token', 1, texts),
      ]);
      return { topK, indices: new Int32Array(indices.buffer), values, logSumExp };
    }
    return { topK, ...loadBinding().unpackTopK({ packed: await this.packedTopK(texts), topK, vocabSize }) };
  }

  /** Packed top-k logits as they are kept, a row a token: see `packTopK` of the binding. */
  async packedTopK(texts: Int32Array): Promise<Uint8Array> {
    const { logits, vocabSize } = this.manifest;
    if (typeof logits === 'string' || !logits.packed) throw notExtracted(this.directory, 'packed top-k logits');
    return this.#bytes('top_k.packed', 'U8', 'token', packedRowBytes(logits.topK, vocabSize), texts);
  }

  /** Closes the files. */
  async close(): Promise<void> {
    const shards = await Promise.allSettled(this.#shards.values());
    this.#shards.clear();
    for (const shard of shards) if (shard.status === 'fulfilled') await shard.value.file.close();
  }

  async #floats(name: string, unit: Unit, width: number, texts: Int32Array): Promise<Float32Array> {
    const dtype = await this.#dtype(name, texts);
    const bytes = await this.#bytes(name, dtype, unit, width, texts);
    const data = dtype === 'F32' ? new Float32Array(bytes.buffer) : new Uint16Array(bytes.buffer);
    return asFloat32({ dtype, shape: [data.length], data });
  }

  async #dtype(name: string, texts: Int32Array): Promise<'F32' | 'F16' | 'BF16'> {
    const { shard } = await this.#locate(texts[0] ?? 0);
    const info = shard.file.tensors.get(name);
    if (info === undefined) throw notExtracted(this.directory, name);
    if (info.dtype === 'F32' || info.dtype === 'F16' || info.dtype === 'BF16') return info.dtype;
    throw new LimbeckError('ERR_FILE_FORMAT', `'${this.directory}': '${name}' is ${info.dtype}, expected floats`);
  }

  /** One tensor's rows of the texts; texts that lie behind each other are read together. */
  async #bytes(name: string, dtype: string, unit: Unit, width: number, texts: Int32Array): Promise<Uint8Array> {
    const runs: { shard: OpenShard; begin: number; end: number }[] = [];
    for (const text of texts) {
      const { shard, place } = await this.#locate(text);
      const begin = shard.offsets[unit][place] ?? 0;
      const end = shard.offsets[unit][place + 1] ?? 0;
      const last = runs.at(-1);
      if (last?.shard === shard && last.end === begin) last.end = end;
      else runs.push({ shard, begin, end });
    }
    const rowBytes = { F32: 4, I32: 4, F16: 2, BF16: 2, U8: 1 }[dtype] ?? 0;
    const size = runs.reduce((sum, { begin, end }) => sum + end - begin, 0) * width * rowBytes;
    const bytes = allocate(size, name, this.directory);
    let offset = 0;
    // All are checked before one is read: nobody would wait for what is being read when a check fails.
    const reads = runs.map(({ shard, begin, end }) => {
      const info = shard.file.tensors.get(name);
      if (info === undefined) throw notExtracted(this.directory, name);
      const rows = shard.offsets[unit].at(-1) ?? 0;
      if (info.dtype !== dtype || info.end - info.begin !== rows * width * rowBytes) {
        throw new LimbeckError(
          'ERR_FILE_FORMAT',
          `'${this.directory}': '${name}' is ${info.dtype} [${info.shape.join(', ')}], expected ${dtype} of ${rows} × ${width}`,
        );
      }
      const target = bytes.subarray(offset, offset + (end - begin) * width * rowBytes);
      offset += target.length;
      return () => shard.file.read(info.begin + begin * width * rowBytes, target);
    });
    await Promise.all(reads.map((read) => read()));
    return bytes;
  }

  async #locate(text: number): Promise<{ shard: OpenShard; place: number }> {
    const { numTexts, shardTexts } = this.manifest;
    if (!Number.isInteger(text) || text < 0 || text >= numTexts) {
      throw new LimbeckError('ERR_INVALID_ARGUMENT', `Expected texts 0 to ${numTexts - 1} of the store, got ${text}`);
    }
    const index = Math.floor(text / shardTexts);
    let shard = this.#shards.get(index);
    if (shard === undefined) {
      shard = openShard(join(this.directory, shardFile(index)), this.manifest.shards[index]);
      this.#shards.set(index, shard);
    }
    return { shard: await shard, place: text - index * shardTexts };
  }
}

/** @param expected what the manifest says of it */
async function openShard(path: string, expected: ManifestShard | undefined): Promise<OpenShard> {
  const file = await openSafetensors(path);
  try {
    const info = file.tensors.get('lengths');
    if (info?.dtype !== 'I32') throw new LimbeckError('ERR_FILE_FORMAT', `'${path}' has no lengths of its texts`);
    const bytes = new Uint8Array(info.end - info.begin);
    await file.read(info.begin, bytes);
    const lengths = new Int32Array(bytes.buffer);
    // What is read, and how much memory it takes, goes by them.
    const tokens = lengths.reduce((sum, length) => sum + length, 0);
    if (lengths.length !== expected?.texts || tokens !== expected.tokens || lengths.some((length) => length < 1)) {
      throw new LimbeckError(
        'ERR_FILE_FORMAT',
        `'${path}' has ${lengths.length} texts of ${tokens} tokens, expected ${expected?.texts} of ${expected?.tokens}, ` +
          'each of at least one. Run the extraction again, which makes it anew.',
      );
    }
    const offsets = { text: new Float64Array(lengths.length + 1), token: new Float64Array(lengths.length + 1) };
    const pair = new Float64Array(lengths.length + 1);
    lengths.forEach((length, i) => {
      offsets.text[i + 1] = i + 1;
      offsets.token[i + 1] = (offsets.token[i] ?? 0) + length;
      pair[i + 1] = (pair[i] ?? 0) + length * length;
    });
    return { file, offsets: { ...offsets, pair } };
  } catch (error) {
    await file.close();
    throw error;
  }
}

/** As native/ops/packed_logits.h lays rows out. */
export function packedRowBytes(topK: number, vocabSize: number): number {
  const indexBits = Math.max(1, Math.ceil(Math.log2(vocabSize)));
  return 4 + Math.ceil((topK * (indexBits + 12) + 12) / 8);
}

function allocate(sizeBytes: number, name: string, directory: string): Uint8Array<ArrayBuffer> {
  try {
    return new Uint8Array(sizeBytes);
  } catch (error) {
    throw new LimbeckError('ERR_OUT_OF_MEMORY', `No memory for '${name}' of '${directory}': ${sizeBytes} bytes`, {
      cause: error,
    });
  }
}

function notExtracted(directory: string, name: string): LimbeckError {
  return new LimbeckError(
    'ERR_INVALID_ARGUMENT',
    `'${directory}' has no '${name}': it was not extracted. Name it in the request of the extraction.`,
  );
}
