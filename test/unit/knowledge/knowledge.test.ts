import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { type ForwardRequest, loadBinding, type NativeEngine, type NativeTransformer } from '../../../src/binding.js';
import { LimbeckError } from '../../../src/errors.js';
import { createTokenizer } from '../../../src/formats/tokenizer.js';
import { wordPieceTokenizerJson } from '../../../src/formats/tokenizer-json.js';
import { type ExtractOptions, extractKnowledge, extractKnowledgePart } from '../../../src/knowledge/extract.js';
import { fuseLayers, itemFeatures, reduceDimension } from '../../../src/knowledge/fuse.js';
import { Knowledge } from '../../../src/knowledge/knowledge.js';
import { mergeKnowledge } from '../../../src/knowledge/merge.js';
import { loadTextEncoder, saveTextEncoder, TextEncoder } from '../../../src/knowledge/text-encoder.js';
import { LanguageModel } from '../../../src/teacher/language-model.js';
import { languageModelConfig, pretrainLanguageModel } from '../../../src/teacher/pretrain.js';

const texts = Array.from(
  { length: 40 },
  (_, i) => `number ${i} of ${['red', 'green', 'blue'][i % 3]} things, ${1900 + i}`,
);
const ARCHITECTURE = {
  hiddenSize: 16,
  numHiddenLayers: 2,
  numAttentionHeads: 2,
  maxPositionEmbeddings: 32,
  dropout: 0,
};
let engine: NativeEngine;
let model: LanguageModel;
let otherModel: LanguageModel;
let root: string;
let folder: string;
let count = 0;
beforeAll(async () => {
  root = mkdtempSync(join(tmpdir(), 'limbeck-knowledge-'));
  engine = loadBinding().createEngine({ threads: 2 });
  const options = { architecture: ARCHITECTURE, tokenizer: { vocabSize: 300 }, training: { epochs: 1 } };
  model = (await pretrainLanguageModel(engine, { train: texts, validation: texts.slice(0, 9) }, options)).model;
  otherModel = LanguageModel.create(engine, model.family, model.config, model.tokenizer, { seed: 9 });
});
afterAll(() => {
  engine.dispose();
  rmSync(root, { recursive: true });
});
beforeEach(() => {
  folder = join(root, String(count++));
});
afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

const request = (): ExtractOptions => ({ directory: folder, hiddenStates: [0, 2], pooling: 'mean', shardTexts: 15 });
/** Every file of a store: name and bytes. */
const filesOf = async ({ directory }: Knowledge) =>
  readdirSync(directory)
    .sort()
    .map((name) => [name, readFileSync(join(directory, name)).toString('latin1')]);
const shard = (index: number) => join(folder, `knowledge-0000${index}.safetensors`);

