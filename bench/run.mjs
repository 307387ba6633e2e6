/**
 * `npm run bench [-- FILTER] [--check] [--json] [--rounds N]`: every workload by Limbeck and its peers, and a table of
 * matrix products, in turns. Each trial is a process of its own; a peer whose numbers differ from ours is refused, not
 * timed. `--json` writes bench/results/<date>-<cpu>[-FILTER].json; `--check` exits with 1 when a bar is missed.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { loadBinding } from '../dist/binding.js';
import { leastWork, WORKLOADS } from './workloads.mjs';
import { writeResult } from './write-result.mjs';

const root = resolve(import.meta.dirname, '..');
const bench = import.meta.dirname;
// Of a number that trials must agree on, relative to the largest. Peers round other tensors to bfloat16 than we do.
const TOLERANCE = { float32: 2e-3, bfloat16: 3e-2 };
/** Shares of the peak, or of what memory allows, that products must reach: on one thread, and on all. */
const PRODUCT_BARS = {
  float32: { square: { one: 0.92, all: 0.88 }, other: { one: 0.8, all: 0.8 } },
  bfloat16: { square: { one: 0.9 }, other: {} },
  int8: { square: { one: 0.75, all: 0.75 }, other: {} },
  avx2: { square: { one: 0.9 }, other: {} },
};
/** Many times what it takes: more is a hang. */
const MAX_NATIVE_BENCH_MS = 30 * 60_000;
const OPERAND_BYTES = { float32: 4, bfloat16: 4, int8: 1 };

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    check: { type: 'boolean', default: false },
    json: { type: 'boolean', default: false },
    rounds: { type: 'string', default: '5' },
    python: { type: 'string', default: process.env.PYTHON ?? 'python3' },
  },
});
const rounds = Number(options.rounds);
const cpu = loadBinding().cpuInfo();
const threads = cpu.availableThreads;
const pythonEnv = { ...process.env, OMP_NUM_THREADS: String(threads) };

/** Why PyTorch cannot be compared with, or its version. */
function findTorch() {
  const result = spawnSync(options.python, ['-c', 'import torch; print(torch.__version__)'], { encoding: 'utf8' });
  if (result.status === 0) return { version: result.stdout.trim() };
  return { reason: `'${options.python} -c "import torch"' fails` };
}

function installPeers() {
  if (existsSync(join(bench, 'node_modules/onnxruntime-node'))) return;
  console.error('Installing the peers of bench/package.json …');
  // Their install scripts download GPU libraries that no row uses.
  execFileSync('npm', ['ci', '--ignore-scripts', '--no-audit', '--no-fund'], { cwd: bench, stdio: 'inherit' });
}

function median(values) {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
}

function run(command, args, env = process.env) {
  const result = spawnSync(command, args, { cwd: root, env, encoding: 'utf8', maxBuffer: 1 << 26 });
  if (result.status !== 0) throw new Error(`${command} ${args[0]}: ${result.stderr.trim().split('\n').at(-1)}`);
  return JSON.parse(result.stdout.trim().split('\n').at(-1) ?? '');
}

function agrees(ours, theirs, { task, precision = 'float32' }) {
  if (ours.length !== theirs.length) return false;
  if (task === 'request' || task === 'evaluate') return ours.every((id, i) => id === theirs[i]);
  const largest = Math.max(...ours.map(Math.abs));
  return ours.every((x, i) => Math.abs(x - theirs[i]) <= TOLERANCE[precision] * largest);
}

/** Medians over the rounds, and the spread of the value. */
function summarise(trials) {
  const values = trials.map(({ value }) => value);
  return {
    value: median(values),
    min: Math.min(...values),
    max: Math.max(...values),
    ...(trials[0].p99 !== undefined && { p99: median(trials.map(({ p99 }) => p99)) }),
    ...(trials[0].copy !== undefined && { copy: median(trials.map(({ copy }) => copy)) }),
    peakBytes: median(trials.map(({ peakBytes }) => peakBytes)),
  };
}

/** The value of a workload, in its unit, that this machine cannot beat: by its arithmetic or by its memory. */
function floorOf(workload) {
  const { flops, bytes, units, isRequest } = leastWork(workload);
  const rate = rates[workload.precision ?? 'float32'];
  const seconds = Math.max(
    flops / ((isRequest ? rate.gflops1 : rate.gflopsAll) * 1e9),
    bytes / ((isRequest ? rates.readGBps1 : rates.copyGBps) * 1e9),
  );
  return isRequest ? seconds * 1000 : units / seconds;
}

/** Our value on 1 … n threads. */
/** @param {string[]} args workload, directory of its model */
function scalingOf([name, directory]) {
  return Array.from({ length: threads }, (_, i) => {
    return run(process.execPath, [join(bench, 'trial.mjs'), name, directory, String(i + 1)]).value;
  });
}

