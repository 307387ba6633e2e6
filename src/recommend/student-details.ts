import { checkInstance, checkObject } from '../arguments.js';
import { LimbeckError } from '../errors.js';
import type { TextEncoder } from '../knowledge/text-encoder.js';
import { SequenceModel } from '../student/sequence-model.js';
import type { CatalogueItem } from './item-index.js';
import type { StudentTopics } from './topics.js';

/** What a student knows beside its model. */
export interface StudentDetails {
  /** How often each item was chosen in training: for novelty and empty histories. */
  readonly popularity?: Int32Array | Float32Array | undefined; // [numItems]
  /** @defaultValue found when they are first needed */
  readonly topics?: StudentTopics | undefined;
}

/** @throws LimbeckError ERR_CHECKPOINT_MISMATCH when the parts of a student do not fit together */
export function checkParts(
  model: SequenceModel,
  items: readonly CatalogueItem[],
  encoder: TextEncoder | undefined,
  details: StudentDetails,
): void {
  checkInstance(model, SequenceModel, 'model');
  checkObject(details, 'details', '{ popularity, topics }');
  const { popularity, topics } = details;
  const { numItems } = model;
  const mismatch = (message: string) => new LimbeckError('ERR_CHECKPOINT_MISMATCH', message);
  if (items.length !== numItems) {
    throw mismatch(`The model knows ${numItems} items and the catalogue lists ${items.length}`);
  }
  const { itemFeatureSize, hiddenSize } = model.config;
  if (encoder !== undefined && encoder.featureSize !== itemFeatureSize) {
    throw mismatch(`The text encoder gives ${encoder.featureSize} features and the model takes ${itemFeatureSize}`);
  }
  if (popularity !== undefined && popularity.length !== numItems) {
    throw mismatch(`Expected how often each of the ${numItems} items was chosen, got ${popularity.length} counts`);
  }
  const wrong = popularity?.findIndex((count) => !(count >= 0 && count < 2 ** 31)) ?? -1;
  if (wrong !== -1) {
    throw mismatch(`popularity[${wrong}]: expected a count of at least 0 and below 2^31, got ${popularity?.[wrong]}`);
  }
  const width = itemFeatureSize > 0 ? itemFeatureSize : hiddenSize;
  if (topics !== undefined && topics.centroids.length !== topics.names.length * width) {
    throw mismatch(`Expected ${topics.names.length} topics × ${width}, got ${topics.centroids.length} numbers`);
  }
}
