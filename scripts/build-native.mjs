/**
 * Compiles the native addon into build/Release/limbeck.node. Node built-ins only: it is part of the published
 * package, for platforms that it carries no compiled addon for.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, realpathSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism, tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const INSTALL_TOOLS =
  'Debian, Ubuntu: apt-get install g++ make python3; Fedora: dnf install gcc-c++ make python3; ' +
  'Alpine: apk add g++ make python3; macOS: xcode-select --install';

/**
 * @param {string} root The package's folder.
 * @param {{ incremental?: boolean }} [options] `incremental` keeps the objects of an earlier build.
 * @throws {Error} with one message that says what to install or which lines do not compile.
 */
export function buildNative(root, { incremental = false } = {}) {
  requireTools();
  const headers = findHeaders();
  const args = [findNodeGyp(root), ...(incremental ? ['configure', 'build'] : ['rebuild'])];
  if (headers !== undefined) args.push(`--nodedir=${headers}`);
  const { status, error, stdout, stderr } = spawnSync(process.execPath, args, {
    cwd: root,
    encoding: 'utf8',
    env: { JOBS: String(availableParallelism()), ...environment() },
    maxBuffer: Number.POSITIVE_INFINITY,
  });
  if (error !== undefined) throw error;
  if (status !== 0) throw new Error(explainFailure(`${stdout}\n${stderr}`, headers));
}

/**
 * @returns {NodeJS.ProcessEnv} This process's, with a home folder: npm and node-gyp end with a riddle when HOME is empty.
 */
export function environment() {
  return process.env.HOME === '' ? { ...process.env, HOME: tmpdir() } : process.env;
}

/** Tools are looked for first, because node-gyp's own report of a missing one is some fifty lines long. */
function requireTools() {
  if (process.platform === 'win32') return; // node-gyp finds Visual Studio and Python through the registry
  const { CXX = 'c++', PYTHON, npm_config_python } = process.env;
  const tools = [
    ['a C++ compiler (g++)', CXX.split(' ')[0] ?? CXX],
    ['make', 'make'],
    ['Python (python3)', npm_config_python ?? PYTHON ?? 'python3'],
  ];
  const missing = tools.filter(([, command]) => spawnSync(String(command), ['--version']).error !== undefined);
  if (missing.length === 0) return;
  const names = missing.map(([name]) => name).join(', ');
  throw new Error(`The native addon cannot be compiled: not found: ${names}. Install it (${INSTALL_TOOLS}).`);
}

/**
 * The installation that holds Node's headers, so that node-gyp downloads nothing. Without one, node-gyp looks into its
 * own cache, and downloads only when that is empty.
 *
 * @returns {string | undefined}
 */
export function findHeaders(env = process.env, execPath = process.execPath) {
  const candidates = [env.npm_config_nodedir, dirname(dirname(execPath))];
  return candidates.find((folder) => folder !== undefined && existsSync(join(folder, 'include/node/node_api.h')));
}

/**
 * @param {string} root
 * @returns {string} node-gyp's program: the installed package, or the copy inside npm.
 */
function findNodeGyp(root) {
  const prefix = dirname(dirname(process.execPath));
  const candidates = [
    process.env.npm_config_node_gyp,
    join(prefix, 'lib/node_modules/npm/node_modules/node-gyp/bin/node-gyp.js'),
    join(dirname(process.execPath), 'node_modules/npm/node_modules/node-gyp/bin/node-gyp.js'),
  ];
  try {
    candidates.unshift(createRequire(join(root, 'package.json')).resolve('node-gyp/bin/node-gyp.js'));
  } catch (error) {
    if (error.code !== 'MODULE_NOT_FOUND') throw error;
  }
  const found = candidates.find((file) => file !== undefined && existsSync(file));
  if (found === undefined) {
    throw new Error('The native addon cannot be compiled: node-gyp was not found. Run: npm install --no-save node-gyp');
  }
  return found;
}

/**
 * @param {string} output Everything that node-gyp printed.
 * @param {string | undefined} headers Where Node's headers were found.
 * @returns {string} The lines that matter, and what to do about them.
 */
export function explainFailure(output, headers) {
  const lines = output.split('\n');
  if (headers === undefined && /nodejs\.org|ENOTFOUND|EAI_AGAIN|ECONNREFUSED|FetchError/.test(output)) {
    return (
      "The native addon cannot be compiled: Node's headers are not installed and could not be downloaded. Install " +
      'them (Debian: apt-get install libnode-dev; the archives and images of the Node project hold them), or set ' +
      'npm_config_nodedir to the folder that has include/node/node_api.h.'
    );
  }
  const errors = lines.flatMap((line, index) =>
    /: (fatal )?error:|undefined reference|ld: /.test(line) ? lines.slice(index, index + 4) : [],
  );
  const excerpt = (errors.length > 0 ? errors.slice(0, 60) : lines.slice(-30)).join('\n').trim();
  return `${excerpt}\nThe native addon does not compile; the lines above say why.`;
}

if (realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  try {
    buildNative(resolve(import.meta.dirname, '..'));
    console.log('Compiled build/Release/limbeck.node');
  } catch (error) {
    console.error(error.message);
    process.exitCode = 1;
  }
}
