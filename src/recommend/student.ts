import { checkList } from '../arguments.js';
import { type BatchAnswers, loadBinding, type NativeEngine, type NativeRecommender } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { TextEncoder } from '../knowledge/text-encoder.js';
import type { SequenceModel } from '../student/sequence-model.js';
import type { Interest, RankedItem, Recommendation, RecommendedItem } from './answers.js';
import { type BatchRecommendation, type BatchRequest, batchAnswer, checkBatch, mapIndices, slotsOf } from './batch.js';
import { encodeTexts } from './encode-texts.js';
import { explanations } from './explain.js';
import { type CatalogueItem, checkItems, ItemIndex } from './item-index.js';
import { MAX_BATCH_K, PackedBatch } from './packed-batch.js';
import {
  checkKeys,
  type History,
  PackedRequest,
  REQUEST_KEYS,
  type RecommendRequest,
  type SearchOptions,
  type SelectionOptions,
} from './request.js';
import { checkParts, type StudentDetails } from './student-details.js';
import { saveStudent } from './student-files.js';
import type { SharedWeights, StudentHandle } from './student-handle.js';
import { nameTopics, numTopicsFor } from './topics.js';
import { requestOfUser, type UserHistories } from './users.js';

const TOPIC_SEED = 0;
const DEFAULT_INTERESTS = 5;

/**
 * A distilled recommender, ready to serve: every call answers synchronously from memory, on the calling thread.
 */
export class Student {
  /** Whose histories requests with a `userId` have: the UserStates of an event store, say. */
  users: UserHistories | undefined;
  readonly #index: ItemIndex;
  readonly #recommender: NativeRecommender;
  readonly #model: SequenceModel | undefined;
  readonly #numParameters: number | undefined;
  readonly #packed = new PackedRequest();
  /** Counts of the items that the student was made with. */
  readonly #popularity: Float32Array | undefined;
  readonly #hasPopularity: boolean;
  #topicNames: readonly string[] | undefined;
  #itemTopics: Int32Array | undefined;

