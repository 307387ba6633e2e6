/** One process, one log. */
import fs, { type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import { loadBinding } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { writeError } from '../formats/files.js';

/**
 * Locks a directory by the file `lock` in it, which stays. The lock ends when the returned file is closed, and with the
 * process by whatever cause.
 *
 * @throws LimbeckError ERR_LOCKED, ERR_IO
 */
export async function lockDirectory(directory: string): Promise<FileHandle> {
  const path = join(directory, 'lock');
  const file = await fs.open(path, 'a').catch((error: unknown) => {
    throw writeError(error, path);
  });
  try {
    if (loadBinding().tryLockFile(file.fd)) return file;
    throw new LimbeckError(
      'ERR_LOCKED',
      `The event store '${directory}' is open already, in another process or in this one. One process may open it: ` +
        'close the other, choose another directory, or use Redis to share events.',
    );
  } catch (error) {
    await file.close();
    throw error;
  }
}
