import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import type { NativeEngine } from '../../../src/binding.js';
import { trainBytePairTokenizer } from '../../../src/formats/bpe-trainer.js';
import { createTokenizer } from '../../../src/formats/tokenizer.js';
import type { EpochRecord } from '../../../src/teacher/fit-model.js';
import { LanguageModel } from '../../../src/teacher/language-model.js';
import {
  CROSS_ENTROPY,
  languageModelConfig,
  perEpoch,
  pretrainLanguageModel,
  type TextCorpus,
  trainLanguageModel,
} from '../../../src/teacher/pretrain.js';
import { copyParameters } from '../../../src/teacher/training-checkpoint.js';
import { temporaryDirectory } from './fake-model.js';
import { CORPUS, createNativeEngine, TEXTS, TINY } from './texts.js';

const folder = temporaryDirectory();
let engine: NativeEngine;
const models: LanguageModel[] = [];
beforeAll(() => {
  engine = createNativeEngine();
});
afterEach(() => {
  for (const model of models.splice(0)) model.dispose();
});
afterAll(() => {
  engine.dispose();
});

async function pretrain(...[options, context]: [Parameters<typeof pretrainLanguageModel>[2], object?]) {
  const result = await pretrainLanguageModel(engine, CORPUS, options, context);
  models.push(result.model);
  return result;
}

const first = (epochs: readonly EpochRecord[]) => epochs[0]?.trainLoss ?? Number.NaN;
const last = (epochs: readonly EpochRecord[]) => epochs.at(-1)?.trainLoss ?? Number.NaN;
const code = (value: string) => expect.objectContaining({ code: value });
const withoutTime = (epochs: readonly EpochRecord[]) => epochs.map(({ seconds: _, ...record }) => record);

describe('pretraining from scratch', () => {
  test('a causal model learns the texts: it predicts held-out ones, and continues a text', async () => {
    const { model, epochs, bestEpoch } = await pretrain(TINY);
    expect(model.family).toBe('gpt2');
    expect(model.tokenizer.eosTokenId).toBe(0);
    expect(epochs).toHaveLength(TINY.training.epochs);
    // An untrained model is at log(vocabulary) = 5.7.
    expect(first(epochs)).toBeGreaterThan(3);
    expect(last(epochs)).toBeLessThan(0.5 * first(epochs));
    const { loss } = await model.loss(CORPUS.validation);
    expect(loss).toBeCloseTo(epochs[bestEpoch - 1]?.validationLoss ?? Number.NaN, 10);
    expect(loss).toBe(Math.min(...epochs.map(({ validationLoss }) => validationLoss)));
    expect(TEXTS).toContain(`the cat${await model.generate('the cat', { maxNewTokens: 24 })}`);
  });

  test('a masked model learns the texts, with a mask token of its own', async () => {
    const training = { ...TINY.training, epochs: 16 };
    const { model, epochs } = await pretrain({ ...TINY, objective: 'masked', training });
    expect(model.family).toBe('bert');
    expect(model.tokenizer.maskTokenId).toBe(1);
    expect(model.tokenizer.decode([1])).toBe('[MASK]');
    // transformers would take it to be a WordPiece, as a BERT's usually is.
    expect(model.tokenizer.config).toMatchObject({ tokenizer_class: 'PreTrainedTokenizerFast', mask_token: '[MASK]' });
    expect(last(epochs)).toBeLessThan(0.6 * first(epochs));
    expect((await model.loss(CORPUS.validation)).loss).toBeLessThan(0.6 * first(epochs));
  });

  test('one seed gives one model, another seed another one', async () => {
    const short = (seed: number) => pretrain({ ...TINY, training: { ...TINY.training, epochs: 1, seed } });
    const parameters = async (seed: number) => copyParameters((await short(seed)).model.native);
    const once = await parameters(1);
    expect(await parameters(1)).toEqual(once);
    expect(await parameters(2)).not.toEqual(once);
  });

  test('refuses an unknown option, a corpus without text, and one without validation texts', async () => {
    const wrong = { ...TINY, training: { epoch: 1 } } as object;
    await expect(pretrain(wrong)).rejects.toThrow(/"epochs"/);
    for (const empty of [
      { train: [], validation: TEXTS },
      { train: TEXTS, validation: [] },
    ]) {
      await expect(pretrainLanguageModel(engine, empty, TINY)).rejects.toThrow(code('ERR_EMPTY_DATA'));
    }
  });

  test('stops when the signal is aborted, and frees the model', async () => {
    const controller = new AbortController();
    const work = pretrain(TINY, {
      signal: controller.signal,
      onProgress: ({ done }: { done: number }) => done === 2 && controller.abort(),
    });
    await expect(work).rejects.toThrow(code('ERR_ABORTED'));
  });
});

