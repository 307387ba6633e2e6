import { join } from 'node:path';
import { checkPath } from '../arguments.js';
import { loadBinding } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { openRegularFile, pathExists, readError } from '../formats/files.js';
import { isComplete, type Manifest, readManifest, shardFile } from './manifest.js';
import { KnowledgeReader, type TopKLogits } from './reader.js';

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
   * @throws LimbeckError ERR_INVALID_ARGUMENT for no path, ERR_FILE_NOT_FOUND (no manifest, or a shard that it lists),
   * ERR_FILE_FORMAT (broken, incomplete or changed), ERR_IO
   */
  static async open(directory: string): Promise<Knowledge> {
    checkPath(directory, 'directory');
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

  /** Reads any texts in any order. The caller closes it. */
  openReader(): KnowledgeReader {
    return new KnowledgeReader(this.directory, this.manifest);
  }

  /** First token of each text, and after the last. */
  sequenceOffsets(): Promise<Int32Array> {
    return this.#readAll((reader, texts) => reader.sequenceOffsets(texts));
  }

  /** Hidden state of one layer: [texts, hiddenSize] when pooled, else [tokens, hiddenSize]. */
  hiddenState(layer: number): Promise<Float32Array> {
    return this.#readAll((reader, texts) => reader.hiddenState(layer, texts));
  }

  /** Attention maps of one layer: [numAttentionHeads, t, t] of each text, end to end. */
  attentions(layer: number): Promise<Float32Array> {
    return this.#readAll((reader, texts) => reader.attentions(layer, texts));
  }

  /** Value relations of one layer: [relationHeads, t, t] of each text, end to end. */
  valueRelations(layer: number): Promise<Float32Array> {
    return this.#readAll((reader, texts) => reader.valueRelations(layer, texts));
  }

  /** Dense logits [tokens, vocabSize]. */
  logits(): Promise<Float32Array> {
    return this.#readAll((reader, texts) => reader.logits(texts));
  }

  /** The best logits of each token and the log-sum-exp of its whole row. */
  topK(): Promise<TopKLogits> {
    return this.#readAll((reader, texts) => reader.topK(texts));
  }

  async #readAll<T>(read: (reader: KnowledgeReader, texts: Int32Array) => Promise<T>): Promise<T> {
    const reader = this.openReader();
    try {
      return await read(
        reader,
        Int32Array.from({ length: this.numTexts }, (_, text) => text),
      );
    } finally {
      await reader.close();
    }
  }
}
