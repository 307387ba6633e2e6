/**
 * `npm run bench`: matrix products against the measured FMA peak, and one recommendation against its floor. Writes
 * `bench/results/<name>.json`; `--print` only shows it.
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { availableParallelism, cpus } from 'node:os';
import { join, resolve } from 'node:path';
import { loadBinding } from '../dist/binding.js';
import { createEngine } from '../dist/index.js';

const root = resolve(import.meta.dirname, '..');
const SEED = 1;
const STUDENT = { hiddenSize: 64, numHiddenLayers: 2, numAttentionHeads: 2, maxHistory: 50, dropout: 0 };
const ITEMS = 2414;
const HISTORY = 20;
const CALLS = 5000;

/** GFLOP/s of matrix products, one thread and all, beside the FMA peak of the same run. */
function benchProducts() {
  const build = join(root, 'build/bench');
  const options = { cwd: root, stdio: ['ignore', 'ignore', 'inherit'] };
  execFileSync('cmake', ['-S', 'native', '-B', build, '-DCMAKE_BUILD_TYPE=Release'], options);
  execFileSync(
    'cmake',
    ['--build', build, '--target', 'bench_gemm', '--parallel', String(availableParallelism())],
    options,
  );
  return JSON.parse(execFileSync(join(build, 'bench_gemm'), { encoding: 'utf8' }));
}

/** One recommendation; the floor is its arithmetic at the peak of one thread. */
async function benchRecommend(peakGflops) {
  const engine = await createEngine({ threads: 1 });
  const model = engine.createSequenceModel(STUDENT, { numItems: ITEMS, seed: SEED });
  const items = Array.from({ length: ITEMS }, (_, i) => ({ id: String(i), text: `item ${i}` }));
  const student = engine.createStudent(model, items);
  const histories = Array.from({ length: 100 }, (_, user) =>
    Array.from({ length: HISTORY }, (_, i) => String((user * 131 + i * 37) % ITEMS)),
  );
  const durations = new Float64Array(CALLS);
  for (let i = -500; i < CALLS; i++) {
    const start = performance.now();
    student.recommend({ history: histories[(i + 500) % histories.length], k: 10 });
    if (i >= 0) durations[i] = performance.now() - start;
  }
  durations.sort();
  const at = (share) => durations[Math.floor(share * (CALLS - 1))];
  const { hiddenSize: d, numHiddenLayers: layers } = STUDENT;
  const flops = 2 * HISTORY * layers * 12 * d * d + 2 * layers * HISTORY * HISTORY * d + 2 * ITEMS * d;
  student.dispose();
  engine.dispose();
  const floorMs = flops / (peakGflops * 1e6);
  return {
    items: ITEMS,
    history: HISTORY,
    p50Ms: at(0.5),
    p95Ms: at(0.95),
    p99Ms: at(0.99),
    floorMs,
    ratio: at(0.5) / floorMs,
  };
}

const products = benchProducts();
const peak = products.peakGflops1 ?? products.peakGflops;
const result = {
  commit: execFileSync('git', ['rev-parse', '--short', 'HEAD'], { cwd: root, encoding: 'utf8' }).trim(),
  date: new Date().toISOString(),
  seed: SEED,
  node: process.version,
  cpu: { model: cpus()[0]?.model.trim(), ...loadBinding().cpuInfo() },
  products,
  recommend: await benchRecommend(peak),
};
console.log(JSON.stringify(result, null, 2));
if (!process.argv.includes('--print')) {
  mkdirSync(join(root, 'bench/results'), { recursive: true });
  const file = `cpu-${result.cpu.isa}-${result.date.slice(0, 10)}.json`;
  writeFileSync(join(root, 'bench/results', file), `${JSON.stringify(result, null, 2)}\n`);
}