function judge(bar, rowTrials, floor) {
  const ours = rowTrials.limbeck;
  const theirs = bar.peer === 'floor' ? ours?.map(() => ({ value: floor })) : rowTrials[bar.peer];
  if (ours === undefined || theirs === undefined) return undefined;
  const pick = (trial) => (bar.memory ? trial.peakBytes : bar.p99 ? trial.p99 : trial.value);
  // Pair by pair, so that a change of the machine between rounds cancels.
  const ratio = median(ours.map((trial, i) => pick(trial) / pick(theirs[i])));
  const passed = bar.atLeast === undefined ? ratio <= bar.atMost : ratio >= bar.atLeast;
  return { ...bar, ratio, passed };
}

function measureWorkload(name, torch) {
  const workload = WORKLOADS[name];
  if (workload.needs !== undefined && workload.needs !== cpu.isa) {
    return { name, title: workload.title, skipped: `needs ${workload.needs}, this machine has ${cpu.isa}` };
  }
  const directory = mkdtempSync(join(tmpdir(), 'limbeck-bench-'));
  const json = JSON.stringify(workload);
  const args = [name, directory, String(threads)];
  const peers = {
    limbeck: () => run(process.execPath, [join(bench, 'trial.mjs'), ...args]),
  };
  const missing = {};
  try {
    execFileSync(process.execPath, [join(bench, 'trial.mjs'), ...args, '--write'], { cwd: root, stdio: 'inherit' });
    if (torch.version === undefined) missing.torch = torch.reason;
    else {
      const script = join(bench, 'peers/torch_trial.py');
      peers.torch = () => run(options.python, ['-W', 'ignore', script, json, directory, String(threads)], pythonEnv);
    }
    const hasOnnx = workload.bars.some(({ peer }) => peer === 'onnxruntime');
    if (hasOnnx && torch.version === undefined) missing.onnxruntime = 'its graph is exported by PyTorch';
    else if (hasOnnx) {
      execFileSync(options.python, ['-W', 'ignore', join(bench, 'peers/export_onnx.py'), json, directory], {
        env: pythonEnv,
        stdio: ['ignore', 'ignore', 'inherit'],
      });
      peers.onnxruntime = () => run(process.execPath, [join(bench, 'peers/onnx_trial.mjs'), ...args]);
    }
    for (const backend of workload.tfjs ?? []) {
      const script = join(bench, 'peers/tfjs_trial.mjs');
      peers[`tfjs-${backend}`] = () => run(process.execPath, [script, ...args, backend]);
    }
    /** @type {Record<string, any[]>} */
    const trials = Object.fromEntries(Object.keys(peers).map((peer) => [peer, []]));
    for (let round = 0; round < rounds; round++) {
      for (const [peer, trial] of Object.entries(peers)) {
        if (round === 0 || !peer.startsWith('tfjs')) trials[peer].push(trial());
      }
    }
    for (const [peer, [first]] of Object.entries(trials)) {
      if (agrees(trials.limbeck[0].check, first.check, workload)) continue;
      missing[peer] = `its numbers differ from ours: ${first.check} and ${trials.limbeck[0].check}`;
      delete trials[peer];
    }
    const floor = floorOf(workload);
    const bars = workload.bars.map((bar) => judge(bar, trials, floor)).filter((bar) => bar !== undefined);
    const results = Object.fromEntries(Object.entries(trials).map(([peer, list]) => [peer, summarise(list)]));
    const scaling = workload.task === 'request' || workload.task === 'interpolate' ? undefined : scalingOf(args);
    return { name, title: workload.title, unit: workload.unit, floor, scaling, results, bars, missing };
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

/** @returns what the native bench printed */
function runNativeBench(program, args, env = process.env) {
  const limits = { timeout: MAX_NATIVE_BENCH_MS, killSignal: /** @type {const} */ ('SIGKILL') };
  return JSON.parse(execFileSync(program, args, { encoding: 'utf8', cwd: root, env, ...limits }));
}

function buildNativeBench() {
  const build = join(root, 'build/bench');
  /** @type {import('node:child_process').ExecFileSyncOptions} */
  const quiet = { cwd: root, stdio: ['ignore', 'ignore', 'inherit'] };
  execFileSync('cmake', ['-S', 'native', '-B', build, '-DCMAKE_BUILD_TYPE=Release'], quiet);
  execFileSync('cmake', ['--build', build, '--target', 'bench_gemm', '--parallel', String(threads)], quiet);
  return join(build, 'bench_gemm');
}

/** GFLOP/s of matrix products, one thread and all, beside the peak of the same run; with their bars. */
function benchProducts(program, isa) {
  const env = { ...process.env, LIMBECK_FORCE_ISA: isa };
  const { shapes } = runNativeBench(program, [], env);
  return shapes.map((shape) => {
    const { kind, m, n, k, share1, shareAll, gflopsAll } = shape;
    const flops = 2e-9 * m * n * k;
    const gigabytes = 1e-9 * (OPERAND_BYTES[kind] * (m * k + k * n) + 4 * m * n);
    // What memory allows, as a share of the peak.
    const allowed = Math.min(1, flops / ((gflopsAll / shareAll) * (gigabytes / rates.copyGBps)));
    const ofFloor = { one: Math.min(share1, 1), all: Math.min(shareAll / allowed, 1) };
    const isSquare = m === n && n === k && m >= 1024;
    const bar = PRODUCT_BARS[isa === 'avx2' ? isa : kind][isSquare ? 'square' : 'other'];
    const bars = Object.entries(bar).map(([on, atLeast]) => ({ on, atLeast, passed: ofFloor[on] >= atLeast }));
    return { ...shape, isa, ofFloor, bars };
  });
}

function printProduct({ isa, kind, m, n, k, layout, gflops1, gflopsAll, share1, shareAll, ofFloor, bars }) {
  const percent = (share) => `${(100 * share).toFixed(0)} %`;
  const missed = bars.filter(({ passed }) => !passed).map(({ on, atLeast }) => `${on} ≥ ${percent(atLeast)}`);
  console.log(
    `${isa} ${kind} ${m} × ${n} × ${k} ${layout}: ${gflops1} and ${gflopsAll} GFLOP/s on one thread and all, ` +
      `${percent(share1)} and ${percent(shareAll)} of the peak, ${percent(ofFloor.all)} of the floor` +
      (missed.length === 0 ? '' : `; MISSED ${missed.join(', ')}`),
  );
}

function format(value) {
  return value >= 100 ? value.toFixed(0) : value.toPrecision(3);
}

function printRow({ title, unit, floor, scaling, results, bars, missing, skipped }) {
  console.log(`\n${title}`);
  if (skipped !== undefined) return console.log(`  not run: ${skipped}`);
  for (const [peer, { value, min, max, p99, peakBytes }] of Object.entries(results)) {
    const tail = p99 === undefined ? '' : `, p99 ${format(p99)}`;
    const spread = `(${format(min)} to ${format(max)}${tail})`;
    console.log(`  ${peer.padEnd(12)} ${format(value)} ${unit} ${spread}, ${(peakBytes / 2 ** 20).toFixed(0)} MiB`);
  }
  const share = unit === 'ms' ? floor / results.limbeck.value : results.limbeck.value / floor;
  console.log(`  ${'floor'.padEnd(12)} ${format(floor)} ${unit}: we reach ${(100 * share).toFixed(0)} % of it`);
  if (scaling !== undefined) {
    console.log(`  ${'1 … n threads'.padEnd(12)} ${scaling.map((value) => format(value)).join(', ')} ${unit}`);
  }
  for (const [peer, reason] of Object.entries(missing)) console.log(`  ${peer.padEnd(12)} not compared: ${reason}`);
  for (const { peer, ratio, atLeast, atMost, memory, p99, passed } of bars) {
    const what = memory ? 'memory' : p99 ? 'p99' : unit === 'ms' ? 'p50' : 'rate';
    const bound = atLeast === undefined ? `≤ ${atMost}` : `≥ ${atLeast}`;
    console.log(`  ${what} ${format(ratio)} × ${peer}, bar ${bound}: ${passed ? 'met' : 'MISSED'}`);
  }
}

const filter = positionals[0] ?? '';
const names = Object.keys(WORKLOADS).filter((name) => name.includes(filter));
const torch = findTorch();
console.log(`${cpus()[0]?.model.trim()}, ${cpu.isa}, ${threads} threads; PyTorch: ${torch.version ?? torch.reason}`);
if (names.length > 0) installPeers();
const nativeBench = buildNativeBench();
const rates = runNativeBench(nativeBench, ['--rates']);
const isas = cpu.isa.startsWith('avx512') ? [cpu.isa, 'avx2'] : [cpu.isa];
const products = 'products'.includes(filter) ? isas.flatMap((isa) => benchProducts(nativeBench, isa)) : [];
products.forEach(printProduct);
/** @type {any[]} */
const rows = [];
for (const name of names) {
  rows.push(measureWorkload(name, torch));
  printRow(rows.at(-1));
}
if (options.json) {
  const date = new Date().toISOString().slice(0, 10);
  const name = [date, cpu.isa, ...positionals.slice(0, 1)].join('-');
  writeResult(name, { seed: 1, rounds, torch: torch.version ?? null, rates, products, rows });
}
const missed = [...products, ...rows].flatMap(({ bars = [] }) => bars).filter(({ passed }) => !passed).length;
if (missed > 0) console.log(`\n${missed} bars missed`);
if (options.check && missed > 0) process.exitCode = 1;
