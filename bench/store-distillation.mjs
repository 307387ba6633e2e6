/**
 * `node bench/store-distillation.mjs [--threads N] [--json]`: how long steps of a language student take that learns from a
 * knowledge store, and how long they wait for it, beside those of one whose teacher is run on every batch.
 *
 * Texts are drawn from 20,000 words by Zipf's law; weights are random, for time does not depend on them.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { createEngine } from '../dist/index.js';
import { writeResult } from './write-result.mjs';

const { values: options } = parseArgs({
  options: { threads: { type: 'string', default: '1' }, json: { type: 'boolean', default: false } },
});
const folder = mkdtempSync(join(tmpdir(), 'limbeck-bench-'));
const engine = await createEngine({ threads: Number(options.threads), device: 'cpu' });

let state = 1;
const random = () => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return state / 2 ** 32;
};
const words = Array.from({ length: 20_000 }, () => Math.floor(random() * 2 ** 32).toString(36));
const text = () => Array.from({ length: 60 }, () => words[Math.floor(20_000 ** random())]).join(' ');
const corpus = { train: { path: join(folder, 'train.txt') }, validation: [text()] };
writeFileSync(corpus.train.path, Array.from({ length: 160 }, text).join('\n'));

const training = { epochs: 1, batchTokens: 2048, learningRate: 1e-6 };
const { model: teacher } = await engine.pretrain(corpus, {
  architecture: { hiddenSize: 192, numHiddenLayers: 4, numAttentionHeads: 4, maxPositionEmbeddings: 256 },
  tokenizer: { vocabSize: 4096 },
  training,
});
const extract = (name, request) =>
  engine.extract(teacher, corpus.train, { directory: join(folder, name), pieces: true, shardTexts: 32, ...request });
const topK = await extract('top-k', { logits: { topK: 64 } });
const everything = { logits: { topK: 64 }, hiddenStates: [2, 4], valueRelations: [2, 4], relationHeads: 4 };
const states = await extract('everything', { ...everything, dtype: 'float16' });
const dense = await extract('dense', { logits: 'dense' });

/** @type {[string, import('../dist/index.js').LanguageTeacher, object][]} */
const cases = [
  ['kd, the model run on every batch', teacher, {}],
  ['kd, 64 packed logits', topK, {}],
  ['kd, dense logits', dense, {}],
  ['kd, hidden states and relations, 64 packed logits and float16', states, { hidden: 1, relation: 1 }],
];
const rows = [];
for (const [name, source, losses] of cases) {
  const { stepSeconds, waitSeconds, stepCount, model } = await engine.distillLanguageModel(source, corpus, {
    architecture: { hiddenSize: 96, numHiddenLayers: 2, numAttentionHeads: 4, maxPositionEmbeddings: 256 },
    losses: { kd: 1, ...losses },
    relationHeads: 4,
    training,
  });
  model.dispose();
  rows.push({
    name,
    steps: stepCount,
    stepMs: (1000 * stepSeconds) / stepCount,
    waitMs: (1000 * waitSeconds) / stepCount,
    waitShare: waitSeconds / (stepSeconds + waitSeconds),
  });
}
engine.dispose();
rmSync(folder, { recursive: true });

console.log(`${cpus()[0]?.model}, ${options.threads} threads, ${training.batchTokens} tokens a step\n`);
console.log('| student | a step | waiting | share |\n|---|---|---|---|');
for (const { name, stepMs, waitMs, waitShare } of rows) {
  console.log(`| ${name} | ${stepMs.toFixed(0)} ms | ${waitMs.toFixed(2)} ms | ${(100 * waitShare).toFixed(2)} % |`);
}
if (options.json) writeResult('store-distillation', { threads: Number(options.threads), rows });