describe('training', () => {
  async function untrained(family: 'gpt2' | 'bert' = 'gpt2'): Promise<LanguageModel> {
    const tokenizer = createTokenizer(await trainBytePairTokenizer(TEXTS, { vocabSize: 300 }));
    const config = languageModelConfig(family, tokenizer.vocabSize, TINY.architecture);
    const model = LanguageModel.create(engine, family, config, tokenizer, { seed: 4 });
    models.push(model);
    return model;
  }

  test('adapts a model that was loaded', async () => {
    const { model } = await pretrain({ ...TINY, training: { ...TINY.training, epochs: 2 } });
    await model.save(join(folder, 'loaded'));
    const loaded = await LanguageModel.load(engine, join(folder, 'loaded'));
    models.push(loaded);
    const before = (await loaded.loss(CORPUS.validation)).loss;
    await trainLanguageModel(engine, loaded, CORPUS, TINY.training);
    expect((await loaded.loss(CORPUS.validation)).loss).toBeLessThan(0.8 * before);
    expect((await model.loss(CORPUS.validation)).loss).toBe(before);
  });

  test.each([{}, { microBatchTokens: 20, activationCheckpointing: true }])(
    'with %j goes on from a checkpoint with the bits of an uninterrupted run',
    async (memory) => {
      const options = { ...TINY.training, epochs: 3, ...memory };
      const whole = await untrained();
      const expected = await trainLanguageModel(engine, whole, CORPUS, options);

      const checkpoint = { path: join(folder, `state-${Object.keys(memory).length}`), fingerprint: 'f', everySteps: 2 };
      const controller = new AbortController();
      const stopped = trainLanguageModel(engine, await untrained(), CORPUS, options, {
        checkpoint,
        signal: controller.signal,
        onProgress: ({ done, total }) => done === Math.ceil(total / 2) && controller.abort(),
      });
      await expect(stopped).rejects.toThrow(code('ERR_ABORTED'));
      expect(existsSync(checkpoint.path)).toBe(true);

      const resumed = await untrained();
      let firstDone = 0;
      const found = await trainLanguageModel(engine, resumed, CORPUS, options, {
        checkpoint,
        onProgress: ({ done }) => {
          firstDone ||= done;
        },
      });
      expect(firstDone).toBeGreaterThan(1);
      expect(withoutTime(found.epochs)).toEqual(withoutTime(expected.epochs));
      expect(copyParameters(resumed.native)).toEqual(copyParameters(whole.native));
    },
  );

  test('in micro batches learns what it learns from whole ones', async () => {
    const losses = async (memory: object) => {
      const { epochs } = await trainLanguageModel(engine, await untrained(), CORPUS, {
        ...TINY.training,
        epochs: 2,
        ...memory,
      });
      return epochs.map(({ trainLoss, validationLoss }) => [trainLoss, validationLoss]);
    };
    const [whole, cut] = [await losses({}), await losses({ microBatchTokens: 30 })];
    expect(cut).not.toEqual(whole);
    cut.flat().forEach((loss, i) => {
      expect(loss).toBeCloseTo(whole.flat()[i] ?? Number.NaN, 3);
    });
    expect(await losses({ activationCheckpointing: true })).toEqual(whole);
    await expect(losses({ microBatchTokens: 0 })).rejects.toThrow(code('ERR_INVALID_ARGUMENT'));
  });

  test('a teacher over the same vocabulary enters the loss by its weights at each step', async () => {
    const { model: teacher } = await pretrain({ ...TINY, tokenizer: { vocabSize: 300 } });
    const student = LanguageModel.create(engine, 'gpt2', teacher.config, teacher.tokenizer, { seed: 9 });
    models.push(student);
    const agreement = async () => {
      const logits = async (model: LanguageModel) =>
        (await model.forward(CORPUS.validation, { logits: { topK: 1 } })).topK?.indices ?? new Int32Array();
      const [ours, theirs] = [
        await logits(student),
        await logits(teacher.native === student.native ? student : teacher),
      ];
      return ours.filter((id, i) => id === theirs[i]).length / theirs.length;
    };
    const before = await agreement();
    const steps: number[] = [];
    const { epochs } = await trainLanguageModel(engine, student, CORPUS, TINY.training, {
      teaching: {
        signal: () => ({ model: teacher.native, layerMap: [] }),
        losses: ({ step }) => {
          steps.push(step);
          return { ...CROSS_ENTROPY, ce: 0, kd: 1, temperature: 2 };
        },
      },
    });
    expect(steps).toEqual(Array.from(steps.keys()));
    expect(epochs.at(-1)?.kd).toBeLessThan(0.5 * (epochs[0]?.kd ?? Number.NaN));
    expect(last(epochs)).toBeCloseTo(epochs.at(-1)?.kd ?? Number.NaN, 5);
    expect(await agreement()).toBeGreaterThan(Math.max(0.8, before));
  });

  test('a masked objective without a mask token is ERR_TOKENIZER with a remedy', async () => {
    await expect(trainLanguageModel(engine, await untrained('bert'), CORPUS, TINY.training)).rejects.toThrow(
      expect.objectContaining({ code: 'ERR_TOKENIZER', message: expect.stringMatching(/\[MASK\]/) }),
    );
  });

  test('goes past texts in which nothing can be predicted', async () => {
    const model = await untrained();
    const corpus = { train: [...CORPUS.train.slice(0, 6), '', '', ''], validation: [...CORPUS.validation, ''] };
    // Two tokens a batch: an empty text is a batch of its own.
    const { epochs } = await trainLanguageModel(engine, model, corpus, { epochs: 1, batchTokens: 2 });
    expect(first(epochs)).toBeGreaterThan(0);
  });
});

