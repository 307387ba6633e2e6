/** The files of a student directory beside the sequence model's. */
import { join } from 'node:path';
import { z } from 'zod';
import { LimbeckError } from '../errors.js';
import { checkedJson } from '../formats/checked-json.js';
import { pathExists, readJsonFile, remove, writeDirectoryAtomic, writeFileAtomic } from '../formats/files.js';
import { checkFinite, readSafetensors, writeSafetensors } from '../formats/safetensors.js';
import type { TextEncoder } from '../knowledge/text-encoder.js';
import type { SequenceModel } from '../student/sequence-model.js';
import { type CatalogueItem, checkItems } from './item-index.js';
import type { StudentTopics } from './topics.js';

export const TEXT_ENCODER_DIRECTORY = 'text_encoder';
export const ITEMS_FILE = 'items.json';
const POPULARITY_FILE = 'popularity.safetensors';
const TOPICS_FILE = 'topics.json';
const CENTROIDS_FILE = 'topics.safetensors';

const topicsSchema = z.array(z.string()).min(1);

export interface StudentParts {
  readonly model: SequenceModel;
  readonly items: readonly CatalogueItem[];
  /** Rows of the model that the items are, ascending. */
  readonly slots: Int32Array;
  /** Rows of the model. */
  readonly numSlots: number;
  readonly encoder: TextEncoder | undefined;
  /** Of the first rows; the others count 0. */
  readonly popularity: Float32Array | undefined;
  readonly topics: StudentTopics;
}

/** Writes a directory, whole or not at all. @throws LimbeckError ERR_NO_SPACE, ERR_IO, ERR_DISPOSED */
export async function saveStudent(directory: string, parts: StudentParts): Promise<void> {
  const { model, items, slots, numSlots, encoder, popularity, topics } = parts;
  await writeDirectoryAtomic(directory, async (temporary) => {
    await model.writeFiles(temporary, slots);
    await writeFileAtomic(join(temporary, ITEMS_FILE), `${JSON.stringify(items)}\n`);
    await writeFileAtomic(join(temporary, TOPICS_FILE), `${JSON.stringify(topics.names)}\n`);
    const { names, centroids } = topics;
    const shape = [names.length, centroids.length / names.length];
    await writeSafetensors(join(temporary, CENTROIDS_FILE), [['centroids', { shape, data: centroids }]]);
    if (popularity !== undefined) {
      const all = new Float32Array(numSlots);
      all.set(popularity);
      await writePopularity(
        temporary,
        Float32Array.from(slots, (slot) => all[slot] ?? 0),
      );
    }
    await encoder?.save(join(temporary, TEXT_ENCODER_DIRECTORY));
  });
}

/** How often each item was chosen. @throws LimbeckError ERR_NO_SPACE, ERR_IO */
export async function writePopularity(directory: string, counts: Float32Array): Promise<void> {
  await writeSafetensors(join(directory, POPULARITY_FILE), [['counts', { shape: [counts.length], data: counts }]]);
}

/** A student that is loaded without topics finds them again. @throws LimbeckError ERR_IO */
export async function removeTopics(directory: string): Promise<void> {
  await remove(join(directory, TOPICS_FILE));
  await remove(join(directory, CENTROIDS_FILE));
}

/** @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT, ERR_IO */
export async function readItems(directory: string): Promise<CatalogueItem[]> {
  const path = join(directory, ITEMS_FILE);
  const items = (await readJsonFile(path)) as unknown as CatalogueItem[];
  try {
    checkItems(items);
  } catch (error) {
    throw new LimbeckError('ERR_FILE_FORMAT', `'${path}': ${(error as LimbeckError).message}`, { cause: error });
  }
  if (items.length === 0) throw new LimbeckError('ERR_FILE_FORMAT', `'${path}': expected at least one item, got none`);
  return items;
}

/** Undefined in directories of students that do not know. @throws LimbeckError ERR_SAFETENSORS, ERR_CHECKPOINT_MISMATCH, ERR_NOT_FINITE */
export async function readPopularity(directory: string): Promise<Float32Array | undefined> {
  const path = join(directory, POPULARITY_FILE);
  return (await pathExists(path)) ? readFloats(path, 'counts') : undefined;
}

/** Undefined in directories of students before topics. @throws as {@link readPopularity}, and ERR_FILE_FORMAT */
export async function readTopics(directory: string): Promise<StudentTopics | undefined> {
  const path = join(directory, TOPICS_FILE);
  if (!(await pathExists(path))) return undefined;
  const names = checkedJson(topicsSchema, await readJsonFile(path), `'${path}': expected a list of names`);
  return { names, centroids: await readFloats(join(directory, CENTROIDS_FILE), 'centroids') };
}

async function readFloats(path: string, name: string): Promise<Float32Array> {
  const data = (await readSafetensors(path)).tensors.get(name)?.data;
  if (!(data instanceof Float32Array) || data.length === 0) {
    throw new LimbeckError('ERR_CHECKPOINT_MISMATCH', `'${path}': expected a float32 tensor '${name}'`);
  }
  checkFinite(data, name, path);
  return data;
}
