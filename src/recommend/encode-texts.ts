import { LimbeckError } from '../errors.js';
import type { TextEncoder } from '../knowledge/text-encoder.js';
import { endsSentence } from '../prepare/text.js';

/** Texts of one forward pass of the encoder. */
const TEXTS_AT_ONCE = 32;

/**
 * Item features of texts, made as those of a catalogue are.
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT for an empty text, or without an encoder; ERR_DISPOSED
 */
export function encodeTexts(encoder: TextEncoder | undefined, texts: readonly string[]): Float32Array {
  if (encoder === undefined) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      'This student was made without a text encoder, so it knows only items of its catalogue.',
    );
  }
  const sentences = Array.from(texts).map(sentence); // the copy has no gaps, which map() would leave as they are
  if (sentences.length <= TEXTS_AT_ONCE) return encoder.encode(sentences);
  const size = encoder.featureSize;
  const features = new Float32Array(texts.length * size);
  for (let begin = 0; begin < texts.length; begin += TEXTS_AT_ONCE) {
    features.set(encoder.encode(sentences.slice(begin, begin + TEXTS_AT_ONCE)), begin * size);
  }
  return features;
}

/** The form that the texts of a catalogue have when their features are made. */
function sentence(text: unknown, index: number, { length }: readonly unknown[]): string {
  if (typeof text !== 'string' || text.trim() === '') {
    const which = length > 1 ? ` (text ${index} of ${length}, from 0)` : '';
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `text: expected a text that is not empty${which}`);
  }
  return endsSentence(text) ? text : `${text}.`;
}
