/**
 * Builds build/cuda-emulated/liblimbeck_cuda.so: the CUDA library with kernels that run on the processor. Tests of the
 * GPU engine use it where there is no GPU; it is far too slow for anything else. Says so where CMake is missing.
 */
import { spawnSync } from 'node:child_process';
import { realpathSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { hashFiles, listFiles, runOnChange } from './stamps.mjs';

/**
 * @param {string} root The package's folder.
 * @returns {string | undefined} The library, or nothing where it cannot be built here.
 * @throws {Error} when it does not compile.
 */
export function buildEmulatedCuda(root) {
  if (process.platform !== 'linux' || spawnSync('cmake', ['--version']).error !== undefined) return undefined;
  const build = join(root, 'build/cuda-emulated');
  const output = join(build, 'liblimbeck_cuda.so');
  runOnChange({
    stampFile: join(root, 'node_modules/.limbeck/cuda-emulated'),
    key: `${process.arch} ${hashFiles(root, listFiles(join(root, 'native')))}`,
    output,
    action: () => {
      process.stderr.write('Compiling the emulated CUDA library (cmake) … ');
      const start = performance.now();
      const options = ['-DLIMBECK_CUDA_EMULATED=ON', '-DCMAKE_CXX_FLAGS_RELEASE=-O1']; // as fast as -O3, and built sooner
      run('cmake', ['-S', join(root, 'native/cuda'), '-B', build, ...options]);
      run('cmake', ['--build', build, '--target', 'limbeck_cuda', '--parallel', String(availableParallelism())]);
      process.stderr.write(`${((performance.now() - start) / 1000).toFixed(1)} s\n`);
    },
  });
  return output;
}

/**
 * @param {string} command
 * @param {string[]} args
 */
function run(command, args) {
  const { status, stdout, stderr } = spawnSync(command, args, {
    encoding: 'utf8',
    maxBuffer: Number.POSITIVE_INFINITY,
  });
  if (status === 0) return;
  process.stderr.write('failed\n');
  throw new Error(`${stdout}${stderr}`.trim());
}

if (realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  try {
    if (buildEmulatedCuda(resolve(import.meta.dirname, '..')) === undefined) {
      console.error('Tests of the GPU engine are skipped: they need Linux and CMake.');
    }
  } catch (error) {
    console.error(error.message);
    process.exitCode = 1;
  }
}
