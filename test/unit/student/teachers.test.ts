import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { loadBinding, type NativeEngine } from '../../../src/binding.js';
import { trainBytePairTokenizer } from '../../../src/formats/bpe-trainer.js';
import { createTokenizer, type Tokenizer } from '../../../src/formats/tokenizer.js';
import { alignCorpus, alignedSignal } from '../../../src/student/aligned-teacher.js';
import { distillLanguageModel } from '../../../src/student/language-student.js';
import type { WeightedTeacher } from '../../../src/student/teachers.js';
import { randomNumbers } from '../../../src/teacher/batches.js';
import { LanguageModel } from '../../../src/teacher/language-model.js';
import { languageModelConfig, pretrainLanguageModel } from '../../../src/teacher/pretrain.js';
import { describeEmulated, emulatedEngine } from '../../support/emulated-cuda.js';

const WORDS = (
  'film Paris İstanbul 東京 Rome moon🌙 good bad long loud quiet épique over under near far café river naïve song dark ' +
  'light slow fast'
).split(' ');
const random = randomNumbers(3);
/** A small language: each word goes on in one of three ways, one more likely than the others. */
function sentence(): string {
  let at = Math.floor(random() * WORDS.length);
  const words = Array.from({ length: 8 }, () => {
    const word = WORDS[at];
    const chance = random();
    at = (chance < 0.6 ? 5 * at + 1 : chance < 0.9 ? 7 * at + 3 : 11 * at + 2) % WORDS.length;
    return word;
  });
  return `${words.join(' ')}.`;
}
const texts = Array.from({ length: 400 }, sentence);
const corpus = { train: texts.slice(0, 300), validation: texts.slice(300, 350) };
const heldOut = texts.slice(350);
/** Too little to learn the language from. */
const few = { ...corpus, train: corpus.train.slice(0, 40) };
const architecture = {
  hiddenSize: 16,
  numHiddenLayers: 1,
  numAttentionHeads: 2,
  maxPositionEmbeddings: 64,
  dropout: 0,
};
const large = { ...architecture, hiddenSize: 32, numHiddenLayers: 2 };
const training = { epochs: 3, learningRate: 0.01, batchTokens: 256, seed: 1 };

let engine: NativeEngine;
/** Of the vocabulary of students, and of a smaller one. */
let teacher: LanguageModel;
let other: LanguageModel;
let otherTokenizer: Tokenizer;
beforeAll(async () => {
  engine = loadBinding().createEngine({ threads: 2 });
  const learn = (vocabSize: number, seed: number) =>
    pretrainLanguageModel(engine, corpus, {
      architecture: large,
      tokenizer: { vocabSize },
      training: { ...training, epochs: 15, seed },
    });
  teacher = (await learn(340, 1)).model;
  other = (await learn(290, 2)).model;
  otherTokenizer = other.tokenizer;
});
afterAll(() => {
  engine.dispose();
});

/** The student's loss on texts that nobody has seen. */
async function distil(
  teachers: LanguageModel | readonly WeightedTeacher[],
  options: object = {},
  { tokenizer, texts: given = corpus }: { tokenizer?: Tokenizer; texts?: typeof corpus } = {},
): Promise<{ loss: number; kd: number[]; epochs: readonly { hidden: number; attention: number }[] }> {
  const settings = { architecture, training, ...options };
  const { model, epochs } = await distillLanguageModel(engine, teachers, given, settings, { tokenizer });
  const { loss } = await model.loss(heldOut);
  model.dispose();
  return { loss, kd: epochs.map(({ kd }) => kd), epochs };
}

