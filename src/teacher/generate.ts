/** Text from a causal language model, token by token. */
import { z } from 'zod';
import { described } from '../arguments.js';
import type { NativeTransformer } from '../binding.js';
import { LimbeckError } from '../errors.js';
import type { Tokenizer } from '../formats/tokenizer.js';
import { checkHooks, type Hooks, throwIfAborted } from '../prepare/hooks.js';
import { parseOptions } from '../prepare/parse-options.js';

const MAX_INT32 = 2 ** 31 - 1;
const count = z.int().min(0).max(MAX_INT32);

const idsShape = {
  /** ≥ 0. The model's last position ends a text too. */
  maxNewTokens: count,
  /** Before so many, the end-of-text token is not drawn. */
  minNewTokens: count.default(0),
  /** 0 = greedy. */
  temperature: z.number().min(0).max(1000).default(0),
  /** Candidates of each draw; 0 = all. */
  topK: count.default(0),
  /** Of these candidates, the fewest best whose probabilities sum to so much, in (0, 1]. */
  topP: z.number().gt(0).max(1).default(1),
  /** Logits of tokens that are in the prompt or the result: divided by it when positive, else multiplied; 1 = none. */
  repetitionPenalty: z.number().gt(0).max(1000).default(1),
  /** The same seed gives the same text. */
  seed: z.int().min(0).max(Number.MAX_SAFE_INTEGER).default(0),
  /**
   * `error` when the prompt has more tokens than the model has positions; `truncateLeft` keeps its end, so that
   * `maxNewTokens` have room. A prompt that is not cut is read whole, and its text may end early.
   */
  longPrompt: z.enum(['error', 'truncateLeft']).default('error'),
} as const;

const generateIdsOptionsSchema = z.strictObject(idsShape);
export const generateOptionsSchema = z.strictObject({
  ...idsShape,
  /** Texts that end the result, which does not hold them. */
  stop: z.array(z.string().min(1)).default([]),
});

export type GenerateIdsOptions = z.input<typeof generateIdsOptionsSchema>;
export type GenerateOptions = z.input<typeof generateOptionsSchema>;
type ResolvedIdsOptions = z.output<typeof generateIdsOptionsSchema>;

/** What generates, how many tokens it can read, and which end a text. */
export interface GenerationModel {
  readonly native: NativeTransformer;
  readonly maxPositionEmbeddings: number;
  readonly eosTokenIds: readonly number[];
}

/** A native call should not take longer: between two of them an AbortSignal is heard. */
const CALL_MS = 10;
/** Of the prompt, told to the decoder before the first new token: whether that begins with a space depends on it. */
const CONTEXT_TOKENS = 8;

/**
 * The tokens that follow `inputIds`, without the end-of-text token.
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION, ERR_ABORTED, ERR_DISPOSED, ERR_NOT_FINITE
 */
export async function* generateTokens(
  model: GenerationModel,
  inputIds: readonly number[],
  options: GenerateIdsOptions,
  hooks: Pick<Hooks, 'signal'> = {},
): AsyncGenerator<number, void, undefined> {
  checkHooks(hooks);
  const { signal } = hooks;
  const settings = parseOptions(generateIdsOptionsSchema, options, 'generate');
  const { longPrompt, ...request } = settings;
  throwIfAborted(signal);
  const generation = model.native.startGeneration({
    ...request,
    inputIds: Int32Array.from(readableIds(inputIds, settings, model.maxPositionEmbeddings)),
    eosTokenIds: Int32Array.from(model.eosTokenIds),
  });
  try {
    for (let size = 1; ; ) {
      const start = performance.now();
      const ids = await generation.next(size);
      for (const id of ids) {
        throwIfAborted(signal);
        yield id;
      }
      if (ids.length < size) return;
      size = performance.now() - start < CALL_MS / 2 ? 2 * size : size;
    }
  } finally {
    generation.dispose();
  }
}

/**
 * The text that follows a prompt, in pieces of whole characters.
 *
 * @throws as {@link generateTokens}; LimbeckError ERR_TOKENIZER
 */
