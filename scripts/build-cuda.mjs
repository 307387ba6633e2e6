/**
 * Builds build/cuda/liblimbeck_cuda.so, which the addon opens for device 'cuda'. Needs NVIDIA's CUDA toolkit and CMake;
 * to run, the library needs only a driver and cuBLAS. Node built-ins only: it is part of the published package.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, realpathSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

/** All that the library is built for; the last is compiled at the first start on anything newer. */
const ARCHITECTURES = '80-real;86-real;89-real;90a-real;90-virtual';

/**
 * @param {NodeJS.ProcessEnv} [env]
 * @returns {string | undefined} NVIDIA's compiler: CUDACXX, or the one on the path, or that of an installed toolkit.
 */
export function findNvcc(env = process.env) {
  const folders = [env.CUDA_HOME, env.CUDA_PATH, '/usr/local/cuda', '/opt/cuda'].filter(
    (folder) => folder !== undefined,
  );
  const candidates = [env.CUDACXX, 'nvcc', ...folders.map((folder) => join(folder, 'bin/nvcc'))];
  return candidates.find((command) => command !== undefined && runs(command));
}

/** @returns {boolean} */
export function hasCmake() {
  return runs('cmake');
}

/**
 * @param {string} root The package's folder.
 * @param {{ folder?: string, architectures?: string }} [options] `folder` of the build, `architectures`
 * as CMAKE_CUDA_ARCHITECTURES has them.
 * @returns {string} The library.
 * @throws {Error} that says what to install, or which lines do not compile.
 */
export function buildCuda(root, { folder = 'build/cuda', architectures = ARCHITECTURES } = {}) {
  if (process.platform !== 'linux') throw new Error('The CUDA library cannot be built: it needs Linux.');
  const nvcc = findNvcc();
  if (nvcc === undefined) {
    throw new Error(
      'The CUDA library cannot be built: nvcc was not found. Install the CUDA toolkit, version 13 ' +
        '(https://developer.nvidia.com/cuda-downloads), or set CUDACXX to its nvcc.',
    );
  }
  if (!hasCmake()) {
    throw new Error(
      'The CUDA library cannot be built: CMake (3.18 or later) was not found. Install it ' +
        '(Debian, Ubuntu: apt-get install cmake; Fedora: dnf install cmake).',
    );
  }
  const build = join(root, folder);
  run('cmake', [
    ...['-S', join(root, 'native/cuda'), '-B', build],
    ...['-DLIMBECK_CUDA_EMULATED=OFF', `-DCMAKE_CUDA_COMPILER=${nvcc}`, `-DCMAKE_CUDA_ARCHITECTURES=${architectures}`],
  ]);
  run('cmake', ['--build', build, '--target', 'limbeck_cuda', '--parallel', String(availableParallelism())]);
  return join(build, 'liblimbeck_cuda.so');
}

/** @param {string} command */
function runs(command) {
  const { status, error } = spawnSync(command, ['--version']);
  return error === undefined && status === 0;
}

/**
 * @param {string} command
 * @param {string[]} args
 */
function run(command, args) {
  const { status, error, stdout, stderr } = spawnSync(command, args, {
    encoding: 'utf8',
    maxBuffer: Number.POSITIVE_INFINITY,
  });
  if (error !== undefined) throw error;
  if (status === 0) return;
  const lines = `${stdout}\n${stderr}`.split('\n');
  const errors = lines.flatMap((line, index) =>
    /\berror\b.*:|undefined reference|CMake Error/.test(line) ? lines.slice(index, index + 4) : [],
  );
  const excerpt = (errors.length > 0 ? errors.slice(0, 60) : lines.slice(-30)).join('\n').trim();
  throw new Error(`${excerpt}\nThe CUDA library cannot be built; the lines above say why.`);
}

if (realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  try {
    const root = resolve(import.meta.dirname, '..');
    if (!existsSync(join(root, 'build/cuda/liblimbeck_cuda.so'))) {
      console.log('Compiling the kernels for five kinds of GPU; this takes some minutes.');
    }
    const architectures = process.env.LIMBECK_CUDA_ARCHITECTURES;
    console.log(`Compiled ${buildCuda(root, architectures === undefined ? {} : { architectures })}`);
  } catch (error) {
    console.error(error.message);
    process.exitCode = 1;
  }
}
