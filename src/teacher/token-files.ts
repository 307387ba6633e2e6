/**
 * A corpus that is never whole in memory: its pieces as token ids in safetensors shards, read batch by batch. The shards
 * lie in a directory of their tokenizer and cutting, with `tokens.json`, which says what they were made of.
 */
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { z } from 'zod';
import { loadBinding, type PackedBatch } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { checkedJson } from '../formats/checked-json.js';
import { lockFile } from '../formats/file-lock.js';
import {
  makeDirectory,
  openRegularFile,
  pathExists,
  readDirectory,
  readError,
  readJsonFile,
  remove,
  writeFileAtomic,
} from '../formats/files.js';
import { type OpenSafetensors, openSafetensors, writeSafetensors } from '../formats/safetensors.js';
import type { Tokenizer } from '../formats/tokenizer.js';
import { withoutModelKeys } from '../formats/tokenizer-config.js';
import { TokenizerPool } from '../formats/tokenizer-workers.js';
import { type Hooks, throwIfAborted } from '../prepare/hooks.js';
import { readTexts, type TextFile } from '../prepare/text-lines.js';
import { cutPieces, noPiece, type PieceOptions, type PieceSource, type TokenizedCorpus } from './corpus.js';

const checksum = z.string().regex(/^[0-9a-f]{8}$/);

const manifestSchema = z.strictObject({
  format: z.literal('limbeck-tokens'),
  version: z.literal(1),
  /** Whether the source ended with the last shard; all others end with a line. */
  isComplete: z.boolean(),
  shards: z.array(
    z.strictObject({
      pieces: z.int().min(0),
      tokens: z.int().min(0),
      /** Of the shard's file. */
      crc32c: checksum,
      /** Bytes of the source up to the end of this shard, and their CRC-32C. */
      sourceBytes: z.int().min(1),
      sourceCrc32c: checksum,
    }),
  ),
});
type TokenManifest = z.output<typeof manifestSchema>;

const MANIFEST = 'tokens.json';
const LOCK = '.lock';
/** 16 MiB of ids: what tokenising holds, and what a run that was killed does again. */
const SHARD_TOKENS = 1 << 22;
const CHECKSUM_BYTES = 1 << 22;
const HASH_DIGITS = 16;

interface OpenOptions extends Pick<Hooks, 'signal'> {
  /** Ids of a shard, give or take those of a mebibyte of text. @defaultValue 4,194,304 */
  readonly shardTokens?: number;
}

/**
 * Opens the pieces of a file's texts. What was not tokenised before with this tokenizer and these options is: of a file
 * that grew, what is new; of one that changed, what follows the first change. After a kill the next call goes on behind
 * the last whole shard.
 *
 * @throws LimbeckError ERR_EMPTY_DATA when no piece is left; ERR_LOCKED while another process tokenises; the codes of
 * {@link readTexts}; ERR_TOKENIZER, ERR_ABORTED, ERR_SAFETENSORS, ERR_FILE_FORMAT, ERR_NO_SPACE, ERR_IO
 */
export async function openTokenFiles(
  tokenizer: Tokenizer,
  source: TextFile,
  options: PieceOptions,
  hooks: OpenOptions = {},
): Promise<PieceSource> {
  const directory = join(source.tokens ?? `${source.path}.tokens`, keyOf(tokenizer, source, options));
  await makeDirectory(directory);
  const lock = await lockFile(
    join(directory, LOCK),
    `Another process tokenises '${source.path}' into '${directory}': wait for it or stop it`,
  );
  try {
    const found = await findWhole(directory, source.path, hooks.signal);
    const manifest = found.isComplete ? found : await tokenize(directory, found, tokenizer, source, options, hooks);
    if (manifest.shards.every(({ pieces }) => pieces === 0)) throw noPiece(options);
    return await TokenFiles.open(directory, manifest);
  } finally {
    await lock.close();
  }
}

