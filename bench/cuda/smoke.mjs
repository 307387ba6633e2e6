/**
 * From JavaScript on a GPU: `node bench/cuda/smoke.mjs FOLDER [--parts training,request] [--device cuda] [--out LINES]
 * [--tiny]`. A language model, a student distilled from another, and a sequence model are trained on the processor and on
 * the GPU, and must agree; the language model is saved with its logits for transformers to compare (peers.py
 * --check-student). A student's request is timed.
 */
import { appendFileSync, mkdirSync, rmSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { loadBinding } from '../../dist/binding.js';
import { writeSafetensors } from '../../dist/formats/safetensors.js';
import { createEngine } from '../../dist/index.js';

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    device: { type: 'string', default: 'cuda' },
    out: { type: 'string' },
    tiny: { type: 'boolean', default: false },
    parts: { type: 'string', default: 'training,request' },
  },
});
const parts = options.parts.split(',');
const folder = resolve(positionals[0] ?? 'out/cuda-smoke');
rmSync(folder, { recursive: true, force: true });
mkdirSync(folder, { recursive: true });
const failures = [];

/** One failure does not stop the rest. */
async function check(part, name, body) {
  if (!parts.includes(part)) return;
  const begin = performance.now();
  try {
    const detail = await body();
    console.log(`ok   ${name} (${((performance.now() - begin) / 1000).toFixed(1)} s) ${detail ?? ''}`);
  } catch (error) {
    failures.push(name);
    console.log(`FAIL ${name}: ${error.code ?? ''} ${error.message}`.slice(0, 400));
  }
}

function expectClose(what, a, b, tolerance) {
  if (!(Math.abs(a - b) <= tolerance * Math.max(1, Math.abs(b)))) {
    throw new Error(`${what}: ${a} on the GPU, ${b} on the processor`);
  }
}

/** Sentences with a grammar, so that losses fall. */
function corpus(count, seed) {
  const subjects = ['The sailor', 'A teacher', 'My brother', 'The old king', 'A small robot'];
  const verbs = ['finds', 'loses', 'paints', 'follows', 'remembers'];
  const objects = ['a red boat', 'the last train', 'an honest friend', 'some quiet music', 'the northern star'];
  return Array.from({ length: count }, (_, i) => {
    const n = i * 7 + seed;
    return `${subjects[n % 5]} ${verbs[(n >> 2) % 5]} ${objects[(n >> 4) % 5]}, and then ${verbs[(n >> 1) % 5]} it again.`;
  });
}

/** Every user walks the catalogue in steps of 1, from another start. */
function histories(users, length, items) {
  return {
    sequences: Int32Array.from({ length: users * length }, (_, i) => {
      return (Math.floor(i / length) * 7 + (i % length)) % items;
    }),
    sequenceOffsets: Int32Array.from({ length: users + 1 }, (_, user) => user * length),
    users: Int32Array.from({ length: users }, (_, user) => user),
  };
}

const processor = await createEngine({ device: 'cpu' });
let engine;
await check(parts[0], 'an engine', async () => {
  engine = await createEngine({ device: /** @type {'cpu' | 'cuda'} */ (options.device) });
  return `${engine.device} ${engine.deviceName}, ${engine.precision}`;
});
if (engine === undefined) process.exit(1);

