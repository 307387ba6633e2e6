import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { loadBinding, type NativeEngine, type TransformerConfig } from '../../../src/binding.js';
import { trainBytePairTokenizer } from '../../../src/formats/bpe-trainer.js';
import { FAMILY_NAMES, type ModelFamily } from '../../../src/formats/model-config.js';
import { createTokenizer, type Tokenizer } from '../../../src/formats/tokenizer.js';
import { distillLanguageModel } from '../../../src/student/language-student.js';
import { languageStudentConfig } from '../../../src/student/language-student-config.js';
import { FAMILY_STRUCTURES } from '../../../src/teacher/family-structures.js';
import { LanguageModel } from '../../../src/teacher/language-model.js';

const texts = Array.from({ length: 60 }, (_, i) => `film ${i % 10} is ${['good', 'bad', 'long'][i % 3]}`);
const corpus = { train: texts, validation: texts.slice(0, 12) };
const training = { epochs: 1, learningRate: 0.01, batchTokens: 256, seed: 1 };
const families = Object.keys(FAMILY_NAMES) as ModelFamily[];
let engine: NativeEngine;
let tokenizer: Tokenizer;
let folder: string;
beforeAll(async () => {
  engine = loadBinding().createEngine({ threads: 1 });
  folder = mkdtempSync(join(tmpdir(), 'limbeck-student-'));
  tokenizer = createTokenizer(
    await trainBytePairTokenizer(texts, { vocabSize: 280, specialTokens: ['<|endoftext|>', '[PAD]', '[MASK]'] }),
  );
});
afterAll(() => {
  engine.dispose();
  rmSync(folder, { recursive: true });
});

function makeTeacher(family: ModelFamily, changes: Partial<TransformerConfig> = {}): LanguageModel {
  const isRoberta = family.endsWith('roberta');
  const config = {
    ...FAMILY_STRUCTURES[family],
    ...(isRoberta ? { positionOffset: (tokenizer.padTokenId ?? 0) + 1 } : {}),
    vocabSize: tokenizer.vocabSize,
    hiddenSize: 32,
    numHiddenLayers: 4,
    numAttentionHeads: 4,
    numKeyValueHeads: 4,
    headDim: 8,
    intermediateSize: 80,
    maxPositionEmbeddings: 24,
    tieWordEmbeddings: true,
    embeddingDropout: 0,
    attentionDropout: 0,
    hiddenDropout: 0,
    ...changes,
  };
  return LanguageModel.create(engine, family, config, tokenizer, { seed: 3, initializerRange: 0.2 });
}

const shape = { hiddenSize: 16, numHiddenLayers: 2, numAttentionHeads: 2, dropout: 0 };
const configOf = (teacher: LanguageModel, more: object = {}, layers = [2, 4], family = teacher.family) =>
  languageStudentConfig(teacher, family, { ...shape, ...more }, layers);

describe('a student in the family of its teacher', () => {
  test('has the proportions of its teacher', () => {
    const teacher = makeTeacher('qwen3', { numKeyValueHeads: 2, headDim: 16, intermediateSize: 72 });
    expect(configOf(teacher)).toEqual({
      ...teacher.config,
      hiddenSize: 16,
      numHiddenLayers: 2,
      numAttentionHeads: 2,
      numKeyValueHeads: 1,
      headDim: 16,
      intermediateSize: 36,
    });
  });

  test.each([
    { numAttentionHeads: 6, hiddenSize: 24, expected: 3 },
    { numAttentionHeads: 5, hiddenSize: 20, expected: 1 },
    { numAttentionHeads: 1, hiddenSize: 20, expected: 1 },
  ])('of $numAttentionHeads heads has $expected for keys and values under a teacher with pairs', (sizes) => {
    const { expected, ...heads } = sizes;
    expect(configOf(makeTeacher('llama', { numKeyValueHeads: 2 }), heads).numKeyValueHeads).toBe(expected);
  });

  test('has the sizes that are asked for', () => {
    const sizes = { numKeyValueHeads: 2, headDim: 4, intermediateSize: 30, maxPositionEmbeddings: 8 };
    expect(configOf(makeTeacher('mistral', { numKeyValueHeads: 2 }), sizes)).toMatchObject(sizes);
  });

  test('has windows where the blocks that it comes from have them', () => {
    const teacher = makeTeacher('qwen2', { slidingWindow: 5, maxWindowLayers: 2 });
    expect(configOf(teacher, {}, [2, 4])).toMatchObject({ slidingWindow: 5, maxWindowLayers: 1 });
    expect(configOf(teacher, {}, [3, 4])).not.toHaveProperty('maxWindowLayers');
    expect(configOf(teacher, {}, [1, 2])).not.toHaveProperty('slidingWindow');
    expect(configOf(makeTeacher('mistral', { slidingWindow: 5 }))).toMatchObject({ slidingWindow: 5 });
  });

  test('refuses what the family cannot have, more positions than the teacher, and heads that do not divide', () => {
    const gpt2 = makeTeacher('gpt2');
    expect(() => configOf(gpt2, { numKeyValueHeads: 1 })).toThrow(
      expect.objectContaining({ code: 'ERR_UNSUPPORTED_MODEL', message: expect.stringContaining('numKeyValueHeads') }),
    );
    expect(() => configOf(gpt2, { maxPositionEmbeddings: 25 })).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT', message: expect.stringContaining('24') }),
    );
    expect(() => configOf(makeTeacher('llama'), { hiddenSize: 18 })).toThrow(
      expect.objectContaining({ code: 'ERR_UNSUPPORTED_MODEL', message: expect.stringContaining('even') }),
    );
  });

  test('of a grouped teacher starts from its weights', async () => {
    const teacher = makeTeacher('llama', { numKeyValueHeads: 2 });
    const { model } = await distillLanguageModel(engine, teacher, corpus, {
      architecture: { hiddenSize: 32, numHiddenLayers: 4, numAttentionHeads: 4, dropout: 0 },
      initialise: 'layers',
      training: { ...training, learningRate: 1e-12 },
    });
    const [ours, theirs] = await Promise.all([model.loss(texts), teacher.loss(texts)]);
    expect(ours.loss).toBeCloseTo(theirs.loss, 6);
  });
});

