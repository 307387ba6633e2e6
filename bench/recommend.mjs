/**
 * What `student.recommend()` costs over the bare native request, in one process and in turns: p50 and p99 of both, their
 * ratios, and the bytes of JavaScript heap a request. `node --expose-gc bench/recommend.mjs [--check] [--json]`; `--check`
 * exits with 1 when a bar is missed (p50 ≤ 1.2 ×, p99 ≤ 1.5 ×, for the plain and the filtered request).
 */
import { loadBinding } from '../dist/binding.js';
import { Student } from '../dist/index.js';
import { SequenceModel, sequenceConfig } from '../dist/student/sequence-model.js';
import { Random } from './workloads.mjs';
import { writeResult } from './write-result.mjs';

const ITEMS = 10_000;
const ROUNDS = 7;
const REQUESTS = 1500;
const K = 10;
const BARS = { p50: 1.2, p99: 1.5 };

const engine = loadBinding().createEngine({ threads: 1 });
const architecture = { hiddenSize: 64, numHiddenLayers: 2, numAttentionHeads: 2, maxHistory: 50 };
const model = SequenceModel.create(engine, sequenceConfig(architecture, ITEMS, 0), { seed: 1 });
const random = new Random(1);
const items = Array.from({ length: ITEMS }, (_, i) => ({
  id: `item-${i}`,
  text: `Item ${i}`,
  categories: [`c${random.integer(20)}`, `d${random.integer(400)}`],
}));
const popularity = Int32Array.from({ length: ITEMS }, () => random.integer(1000));
const bare = engine.createRecommender(model.native);
const student = new Student(engine, model, items, undefined, { popularity });

const histories = Array.from({ length: 64 }, () => Int32Array.from({ length: 50 }, () => random.integer(ITEMS)));
const ids = histories.map((history) => Array.from(history, (item) => items[item].id));
const itemIds = new Int32Array(K);
const scores = new Float32Array(K);
const boosts = Object.fromEntries(items.slice(0, 20).map(({ id }) => [id, 0.5]));

const requests = {
  bare: (i) => bare.recommend({ history: histories[i & 63], exclude: histories[i & 63], k: K, itemIds, scores }),
  plain: (i) => student.recommend({ history: ids[i & 63], k: K }),
  filtered: (i) => student.recommend({ history: ids[i & 63], k: K, filter: { any: ['c1', 'c2', 'c3'], none: ['d7'] } }),
  'filtered, few left': (i) => student.recommend({ history: ids[i & 63], k: K, filter: { all: ['c1'] } }),
  boosts: (i) => student.recommend({ history: ids[i & 63], k: K, boosts }),
  diversity: (i) => student.recommend({ history: ids[i & 63], k: K, diversity: 0.3 }),
  novelty: (i) => student.recommend({ history: ids[i & 63], k: K, novelty: 0.1 }),
  explore: (i) => student.recommend({ history: ids[i & 63], k: K, explore: 0.2, seed: i }),
  'empty history': () => student.recommend({ history: [], k: K }),
  similar: (i) => student.similar(ids[i & 63][0], { k: K }),
  interests: (i) => student.interests(ids[i & 63]),
  explain: (i) => student.recommend({ history: ids[i & 63], k: K, explain: true }),
};
const slow = new Set(['explain', 'interests']);

function percentile(sorted, p) {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * p))];
}

function round(name) {
  const run = requests[name];
  const count = slow.has(name) ? 50 : REQUESTS;
  const durations = new Float64Array(count);
  for (let i = 0; i < count; i++) {
    const start = performance.now();
    run(i);
    durations[i] = performance.now() - start;
  }
  durations.sort();
  return { p50: percentile(durations, 0.5), p99: percentile(durations, 0.99) };
}

function median(values) {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
}

/** Heap bytes a request, while nothing is collected. */
function heapBytes(name) {
  if (globalThis.gc === undefined) return Number.NaN;
  const run = requests[name];
  for (let i = 0; i < 200; i++) run(i);
  globalThis.gc();
  const before = process.memoryUsage().heapUsed;
  for (let i = 0; i < 200; i++) run(i);
  return (process.memoryUsage().heapUsed - before) / 200;
}

for (const run of Object.values(requests)) for (let i = 0; i < 300; i++) if (i < 20 || run !== requests.explain) run(i);
/** @type {Record<string, { p50: number, p99: number }[]>} */
const rounds = Object.fromEntries(Object.keys(requests).map((name) => [name, []]));
for (let r = 0; r < ROUNDS; r++) for (const name of Object.keys(requests)) rounds[name].push(round(name));

console.log(`${ITEMS} items, d 64, 2 layers, history 50, k ${K}; ${loadBinding().cpuInfo().isa}`);
let missed = 0;
const rows = [];
for (const [name, list] of Object.entries(rounds)) {
  // Round by round, so that a change of the machine between rounds cancels.
  const ratio = (key) => median(list.map((one, i) => one[key] / rounds.bare[i][key]));
  const us = (key) => 1000 * median(list.map((one) => one[key]));
  const [p50, p99] = [ratio('p50'), ratio('p99')];
  const hasBar = ['plain', 'filtered', 'filtered, few left'].includes(name);
  const isMissed = hasBar && (p50 > BARS.p50 || p99 > BARS.p99);
  if (isMissed) missed++;
  const verdict = hasBar ? (isMissed ? '  MISSED' : '  met') : '';
  const row = { name, p50Us: us('p50'), p99Us: us('p99'), p50Ratio: p50, p99Ratio: p99, heapBytes: heapBytes(name) };
  rows.push(row);
  console.log(
    `${name.padEnd(20)} p50 ${row.p50Us.toFixed(1).padStart(8)} µs (${p50.toFixed(2)} ×)  ` +
      `p99 ${row.p99Us.toFixed(1).padStart(8)} µs (${p99.toFixed(2)} ×)  ${Math.round(row.heapBytes)} bytes${verdict}`,
  );
}
student.dispose();
bare.dispose();
engine.dispose();
if (process.argv.includes('--json')) writeResult('recommend', { seed: 1, rounds: ROUNDS, rows });
if (process.argv.includes('--check') && missed > 0) process.exitCode = 1;
