/** Tokenising many texts in threads beside this one, so that what takes the ids does not wait for them. */
import { existsSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { LimbeckError } from '../errors.js';
import { createPacer } from './pacer.js';
import { isReproducible, type Tokenizer } from './tokenizer.js';

/** Token ids of texts, end to end. */
export interface TokenizedTexts {
  readonly ids: Int32Array; // [N]
  readonly offsets: Int32Array; // [S + 1]
}

export interface TokenizerPoolOptions {
  /** @defaultValue one less than there are processors, at most 8; none for less than 4 million characters */
  readonly threads?: number;
}

/** What a thread is told when it starts. */
export interface TokenizerWorkerData {
  /** JSON: to clone the object for each thread takes ten times as long. */
  readonly json: string;
  readonly config: string;
}

/** What a thread says: that it is ready; the ids of the texts that it was sent; that a text has none. */
export type TokenizerReply = 'ready' | 'failed' | (TokenizedTexts & { readonly ids: Int32Array<ArrayBuffer> });

interface Job {
  readonly texts: readonly string[];
  /** With undefined when no thread could do it. */
  readonly resolve: (tokenized: TokenizedTexts | undefined) => void;
}

interface Thread {
  readonly worker: Worker;
  isReady: boolean;
  /** In the order they were sent. */
  readonly jobs: Job[];
}

/** A thread is compiled code, also where this module is not. */
const WORKER = fileURLToPath(new URL('../../dist/formats/tokenizer-worker.js', import.meta.url));
/** A second or two of one thread's work; to start another takes a quarter of one. */
const MIN_CHARACTERS = 4_000_000;
const MAX_THREADS = 8;
/** Some ten milliseconds of work. */
const JOB_CHARACTERS = 32_768;
/** One is at work while the next is on its way. */
const JOBS_A_THREAD = 2;

/**
 * Threads that tokenise. This one does what is to be done until the first of them is ready, and whatever they cannot: ids,
 * their order and errors are those of {@link Tokenizer.encode}. Threads keep the process alive only while they work.
 */
export class TokenizerPool {
  readonly #tokenizer: Tokenizer;
  readonly #threads: Thread[] = [];
  readonly #waiting: Job[] = [];
  readonly #pause = createPacer();
  #isClosed = false;

  /** @param characters how many there will be in all: for few, no thread is started */
  constructor(tokenizer: Tokenizer, characters: number, { threads }: TokenizerPoolOptions = {}) {
    this.#tokenizer = tokenizer;
    const wanted = threads ?? (characters < MIN_CHARACTERS ? 0 : Math.min(availableParallelism() - 1, MAX_THREADS));
    if (wanted === 0 || !isReproducible(tokenizer) || !existsSync(WORKER)) return;
    const workerData: TokenizerWorkerData = {
      json: JSON.stringify(tokenizer.json),
      config: JSON.stringify(tokenizer.config),
    };
    for (let i = 0; i < wanted; i++) this.#start(workerData);
  }

  /** Threads that have built the tokenizer and work. */
  get readyThreads(): number {
    return this.#threads.filter(({ isReady }) => isReady).length;
  }

  /**
   * @param check called often; what it throws ends the work
   * @throws LimbeckError ERR_TOKENIZER; ERR_DISPOSED after close()
   */
  async encode(texts: readonly string[], check: () => void = () => {}): Promise<TokenizedTexts> {
    const checkAll = () => {
      if (this.#isClosed) throw new LimbeckError('ERR_DISPOSED', 'The tokenizer pool was closed');
      check();
    };
    const encodeHere = async (some: readonly string[]): Promise<TokenizedTexts> => {
      const sequences: number[][] = [];
      for (const text of some) {
        await this.#pause();
        checkAll();
        sequences.push(this.#tokenizer.encode(text));
      }
      return packSequences(sequences);
    };
    const jobs = cut(texts);
    const replies: (TokenizedTexts | Promise<TokenizedTexts | undefined>)[] = [];
    for (const job of jobs) replies.push(this.readyThreads > 0 ? this.#ask(job) : await encodeHere(job));
    const done: TokenizedTexts[] = [];
    for (const [i, job] of jobs.entries()) {
      const reply = await replies[i];
      checkAll();
      // A text that a thread has no ids for fails here with its own error.
      done.push(reply ?? (await encodeHere(job)));
    }
    return done.length === 1 && done[0] !== undefined ? done[0] : concatenate(done);
  }

  /** Ends the threads, and the work that is not done. */
  async close(): Promise<void> {
    this.#isClosed = true;
    await Promise.all([...this.#threads].map(({ worker }) => worker.terminate()));
  }

  #ask(texts: readonly string[]): Promise<TokenizedTexts | undefined> {
    return new Promise((resolve) => {
      this.#waiting.push({ texts, resolve });
      this.#feed();
    });
  }

  #start(workerData: TokenizerWorkerData): void {
    // Flags of this process may be for its main module alone, such as --input-type.
    const options = { workerData, execArgv: [] };
    const thread: Thread = { worker: new Worker(WORKER, options), isReady: false, jobs: [] };
    this.#threads.push(thread);
    const { worker, jobs } = thread;
    worker.unref();
    worker.on('message', (reply: TokenizerReply) => {
      if (reply === 'ready') thread.isReady = true;
      else jobs.shift()?.resolve(reply === 'failed' ? undefined : reply);
      this.#feed();
    });
    worker.on('error', () => {}); // 'exit' follows
    worker.on('exit', () => {
      this.#threads.splice(this.#threads.indexOf(thread), 1);
      for (const { resolve } of jobs.splice(0)) resolve(undefined);
      this.#feed();
    });
  }

  /** Gives what waits to threads that have little to do. */
  #feed(): void {
    if (this.readyThreads === 0 || this.#isClosed) {
      for (const { resolve } of this.#waiting.splice(0)) resolve(undefined);
    }
    if (this.#isClosed) return; // threads that are being ended keep the process alive until they have
    for (let share = 1; share <= JOBS_A_THREAD; share++) {
      for (const { worker, isReady, jobs } of this.#threads) {
        if (!isReady || jobs.length >= share) continue;
        const job = this.#waiting.shift();
        if (job === undefined) break;
        jobs.push(job);
        worker.postMessage(job.texts);
      }
    }
    for (const { worker, jobs } of this.#threads) {
      if (jobs.length > 0) worker.ref();
      else worker.unref();
    }
  }
}

/** Ids of texts by threads where there are enough texts to pay for them. @throws LimbeckError ERR_TOKENIZER */
export async function encodeTexts(tokenizer: Tokenizer, texts: readonly string[]): Promise<TokenizedTexts> {
  const pool = new TokenizerPool(tokenizer, countCharacters(texts));
  try {
    return await pool.encode(texts);
  } finally {
    await pool.close();
  }
}

export function countCharacters(texts: readonly string[]): number {
  return texts.reduce((sum, text) => sum + text.length, 0);
}

export function packSequences(sequences: readonly (readonly number[])[]): TokenizedTexts & {
  readonly ids: Int32Array<ArrayBuffer>;
} {
  const offsets = new Int32Array(sequences.length + 1);
  sequences.forEach((ids, i) => {
    offsets[i + 1] = (offsets[i] ?? 0) + ids.length;
  });
  const ids = new Int32Array(offsets[sequences.length] ?? 0);
  sequences.forEach((sequence, i) => {
    ids.set(sequence, offsets[i]);
  });
  return { ids, offsets };
}

/** Runs of texts of about {@link JOB_CHARACTERS}. */
function cut(texts: readonly string[]): string[][] {
  const jobs: string[][] = [];
  let characters = Number.POSITIVE_INFINITY;
  for (const text of texts) {
    if (characters >= JOB_CHARACTERS) {
      jobs.push([]);
      characters = 0;
    }
    jobs.at(-1)?.push(text);
    characters += text.length;
  }
  return jobs;
}

function concatenate(parts: readonly TokenizedTexts[]): TokenizedTexts {
  const ids = new Int32Array(parts.reduce((sum, part) => sum + part.ids.length, 0));
  const offsets = new Int32Array(parts.reduce((sum, part) => sum + part.offsets.length - 1, 1));
  let text = 0;
  let token = 0;
  for (const part of parts) {
    ids.set(part.ids, token);
    for (let i = 1; i < part.offsets.length; i++) offsets[++text] = token + (part.offsets[i] ?? 0);
    token += part.ids.length;
  }
  return { ids, offsets };
}
