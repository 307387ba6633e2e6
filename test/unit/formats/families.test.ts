/** Every family against the float64 numbers of an independent script: `test/fixtures/families/make.py`. */
import { copyFileSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { compareDirectory } from '../../../scripts/parity/compare.mjs';
import { loadBinding } from '../../../src/binding.js';
import { loadCheckpoint, saveCheckpoint } from '../../../src/formats/checkpoint.js';
import { CheckpointTensors } from '../../../src/formats/checkpoint-files.js';
import { readJsonFile } from '../../../src/formats/files.js';
import { readSafetensors, type WritableTensor, writeSafetensors } from '../../../src/formats/safetensors.js';
import { huggingFaceFromNative } from '../../../src/formats/tensor-names.js';
import { temporaryDirectory } from './temporary-directory.js';

const fixtures = join(import.meta.dirname, '../../fixtures');
const families = join(fixtures, 'families');
const cases = readdirSync(families, { withFileTypes: true }).flatMap((entry) =>
  entry.isDirectory() ? [entry.name] : [],
);
const root = temporaryDirectory();
const engine = loadBinding().createEngine({ threads: 1 });
afterAll(() => engine.dispose());

/** A copy of a case, with its tensors in one float32 file, changed. */
async function changed(
  source: string,
  name: string,
  change: { config?: object; tensors?: (tensors: Map<string, WritableTensor>) => void },
): Promise<string> {
  const directory = join(root, name);
  mkdirSync(directory);
  const config = JSON.parse(readFileSync(join(source, 'config.json'), 'utf8'));
  const loaded = await loadCheckpoint(engine, source);
  const tensors = huggingFaceFromNative(loaded.family, loaded.config, (one) => loaded.model.getParameter(one));
  loaded.model.dispose();
  change.tensors?.(tensors as Map<string, WritableTensor>);
  await writeSafetensors(join(directory, 'model.safetensors'), tensors);
  writeFileSync(join(directory, 'config.json'), JSON.stringify({ ...config, ...change.config }));
  return directory;
}

test('all cases are there', () => {
  const expected = ['bert-gelu-new', 'distilbert', 'llama3', 'mistral', 'qwen2', 'qwen3', 'roberta'];
  expect(cases.sort()).toEqual(expected);
});

test('a bare decoder, as text encoders are saved, has the hidden states of the whole one', async () => {
  const source = join(families, 'mistral');
  const whole = await loadCheckpoint(engine, source);
  expect(whole.config.tieWordEmbeddings).toBe(false);
  const config = { architectures: ['MistralModel'] };
  const directory = await changed(source, 'bare', {
    config,
    tensors: (tensors) => {
      tensors.delete('lm_head.weight');
      for (const [name, tensor] of [...tensors]) {
        tensors.delete(name);
        tensors.set(name.replace(/^model\./, ''), tensor);
      }
    },
  });
  const bare = await loadCheckpoint(engine, directory);
  const batch = { inputIds: Int32Array.of(5, 30, 11, 7), sequenceOffsets: Int32Array.of(0, 4), hiddenStates: [2] };
  expect((await bare.model.forward(batch)).hiddenStates).toEqual((await whole.model.forward(batch)).hiddenStates);
  const saved = join(root, 'bare-saved');
  await saveCheckpoint(saved, bare);
  const again = await loadCheckpoint(engine, saved);
  expect((await again.model.forward(batch)).hiddenStates).toEqual((await whole.model.forward(batch)).hiddenStates);
});

describe.each(cases)('%s', (name) => {
  const directory = join(families, name);

  test('hidden states, attention maps, logits, loss, gradients and AdamW agree', async () => {
    const product = { engine, loadCheckpoint, readJsonFile, readSafetensors, huggingFaceFromNative };
    const report = await compareDirectory(product, directory);
    expect(Object.keys(report.groups)).toEqual(
      expect.arrayContaining(['hiddenStates', 'attentions', 'logits', 'loss', 'gradients', 'adamw']),
    );
    expect(report, JSON.stringify(report.groups)).toMatchObject({ passed: true });
  });

  test('is saved in its own layout, and opens again to the same bits', async () => {
    const loaded = await loadCheckpoint(engine, directory);
    const saved = join(root, `${name}-saved`);
    await saveCheckpoint(saved, loaded);
    const again = await loadCheckpoint(engine, saved);
    expect(again.family).toBe(loaded.family);
    expect(again.config).toEqual(loaded.config);
    for (const { name: parameter } of loaded.model.parameters()) {
      expect(again.model.getParameter(parameter), parameter).toEqual(loaded.model.getParameter(parameter));
    }
    const original = await CheckpointTensors.open(directory);
    const written = await readSafetensors(join(saved, 'model.safetensors'));
    for (const tensor of written.tensors.keys()) expect([...original.tensors.keys()]).toContain(tensor);
    await original.close();
    const config = JSON.parse(readFileSync(join(directory, 'config.json'), 'utf8'));
    const json = JSON.parse(readFileSync(join(saved, 'config.json'), 'utf8'));
    expect(json).toMatchObject({ model_type: config.model_type, architectures: config.architectures });
  });

  test('takes as many tokens as it has positions, and names what is too long', async () => {
    const { model, config } = await loadCheckpoint(engine, directory);
    const read = (length: number) =>
      model.forward({
        inputIds: new Int32Array(length).fill(5),
        sequenceOffsets: Int32Array.of(0, length),
        logits: 'dense',
      });
    const { logits } = await read(config.maxPositionEmbeddings);
    expect(logits?.every(Number.isFinite)).toBe(true);
    await expect(read(config.maxPositionEmbeddings + 1)).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringContaining(`takes ${config.maxPositionEmbeddings}`),
    });
  });

  test('refuses a tensor of another shape, a missing one and an extra one', async () => {
    const norm = (tensors: Map<string, WritableTensor>) =>
      [...tensors.keys()].find((one) => /norm.*weight$/i.test(one)) as string;
    const changes: ((tensors: Map<string, WritableTensor>) => void)[] = [
      (tensors) => tensors.set(norm(tensors), { shape: [3], data: new Float32Array(3) }),
      (tensors) => tensors.delete(norm(tensors)),
      (tensors) => tensors.set('classifier.weight', { shape: [1], data: new Float32Array(1) }),
    ];
    for (const [i, tensors] of changes.entries()) {
      const directoryOfChange = await changed(directory, `${name}-tensors-${i}`, { tensors });
      await expect(loadCheckpoint(engine, directoryOfChange)).rejects.toMatchObject({
        code: 'ERR_CHECKPOINT_MISMATCH',
      });
    }
  });

  test('refuses a config.json that is malformed, or has a key that may change the result', async () => {
    for (const [i, config] of [{ vocab_size: 41 }, { vocab_size: '40' }, { logit_scale: 2 }].entries()) {
      const directoryOfChange = await changed(directory, `${name}-config-${i}`, { config });
      await expect(loadCheckpoint(engine, directoryOfChange)).rejects.toMatchObject({
        code: i === 0 ? 'ERR_CHECKPOINT_MISMATCH' : 'ERR_UNSUPPORTED_MODEL',
        message: expect.stringContaining(['embed', 'vocab_size', 'logit_scale'][i] as string),
      });
    }
    const broken = join(root, `${name}-broken`);
    mkdirSync(broken);
    writeFileSync(join(broken, 'config.json'), '{"model_type": ');
    await expect(loadCheckpoint(engine, broken)).rejects.toMatchObject({ code: 'ERR_FILE_FORMAT' });
  });
});

