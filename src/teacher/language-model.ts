import { z } from 'zod';
import { checkObject, checkPath, described } from '../arguments.js';
import type {
  ForwardRequest,
  ForwardResult,
  NativeEngine,
  NativeTransformer,
  PackedBatch,
  TransformerConfig,
} from '../binding.js';
import { LimbeckError } from '../errors.js';
import { type AdapterShape, readAdapter, selectLinearModules, writeAdapter } from '../formats/adapter.js';
import { loadCheckpoint, readEosTokenIds, saveCheckpoint } from '../formats/checkpoint.js';
import { writeDirectoryAtomic } from '../formats/files.js';
import type { ModelFamily } from '../formats/model-config.js';
import {
  checkSpecialTokens,
  checkVocabulary,
  hasToken,
  hasTokenizer,
  loadTokenizer,
  type Tokenizer,
  truncateIds,
} from '../formats/tokenizer.js';
import { keysForModel } from '../formats/tokenizer-config.js';
import { checkHooks, type Hooks, throwIfAborted } from '../prepare/hooks.js';
import { parseOptions } from '../prepare/parse-options.js';
import { checkTextFile, checkTexts, isTextFile, type Texts } from '../prepare/text-lines.js';
import { batchesByTokens, gatherBatch } from './batches.js';
import {
  causalLabels,
  IGNORED_LABEL,
  inMemory,
  maskTokens,
  type PieceOptions,
  type PieceSource,
  type TokenizedCorpus,
  tokenizeCorpus,
} from './corpus.js';
import { fingerprintOfModel } from './fingerprint.js';
import {
  type GenerateIdsOptions,
  type GenerateOptions,
  type GenerationModel,
  generateText,
  generateTokens,
  isTokenIds,
} from './generate.js';
import { modelDirectory } from './model-hub.js';
import { type LoraOptions, loraSchema } from './options.js';
import { openTokenFiles } from './token-files.js';

const embedSchema = z.strictObject({
  layer: z.int().min(0).optional(),
  pooling: z.enum(['mean', 'last']).default('mean'),
});
export type EmbedOptions = z.input<typeof embedSchema>;

/** Texts, or token ids of each sequence. */
export type LanguageModelInput = readonly string[] | { readonly inputIds: readonly TokenIds[] };
export type TokenIds = readonly number[] | Int32Array;

export interface LanguageModelOutput extends ForwardResult {
  /** The tokens that were read, sequences end to end. */
  readonly inputIds: Int32Array; // [N]
  readonly sequenceOffsets: Int32Array; // [S + 1]
  /** Inputs longer than the model's positions, of which only the beginning was read. */
  readonly truncated: number;
}

/** A low-rank adapter that a model computes with. */
export interface LoraAdapter {
  readonly rank: number;
  readonly alpha: number;
  readonly dropout: number;
  /** Modules as the family's checkpoints name them. */
  readonly targets: readonly string[];
  /** Fingerprint of the model under it. */
  readonly base: string;
  readonly numParameters: number;
}

const DEFAULT_INITIALIZER_RANGE = 0.02;
const EVALUATION_TOKENS = 4096;
/** Masked tokens of an evaluation are the same at every call. */
const EVALUATION_MASK = { probability: 0.15, seed: 0x5eed, position: 0 };

/** A language model with its tokenizer, of any {@link ModelFamily}. */
export class LanguageModel {
  /** The hidden state that holds most of a text: the last; of a static encoder that of the embeddings. */
  readonly textLayer: number;
  readonly #tokenizer: Tokenizer | undefined;
  #adapter: (AdapterShape & { readonly base: string }) | undefined;

  /**
   * @param native the model owns it: dispose() frees it
   * @param tokenizer without one, the model takes and gives token ids only
   * @param eosTokenIds end a text that is generated, as the tokenizer's own does
   */
  constructor(
    readonly native: NativeTransformer,
    readonly family: ModelFamily,
    readonly config: TransformerConfig,
    tokenizer: Tokenizer | undefined,
    private readonly eosTokenIds: readonly number[] = [],
  ) {
    this.#tokenizer = tokenizer;
    this.textLayer = isStatic(native, config) ? 0 : config.numHiddenLayers;
  }