/** Of what decides the tokens of a text. */
function keyOf(tokenizer: Tokenizer, { column }: TextFile, { maxLength, minLength = 2, addEos }: PieceOptions): string {
  const parts = [tokenizer.json, withoutModelKeys(tokenizer.config), maxLength, minLength, addEos, column ?? 'text'];
  return createHash('sha256').update(JSON.stringify(parts)).digest('hex').slice(0, HASH_DIGITS);
}

function shardPath(directory: string, index: number): string {
  return join(directory, `tokens-${String(index).padStart(5, '0')}.safetensors`);
}

/** The shards that are whole, and whose part of the source is what it was; all other files are removed. */
async function findWhole(directory: string, sourcePath: string, signal: AbortSignal | undefined) {
  const path = join(directory, MANIFEST);
  const none: TokenManifest = { format: 'limbeck-tokens', version: 1, isComplete: false, shards: [] };
  const found = (await pathExists(path)) ? readManifest(path, await readJsonFile(path)) : none;
  const ends = found.shards.map(({ sourceBytes }) => sourceBytes);
  const { checksums, sizeBytes } = await prefixChecksums(sourcePath, ends, signal);
  const shards: TokenManifest['shards'] = [];
  for (const [index, shard] of found.shards.entries()) {
    if (checksums[index] !== shard.sourceCrc32c) break;
    // The last line of a source may have gone on.
    const isLast = found.isComplete && index === found.shards.length - 1;
    if (isLast && shard.sourceBytes < sizeBytes) break;
    const file = shardPath(directory, index);
    if (!(await pathExists(file)) || (await fileChecksum(file, signal)) !== shard.crc32c) break;
    shards.push(shard);
  }
  const kept = new Set([MANIFEST, LOCK]);
  for (const index of shards.keys()) kept.add(shardPath('', index));
  for (const { name } of await readDirectory(directory)) if (!kept.has(name)) await remove(join(directory, name));
  return { ...found, isComplete: found.isComplete && shards.length === found.shards.length, shards };
}

function readManifest(path: string, json: unknown): TokenManifest {
  return checkedJson(manifestSchema, json, `'${path}' does not describe tokens`, 'Delete its folder.');
}

/** CRC-32C of a file's first bytes, for each end (ascending) that the file reaches. */
async function prefixChecksums(
  path: string,
  ends: readonly number[],
  signal: AbortSignal | undefined,
): Promise<{ checksums: string[]; sizeBytes: number }> {
  const { crc32c } = loadBinding();
  const { file, sizeBytes } = await openRegularFile(path);
  try {
    const buffer = new Uint8Array(CHECKSUM_BYTES);
    const checksums: string[] = [];
    let crc = 0;
    let begin = 0;
    for (const end of ends) {
      if (end > sizeBytes) break;
      while (begin < end) {
        throwIfAborted(signal);
        const { bytesRead } = await file.read(buffer, 0, Math.min(buffer.length, end - begin), begin);
        if (bytesRead === 0) return { checksums, sizeBytes };
        crc = crc32c(buffer.subarray(0, bytesRead), crc);
        begin += bytesRead;
      }
      checksums.push(hexadecimal(crc));
    }
    return { checksums, sizeBytes };
  } catch (error) {
    throw error instanceof LimbeckError ? error : readError(error, path);
  } finally {
    await file.close();
  }
}

async function fileChecksum(path: string, signal: AbortSignal | undefined): Promise<string | undefined> {
  const { file, sizeBytes } = await openRegularFile(path);
  await file.close();
  return (await prefixChecksums(path, [sizeBytes], signal)).checksums[0];
}

function hexadecimal(crc: number): string {
  return crc.toString(16).padStart(8, '0');
}

