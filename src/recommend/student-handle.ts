import type { TextEncoderHandle } from '../knowledge/text-encoder.js';
import type { CatalogueItem } from './item-index.js';

/** What a student is besides its catalogue. */
export interface SharedWeights {
  readonly key: string;
  readonly encoder: TextEncoderHandle | undefined;
  readonly hasPopularity: boolean;
  readonly topicNames: readonly string[];
  readonly numParameters: number;
}

/**
 * Names a student's weights in this process. Post it to a worker thread, which opens it with
 * {@link Student.fromHandle}; its fields are nobody's business.
 */
export interface StudentHandle extends SharedWeights {
  readonly items: readonly CatalogueItem[];
  /** Slots of removed items. */
  readonly removed: Int32Array;
}
