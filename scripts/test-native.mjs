/**
 * Builds the C++ tests, those of the CUDA engine with kernels that run on the processor, with the address and
 * undefined-behaviour sanitizers, and runs them; an argument runs those whose title contains it. Where NVIDIA's compiler
 * is found, the kernels are compiled with it, too.
 */
import { spawnSync } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { join, resolve } from 'node:path';
import { buildCuda, findNvcc, hasCmake } from './build-cuda.mjs';
import { hashFiles, listFiles, runOnChange } from './stamps.mjs';

const NO_TEST_MATCHES = 2;
const CUDA_BENCHES = ['bench_cuda', 'bench_cuda_ops'];
const MAX_BENCH_MS = 15 * 60_000;

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

const programs = [join(build, 'native_tests')];
run('cmake', ['-S', join(root, 'native'), '-B', build, '-DLIMBECK_SANITIZE=ON']);
run('cmake', ['--build', build, '--parallel', String(availableParallelism())]);
if (process.platform === 'linux') {
  const core = join(build, 'liblimbeck_core.a'); // built with the same sanitizers
  const options = ['-DLIMBECK_CUDA_EMULATED=ON', '-DLIMBECK_SANITIZE=ON', `-DLIMBECK_CORE_LIBRARY=${core}`];
  run('cmake', ['-S', join(root, 'native/cuda'), '-B', cudaBuild, ...options]);
  const targets = ['cuda_tests', 'limbeck_cuda', ...CUDA_BENCHES];
  run('cmake', ['--build', cudaBuild, '--target', ...targets, '--parallel', String(availableParallelism())]);
  programs.push(join(cudaBuild, 'cuda_tests'));
}
const statuses = programs.map((program) => {
  const { status, error } = spawnSync(program, process.argv.slice(2), { stdio: 'inherit' });
  if (error !== undefined) throw error;
  return status ?? 1;
});
const failed = statuses.find((status) => status !== 0 && status !== NO_TEST_MATCHES);
if (failed !== undefined) process.exit(failed);
if (!statuses.includes(0)) process.exit(NO_TEST_MATCHES);
if (process.platform === 'linux' && process.argv.length === 2) runCudaBenches();
compileKernels();

/** The benches of the GPU run where few notice when they break: here their smallest shapes, once, on the emulator. */
function runCudaBenches() {
  const library = join(cudaBuild, 'liblimbeck_cuda.so');
  for (const name of CUDA_BENCHES) {
    const options = ['--library', library, '--tiny', '--once'];
    const limits = { encoding: 'utf8', timeout: MAX_BENCH_MS, killSignal: 'SIGKILL' };
    const { status, stdout, stderr, error } = spawnSync(join(cudaBuild, name), options, limits);
    if (error !== undefined) throw error; // it names the program
    const failed = stdout.split('\n').filter((line) => line.includes('"error"'));
    if (status !== 0 || failed.length > 0) {
      console.error(`${name} --tiny failed (${status}):\n${failed.join('\n')}\n${stderr}`);
      process.exit(1);
    }
  }
  console.log('The benches of the CUDA engine run on the emulator.');
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