/** Tokenises what the shards do not have yet. */
async function tokenize(
  directory: string,
  found: TokenManifest,
  tokenizer: Tokenizer,
  source: TextFile,
  options: PieceOptions,
  { signal, shardTokens = SHARD_TOKENS }: OpenOptions,
): Promise<TokenManifest> {
  const { crc32c } = loadBinding();
  const last = found.shards.at(-1);
  const shards = [...found.shards];
  const manifest = (isComplete: boolean): TokenManifest => ({ ...found, isComplete, shards });
  let sourceBytes = last?.sourceBytes ?? 0;
  let sourceCrc = last === undefined ? 0 : Number.parseInt(last.sourceCrc32c, 16);
  let parts: TokenizedCorpus[] = [];
  let tokens = 0;
  const write = async () => {
    const path = shardPath(directory, shards.length);
    const { ids, lengths } = joinPieces(parts);
    await writeSafetensors(path, [
      ['ids', { shape: [ids.length], data: ids }],
      ['lengths', { shape: [lengths.length], data: lengths }],
    ]);
    const crc = await fileChecksum(path, signal);
    if (crc === undefined) throw new LimbeckError('ERR_IO', `'${path}' changed while it was written`);
    shards.push({
      pieces: lengths.length,
      tokens: ids.length,
      crc32c: crc,
      sourceBytes,
      sourceCrc32c: hexadecimal(sourceCrc),
    });
    parts = [];
    tokens = 0;
  };
  const { file, sizeBytes } = await openRegularFile(source.path);
  await file.close();
  const pool = new TokenizerPool(tokenizer, sizeBytes - sourceBytes);
  try {
    for await (const { texts, end, bytes } of readTexts(source, sourceBytes)) {
      // A shard is listed once another follows: the last one says that it is.
      if (tokens >= shardTokens) {
        await write();
        await writeManifest(directory, manifest(false));
      }
      const tokenized = await pool.encode(texts, () => throwIfAborted(signal));
      const pieces = cutPieces(tokenized, tokenizer.eosTokenId, options);
      parts.push(pieces);
      tokens += pieces.ids.length;
      sourceBytes = end;
      sourceCrc = crc32c(bytes, sourceCrc);
    }
  } finally {
    await pool.close();
  }
  if (parts.length > 0) await write();
  await writeManifest(directory, manifest(true));
  return manifest(true);
}

async function writeManifest(directory: string, manifest: TokenManifest): Promise<void> {
  await writeFileAtomic(join(directory, MANIFEST), `${JSON.stringify(manifest, null, 2)}\n`);
}

function joinPieces(parts: readonly TokenizedCorpus[]): { ids: Int32Array; lengths: Int32Array } {
  const ids = new Int32Array(parts.reduce((sum, part) => sum + part.ids.length, 0));
  const lengths = new Int32Array(parts.reduce((sum, { offsets }) => sum + offsets.length - 1, 0));
  let piece = 0;
  let token = 0;
  for (const part of parts) {
    ids.set(part.ids, token);
    token += part.ids.length;
    for (let i = 1; i < part.offsets.length; i++) {
      lengths[piece++] = (part.offsets[i] ?? 0) - (part.offsets[i - 1] ?? 0);
    }
  }
  return { ids, lengths };
}

interface TokenShard {
  readonly file: OpenSafetensors;
  /** Of the ids in the data section, in bytes. */
  readonly begin: number;
  /** Pieces and tokens before the shard. */
  readonly firstPiece: number;
  readonly firstToken: number;
}

/** The shards, all open: they stay what they are while another run replaces them. */
class TokenFiles implements PieceSource {
  private constructor(
    readonly offsets: Float64Array,
    private readonly shards: readonly TokenShard[],
  ) {}

