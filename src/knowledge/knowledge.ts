import { join } from 'node:path';
import { loadBinding } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { openRegularFile, pathExists, readError } from '../formats/files.js';
import { readSafetensors, type TensorData } from '../formats/safetensors.js';
import { isComplete, type Manifest, readManifest, shardFile } from './manifest.js';

const CHECKSUM_CHUNK_BYTES = 4 * 1024 * 1024;

/** CRC-32C of a file, as eight hexadecimal digits. @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT, ERR_IO */
export async function fileChecksum(path: string): Promise<string> {
  const { crc32c } = loadBinding();
  const { file } = await openRegularFile(path);
  try {
    const chunk = new Uint8Array(CHECKSUM_CHUNK_BYTES);
    for (let crc = 0; ; ) {
      const { bytesRead } = await file.read(chunk, 0, chunk.length);
      if (bytesRead === 0) return crc.toString(16).padStart(8, '0');
      crc = crc32c(chunk.subarray(0, bytesRead), crc);
    }
  } catch (error) {
    throw readError(error, path);
  } finally {
    await file.close();
  }
}

/** What a teacher said about a list of texts, on disk. Rows follow the order of the texts. */
export class Knowledge {
  private constructor(
    readonly directory: string,
    readonly manifest: Manifest,
  ) {}

  /**
   * Opens a complete store and checks every shard against its checksum.
   *
   * @throws LimbeckError ERR_FILE_NOT_FOUND (no manifest, or a shard that it lists), ERR_FILE_FORMAT (broken, incomplete
   * or changed), ERR_IO
   */
  static async open(directory: string): Promise<Knowledge> {
    const manifest = await readManifest(directory);
    if (!isComplete(manifest)) {
      throw new LimbeckError(
        'ERR_FILE_FORMAT',
        `'${directory}' is unfinished: run the extraction again, it goes on where it stopped`,
      );
    }
    for (const { index, crc32c } of manifest.shards) {
      const path = join(directory, shardFile(index));
      if (!(await pathExists(path))) {
        throw new LimbeckError(
          'ERR_FILE_NOT_FOUND',
          `The shard '${path}' is missing: put it back, or run the extraction again, which makes it anew`,
        );
      }
      const found = await fileChecksum(path);
      if (found === crc32c) continue;
      throw new LimbeckError(
        'ERR_FILE_FORMAT',
        `'${path}' has CRC-32C ${found}, expected ${crc32c}: the file changed. Run the extraction again, which makes it anew.`,
      );
    }
    return new Knowledge(directory, manifest);
  }

  get numTexts(): number {
    return this.manifest.numTexts;
  }

  /** First token of each text, and after the last. */
  async sequenceOffsets(): Promise<Int32Array> {
    const lengths = await this.#read('lengths', Int32Array);
    const offsets = new Int32Array(lengths.length + 1);
    lengths.forEach((length, i) => {
      offsets[i + 1] = (offsets[i] ?? 0) + length;
    });
    return offsets;
  }

  /** Hidden state of one layer: [texts, hiddenSize] when pooled, else [tokens, hiddenSize]. */
  hiddenState(layer: number): Promise<Float32Array> {
    return this.#read(`hidden_states.${layer}`, Float32Array);
  }

  /** Attention maps of one layer: [numAttentionHeads, t, t] of each text, end to end. */
  attentions(layer: number): Promise<Float32Array> {
    return this.#read(`attentions.${layer}`, Float32Array);
  }

  /** Dense logits [tokens, vocabSize]. */
  logits(): Promise<Float32Array> {
    return this.#read('logits', Float32Array);
  }

  /** The best logits of each token and the log-sum-exp of its whole row. */
  async topK(): Promise<{ indices: Int32Array; values: Float32Array; logSumExp: Float32Array }> {
    return {
      indices: await this.#read('top_k.indices', Int32Array), // [tokens, K]
      values: await this.#read('top_k.values', Float32Array), // [tokens, K]
      logSumExp: await this.#read('top_k.log_sum_exp', Float32Array), // [tokens]
    };
  }

  /** One tensor of every shard, end to end. */
  async #read<T extends Float32Array | Int32Array>(name: string, type: { new (length: number): T }): Promise<T> {
    const parts: TensorData[] = [];
    let length = 0;
    for (const { index } of this.manifest.shards) {
      const path = join(this.directory, shardFile(index));
      const data = (await readSafetensors(path)).tensors.get(name)?.data;
      if (!(data instanceof type)) {
        throw new LimbeckError(
          'ERR_INVALID_ARGUMENT',
          `'${path}' has no '${name}': it was not extracted. Name it in the request of the extraction.`,
        );
      }
      parts.push(data);
      length += data.length;
    }
    const joined = new type(length);
    let offset = 0;
    for (const part of parts) {
      (joined as Float32Array).set(part as Float32Array, offset);
      offset += part.length;
    }
    return joined;
  }
}
