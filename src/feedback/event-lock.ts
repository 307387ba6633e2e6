/** One process, one log. */
import type { FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import { lockFile } from '../formats/file-lock.js';

/**
 * Locks a directory by the file `lock` in it, which stays. The lock ends when the returned file is closed, and with the
 * process by whatever cause.
 *
 * @throws LimbeckError ERR_LOCKED, ERR_IO
 */
export function lockDirectory(directory: string): Promise<FileHandle> {
  return lockFile(
    join(directory, 'lock'),
    `The event store '${directory}' is open already, in another process or in this one. One process may open it: ` +
      'close the other, choose another directory, or use Redis to share events.',
  );
}
