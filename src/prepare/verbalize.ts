import { checkObject, described } from '../arguments.js';
import { LimbeckError } from '../errors.js';
import { createPacer } from '../formats/pacer.js';
import { checkDataset, type Dataset } from './dataset.js';
import type { Item } from './items.js';
import { endsSentence } from './text.js';

const DEFAULT_MAX_HISTORY = 20;

export interface HistoryOptions {
  /** Items of the end of the training part to tell. ≥ 1. @defaultValue 20 */
  readonly maxHistory?: number;
}

/** An item as a sentence: its text, with a full stop unless it ends one itself. */
export function itemSentence(item: Item): string {
  checkObject(item, 'item', 'an item with a text', ['text']);
  if (typeof item.text !== 'string') {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `item.text: expected a text, got ${described(item.text)}`);
  }
  return asSentence(item.text);
}

/**
 * Each user's history as a line of text for the language model, oldest item first: `first; second; third.`
 * Only the training part is told, so no validation or test item follows its history anywhere in the text. The order is
 * that of the users; those without a training part are left out.
 *
 * @throws ERR_INVALID_ARGUMENT
 */
export function historySentences(dataset: Dataset, options: HistoryOptions = {}): string[] {
  return [...eachHistory(dataset, options)];
}

/** {@link historySentences}, while the event loop turns. */
export async function historySentencesInTurns(dataset: Dataset, options: HistoryOptions): Promise<string[]> {
  const pause = createPacer();
  const sentences: string[] = [];
  for (const sentence of eachHistory(dataset, options)) {
    sentences.push(sentence);
    await pause();
  }
  return sentences;
}

function* eachHistory(dataset: Dataset, options: HistoryOptions): Generator<string> {
  checkObject(options, 'options', '{ maxHistory }');
  const { maxHistory = DEFAULT_MAX_HISTORY } = options;
  checkDataset(dataset);
  if (!Number.isInteger(maxHistory) || maxHistory < 1) {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `maxHistory: expected an integer ≥ 1, got ${maxHistory}`);
  }
  const { items, sequences, sequenceOffsets, split } = dataset;
  // Only the end of a history has a full stop.
  const texts = items.map(({ text }) => text.replace(/\.$/, ''));
  for (const [user, length] of split.trainLength.entries()) {
    if (length === 0) continue;
    const end = (sequenceOffsets[user] ?? 0) + length;
    const history = sequences.subarray(end - Math.min(length, maxHistory), end);
    yield asSentence(Array.from(history, (item) => texts[item] ?? '').join('; '));
  }
}

function asSentence(text: string): string {
  return endsSentence(text) ? text : `${text}.`;
}
