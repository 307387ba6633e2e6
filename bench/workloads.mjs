/**
 * The workloads of the bench: a model's shape, its inputs (the same numbers in every trial and every peer), what is
 * timed, and the bar. Every model is a GPT-2 checkpoint, so that each peer opens the same weights.
 */

/** @typedef {'forward' | 'train' | 'evaluate' | 'interpolate' | 'request'} Task */

/** 32-bit linear congruential generator (Numerical Recipes, §7.1), which is as short in Python. */
export class Random {
  /** @param {number} seed */
  constructor(seed) {
    this.state = seed >>> 0;
  }
  /** @param {number} limit */
  integer(limit) {
    this.state = (Math.imul(this.state, 1664525) + 1013904223) >>> 0;
    return this.state % limit;
  }
}

const GPT2 = {
  vocabSize: 50257,
  hiddenSize: 768,
  numHiddenLayers: 12,
  numAttentionHeads: 12,
  maxPositionEmbeddings: 1024,
};
const BEAUTY = {
  vocabSize: 12101,
  hiddenSize: 64,
  numHiddenLayers: 2,
  numAttentionHeads: 2,
  maxPositionEmbeddings: 50,
};

/**
 * `bar`: how many times better than the peer (`atLeast`: our rate over its; `atMost`: our time or memory over its).
 * The peer `floor` is the time below which no program gets on this machine. `needs`: an instruction set without which the
 * row is not run. `tfjs`: backends of tfjs that run it too, once: they take long.
 */
export const WORKLOADS = {
  forward: {
    title: 'teacher forward, GPT-2 124M, B8 T128, all hidden states',
    task: 'forward',
    model: GPT2,
    sequences: 8,
    length: 128,
    unit: 'tokens/s',
    tfjs: ['wasm'],
    bars: [{ peer: 'onnxruntime', atLeast: 1.25 }],
  },
  'forward-bf16': {
    title: 'the same in bfloat16',
    task: 'forward',
    model: GPT2,
    sequences: 8,
    length: 128,
    precision: 'bfloat16',
    needs: 'avx512bf16',
    unit: 'tokens/s',
    bars: [{ peer: 'torch', atLeast: 1.3 }],
  },
  'ce-kd-step': {
    title: 'CE + KD step, 4 layers d 256, V 50,257, B16 T64',
    task: 'train',
    model: { ...GPT2, hiddenSize: 256, numHiddenLayers: 4, numAttentionHeads: 4, maxPositionEmbeddings: 64 },
    sequences: 16,
    length: 64,
    distils: true,
    unit: 'tokens/s',
    bars: [
      { peer: 'torch', atLeast: 6 },
      { peer: 'torch', memory: true, atMost: 0.35 },
    ],
  },
  'ce-kd-step-bf16': {
    title: 'the same in bfloat16',
    task: 'train',
    model: { ...GPT2, hiddenSize: 256, numHiddenLayers: 4, numAttentionHeads: 4, maxPositionEmbeddings: 64 },
    sequences: 16,
    length: 64,
    distils: true,
    precision: 'bfloat16',
    needs: 'avx512bf16',
    unit: 'tokens/s',
    bars: [{ peer: 'torch', atLeast: 8 }],
  },
  'lm-step': {
    title: 'LM step, 6 layers d 384, V 50,257, B16 T64',
    task: 'train',
    model: { ...GPT2, hiddenSize: 384, numHiddenLayers: 6, numAttentionHeads: 6, maxPositionEmbeddings: 64 },
    sequences: 16,
    length: 64,
    unit: 'tokens/s',
    bars: [{ peer: 'torch', atLeast: 3.5 }],
  },
  'lm-step-bf16': {
    title: 'the same in bfloat16',
    task: 'train',
    model: { ...GPT2, hiddenSize: 384, numHiddenLayers: 6, numAttentionHeads: 6, maxPositionEmbeddings: 64 },
    sequences: 16,
    length: 64,
    precision: 'bfloat16',
    needs: 'avx512bf16',
    unit: 'tokens/s',
    bars: [{ peer: 'torch', atLeast: 3 }],
  },
  'sequence-step': {
    title: 'sequence student, 2 layers d 64, T 50, full CE over 12,101 items',
    task: 'train',
    model: BEAUTY,
    sequences: 128,
    length: 50,
    unit: 'targets/s',
    bars: [{ peer: 'torch', atLeast: 6 }],
  },
  evaluate: {
    title: 'full-ranking evaluation of it, top 20 of 12,101',
    task: 'evaluate',
    model: BEAUTY,
    sequences: 1024,
    length: 50,
    k: 20,
    unit: 'users/s',
    bars: [{ peer: 'torch', atLeast: 5 }],
  },
  'evaluate-1m': {
    title: 'the same over 1,000,000 items',
    task: 'evaluate',
    model: { ...BEAUTY, vocabSize: 1_000_000 },
    sequences: 256,
    length: 50,
    k: 20,
    unit: 'users/s',
    bars: [{ peer: 'torch', atLeast: 3 }],
  },
  interpolate: {
    title: 'interpolation of 124M parameters',
    task: 'interpolate',
    model: { ...GPT2, vocabSize: 161_000, numHiddenLayers: 1, numAttentionHeads: 12 },
    unit: 'GB/s',
    bars: [{ peer: 'torch', atLeast: 0.95 }],
  },
  request: {
    title: 'one request, 2 layers d 64, history 50, exact top 10 of 100,000',
    task: 'request',
    model: { ...BEAUTY, vocabSize: 100_000 },
    length: 50,
    k: 10,
    unit: 'ms',
    tfjs: ['wasm', 'cpu'],
    bars: [
      { peer: 'onnxruntime', atMost: 0.25 },
      { peer: 'onnxruntime', p99: true, atMost: 0.35 },
    ],
  },
  'top10-1m': {
    title: 'exact top 10 of 1,000,000 × 128',
    task: 'request',
    model: { ...BEAUTY, vocabSize: 1_000_000, hiddenSize: 128, numHiddenLayers: 1, maxPositionEmbeddings: 2 },
    length: 1,
    k: 10,
    unit: 'ms',
    bars: [{ peer: 'floor', atMost: 1.3 }],
  },
};