  static async open(directory: string, manifest: TokenManifest): Promise<TokenFiles> {
    const shards: TokenShard[] = [];
    const lengthsOf: Int32Array[] = [];
    try {
      let firstPiece = 0;
      let firstToken = 0;
      for (const [index, { pieces, tokens }] of manifest.shards.entries()) {
        const path = shardPath(directory, index);
        const file = await openSafetensors(path);
        const [ids, lengths] = [file.tensors.get('ids'), file.tensors.get('lengths')];
        shards.push({ file, begin: ids?.begin ?? 0, firstPiece, firstToken });
        // How much memory is taken goes by the file: what the manifest says is not covered by a checksum.
        const bytes = new Uint8Array(lengths?.dtype === 'I32' ? lengths.end - lengths.begin : 0);
        await file.read(lengths?.begin ?? 0, bytes);
        const values = new Int32Array(bytes.buffer);
        const numIds = ids?.dtype === 'I32' ? (ids.end - ids.begin) / Int32Array.BYTES_PER_ELEMENT : -1;
        const sum = values.reduce((before, length) => before + length, 0);
        if (values.length !== pieces || numIds !== tokens || sum !== tokens) {
          throw new LimbeckError(
            'ERR_FILE_FORMAT',
            `'${path}' does not hold ${tokens} ids in ${pieces} pieces. Delete it.`,
          );
        }
        lengthsOf.push(values);
        firstPiece += pieces;
        firstToken += tokens;
      }
      const offsets = new Float64Array(firstPiece + 1);
      let piece = 0;
      for (const lengths of lengthsOf) {
        for (const length of lengths) {
          offsets[piece + 1] = (offsets[piece] ?? 0) + length;
          piece++;
        }
      }
      return new TokenFiles(offsets, shards);
    } catch (error) {
      await closeAll(shards);
      throw error;
    }
  }

  /** Pieces that lie behind each other are read together. */
  async read(pieces: Int32Array): Promise<PackedBatch> {
    const sequenceOffsets = new Int32Array(pieces.length + 1);
    for (const [i, piece] of pieces.entries()) {
      if (!(piece >= 0 && piece < this.offsets.length - 1)) {
        throw new LimbeckError('ERR_INVALID_ARGUMENT', `Expected pieces 0 to ${this.offsets.length - 2}, got ${piece}`);
      }
      const length = (this.offsets[piece + 1] ?? 0) - (this.offsets[piece] ?? 0);
      sequenceOffsets[i + 1] = (sequenceOffsets[i] ?? 0) + length;
    }
    const inputIds = new Int32Array(sequenceOffsets[pieces.length] ?? 0);
    const reads: Promise<void>[] = [];
    for (let first = 0, end: number; first < pieces.length; first = end) {
      const { shard, shardEnd } = this.#shardOf(pieces[first] ?? 0);
      end = first + 1;
      while (end < pieces.length && pieces[end] === (pieces[end - 1] ?? 0) + 1 && (pieces[end] ?? 0) < shardEnd) end++;
      const place = (this.offsets[pieces[first] ?? 0] ?? 0) - shard.firstToken;
      const target = inputIds.subarray(sequenceOffsets[first], sequenceOffsets[end]);
      reads.push(
        shard.file.read(
          shard.begin + place * Int32Array.BYTES_PER_ELEMENT,
          new Uint8Array(target.buffer, target.byteOffset, target.byteLength),
        ),
      );
    }
    await Promise.all(reads);
    return { inputIds, sequenceOffsets };
  }

  close(): Promise<void> {
    return closeAll(this.shards);
  }

  /** The shard of a piece, and the first piece that is not in it. */
  #shardOf(piece: number): { shard: TokenShard; shardEnd: number } {
    let low = 0;
    let high = this.shards.length;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if ((this.shards[middle]?.firstPiece ?? 0) <= piece) low = middle;
      else high = middle;
    }
    const shard = this.shards[low];
    if (shard === undefined) throw new LimbeckError('ERR_INTERNAL', `There is no shard of piece ${piece}`);
    return { shard, shardEnd: this.shards[low + 1]?.firstPiece ?? this.offsets.length - 1 };
  }
}

async function closeAll(shards: readonly TokenShard[]): Promise<void> {
  for (const { file } of shards) await file.close();
}
