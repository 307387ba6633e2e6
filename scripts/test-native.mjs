/**
 * Builds the C++ tests, those of the CUDA engine with kernels that run on the processor, with the address and
 * undefined-behaviour sanitizers, and runs them; an argument runs those whose title contains it. Where NVIDIA's compiler
 * is found, the kernels are compiled with it, too.
 */
import { spawn, spawnSync } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { buildCuda, findNvcc, hasCmake } from './build-cuda.mjs';
import { hashFiles, listFiles, runOnChange } from './stamps.mjs';

const NO_TEST_MATCHES = 2;
const CUDA_BENCHES = ['bench_cuda', 'bench_cuda_ops'];
const MAX_BENCH_MS = 15 * 60_000;
/** More than there are processors, so that all of these work until the last tests. */
const NUM_SHARDS = 4 * availableParallelism();

const [title] = process.argv.slice(2);
const root = resolve(import.meta.dirname, '..');
const build = join(root, 'build/native-tests');
const cudaBuild = join(root, 'build/cuda-tests');

if (!hasCmake()) {
  console.error(
    'The C++ tests are built with CMake (3.18 or later), which was not found. Install it ' +
      '(Debian, Ubuntu: apt-get install cmake; Fedora: dnf install cmake; macOS: brew install cmake).',
  );
  process.exit(1);
}

run('cmake', ['-S', join(root, 'native'), '-B', build, '-DLIMBECK_SANITIZE=ON']);
run('cmake', ['--build', build, '--parallel', String(availableParallelism())]);
const jobs = testJobs(join(build, 'native_tests'));
if (process.platform === 'linux') {
  const core = join(build, 'liblimbeck_core.a'); // built with the same sanitizers
  const options = ['-DLIMBECK_CUDA_EMULATED=ON', '-DLIMBECK_SANITIZE=ON', `-DLIMBECK_CORE_LIBRARY=${core}`];
  run('cmake', ['-S', join(root, 'native/cuda'), '-B', cudaBuild, ...options]);
  const targets = ['cuda_tests', 'limbeck_cuda', ...CUDA_BENCHES];
  run('cmake', ['--build', cudaBuild, '--target', ...targets, '--parallel', String(availableParallelism())]);
  jobs.unshift(...testJobs(join(cudaBuild, 'cuda_tests')));
  if (title === undefined) jobs.push(...benchJobs());
}
const statuses = await runAll(jobs);
if (statuses.some((status) => status !== 0 && status !== NO_TEST_MATCHES)) process.exit(1);
if (!statuses.includes(0)) process.exit(NO_TEST_MATCHES);
compileKernels();

/**
 * @typedef {object} Job
 * @property {string} program
 * @property {string[]} args
 * @property {boolean} [isBench] Prints nothing but what went wrong.
 */

/**
 * @param {string} program
 * @returns {Job[]} That run each of its tests once.
 */
function testJobs(program) {
  return Array.from({ length: NUM_SHARDS }, (_, shard) => {
    return { program, args: [...(title === undefined ? [] : [title]), '--shard', `${shard}/${NUM_SHARDS}`] };
  });
}

/**
 * The benches of the GPU run where few notice when they break: here their smallest shapes, once, on the emulator.
 *
 * @returns {Job[]}
 */
function benchJobs() {
  // Their own limit is there to share out the time on a GPU; a row that it leaves out counts as an error.
  const options = ['--tiny', '--once', '--max-seconds', String(MAX_BENCH_MS / 1000)];
  const library = join(cudaBuild, 'liblimbeck_cuda.so');
  return CUDA_BENCHES.map((name) => {
    return { program: join(cudaBuild, name), args: ['--library', library, ...options], isBench: true };
  });
}

/**
 * Runs as many at once as there are processors.
 *
 * @param {Job[]} jobs
 * @returns {Promise<number[]>} Their exit statuses.
 */
async function runAll(jobs) {
  const statuses = [];
  const waiting = jobs.values(); // of which each worker takes the next
  const work = async () => {
    for (const job of waiting) statuses.push(await runJob(job));
  };
  await Promise.all(Array.from({ length: availableParallelism() }, work));
  return statuses;
}

/**
 * Prints what the job printed when it ends, so that the lines of several do not mix.
 *
 * @param {Job} job
 * @returns {Promise<number>} Its exit status.
 */
function runJob({ program, args, isBench = false }) {
  return new Promise((settle, reject) => {
    const limits = isBench ? { timeout: MAX_BENCH_MS, killSignal: /** @type {const} */ ('SIGKILL') } : {};
    const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'], ...limits });
    let output = '';
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8').on('data', (text) => {
        output += text;
      });
    }
    child.on('error', reject); // it names the program
    child.on('close', (code, signal) => {
      const status = code ?? 1;
      const errors = isBench ? output.split('\n').filter((line) => line.includes('"error"')) : [];
      const failed = errors.length > 0 || (status !== 0 && (isBench || status !== NO_TEST_MATCHES));
      if (isBench && !failed) output = '';
      if (status !== NO_TEST_MATCHES) console.log(`${basename(program)} ${args.join(' ')}\n${output}`.trimEnd());
      if (failed) console.error(`${basename(program)} ${args.join(' ')} failed (${signal ?? status}).`);
      settle(failed ? status || 1 : status);
    });
  });
}

/** For one kind of GPU alone, which finds what does not compile; again only when a source changed. */
function compileKernels() {
  if (process.platform !== 'linux' || findNvcc() === undefined) {
    console.log('The kernels were not compiled for a GPU: nvcc was not found.');
    return;
  }
  const sources = listFiles(join(root, 'native'), (name) => /\.(cu|cc|h|txt|map)$/.test(name));
  try {
    const ran = runOnChange({
      stampFile: join(root, 'node_modules/.limbeck/cuda-check'),
      key: hashFiles(root, sources),
      output: join(root, 'build/cuda-check/liblimbeck_cuda.so'),
      action: () => void buildCuda(root, { folder: 'build/cuda-check', architectures: '90a' }),
    });
    console.log(`The kernels compile with nvcc for sm_90a${ran ? '' : ' (nothing changed since they did)'}.`);
  } catch (error) {
    console.error(error.message);
    process.exit(1);
  }
}

/**
 * @param {string} command
 * @param {string[]} args
 */
function run(command, args) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit' });
  if (error !== undefined) throw error;
  if (status !== 0) process.exit(status ?? 1);
}