await check('training', 'a language model, three epochs, as on the processor', async () => {
  const settings = {
    architecture: { hiddenSize: 64, numHiddenLayers: 2, numAttentionHeads: 4, maxPositionEmbeddings: 64 },
    tokenizer: { vocabSize: 400 },
    training: { epochs: 3, batchTokens: 1024, seed: 5 },
  };
  const texts = { train: corpus(options.tiny ? 80 : 400, 0), validation: corpus(40, 3) };
  const ours = await engine.pretrain(texts, settings);
  const theirs = await processor.pretrain(texts, settings);
  const trace = [];
  ours.epochs.forEach((record, i) => {
    trace.push(`${record.trainLoss.toFixed(4)}/${theirs.epochs[i].trainLoss.toFixed(4)}`);
    expectClose(`loss of epoch ${i + 1}`, record.trainLoss, theirs.epochs[i].trainLoss, 2e-3);
    expectClose(`validation of epoch ${i + 1}`, record.validationLoss, theirs.epochs[i].validationLoss, 2e-3);
  });
  await ours.model.save(join(folder, 'model'));
  const inputIds = Array.from({ length: 3 }, (_, s) => Array.from({ length: 24 }, (_, i) => (s * 31 + i * 17) % 300));
  const { logits } = await ours.model.forward({ inputIds }, { logits: 'dense' });
  await writeSafetensors(join(folder, 'logits.safetensors'), [
    ['input_ids', { shape: [3, 24], data: Int32Array.from(inputIds.flat()) }],
    ['logits', { shape: [3, 24, logits.length / 72], data: logits }],
  ]);
  const other = await theirs.model.forward({ inputIds }, { logits: 'dense' });
  const largest = logits.reduce((most, x, i) => Math.max(most, Math.abs(x - (other.logits?.[i] ?? Number.NaN))), 0);
  ours.model.dispose();
  theirs.model.dispose();
  return `losses GPU/CPU ${trace.join(' ')}, logits differ by ${largest.toExponential(1)}`;
});

await check('training', 'a language student by all losses, three epochs, as on the processor', async () => {
  const texts = { train: corpus(options.tiny ? 60 : 200, 1), validation: corpus(40, 2) };
  const optimization = { epochs: 3, batchTokens: 1024, seed: 7 };
  const traces = [];
  for (const on of [engine, processor]) {
    const { model: teacher } = await on.pretrain(texts, {
      architecture: { hiddenSize: 32, numHiddenLayers: 2, numAttentionHeads: 2, maxPositionEmbeddings: 64 },
      tokenizer: { vocabSize: 300 },
      training: { ...optimization, epochs: 1 },
    });
    const { model, epochs } = await on.distillLanguageModel(teacher, texts, {
      architecture: { hiddenSize: 16, numHiddenLayers: 1, numAttentionHeads: 2, maxPositionEmbeddings: 64 },
      training: optimization,
      losses: { ce: 0.5, kd: 0.5, hidden: 0.1, attention: 0.1, relation: 0.1, temperature: 2 },
      relationHeads: 4,
    });
    traces.push(epochs);
    teacher.dispose();
    model.dispose();
  }
  const [ours, theirs] = traces;
  ours.forEach((record, i) => {
    for (const term of ['ce', 'kd', 'hidden', 'attention', 'validationLoss']) {
      expectClose(`${term} of epoch ${i + 1}`, record[term], theirs[i][term], 5e-3);
    }
  });
  return ours.map((record, i) => `${record.trainLoss.toFixed(4)}/${theirs[i].trainLoss.toFixed(4)}`).join(' ');
});

await check('training', 'a sequence model, three epochs, as on the processor', async () => {
  const [items, length] = [40, 12];
  const train = histories(60, length, items);
  const validation = {
    ...train,
    targets: Int32Array.from({ length: 60 }, (_, user) => (user * 7 + length) % items),
    excludeIds: new Int32Array(0),
    excludeOffsets: new Int32Array(61),
  };
  const architecture = { hiddenSize: 32, numHiddenLayers: 2, numAttentionHeads: 2, maxHistory: length, dropout: 0.1 };
  const traces = [];
  for (const sampledNegatives of [0, 16]) {
    for (const on of [engine, processor]) {
      const model = on.createSequenceModel(architecture, { numItems: items, seed: 3 });
      const training = { epochs: 3, batchTokens: 128, seed: 3, sampledNegatives };
      traces.push((await on.fineTune(model, { train, validation }, training)).epochs);
      model.native.dispose();
    }
  }
  const [ours, theirs, oursSampled, theirsSampled] = traces;
  ours.forEach((record, i) => {
    expectClose(`loss of epoch ${i + 1}`, record.trainLoss, theirs[i].trainLoss, 5e-3);
    expectClose(`sampled loss of epoch ${i + 1}`, oursSampled[i].trainLoss, theirsSampled[i].trainLoss, 5e-3);
  });
  return ours.map((record, i) => `${record.trainLoss.toFixed(4)}/${theirs[i].trainLoss.toFixed(4)}`).join(' ');
});

