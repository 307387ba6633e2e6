/**
 * Makes a checkout ready to run: dependencies, native addon, compiled TypeScript. `npm start` and `npm test` run it
 * first; a step whose inputs did not change is skipped. Node built-ins only, because it runs before anything is
 * installed.
 */
import { spawnSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readFileSync, realpathSync, rmSync } from 'node:fs';
import { basename, dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { buildNative, environment } from './build-native.mjs';
import { hashFiles, listFiles, runOnChange } from './stamps.mjs';

/** @param {string} [root] The package's folder. */
export function setup(root = fileURLToPath(new URL('..', import.meta.url))) {
  requireNode();
  installDependencies(root);
  compileNative(root);
  compileTypeScript(root);
}

function requireNode() {
  const [major, minor] = process.versions.node.split('.').map(Number);
  if (major > 20 || (major === 20 && minor >= 19)) return;
  throw new Error(`Limbeck needs Node 20.19 or later; this is ${process.version}.`);
}

/** @param {string} root */
function installDependencies(root) {
  if (dependenciesAreInstalled(root)) return;
  const { npm_execpath } = process.env;
  const npm = npm_execpath !== undefined && basename(npm_execpath) === 'npm-cli.js' ? npm_execpath : undefined;
  // NODE_ENV=production would leave out the compilers that the next two steps need.
  const args = ['ci', '--include=dev', '--no-audit', '--no-fund'];
  timed('Installing dependencies (npm ci)', () => {
    if (npm !== undefined) run(root, process.execPath, [npm, ...args]);
    else run(root, process.platform === 'win32' ? 'npm.cmd' : 'npm', args);
  });
}

/**
 * Compares the lockfile with npm's record of what it installed.
 *
 * @param {string} root
 * @returns {boolean} Whether node_modules holds every package of the lockfile at its version; optional ones may be
 * missing, because npm leaves out those of other platforms.
 */
export function dependenciesAreInstalled(root) {
  const record = join(root, 'node_modules/.package-lock.json');
  if (!existsSync(record)) return false;
  const installed = JSON.parse(readFileSync(record, 'utf8')).packages;
  const wanted = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8')).packages;
  return Object.entries(wanted).every(([path, { version, integrity, optional, devOptional }]) => {
    if (path === '') return true;
    const actual = installed[path];
    if (actual === undefined) return optional === true || devOptional === true;
    return actual.version === version && actual.integrity === integrity;
  });
}

/** @param {string} root */
function compileNative(root) {
  const files = [
    ...listFiles(join(root, 'native')),
    join(root, 'binding.gyp'),
    join(root, 'node_modules/node-addon-api/package.json'),
  ];
  const target = `${process.platform}-${process.arch} node ${process.version}`;
  runOnChange({
    stampFile: join(root, 'node_modules/.limbeck/native'),
    key: `${target} ${hashFiles(root, files)}`,
    output: join(root, 'build/Release/limbeck.node'),
    action: (previousKey) => {
      const incremental = previousKey?.startsWith(target) ?? false;
      timed('Compiling the native addon (node-gyp)', () => buildNative(root, { incremental }));
    },
  });
}

/** @param {string} root */
function compileTypeScript(root) {
  const files = [
    ...listFiles(join(root, 'src')),
    join(root, 'tsconfig.json'),
    join(root, 'node_modules/typescript/package.json'),
  ];
  runOnChange({
    stampFile: join(root, 'node_modules/.limbeck/typescript'),
    key: hashFiles(root, files),
    output: join(root, 'dist/index.js'),
    action: () => {
      rmSync(join(root, 'dist'), { recursive: true, force: true }); // no output of a source that is gone
      timed('Compiling TypeScript (tsc)', () =>
        run(root, process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), '-p', 'tsconfig.json']),
      );
      copyConsole(root);
    },
  });
}

/**
 * The page that the service serves is no TypeScript, and goes along as it is.
 *
 * @param {string} root
 */
function copyConsole(root) {
  const from = join(root, 'src/server/console');
  for (const file of listFiles(from, (name) => !name.endsWith('.ts'))) {
    const target = join(root, 'dist/server/console', relative(from, file));
    mkdirSync(dirname(target), { recursive: true });
    copyFileSync(file, target);
  }
}

/**
 * @param {string} note
 * @param {() => void} action
 */
function timed(note, action) {
  const start = performance.now();
  process.stderr.write(`${note} … `);
  try {
    action();
    process.stderr.write(`${((performance.now() - start) / 1000).toFixed(1)} s\n`);
  } catch (error) {
    process.stderr.write('failed\n');
    throw error;
  }
}

/**
 * Runs a program and keeps what it prints to itself, unless it fails.
 *
 * @param {string} root
 * @param {string} command
 * @param {string[]} args
 */
function run(root, command, args) {
  const { status, error, stdout, stderr } = spawnSync(command, args, {
    cwd: root,
    encoding: 'utf8',
    env: environment(),
    maxBuffer: Number.POSITIVE_INFINITY,
    shell: command.endsWith('.cmd'),
  });
  if (error !== undefined) throw new Error(`${command} could not be started: ${error.message}`);
  if (status !== 0) throw new Error(`${stdout}${stderr}`.trim());
}

if (realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  try {
    setup();
  } catch (error) {
    console.error(error.message);
    process.exitCode = 1;
  }
}
