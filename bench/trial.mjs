/**
 * One trial of one workload by Limbeck, in a process of its own: `node bench/trial.mjs WORKLOAD DIRECTORY THREADS`.
 * Prints one JSON object: `value` in the workload's unit, `p99` for requests, `check` (numbers that every peer must
 * agree on), `peakBytes`. With `--write`, writes the checkpoint that all trials open instead.
 */
import { resourceUsage } from 'node:process';
import { loadBinding } from '../dist/binding.js';
import { loadCheckpoint, saveCheckpoint } from '../dist/formats/checkpoint.js';
import { Random, sequenceInputs, WORKLOADS } from './workloads.mjs';

const [name, directory, threads] = process.argv.slice(2);
const workload = WORKLOADS[name];
const MIN_SECONDS = 2;
const REQUESTS = 3000;
const OPTIMIZER = {
  optimizer: 'adamw',
  beta1: 0.9,
  beta2: 0.999,
  epsilon: 1e-8,
  weightDecay: 0.01,
  momentum: 0,
  maxGradNorm: 1,
};
const LOSSES = { ce: 0.5, kd: 0.5, hidden: 0, attention: 0, temperature: 2, fusion: 1, gate: 1 };

/** @returns {import('../dist/binding.js').TransformerConfig} */
function transformerConfig({ vocabSize, hiddenSize, numHiddenLayers, numAttentionHeads, maxPositionEmbeddings }) {
  return {
    vocabSize,
    hiddenSize,
    numHiddenLayers,
    numAttentionHeads,
    numKeyValueHeads: numAttentionHeads,
    headDim: hiddenSize / numAttentionHeads,
    intermediateSize: 4 * hiddenSize,
    maxPositionEmbeddings,
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
  };
}

/** Median seconds of run(), called until MIN_SECONDS are over and at least three times, after one call to warm up. */
async function medianSeconds(run) {
  await run();
  const seconds = [];
  const begin = performance.now();
  while (seconds.length < 3 || performance.now() - begin < MIN_SECONDS * 1000) {
    const start = performance.now();
    await run();
    seconds.push((performance.now() - start) / 1000);
  }
  seconds.sort((a, b) => a - b);
  return seconds[Math.floor(seconds.length / 2)];
}

/** The numbers of a teacher that no one trained: every peer makes the same. [rows, V] */
export function teacherLogits(rows, vocabSize) {
  const logits = new Float32Array(rows * vocabSize);
  for (let i = 0; i < logits.length; i++) logits[i] = ((Math.imul(i, 2654435761) >>> 8) / 16777216) * 6 - 3;
  return logits;
}

const TASKS = {
  async forward(_engine, model) {
    const { inputIds, sequenceOffsets } = sequenceInputs(workload);
    const hiddenStates = Array.from({ length: workload.model.numHiddenLayers + 1 }, (_, l) => l);
    const request = { inputIds, sequenceOffsets, hiddenStates };
    const { hiddenStates: states } = await model.forward(request);
    const last = states.at(-1);
    return {
      check: [...last.subarray(last.length - 8)],
      value: inputIds.length / (await medianSeconds(() => model.forward(request))),
    };
  },

  async train(engine, model) {
    const { inputIds, labels, sequenceOffsets } = sequenceInputs(workload);
    const request = {
      inputIds,
      labels,
      sequenceOffsets,
      learningRate: 1e-4,
      dropoutSeed: -1,
      losses: workload.distils ? LOSSES : { ...LOSSES, ce: 1, kd: 0 },
      sampledNegatives: 0,
      ...(workload.distils && {
        teacher: { layerMap: [], logits: { dense: teacherLogits(inputIds.length, workload.model.vocabSize) } },
      }),
    };
    const trainer = engine.createTrainer(model, OPTIMIZER);
    const first = await trainer.step(request);
    const second = await trainer.step(request);
    return {
      check: [first.loss, second.loss],
      value: first.numLabels / (await medianSeconds(() => trainer.step(request))),
    };
  },

  async evaluate(engine, model) {
    const { inputIds, sequenceOffsets } = sequenceInputs(workload);
    const recommender = engine.createRecommender(model);
    const random = new Random(2);
    const targets = Int32Array.from({ length: workload.sequences }, () => random.integer(workload.model.vocabSize));
    const request = { inputIds, sequenceOffsets, targets, topK: workload.k, excludeIds: inputIds };
    const run = () => recommender.rank({ ...request, excludeOffsets: sequenceOffsets });
    const { topK } = await run();
    return {
      check: [...topK.subarray(0, workload.k)],
      value: workload.sequences / (await medianSeconds(run)),
    };
  },

  async interpolate(_engine, model) {
    const name = 'embeddings.word';
    const target = model.getParameter(name).map((x, i) => x + (i % 7));
    await model.interpolate(name, target, 0.25);
    const check = [...model.getParameter(name).subarray(0, 8)];
    const seconds = await medianSeconds(() => model.interpolate(name, target, 0.25));
    return { check, value: (12 * target.length) / seconds / 1e9 };
  },

  async request(engine, model) {
    const recommender = engine.createRecommender(model);
    model.dispose();
    const random = new Random(1);
    const histories = Array.from({ length: 50 }, () =>
      Int32Array.from({ length: workload.length }, () => random.integer(workload.model.vocabSize)),
    );
    const itemIds = new Int32Array(workload.k);
    const scores = new Float32Array(workload.k);
    const exclude = new Int32Array();
    const recommend = (i) =>
      recommender.recommend({ history: histories[i % histories.length], exclude, k: workload.k, itemIds, scores });
    recommend(0);
    const check = [...itemIds];
    const durations = [];
    const begin = performance.now();
    for (let i = -100; i < REQUESTS && performance.now() - begin < 3 * MIN_SECONDS * 1000; i++) {
      const start = performance.now();
      recommend(i + 100);
      if (i >= 0) durations.push(performance.now() - start);
    }
    durations.sort((a, b) => a - b);
    return {
      check,
      value: durations[Math.floor(durations.length / 2)],
      p99: durations[Math.floor(durations.length * 0.99)],
    };
  },
};

const engine = loadBinding().createEngine({ threads: Number(threads), precision: workload.precision ?? 'float32' });
if (process.argv.includes('--write')) {
  const config = transformerConfig(workload.model);
  const model = engine.createTransformer(config);
  model.initialize(1, 0.05);
  await saveCheckpoint(directory, { model, family: 'gpt2', config });
} else {
  const { model } = await loadCheckpoint(engine, directory);
  const result = await TASKS[workload.task](engine, model);
  console.log(JSON.stringify({ ...result, peakBytes: resourceUsage().maxRSS * 1024 }));
}
engine.dispose();