describe('a student of another family', () => {
  test.each(families)('%s learns from a teacher over its vocabulary and is the same once saved', async (family) => {
    const { attention } = FAMILY_STRUCTURES[family];
    const other =
      attention === 'causal' ? (family === 'llama' ? 'gpt2' : 'llama') : family === 'bert' ? 'roberta' : 'bert';
    const teacher = makeTeacher(other, other === 'llama' ? { numKeyValueHeads: 2, tieWordEmbeddings: false } : {});
    const losses = { hidden: 0.5, relation: 0.5 };
    const { model, epochs } = await distillLanguageModel(engine, teacher, corpus, {
      family,
      architecture: shape,
      training: { ...training, epochs: 6 },
      losses,
    });
    expect(model.family).toBe(family);
    expect(epochs.at(-1)?.kd).toBeLessThan(epochs[0]?.kd ?? 0);
    const directory = join(folder, family);
    await model.save(directory);
    // Ids of this vocabulary, not those that transformers takes where config.json does not say.
    const ids = attention === 'causal' ? {} : { pad_token_id: tokenizer.padTokenId };
    const config = JSON.parse(readFileSync(join(directory, 'config.json'), 'utf8'));
    const bos = family === 'gpt2' ? tokenizer.eosTokenId : null;
    expect(config).toMatchObject({ model_type: family, bos_token_id: bos, eos_token_id: tokenizer.eosTokenId, ...ids });
    const again = await LanguageModel.load(engine, directory);
    expect(again.family).toBe(family);
    const input = texts.slice(0, 3);
    const [ours, theirs] = await Promise.all([
      model.forward(input, { logits: 'dense' }),
      again.forward(input, { logits: 'dense' }),
    ]);
    expect(ours.logits?.length).toBe(ours.inputIds.length * tokenizer.vocabSize);
    expect(theirs.logits).toEqual(ours.logits);
    for (const one of [teacher, model, again]) one.dispose();
  });

  test('has as many feed-forward parameters with a gate as without', () => {
    expect(configOf(makeTeacher('gpt2'), {}, [2, 4], 'llama').intermediateSize).toBe(43);
    expect(configOf(makeTeacher('llama'), {}, [2, 4], 'gpt2').intermediateSize).toBe(64);
  });

  test('refuses one of the other objective', () => {
    expect(() => configOf(makeTeacher('llama'), {}, [2, 4], 'bert')).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT', message: expect.stringContaining('bidirectional') }),
    );
  });

  test('refuses a RoBERTa over a vocabulary without a padding token', async () => {
    const json = await trainBytePairTokenizer(texts, { vocabSize: 280, specialTokens: ['[MASK]'] });
    const teacher = makeTeacher('bert');
    const bare = new LanguageModel(teacher.native, 'bert', teacher.config, createTokenizer(json));
    expect(() => configOf(bare, {}, [2, 4], 'roberta')).toThrow(expect.objectContaining({ code: 'ERR_TOKENIZER' }));
  });
});
