/**
 * Opens a student in a thread of its own and shares its weights with the one that asked: reading, checking and indexing
 * a catalogue takes tens of milliseconds, in which the service answers.
 */
import { once } from 'node:events';
import { readlinkSync } from 'node:fs';
import { constants, setPriority } from 'node:os';
import { basename } from 'node:path';
import { parentPort, workerData } from 'node:worker_threads';
import type { LoadMessage, StudentSource } from './load-student.js';

/** To take 10,000 at once would keep the thread that answers for a dozen milliseconds. */
const ITEMS_A_MESSAGE = 50;

yieldToRequests();
// Not before: opening the modules is work, too.
const { createEngine } = await import('../index.js');
const { directory, version } = workerData as StudentSource;
const engine = await createEngine({ device: 'cpu', threads: 1 });
try {
  const student =
    version === undefined
      ? await engine.loadStudent(directory)
      : await (await engine.openModelRegistry(directory)).load(version);
  // A student that was just loaded has no gaps: its items are all there is.
  const { items, removed: _, ...weights } = student.share();
  for (let i = 0; i < items.length; i += ITEMS_A_MESSAGE) await tell({ items: items.slice(i, i + ITEMS_A_MESSAGE) });
  // The weights live here until the other thread has them.
  await tell({ weights });
  student.dispose();
} catch (error) {
  const { code, message, stack } = error as Error & { code?: string };
  parentPort?.postMessage({ error: { code, message, stack } } as LoadMessage);
} finally {
  engine.dispose();
}

/** Says something, and waits until the other thread has taken it. */
async function tell(message: LoadMessage): Promise<void> {
  if (parentPort === null) return;
  parentPort.postMessage(message);
  await once(parentPort, 'message');
}

/** On Linux, this thread and those that it starts run when the one that answers has nothing to do. */
function yieldToRequests(): void {
  if (process.platform !== 'linux') return;
  setPriority(Number(basename(readlinkSync('/proc/thread-self'))), constants.priority.PRIORITY_LOW);
}
