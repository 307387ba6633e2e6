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

/**
 * Opens a student while this thread goes on answering. Sources that were not compiled have no worker; there, this thread
 * does it.
 *
 * @throws LimbeckError as loadStudent and ModelRegistry.load
 */
export async function loadStudentAside(engine: Engine, source: StudentSource): Promise<Student> {
  const { directory, version } = source;
  if (existsSync(WORKER)) return loadInWorker(source);
  if (version === undefined) return engine.loadStudent(directory);
  return (await engine.openModelRegistry(directory)).load(version);
}

/** What the thread that loads says: parts of the catalogue, each when the last was taken, then the rest; or an error. */
export type LoadMessage =
  | { readonly items: readonly CatalogueItem[] }
  | { readonly weights: SharedWeights }
  | { readonly error: { readonly code?: LimbeckErrorCode; readonly message: string; readonly stack?: string } };

function loadInWorker(source: StudentSource): Promise<Student> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(WORKER, { workerData: source });
    const index = new ItemIndex();
    worker.on('message', (message: LoadMessage) => {
      try {
        if ('error' in message) throw errorOf(message.error);
        if ('items' in message) {
          index.describe(message.items);
          index.add(message.items);
        } else {
          resolve(new Student(message.weights, index));
        }
      } catch (error) {
        reject(error);
      }
      // The next part comes in another turn.
      worker.postMessage('taken');
    });
    worker.once('error', reject);
    worker.once('exit', (code) => reject(new LimbeckError('ERR_INTERNAL', `The thread that loads ended with ${code}`)));
  });
}

function errorOf({ code, message, stack }: { code?: LimbeckErrorCode; message: string; stack?: string }): Error {
  const error = code === undefined ? new Error(message) : new LimbeckError(code, message);
  if (stack !== undefined) error.stack = stack;
  return error;
}