describe('extraction', () => {
  test('reads of a long text what a forward pass does: its beginning, and what ends every text', async () => {
    const words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'red', 'thing'];
    const tokenizer = createTokenizer(wordPieceTokenizerJson(words.join('\n'), true));
    const config = languageModelConfig('bert', words.length, ARCHITECTURE);
    const bert = LanguageModel.create(engine, 'bert', config, tokenizer, { seed: 3, initializerRange: 0.5 });
    const mixed = ['red thing', 'thing red '.repeat(50), 'red'];
    const knowledge = await extractKnowledge(bert, mixed, { ...request(), hiddenStates: [2] });
    const expected = await bert.embed(mixed);
    for (const [i, value] of (await knowledge.hiddenState(2)).entries()) expect(value).toBeCloseTo(expected[i] ?? 9, 5);
    expect(bert.encode(mixed).inputIds[4 + 31]).toBe(words.indexOf('[SEP]'));
    bert.dispose();
  });

  test('keeps what a forward pass of each text gives', async () => {
    const everything = { attentions: [1], logits: { topK: 3, packed: false }, pooling: 'none' as const };
    const knowledge = await extractKnowledge(model, texts, { ...request(), ...everything });
    const { sequenceOffsets, hiddenStates, attentions, topK } = await model.forward(texts, {
      hiddenStates: [0, 2],
      attentions: [1],
      logits: { topK: 3 },
    });
    expect(await knowledge.sequenceOffsets()).toEqual(sequenceOffsets);
    expect(await knowledge.hiddenState(2)).toEqual(hiddenStates[1]);
    expect(await knowledge.attentions(1)).toEqual(attentions[0]);
    expect(await knowledge.topK()).toEqual({ ...topK, topK: 3 });
  });

  test('packs top-k logits within the stated divergence', async () => {
    const topK = 16;
    const knowledge = await extractKnowledge(model, texts, { ...request(), logits: { topK } });
    const { indices, values, logSumExp } = await knowledge.topK();
    const { topK: exact } = await model.forward(texts, { logits: { topK } });
    expect(indices).toEqual(exact?.indices);
    let worst = 0;
    logSumExp.forEach((lse, row) => {
      let [divergence, rest, packedRest] = [0, 1, 1];
      for (let i = row * topK; i < (row + 1) * topK; i++) {
        const p = Math.exp((exact?.values[i] ?? 0) - (exact?.logSumExp[row] ?? 0));
        const q = Math.exp((values[i] ?? 0) - lse);
        divergence += p * Math.log(p / q);
        rest -= p;
        packedRest -= q;
      }
      worst = Math.max(worst, divergence + rest * Math.log(rest / packedRest));
    });
    expect(worst).toBeLessThan(3.1e-5);
    expect(worst).toBeGreaterThan(1e-7);
  });

  test('pools by the first token and by attention, and keeps value relations of other head counts', async () => {
    const config = { ...model.config, attention: 'bidirectional' as const };
    const teacher = LanguageModel.create(engine, model.family, config, model.tokenizer, { seed: 4 });
    const ask = { hiddenStates: [0, 2], attentions: [1, 2], valueRelations: [2], relationHeads: 4 };
    const whole = await teacher.forward(texts, ask);
    const { sequenceOffsets: at } = whole;
    const d = config.hiddenSize;
    const state = (layer: number, token: number, c: number) => whole.hiddenStates[layer]?.[token * d + c] ?? 0;

    const cls = await extractKnowledge(teacher, texts, { ...request(), pooling: 'cls' });
    const first = await cls.hiddenState(2);
    const weighted = await extractKnowledge(teacher, texts, {
      ...request(),
      directory: join(folder, 'attention'),
      pooling: 'attention',
      valueRelations: [2],
      relationHeads: 4,
    });
    for (const [i, layer] of [0, 2].entries()) {
      const pooled = await weighted.hiddenState(layer);
      let map = 0; // where the text's maps begin
      for (let s = 0; s < texts.length; s++) {
        const begin = at[s] ?? 0;
        const t = (at[s + 1] ?? 0) - begin;
        for (let c = 0; c < d; c += 5) {
          let sum = 0;
          for (let j = 0; j < t; j++) {
            let received = 0;
            for (let hi = 0; hi < 2 * t; hi++) received += whole.attentions[i]?.[map + hi * t + j] ?? 0;
            sum += (received / (2 * t)) * state(i, begin + j, c);
          }
          expect(pooled[s * d + c]).toBeCloseTo(sum, 5);
          if (layer === 2) expect(first[s * d + c]).toBe(state(1, begin, c));
        }
        map += 2 * t * t;
      }
    }
    expect(await weighted.valueRelations(2)).toEqual(whole.valueRelations[0]);
    const pairs = texts.reduce((sum, _, s) => sum + ((at[s + 1] ?? 0) - (at[s] ?? 0)) ** 2, 0);
    expect(whole.valueRelations[0]).toHaveLength(4 * pairs);
    teacher.dispose();
  });

  test.each(['float16', 'bfloat16'] as const)('rounds to %s where asked', async (dtype) => {
    const knowledge = await extractKnowledge(model, texts, { ...request(), attentions: [2], dtype });
    const exact = await model.forward(texts, { hiddenStates: [2], pooling: 'mean', attentions: [2] });
    const precision = dtype === 'float16' ? 2 ** -11 : 2 ** -8;
    for (const [found, expected] of [
      [await knowledge.hiddenState(2), exact.hiddenStates[0]],
      [await knowledge.attentions(2), exact.attentions[0]],
    ] as const) {
      let worst = 0;
      expected?.forEach((value, i) => {
        worst = Math.max(worst, Math.abs((found[i] ?? 0) - value) - precision * Math.abs(value));
      });
      expect(worst).toBeLessThan(2 ** -25);
      expect(found).not.toEqual(expected);
    }
  });

  test.each([
    ['of an even number', 'qz'],
    ['of an odd number', 'q'],
  ])('refuses a value that float16 cannot hold, the last %s, and bfloat16 holds it', async (_, text) => {
    const config = { ...model.config, hiddenSize: 5, numAttentionHeads: 1, numKeyValueHeads: 1, headDim: 5 };
    const teacher = LanguageModel.create(engine, model.family, config, model.tokenizer, { seed: 4 });
    const last = model.tokenizer.encode(text).at(-1) ?? 0;
    const lastOf = async (value: number, dtype: 'float16' | 'bfloat16') => {
      const words = teacher.native.getParameter('embeddings.word').fill(0);
      words[last * 5 + 4] = value;
      teacher.native.setParameter('embeddings.word', words);
      teacher.native.setParameter('embeddings.position', new Float32Array(5 * config.maxPositionEmbeddings));
      const directory = join(folder, `${dtype} ${value}`);
      const options = { directory, hiddenStates: [0], dtype };
      return (await (await extractKnowledge(teacher, [text], options)).hiddenState(0)).at(-1);
    };
    expect(await lastOf(65_519, 'float16')).toBe(65_504);
    expect(await lastOf(-65_520, 'bfloat16')).toBe(-65_536);
    for (const value of [-65_520, 1e9]) {
      await expect(lastOf(value, 'float16')).rejects.toMatchObject({
        code: 'ERR_NOT_FINITE',
        message: expect.stringMatching(`at most 65504 in 'hidden_states.0' .* got ${value}; use dtype 'bfloat16'`),
      });
    }
    teacher.dispose();
  });

  test('gives back what was kept of any texts in any order', async () => {
    const knowledge = await extractKnowledge(model, texts, {
      ...request(),
      pooling: 'none',
      attentions: [1],
      logits: 'dense',
    });
    const wanted = Int32Array.of(39, 3, 4, 16, 0);
    const reader = knowledge.openReader();
    const batch = await reader.read(wanted);
    const expected = await model.forward(
      Array.from(wanted, (text) => texts[text] ?? ''),
      { hiddenStates: [0, 2], attentions: [1], logits: 'dense' },
    );
    expect(batch.sequenceOffsets).toEqual(expected.sequenceOffsets);
    expect([...batch.hiddenStates.values()]).toEqual(expected.hiddenStates);
    expect(batch.attentions.get(1)).toEqual(expected.attentions[0]);
    expect(batch.logits).toEqual(expected.logits);
    await expect(reader.read(Int32Array.of(40))).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
    await reader.close();
  });

  test('keeps dense logits, and one pooled row a text', async () => {
    const knowledge = await extractKnowledge(model, texts, { ...request(), logits: 'dense' });
    const { hiddenStates, logits } = await model.forward(texts, {
      hiddenStates: [0, 2],
      pooling: 'mean',
      logits: 'dense',
    });
    expect(await knowledge.hiddenState(0)).toEqual(hiddenStates[0]);
    expect(await knowledge.logits()).toEqual(logits);
  });

  test('stopped after a shard goes on behind it, and ends with the same bits', async () => {
    const controller = new AbortController();
    const onProgress = ({ done }: { done: number }) => {
      if (done === 15) controller.abort();
    };
    const stopped = extractKnowledge(model, texts, request(), { signal: controller.signal, onProgress });
    await expect(stopped).rejects.toMatchObject({ code: 'ERR_ABORTED' });
    await expect(Knowledge.open(folder)).rejects.toMatchObject({
      code: 'ERR_FILE_FORMAT',
      message: expect.stringContaining('unfinished'),
    });
    const written = statSync(shard(0)).mtimeMs;
    const knowledge = await extractKnowledge(model, texts, request());
    expect(statSync(shard(0)).mtimeMs).toBe(written);
    const whole = await extractKnowledge(model, texts, { ...request(), directory: join(folder, 'whole') });
    expect(await knowledge.hiddenState(2)).toEqual(await whole.hiddenState(2));
  });

  test('by a teacher that was saved and loaded belongs to the same store', async () => {
    await extractKnowledge(model, texts, request());
    const written = statSync(shard(2)).mtimeMs;
    await model.save(join(folder, 'model'));
    const again = await LanguageModel.load(engine, join(folder, 'model'));
    await extractKnowledge(again, texts, request());
    expect(statSync(shard(2)).mtimeMs).toBe(written);
  });

  test.each([
    ['other texts', () => [model, texts.slice(1), {}], 'other texts'],
    ['another order of the texts', () => [model, [...texts].reverse(), {}], 'other texts'],
    ['another request', () => [model, texts, { hiddenStates: [1] }], 'hiddenStates [0,2], now [1]'],
    ['another teacher', () => [otherModel, texts, {}], 'another teacher'],
  ] as const)('refuses a directory that holds knowledge of %s, and leaves it alone', async (_, change, said) => {
    await extractKnowledge(model, texts, request());
    const before = readFileSync(join(folder, 'manifest.json'), 'utf8');
    const [by, of, options] = change() as [LanguageModel, string[], Partial<ExtractOptions>];
    await expect(extractKnowledge(by, of, { ...request(), ...options })).rejects.toMatchObject({
      code: 'ERR_CHECKPOINT_MISMATCH',
      message: expect.stringContaining(said),
    });
    expect(readFileSync(join(folder, 'manifest.json'), 'utf8')).toBe(before);
  });

  test('says which shard is missing, and makes it anew', async () => {
    const expected = await filesOf(await extractKnowledge(model, texts, request()));
    rmSync(shard(0));
    await expect(Knowledge.open(folder)).rejects.toMatchObject({
      code: 'ERR_FILE_NOT_FOUND',
      message: expect.stringContaining('knowledge-00000'),
    });
    expect(await filesOf(await extractKnowledge(model, texts, request()))).toEqual(expected);
  });

  test('waits for no one: a directory that is being written is refused', async () => {
    // Which of the two comes first is up to the disk.
    const both = await Promise.allSettled([1, 2].map(() => extractKnowledge(model, texts, request())));
    expect(both.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected']);
    expect(both.find(({ status }) => status === 'rejected')).toMatchObject({ reason: { code: 'ERR_LOCKED' } });
  });

  test('extracts again what a damaged shard had', async () => {
    const expected = await (await extractKnowledge(model, texts, request())).hiddenState(2);
    const bytes = readFileSync(shard(1));
    bytes[bytes.length - 5] = (bytes.at(-5) ?? 0) ^ 0x40;
    writeFileSync(shard(1), bytes);
    await expect(Knowledge.open(folder)).rejects.toMatchObject({ code: 'ERR_FILE_FORMAT' });
    expect(await (await extractKnowledge(model, texts, request())).hiddenState(2)).toEqual(expected);
  });

  test.each([
    ['a layer that the teacher does not have', { hiddenStates: [3] }, 'ERR_INVALID_ARGUMENT'],
    ['a layer twice', { hiddenStates: [0, 0] }, 'ERR_INVALID_ARGUMENT'],
    ['nothing to extract', { hiddenStates: [] }, 'ERR_INVALID_ARGUMENT'],
    ['the first token of a causal model', { pooling: 'cls' as const }, 'ERR_INVALID_ARGUMENT'],
    ['relation heads that do not divide', { valueRelations: [1], relationHeads: 3 }, 'ERR_INVALID_ARGUMENT'],
    ['more logits than the vocabulary has', { logits: { topK: 1000 } }, 'ERR_INVALID_ARGUMENT'],
    ['an unknown option', { layer: 1 }, 'ERR_UNKNOWN_OPTION'],
  ])('refuses %s', async (_, options, code) => {
    await expect(extractKnowledge(model, texts, { ...request(), ...options })).rejects.toMatchObject({ code });
  });

  test('refuses no texts', async () => {
    await expect(extractKnowledge(model, [], request())).rejects.toMatchObject({ code: 'ERR_EMPTY_DATA' });
  });

  test.each([
    ['names a shard behind the last', (manifest: string) => manifest.replace('"index": 2', '"index": 3')],
    ['names a shard twice', (manifest: string) => manifest.replace('"index": 1', '"index": 0')],
    ['is cut short', (manifest: string) => manifest.slice(0, 200)],
    ['lists too few texts', (manifest: string) => manifest.replace('"texts": 15', '"texts": 14')],
  ])('refuses a manifest that %s', async (_, change) => {
    await extractKnowledge(model, texts, request());
    const path = join(folder, 'manifest.json');
    writeFileSync(path, change(readFileSync(path, 'utf8')));
    await expect(Knowledge.open(folder)).rejects.toMatchObject({ code: 'ERR_FILE_FORMAT' });
  });

  test('reads nothing where a shard does not have what is asked for, and leaves no failure behind', async () => {
    await extractKnowledge(model, texts, request());
    const reader = (await Knowledge.open(folder)).openReader();
    const other = join(folder, 'other');
    await extractKnowledge(model, texts, { ...request(), directory: other, hiddenStates: [1] });
    cpSync(join(other, 'knowledge-00001.safetensors'), shard(1));
    const all = Int32Array.from(texts.keys());
    await reader.sequenceOffsets(all); // opens the shards
    truncateSync(shard(0), 100);
    const unhandled: unknown[] = [];
    const remember = (error: unknown) => unhandled.push(error);
    process.on('unhandledRejection', remember);
    try {
      await expect(reader.hiddenState(2, all)).rejects.toMatchObject({
        code: 'ERR_INVALID_ARGUMENT',
        message: expect.stringContaining("no 'hidden_states.2'"),
      });
      await expect(reader.hiddenState(2, Int32Array.of(0))).rejects.toMatchObject({ code: 'ERR_SAFETENSORS' });
    } finally {
      process.off('unhandledRejection', remember);
      await reader.close();
    }
    expect(unhandled).toEqual([]);
  });

  test.each([
    ['negative', -(2 ** 31)],
    ['longer than the memory', 2 ** 31 - 1],
    ['another', 1],
  ])('refuses a shard in which the length of a text is %s, though its checksum holds', async (_, length) => {
    await extractKnowledge(model, texts, { ...request(), pooling: 'none', attentions: [1] });
    const bytes = readFileSync(shard(1));
    const headerBytes = Number(bytes.readBigUInt64LE());
    const header = JSON.parse(bytes.toString('utf8', 8, 8 + headerBytes));
    bytes.writeInt32LE(length, 8 + headerBytes + header.lengths.data_offsets[0]);
    writeFileSync(shard(1), bytes);
    const manifest = JSON.parse(readFileSync(join(folder, 'manifest.json'), 'utf8'));
    manifest.shards[1].crc32c = loadBinding().crc32c(bytes).toString(16).padStart(8, '0');
    writeFileSync(join(folder, 'manifest.json'), JSON.stringify(manifest));
    const knowledge = await Knowledge.open(folder);
    await expect(knowledge.sequenceOffsets()).rejects.toMatchObject({ code: 'ERR_FILE_FORMAT' });
    await expect(knowledge.hiddenState(2)).rejects.toMatchObject({ code: 'ERR_FILE_FORMAT' });
    await expect(knowledge.attentions(1)).rejects.toMatchObject({ code: 'ERR_FILE_FORMAT' });
  });

  test('says what was not extracted', async () => {
    const knowledge = await extractKnowledge(model, texts, request());
    await expect(knowledge.hiddenState(1)).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
  });
});

