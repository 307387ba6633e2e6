/**
 * Opens a student in a thread of its own and shares its weights with the one that asked: reading, checking and indexing
 * a catalogue takes tens of milliseconds, in which the service answers.
 */
import { once } from 'node:events';
import { readlinkSync } from 'node:fs';
import { constants, setPriority } from 'node:os';
import { basename } from 'node:path';
import { parentPort, workerData } from 'node:worker_threads';
import { createEngine } from '../index.js';
import type { StudentSource } from './load-student.js';

yieldToRequests();
const { directory, version } = workerData as StudentSource;
const engine = await createEngine({ threads: 1 });
try {
  const student =
    version === undefined
      ? await engine.loadStudent(directory)
      : await (await engine.openModelRegistry(directory)).load(version);
  parentPort?.postMessage({ handle: student.share() });
  // The weights must live until the other thread has them.
  if (parentPort !== null) await once(parentPort, 'message');
  student.dispose();
} catch (error) {
  const { code, message, stack } = error as Error & { code?: string };
  parentPort?.postMessage({ error: { code, message, stack } });
} finally {
  engine.dispose();
}

/** On Linux, this thread and those that it starts run when the one that answers has nothing to do. */
function yieldToRequests(): void {
  if (process.platform !== 'linux') return;
  setPriority(Number(basename(readlinkSync('/proc/thread-self'))), constants.priority.PRIORITY_LOW);
}
