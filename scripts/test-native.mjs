/** Builds the C++ tests with the address and undefined-behaviour sanitizers and runs them; arguments are passed on. */
import { spawnSync } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { join, resolve } from 'node:path';

const root = resolve(import.meta.dirname, '..');
const build = join(root, 'build/native-tests');

/**
 * @param {string} command
 * @param {string[]} args
 */
function run(command, args) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit' });
  if (error !== undefined) throw error;
  if (status !== 0) process.exit(status ?? 1);
}

if (spawnSync('cmake', ['--version']).error !== undefined) {
  console.error(
    'The C++ tests are built with CMake (3.18 or later), which was not found. Install it ' +
      '(Debian, Ubuntu: apt-get install cmake; Fedora: dnf install cmake; macOS: brew install cmake).',
  );
  process.exit(1);
}
run('cmake', ['-S', join(root, 'native'), '-B', build, '-DLIMBECK_SANITIZE=ON']);
run('cmake', ['--build', build, '--parallel', String(availableParallelism())]);
run(join(build, 'native_tests'), process.argv.slice(2));