test.each(['mistral', 'qwen2', 'qwen3', 'llama3'])(
  'a %s generates over cached keys what whole passes would choose',
  async (name) => {
    const { model, config } = await loadCheckpoint(engine, join(families, name));
    const prompt = [5, 30, 11];
    const draws = { temperature: 0, topK: 0, topP: 1, repetitionPenalty: 1, seed: 0 };
    const request = { maxNewTokens: 13, minNewTokens: 0, eosTokenIds: new Int32Array(), ...draws };
    const generation = model.startGeneration({ inputIds: Int32Array.from(prompt), ...request });
    const generated = Array.from(await generation.next(13));
    expect(generated.length).toBe(13); // past the windows of 3 and 4
    const ids = [...prompt];
    for (const id of generated) {
      const { logits } = await model.forward({
        inputIds: Int32Array.from(ids),
        sequenceOffsets: Int32Array.of(0, ids.length),
        logits: 'dense',
        logitRows: Int32Array.of(ids.length - 1),
      });
      const row = logits as Float32Array;
      expect(row.length).toBe(config.vocabSize);
      expect(id).toBe(row.indexOf(row.reduce((a, b) => Math.max(a, b))));
      ids.push(id);
    }
  },
);

test('pooling the last token gives the row that the whole pass gives', async () => {
  for (const name of ['mistral', 'qwen2', 'qwen3', 'roberta']) {
    const { model, config } = await loadCheckpoint(engine, join(families, name));
    const inputIds = Int32Array.from({ length: 15 }, (_, i) => 4 + ((7 * i) % 30));
    const batch = { inputIds, sequenceOffsets: Int32Array.of(0, 6, 15), hiddenStates: [config.numHiddenLayers] };
    const all = (await model.forward(batch)).hiddenStates[0] as Float32Array;
    const last = (await model.forward({ ...batch, pooling: 'last' })).hiddenStates[0] as Float32Array;
    const d = config.hiddenSize;
    const expected = [...all.subarray(5 * d, 6 * d), ...all.subarray(14 * d, 15 * d)];
    expect(last.length).toBe(expected.length);
    expected.forEach((value, i) => {
      expect(last[i]).toBeCloseTo(value, 5);
    });
  }
});

test('RoBERTa gives padding the row before position 0, and does not count it', async () => {
  const { model } = await loadCheckpoint(engine, join(families, 'roberta'));
  const embed = async (ids: number[]) => {
    const request = { inputIds: Int32Array.from(ids), sequenceOffsets: Int32Array.of(0, ids.length) };
    return (await model.forward({ ...request, hiddenStates: [0] })).hiddenStates[0] as Float32Array;
  };
  const d = 16;
  const row = (values: Float32Array, i: number) => values.subarray(i * d, (i + 1) * d);
  const plain = await embed([7, 8, 9]);
  const withPadding = await embed([7, 1, 8, 9, 1]);
  expect(row(withPadding, 2)).toEqual(row(plain, 1));
  expect(row(withPadding, 3)).toEqual(row(plain, 2));
  expect(row(withPadding, 4)).toEqual(row(withPadding, 1));
});

test('a shard of a case may not be missing', async () => {
  const directory = join(root, 'without-shard');
  mkdirSync(directory);
  for (const file of readdirSync(join(families, 'mistral'))) {
    if (!file.includes('00002-of')) copyFileSync(join(families, 'mistral', file), join(directory, file));
  }
  await expect(loadCheckpoint(engine, directory)).rejects.toMatchObject({
    code: 'ERR_FILE_NOT_FOUND',
    message: expect.stringContaining('model-00002-of-00003.safetensors'),
  });
});
