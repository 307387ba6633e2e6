import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { type CatalogueItem, type Engine, LimbeckError, type LimbeckErrorCode, Student } from '../index.js';
import { ItemIndex } from '../recommend/item-index.js';
import type { SharedWeights } from '../recommend/student-handle.js';

/** A student directory, or a version of a registry. */
export interface StudentSource {
  readonly directory: string;
  readonly version?: string;
}

const WORKER = fileURLToPath(new URL('./student-worker.js', import.meta.url));

/** What the thread that loads says: parts of the catalogue, each when the last was taken, then the rest; or an error. */
export type LoadMessage =
  | { readonly items: readonly CatalogueItem[] }
  | { readonly weights: SharedWeights }
  | { readonly error: { readonly code?: LimbeckErrorCode; readonly message: string; readonly stack?: string } };

/**
 * Opens students, one at a time, while this thread goes on answering. The thread that loads is kept: to open the modules
 * again would take several times as long as a student. Sources that were not compiled have no worker; there, this thread
 * does it.
 */
export class StudentLoader {
  readonly #engine: Engine;
  #worker: Worker | undefined;

  constructor(engine: Engine) {
    this.#engine = engine;
  }

  /** @throws LimbeckError as loadStudent and ModelRegistry.load */
  async load(source: StudentSource): Promise<Student> {
    const { directory, version } = source;
    if (existsSync(WORKER)) return this.#loadAside(source);
    if (version === undefined) return this.#engine.loadStudent(directory);
    return (await this.#engine.openModelRegistry(directory)).load(version);
  }

  async close(): Promise<void> {
    const worker = this.#worker;
    this.#worker = undefined;
    await worker?.terminate();
  }

  async #loadAside(source: StudentSource): Promise<Student> {
    this.#worker ??= new Worker(WORKER);
    const worker = this.#worker;
    try {
      return await receive(worker, source);
    } catch (error) {
      // What state it is in is not known.
      await this.close();
      throw error;
    }
  }
}

/** Asks a worker for a student, and makes it of what the worker says. */
async function receive(worker: Worker, source: StudentSource): Promise<Student> {
  const index = new ItemIndex();
  let stop = () => {};
  const received = new Promise<Student>((resolve, reject) => {
    const onMessage = (message: LoadMessage) => {
      try {
        if ('error' in message) throw errorOf(message.error);
        if ('items' in message) {
          index.describe(message.items);
          index.add(message.items);
        } else {
          resolve(new Student(message.weights, index));
        }
        // The next part comes in another turn.
        worker.postMessage('taken');
      } catch (error) {
        reject(error);
      }
    };
    const onExit = (code: number) => {
      reject(new LimbeckError('ERR_INTERNAL', `The thread that loads ended with ${code}`));
    };
    worker.on('message', onMessage);
    worker.on('error', reject);
    worker.on('exit', onExit);
    stop = () => {
      worker.off('message', onMessage).off('error', reject).off('exit', onExit);
    };
  });
  worker.ref();
  worker.postMessage(source);
  try {
    return await received;
  } finally {
    stop();
    // One that waits does not keep the process alive.
    worker.unref();
  }
}

function errorOf({ code, message, stack }: { code?: LimbeckErrorCode; message: string; stack?: string }): Error {
  const error = code === undefined ? new Error(message) : new LimbeckError(code, message);
  if (stack !== undefined) error.stack = stack;
  return error;
}
