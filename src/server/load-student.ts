import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { type Engine, LimbeckError, type LimbeckErrorCode, Student, type StudentHandle } from '../index.js';

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

type Message =
  | { readonly handle: StudentHandle; readonly error?: undefined }
  | { readonly error: { readonly code?: LimbeckErrorCode; readonly message: string; readonly stack?: string } };

function loadInWorker(source: StudentSource): Promise<Student> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(WORKER, { workerData: source });
    worker.once('message', (message: Message) => {
      try {
        if (message.error !== undefined) throw errorOf(message.error);
        resolve(Student.fromHandle(message.handle));
      } catch (error) {
        reject(error);
      }
      worker.postMessage('opened');
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
