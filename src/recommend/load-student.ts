import { join } from 'node:path';
import { checkPath } from '../arguments.js';
import type { NativeEngine } from '../binding.js';
import { pathExists, readWholeDirectory } from '../formats/files.js';
import { loadTextEncoder, type TextEncoder } from '../knowledge/text-encoder.js';
import { SequenceModel } from '../student/sequence-model.js';
import { Student } from './student.js';
import { readItems, readPopularity, readTopics, TEXT_ENCODER_DIRECTORY } from './student-files.js';

/**
 * Opens a student directory: the student of before or that of after, if another process saves one there meanwhile.
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT, ERR_SAFETENSORS, ERR_UNSUPPORTED_MODEL,
 * ERR_CHECKPOINT_MISMATCH, ERR_TOKENIZER, ERR_UNSUPPORTED_TOKENIZER, ERR_NOT_FINITE, ERR_OUT_OF_MEMORY, ERR_IO
 */
export async function loadStudent(engine: NativeEngine, directory: string): Promise<Student> {
  checkPath(directory, 'directory');
  return readWholeDirectory(directory, () => readStudent(engine, directory));
}

async function readStudent(engine: NativeEngine, directory: string): Promise<Student> {
  const items = await readItems(directory);
  const popularity = await readPopularity(directory);
  const topics = await readTopics(directory);
  const model = await SequenceModel.load(engine, directory);
  let encoder: TextEncoder | undefined;
  try {
    const encoderDirectory = join(directory, TEXT_ENCODER_DIRECTORY);
    if (await pathExists(encoderDirectory)) encoder = await loadTextEncoder(engine, encoderDirectory);
    return new Student(engine, model, items, encoder, { popularity, topics });
  } catch (error) {
    encoder?.dispose();
    model.dispose();
    throw error;
  }
}
