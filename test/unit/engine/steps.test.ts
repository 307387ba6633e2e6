/** Steps that are called alone, by the public names. */
import { setTimeout } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { cacheSequenceTeacher, createEngine, type Engine, Knowledge, mergeKnowledge } from '../../../src/index.js';

const ITEMS = 12;
const HISTORY = 6;
const architecture = { hiddenSize: 8, numHiddenLayers: 1, numAttentionHeads: 2, maxHistory: HISTORY, dropout: 0 };
// Everybody goes round the items in order.
const users = Int32Array.from({ length: 24 }, (_, user) => user);
const train = {
  users,
  sequences: Int32Array.from({ length: users.length * HISTORY }, (_, i) => {
    return (Math.trunc(i / HISTORY) + (i % HISTORY)) % ITEMS;
  }),
  sequenceOffsets: Int32Array.from({ length: users.length + 1 }, (_, user) => user * HISTORY),
};
const validation = {
  ...train,
  targets: users.map((user) => (user + HISTORY) % ITEMS),
  excludeIds: new Int32Array(),
  excludeOffsets: new Int32Array(users.length + 1),
};
const data = { train, validation, numItems: ITEMS };

let engine: Engine;
beforeAll(async () => {
  engine = await createEngine({ device: 'cpu', threads: 2 });
});
afterAll(() => {
  engine.dispose();
});

test.each(['', 'a\0b', undefined, 7])('what reads or writes a directory refuses %j as its path', async (path) => {
  const directory = path as string;
  const model = engine.createSequenceModel(architecture, { numItems: ITEMS, seed: 1 });
  const student = engine.createStudent(
    model,
    Array.from({ length: ITEMS }, (_, i) => ({ id: `i${i}`, text: `Item ${i}` })),
  );
  const calls = [
    student.save(directory),
    engine.loadStudent(directory),
    engine.loadLanguageModel(directory),
    engine.loadClassifier(directory),
    engine.openModelRegistry(directory),
    engine.evaluate(directory),
    Knowledge.open(directory),
    mergeKnowledge(directory),
  ];
  for (const outcome of await Promise.allSettled(calls)) {
    expect(outcome).toMatchObject({ reason: { name: 'LimbeckError', code: 'ERR_INVALID_ARGUMENT' } });
  }
  student.dispose();
});

test('an evaluation of what is no output directory says what it wants', async () => {
  await expect(engine.evaluate('out/none/student')).rejects.toMatchObject({
    code: 'ERR_FILE_NOT_FOUND',
    message: expect.stringMatching(/out\/none\/student\/evaluation\.safetensors.*output directory of a distillation/),
  });
});

test('two trained models teach a third together', async () => {
  const members = [1, 2].map((seed) => engine.createSequenceModel(architecture, { numItems: ITEMS, seed }));
  for (const [i, model] of members.entries()) {
    await engine.fineTune(model, data, { epochs: 20, learningRate: 0.03, batchTokens: 48, seed: i });
  }
  const ensemble = engine.createSequenceEnsemble(members, { weights: [2, 1] });
  const teacher = await cacheSequenceTeacher(ensemble, train);
  const student = engine.createSequenceModel(architecture, { numItems: ITEMS, seed: 3 });
  // Its labels come from the teachers alone.
  const options = { epochs: 20, learningRate: 0.03, batchTokens: 48, seed: 3, losses: { ce: 0, kd: 1 } };
  await engine.fineTune(student, data, options, { teacher });
  const { ranks } = await student.rank(validation, validation);
  const firsts = ranks.filter((rank) => rank === 1).length;
  expect(firsts).toBeGreaterThan(0.9 * users.length);
  student.dispose();
  ensemble.dispose();
});

test('layers are fused', async () => {
  const layers = [Float32Array.of(1, 2, 3, 4), Float32Array.of(3, 2, 1, 0)];
  const { values, fusion } = await engine.fuseLayers(layers, { rows: 2, columns: 2 }, { method: 'mean' });
  expect([values, fusion]).toEqual([Float32Array.of(2, 2, 2, 2), 'sum']);
});

test('a training goes on while others read its model, and no second one begins', async () => {
  const train = Array.from({ length: 80 }, (_, i) => `film ${i} tells of ${['fear', 'space', 'love'][i % 3]}`);
  const corpus = { train, validation: train.slice(0, 8) };
  const architecture = { hiddenSize: 16, numHiddenLayers: 1, numAttentionHeads: 2, maxPositionEmbeddings: 32 };
  const { model } = await engine.pretrain(corpus, {
    architecture,
    tokenizer: { vocabSize: 300 },
    training: { epochs: 1 },
  });
  let isDone = false;
  let hasBegun = false;
  const onProgress = () => {
    hasBegun = true;
  };
  const training = engine.adapt(model, corpus, { epochs: 12 }, { onProgress }).finally(() => {
    isDone = true;
  });
  await vi.waitUntil(() => hasBegun, { interval: 1 });
  let numRead = 0;
  const reading = (async () => {
    for (; !isDone; numRead++) {
      await model.embed(train);
      await setTimeout(3);
    }
  })();
  await expect(engine.adapt(model, corpus, { epochs: 1 })).rejects.toMatchObject({ code: 'ERR_BUSY' });
  expect((await training).epochs.length).toBeGreaterThan(0);
  await reading;
  expect(numRead).toBeGreaterThan(1);
  await engine.adapt(model, corpus, { epochs: 1 }); // when the first has ended
  model.dispose();
}, 30_000);
