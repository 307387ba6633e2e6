/**
 * Packs the package, installs the tarball into an empty project the way the strictest consumer would (no install
 * scripts, no optional dependencies), and runs it there.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { listFiles } from './stamps.mjs';

/** For each program that runs here, so that one that hangs is named. */
const MAX_PROGRAM_MS = 15 * 60_000;
const MAX_INSTALLED_BYTES = 26e6; // dependencies included, of which those of the HTTP service are 7 MB

const root = resolve(import.meta.dirname, '..');
const project = mkdtempSync(join(tmpdir(), 'limbeck-package-'));
try {
  installPackage();
  checkSize();
  checkAddon();
  checkEntryPoints();
  checkDeclarations();
  checkCommand();
  runRecommendation();
} finally {
  rmSync(project, { recursive: true });
}

function installPackage() {
  const [packed] = JSON.parse(run('npm', ['pack', '--json', '--pack-destination', project], root));
  writeFileSync(join(project, 'package.json'), JSON.stringify({ name: 'consumer', private: true }));
  const flags = ['--omit=optional', '--ignore-scripts', '--no-audit', '--no-fund'];
  run('npm', ['install', ...flags, join(project, packed.filename)], project);
}

function checkSize() {
  const files = listFiles(join(project, 'node_modules'));
  const bytes = files.reduce((sum, file) => sum + statSync(file).size, 0);
  console.log(`installed size: ${(bytes / 1e6).toFixed(1)} MB in ${files.length} files`);
  assert(bytes < MAX_INSTALLED_BYTES, `installed size is ${bytes} bytes; allowed: ${MAX_INSTALLED_BYTES}`);
}

function checkAddon() {
  const program = `
    const { loadBinding } = await import('./node_modules/limbeck/dist/binding.js');
    console.log(JSON.stringify(loadBinding().cpuInfo()));`;
  const { isa } = JSON.parse(runProgram(program, 'module'));
  console.log(`packaged addon: loads, instruction set ${isa}`);
}

function checkEntryPoints() {
  const check = "if (typeof limbeck.createEngine !== 'function') throw new Error('limbeck has no createEngine')";
  runProgram(`import * as limbeck from 'limbeck'; ${check}`, 'module');
  runProgram(`const limbeck = require('limbeck'); ${check}`, 'commonjs');
  const service = `
    import { LimbeckClient } from 'limbeck/client';
    import { createServer } from 'limbeck/server';
    const options = { student: ${JSON.stringify(join(root, 'test/fixtures/student'))}, port: 0, logLevel: 'silent' };
    const server = await createServer({ ...options, timeouts: { drainDelayMs: 0 } });
    const { models } = await new LimbeckClient(await server.listen()).models();
    if (models.length !== 1) throw new Error('the service does not answer');
    if (!(await server.close())) throw new Error('the service does not end');`;
  runProgram(service, 'module');
  console.log('entry points: import and require work; the service answers its client');
}

/** Declarations that were left out of the package must be none that others lead to. */
function checkDeclarations() {
  writeFileSync(
    join(project, 'consumer.mts'),
    "export type { Engine, Student } from 'limbeck';\n" +
      "export type { LimbeckClient } from 'limbeck/client';\n" +
      "export { createServer } from 'limbeck/server';\n",
  );
  const tsc = join(root, 'node_modules/typescript/bin/tsc');
  const types = ['--typeRoots', join(root, 'node_modules/@types'), '--types', 'node'];
  const strict = ['--noEmit', '--strict', '--skipLibCheck', 'false', '--target', 'es2023', '--module', 'nodenext'];
  run(process.execPath, [tsc, ...strict, ...types, 'consumer.mts'], project);
  console.log('declarations: whole');
}

function checkCommand() {
  const version = run('npx', ['--no-install', 'limbeck', '--version'], project).trim();
  console.log(`command: limbeck ${version}`);
}

function runRecommendation() {
  const student = join(root, 'test/fixtures/student');
  const example = join(student, 'example-history.json');
  assert(existsSync(example), `${example} is missing: the recommendation cannot be checked`);
  const program = `
    import { readFileSync } from 'node:fs';
    import { createEngine } from 'limbeck';
    const history = JSON.parse(readFileSync(${JSON.stringify(example)}, 'utf8'));
    const engine = await createEngine();
    const student = await engine.loadStudent(${JSON.stringify(student)});
    console.log(JSON.stringify(student.recommend({ history, k: 3 })));
    engine.dispose();`;
  const { items } = JSON.parse(runProgram(program, 'module'));
  assert.equal(items.length, 3);
  console.log(`recommendation: ${items.map(({ id }) => id).join(', ')}`);
}

/**
 * @param {string} program
 * @param {'module' | 'commonjs'} type
 * @returns {string} What the program printed.
 */
function runProgram(program, type) {
  const file = join(project, type === 'module' ? 'check.mjs' : 'check.cjs');
  writeFileSync(file, program);
  return run(process.execPath, [file], project);
}

/**
 * @param {string} command
 * @param {string[]} args
 * @param {string} cwd
 * @returns {string} Its standard output.
 */
function run(command, args, cwd) {
  const limits = { timeout: MAX_PROGRAM_MS, killSignal: /** @type {const} */ ('SIGKILL') };
  const { status, error, stdout, stderr } = spawnSync(command, args, { cwd, encoding: 'utf8', ...limits });
  const reason = error === undefined ? '' : ` (${error.message})`;
  assert.equal(status, 0, `${command} ${args.join(' ')} failed${reason}:\n${stdout}${stderr}`);
  return stdout;
}
