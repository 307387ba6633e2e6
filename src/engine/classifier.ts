/** Topics of texts: a softmax regression on what a language model's layer holds. The language model stays as it is. */
import { join } from 'node:path';
import { z } from 'zod';
import { checkInstance, checkList, checkPath, described } from '../arguments.js';
import type { NativeEngine } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { type ClassificationMetrics, classificationMetrics } from '../evaluate/classification.js';
import { checkedJson } from '../formats/checked-json.js';
import { readJsonFile, writeDirectoryAtomic, writeFileAtomic } from '../formats/files.js';
import { checkFinite, readSafetensors, writeSafetensors } from '../formats/safetensors.js';
import type { Hooks } from '../prepare/hooks.js';
import { parseOptions } from '../prepare/parse-options.js';
import { checkTexts } from '../prepare/text-lines.js';
import { LanguageModel } from '../teacher/language-model.js';

const JSON_FILE = 'classifier.json';
const TENSOR_FILE = 'classifier.safetensors';

const classifierSchema = z.strictObject({
  /** Hidden state that is read: 0 = embeddings … numHiddenLayers. @defaultValue the last; of a static encoder 0 */
  layer: z.int().min(0).optional(),
  /** The mean over a text's tokens, or the last token. */
  pooling: z.enum(['mean', 'last']).default('mean'),
  learningRate: z.number().positive().max(10).default(3e-3),
  /** λ of the penalty λ/2·‖weight‖², on columns of variance 1. */
  l2: z.number().min(0).max(1000).default(1e-3),
  /** Texts of a step. */
  batchSize: z.int().min(1).max(65_536).default(128),
  maxEpochs: z.int().min(1).max(100_000).default(200),
  /** Epochs in a row without a better held-out loss, after which training ends. */
  patience: z.int().min(1).max(100_000).default(10),
  /** Share of each class's texts that decides which epoch is kept; 0 trains on all, for `maxEpochs`. */
  heldOut: z.number().min(0).max(0.9).default(0.1),
  /** Of the held-out texts and the order of the others. */
  seed: z.int().min(0).max(Number.MAX_SAFE_INTEGER).default(0),
});

export type ClassifierOptions = z.input<typeof classifierSchema>;

const interestsSchema = z.strictObject({
  /** Texts after which one counts half; Infinity: all count the same. */
  halfLife: z.number().positive().or(z.literal(Number.POSITIVE_INFINITY)).default(20),
});

export type ClassInterestOptions = z.input<typeof interestsSchema>;

const fileSchema = z.strictObject({
  format: z.literal('limbeck-classifier'),
  version: z.literal(1),
  classes: z.array(z.string().min(1)).min(2),
  layer: z.int().min(0),
  pooling: z.enum(['mean', 'last']),
});

export interface Classification {
  /** The most probable class, and its probability. */
  readonly label: string;
  readonly probability: number;
  /** Every class, the most probable first; probabilities sum to 1. */
  readonly classes: readonly { readonly label: string; readonly probability: number }[];
}

/** A class as a topic that somebody writes or reads about. */
export interface ClassInterest {
  /** The class. */
  readonly name: string;
  /** Mean probability of the class over the texts, newer ones counting more. The weights of all classes sum to 1. */
  readonly weight: number;
  /** Indices of the texts of which it is the most probable class, newest first. */
  readonly texts: readonly number[];
}

/** How training went. */
export interface ClassifierFit {
  /** Epochs run, and the one whose parameters were kept, counted from 1. */
  readonly epochs: number;
  readonly bestEpoch: number;
  /** Mean cross-entropy in nats over the best epoch. */
  readonly trainLoss: number;
  /** The same over held-out texts after the best epoch; undefined where none was held out. */
  readonly heldOutLoss: number | undefined;
  /** Indices of the texts held out, ascending. */
  readonly heldOutTexts: Int32Array;
}

/** The learned head over a layer of a language model. */
interface Head {
  /** Ascending. */
  readonly classes: readonly string[];
  readonly layer: number;
  readonly pooling: 'mean' | 'last';
  readonly weight: Float32Array; // [classes, hiddenSize]
  readonly bias: Float32Array; // [classes]
}

/** Says which of its classes a text belongs to. */
export class Classifier {
  readonly #engine: NativeEngine;
  readonly #model: LanguageModel;
  readonly #ownsModel: boolean;
  readonly #head: Head;
  #isDisposed = false;

  /** @internal Use `engine.fitClassifier` or `engine.loadClassifier`. */
  constructor(engine: NativeEngine, model: LanguageModel, head: Head, { ownsModel }: { readonly ownsModel: boolean }) {
    this.#engine = engine;
    this.#model = model;
    this.#head = head;
    this.#ownsModel = ownsModel;
  }

  /** Ascending. */
  get classes(): readonly string[] {
    return this.#head.classes;
  }

