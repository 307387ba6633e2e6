import { join } from 'node:path';
import type { NativeEngine, NativeRecommender } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { writeDirectoryAtomic, writeFileAtomic } from '../formats/files.js';
import type { TextEncoder } from '../knowledge/text-encoder.js';
import type { SequenceModel } from '../student/sequence-model.js';

/** An item as a student knows it. */
export interface CatalogueItem {
  readonly id: string;
  readonly text: string;
}

export interface RecommendRequest {
  /**
   * What the user chose, oldest first: item ids, or the text of items that the catalogue does not have. The last
   * `maxHistory` count. Unknown ids are left out and listed in the answer.
   */
  readonly history: readonly (string | { readonly text: string })[];
  /** How many items. 1 to the size of the catalogue. @defaultValue 10 */
  readonly k?: number;
  /** Ids never to be recommended; unknown ones have no effect. The items of the history are left out in any case. */
  readonly exclude?: readonly string[];
}

export interface Recommendation {
  /** Best first; fewer than k when the catalogue is exhausted. `score` is the logit: comparable inside one answer. */
  readonly items: readonly { readonly id: string; readonly score: number }[];
  /** Ids of the history that the student does not know. */
  readonly unknownItems: readonly string[];
}

/** Names in a student directory. */
export const ITEMS_FILE = 'items.json';
export const TEXT_ENCODER_DIRECTORY = 'text_encoder';

const DEFAULT_K = 10;
const NO_FEATURES = new Float32Array(0);

/**
 * A distilled recommender, ready to serve: `recommend()` answers synchronously from memory.
 */
export class Student {
  /** The catalogue; added items come last. */
  readonly items: readonly CatalogueItem[];
  readonly #items: CatalogueItem[];
  readonly #indices: Map<string, number>;
  readonly #recommender: NativeRecommender;
  /** Reused by every call, grown when a longer one comes. */
  #history = new Int32Array(64);
  #exclude = new Int32Array(64);
  #itemIds = new Int32Array(64);
  #scores = new Float32Array(64);

  /**
   * @param model trained sequence model; the student takes a snapshot of its weights and owns it from now on
   * @param items in the order of the model's vocabulary
   * @param encoder what makes item features from texts; without it, only items of the catalogue are known
   * @throws LimbeckError ERR_CHECKPOINT_MISMATCH when items, model and encoder do not fit together
   */
  constructor(
    engine: NativeEngine,
    readonly model: SequenceModel,
    items: readonly CatalogueItem[],
    readonly encoder?: TextEncoder,
  ) {
    checkParts(model, items, encoder);
    this.#items = [...items];
    this.items = this.#items;
    this.#indices = new Map(items.map(({ id }, index) => [id, index]));
    if (this.#indices.size !== items.length) {
      throw new LimbeckError(
        'ERR_CHECKPOINT_MISMATCH',
        'Expected every item of the catalogue once; an id is repeated.',
      );
    }
    this.#recommender = engine.createRecommender(model.native);
  }

  get numItems(): number {
    return this.#items.length;
  }

  get numParameters(): number {
    return this.model.numParameters;
  }