describe('extraction keeps the engine busy', () => {
  /** The teacher, whose passes can be watched. */
  const watched = (
    onForward: (request: ForwardRequest) => void | Promise<void>,
    device: 'cpu' | 'cuda' = 'cpu',
    config = model.config,
  ) => {
    const native = {
      device,
      parameters: () => model.native.parameters(),
      parameterChecksum: (name: string) => model.native.parameterChecksum(name),
      forward: async (asked: ForwardRequest) => {
        await onForward(asked);
        return model.native.forward(asked);
      },
    };
    return new LanguageModel(native as unknown as NativeTransformer, model.family, config, model.tokenizer);
  };
  const eventually = async (holds: () => boolean) => {
    const until = performance.now() + 5000;
    while (!holds() && performance.now() < until) await new Promise((resolve) => setTimeout(resolve, 2));
    return holds();
  };

  test('writes the results of a batch while the next one runs, and no more than two are in memory', async () => {
    let running = 0;
    let passes = 0;
    const seen: boolean[] = [];
    const teacher = watched(async () => {
      expect(++running).toBe(1);
      const before = passes++ - 1;
      // The shard of the batch before ends up in place during this pass; that of the one before it was there.
      if (before > 0) expect(readdirSync(folder).join()).toContain(`knowledge-0000${before - 1}`);
      if (before >= 0) seen.push(existsSync(shard(before)), await eventually(() => existsSync(shard(before))));
      running--;
    });
    await extractKnowledge(teacher, texts, { ...request(), shardTexts: 10 });
    expect(seen).toEqual([false, true, false, true, false, true]);
  });

  test('gives a GPU four passes ahead, and writes their results in order', async () => {
    let running = 0;
    const seen: number[] = [];
    const onForward = async () => {
      seen.push(++running);
      await new Promise((resolve) => setTimeout(resolve, 20 * (running % 3)));
      running--;
    };
    const options = { ...request(), pooling: 'none' as const, batchTokens: 40 };
    const overlapping = await filesOf(await extractKnowledge(watched(onForward, 'cuda'), texts, options));
    expect(Math.max(...seen)).toBe(4);
    expect(seen.length).toBeGreaterThan(8);
    const directory = join(folder, 'alone');
    expect(await filesOf(await extractKnowledge(model, texts, { ...options, directory }))).toEqual(overlapping);
  });

  /** Does something before each text is tokenised. */
  const tokenising = async (before: (text: string) => void, work: () => Promise<unknown>) => {
    const { encode } = model.tokenizer;
    model.tokenizer.encode = (text, options) => {
      before(text);
      return encode(text, options);
    };
    try {
      await work();
    } finally {
      model.tokenizer.encode = encode;
    }
  };

  test('tokenises the next shard while the first batch of one runs', async () => {
    let encoded = 0;
    let passes = 0;
    const teacher = watched(async () => {
      if (passes++ === 0) expect(await eventually(() => encoded >= 20)).toBe(true);
    });
    await tokenising(
      () => encoded++,
      () => extractKnowledge(teacher, texts, { ...request(), shardTexts: 10, batchTokens: 40 }),
    );
    expect(passes).toBeGreaterThan(8);
  });

  test('gives the same store batch by batch', async () => {
    const everything = { pooling: 'none' as const, attentions: [1], valueRelations: [2], logits: { topK: 3 } };
    const whole = await filesOf(await extractKnowledge(model, texts, { ...request(), ...everything }));
    for (const logits of [{ topK: 3 }, { topK: 3, packed: false }, 'dense' as const]) {
      const stores = [];
      for (const [i, batchTokens] of [1, 100, 100_000].entries()) {
        const directory = join(folder, `${JSON.stringify(logits).replaceAll(/\W/g, '')}-${i}`);
        const options = { ...request(), ...everything, logits, batchTokens, directory };
        stores.push(await filesOf(await extractKnowledge(model, texts, options)));
      }
      expect(stores[1]).toEqual(stores[0]);
      expect(stores[2]).toEqual(stores[0]);
      if (typeof logits === 'object' && !('packed' in logits)) expect(stores[0]).toEqual(whole);
    }
  });

  test.each([
    ['4,096 on a processor', 'cpu', 4096, {}],
    ['32,768 on a GPU', 'cuda', 32_768, {}],
    ['as many as asked for', 'cuda', 500, { batchTokens: 500 }],
    // A GiB of dense logits.
    ['fewer on a GPU where the results are large', 'cuda', 400, { logits: 'dense' }],
  ] as const)('reads tokens a pass: %s', async (_, device, tokens, options) => {
    const many = Array.from({ length: 5000 }, (__, i) => texts[i % texts.length] ?? '');
    const longest = Math.max(...texts.map((text) => model.tokenizer.encode(text).length));
    const config = { ...model.config, vocabSize: 2 ** 28 / 400 };
    const passes: number[] = [];
    const onForward = ({ inputIds }: ForwardRequest) => {
      passes.push(inputIds.length);
      throw new LimbeckError('ERR_INTERNAL', 'enough seen');
    };
    const work = extractKnowledge(watched(onForward, device, config), many, {
      ...request(),
      shardTexts: 10_000,
      ...options,
    });
    await expect(work).rejects.toMatchObject({ message: 'enough seen' });
    expect(passes.length).toBeLessThanOrEqual(device === 'cuda' ? 4 : 1); // a GPU is given the next ones at once
    expect(passes[0]).toBeLessThanOrEqual(tokens);
    expect(passes[0]).toBeGreaterThan(tokens - longest - 1);
  });

  test.each(['the engine', 'the tokenizer'])(
    'finishes the shards before one that %s fails in, leaves nothing half-written and ends with the error',
    async (where) => {
      const broken = texts.map((text, i) => (i === 35 && where === 'the engine' ? '' : text));
      await tokenising(
        (text) => {
          if (text === texts[35] && where === 'the tokenizer') throw new LimbeckError('ERR_TOKENIZER', 'no token');
        },
        () =>
          expect(extractKnowledge(model, broken, { ...request(), shardTexts: 10 })).rejects.toMatchObject({
            code: where === 'the engine' ? 'ERR_INVALID_ARGUMENT' : 'ERR_TOKENIZER',
            message: expect.stringContaining('no token'),
          }),
      );
      expect(readdirSync(folder).filter((name) => name.endsWith('.safetensors'))).toHaveLength(3);
      expect(readdirSync(folder).filter((name) => name.endsWith('.tmp'))).toEqual([]);
      expect(JSON.parse(readFileSync(join(folder, 'manifest.json'), 'utf8')).shards).toHaveLength(3);
    },
  );

  test('waits for the pass that runs when it is stopped, and leaves nothing half-written', async () => {
    const controller = new AbortController();
    let ended = 0;
    let passes = 0;
    const teacher = watched(async () => {
      if (++passes === 3) controller.abort();
      await new Promise((resolve) => setTimeout(resolve, 20));
      ended++;
    });
    const options = { ...request(), shardTexts: 30, batchTokens: 60 };
    const work = extractKnowledge(teacher, texts, options, { signal: controller.signal });
    await expect(work).rejects.toMatchObject({ code: 'ERR_ABORTED' });
    expect([passes, ended]).toEqual([3, 3]);
    expect(readdirSync(folder).filter((name) => /\.tmp$|safetensors/.test(name))).toEqual([]);
  });
});

