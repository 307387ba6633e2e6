import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { loadBinding, type NativeEngine } from '../../../src/binding.js';
import { fitClassifier } from '../../../src/engine/classifier.js';
import { writeSafetensors } from '../../../src/formats/safetensors.js';
import { wordPieceTokenizerJson } from '../../../src/formats/tokenizer-json.js';
import { LanguageModel } from '../../../src/teacher/language-model.js';
import { fitStaticEncoder } from '../../../src/teacher/static-encoder.js';
import { askHub, startFakeHub } from '../../support/fake-hub.js';

let engine: NativeEngine;
let folder: string;
beforeAll(() => {
  engine = loadBinding().createEngine({ threads: 2 });
  folder = mkdtempSync(join(tmpdir(), 'limbeck-static-'));
});
afterAll(() => {
  engine.dispose();
  rmSync(folder, { recursive: true });
});

const TEXTS = [
  'red nail polish',
  'blue nail polish',
  'nail polish remover',
  'dry hair shampoo',
  'oily hair shampoo',
  'hair conditioner',
];

/** A Unigram tokenizer of whole words, and three vectors that its six tokens share. */
async function writeModel2Vec(
  directory: string,
  change: Record<string, { shape: number[]; data: Float32Array | Int32Array }>,
) {
  const vocab = [
    ['[PAD]', -10],
    ['[UNK]', -10],
    ['▁red', -3],
    ['▁nail', -3],
    ['▁polish', -3],
    ['▁hair', -3],
  ];
  const tokenizer = {
    version: '1.0',
    added_tokens: [],
    normalizer: {
      type: 'BertNormalizer',
      clean_text: true,
      handle_chinese_chars: true,
      strip_accents: null,
      lowercase: true,
    },
    pre_tokenizer: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'always', split: false },
    post_processor: null,
    decoder: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'always', split: false },
    model: { type: 'Unigram', unk_id: 1, vocab, byte_fallback: false },
  };
  writeFileSync(join(directory, 'tokenizer.json'), JSON.stringify(tokenizer));
  const tensors = {
    embeddings: { shape: [3, 2], data: Float32Array.of(0, 0, 1, 0, 0, 1) },
    mapping: { shape: [6], data: Int32Array.of(0, 0, 1, 1, 2, 2) },
    weights: { shape: [6], data: Float32Array.of(1, 1, 4, 1, 1, 2) },
    ...change,
  };
  await writeSafetensors(join(directory, 'model.safetensors'), Object.entries(tensors));
}

async function vectorsOf(model: LanguageModel, texts: readonly string[]): Promise<number[][]> {
  const { hiddenStates } = await model.forward(texts, { hiddenStates: [0], pooling: 'mean' });
  const { hiddenSize } = model.config;
  return texts.map((_, i) => [...(hiddenStates[0] ?? []).slice(i * hiddenSize, (i + 1) * hiddenSize)]);
}

function cosine(a: readonly number[] = [], b: readonly number[] = []): number {
  const dot = (x: readonly number[], y: readonly number[]) => x.reduce((sum, value, i) => sum + value * (y[i] ?? 0), 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
}

/** As {@link writeModel2Vec}, with BERT's kind of tokenizer, for which [CLS] and [SEP] are put around every text. */
async function writeBertModel2Vec(directory: string) {
  const words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'red', 'nail', 'polish'];
  writeFileSync(join(directory, 'tokenizer.json'), JSON.stringify(wordPieceTokenizerJson(words.join('\n'), true)));
  const data = Float32Array.of(9, 7, 8, 6, 5, 4, 3, 2, 1, 3, 1, 4, -2, 1, 3, 5);
  await writeSafetensors(join(directory, 'model.safetensors'), [['embeddings', { shape: [8, 2], data }]]);
}

