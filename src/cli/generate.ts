import type { Readable } from 'node:stream';
import { createEngine, type EngineOptions } from '../engine.js';
import { LimbeckError } from '../errors.js';
import { throwIfAborted } from '../prepare/hooks.js';
import { parseOptions } from '../prepare/parse-options.js';
import { generateOptionsSchema } from '../teacher/generate.js';
import { type LongCommandContext, printable } from './output.js';
import { showProgress } from './progress.js';

export interface GenerateFlags {
  readonly maxNewTokens: number;
  readonly minNewTokens?: number;
  readonly temperature?: number;
  readonly topK?: number;
  readonly topP?: number;
  readonly repetitionPenalty?: number;
  readonly seed?: number;
  readonly stop?: readonly string[];
  /** Checked with the other options. */
  readonly longPrompt?: string;
  readonly threads?: number;
  /** Both checked by the engine. */
  readonly precision?: string;
  readonly device?: string;
  readonly quiet?: boolean;
  readonly json?: boolean;
}

/** What a prompt from stdin may have; the longest contexts of today have some megabytes. */
const MAX_PROMPT_BYTES = 2 ** 26;

/**
 * `limbeck generate MODEL PROMPT…`: the text that follows the prompt, on stdout while it grows; with `--json`, at its end.
 *
 * @param words the prompt's, joined by spaces; a single `-` stands for what stdin holds
 * @param stdin @defaultValue that of the process
 */
export async function generateCommand(
  source: string,
  words: readonly string[],
  flags: GenerateFlags,
  { streams, signal }: LongCommandContext,
  stdin?: Readable,
): Promise<void> {
  const { json = false, quiet, device, precision, threads, ...given } = flags;
  // A wrong option should not wait for a download.
  const options = parseOptions(generateOptionsSchema, given, 'generate');
  const isFromStdin = words.length === 1 && words[0] === '-';
  const prompt = isFromStdin ? await readPrompt(stdin ?? process.stdin, signal) : words.join(' ');
  const engine = await createEngine({
    ...(threads === undefined ? {} : { threads }),
    ...(precision === undefined ? {} : { precision: precision as EngineOptions['precision'] }),
    ...(device === undefined ? {} : { device: device as EngineOptions['device'] }),
  });
  const progress = quiet ? undefined : showProgress(streams);
  try {
    const model = await engine.loadLanguageModel(source, { signal, onProgress: progress?.onProgress });
    progress?.close();
    if (json) {
      const text = await model.generate(prompt, options, { signal });
      streams.stdout.write(`${JSON.stringify({ prompt, text, options })}\n`);
    } else {
      await writePieces(model.streamText(prompt, options, { signal }), streams.stdout);
    }
  } finally {
    progress?.close();
    engine.dispose();
  }
}

/** The text as it comes, and a line break at the end, even of a text that was stopped. Programs get every character. */
async function writePieces(
  pieces: AsyncIterable<string>,
  stdout: LongCommandContext['streams']['stdout'],
): Promise<void> {
  let isLineOpen = false;
  try {
    for await (const piece of pieces) {
      // The reader left, as in `limbeck generate … | head`.
      if (stdout.writable === false) return;
      isLineOpen = true;
      stdout.write(stdout.isTTY ? printable(piece) : piece);
    }
    isLineOpen = true;
  } finally {
    if (isLineOpen && stdout.writable !== false) stdout.write('\n');
  }
}

/** All of stdin, without one line break at its end: `echo` and editors put it there. */
async function readPrompt(stdin: Readable, signal: AbortSignal): Promise<string> {
  const chunks: Uint8Array[] = [];
  let sizeBytes = 0;
  const stop = () => stdin.destroy();
  signal.addEventListener('abort', stop);
  try {
    throwIfAborted(signal);
    for await (const chunk of stdin) {
      const bytes: Uint8Array = Buffer.from(chunk);
      chunks.push(bytes);
      sizeBytes += bytes.byteLength;
      if (sizeBytes > MAX_PROMPT_BYTES) {
        throw new LimbeckError(
          'ERR_INVALID_ARGUMENT',
          `stdin: expected a prompt of at most ${MAX_PROMPT_BYTES} bytes, got more; shorten it`,
        );
      }
    }
  } catch (error) {
    throwIfAborted(signal);
    if (error instanceof LimbeckError) throw error;
    const reason = error instanceof Error ? error.message : String(error);
    throw new LimbeckError('ERR_IO', `Cannot read the prompt from stdin: ${reason}`, { cause: error });
  } finally {
    signal.removeEventListener('abort', stop);
  }
  throwIfAborted(signal);
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(Buffer.concat(chunks)).replace(/\r?\n$/, '');
  } catch (error) {
    throw new LimbeckError('ERR_FILE_FORMAT', 'stdin is not UTF-8 text; convert it to UTF-8 first', { cause: error });
  }
}
