/**
 * One trial of one workload by tfjs: `node tfjs_trial.mjs WORKLOAD DIRECTORY THREADS BACKEND`, as ../trial.mjs. Reads the
 * checkpoint with its own code; `wasm` uses the SIMD binary with THREADS threads where Node offers them.
 */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { resourceUsage } from 'node:process';
import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';
import { setThreadsCount, setWasmPaths } from '@tensorflow/tfjs-backend-wasm';
import { Random, sequenceInputs, WORKLOADS } from '../workloads.mjs';

const [name, directory, threads, backend] = process.argv.slice(2);
const workload = WORKLOADS[name];
const { numAttentionHeads: heads, numHiddenLayers: layers } = workload.model;
const MIN_SECONDS = 2;
const EPS = 1e-5;
const NEGATIVE = -1e9;

function readWeights() {
  const file = readFileSync(join(directory, 'model.safetensors'));
  const headerBytes = Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.toString('utf8', 8, 8 + headerBytes));
  const weights = {};
  for (const [key, { shape, data_offsets }] of Object.entries(header)) {
    if (key === '__metadata__') continue;
    const [begin, end] = data_offsets.map((offset) => 8 + headerBytes + offset);
    const values = new Float32Array(file.buffer.slice(file.byteOffset + begin, file.byteOffset + end));
    weights[key.replace('transformer.', '')] = tf.tensor(values, shape);
  }
  return weights;
}

/** Conv1D of GPT-2 stores [in, out], which is what matMul wants. */
function linear(x, weights, prefix) {
  return tf.add(tf.matMul(x, weights[`${prefix}.weight`]), weights[`${prefix}.bias`]);
}

function norm(x, weights, prefix) {
  const { mean, variance } = tf.moments(x, -1, true);
  const scaled = tf.mul(tf.sub(x, mean), tf.rsqrt(tf.add(variance, EPS)));
  return tf.add(tf.mul(scaled, weights[`${prefix}.weight`]), weights[`${prefix}.bias`]);
}

function gelu(x) {
  const inner = tf.mul(tf.add(x, tf.mul(tf.pow(x, 3), 0.044715)), Math.sqrt(2 / Math.PI));
  return tf.mul(tf.mul(x, 0.5), tf.add(tf.tanh(inner), 1));
}

/** ids [B, T] → hidden states, each [B·T, d]; the last after the final norm. */
function forward(weights, ids) {
  const [batch, length] = ids.shape;
  const d = workload.model.hiddenSize;
  const positions = tf.slice(weights['wpe.weight'], [0, 0], [length, d]);
  const embedded = tf.gather(weights['wte.weight'], tf.reshape(ids, [batch * length]));
  let x = tf.reshape(tf.add(tf.reshape(embedded, [batch, length, d]), positions), [batch * length, d]);
  const mask = tf.mul(tf.sub(1, tf.linalg.bandPart(tf.ones([length, length]), -1, 0)), NEGATIVE);
  const split = (part) => tf.transpose(tf.reshape(part, [batch, length, heads, d / heads]), [0, 2, 1, 3]);
  const states = [x];
  for (let layer = 0; layer < layers; layer++) {
    const prefix = `h.${layer}`;
    const qkv = linear(norm(x, weights, `${prefix}.ln_1`), weights, `${prefix}.attn.c_attn`);
    const [queries, keys, values] = tf.split(qkv, 3, -1).map(split);
    const scores = tf.mul(tf.matMul(queries, keys, false, true), 1 / Math.sqrt(d / heads));
    const attended = tf.matMul(tf.softmax(tf.add(scores, mask)), values);
    const merged = tf.reshape(tf.transpose(attended, [0, 2, 1, 3]), [batch * length, d]);
    x = tf.add(x, linear(merged, weights, `${prefix}.attn.c_proj`));
    const hidden = gelu(linear(norm(x, weights, `${prefix}.ln_2`), weights, `${prefix}.mlp.c_fc`));
    x = tf.add(x, linear(hidden, weights, `${prefix}.mlp.c_proj`));
    states.push(x);
  }
  states[layers] = norm(x, weights, 'ln_f');
  return states;
}

async function timed(run) {
  const start = performance.now();
  await run();
  return (performance.now() - start) / 1000;
}

const TASKS = {
  async forward(weights) {
    const { inputIds } = sequenceInputs(workload);
    const ids = tf.tensor2d(inputIds, [workload.sequences, workload.length], 'int32');
    const run = async () => {
      const states = tf.tidy(() => forward(weights, ids));
      const arrays = await Promise.all(states.map((state) => state.data()));
      tf.dispose(states);
      return arrays;
    };
    const check = [...(await run()).at(-1).slice(-8)];
    const seconds = [];
    // One round lasts seconds here.
    do seconds.push(await timed(run));
    while (seconds.reduce((sum, x) => sum + x, 0) < MIN_SECONDS);
    seconds.sort((a, b) => a - b);
    return { check, value: inputIds.length / seconds[Math.floor(seconds.length / 2)] };
  },

  async request(weights) {
    const random = new Random(1);
    const { vocabSize } = workload.model;
    const histories = Array.from({ length: 50 }, () =>
      tf.tensor2d(
        Int32Array.from({ length: workload.length }, () => random.integer(vocabSize)),
        [1, workload.length],
        'int32',
      ),
    );
    const run = async (i) => {
      const ids = tf.tidy(() => {
        const states = forward(weights, histories[i % histories.length]);
        const last = tf.slice(states.at(-1), [workload.length - 1, 0], [1, workload.model.hiddenSize]);
        const scores = tf.matMul(last, weights['wte.weight'], false, true);
        return tf.topk(tf.reshape(scores, [vocabSize]), workload.k).indices;
      });
      const best = await ids.data();
      ids.dispose();
      return best;
    };
    const check = [...(await run(0))];
    const durations = [];
    const begin = performance.now();
    for (let i = -20; i < 3000 && performance.now() - begin < 3 * MIN_SECONDS * 1000; i++) {
      const seconds = await timed(() => run(i + 20));
      if (i >= 0) durations.push(seconds * 1000);
    }
    durations.sort((a, b) => a - b);
    return {
      check,
      value: durations[Math.floor(durations.length / 2)],
      p99: durations[Math.floor(durations.length * 0.99)],
    };
  },
};

if (backend === 'wasm') {
  const entry = createRequire(import.meta.url).resolve('@tensorflow/tfjs-backend-wasm');
  setWasmPaths(`${dirname(entry)}/`);
  setThreadsCount(Number(threads));
}
await tf.setBackend(backend);
await tf.ready();
const result = await TASKS[workload.task](readWeights());
console.log(JSON.stringify({ ...result, peakBytes: resourceUsage().maxRSS * 1024 }));
process.exit(0); // the threads of the wasm backend would keep the process alive
