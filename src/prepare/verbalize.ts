import { LimbeckError } from '../errors.js';
import type { Dataset } from './dataset.js';
import type { Item } from './items.js';
import { endsSentence } from './text.js';

const DEFAULT_MAX_HISTORY = 20;

/** An item as a sentence: its text, with a full stop unless it ends one itself. */
export function itemSentence(item: Item): string {
  return endsSentence(item.text) ? item.text : `${item.text}.`;
}

/**
 * Each user's history as a line of text for the language model, oldest item first: `first; second; third.`
 * Only the training part is told, so no validation or test item follows its history anywhere in the text. The order is
 * that of the users; those without a training part are left out.
 *
 * @param options.maxHistory items of the end of the training part to tell. ≥ 1. @defaultValue 20
 * @throws ERR_INVALID_ARGUMENT
 */
export function historySentences(dataset: Dataset, options: { readonly maxHistory?: number } = {}): string[] {
  const maxHistory = options.maxHistory ?? DEFAULT_MAX_HISTORY;
  if (!Number.isInteger(maxHistory) || maxHistory < 1) {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `maxHistory: expected an integer ≥ 1, got ${maxHistory}`);
  }
  const sentences: string[] = [];
  dataset.split.trainLength.forEach((length, user) => {
    if (length === 0) return;
    const end = (dataset.sequenceOffsets[user] ?? 0) + length;
    const history = dataset.sequences.subarray(end - Math.min(length, maxHistory), end);
    sentences.push(verbalizeHistory(Array.from(history, (item) => dataset.items[item]?.text ?? '')));
  });
  return sentences;
}

/** Item texts, oldest first, as one sentence. A text's own full stop is left out, so that only the end has one. */
export function verbalizeHistory(texts: readonly string[]): string {
  const sentence = texts.map((text) => text.replace(/\.$/, '')).join('; ');
  return endsSentence(sentence) ? sentence : `${sentence}.`;
}