describe('several teachers of one vocabulary', () => {
  test('of weight one half each are one, in every term', async () => {
    const losses = { ce: 0.5, kd: 1, hidden: 0.5, attention: 0.5, relation: 0.5, temperature: 2 };
    const options = { losses, training: { ...training, epochs: 1 } };
    const half = { teacher, weight: 0.5 };
    const [one, two] = [await distil(teacher, options), await distil([half, half], options)];
    expect(one.kd[0]).toBeGreaterThan(0);
    expect(two.kd[0]).toBeCloseTo(one.kd[0] ?? Number.NaN, 3);
    expect(two.epochs[0]?.hidden).toBeCloseTo(one.epochs[0]?.hidden ?? Number.NaN, 3);
    expect(two.epochs[0]?.attention).toBeCloseTo(one.epochs[0]?.attention ?? Number.NaN, 3);
    expect(two.loss).toBeCloseTo(one.loss, 2);
  });

  test('of weight one in a list is the teacher alone, to the bit', async () => {
    const [alone, listed] = [await distil(teacher), await distil([{ teacher, weight: 1 }])];
    expect(listed).toEqual({ ...alone, epochs: expect.anything() });
  });

  test('have layer maps of their own', async () => {
    const losses = { kd: 0, hidden: 1 };
    const options = { losses, training: { ...training, epochs: 1, learningRate: 1e-9 } };
    const hidden = async (...maps: [number, number][][]) => {
      const list = maps.map((layerMap) => ({ teacher, weight: 1, layerMap }));
      return (await distil(list, options)).epochs[0]?.hidden ?? Number.NaN;
    };
    const [first, second] = [await hidden([[1, 1]]), await hidden([[1, 2]])];
    expect(first).not.toBeCloseTo(second, 3);
    expect(await hidden([[1, 1]], [[1, 2]])).toBeCloseTo(first + second, 4);
    expect(
      await hidden([
        [1, 1],
        [1, 2],
      ]),
    ).toBeCloseTo((first + second) / 2, 4);
  });
});