describe('extraction by parts', () => {
  const part = (index: number, count = 3, directory = folder) =>
    extractKnowledgePart(model, texts, { ...request(), directory, shardTexts: 7 }, { index, count });

  test('gives the bytes of one process, in one directory or in several', async () => {
    const whole = await extractKnowledge(model, texts, { ...request(), directory: `${folder}-whole`, shardTexts: 7 });
    const expected = await filesOf(whole);
    expect(expected).toHaveLength(7); // 6 shards and the manifest
    const counts = [await part(2), await part(1), await part(3)].map(({ numTexts }) => numTexts);
    expect(counts).toEqual([14, 14, 12]);
    expect(await filesOf(await mergeKnowledge(folder))).toEqual(expected);
    expect((await mergeKnowledge(folder)).numTexts).toBe(40); // again: merged already

    const others = [1, 2, 3].map((index) => `${folder}-${index}`);
    for (const [i, directory] of others.entries()) await part(i + 1, 3, directory);
    const [target = '', ...rest] = others;
    expect(await filesOf(await mergeKnowledge(target, rest))).toEqual(expected);
    for (const directory of [...others, `${folder}-whole`]) rmSync(directory, { recursive: true });
  });

  test('of more processes than shards leaves some without texts', async () => {
    const counts = [];
    for (let index = 1; index <= 8; index++) counts.push((await part(index, 8)).numTexts);
    expect(counts.filter((count) => count === 0)).toHaveLength(2);
    expect((await mergeKnowledge(folder)).numTexts).toBe(40);
  });

  test.each([
    ['a part that is missing', async () => void (await part(1)), 'ERR_FILE_NOT_FOUND', 'Part 2 of 3'],
    ['no part at all', async () => void mkdirSync(folder), 'ERR_FILE_NOT_FOUND', 'no part'],
    [
      'parts of two divisions',
      async () => void [await part(1), await part(2, 2)],
      'ERR_CHECKPOINT_MISMATCH',
      'of 2 parts',
    ],
    [
      'parts of two teachers',
      async () => {
        await part(1);
        const options = { ...request(), shardTexts: 7 };
        await extractKnowledgePart(otherModel, texts, options, { index: 2, count: 3 });
      },
      'ERR_CHECKPOINT_MISMATCH',
      'another teacher',
    ],
    [
      'a shard that was lost',
      async () => {
        for (const index of [1, 2, 3]) await part(index);
        rmSync(shard(4));
      },
      'ERR_FILE_NOT_FOUND',
      'knowledge-00004',
    ],
    [
      'a part that is not finished',
      async () => {
        for (const index of [1, 2, 3]) await part(index);
        const path = join(folder, 'manifest-2-of-3.json');
        const manifest = JSON.parse(readFileSync(path, 'utf8'));
        writeFileSync(path, JSON.stringify({ ...manifest, shards: manifest.shards.slice(1) }));
      },
      'ERR_FILE_FORMAT',
      'unfinished',
    ],
  ])('refuses to merge %s', async (_, prepare, code, said) => {
    await prepare();
    const message = expect.stringContaining(said);
    await expect(mergeKnowledge(folder)).rejects.toMatchObject({ code, message });
  });

  test('refuses a part that there is not', async () => {
    await expect(part(4)).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
  });
});