/** Ids of `sequences` sequences of `length`, end to end; the label of a token is the next id, of the last −100. */
export function sequenceInputs({ model, sequences = 1, length }, seed = 1) {
  const random = new Random(seed);
  const inputIds = Int32Array.from({ length: sequences * length }, () => random.integer(model.vocabSize));
  const labels = inputIds.map((_, i) => ((i + 1) % length === 0 ? -100 : inputIds[i + 1]));
  const sequenceOffsets = Int32Array.from({ length: sequences + 1 }, (_, s) => s * length);
  return { inputIds, labels, sequenceOffsets };
}

const CACHE_BYTES = 32e6;

function tableBytes(numItems, hiddenSize) {
  const bytes = numItems * (hiddenSize + 4);
  return bytes > CACHE_BYTES ? bytes : 0;
}

/**
 * The least work of one round of a workload: multiplications and additions, and bytes that memory must move.
 * Attention counts its causal half; a training step is three products for each of the forward pass.
 */
export function leastWork(workload) {
  const { task, model, sequences = 1, length = 0 } = workload;
  const { vocabSize: V, hiddenSize: d, numHiddenLayers: L } = model;
  const tokens = sequences * length;
  const blocks = tokens * L * (24 * d * d + 2 * length * d);
  const head = 2 * V * d;
  const rows = sequences * (length - 1);
  switch (task) {
    case 'forward':
      return { flops: blocks, bytes: 4 * 12 * L * d * d, units: tokens };
    case 'train':
      return { flops: 3 * (blocks + rows * head), bytes: workload.distils ? 4 * rows * V : 0, units: rows };
    case 'evaluate':
      return { flops: (blocks * (L - 1)) / L + sequences * head, bytes: 4 * V * d, units: sequences };
    case 'interpolate':
      return { flops: 0, bytes: 12 * V * d, units: (12 * V * d) / 1e9 };
    case 'request':
      // On one thread; of the catalogue only the int8 table and its scales must be read, from memory where no cache holds
      // them.
      return { flops: (blocks * Math.max(L - 1, 0.5)) / L, bytes: tableBytes(V, d), units: 1, isRequest: true };
    default:
      throw new Error(`No floor for ${task}`);
  }
}
