/** Which files of an event log may go. */
import fs from 'node:fs/promises';
import { syncDirectory, writeError } from '../formats/files.js';
import { readRecords, type Segment } from './event-segment-files.js';
import type { RetentionOptions } from './event-store.js';

/**
 * Removes whole segments from the front of the list, and their files, oldest first: whatever a crash leaves is a log.
 * The last segment always stays.
 *
 * @param next One past the newest event.
 * @throws LimbeckError ERR_IO, ERR_CORRUPT_LOG
 */
export async function retainSegments(
  directory: string,
  segments: Segment[],
  next: number,
  limits: Omit<RetentionOptions, 'keepFrom'> & { readonly keepFrom: number },
): Promise<void> {
  const { keepFrom, maxAgeMs = Infinity, maxBytes = Infinity, maxEvents = Infinity } = limits;
  let totalBytes = segments.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  let changed = false;
  for (;;) {
    const [oldest, following] = segments;
    if (oldest === undefined || following === undefined || following.base > keepFrom) break;
    const isOver =
      totalBytes > maxBytes ||
      next - oldest.base > maxEvents ||
      // Everything before the first record of the next file is at least as old as that.
      (await firstReceipt({ ...following })) < Date.now() - maxAgeMs;
    if (!isOver) break;
    segments.shift();
    totalBytes -= oldest.sizeBytes;
    changed = true;
    await fs.rm(oldest.path, { force: true }).catch((error: unknown) => {
      // Else the next call would remove a file behind it, and leave a gap.
      segments.unshift(oldest);
      throw writeError(error, oldest.path);
    });
  }
  if (changed) await syncDirectory(directory);
}

/** When the segment's first event was received; never, when it has none. */
async function firstReceipt(segment: Segment): Promise<number> {
  for await (const [first] of readRecords(segment, segment.base)) return first?.receivedAt ?? Infinity;
  return Infinity;
}