  /**
   * The best k items after a history, on the calling thread.
   *
   * @throws LimbeckError ERR_INVALID_ARGUMENT; ERR_UNKNOWN_ITEMS when nothing in the history is known; ERR_DISPOSED
   */
  recommend(request: RecommendRequest): Recommendation {
    const { history, k = DEFAULT_K, exclude = [] } = request;
    if (!Array.isArray(history) || history.length === 0) {
      throw new LimbeckError('ERR_INVALID_ARGUMENT', 'history: expected a list of at least one item id or { text }');
    }
    if (!Array.isArray(exclude)) {
      throw new LimbeckError('ERR_INVALID_ARGUMENT', `exclude: expected a list of item ids, got ${typeof exclude}`);
    }
    if (!Number.isInteger(k) || k < 1 || k > this.#items.length) {
      const expected = `expected an integer from 1 to the size of the catalogue, ${this.#items.length}`;
      throw new LimbeckError('ERR_INVALID_ARGUMENT', `k: ${expected}, got ${String(k)}`);
    }
    const unknownItems: string[] = [];
    const texts: string[] = [];
    const length = this.#readHistory(history, texts, unknownItems);
    if (length === 0) {
      const named = unknownItems
        .slice(0, 3)
        .map((id) => `'${id}'`)
        .join(', ');
      throw new LimbeckError(
        'ERR_UNKNOWN_ITEMS',
        `None of the ${history.length} items of the history is in the catalogue (${named}). ` +
          'Give ids of the catalogue, or the text of a new item as { text }.',
      );
    }
    const features = texts.length === 0 ? NO_FEATURES : this.#encode(texts);
    const numExcluded = this.#readExclusions(length, exclude);
    if (this.#itemIds.length < k) {
      this.#itemIds = new Int32Array(2 * k);
      this.#scores = new Float32Array(2 * k);
    }
    const count = this.#recommender.recommend({
      history: this.#history.subarray(0, length),
      exclude: this.#exclude.subarray(0, numExcluded),
      k,
      itemIds: this.#itemIds,
      scores: this.#scores,
      features,
    });
    const items = new Array<{ id: string; score: number }>(count);
    for (let i = 0; i < count; i++) {
      items[i] = { id: this.#items[this.#itemIds[i] ?? 0]?.id ?? '', score: this.#scores[i] ?? 0 };
    }
    return { items, unknownItems };
  }

  /**
   * Puts new items into the catalogue by their text alone: they can be recommended at once.
   *
   * @throws LimbeckError ERR_INVALID_ARGUMENT for an id that is there already, or a student without a text encoder
   */
  addItems(items: readonly CatalogueItem[]): void {
    if (items.length === 0) return;
    const ids = new Set<string>();
    for (const { id } of items) {
      if (ids.has(id) || this.#indices.has(id)) {
        throw new LimbeckError('ERR_INVALID_ARGUMENT', `addItems: the catalogue has an item '${id}' already`);
      }
      ids.add(id);
    }
    const features = this.#encode(items.map(({ text }) => text));
    const first = this.#recommender.addItems(features);
    items.forEach((item, i) => {
      this.#items.push({ id: item.id, text: item.text });
      this.#indices.set(item.id, first + i);
    });
    this.model.appendItems(features);
  }

  /** Index of an item in `items`, or undefined. */
  indexOf(id: string): number | undefined {
    return this.#indices.get(id);
  }

  /**
   * Writes a student directory, whole or not at all: the sequence model's files, the catalogue, and the text encoder
   * where there is one. What the directory held before is replaced.
   *
   * @throws LimbeckError ERR_NO_SPACE, ERR_IO, ERR_DISPOSED
   */
  async save(directory: string): Promise<void> {
    await writeDirectoryAtomic(directory, async (temporary) => {
      await this.model.writeFiles(temporary);
      await writeFileAtomic(join(temporary, ITEMS_FILE), `${JSON.stringify(this.items)}\n`);
      await this.encoder?.save(join(temporary, TEXT_ENCODER_DIRECTORY));
    });
  }

  dispose(): void {
    this.#recommender.dispose();
    this.model.dispose();
    this.encoder?.dispose();
  }

  /** Fills #history: indices of known items; −1 − j for the j-th text. Returns its length. */
  #readHistory(history: RecommendRequest['history'], texts: string[], unknownItems: string[]): number {
    if (this.#history.length < history.length) this.#history = new Int32Array(2 * history.length);
    let length = 0;
    for (const entry of history) {
      if (typeof entry === 'string') {
        const index = this.#indices.get(entry);
        if (index === undefined) unknownItems.push(entry);
        else this.#history[length++] = index;
      } else if (typeof entry?.text === 'string') {
        texts.push(entry.text);
        this.#history[length++] = -texts.length;
      } else {
        throw new LimbeckError('ERR_INVALID_ARGUMENT', `history: expected item ids or { text }, got ${typeof entry}`);
      }
    }
    return length;
  }

  /** Fills #exclude with the items of the history and those named. Returns its length. */
  #readExclusions(historyLength: number, exclude: readonly string[]): number {
    const most = historyLength + exclude.length;
    if (this.#exclude.length < most) this.#exclude = new Int32Array(2 * most);
    let count = 0;
    for (let i = 0; i < historyLength; i++) {
      const index = this.#history[i] ?? 0;
      if (index >= 0) this.#exclude[count++] = index;
    }
    for (const id of exclude) {
      const index = this.#indices.get(id);
      if (index !== undefined) this.#exclude[count++] = index;
    }
    return count;
  }

  #encode(texts: readonly string[]): Float32Array {
    if (this.encoder === undefined) {
      throw new LimbeckError(
        'ERR_INVALID_ARGUMENT',
        'This student was made without a text encoder, so it knows only items of its catalogue.',
      );
    }
    return this.encoder.encode(texts);
  }
}

function checkParts(model: SequenceModel, items: readonly CatalogueItem[], encoder: TextEncoder | undefined): void {
  if (items.length !== model.numItems) {
    throw new LimbeckError(
      'ERR_CHECKPOINT_MISMATCH',
      `The model knows ${model.numItems} items and the catalogue lists ${items.length}`,
    );
  }
  if (encoder !== undefined && encoder.featureSize !== model.config.itemFeatureSize) {
    throw new LimbeckError(
      'ERR_CHECKPOINT_MISMATCH',
      `The text encoder gives ${encoder.featureSize} features and the model takes ${model.config.itemFeatureSize}`,
    );
  }
}