  /**
   * @param model trained sequence model; the student takes a snapshot of its weights and owns it from now on
   * @param items in the order of the model's vocabulary
   * @param encoder what makes item features from texts; without it, only items of the catalogue are known
   * @throws LimbeckError ERR_CHECKPOINT_MISMATCH when items, model, encoder and details do not fit together;
   * ERR_INVALID_ARGUMENT for an item that is malformed
   */
  constructor(
    engine: NativeEngine,
    model: SequenceModel,
    items: readonly CatalogueItem[],
    encoder?: TextEncoder,
    details?: StudentDetails,
  );
  /** @internal The index is of the handle's items. */
  constructor(handle: SharedWeights, index: ItemIndex);
  constructor(
    source: NativeEngine | SharedWeights,
    model: SequenceModel | ItemIndex,
    items: readonly CatalogueItem[] = [],
    readonly encoder?: TextEncoder,
    details: StudentDetails = {},
  ) {
    if (model instanceof ItemIndex) {
      const handle = source as SharedWeights;
      this.#index = model;
      this.#recommender = loadBinding().openRecommender(handle.key);
      if (this.#recommender.numItems !== model.numSlots) throw notShared();
      if (handle.encoder !== undefined) this.encoder = TextEncoder.open(handle.encoder);
      this.#hasPopularity = handle.hasPopularity;
      this.#topicNames = handle.topicNames;
      this.#numParameters = handle.numParameters;
      return;
    }
    checkItems(items);
    checkParts(model, items, encoder, details);
    this.#index = new ItemIndex();
    const descriptions = this.#index.describe(items);
    this.#index.add(items);
    if (this.#index.size !== items.length) {
      throw new LimbeckError(
        'ERR_CHECKPOINT_MISMATCH',
        'Expected every item of the catalogue once; an id is repeated.',
      );
    }
    this.#model = model;
    this.#recommender = (source as NativeEngine).createRecommender(model.native);
    this.#recommender.describeItems(descriptions);
    this.#hasPopularity = details.popularity !== undefined;
    if (details.popularity !== undefined) {
      this.#popularity = Float32Array.from(details.popularity);
      this.#recommender.setPopularity(this.#popularity);
    }
    if (details.topics !== undefined) {
      this.#recommender.setTopics(details.topics.centroids);
      this.#topicNames = details.topics.names;
    }
  }

  /**
   * A student over the weights that another thread shares, without a copy of them; its catalogue is the one that the
   * handle was made with, and adding or removing items here changes nothing there. It needs no engine and has no
   * `model`, so it cannot be saved.
   *
   * @throws LimbeckError ERR_DISPOSED when no student with these weights lives any more, or the catalogue of the one that
   * shared them changed first; ERR_INVALID_ARGUMENT
   */
  static fromHandle(handle: StudentHandle): Student {
    const isWhole = Array.isArray(handle?.items) && handle.removed instanceof Int32Array;
    const keys: unknown[] = [handle?.key, handle?.encoder === undefined ? '' : handle.encoder?.key];
    if (!isWhole || keys.some((key) => typeof key !== 'string')) throw notShared();
    return new Student(handle, ItemIndex.of(handle.items, handle.removed));
  }

  /** The catalogue; added items come last. */
  get items(): readonly CatalogueItem[] {
    return this.#index.items;
  }

  get numItems(): number {
    return this.#index.size;
  }

  get numParameters(): number {
    return this.#numParameters ?? this.model.numParameters;
  }

  /** The trained model. @throws LimbeckError ERR_INVALID_ARGUMENT for a student opened from a handle */
  get model(): SequenceModel {
    if (this.#model !== undefined) return this.#model;
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      'This student shares the weights of another thread and has no model of its own: train and save that one.',
    );
  }

  /** Whether the student knows how popular its items are: what `novelty` and empty histories need. */
  get hasPopularity(): boolean {
    return this.#hasPopularity;
  }

  /**
   * The best k items after a history, or for one of the {@link users}.
   *
   * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION; ERR_UNKNOWN_ITEMS when nothing in the history is known
   * and the student has no popularity to fall back to; ERR_NOT_FINITE when scores overflow; ERR_DISPOSED
   */
  recommend(asked: RecommendRequest): Recommendation {
    checkKeys('recommend', asked, REQUEST_KEYS.recommend);
    const request = asked.userId === undefined ? asked : requestOfUser(asked, this.users);
    const packed = this.#packed;
    packed.pack(this.#index, request.history, request, request, true);
    if (packed.historyLength === 0) this.#refuseUnanswerable(request.history);
    const features = this.#historyFeatures();
    const { ints, numbers, itemIds, scores, unknownItems } = packed;
    const count = this.#recommender.serve(ints, numbers, itemIds, scores, features);
    if (request.explain === true && packed.historyLength > 0) {
      return { items: this.#explain(count, features), unknownItems };
    }
    return { items: this.#rankedItems(count), unknownItems };
  }

  /**
   * {@link recommend} for requests that came together: an answer for each, or what it would have thrown. Those without
   * filters, candidates, boosts, explanations and texts search the catalogue together.
   */
  recommendAll(asked: readonly RecommendRequest[]): (Recommendation | Error)[] {
    const requests = this.#withHistories(asked);
    const batch = new PackedBatch(this.#index, requests, this.#hasPopularity);
    const answers = batch.size > 1 ? this.#serveAll(batch) : undefined;
    return requests.map((request, i) => {
      const row = batch.rowOf(i);
      return row >= 0 && answers !== undefined ? batch.answer(row, answers) : this.#tryRecommend(request);
    });
  }

  /**
   * {@link recommendAll}, while this thread goes on: requests that search the catalogue together do so on another one,
   * which takes such calls one after the other. What changes in the catalogue meanwhile is not in their answers.
   */
  async recommendAllAside(asked: readonly RecommendRequest[]): Promise<(Recommendation | Error)[]> {
    const requests = this.#withHistories(asked);
    const batch = new PackedBatch(this.#index, requests, this.#hasPopularity);
    if (batch.size === 0) return requests.map((request) => this.#tryRecommend(request));
    const search = this.#recommender.serveAllAside(batch.requests, batch.weights);
    const others = this.#answerOthers(requests, batch);
    const answers = await search.catch(undefinedIfNotFinite);
    return others.map(
      (answer, i) =>
        answer ??
        (answers ? batch.answer(batch.rowOf(i), answers) : this.#tryRecommend(requests[i] as RecommendRequest)),
    );
  }

  /**
   * {@link recommendAllAside} for those who send answers on as JSON: where requests searched together, they are
   * `"items":[…],"unknownItems":[…]`.
   */
  async answerAllAside(asked: readonly RecommendRequest[]): Promise<(string | Recommendation | Error)[]> {
    this.nameItems();
    const requests = this.#withHistories(asked);
    const batch = new PackedBatch(this.#index, requests, this.#hasPopularity);
    if (batch.size === 0) return requests.map((request) => this.#tryRecommend(request));
    const unknown = batch.unknownItems.map(jsonOf);
    const search = this.#recommender.answerAllAside(batch.requests, batch.weights, unknown);
    const others = this.#answerOthers(requests, batch);
    const texts = await search.catch(undefinedIfNotFinite);
    return others.map(
      (answer, i) => answer ?? texts?.[batch.rowOf(i)] ?? this.#tryRecommend(requests[i] as RecommendRequest),
    );
  }

  /**
   * Answers to requests that came as JSON, for those who send them on as JSON: of bodies that are an object of `history`,
   * a list of ids, and perhaps `k` (up to 64) and `exclude`, without escapes or letters beyond ASCII. Neither they nor
   * their answers become objects, which takes half as long as the model.
   *
   * @param rows [bodies.length] is told which answer is whose; −1 = the body is another one, or no id of its history is
   * known: parse it, and call {@link recommendAll}
   * @returns `"items":[…],"unknownItems":[…]` of {@link recommend} for each
   */
  answerTexts(bodies: readonly Uint8Array[], rows: Int32Array): string[] {
    this.nameItems();
    try {
      return this.#recommender.answerTexts(bodies, this.#largestBatchK(), rows);
    } catch (error) {
      undefinedIfNotFinite(error);
      rows.fill(-1);
      return [];
    }
  }

  /**
   * {@link answerTexts} as {@link recommendAllAside}; `rows` are told before this returns.
   *
   * @throws LimbeckError ERR_NOT_FINITE when the scores of one overflow
   */
  async answerTextsAside(bodies: readonly Uint8Array[], rows: Int32Array): Promise<string[]> {
    this.nameItems();
    return this.#recommender.answerTextsAside(bodies, this.#largestBatchK(), rows);
  }

  /**
   * Prepares {@link answerTexts}, which otherwise does so when it is called first: some milliseconds for 10,000 items.
   * Handles that are shared afterwards are prepared, too.
   */
  nameItems(): void {
    if (this.#recommender.hasNames) return;
    this.#recommender.nameItems(this.#index.slots.map(({ id }) => JSON.stringify(id)));
    this.#recommender.hideItems(this.#index.removedSlots());
  }

  #largestBatchK(): number {
    return Math.min(MAX_BATCH_K, this.#index.size);
  }

  #answerOthers(requests: readonly RecommendRequest[], batch: PackedBatch): (Recommendation | Error | undefined)[] {
    return requests.map((request, i) => (batch.rowOf(i) >= 0 ? undefined : this.#tryRecommend(request)));
  }

  /** Those of users have their histories; what is wrong with one says {@link recommend}. */
  #withHistories(requests: readonly RecommendRequest[]): readonly RecommendRequest[] {
    checkList(requests, 'recommendAll', 'a list');
    if (requests.every((request) => request?.userId === undefined)) return requests;
    return requests.map((request) => {
      if (request?.userId === undefined) return request;
      try {
        return requestOfUser(request, this.users);
      } catch (error) {
        if (error instanceof LimbeckError) return request;
        throw error;
      }
    });
  }

  #serveAll(batch: PackedBatch): BatchAnswers | undefined {
    try {
      return this.#recommender.serveAll(batch.requests, batch.weights);
    } catch (error) {
      return undefinedIfNotFinite(error);
    }
  }

  #tryRecommend(request: RecommendRequest): Recommendation | Error {
    try {
      return this.recommend(request);
    } catch (error) {
      if (error instanceof LimbeckError) return error;
      throw error;
    }
  }

  /** {@link recommend} for many histories of catalogue items at once, from and to typed arrays. */
  recommendBatch(request: BatchRequest): BatchRecommendation {
    checkKeys('recommendBatch', request, REQUEST_KEYS.recommendBatch);
    checkBatch(request);
    const packed = this.#packed;
    packed.pack(this.#index, [], request, request, false);
    const answer = batchAnswer(request, packed.k);
    const hasGaps = this.#index.numRemoved > 0;
    const histories = hasGaps ? slotsOf(request.histories, this.#index.liveSlots) : request.histories;
    const { ints, numbers } = packed;
    this.#recommender.serveBatch(ints, numbers, histories, request.offsets, answer.itemIndices, answer.scores);
    if (hasGaps) answer.itemIndices.set(mapIndices(answer.itemIndices, this.#index.positions));
    return answer;
  }

  /**
   * Items like one item, by the cosine of their vectors: those that the same users choose.
   *
   * @throws LimbeckError ERR_UNKNOWN_ITEMS, ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION, ERR_NOT_FINITE, ERR_DISPOSED
   */
  similar(id: string, options: SelectionOptions = {}): RankedItem[] {
    checkKeys('similar', options, REQUEST_KEYS.similar);
    const slot = this.#index.slotOf(id);
    if (slot === undefined) throw new LimbeckError('ERR_UNKNOWN_ITEMS', `The catalogue has no item '${String(id)}'`);
    this.#packed.pack(this.#index, [], options, undefined, false);
    const { ints, numbers, itemIds, scores } = this.#packed;
    return this.#rankedItems(this.#recommender.similar(slot, ints, numbers, itemIds, scores));
  }

  /**
   * Items whose text is about the same as the query, to the language model; with a history, what suits its taste comes
   * first. `score` is in standard deviations of the catalogue.
   *
   * @throws LimbeckError ERR_INVALID_ARGUMENT, also for an empty text, or a student without a text encoder;
   * ERR_UNKNOWN_OPTION, ERR_NOT_FINITE, ERR_DISPOSED
   */
  search(text: string, options: SearchOptions = {}): RankedItem[] {
    checkKeys('search', options, REQUEST_KEYS.search);
    const query = this.#encode([text]);
    this.#packed.pack(this.#index, options.history ?? [], options, undefined, false);
    const features = this.#historyFeatures();
    const { ints, numbers, itemIds, scores } = this.#packed;
    return this.#rankedItems(this.#recommender.search(query, ints, numbers, itemIds, scores, features));
  }

  /**
   * What a user is interested in, by the topics that the language model's knowledge divides the catalogue into; largest
   * weight first.
   *
   * @param options.k how many. ≥ 1. @defaultValue 5
   * @throws LimbeckError as {@link recommend}
   */
  interests(history: History, options: { readonly k?: number | undefined } = {}): Interest[] {
    checkKeys('interests', options, REQUEST_KEYS.interests);
    const { k = DEFAULT_INTERESTS } = options;
    if (!Number.isInteger(k) || k < 1) {
      throw new LimbeckError('ERR_INVALID_ARGUMENT', `k: expected an integer of at least 1, got ${String(k)}`);
    }
    const { names, itemTopics } = this.#topics();
    this.#packed.pack(this.#index, history, { k: 1 }, undefined, false);
    if (this.#packed.historyLength === 0) this.#refuseUnanswerable(history);
    const { ints, numbers } = this.#packed;
    const features = this.#historyFeatures();
    const weights = this.#recommender.interests(ints, numbers, features);
    const entries = this.#entries(features, itemTopics);
    const order = Array.from(weights.keys()).sort((a, b) => (weights[b] ?? 0) - (weights[a] ?? 0) || a - b);
    return order.slice(0, k).map((topic) => {
      const own = entries.filter((entry) => entry.topic === topic).reverse();
      return { name: names[topic] ?? '', weight: weights[topic] ?? 0, items: own.map(({ item }) => item) };
    });
  }

  /** The item features of texts: what the language model knows of them. @throws as {@link search} */
  embed(texts: readonly string[]): Float32Array[] {
    checkList(texts, 'embed', 'a list');
    if (texts.length === 0) return [];
    const features = this.#encode(texts);
    const size = features.length / texts.length;
    return texts.map((_, i) => features.slice(i * size, (i + 1) * size));
  }

  /**
   * Puts new items into the catalogue by their text alone: they can be recommended at once.
   *
   * @throws LimbeckError ERR_INVALID_ARGUMENT for an id that is there already, a malformed item, or a student without a
   * text encoder; then none is added
   */
  addItems(items: readonly CatalogueItem[]): void {
    this.#index.check(items);
    if (items.length === 0) return;
    const features = this.#encode(items.map(({ text }) => text));
    this.#recommender.addItems(features);
    this.#recommender.describeItems(this.#index.describe(items));
    this.#index.add(items);
    if (this.#recommender.hasNames) this.#recommender.nameItems(items.map(({ id }) => JSON.stringify(id)));
    this.#model?.appendItems(features);
    this.#itemTopics = undefined;
  }

  /**
   * Takes items out of the catalogue: they are neither recommended nor known in histories any more. Unknown ids are
   * ignored.
   *
   * @returns how many were removed
   * @throws LimbeckError ERR_INVALID_ARGUMENT when no item would be left
   */
  removeItems(ids: readonly string[]): number {
    checkList(ids, 'removeItems', 'a list');
    const known = new Set(ids.filter((id) => this.#index.slotOf(id) !== undefined));
    if (known.size === this.#index.size) {
      throw new LimbeckError('ERR_INVALID_ARGUMENT', 'removeItems: a catalogue needs at least one item');
    }
    this.#recommender.hideItems(Int32Array.from(known, (id) => this.#index.slotOf(id) ?? 0));
    this.#index.remove(known);
    return known.size;
  }

  /** Index of an item in `items`, or undefined. */
  indexOf(id: string): number | undefined {
    return this.#index.positionOf(id);
  }

  /**
   * Lets worker threads of this process serve with the same weights: post the handle to them, and open it there with
   * {@link fromHandle}. Until they have, this student must live and its catalogue stay as it is: a change ends a handle that
   * is not opened yet. Afterwards the weights live as long as one of them does. Items added or removed later are not in
   * the handle: change them in every thread, or share again.
   */
  share(): StudentHandle {
    const { names } = this.#topics();
    return {
      key: this.#recommender.share(),
      encoder: this.encoder?.share(),
      items: this.#index.slots,
      removed: this.#index.removedSlots(),
      hasPopularity: this.#hasPopularity,
      topicNames: names,
      numParameters: this.numParameters,
    };
  }

  /**
   * Writes a student directory, whole or not at all: the sequence model's files, the catalogue, its topics and
   * popularity, and the text encoder where there is one. What the directory held before is replaced.
   *
   * @throws LimbeckError ERR_NO_SPACE, ERR_IO, ERR_DISPOSED; ERR_INVALID_ARGUMENT for a student opened from a handle
   */
  async save(directory: string): Promise<void> {
    const { names } = this.#topics();
    // What is added while the files are written comes with the next save: items and rows are those of now.
    await saveStudent(directory, {
      model: this.model,
      items: [...this.items],
      slots: this.#index.liveSlots,
      numSlots: this.#index.numSlots,
      encoder: this.encoder,
      popularity: this.#popularity,
      topics: { names, centroids: this.#recommender.topics().centroids },
    });
  }

  dispose(): void {
    this.disposeRecommender();
    this.#model?.dispose();
    this.encoder?.dispose();
  }

  /** @internal Ends the student, and leaves its model and its encoder to those who go on with them. */
  disposeRecommender(): void {
    this.#recommender.dispose();
  }

  #rankedItems(count: number): RankedItem[] {
    const { itemIds, scores } = this.#packed;
    const items = new Array<RankedItem>(count);
    for (let i = 0; i < count; i++) items[i] = { id: this.#index.idAt(itemIds[i] ?? 0), score: scores[i] ?? 0 };
    return items;
  }

  #explain(count: number, features: Float32Array | undefined): RecommendedItem[] {
    const packed = this.#packed;
    const { names, itemTopics } = this.#topics();
    const weights = this.#recommender.explain(packed.ints, packed.numbers, packed.itemIds.subarray(0, count), features);
    const entries = this.#entries(features, itemTopics);
    const explained = explanations(
      weights,
      entries.map(({ item }) => item),
      entries.map(({ topic }) => names[topic] ?? ''),
    );
    return this.#rankedItems(count).map((item, i) => ({ ...item, ...explained[i] }));
  }

  /** What each entry of the packed history is called, its id or its text, and the topic that it belongs to. */
  #entries(features: Float32Array | undefined, itemTopics: Int32Array): { item: string; topic: number }[] {
    const { historyLength, texts } = this.#packed;
    const textTopics = features === undefined ? undefined : this.#recommender.topicsOf(features);
    return Array.from({ length: historyLength }, (_, entry) => {
      const slot = this.#packed.historyAt(entry);
      return slot >= 0
        ? { item: this.#index.idAt(slot), topic: itemTopics[slot] ?? 0 }
        : { item: texts[-1 - slot] ?? '', topic: textTopics?.[-1 - slot] ?? 0 };
    });
  }

  /** Finds and names the topics at the first call. */
  #topics(): { names: readonly string[]; itemTopics: Int32Array } {
    if (this.#topicNames === undefined) {
      const numTopics = numTopicsFor(this.#index.numSlots);
      this.#recommender.findTopics(numTopics, TOPIC_SEED);
      const { itemTopics } = this.#recommender.topics();
      this.#topicNames = nameTopics(this.#index.slots, itemTopics, numTopics);
    }
    this.#itemTopics ??= this.#recommender.topics().itemTopics;
    return { names: this.#topicNames, itemTopics: this.#itemTopics };
  }

  #refuseUnanswerable(history: History): void {
    if (this.#hasPopularity) return;
    const { unknownItems } = this.#packed;
    const named = unknownItems.slice(0, 3).map((id) => `'${id}'`);
    const what =
      history.length === 0
        ? 'The history is empty'
        : `None of the ${history.length} items of the history is in the catalogue (${named.join(', ')})`;
    throw new LimbeckError(
      'ERR_UNKNOWN_ITEMS',
      `${what}, and this student does not know how popular its items are. ` +
        'Give ids of the catalogue, or the text of a new item as { text }.',
    );
  }

  #historyFeatures(): Float32Array | undefined {
    const { texts } = this.#packed;
    return texts.length === 0 ? undefined : this.#encode(texts);
  }

  #encode(texts: readonly string[]): Float32Array {
    return encodeTexts(this.encoder, texts);
  }
}

/** Of a search for several requests, which are then asked for one by one: the scores of the others are fine, perhaps. */
function undefinedIfNotFinite(error: unknown): undefined {
  if (error instanceof LimbeckError && error.code === 'ERR_NOT_FINITE') return undefined;
  throw error;
}

function notShared(): LimbeckError {
  return new LimbeckError('ERR_INVALID_ARGUMENT', 'fromHandle: expected what share() returned, unchanged');
}

/** Without its brackets. */
function jsonOf(ids: readonly string[]): string {
  return ids.length === 0 ? '' : JSON.stringify(ids).slice(1, -1);
}
