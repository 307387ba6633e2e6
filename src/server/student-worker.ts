/**
 * Opens students in a thread of its own, one after the other, and shares their weights with the thread that asks for
 * them: reading, checking and indexing a catalogue takes tens of milliseconds, in which the service answers.
 */
import { on } from 'node:events';
import { readlinkSync } from 'node:fs';
import { constants, setPriority } from 'node:os';
import { basename } from 'node:path';
import { type MessagePort, parentPort } from 'node:worker_threads';
import type { LoadMessage, StudentSource } from './load-student.js';

/** To take 10,000 at once would keep the thread that answers for a dozen milliseconds. */
const ITEMS_A_MESSAGE = 50;

yieldToRequests();
// Not before: opening the modules is work, too.
const { createEngine } = await import('../index.js');
const port = parentPort as MessagePort;
const messages = on(port, 'message');
const engine = await createEngine({ device: 'cpu', threads: 1 });
for (;;) await load(await next());

async function load({ directory, version }: StudentSource): Promise<void> {
  try {
    const student =
      version === undefined
        ? await engine.loadStudent(directory)
        : await (await engine.openModelRegistry(directory)).load(version);
    student.nameItems();
    // A student that was just loaded has no gaps: its items are all there is.
    const { items, removed: _, ...weights } = student.share();
    for (let i = 0; i < items.length; i += ITEMS_A_MESSAGE) await tell({ items: items.slice(i, i + ITEMS_A_MESSAGE) });
    // The weights live here until the other thread has them.
    await tell({ weights });
    student.dispose();
  } catch (error) {
    const { code, message, stack } = error as Error & { code?: string };
    port.postMessage({ error: { code, message, stack } } as LoadMessage);
  }
}

async function next() {
  const { value } = await messages.next();
  return value[0];
}

/** Says something, and waits until the other thread has taken it. */
async function tell(message: LoadMessage): Promise<void> {
  port.postMessage(message);
  await next();
}

/** On Linux, this thread and those that it starts run when the one that answers has nothing to do. */
function yieldToRequests(): void {
  if (process.platform !== 'linux') return;
  setPriority(Number(basename(readlinkSync('/proc/thread-self'))), constants.priority.PRIORITY_LOW);
}