export async function* generateText(
  model: GenerationModel,
  tokenizer: Tokenizer,
  prompt: string,
  options: GenerateOptions,
  hooks: Pick<Hooks, 'signal'> = {},
): AsyncGenerator<string, void, undefined> {
  const { stop, ...idsOptions } = parseOptions(generateOptionsSchema, options, 'generate');
  if (typeof prompt !== 'string') {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `prompt: expected a text, got ${described(prompt)}`);
  }
  const inputIds = tokenizer.encode(prompt);
  // Some tokenizers put an end after every text, and here it goes on.
  if (inputIds.length > 1 && inputIds.at(-1) === tokenizer.eosTokenId) inputIds.pop();
  const decoder = new StreamDecoder(tokenizer, inputIds.slice(-CONTEXT_TOKENS));
  const search = new StopSearch(stop);
  for await (const id of generateTokens(model, inputIds, idsOptions, hooks)) {
    const piece = search.add(decoder.add(id));
    if (piece !== '') yield piece;
    if (search.isFound) return;
  }
  const rest = search.add(decoder.end());
  const last = rest + search.end();
  if (last !== '') yield last;
}

function readableIds(
  inputIds: readonly number[],
  { longPrompt, maxNewTokens }: ResolvedIdsOptions,
  maxPositionEmbeddings: number,
): readonly number[] {
  if (!isTokenIds(inputIds)) {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', 'inputIds: expected a list of token ids, integers below 2^31');
  }
  const room = Math.max(1, maxPositionEmbeddings - maxNewTokens);
  if (longPrompt === 'truncateLeft' && inputIds.length > room) return inputIds.slice(-room);
  if (inputIds.length === 0) {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', 'generate: expected a prompt of at least one token, got none');
  }
  if (inputIds.length <= maxPositionEmbeddings) return inputIds;
  throw new LimbeckError(
    'ERR_INVALID_ARGUMENT',
    `generate: expected a prompt of at most ${maxPositionEmbeddings} tokens, got ${inputIds.length}; ` +
      `shorten it, or let longPrompt: 'truncateLeft' keep its end`,
  );
}

/** Whether an Int32Array takes these as they are. */
export function isTokenIds(ids: unknown): boolean {
  if (ids instanceof Int32Array) return true;
  return Array.isArray(ids) && ids.findIndex((id) => !Number.isInteger(id) || id !== (id | 0)) < 0;
}

/** Token ids to text as they come. A character whose bytes are not all there yet is held back. */
export class StreamDecoder {
  readonly #tokenizer: Tokenizer;
  /** What was decoded last, and what may change yet. */
  #window: number[];
  /** Leading tokens of the window whose text was given out before. */
  #numContext: number;
  /** Characters of the window that were given out. */
  #given: number;

  /** @param context tokens that come before, for decoders that treat the first one in a way of its own */
  constructor(tokenizer: Tokenizer, context: readonly number[] = []) {
    this.#tokenizer = tokenizer;
    this.#window = [...context];
    this.#numContext = context.length;
    this.#given = this.#decode().length;
  }

  /** The characters that are whole now. */
  add(id: number): string {
    this.#window.push(id);
    const text = this.#decode();
    // Bytes without the rest of their character are decoded as this mark.
    const whole = text.replace(/\uFFFD+$/, '');
    const piece = whole.slice(this.#given);
    if (whole.length < text.length) {
      this.#given = Math.max(this.#given, whole.length);
      return piece;
    }
    this.#window = this.#window.slice(this.#numContext);
    this.#numContext = this.#window.length;
    this.#given = this.#decode().length;
    return piece;
  }

  /** What is left when no token follows: marks in place of characters that never became whole. */
  end(): string {
    return this.#decode().slice(this.#given);
  }

  #decode(): string {
    return this.#tokenizer.decode(this.#window, { skipSpecialTokens: true });
  }
}

/** Finds the first of some texts in a stream; what may be the beginning of one is held back. */
export class StopSearch {
  readonly #texts: readonly string[];
  #held = '';
  #isFound = false;

  constructor(texts: readonly string[]) {
    this.#texts = texts;
  }

  get isFound(): boolean {
    return this.#isFound;
  }

  /** What comes before a stop, as far as that is sure. */
  add(piece: string): string {
    const text = this.#held + piece;
    const found = this.#texts.map((stop) => text.indexOf(stop)).filter((index) => index >= 0);
    this.#isFound = found.length > 0;
    const end = this.#isFound ? Math.min(...found) : text.length - this.#possibleStart(text);
    this.#held = this.#isFound ? '' : text.slice(end);
    return text.slice(0, end);
  }

  /** What was held back for nothing. */
  end(): string {
    const rest = this.#held;
    this.#held = '';
    return rest;
  }

  /** Length of the longest end of the text that a stop begins with. */
  #possibleStart(text: string): number {
    let longest = 0;
    for (const stop of this.#texts) {
      for (let length = Math.min(stop.length - 1, text.length); length > longest; length--) {
        if (text.endsWith(stop.slice(0, length))) longest = length;
      }
    }
    return longest;
  }
}
