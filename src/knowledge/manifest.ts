/** `manifest.json` of a knowledge store: what was extracted from which teacher and texts, and which shards are whole. */
import { join } from 'node:path';
import { z } from 'zod';
import { LimbeckError } from '../errors.js';
import { readJsonFile, writeFileAtomic } from '../formats/files.js';

const MANIFEST_FILE = 'manifest.json';
const count = z.int().min(0);

const manifestSchema = z.strictObject({
  format: z.literal('limbeck-knowledge'),
  version: z.literal(1),
  /** CRC-32C over the teacher's weights and config, the request and the texts. */
  fingerprint: z.string().regex(/^[0-9a-f]{8}$/),
  hiddenStates: z.array(count),
  pooling: z.enum(['none', 'mean', 'last']),
  attentions: z.array(count),
  logits: z.union([z.literal('none'), z.literal('dense'), z.strictObject({ topK: z.int().min(1) })]),
  hiddenSize: z.int().min(1),
  vocabSize: z.int().min(1),
  numAttentionHeads: z.int().min(1),
  numTexts: z.int().min(1),
  /** Texts longer than the teacher's positions, of which the beginning was read. */
  truncatedTexts: count,
  shards: z.array(
    z.strictObject({
      // A name of its own folder only.
      file: z.string().regex(/^knowledge-\d{5}\.safetensors$/),
      texts: z.int().min(1),
      tokens: z.int().min(1),
      crc32c: z.string().regex(/^[0-9a-f]{8}$/),
    }),
  ),
  complete: z.boolean(),
});

export type Manifest = z.output<typeof manifestSchema>;

/** @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT, ERR_IO */
export async function readManifest(directory: string): Promise<Manifest> {
  const path = join(directory, MANIFEST_FILE);
  const parsed = manifestSchema.safeParse(await readJsonFile(path));
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    throw new LimbeckError(
      'ERR_FILE_FORMAT',
      `'${path}' is not the manifest of a knowledge store: ${issue?.path.join('.')}: ${issue?.message}`,
    );
  }
  const texts = parsed.data.shards.reduce((sum, shard) => sum + shard.texts, 0);
  if (texts > parsed.data.numTexts || (parsed.data.complete && texts !== parsed.data.numTexts)) {
    throw new LimbeckError('ERR_FILE_FORMAT', `'${path}': shards of ${texts} texts, expected ${parsed.data.numTexts}`);
  }
  return parsed.data;
}

/** @throws LimbeckError ERR_NO_SPACE, ERR_IO */
export async function writeManifest(directory: string, manifest: Manifest): Promise<void> {
  await writeFileAtomic(join(directory, MANIFEST_FILE), `${JSON.stringify(manifest, null, 2)}\n`);
}