  /**
   * Loads a Hugging Face directory: config.json, safetensors, and the tokenizer's files where there are any. The name
   * `hf://owner/model[@revision]` stands for one in the hub's cache, downloaded where it is not there yet.
   *
   * @param source a directory, or a name on the hub
   * @param hooks of the download
   * @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT, ERR_SAFETENSORS, ERR_UNSUPPORTED_MODEL,
   * ERR_CHECKPOINT_MISMATCH, ERR_TOKENIZER, ERR_UNSUPPORTED_TOKENIZER, ERR_NOT_FINITE, ERR_OUT_OF_MEMORY, ERR_IO; the codes
   * of {@link modelDirectory}
   */
  static async load(engine: NativeEngine, source: string, hooks: Hooks = {}): Promise<LanguageModel> {
    const directory = await modelDirectory(source, hooks);
    const { model, family, config, huggingFace } = await loadCheckpoint(engine, directory);
    try {
      const tokenizer = (await hasTokenizer(directory)) ? await loadTokenizer(directory) : undefined;
      if (tokenizer) {
        checkVocabulary(tokenizer, config.vocabSize);
        checkSpecialTokens(tokenizer, huggingFace);
      }
      const eosTokenIds = await readEosTokenIds(directory, huggingFace, config.vocabSize);
      // Ids of rows that fill up the vocabulary end nothing, and a config.json that names them is refused.
      const known = eosTokenIds.filter((id) => tokenizer === undefined || hasToken(tokenizer, id));
      return new LanguageModel(model, family, config, tokenizer, known);
    } catch (error) {
      model.dispose();
      throw error;
    }
  }

  /** A model with random weights. @throws LimbeckError ERR_TOKENIZER, ERR_INVALID_ARGUMENT, ERR_OUT_OF_MEMORY */
  static create(
    engine: NativeEngine,
    family: ModelFamily,
    config: TransformerConfig,
    tokenizer: Tokenizer,
    {
      seed,
      initializerRange = DEFAULT_INITIALIZER_RANGE,
    }: { readonly seed: number; readonly initializerRange?: number },
  ): LanguageModel {
    checkVocabulary(tokenizer, config.vocabSize);
    const native = engine.createTransformer(config);
    native.initialize(seed, initializerRange);
    return new LanguageModel(native, family, config, tokenizer);
  }