  /**
   * The class of each text, with the probability of every class.
   *
   * @throws LimbeckError ERR_EMPTY_DATA for no texts, ERR_INVALID_ARGUMENT for an empty text, ERR_TOKENIZER, ERR_ABORTED,
   * ERR_DISPOSED, ERR_OUT_OF_MEMORY
   */
  async classify(texts: readonly string[], hooks: Pick<Hooks, 'signal'> = {}): Promise<Classification[]> {
    const { classes } = this.#head;
    const probabilities = await this.#probabilities(texts, hooks);
    return texts.map((_, row) => {
      const ranked = classes
        .map((label, k) => ({ label, probability: probabilities[row * classes.length + k] ?? 0 }))
        .sort((a, b) => b.probability - a.probability);
      const [best = { label: '', probability: 0 }] = ranked;
      return { ...best, classes: ranked };
    });
  }

  /**
   * What somebody is interested in, by the texts that they wrote or read: every class, largest weight first. A text counts
   * 2^(−(texts after it) / halfLife).
   *
   * @param texts oldest first
   * @throws LimbeckError ERR_UNKNOWN_OPTION, and as {@link classify}
   */
  async interests(
    texts: readonly string[],
    options: ClassInterestOptions = {},
    hooks: Pick<Hooks, 'signal'> = {},
  ): Promise<ClassInterest[]> {
    const { halfLife } = parseOptions(interestsSchema, options, 'interests');
    const { classes } = this.#head;
    const probabilities = await this.#probabilities(texts, hooks);
    const found = classes.map((name) => ({ name, weight: 0, texts: [] as number[] }));
    let total = 0;
    for (let row = texts.length - 1; row >= 0; row--) {
      const ofText = probabilities.subarray(row * classes.length, (row + 1) * classes.length);
      const share = 2 ** (-(texts.length - 1 - row) / halfLife);
      let best = 0;
      ofText.forEach((probability, k) => {
        if (probability > (ofText[best] ?? 0)) best = k;
        const interest = found[k];
        if (interest) interest.weight += share * probability;
        total += share * probability;
      });
      found[best]?.texts.push(row);
    }
    return found
      .map((interest) => ({ ...interest, weight: interest.weight / total }))
      .sort((a, b) => b.weight - a.weight);
  }

  /**
   * Accuracy, and precision, recall and F1 of each class and their means, on texts whose labels are known. A label that is
   * none of {@link classes} counts as one that is never found.
   *
   * @throws LimbeckError ERR_INVALID_ARGUMENT for another number of labels, and as {@link classify}
   */
  async evaluate(
    texts: readonly string[],
    labels: readonly string[],
    hooks: Pick<Hooks, 'signal'> = {},
  ): Promise<ClassificationMetrics<string>> {
    checkLabels(texts, labels);
    const found = await this.classify(texts, hooks);
    return classificationMetrics(
      labels,
      found.map(({ label }) => label),
    );
  }

  /**
   * Writes the language model in its own layout, and beside it classifier.json and classifier.safetensors; whole or not at
   * all.
   *
   * @throws LimbeckError ERR_NO_SPACE, ERR_IO, ERR_DISPOSED
   */
  async save(directory: string): Promise<void> {
    this.#checkAlive();
    const { classes, layer, pooling, weight, bias } = this.#head;
    await writeDirectoryAtomic(directory, async (temporary) => {
      await this.#model.writeFiles(temporary);
      const json = { format: 'limbeck-classifier', version: 1, classes, layer, pooling };
      await writeFileAtomic(join(temporary, JSON_FILE), `${JSON.stringify(json, null, 2)}\n`);
      await writeSafetensors(join(temporary, TENSOR_FILE), [
        ['weight', { shape: [classes.length, weight.length / classes.length], data: weight }],
        ['bias', { shape: [classes.length], data: bias }],
      ]);
    });
  }

  /**
   * Ends this classifier: later calls fail with ERR_DISPOSED. Frees the language model that {@link loadClassifier} loaded;
   * one that was given to `fitClassifier` stays.
   */
  dispose(): void {
    this.#isDisposed = true;
    if (this.#ownsModel) this.#model.dispose();
  }

  async #probabilities(texts: readonly string[], hooks: Pick<Hooks, 'signal'>): Promise<Float32Array> {
    this.#checkAlive();
    const { classes, layer, pooling, weight, bias } = this.#head;
    return this.#engine.classProbabilities({
      x: await this.#model.embed(texts, { layer, pooling }, hooks),
      rows: texts.length,
      columns: this.#model.config.hiddenSize,
      weight,
      bias,
      classes: classes.length,
    });
  }

  #checkAlive(): void {
    if (this.#isDisposed) {
      throw new LimbeckError('ERR_DISPOSED', 'This classifier was disposed of. Fit or load another one.');
    }
  }
}

/**
 * Learns which class a text belongs to from examples: softmax regression on the model's pooled hidden states, by AdamW with
 * early stop on held-out texts. The same seed gives the same bits.
 *
 * @param model stays as it is, and must live as long as the classifier; several classifiers may share it
 * @param labels [texts], at least two different ones
 * @param hooks the signal is heard while the model reads the texts; learning afterwards takes seconds
 * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION, ERR_EMPTY_DATA, ERR_TOKENIZER, ERR_ABORTED, ERR_DISPOSED,
 * ERR_NOT_FINITE (a learning rate that is too large), ERR_OUT_OF_MEMORY
 */