describe('a teacher of another vocabulary', () => {
  const sides = (maxLength = 64) =>
    [
      { tokenizer: teacher.tokenizer, vocabSize: teacher.config.vocabSize, maxLength },
      { tokenizer: otherTokenizer, vocabSize: other.config.vocabSize, maxLength: 64 },
    ] as const;

  test('reads the bytes that the student has read at every shared end, in cut texts too', async () => {
    for (const maxLength of [64, 7]) {
      const [student, theirs] = sides(maxLength);
      const aligned = await alignCorpus(corpus.train, student, theirs);
      const pieces = await teacher.tokenize(corpus.train, maxLength);
      expect([...aligned.rowOffsets]).toEqual([...pieces.offsets]);
      expect(aligned.numShared).toBeGreaterThan(0.5 * aligned.numLabels);
      let compared = 0;
      for (let piece = 0; piece + 1 < pieces.offsets.length; piece++) {
        const ours = pieces.ids.subarray(pieces.offsets[piece], pieces.offsets[piece + 1]);
        const read = aligned.ids.subarray(aligned.offsets[piece], aligned.offsets[piece + 1]);
        const rows = aligned.rows.subarray(aligned.rowOffsets[piece], aligned.rowOffsets[piece + 1]);
        expect(read.length).toBe(Math.max(...rows) + 1);
        rows.forEach((row, token) => {
          if (row === -1) return;
          const [a, b] = [
            teacher.tokenizer.decode(ours.subarray(0, token + 1)),
            otherTokenizer.decode(read.subarray(0, row + 1)),
          ];
          // A piece of a cut text begins inside a token of the teacher's, which the teacher does not read.
          expect(maxLength === 64 ? a === b : a.endsWith(b) || /\ufffd/.test(a + b), `${a} / ${b}`).toBe(true);
          compared++;
        });
      }
      expect(compared).toBe(aligned.numShared);
    }
  });

  test('says how likely each class of tokens is, and leaves the rest to one class', async () => {
    const [student, theirs] = sides();
    const aligned = await alignCorpus(corpus.train, student, theirs);
    const pieces = await teacher.tokenize(corpus.train);
    const indices = Int32Array.of(5, 2);
    const offsets = [0];
    const inputIds: number[] = [];
    for (const piece of indices) {
      inputIds.push(...pieces.ids.subarray(pieces.offsets[piece], pieces.offsets[piece + 1]));
      offsets.push(inputIds.length);
    }
    const batch = { inputIds: Int32Array.from(inputIds), sequenceOffsets: Int32Array.from(offsets), indices };
    const signal = await alignedSignal(other, aligned, batch, { weight: 1, topK: 4096 });
    const topK = Math.min(other.config.vocabSize, aligned.numClasses);
    const lists = signal.logits as { indices: Int32Array; values: Float32Array; logSumExp: Float32Array };

    // The same from the teacher's logits, token by token.
    let listed = 0;
    for (const [place, piece] of indices.entries()) {
      const read = aligned.ids.slice(aligned.offsets[piece], aligned.offsets[piece + 1]);
      const { logits = new Float32Array(0) } = await other.native.forward({
        inputIds: read,
        sequenceOffsets: Int32Array.of(0, read.length),
        logits: 'dense',
      });
      const rows = aligned.rows.subarray(aligned.rowOffsets[piece], aligned.rowOffsets[piece + 1]);
      rows.forEach((row, token) => {
        const base = ((offsets[place] ?? 0) + token) * topK;
        const list = lists.indices.subarray(base, base + topK);
        const expected = new Map<number, number>();
        aligned.teacherClasses.forEach((one, id) => {
          const mass = Math.exp(logits[row * other.config.vocabSize + id] ?? Number.NaN);
          if (row !== -1 && one !== -1) expected.set(one, (expected.get(one) ?? 0) + mass);
        });
        list.forEach((one, k) => {
          if (one === -1) return;
          listed++;
          expect(lists.values[base + k]).toBeCloseTo(Math.log(expected.get(one) ?? Number.NaN), 4);
          expected.delete(one);
        });
        expect(expected.size).toBe(0);
      });
    }
    expect(listed).toBeGreaterThan(1000);
  });

  test('teaches: its student is better on held-out texts than the same student without it', async () => {
    const { tokenizer } = teacher;
    const long = { ...training, epochs: 40 };
    const taught = await distil([{ teacher: other, weight: 1 }], { training: long }, { tokenizer, texts: few });
    const plain = await distil(teacher, { training: long, losses: { kd: 0 } }, { texts: few });
    expect(taught.kd.at(-1)).toBeLessThan(0.2 * (taught.kd[0] ?? 0));
    expect(taught.loss).toBeLessThan(plain.loss - 0.01);
  });

  test('reads texts from a file as it does from memory', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'limbeck-teachers-'));
    const path = join(folder, 'train.txt');
    writeFileSync(path, `${few.train.join('\n')}\n`);
    const list = [{ teacher: other, weight: 1 }];
    const { tokenizer } = teacher;
    const options = { architecture, training };
    const fromFile = { train: { path }, validation: corpus.validation };
    const { model, epochs } = await distillLanguageModel(engine, list, fromFile, options, { tokenizer });
    const inMemory = await distil(list, {}, { tokenizer, texts: few });
    expect(epochs.map(({ kd }) => kd)).toEqual(inMemory.kd);
    model.dispose();
    rmSync(folder, { recursive: true });
  });

  test('adds to one of the same vocabulary', async () => {
    const list = [
      { teacher, weight: 0.6 },
      { teacher: other, weight: 0.4, topK: 40 },
    ];
    const both = await distil(list, { training: { ...training, epochs: 6 } });
    expect(both.kd.at(-1)).toBeLessThan(0.5 * (both.kd[0] ?? 0));
  });
});