describe('fusion', () => {
  const size = { rows: 3, columns: 2 };
  const a = Float32Array.of(1, 2, 3, 4, 5, 6);
  const b = Float32Array.of(3, 2, 1, 0, 1, 2);

  test('by mean, by given weights, and side by side', async () => {
    expect((await fuseLayers(engine, [a, b], size, { method: 'mean' })).values).toEqual(
      Float32Array.of(2, 2, 2, 2, 3, 4),
    );
    const weighted = await fuseLayers(engine, [a, b], size, { method: 'weights', weights: [2, -1] });
    expect(weighted.values).toEqual(Float32Array.of(-1, 2, 5, 8, 9, 10));
    const wide = await fuseLayers(engine, [a, b], size, { method: 'concat' });
    expect(wide.columns).toBe(4);
    expect(wide.values).toEqual(Float32Array.of(1, 2, 3, 2, 3, 4, 1, 0, 5, 6, 1, 2));
  });

  test('learns the weight of the layer in which items that follow each other agree', async () => {
    const rows = 64;
    const columns = 8;
    const noise = (seed: number) =>
      Float32Array.from({ length: rows * columns }, (_, i) => Math.sin(seed * (i + 1) * 12.9898) * 2);
    const telling = noise(3);
    for (let row = 1; row < rows; row += 2) telling.copyWithin(row * columns, (row - 1) * columns, row * columns);
    const queries = Int32Array.from({ length: rows / 2 }, (_, i) => 2 * i);
    const pairs = { queries, targets: queries.map((row) => row + 1) };
    const fused = await fuseLayers(engine, [noise(1), telling], { rows, columns }, { method: 'weights' }, { pairs });
    expect(fused.weights[1]).toBeGreaterThan(0.8);
    expect((fused.weights[0] ?? 0) + (fused.weights[1] ?? 0)).toBeCloseTo(1, 5);
  });

  test.each([
    ['weights of another number', { method: 'weights', weights: [1] }, 'ERR_INVALID_ARGUMENT'],
    ['weights for a mean', { method: 'mean', weights: [1, 1] }, 'ERR_INVALID_ARGUMENT'],
    ['weights to learn without pairs', { method: 'weights' }, 'ERR_INVALID_ARGUMENT'],
  ] as const)('refuses %s', async (_, options, code) => {
    await expect(fuseLayers(engine, [a, b], size, options as never)).rejects.toMatchObject({ code });
  });

  test('dimension reduction keeps the directions of most variance', async () => {
    const rows = 50;
    const x = Float32Array.from({ length: rows * 3 }, (_, i) => Math.sin(i * 7.1) * ([10, 1, 0.1][i % 3] ?? 0));
    const { values, explainedVariance } = await reduceDimension(engine, x, { rows, columns: 3, components: 2 });
    expect(values).toHaveLength(rows * 2);
    expect(explainedVariance[0]).toBeGreaterThan(20 * (explainedVariance[1] ?? 0));
  });
});

