/** From a text to item features, the way the catalogue's own were made. */
import { join } from 'node:path';
import { z } from 'zod';
import { loadBinding, type NativeEngine, type NativeTextEncoder } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { checkedJson } from '../formats/checked-json.js';
import { makeDirectory, readJsonFile, writeFileAtomic } from '../formats/files.js';
import { checkFinite, readSafetensors, writeSafetensors } from '../formats/safetensors.js';
import { createTokenizer, type Tokenizer } from '../formats/tokenizer.js';
import { LanguageModel, packTexts } from '../teacher/language-model.js';
import type { TextEncoderSpec } from './fuse.js';

const JSON_FILE = 'text_encoder.json';
const TENSOR_FILE = 'text_encoder.safetensors';

const encoderSchema = z.strictObject({
  format: z.literal('limbeck-text-encoder'),
  version: z.literal(1),
  layers: z.array(z.int().min(0)).min(1),
  fusion: z.enum(['sum', 'concat']),
});

/** What another thread needs to encode with the same weights; structured-clonable. */
export interface TextEncoderHandle {
  readonly key: string;
  readonly tokenizer: object;
  readonly tokenizerConfig: object;
  readonly maxLength: number;
}

/** Encodes synchronously: one forward pass of the language model for the texts of a call. */
export class TextEncoder {
  readonly #native: NativeTextEncoder;
  readonly #tokenizer: Tokenizer;
  readonly #maxLength: number;
  /** Where the encoder was made; one that was opened from a handle has only what encodes. */
  readonly #source: { readonly model: LanguageModel; readonly spec: TextEncoderSpec } | undefined;

  private constructor(
    native: NativeTextEncoder,
    tokenizer: Tokenizer,
    maxLength: number,
    source?: { readonly model: LanguageModel; readonly spec: TextEncoderSpec },
  ) {
    this.#native = native;
    this.#tokenizer = tokenizer;
    this.#maxLength = maxLength;
    this.#source = source;
  }

  /**
   * @param model the encoder owns it from now on: dispose() frees it
   * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_SHAPE_MISMATCH when model and spec do not fit together
   */
  static create(engine: NativeEngine, model: LanguageModel, spec: TextEncoderSpec): TextEncoder {
    const { tokenizer, config } = model;
    const native = engine.createTextEncoder({ model: model.native, ...spec });
    return new TextEncoder(native, tokenizer, config.maxPositionEmbeddings, { model, spec });
  }

  /** The weights that another thread shared, without a copy. @throws LimbeckError ERR_DISPOSED */
  static open(handle: TextEncoderHandle): TextEncoder {
    const tokenizer = createTokenizer(handle.tokenizer, handle.tokenizerConfig);
    return new TextEncoder(loadBinding().openTextEncoder(handle.key), tokenizer, handle.maxLength);
  }

  /** What {@link open} takes in another thread of this process; this encoder must live until then. */
  share(): TextEncoderHandle {
    const { json, config } = this.#tokenizer;
    return { key: this.#native.share(), tokenizer: json, tokenizerConfig: config, maxLength: this.#maxLength };
  }

  /** Width f of the features. */
  get featureSize(): number {
    return this.#native.featureSize;
  }

  /** @returns features [texts, f] @throws LimbeckError ERR_INVALID_ARGUMENT for an empty text, ERR_DISPOSED */
  encode(texts: readonly string[]): Float32Array {
    const { inputIds, sequenceOffsets } = packTexts(this.#tokenizer, texts, this.#maxLength);
    return this.#native.encode({ inputIds, sequenceOffsets });
  }

  /** As {@link saveTextEncoder}. @throws LimbeckError ERR_INVALID_ARGUMENT for one that was opened from a handle */
  save(directory: string): Promise<void> {
    if (this.#source === undefined) {
      throw new LimbeckError(
        'ERR_INVALID_ARGUMENT',
        'This text encoder shares weights of another thread: save it there',
      );
    }
    return saveTextEncoder(directory, this.#source.model, this.#source.spec);
  }

  dispose(): void {
    this.#native.dispose();
    this.#source?.model.dispose();
  }
}

/**
 * Writes the language model in its own layout, and beside it how its hidden states become features.
 *
 * @throws LimbeckError ERR_NO_SPACE, ERR_IO, ERR_DISPOSED
 */
export async function saveTextEncoder(directory: string, model: LanguageModel, spec: TextEncoderSpec): Promise<void> {
  await makeDirectory(directory);
  await model.writeFiles(directory);
  const { layers, fusion, weights, mean, components } = spec;
  const json = { format: 'limbeck-text-encoder', version: 1, layers, fusion };
  await writeFileAtomic(join(directory, JSON_FILE), `${JSON.stringify(json, null, 2)}\n`);
  await writeSafetensors(join(directory, TENSOR_FILE), [
    ['weights', { shape: [weights.length], data: weights }],
    ['mean', { shape: [mean.length], data: mean }],
    ['components', { shape: [components.length / mean.length, mean.length], data: components }],
  ]);
}

/**
 * Reads what {@link saveTextEncoder} wrote.
 *
 * @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT, ERR_SAFETENSORS, ERR_CHECKPOINT_MISMATCH,
 * ERR_UNSUPPORTED_MODEL, ERR_TOKENIZER, ERR_NOT_FINITE, ERR_OUT_OF_MEMORY, ERR_IO
 */
export async function loadTextEncoder(engine: NativeEngine, directory: string): Promise<TextEncoder> {
  const path = join(directory, JSON_FILE);
  const { layers, fusion } = checkedJson(encoderSchema, await readJsonFile(path), `'${path}'`);
  const tensorPath = join(directory, TENSOR_FILE);
  const { tensors } = await readSafetensors(tensorPath);
  const floats = (name: string): Float32Array => {
    const data = tensors.get(name)?.data;
    if (!(data instanceof Float32Array) || data.length === 0) {
      throw new LimbeckError('ERR_CHECKPOINT_MISMATCH', `'${tensorPath}': expected a float32 tensor '${name}'`);
    }
    checkFinite(data, name, tensorPath);
    return data;
  };
  const spec = { layers, fusion, weights: floats('weights'), mean: floats('mean'), components: floats('components') };
  const model = await LanguageModel.load(engine, directory);
  try {
    return TextEncoder.create(engine, model, spec);
  } catch (error) {
    model.dispose();
    // Nobody gave these arguments: they are what the files say.
    const isMismatch =
      error instanceof LimbeckError && (error.code === 'ERR_INVALID_ARGUMENT' || error.code === 'ERR_SHAPE_MISMATCH');
    if (!isMismatch) throw error;
    throw new LimbeckError(
      'ERR_CHECKPOINT_MISMATCH',
      `'${path}', '${TENSOR_FILE}' and the language model beside them do not belong together: ${error.message}`,
      { cause: error },
    );
  }
}