describe('teachers that cannot teach', () => {
  const refused = (teachers: unknown, options: object = {}, context: { tokenizer?: Tokenizer } = {}) =>
    expect(distil(teachers as LanguageModel, options, context)).rejects;

  test.each([0, -1, Number.NaN, Number.POSITIVE_INFINITY])('a weight of %s', async (weight) => {
    await refused([{ teacher, weight }]).toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringContaining('weight'),
    });
  });

  test('no teacher, and what is none', async () => {
    await refused([]).toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
    await refused([{ teacher: {}, weight: 1 }]).toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
    await refused([{ teacher, weight: 1, wait: 2 }]).toMatchObject({ code: 'ERR_UNKNOWN_OPTION' });
  });

  test('one of the student’s vocabulary that reads shorter texts, before the first step', async () => {
    const config = languageModelConfig('gpt2', teacher.config.vocabSize, { ...architecture, maxPositionEmbeddings: 8 });
    const short = LanguageModel.create(engine, 'gpt2', config, teacher.tokenizer, { seed: 1 });
    const list = [
      { teacher, weight: 1 },
      { teacher: short, weight: 1 },
    ];
    await refused(list).toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringMatching(/teachers\[1\].*at most 8 tokens.*training\.maxLength/s),
    });
    const { kd } = await distil(list, { training: { ...training, epochs: 1, maxLength: 8 } });
    expect(kd[0]).toBeGreaterThan(0);
    short.dispose();
  });

  test('one that shares no end of a token with its student', async () => {
    // It does not know the end of a text, where a text of one token has no other.
    const tokenizer = createTokenizer(await trainBytePairTokenizer(['xy'], { vocabSize: 258, specialTokens: [] }));
    const config = languageModelConfig('gpt2', tokenizer.vocabSize, architecture);
    const strange = LanguageModel.create(engine, 'gpt2', config, tokenizer, { seed: 1 });
    const [a, b] = [
      { teacher, weight: 1 },
      { teacher: strange, weight: 1 },
    ];
    const short = { ...corpus, train: ['a', 'b'] };
    await expect(distillLanguageModel(engine, [a, b], short, { architecture, training })).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringMatching(/teachers\[1\].*ends/s),
    });
    strange.dispose();
  });

  test('one of another vocabulary by layers, with a layer map, or without kd', async () => {
    const foreign = { teacher: other, weight: 1 };
    await refused([foreign], { losses: { hidden: 1 } }, { tokenizer: teacher.tokenizer }).toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringContaining('vocabulary'),
    });
    const list = [{ teacher, weight: 1 }, foreign];
    await refused(list, { losses: { kd: 0, hidden: 1 } }).toMatchObject({ message: expect.stringContaining('kd') });
    const mapped = { ...foreign, layerMap: [[1, 1]] };
    await refused([{ teacher, weight: 1 }, mapped]).toMatchObject({ message: expect.stringContaining('layerMap') });
  });

  test('a start from weights of another vocabulary', async () => {
    await refused(other, { initialise: 'width' }, { tokenizer: teacher.tokenizer }).toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringContaining('initialise'),
    });
  });

  test('a masked model of another vocabulary', async () => {
    const options = { objective: 'masked', architecture: large, training: { ...training, epochs: 1 } } as const;
    const { model } = await pretrainLanguageModel(engine, corpus, { ...options, tokenizer: { vocabSize: 280 } });
    await refused([
      { teacher, weight: 1 },
      { teacher: model, weight: 1 },
    ]).toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringMatching(/teachers\[1\].*masked/s),
    });
    model.dispose();
  });
});

describeEmulated('on a GPU', () => {
  test('one teacher of weight 1 and the student’s vocabulary is taken, others are refused at the start', async () => {
    const gpu = emulatedEngine();
    const make = (tokenizer: Tokenizer, seed: number) =>
      LanguageModel.create(gpu, 'gpt2', languageModelConfig('gpt2', tokenizer.vocabSize, architecture), tokenizer, {
        seed,
      });
    const [same, foreign] = [make(teacher.tokenizer, 5), make(otherTokenizer, 6)];
    const short = { train: corpus.train.slice(0, 2), validation: corpus.validation.slice(0, 1) };
    const options = { architecture, training: { ...training, epochs: 1 } };
    for (const [list, context] of [
      [[same, same].map((one) => ({ teacher: one, weight: 0.5 })), {}],
      [[{ teacher: same, weight: 2 }], {}],
      [[{ teacher: foreign, weight: 1 }], { tokenizer: teacher.tokenizer }],
    ] as const) {
      await expect(distillLanguageModel(gpu, list, short, options, context)).rejects.toMatchObject({
        code: 'ERR_INVALID_ARGUMENT',
        message: expect.stringContaining('GPU'),
      });
    }
    const { epochs } = await distillLanguageModel(gpu, [{ teacher: same, weight: 1 }], short, options);
    expect(epochs[0]?.kd).toBeGreaterThan(0);
    gpu.dispose();
  });
});