export async function fitClassifier(
  engine: NativeEngine,
  model: LanguageModel,
  texts: readonly string[],
  labels: readonly string[],
  options: ClassifierOptions = {},
  hooks: Pick<Hooks, 'signal'> = {},
): Promise<ClassifierFit & { classifier: Classifier }> {
  checkInstance(model, LanguageModel, 'model');
  const { layer = model.textLayer, pooling, ...training } = parseOptions(classifierSchema, options, 'classifier');
  if (layer > model.numHiddenLayers) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `classifier.layer: expected at most ${model.numHiddenLayers}, the model's last, got ${layer}`,
    );
  }
  if (texts.length === 0) throw new LimbeckError('ERR_EMPTY_DATA', 'Expected texts to learn classes from, got none');
  checkLabels(texts, labels);
  const classes = [...new Set(labels)].sort((a, b) => (a < b ? -1 : 1));
  if (classes.length < 2) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `labels: expected at least two different ones, got ${JSON.stringify(classes[0])} alone`,
    );
  }
  const indices = new Map(classes.map((label, k) => [label, k]));
  const fit = await engine.fitClassifier({
    x: await model.embed(texts, { layer, pooling }, hooks),
    rows: texts.length,
    columns: model.config.hiddenSize,
    labels: Int32Array.from(labels, (label) => indices.get(label) ?? -1),
    classes: classes.length,
    ...training,
  });
  const { weight, bias, epochs, bestEpoch, trainLoss, heldOutLoss, heldOutRows: heldOutTexts } = fit;
  const head = { classes, layer, pooling, weight, bias };
  const classifier = new Classifier(engine, model, head, { ownsModel: false });
  return { classifier, epochs, bestEpoch, trainLoss, heldOutLoss, heldOutTexts };
}

/**
 * Opens what {@link Classifier.save} wrote.
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT, ERR_SAFETENSORS, ERR_CHECKPOINT_MISMATCH,
 * ERR_UNSUPPORTED_MODEL, ERR_TOKENIZER, ERR_UNSUPPORTED_TOKENIZER, ERR_NOT_FINITE, ERR_OUT_OF_MEMORY, ERR_IO
 */
export async function loadClassifier(engine: NativeEngine, directory: string): Promise<Classifier> {
  checkPath(directory, 'directory');
  const path = join(directory, JSON_FILE);
  const { classes, layer, pooling } = checkedJson(fileSchema, await readJsonFile(path), `'${path}'`);
  if (new Set(classes).size < classes.length) {
    throw new LimbeckError('ERR_FILE_FORMAT', `'${path}': expected classes that differ, and one is there twice`);
  }
  const tensorPath = join(directory, TENSOR_FILE);
  const { tensors } = await readSafetensors(tensorPath);
  const model = await LanguageModel.load(engine, directory);
  try {
    const { hiddenSize, numHiddenLayers } = model.config;
    if (layer > numHiddenLayers) {
      throw new LimbeckError(
        'ERR_CHECKPOINT_MISMATCH',
        `'${path}': layer ${layer} of a language model that has ${numHiddenLayers}`,
      );
    }
    const floats = (name: string, shape: readonly number[]): Float32Array => {
      const tensor = tensors.get(name);
      if (!(tensor?.data instanceof Float32Array) || tensor.shape.join() !== shape.join()) {
        const expected = `a float32 tensor '${name}' of shape [${shape.join(', ')}]`;
        const got = tensor ? `${tensor.dtype} [${tensor.shape.join(', ')}]` : 'none';
        throw new LimbeckError('ERR_CHECKPOINT_MISMATCH', `'${tensorPath}': expected ${expected}, got ${got}`);
      }
      checkFinite(tensor.data, name, tensorPath);
      return tensor.data;
    };
    const weight = floats('weight', [classes.length, hiddenSize]);
    const bias = floats('bias', [classes.length]);
    return new Classifier(engine, model, { classes, layer, pooling, weight, bias }, { ownsModel: true });
  } catch (error) {
    model.dispose();
    throw error;
  }
}

function checkLabels(texts: readonly string[], labels: readonly string[]): void {
  checkTexts(texts, 'texts');
  checkList(labels, 'labels', 'a list of texts');
  if (labels.length !== texts.length) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `labels: expected ${texts.length}, one a text, got ${labels.length}`,
    );
  }
  // Files are UTF-8, which has no form for half a surrogate pair.
  const wrong = labels.findIndex((label) => typeof label !== 'string' || label === '' || !label.isWellFormed());
  if (wrong !== -1) {
    const label: unknown = labels[wrong];
    const got = typeof label === 'string' ? JSON.stringify(label) : described(label);
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `labels[${wrong}]: expected well-formed text that is not empty, got ${got}`,
    );
  }
}