  /** @throws LimbeckError ERR_TOKENIZER when the model was loaded from a directory without one */
  get tokenizer(): Tokenizer {
    if (this.#tokenizer) return this.#tokenizer;
    throw new LimbeckError(
      'ERR_TOKENIZER',
      'This model was loaded without a tokenizer, so it takes token ids only. Put tokenizer.json, vocab.json with ' +
        'merges.txt, or vocab.txt beside its config.json.',
    );
  }

  get numParameters(): number {
    return this.native.numParameters;
  }

  get numHiddenLayers(): number {
    return this.config.numHiddenLayers;
  }

  /**
   * Token ids of texts, end to end; a text longer than the model's positions is cut.
   *
   * @throws LimbeckError ERR_INVALID_ARGUMENT for what is no text, ERR_TOKENIZER
   */
  encode(texts: readonly string[]): PackedBatch & { truncated: number } {
    checkTexts(texts, 'texts');
    return packTexts(this.tokenizer, texts, this.config.maxPositionEmbeddings);
  }

  /**
   * Runs the model once over all inputs.
   *
   * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_TOKENIZER, ERR_ABORTED, ERR_DISPOSED, ERR_OUT_OF_MEMORY
   */
  async forward(
    input: LanguageModelInput,
    request: Omit<ForwardRequest, keyof PackedBatch | 'logitRows' | 'labels'>,
    hooks: Hooks = {},
  ): Promise<LanguageModelOutput> {
    checkHooks(hooks);
    throwIfAborted(hooks.signal);
    const { truncated, ...batch } = isTexts(input)
      ? this.encode(input)
      : packIds(checkedIds(input), this.config.maxPositionEmbeddings);
    const result = await this.native.forward({ ...batch, ...request });
    return { ...result, ...batch, truncated };
  }

  /**
   * One vector a text: the hidden states of a layer, pooled over its tokens.
   *
   * @param options.layer 0 = embeddings … numHiddenLayers. @defaultValue {@link textLayer}
   * @param options.pooling `mean` over the tokens, or the `last` one. @defaultValue mean
   * @returns [texts, hiddenSize]
   * @throws LimbeckError ERR_UNKNOWN_OPTION, and as {@link forward}
   */
  async embed(texts: readonly string[], options: EmbedOptions = {}, hooks: Hooks = {}): Promise<Float32Array> {
    checkHooks(hooks);
    const { layer = this.textLayer, pooling } = parseOptions(embedSchema, options, 'embed');
    const { inputIds, sequenceOffsets } = this.encode(texts);
    const width = this.config.hiddenSize;
    const vectors = new Float32Array(texts.length * width);
    const order = Int32Array.from({ length: texts.length }, (_, i) => i);
    let row = 0;
    for (const indices of batchesByTokens(sequenceOffsets, EVALUATION_TOKENS, order)) {
      throwIfAborted(hooks.signal);
      const batch = gatherBatch(inputIds, sequenceOffsets, indices);
      const { hiddenStates } = await this.native.forward({ ...batch, hiddenStates: [layer], pooling });
      const [states = new Float32Array(0)] = hiddenStates;
      vectors.set(states, row * width);
      row += indices.length;
    }
    return vectors;
  }

  /**
   * Mean cross-entropy a token, in nats: of the next token, or of a fixed set of masked tokens.
   *
   * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_EMPTY_DATA, ERR_TOKENIZER, ERR_ABORTED
   */
  async loss(texts: readonly string[], hooks: Hooks = {}): Promise<{ loss: number; numTokens: number }> {
    checkHooks(hooks);
    return this.corpusLoss(inMemory(await this.tokenize(texts)), hooks);
  }

  /** Tokenises a corpus the way this model is trained on it. @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_EMPTY_DATA */
  async tokenize(texts: readonly string[], maxLength = this.config.maxPositionEmbeddings): Promise<TokenizedCorpus> {
    checkTexts(texts, 'texts');
    return tokenizeCorpus(this.tokenizer, texts, this.pieceOptions(maxLength));
  }

  /**
   * As {@link tokenize}, of texts in memory or on disk. The caller closes it.
   *
   * @param name of the texts in messages
   * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION; as {@link openTokenFiles}
   */
  async openPieces(
    texts: Texts,
    {
      name,
      maxLength,
      signal,
    }: Pick<Hooks, 'signal'> & { readonly name: string; readonly maxLength?: number | undefined },
  ): Promise<PieceSource> {
    if (!isTextFile(texts)) {
      checkTexts(texts, name);
      return inMemory(await tokenizeCorpus(this.tokenizer, texts, this.pieceOptions(maxLength)));
    }
    checkTextFile(texts, name);
    return openTokenFiles(this.tokenizer, texts, this.pieceOptions(maxLength), { signal });
  }

  /** How this model's training cuts texts. @throws LimbeckError ERR_INVALID_ARGUMENT */
  pieceOptions(maxLength = this.config.maxPositionEmbeddings): PieceOptions {
    const isCausal = this.config.attention === 'causal';
    const minLength = isCausal ? 2 : 1;
    if (!(maxLength >= minLength)) {
      const expected = `expected at least ${minLength} tokens, got ${described(maxLength)}`;
      throw new LimbeckError('ERR_INVALID_ARGUMENT', `maxLength: ${expected}`);
    }
    return {
      maxLength: Math.min(Math.floor(maxLength), this.config.maxPositionEmbeddings),
      minLength,
      addEos: isCausal,
    };
  }

  /** As {@link loss}, over a corpus that was tokenised before. */
  async corpusLoss(pieces: PieceSource, hooks: Hooks = {}): Promise<{ loss: number; numTokens: number }> {
    const { offsets } = pieces;
    let lossSum = 0;
    let numTokens = 0;
    const order = Int32Array.from({ length: offsets.length - 1 }, (_, i) => i);
    for (const indices of batchesByTokens(offsets, EVALUATION_TOKENS, order)) {
      throwIfAborted(hooks.signal);
      const { batch, labels } = this.label(await pieces.read(indices), EVALUATION_MASK);
      if (labels.every((label) => label === IGNORED_LABEL)) continue;
      const result = await this.native.forward({ ...batch, labels });
      lossSum += result.lossSum ?? 0;
      numTokens += result.numLabels ?? 0;
    }
    if (numTokens === 0) {
      throw new LimbeckError(
        'ERR_EMPTY_DATA',
        'Expected texts of at least two tokens: nothing can be predicted in these',
      );
    }
    return { loss: lossSum / numTokens, numTokens };
  }

  /** Inputs and labels of the model's own objective. @throws LimbeckError ERR_TOKENIZER without a mask token */
  label(
    batch: PackedBatch,
    mask: { readonly probability: number; readonly seed: number; readonly position: number },
  ): { batch: PackedBatch; labels: Int32Array } {
    if (this.config.attention === 'causal') return { batch, labels: causalLabels(batch) };
    const { maskTokenId, padTokenId, vocabSize } = this.tokenizer;
    if (maskTokenId === undefined) {
      throw new LimbeckError(
        'ERR_TOKENIZER',
        'Masked language modelling needs a mask token, and the tokenizer has none. Add [MASK] to its special tokens.',
      );
    }
    // Of an empty text, the tokenizer gives what it puts around every one.
    const special = [maskTokenId, padTokenId, ...this.tokenizer.encode('')].filter((id) => id !== undefined);
    return maskTokens(batch, { ...mask, maskTokenId, specialTokenIds: new Set(special), vocabSize });
  }

  /**
   * Continues a text.
   *
   * @throws LimbeckError ERR_INVALID_ARGUMENT (a masked model, a prompt longer than the positions), ERR_UNKNOWN_OPTION,
   * ERR_TOKENIZER, ERR_ABORTED, ERR_DISPOSED, ERR_NOT_FINITE
   */
  async generate(prompt: string, options: GenerateOptions, hooks: Pick<Hooks, 'signal'> = {}): Promise<string> {
    let text = '';
    for await (const piece of this.streamText(prompt, options, hooks)) text += piece;
    return text;
  }

  /**
   * As {@link generate}, piece by piece while the text grows. Pieces are whole characters; leaving the loop stops the work.
   *
   * @example
   * for await (const piece of model.streamText('Once upon', { maxNewTokens: 40 })) process.stdout.write(piece);
   */
  streamText(
    prompt: string,
    options: GenerateOptions,
    hooks: Pick<Hooks, 'signal'> = {},
  ): AsyncGenerator<string, void, undefined> {
    return generateText(this.#generationModel(), this.tokenizer, prompt, options, hooks);
  }

  /** The tokens that follow `inputIds`, without the end-of-text token. @throws as {@link generate} */
  async generateIds(
    inputIds: readonly number[],
    options: GenerateIdsOptions,
    hooks: Pick<Hooks, 'signal'> = {},
  ): Promise<number[]> {
    const ids: number[] = [];
    for await (const id of generateTokens(this.#generationModel(), inputIds, options, hooks)) ids.push(id);
    return ids;
  }

  #generationModel(): GenerationModel {
    const { native, config } = this;
    return { native, maxPositionEmbeddings: config.maxPositionEmbeddings, eosTokenIds: this.#eosTokenIds() };
  }

  #eosTokenIds(): number[] {
    const own = this.#tokenizer?.eosTokenId;
    return [...new Set([...(own === undefined ? [] : [own]), ...this.eosTokenIds])];
  }

  /** The adapter that everything this model computes takes part in, where there is one. */
  get adapter(): LoraAdapter | undefined {
    if (this.#adapter === undefined) return undefined;
    const { rank, alpha, dropout, modules, base } = this.#adapter;
    const targets = modules.map(({ name }) => name);
    const numParameters = modules.reduce((sum, { inFeatures, numRows }) => sum + rank * (inFeatures + numRows), 0);
    return { rank, alpha, dropout, targets, base, numParameters };
  }

  /**
   * Puts a new adapter over this model, which changes nothing before it is trained: engine.adapt does both. A model with
   * the same adapter keeps it.
   *
   * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION, ERR_ABORTED, ERR_BUSY, ERR_DISPOSED, ERR_OUT_OF_MEMORY
   */
  async addAdapter(
    options: LoraOptions & { readonly seed?: number } = {},
    hooks: Pick<Hooks, 'signal'> = {},
  ): Promise<void> {
    checkObject(options, 'lora', '{ rank, alpha, dropout, targets, seed }');
    checkHooks(hooks);
    const { seed = 0, ...lora } = options;
    const { rank, alpha = 2 * rank, dropout, targets } = parseOptions(loraSchema, lora, 'lora');
    const modules = selectLinearModules(this.family, this.config, targets);
    const largest = Math.min(...modules.map(({ inFeatures, numRows }) => Math.min(inFeatures, numRows)));
    if (rank > largest) {
      throw new LimbeckError(
        'ERR_INVALID_ARGUMENT',
        `lora.rank: expected at most ${largest}, the smaller side of a weight that is adapted, got ${rank}`,
      );
    }
    const { adapter } = this;
    if (adapter) {
      const names = modules.map(({ name }) => name);
      const wanted = { ...adapter, rank, alpha, dropout, targets: names };
      if (JSON.stringify(wanted) === JSON.stringify(adapter)) return;
      throw new LimbeckError(
        'ERR_INVALID_ARGUMENT',
        `lora: the model has an adapter of rank ${adapter.rank} and alpha ${adapter.alpha} over ` +
          `${adapter.targets.length} layers, and another one was asked for. Merge or remove it first.`,
      );
    }
    const base = await fingerprintOfModel(this.native, hooks);
    this.#attachAdapter({ rank, alpha, dropout, modules }, base, seed);
  }

  #attachAdapter(shape: AdapterShape, base: string, seed: number): void {
    const { rank, alpha, dropout, modules } = shape;
    this.native.attachAdapter({ rank, scale: alpha / rank, dropout, seed, targets: modules });
    this.#adapter = { ...shape, base };
  }

  /**
   * Writes the adapter alone, as PEFT keeps it: `adapter_config.json` and `adapter_model.safetensors`.
   *
   * @throws LimbeckError ERR_INVALID_ARGUMENT without an adapter, ERR_NO_SPACE, ERR_IO, ERR_DISPOSED
   */
  async saveAdapter(directory: string): Promise<void> {
    if (this.#adapter === undefined) {
      throw new LimbeckError('ERR_INVALID_ARGUMENT', 'saveAdapter: this model has no adapter. Use save().');
    }
    const names = this.native.trainableParameters().map(({ name }) => name);
    const tensors = new Map(names.map((name) => [name, this.native.getParameter(name)]));
    const adapter = { ...this.#adapter, tensors };
    await writeDirectoryAtomic(directory, (temporary) => writeAdapter(temporary, this.family, this.config, adapter));
  }

  /**
   * Puts an adapter over this model that {@link saveAdapter} or PEFT wrote.
   *
   * @throws LimbeckError ERR_INVALID_ARGUMENT when it has one, ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT, ERR_SAFETENSORS,
   * ERR_UNSUPPORTED_MODEL (no plain LoRA), ERR_CHECKPOINT_MISMATCH (of another model), ERR_NOT_FINITE, ERR_ABORTED, ERR_IO
   */
  async loadAdapter(directory: string, hooks: Pick<Hooks, 'signal'> = {}): Promise<void> {
    if (this.#adapter) {
      throw new LimbeckError(
        'ERR_INVALID_ARGUMENT',
        'loadAdapter: the model has an adapter. Merge or remove it first.',
      );
    }
    checkPath(directory, 'directory');
    checkHooks(hooks);
    const { tensors, base, ...shape } = await readAdapter(directory, this.family, this.config);
    const own = await fingerprintOfModel(this.native, hooks);
    if (base !== undefined && base !== own) {
      throw new LimbeckError(
        'ERR_CHECKPOINT_MISMATCH',
        `'${directory}' is an adapter for a model with other weights: it was trained over ${base}, and these are ${own}`,
      );
    }
    this.#attachAdapter(shape, own, 0);
    for (const [name, values] of tensors) this.native.setParameter(name, values);
  }

  /** Adds the adapter to the model's own weights, and ends it. @throws LimbeckError ERR_INVALID_ARGUMENT without one */
  async mergeAdapter(): Promise<void> {
    if (this.#adapter === undefined) {
      throw new LimbeckError('ERR_INVALID_ARGUMENT', 'mergeAdapter: this model has no adapter.');
    }
    await this.native.mergeAdapter();
    this.#adapter = undefined;
  }

  /** Ends the adapter: the model is what it was before, to the bit. Without one, nothing is done. */
  removeAdapter(): void {
    this.native.removeAdapter();
    this.#adapter = undefined;
  }

  /**
   * Writes a Hugging Face directory, whole or not at all; an adapter is merged into its weights.
   *
   * @throws LimbeckError ERR_NO_SPACE, ERR_IO, ERR_DISPOSED
   */
  async save(directory: string): Promise<void> {
    await writeDirectoryAtomic(directory, (temporary) => this.writeFiles(temporary));
  }

  /** Writes the files of {@link save} into a directory that is there. */
  async writeFiles(directory: string): Promise<void> {
    const { native: model, family, config } = this;
    await saveCheckpoint(directory, { model, family, config }, this.#specialIds());
    const tokenizer = this.#tokenizer;
    await tokenizer?.save(directory, keysForModel(tokenizer, family, config.typeVocabSize));
  }

  /** What transformers would otherwise take from its defaults for the family, which fit the published vocabulary alone. */
  #specialIds(): Record<string, number | number[] | null> {
    const ends = this.#eosTokenIds();
    if (this.#tokenizer === undefined && ends.length === 0) return {};
    // GPT-2 begins texts with the token that ends them.
    const { bosTokenId = this.family === 'gpt2' ? ends[0] : undefined, padTokenId = null } = this.#tokenizer ?? {};
    // Without a tokenizer, nobody knows whether texts begin with a token.
    const hasBos = this.#tokenizer !== undefined || bosTokenId !== undefined;
    return {
      ...(hasBos && { bos_token_id: bosTokenId ?? null }),
      eos_token_id: ends.length > 1 ? ends : (ends[0] ?? null),
      ...(this.config.attention !== 'causal' && { pad_token_id: padTokenId }),
    };
  }

  dispose(): void {
    this.native.dispose();
  }
}

/** Whether nothing comes after the embeddings, as in what fitStaticEncoder makes: the last norm's gains are zero. */
function isStatic(native: NativeTransformer, { numHiddenLayers, norm, normPlacement }: TransformerConfig): boolean {
  if (numHiddenLayers > 1 || norm !== 'rmsNorm' || normPlacement !== 'before') return false;
  return native.getParameter('final_norm.weight').every((gain) => gain === 0);
}

/** Token ids of texts, end to end; a text of more than `maxLength` is cut. @throws LimbeckError ERR_TOKENIZER */
export function packTexts(
  tokenizer: Tokenizer,
  texts: readonly string[],
  maxLength: number,
): PackedBatch & { truncated: number } {
  const sequences = texts.map((text) => tokenizer.encode(text));
  return packIds(sequences, maxLength, (ids) => truncateIds(tokenizer, ids, maxLength));
}

/** @param cut what is read of a longer sequence */
function packIds<Ids extends TokenIds>(
  sequences: readonly Ids[],
  maxLength: number,
  cut: (ids: Ids) => TokenIds = (ids) => ids.slice(0, maxLength),
): PackedBatch & { truncated: number } {
  if (sequences.length === 0) throw new LimbeckError('ERR_EMPTY_DATA', 'Expected at least one text, got none');
  const sequenceOffsets = new Int32Array(sequences.length + 1);
  let truncated = 0;
  sequences.forEach((ids, i) => {
    if (ids.length === 0) throw new LimbeckError('ERR_INVALID_ARGUMENT', `Text ${i} has no token: it is empty`);
    if (ids.length > maxLength) truncated++;
    sequenceOffsets[i + 1] = (sequenceOffsets[i] ?? 0) + Math.min(ids.length, maxLength);
  });
  const inputIds = new Int32Array(sequenceOffsets[sequences.length] ?? 0);
  sequences.forEach((ids, i) => {
    inputIds.set(ids.length > maxLength ? cut(ids) : ids, sequenceOffsets[i]);
  });
  return { inputIds, sequenceOffsets, truncated };
}

/** An Int32Array would make numbers of what is none. @throws LimbeckError ERR_INVALID_ARGUMENT */
function checkedIds(input: { readonly inputIds: readonly TokenIds[] }): readonly TokenIds[] {
  const sequences = input?.inputIds;
  if (!Array.isArray(sequences)) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      'Expected a list of texts, or { inputIds } with a list for each text',
    );
  }
  const wrong = sequences.findIndex((ids) => !isTokenIds(ids));
  if (wrong < 0) return sequences;
  throw new LimbeckError(
    'ERR_INVALID_ARGUMENT',
    `inputIds[${wrong}]: expected a list of token ids, integers below 2^31`,
  );
}

function isTexts(input: LanguageModelInput): input is readonly string[] {
  return Array.isArray(input);
}
