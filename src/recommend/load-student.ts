import { join } from 'node:path';
import { z } from 'zod';
import type { NativeEngine } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { pathExists, readJsonFile } from '../formats/files.js';
import { loadTextEncoder, type TextEncoder } from '../knowledge/text-encoder.js';
import { SequenceModel } from '../student/sequence-model.js';
import { type CatalogueItem, ITEMS_FILE, Student, TEXT_ENCODER_DIRECTORY } from './student.js';

const itemsSchema = z.array(z.object({ id: z.string().min(1), text: z.string() })).min(1);

/**
 * Opens a student directory.
 *
 * @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT, ERR_SAFETENSORS, ERR_UNSUPPORTED_MODEL,
 * ERR_CHECKPOINT_MISMATCH, ERR_TOKENIZER, ERR_NOT_FINITE, ERR_OUT_OF_MEMORY, ERR_IO
 */
export async function loadStudent(engine: NativeEngine, directory: string): Promise<Student> {
  const items = await readItems(join(directory, ITEMS_FILE));
  const model = await SequenceModel.load(engine, directory);
  let encoder: TextEncoder | undefined;
  try {
    const encoderDirectory = join(directory, TEXT_ENCODER_DIRECTORY);
    if (await pathExists(encoderDirectory)) encoder = await loadTextEncoder(engine, encoderDirectory);
    return new Student(engine, model, items, encoder);
  } catch (error) {
    encoder?.dispose();
    model.dispose();
    throw error;
  }
}

async function readItems(path: string): Promise<CatalogueItem[]> {
  const parsed = itemsSchema.safeParse(await readJsonFile(path));
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw new LimbeckError(
    'ERR_FILE_FORMAT',
    `'${path}': expected a list of { id, text }; ${issue?.path.join('.')}: ${issue?.message}`,
  );
}
