/** What a version of a model consists of, and how it is told from a damaged one. */
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { z } from 'zod';
import { LimbeckError } from '../errors.js';
import { checkedJson } from '../formats/checked-json.js';
import { openRegularFile, readDirectory, readError, readJsonFile, writeFileAtomic } from '../formats/files.js';
import { parseStrictJson } from '../formats/strict-json.js';
import { parseOptions } from '../prepare/parse-options.js';

export const MANIFEST_FILE = 'version.json';
/** Read and hashed at a time: about half a millisecond of the event loop. */
const CHUNK_BYTES = 512 * 1024;
const MAX_FILES = 1000;
const MAX_DEPTH = 8;
/** One level less than a JSON file may have. */
const MAX_METADATA_DEPTH = 63;

const manifestSchema = z.object({
  format: z.literal('limbeck-model-version'),
  version: z.literal(1),
  name: z.string(),
  /** ms since epoch. */
  createdAt: z.number().min(0),
  /** Whatever whoever added it wanted to be kept beside it. */
  metadata: z.record(z.string(), z.json()),
  files: z
    .array(
      z.object({
        path: z.string().min(1),
        sizeBytes: z.int().min(0),
        sha256: z.string().regex(/^[0-9a-f]{64}$/),
      }),
    )
    .max(MAX_FILES),
});

export type ModelManifest = z.output<typeof manifestSchema>;
export type ModelMetadata = ModelManifest['metadata'];

/**
 * Metadata as the manifest will give them back: without what JSON leaves out.
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT for what is no object, or could be written and not read again
 */
export function checkMetadata(metadata: unknown): ModelMetadata {
  let text: string | undefined;
  try {
    text = JSON.stringify(metadata);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `metadata: expected what JSON can say: ${reason}`, { cause });
  }
  const json = parseStrictJson(text ?? 'null', {
    file: 'metadata',
    maxDepth: MAX_METADATA_DEPTH,
    code: 'ERR_INVALID_ARGUMENT',
  });
  return parseOptions(manifestSchema.shape.metadata, json, 'metadata');
}

/** Describes the files of a directory in a manifest beside them. @throws LimbeckError ERR_IO, ERR_NO_SPACE */
export async function writeManifest(
  directory: string,
  about: Pick<ModelManifest, 'name' | 'createdAt' | 'metadata'>,
): Promise<void> {
  const files: ModelManifest['files'] = [];
  for (const path of await listFiles(directory)) files.push({ path, ...(await digest(join(directory, path))) });
  const manifest: ModelManifest = { format: 'limbeck-model-version', version: 1, ...about, files };
  await writeFileAtomic(join(directory, MANIFEST_FILE), `${JSON.stringify(manifest, null, 2)}\n`);
}

/** @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT, ERR_IO */
export async function readManifest(directory: string): Promise<ModelManifest> {
  const path = join(directory, MANIFEST_FILE);
  return checkedJson(manifestSchema, await readJsonFile(path), `'${path}'`);
}

/**
 * Compares a directory with its manifest, byte for byte.
 *
 * @throws LimbeckError ERR_CHECKPOINT_MISMATCH for a file that is missing, extra or changed; and as {@link readManifest}
 */
export async function verifyManifest(directory: string, name: string): Promise<ModelManifest> {
  // Also refuses links, before anything is read through one.
  const found = new Set(await listFiles(directory));
  const manifest = await readManifest(directory);
  const refuse = (why: string) => {
    throw new LimbeckError('ERR_CHECKPOINT_MISMATCH', `Version '${name}' is damaged: ${why}. Add it again.`);
  };
  if (manifest.name !== name) refuse(`its manifest is that of '${manifest.name}'`);
  for (const { path, sizeBytes, sha256 } of manifest.files) {
    if (!found.delete(path)) refuse(`'${path}' is missing`);
    const actual = await digest(join(directory, path), sizeBytes);
    if (actual.sizeBytes !== sizeBytes) {
      refuse(`'${path}' should have ${sizeBytes} bytes and has ${actual.sizeBytes}`);
    }
    if (actual.sha256 !== sha256) refuse(`'${path}' is not what was added`);
  }
  const [extra] = found;
  if (extra !== undefined) refuse(`'${extra}' does not belong to it`);
  return manifest;
}

/** Paths of all files below a directory, with forward slashes, without the manifest. Links and devices are refused. */
async function listFiles(directory: string, below = '', depth = 0): Promise<string[]> {
  const files: string[] = [];
  for (const entry of await readDirectory(join(directory, below))) {
    const path = below === '' ? entry.name : `${below}/${entry.name}`;
    if (entry.isDirectory() && depth < MAX_DEPTH) files.push(...(await listFiles(directory, path, depth + 1)));
    else if (!entry.isFile()) {
      throw new LimbeckError('ERR_FILE_FORMAT', `'${join(directory, path)}': expected a regular file`);
    } else if (path !== MANIFEST_FILE) files.push(path);
    if (files.length > MAX_FILES) {
      throw new LimbeckError('ERR_FILE_FORMAT', `'${directory}' has more than ${MAX_FILES} files`);
    }
  }
  return files.sort();
}

/** @param expectedBytes a file of another size is not read: it may have any */
async function digest(path: string, expectedBytes?: number): Promise<{ sizeBytes: number; sha256: string }> {
  const opened = await openRegularFile(path);
  const { file } = opened;
  try {
    if (expectedBytes !== undefined && opened.sizeBytes !== expectedBytes) {
      return { sizeBytes: opened.sizeBytes, sha256: '' };
    }
    const hash = createHash('sha256');
    const chunk = Buffer.allocUnsafe(CHUNK_BYTES);
    let sizeBytes = 0;
    for (;;) {
      const { bytesRead } = await file.read(chunk, 0, CHUNK_BYTES, sizeBytes);
      if (bytesRead === 0) return { sizeBytes, sha256: hash.digest('hex') };
      hash.update(chunk.subarray(0, bytesRead));
      sizeBytes += bytesRead;
    }
  } catch (error) {
    throw readError(error, path);
  } finally {
    await file.close();
  }
}