describe('item features', () => {
  test.each(['mean', 'concat'] as const)(
    'fused by %s have variance 1, and a text encoder gives the same ones',
    async (method) => {
      const knowledge = await extractKnowledge(model, texts, request());
      const { features, encoder: spec } = await itemFeatures(engine, knowledge, { fusion: { method }, components: 4 });
      for (let component = 0; component < 4; component++) {
        const column = texts.map((_, row) => features[row * 4 + component] ?? 0);
        const mean = column.reduce((sum, value) => sum + value, 0) / column.length;
        const variance = column.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (column.length - 1);
        expect(mean).toBeCloseTo(0, 3);
        expect(variance).toBeCloseTo(1, 2);
      }
      await saveTextEncoder(join(folder, 'encoder'), model, spec);
      const encoder = await loadTextEncoder(engine, join(folder, 'encoder'));
      expect(encoder.featureSize).toBe(4);
      const encoded = encoder.encode(texts);
      encoded.forEach((value, i) => {
        expect(value).toBeCloseTo(features[i] ?? 0, 3);
      });
      cpSync(join(folder, 'encoder'), join(folder, 'broken'), { recursive: true });
      writeFileSync(join(folder, 'broken/text_encoder.json'), '{"format": "limbeck-text-encoder", "version": 2}');
      await expect(loadTextEncoder(engine, join(folder, 'broken'))).rejects.toMatchObject({ code: 'ERR_FILE_FORMAT' });
      for (const layers of [[9], [0, 1, 2, 2]]) {
        const json = { format: 'limbeck-text-encoder', version: 1, layers, fusion: 'concat' };
        writeFileSync(join(folder, 'broken/text_encoder.json'), JSON.stringify(json));
        await expect(loadTextEncoder(engine, join(folder, 'broken'))).rejects.toMatchObject({
          code: 'ERR_CHECKPOINT_MISMATCH',
          message: expect.stringContaining('text_encoder.json'),
        });
      }
      encoder.dispose();
      expect(() => encoder.encode(texts)).toThrow(expect.objectContaining({ code: 'ERR_DISPOSED' }));
    },
  );

  test('refuse more components than there are directions, and knowledge that is not pooled', async () => {
    const knowledge = await extractKnowledge(model, texts, request());
    await expect(itemFeatures(engine, knowledge, { components: 41 })).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
    });
    const single = await extractKnowledge(model, texts, {
      ...request(),
      directory: join(folder, 'none'),
      pooling: 'none',
    });
    await expect(itemFeatures(engine, single, { components: 2 })).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
    });
  });

  test('a text encoder refuses a spec that does not fit its model', () => {
    const spec = {
      layers: [9],
      fusion: 'sum' as const,
      weights: Float32Array.of(1),
      mean: new Float32Array(16),
      components: new Float32Array(32),
    };
    expect(() => TextEncoder.create(engine, model, spec)).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }),
    );
  });
});