test('perEpoch makes the plan of an epoch once while it is the last one asked for', () => {
  const made: number[] = [];
  const plan = perEpoch((epoch) => {
    made.push(epoch);
    return -epoch;
  });
  expect([plan(1), plan(1), plan(2), plan(2), plan(1)]).toEqual([-1, -1, -2, -2, -1]);
  expect(made).toEqual([1, 2, 1]);
});

describe('a corpus on disk', () => {
  test('teaches what the same texts in memory teach, to the last bit', async () => {
    const options = { ...TINY, training: { ...TINY.training, epochs: 3 } };
    const files = {
      train: { path: join(folder, 'train.txt') },
      validation: { path: join(folder, 'validation.jsonl') },
    };
    writeFileSync(files.train.path, CORPUS.train.join('\n'));
    writeFileSync(files.validation.path, CORPUS.validation.map((text) => JSON.stringify({ text })).join('\n'));
    for (const objective of ['causal', 'masked'] as const) {
      const [memory, disk] = [
        await pretrain({ ...options, objective }),
        await pretrainLanguageModel(engine, files, { ...options, objective }),
      ];
      models.push(disk.model);
      expect(withoutTime(disk.epochs)).toEqual(withoutTime(memory.epochs));
      expect(disk.model.tokenizer.json).toEqual(memory.model.tokenizer.json);
      expect(copyParameters(disk.model.native)).toEqual(copyParameters(memory.model.native));
    }
  });

  test('is refused by name where it is no file', async () => {
    const missing = { path: join(folder, 'missing.txt') };
    const corpora = [
      [{ ...CORPUS, train: missing }, 'ERR_FILE_NOT_FOUND'],
      [{ ...CORPUS, validation: missing }, 'ERR_FILE_NOT_FOUND'],
      [{ ...CORPUS, train: { path: 3 } }, 'ERR_INVALID_ARGUMENT'],
      [{ ...CORPUS, validation: { ...missing, colum: 'text' } }, 'ERR_UNKNOWN_OPTION'],
    ] as const;
    for (const [corpus, expected] of corpora) {
      await expect(pretrainLanguageModel(engine, corpus as TextCorpus, TINY)).rejects.toThrow(code(expected));
    }
  });
});