await check('request', 'a request, one history of 50, the best 10 of a million', async () => {
  const items = options.tiny ? 500 : 1_000_000;
  const native = loadBinding().createEngine({
    threads: 1,
    precision: 'bfloat16',
    ...(options.device === 'cuda' && {
      cuda: { library: resolve(process.env['LIMBECK_CUDA_LIBRARY'] ?? ''), device: 0 },
    }),
  });
  const model = native.createTransformer({
    vocabSize: items,
    hiddenSize: 64,
    numHiddenLayers: 2,
    numAttentionHeads: 1,
    numKeyValueHeads: 1,
    headDim: 64,
    intermediateSize: 256,
    maxPositionEmbeddings: 50,
    typeVocabSize: 0,
    norm: 'layerNorm',
    normPlacement: 'before',
    normEps: 1e-5,
    positions: 'learned',
    ropeTheta: 10000,
    attention: 'causal',
    hiddenAct: 'gelu_new',
    qkvBias: true,
    attentionOutputBias: true,
    mlpBias: true,
    tieWordEmbeddings: true,
    maskedLmHead: false,
    itemFeatureSize: 0,
    embeddingDropout: 0,
    attentionDropout: 0,
    hiddenDropout: 0,
  });
  model.initialize(1, 0.02);
  const recommender = native.createRecommender(model, 0);
  const itemIds = new Int32Array(10);
  const scores = new Float32Array(10);
  const exclude = new Int32Array(0);
  const times = [];
  const calls = options.tiny ? 5 : 500;
  const historyOf = (call) => Int32Array.from({ length: 50 }, (_, i) => ((call + 20) * 7919 + i * 104729) % items);
  for (let call = -20; call < calls; call++) {
    const history = historyOf(call);
    const begin = performance.now();
    const count = recommender.recommend({ history, exclude, k: 10, itemIds, scores });
    if (call >= 0) times.push(performance.now() - begin);
    if (count !== 10 || itemIds.some((id) => id < 0 || id >= items)) throw new Error(`${count} items: ${itemIds}`);
    if (scores.some((score, i) => i > 0 && score > scores[i - 1])) throw new Error(`scores out of order: ${scores}`);
  }
  times.sort((a, b) => a - b);
  const p50 = times[Math.floor(times.length / 2)];
  if (options.out !== undefined) {
    const row = { row: 'request-js', by: 'limbeck', variant: 'recommend', value: p50 * 1e3, unit: 'us', ms: p50 };
    appendFileSync(
      options.out,
      `${JSON.stringify({ ...row, min: times[0], max: times.at(-1), rounds: times.length })}\n`,
    );
  }
  // The last answer is what full ranking finds, but for the rounding.
  const ranking = await recommender.rank({
    inputIds: historyOf(calls - 1),
    sequenceOffsets: Int32Array.of(0, 50),
    targets: itemIds.slice(0, 1),
    excludeIds: exclude,
    excludeOffsets: new Int32Array(2),
    topK: 10,
  });
  for (const [i, score] of scores.entries()) {
    expectClose(`score ${i} of a ranking`, ranking.topKScores[i], score, 2e-2);
  }
  if (ranking.ranks[0] > 3) throw new Error(`the best answer has rank ${ranking.ranks[0]}`);
  recommender.dispose();
  model.dispose();
  return `p50 ${(p50 * 1e3).toFixed(0)} us, p99 ${(times[Math.floor(times.length * 0.99)] * 1e3).toFixed(0)} us`;
});

console.log(failures.length === 0 ? 'smoke: all passed' : `smoke: ${failures.length} failed`);
process.exit(failures.length === 0 ? 0 : 1);
