import { cpSync, existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { NativeEngine } from '../../../src/binding.js';
import { fitClassifier, loadClassifier } from '../../../src/engine/classifier.js';
import { trainBytePairTokenizer } from '../../../src/formats/bpe-trainer.js';
import { writeSafetensors } from '../../../src/formats/safetensors.js';
import { createTokenizer } from '../../../src/formats/tokenizer.js';
import { LanguageModel } from '../../../src/teacher/language-model.js';
import { languageModelConfig } from '../../../src/teacher/pretrain.js';
import { temporaryDirectory } from '../teacher/fake-model.js';
import { createNativeEngine, TEXTS, TINY } from '../teacher/texts.js';

const folder = temporaryDirectory();
let engine: NativeEngine;
let model: LanguageModel;

beforeAll(async () => {
  engine = createNativeEngine();
  const tokenizer = createTokenizer(await trainBytePairTokenizer(TEXTS, { vocabSize: 300 }));
  const config = languageModelConfig('gpt2', tokenizer.vocabSize, TINY.architecture);
  model = LanguageModel.create(engine, 'gpt2', config, tokenizer, { seed: 4, initializerRange: 0.3 });
});
afterAll(() => {
  model.dispose();
  engine.dispose();
});

/** The verb is the class; 60 texts, 15 of each. */
const LABELS = TEXTS.map((text) => /likes|sees|follows|forgets/.exec(text)?.[0] ?? '');
const TRAIN = { texts: TEXTS.filter((_, i) => i % 5 !== 0), labels: LABELS.filter((_, i) => i % 5 !== 0) };
const TEST = { texts: TEXTS.filter((_, i) => i % 5 === 0), labels: LABELS.filter((_, i) => i % 5 === 0) };
const OPTIONS = { layer: 0, batchSize: 16, learningRate: 0.02, seed: 5 };

const fitVerbs = (options = {}) => fitClassifier(engine, model, TRAIN.texts, TRAIN.labels, { ...OPTIONS, ...options });
const code = (value: string) => expect.objectContaining({ code: value });

describe('a classifier', () => {
  test('finds the classes of texts that it has not seen, and leaves the model as it was', async () => {
    const { name } = model.native.parameters()[0] ?? { name: '' };
    const before = model.native.getParameter(name);
    const { classifier, ...result } = await fitVerbs();
    expect(model.native.getParameter(name)).toEqual(before);
    expect(classifier.classes).toEqual(['follows', 'forgets', 'likes', 'sees']);
    expect(result.heldOutLoss).toBeLessThan(Math.log(4));
    expect(result.bestEpoch).toBeLessThanOrEqual(result.epochs);
    expect(result.heldOutTexts.length).toBeGreaterThan(0);

    const answers = await classifier.classify(TEST.texts);
    const correct = answers.filter(({ label }, i) => label === TEST.labels[i]).length;
    expect(correct / TEST.texts.length).toBeGreaterThan(0.9);
    for (const { label, probability, classes } of answers) {
      expect(classes[0]).toEqual({ label, probability });
      expect(classes.map((entry) => entry.label).sort()).toEqual(classifier.classes);
      expect(classes.reduce((sum, entry) => sum + entry.probability, 0)).toBeCloseTo(1, 5);
      expect(classes.map((entry) => -entry.probability)).toEqual(
        classes.map((e) => -e.probability).sort((a, b) => a - b),
      );
    }
    const metrics = await classifier.evaluate(TEST.texts, TEST.labels);
    expect(metrics.accuracy).toBe(correct / TEST.texts.length);
    expect(metrics.classes.map(({ label }) => label)).toEqual(classifier.classes);
    expect(metrics.classes.reduce((sum, { support }) => sum + support, 0)).toBe(TEST.texts.length);
  });

  test('counts labels that it does not know as never found', async () => {
    const { classifier } = await fitVerbs();
    const [known = ''] = TEST.texts;
    const { accuracy, classes } = await classifier.evaluate([known, known], ['unheard of', 'unheard of']);
    expect(accuracy).toBe(0);
    expect(classes.find(({ label }) => label === 'unheard of')).toMatchObject({ support: 2, recall: 0 });
  });

  test('is the same by the same seed, and trains on all texts where none is held out', async () => {
    const answers = async (options: object) => (await fitVerbs(options)).classifier.classify(TEST.texts);
    expect(await answers({})).toEqual(await answers({}));
    expect(await answers({ seed: 6 })).not.toEqual(await answers({}));
    const { epochs, bestEpoch, heldOutLoss, heldOutTexts } = await fitVerbs({ heldOut: 0, maxEpochs: 7 });
    expect([epochs, bestEpoch, heldOutLoss, heldOutTexts.length]).toEqual([7, 7, undefined, 0]);
  });

  test('reads the layer and the pooling that it was asked for', async () => {
    const last = await (await fitVerbs({ layer: undefined, pooling: 'last' })).classifier.classify(TEST.texts);
    const mean = await (await fitVerbs({ layer: undefined })).classifier.classify(TEST.texts);
    expect(last).not.toEqual(mean);
    // Before the first block, the last token knows its own word and place alone, not the verb.
    const { heldOutLoss } = await fitVerbs({ layer: 0, pooling: 'last' });
    expect(heldOutLoss).toBeGreaterThan(0.9);
  });

  test('tells interests by the mean probability of each class, in which newer texts count more', async () => {
    const { classifier } = await fitVerbs();
    const texts = TEST.texts.slice(0, 7);
    const answers = await classifier.classify(texts);
    const probability = (row: number, name: string) =>
      answers[row]?.classes.find(({ label }) => label === name)?.probability ?? Number.NaN;
    for (const halfLife of [1, 2.5, Number.POSITIVE_INFINITY]) {
      const interests = await classifier.interests(texts, { halfLife });
      expect(interests.map(({ name }) => name).sort()).toEqual(classifier.classes);
      expect(interests.reduce((sum, { weight }) => sum + weight, 0)).toBeCloseTo(1, 12);
      expect(interests.map(({ weight }) => weight)).toEqual(
        interests.map(({ weight }) => weight).toSorted((a, b) => b - a),
      );
      const shares = texts.map((_, row) => 0.5 ** ((texts.length - 1 - row) / halfLife));
      const total = shares.reduce((sum, share) => sum + share, 0);
      for (const { name, weight, texts: own } of interests) {
        const expected = shares.reduce((sum, share, row) => sum + share * probability(row, name), 0) / total;
        expect(weight).toBeCloseTo(expected, 5);
        const rows = answers.flatMap(({ label }, row) => (label === name ? [row] : []));
        expect(own).toEqual(rows.reverse());
      }
    }
    // The last text alone, after enough of them.
    const [first] = await classifier.interests([...Array(40).fill(texts[0]), texts[1]], { halfLife: 0.01 });
    expect(first).toMatchObject({ name: answers[1]?.label, weight: expect.closeTo(answers[1]?.probability ?? 0, 5) });
    expect(await classifier.interests(texts)).toEqual(await classifier.interests(texts, { halfLife: 20 }));
    await expect(classifier.interests([])).rejects.toEqual(code('ERR_EMPTY_DATA'));
    await expect(classifier.interests(['a', ''])).rejects.toEqual(code('ERR_INVALID_ARGUMENT'));
    for (const halfLife of [0, -1, Number.NaN]) {
      await expect(classifier.interests(texts, { halfLife })).rejects.toEqual(code('ERR_INVALID_ARGUMENT'));
    }
    await expect(classifier.interests(texts, { days: 3 } as object)).rejects.toEqual(code('ERR_UNKNOWN_OPTION'));
    const signal = AbortSignal.abort();
    await expect(classifier.interests(texts, {}, { signal })).rejects.toEqual(code('ERR_ABORTED'));
    classifier.dispose();
    await expect(classifier.interests(texts)).rejects.toEqual(code('ERR_DISPOSED'));
  });

  test('is saved as open files and gives the same answers when loaded', async () => {
    const { classifier } = await fitVerbs();
    const directory = join(folder, 'saved');
    await classifier.save(directory);
    expect(readdirSync(directory)).toEqual(expect.arrayContaining(['classifier.json', 'classifier.safetensors']));
    const loaded = await loadClassifier(engine, directory);
    expect(loaded.classes).toEqual(classifier.classes);
    expect(await loaded.classify(TEST.texts)).toEqual(await classifier.classify(TEST.texts));
    loaded.dispose();
    await expect(loaded.classify(TEST.texts)).rejects.toEqual(code('ERR_DISPOSED'));
    classifier.dispose();
    await expect(classifier.classify(TEST.texts)).rejects.toEqual(code('ERR_DISPOSED'));
    await expect(classifier.save(join(folder, 'late'))).rejects.toEqual(code('ERR_DISPOSED'));
    expect(existsSync(join(folder, 'late'))).toBe(false);
    expect(await model.embed(TEST.texts)).toHaveLength(TEST.texts.length * model.config.hiddenSize);
  });

  test('refuses texts and labels that do not pair up, one class, and options out of range', async () => {
    const { texts, labels } = TRAIN;
    const refused: [readonly string[], readonly string[], object, string][] = [
      [texts, labels.slice(1), {}, 'ERR_INVALID_ARGUMENT'],
      [[], [], {}, 'ERR_EMPTY_DATA'],
      [texts, labels.map(() => 'one'), {}, 'ERR_INVALID_ARGUMENT'],
      [texts, labels.with(3, ''), {}, 'ERR_INVALID_ARGUMENT'],
      [texts, labels.with(3, '\ud83d'), {}, 'ERR_INVALID_ARGUMENT'],
      [texts.with(3, ''), labels, {}, 'ERR_INVALID_ARGUMENT'],
      [texts.with(3, 5 as unknown as string), labels, {}, 'ERR_INVALID_ARGUMENT'],
      [texts, labels, { layer: 3 }, 'ERR_INVALID_ARGUMENT'],
      [texts, labels, { heldOut: 1 }, 'ERR_INVALID_ARGUMENT'],
      [texts, labels, { learningRate: 0 }, 'ERR_INVALID_ARGUMENT'],
      [texts, labels, { l1: 1 }, 'ERR_UNKNOWN_OPTION'],
    ];
    for (const [someTexts, someLabels, options, expected] of refused) {
      await expect(fitClassifier(engine, model, someTexts, someLabels, options)).rejects.toEqual(code(expected));
    }
    const signal = AbortSignal.abort();
    await expect(fitClassifier(engine, model, texts, labels, {}, { signal })).rejects.toEqual(code('ERR_ABORTED'));
    const { classifier } = await fitVerbs();
    await expect(classifier.classify([])).rejects.toEqual(code('ERR_EMPTY_DATA'));
    await expect(classifier.classify('a text' as never)).rejects.toEqual(code('ERR_INVALID_ARGUMENT'));
    await expect(model.embed('a text' as never)).rejects.toEqual(code('ERR_INVALID_ARGUMENT'));
    await expect(classifier.evaluate(texts, labels.slice(1))).rejects.toEqual(code('ERR_INVALID_ARGUMENT'));
  });

  test('refuses a directory whose parts do not fit together', async () => {
    const good = join(folder, 'good');
    await (await fitVerbs()).classifier.save(good);
    const json = JSON.parse(readFileSync(join(good, 'classifier.json'), 'utf8'));
    let count = 0;
    const refuses = async (expected: string, change: (directory: string) => void | Promise<void>) => {
      const directory = join(folder, `broken-${count++}`);
      cpSync(good, directory, { recursive: true });
      await change(directory);
      await expect(loadClassifier(engine, directory)).rejects.toEqual(code(expected));
    };
    const writeJson = (value: object) => (directory: string) =>
      writeFileSync(join(directory, 'classifier.json'), JSON.stringify(value));
    const writeTensors = (weight: Float32Array, rows: number) => (directory: string) =>
      writeSafetensors(join(directory, 'classifier.safetensors'), [
        ['weight', { shape: [rows, weight.length / rows], data: weight }],
        ['bias', { shape: [4], data: new Float32Array(4) }],
      ]);
    await refuses('ERR_FILE_FORMAT', writeJson({ ...json, version: 2 }));
    await refuses('ERR_FILE_FORMAT', writeJson({ ...json, classes: ['a', 'b', 'c', 'a'] }));
    await refuses('ERR_CHECKPOINT_MISMATCH', writeJson({ ...json, layer: 9 }));
    await refuses('ERR_CHECKPOINT_MISMATCH', writeJson({ ...json, classes: ['a', 'b', 'c'] }));
    await refuses('ERR_CHECKPOINT_MISMATCH', writeTensors(new Float32Array(4 * 31), 4));
    await refuses('ERR_NOT_FINITE', writeTensors(new Float32Array(4 * 32).fill(Number.NaN), 4));
    await expect(loadClassifier(engine, join(folder, 'nowhere'))).rejects.toEqual(code('ERR_FILE_NOT_FOUND'));
  });
});
