import { describe, expect, test } from 'vitest';
import { parseOptions } from '../../../src/prepare/parse-options.js';
import { languageModelTrainingSchema, pretrainOptionsSchema } from '../../../src/teacher/options.js';

const parse = (value: unknown) => parseOptions(pretrainOptionsSchema, value, 'teacher');

describe('pretraining options', () => {
  test('every option has a default', () => {
    const { objective, architecture, tokenizer, training } = parse({});
    expect(objective).toBe('causal');
    expect(architecture).toMatchObject({ hiddenSize: 128, numHiddenLayers: 3, numAttentionHeads: 4 });
    expect(tokenizer.vocabSize).toBe(2048);
    expect(training).toEqual(parseOptions(languageModelTrainingSchema, {}, 'training'));
    expect(training).toMatchObject({ epochs: 3, optimizer: 'adamw', maskProbability: 0.15, seed: 0 });
  });

  test('an unknown key is refused with the nearest one, at any depth', () => {
    expect(() => parse({ training: { learningrate: 1 } })).toThrow(
      expect.objectContaining({
        code: 'ERR_UNKNOWN_OPTION',
        message: expect.stringMatching(/teacher\.training .*"learningrate".*"learningRate"/),
      }),
    );
    expect(() => parse({ architecture: { hiddensize: 8 } })).toThrow(/"hiddenSize"/);
    expect(() => parse({ tokenizers: {} })).toThrow(/"tokenizer"/);
  });

  test.each([
    [{ training: { epochs: 0 } }, 'teacher.training.epochs'],
    [{ training: { learningRate: Number.NaN } }, 'teacher.training.learningRate'],
    [{ training: { learningRate: 0 } }, 'teacher.training.learningRate'],
    [{ training: { warmupRatio: 1 } }, 'teacher.training.warmupRatio'],
    [{ training: { batchTokens: 1.5 } }, 'teacher.training.batchTokens'],
    [{ training: { optimizer: 'adam' } }, 'teacher.training.optimizer'],
    [{ training: { maskProbability: 1 } }, 'teacher.training.maskProbability'],
    [{ training: { seed: -1 } }, 'teacher.training.seed'],
    [{ training: { patience: '2' } }, 'teacher.training.patience'],
    [{ architecture: { dropout: 1 } }, 'teacher.architecture.dropout'],
    [{ architecture: { hiddenSize: 30, numAttentionHeads: 4 } }, 'teacher.architecture.hiddenSize'],
    [{ tokenizer: { vocabSize: 257 } }, 'teacher.tokenizer.vocabSize'],
    [{ objective: 'prefix' }, 'teacher.objective'],
  ])('%j is refused by the name of the option', (value, name) => {
    expect(() => parse(value)).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT', message: expect.stringContaining(name) }),
    );
  });
});
