/** One process at a time. */
import fs, { type FileHandle } from 'node:fs/promises';
import { loadBinding } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { writeError } from './files.js';

/**
 * Makes a file where there is none and locks it. The lock ends when the returned file is closed, and with the process by
 * whatever cause; the file stays.
 *
 * @param refusal the message when another open file holds the lock
 * @throws LimbeckError ERR_LOCKED, ERR_IO
 */
export async function lockFile(path: string, refusal: string): Promise<FileHandle> {
  const file = await fs.open(path, 'a').catch((error: unknown) => {
    throw writeError(error, path);
  });
  try {
    if (loadBinding().tryLockFile(file.fd)) return file;
    throw new LimbeckError('ERR_LOCKED', refusal);
  } catch (error) {
    await file.close();
    throw error;
  }
}
