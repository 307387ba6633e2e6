/**
 * `manifest.json` of a knowledge store: what was extracted from which teacher and texts, and which shards are whole. A
 * process that extracts a part of them writes `manifest-1-of-4.json` instead; merging makes one of all.
 */
import { join } from 'node:path';
import { z } from 'zod';
import { LimbeckError } from '../errors.js';
import { checkedJson } from '../formats/checked-json.js';
import { readJsonFile, writeFileAtomic } from '../formats/files.js';

const count = z.int().min(0);
const hash = z.string().regex(/^[0-9a-f]{16}$/);

/** What was asked of a teacher; the numbers of layers go by {@link ExtractOptions}. */
const requestShape = {
  hiddenStates: z.array(count),
  pooling: z.enum(['none', 'mean', 'last', 'cls', 'attention']),
  attentions: z.array(count),
  valueRelations: z.array(count),
  /** Of value relations; 0 = there are none. */
  relationHeads: count,
  logits: z.union([
    z.literal('none'),
    z.literal('dense'),
    z.strictObject({ topK: z.int().min(1), packed: z.boolean() }),
  ]),
  /** Of hidden states, attention maps and value relations. */
  dtype: z.enum(['float32', 'float16', 'bfloat16']),
  /** Texts of each shard but the last. */
  shardTexts: z.int().min(1),
  /**
   * A store to train from: its texts are the pieces that training cuts texts into, of at most so many tokens, with the
   * end-of-text token. Without, they are the beginnings of texts that the teacher can read at once.
   */
  pieceLength: z.int().min(2).optional(),
} as const;
const requestSchema = z.strictObject(requestShape);

/** Shards are dealt to parts in runs of equal length, give or take one. */
const partSchema = z
  .strictObject({ index: z.int().min(1), count: z.int().min(1).max(10_000) })
  .refine(({ index, count }) => index <= count, { message: 'expected an index of at most count', path: ['index'] });

const manifestSchema = z.strictObject({
  format: z.literal('limbeck-knowledge'),
  version: z.literal(2),
  /** Of the teacher's weights, config and tokenizer. */
  teacher: hash,
  /** Of the texts and their order; of the token ids of pieces. */
  texts: hash,
  ...requestShape,
  hiddenSize: z.int().min(1),
  vocabSize: z.int().min(1),
  numAttentionHeads: z.int().min(1),
  numTexts: z.int().min(1),
  part: partSchema.optional(),
  /** Ascending. */
  shards: z.array(
    z.strictObject({
      index: count,
      texts: z.int().min(1),
      tokens: z.int().min(1),
      /** Texts longer than the teacher's positions, of which the beginning was read. */
      truncatedTexts: count,
      /** Of the file. */
      crc32c: z.string().regex(/^[0-9a-f]{8}$/),
    }),
  ),
});

export type Manifest = z.output<typeof manifestSchema>;
export type ManifestShard = Manifest['shards'][number];
export type KnowledgeRequest = z.output<typeof requestSchema>;
export type KnowledgePart = z.output<typeof partSchema>;

export function manifestFile(part?: KnowledgePart): string {
  return part === undefined ? 'manifest.json' : `manifest-${part.index}-of-${part.count}.json`;
}

/** The part that a file's name says, if it is the manifest of one. */
export function partOfFile(name: string): KnowledgePart | undefined {
  const match = /^manifest-([1-9]\d{0,4})-of-([1-9]\d{0,4})\.json$/.exec(name);
  return match === null ? undefined : { index: Number(match[1]), count: Number(match[2]) };
}

export function shardFile(index: number): string {
  return `knowledge-${String(index).padStart(5, '0')}.safetensors`;
}

/** First shard of a store, or of a part of it, and the one after the last. */
export function shardRange({ numTexts, shardTexts, part }: Pick<Manifest, 'numTexts' | 'shardTexts' | 'part'>): {
  readonly begin: number;
  readonly end: number;
} {
  const shards = Math.ceil(numTexts / shardTexts);
  if (part === undefined) return { begin: 0, end: shards };
  const { index, count: parts } = part;
  return { begin: Math.floor(((index - 1) * shards) / parts), end: Math.floor((index * shards) / parts) };
}

/** Of a store to train from: `config.json` and the tokenizer of the teacher. */
export function teacherDirectory(directory: string): string {
  return join(directory, 'teacher');
}

/** Texts of a shard: the first, and the one after the last. */
export function textRange({ numTexts, shardTexts }: Pick<Manifest, 'numTexts' | 'shardTexts'>, index: number) {
  return { begin: index * shardTexts, end: Math.min((index + 1) * shardTexts, numTexts) };
}

export function isComplete(manifest: Manifest): boolean {
  const { begin, end } = shardRange(manifest);
  return manifest.shards.length === end - begin;
}

/** @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT, ERR_IO */
export async function readManifest(directory: string, part?: KnowledgePart): Promise<Manifest> {
  const path = join(directory, manifestFile(part));
  const manifest = checkedJson(manifestSchema, await readJsonFile(path), noManifest(path));
  if (manifest.part?.index !== part?.index || manifest.part?.count !== part?.count) {
    throw broken(path, `part: expected ${JSON.stringify(part)}, got ${JSON.stringify(manifest.part)}`);
  }
  const { begin, end } = shardRange(manifest);
  let after = begin;
  for (const { index, texts } of manifest.shards) {
    if (index < after || index >= end) throw broken(path, `shards: expected ${after} to ${end - 1}, got ${index}`);
    const range = textRange(manifest, index);
    const expected = range.end - range.begin;
    if (texts !== expected) throw broken(path, `shard ${index}: expected ${expected} texts, got ${texts}`);
    after = index + 1;
  }
  return manifest;
}

/** @throws LimbeckError ERR_NO_SPACE, ERR_IO */
export async function writeManifest(directory: string, manifest: Manifest): Promise<void> {
  await writeFileAtomic(join(directory, manifestFile(manifest.part)), `${JSON.stringify(manifest, null, 2)}\n`);
}

/**
 * What two manifests of one store must share.
 *
 * @throws LimbeckError ERR_CHECKPOINT_MISMATCH that says which of teacher, texts and request differs
 */
export function checkSameStore(found: Manifest, expected: Manifest, path: string): void {
  const difference =
    found.teacher !== expected.teacher
      ? 'another teacher'
      : found.texts !== expected.texts || found.numTexts !== expected.numTexts
        ? 'other texts'
        : differentKey(found, expected);
  if (difference === undefined) return;
  throw new LimbeckError(
    'ERR_CHECKPOINT_MISMATCH',
    `'${path}' holds what ${difference} gave. Name another directory, or delete it.`,
  );
}

function differentKey(found: Manifest, expected: Manifest): string | undefined {
  for (const key of Object.keys(requestShape) as (keyof KnowledgeRequest)[]) {
    const [was, wanted] = [JSON.stringify(found[key]), JSON.stringify(expected[key])];
    if (was !== wanted) return `another request (${key} ${was}, now ${wanted})`;
  }
  return undefined;
}

function broken(path: string, problem: string): LimbeckError {
  return new LimbeckError('ERR_FILE_FORMAT', `${noManifest(path)}: ${problem}`);
}

function noManifest(path: string): string {
  return `'${path}' is not the manifest of a knowledge store`;
}
