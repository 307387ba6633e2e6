/**
 * `node bench/step-memory.mjs [--json]`: the memory that a training step takes, and what it costs to take less: all at
 * once, in micro batches, with activation checkpointing, and both. A GPT-2 of 8 layers and width 256 over 4,096 tokens
 * reads 8,192 tokens in texts of 128 a step, on one thread. Each row is a process of its own: its peak above what model,
 * gradients and optimiser take, and the median processor seconds of a step.
 */
import { execFileSync } from 'node:child_process';
import { cpus } from 'node:os';
import { resourceUsage } from 'node:process';
import { fileURLToPath } from 'node:url';
import { loadBinding } from '../dist/binding.js';
import { languageModelConfig } from '../dist/teacher/pretrain.js';
import { writeResult } from './write-result.mjs';

const SHAPE = { hiddenSize: 256, numHiddenLayers: 8, numAttentionHeads: 4, maxPositionEmbeddings: 128, dropout: 0.1 };
const VOCAB_SIZE = 4096;
const BATCH_TOKENS = 8192;
const LENGTH = 128;
const STEPS = 5; // the first two take new memory
/** @type {import('../dist/binding.js').OptimizerOptions} */
const OPTIMIZER = {
  optimizer: 'adamw',
  beta1: 0.9,
  beta2: 0.98,
  epsilon: 1e-8,
  weightDecay: 0.01,
  momentum: 0,
  maxGradNorm: 1,
};
const ROWS = [
  {},
  { microBatchTokens: 2048 },
  { microBatchTokens: 512 },
  { activationCheckpointing: true },
  { microBatchTokens: 2048, activationCheckpointing: true },
  { microBatchTokens: 512, activationCheckpointing: true },
];

if (process.argv[2] === '--row') console.log(JSON.stringify(await measure(ROWS[Number(process.argv[3])])));
else report();

async function measure(memory) {
  const engine = loadBinding().createEngine({ threads: 1 });
  const model = engine.createTransformer(languageModelConfig('gpt2', VOCAB_SIZE, SHAPE));
  model.initialize(1, 0.02);
  const trainer = engine.createTrainer(model, OPTIMIZER);
  const step = (numTokens, length) => ({
    inputIds: Int32Array.from({ length: numTokens }, (_, i) => (i * 7919 + (i >> 5)) % VOCAB_SIZE),
    labels: Int32Array.from({ length: numTokens }, (_, i) => ((i + 1) * 7919 + ((i + 1) >> 5)) % VOCAB_SIZE),
    sequenceOffsets: Int32Array.from({ length: numTokens / length + 1 }, (_, s) => s * length),
    learningRate: 1e-4,
    dropoutSeed: 1,
    losses: { ce: 1, kd: 0, hidden: 0, attention: 0, temperature: 1, fusion: 1, gate: 1 },
    sampledNegatives: 0,
    ...memory,
  });
  await trainer.step(step(2, 2)); // gradients are allocated now
  const before = process.memoryUsage.rss();
  const seconds = [];
  let loss = 0;
  for (let i = 0; i < STEPS; i++) {
    const start = process.cpuUsage();
    loss = (await trainer.step(step(BATCH_TOKENS, LENGTH))).loss;
    const { user, system } = process.cpuUsage(start);
    seconds.push((user + system) / 1e6);
  }
  const peakBytes = resourceUsage().maxRSS * 1024 - before;
  engine.dispose();
  return { ...memory, peakBytes, seconds: seconds.sort((a, b) => a - b)[STEPS >> 1], loss };
}

function report() {
  const script = fileURLToPath(import.meta.url);
  const rows = ROWS.map((_, i) => {
    process.stderr.write(`row ${i + 1} of ${ROWS.length}\n`);
    return JSON.parse(execFileSync(process.execPath, [script, '--row', String(i)], { encoding: 'utf8' }));
  });
  const [whole] = rows;
  console.log(`${cpus()[0]?.model}, one thread; ${BATCH_TOKENS} tokens a step`);
  console.log(
    '\n| microBatchTokens | activationCheckpointing | memory of a step | processor seconds |\n|---|---|---|---|',
  );
  for (const { microBatchTokens = '–', activationCheckpointing = false, peakBytes, seconds } of rows) {
    const share = `${(peakBytes / 2 ** 20).toFixed(0)} MiB (${((100 * peakBytes) / whole.peakBytes).toFixed(0)} %)`;
    const time = `${seconds.toFixed(2)} (${(seconds / whole.seconds).toFixed(2)} ×)`;
    console.log(`| ${microBatchTokens} | ${activationCheckpointing ? 'yes' : 'no'} | ${share} | ${time} |`);
  }
  if (process.argv.includes('--json')) writeResult('step-memory', { threads: 1, rows });
}