describe('a static encoder', () => {
  test('reads of a model2vec directory what model2vec does: no tokens around a text, none of unknown words', async () => {
    const directory = mkdtempSync(join(folder, 'bert-'));
    await writeBertModel2Vec(directory);
    const model = await fitStaticEncoder(engine, TEXTS, { directory, lexicalComponents: 0 });
    expect([...model.encode(['red polish']).inputIds]).toEqual([5, 7]);
    const [both, one, unknown] = await vectorsOf(model, ['red polish', 'red quartz', 'quartz']);
    // Rows 5 and 7: (1, 4) and (3, 5).
    expect(cosine(both, [4, 9])).toBeCloseTo(1, 6);
    expect(cosine(one, [1, 4])).toBeCloseTo(1, 6);
    expect(unknown).toEqual([0, 0]);
    const saved = join(folder, 'bert-saved');
    await model.save(saved);
    const again = await LanguageModel.load(engine, saved);
    expect(await vectorsOf(again, ['red polish'])).toEqual([both]);
    for (const one of [model, again]) one.dispose();
  });

  test('puts texts of the same words together, and is a language model that can be saved', async () => {
    const model = await fitStaticEncoder(engine, TEXTS, { lexicalComponents: 3, tokenizer: { vocabSize: 320 } });
    const vectors = await vectorsOf(model, TEXTS);
    const unrelated = cosine(vectors[0], vectors[3]);
    expect(cosine(vectors[0], vectors[1])).toBeGreaterThan(unrelated + 0.4);
    expect(cosine(vectors[3], vectors[4])).toBeGreaterThan(unrelated + 0.4);
    // Three directions and one column that makes the width even.
    expect(model.config.hiddenSize).toBe(4);
    const means = [0, 1, 2, 3].map((c) => vectors.reduce((sum, v) => sum + (v[c] ?? 0), 0) / TEXTS.length);
    const variance = vectors.reduce((sum, v) => sum + v.reduce((s, x, c) => s + (x - (means[c] ?? 0)) ** 2, 0), 0);
    expect(variance / TEXTS.length).toBeCloseTo(1, 5);

    const directory = join(folder, 'saved');
    await model.save(directory);
    const again = await LanguageModel.load(engine, directory);
    expect(await vectorsOf(again, ['a new red polish'])).toEqual(await vectorsOf(model, ['a new red polish']));
    again.dispose();
    model.dispose();
  });

  test('embeds and classifies by its vectors where no layer is named', async () => {
    const model = await fitStaticEncoder(engine, TEXTS, { lexicalComponents: 3, tokenizer: { vocabSize: 320 } });
    const directory = join(folder, 'embeds');
    await model.save(directory);
    const again = await LanguageModel.load(engine, directory);
    for (const one of [model, again]) {
      const vectors = await one.embed(TEXTS);
      expect([...vectors.subarray(0, 4)]).toEqual((await vectorsOf(model, TEXTS))[0]);
      const labels = TEXTS.map((text) => (text.includes('hair') ? 'hair' : 'nails'));
      const options = { heldOut: 0, learningRate: 0.1 };
      const { classifier } = await fitClassifier(engine, one, TEXTS, labels, options);
      expect((await classifier.classify(TEXTS)).map(({ label }) => label)).toEqual(labels);
    }
    again.dispose();
    model.dispose();
  });

  test('reads model2vec: each token its vector times its weight, and scales them together', async () => {
    const directory = mkdtempSync(join(folder, 'model2vec-'));
    await writeModel2Vec(directory, {});
    // As of the encoder that it was made from; there is no such token here.
    writeFileSync(
      join(directory, 'tokenizer_config.json'),
      JSON.stringify({ sep_token: '[SEP]', add_bos_token: true }),
    );
    const model = await fitStaticEncoder(engine, ['red', 'polish', 'hair'], { directory, lexicalComponents: 0 });
    const [red, polish, hair, both, unknown] = await vectorsOf(model, ['red', 'polish', 'hair', 'nail hair', 'q']);
    // 4, 0 and 0, 1 and 0, 2 before: the variance is (16 + 1 + 4)/3 − (4/3)² − 1.
    const scale = 1 / Math.sqrt(7 - 16 / 9 - 1);
    const expected = [
      [4, 0],
      [0, 1],
      [0, 2],
      [0.5, 1],
      [0, 0],
    ].map((row) => row.map((value) => value * scale));
    [red, polish, hair, both, unknown].forEach((vector, i) => {
      expect(vector?.[0]).toBeCloseTo(expected[i]?.[0] ?? Number.NaN, 5);
      expect(vector?.[1]).toBeCloseTo(expected[i]?.[1] ?? Number.NaN, 5);
    });
    model.dispose();
  });

  test('fetches a model2vec encoder by its name on the hub', async () => {
    const directory = mkdtempSync(join(folder, 'model2vec-'));
    await writeModel2Vec(directory, {});
    const names = ['tokenizer.json', 'model.safetensors'];
    const files = Object.fromEntries(names.map((name) => [name, readFileSync(join(directory, name))]));
    const hub = await startFakeHub({ ...files, 'config.json': Buffer.from('{"model_type":"model2vec"}') });
    askHub(hub, join(folder, 'cache'));
    try {
      const downloads: string[] = [];
      const onProgress = ({ name }: { name: string }) => downloads.push(name);
      const options = { directory: 'hf://someone/small', lexicalComponents: 0 };
      const fetched = await fitStaticEncoder(engine, ['red', 'polish', 'hair'], options, { onProgress });
      const local = await fitStaticEncoder(engine, ['red', 'polish', 'hair'], { directory, lexicalComponents: 0 });
      expect(await vectorsOf(fetched, ['nail hair'])).toEqual(await vectorsOf(local, ['nail hair']));
      expect(new Set(downloads)).toEqual(new Set(['config.json', ...names].map((name) => `download ${name}`)));
      fetched.dispose();
      local.dispose();
    } finally {
      vi.unstubAllEnvs();
      await hub.close();
    }
  });

  test('has both kinds of vectors side by side', async () => {
    const directory = mkdtempSync(join(folder, 'model2vec-'));
    await writeModel2Vec(directory, {});
    const model = await fitStaticEncoder(engine, ['red nail', 'red polish', 'hair'], {
      directory,
      lexicalComponents: 2,
    });
    expect(model.config).toMatchObject({ vocabSize: 6, hiddenSize: 4 });
    model.dispose();
  });

  test('refuses to know nothing, no texts, and files that do not fit together', async () => {
    const nothing = fitStaticEncoder(engine, TEXTS, { lexicalComponents: 0 });
    await expect(nothing).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
    await expect(fitStaticEncoder(engine, [])).rejects.toMatchObject({ code: 'ERR_EMPTY_DATA' });
    const broken: Parameters<typeof writeModel2Vec>[1][] = [
      { mapping: { shape: [6], data: Int32Array.of(0, 0, 1, 1, 2, 3) } },
      { weights: { shape: [2], data: Float32Array.of(1, 1) } },
      { embeddings: { shape: [6], data: new Float32Array(6) } },
    ];
    for (const change of broken) {
      const directory = mkdtempSync(join(folder, 'broken-'));
      await writeModel2Vec(directory, change);
      const refused = fitStaticEncoder(engine, TEXTS, { directory });
      await expect(refused).rejects.toMatchObject({ code: 'ERR_CHECKPOINT_MISMATCH' });
    }
    for (const change of [
      { embeddings: { shape: [3, 2], data: Float32Array.of(0, 0, 1, 0, Number.NaN, 1) } },
      { weights: { shape: [6], data: Float32Array.of(1, 1, Number.POSITIVE_INFINITY, 1, 1, 2) } },
    ]) {
      const directory = mkdtempSync(join(folder, 'broken-'));
      await writeModel2Vec(directory, change);
      await expect(fitStaticEncoder(engine, TEXTS, { directory })).rejects.toMatchObject({ code: 'ERR_NOT_FINITE' });
    }
    const short = mkdtempSync(join(folder, 'broken-'));
    await writeModel2Vec(short, {
      mapping: { shape: [2], data: Int32Array.of(0, 1) },
      weights: { shape: [2], data: Float32Array.of(1, 1) },
    });
    await expect(fitStaticEncoder(engine, TEXTS, { directory: short })).rejects.toMatchObject({
      code: 'ERR_TOKENIZER',
    });
  });
});

const published = join(import.meta.dirname, '../../../../shared/data/models/model2vec-bge-vq128');
test.skipIf(!existsSync(published))(
  `a published model2vec encoder knows which words mean the same${existsSync(published) ? '' : ` (skipped: there is no ${published})`}`,
  async () => {
    const model = await fitStaticEncoder(engine, TEXTS, { directory: published, lexicalComponents: 0 });
    const [car, automobile, banana] = await vectorsOf(model, ['car', 'automobile', 'banana']);
    expect(cosine(car, automobile)).toBeGreaterThan(cosine(car, banana) + 0.2);
    model.dispose();
  },
);
