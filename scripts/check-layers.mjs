/**
 * Checks that imports and includes point only down, and that no TypeScript files import each other in a circle.
 *
 *   TS :  cli → server → index → engine → evaluate → feedback → recommend → student → knowledge → teacher
 *         → prepare → formats → binding → arguments → errors
 *         client → types of server/schemas alone: it runs in browsers
 *   C++:  napi → accelerator → train | retrieve → model → ops → cpu → core
 *         cuda → train → …: a library of its own, which accelerator opens and knows by cuda/api.h alone
 */
import { existsSync, readFileSync, realpathSync } from 'node:fs';
import { dirname, join, relative, resolve, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import { listFiles } from './stamps.mjs';

/** From the top down: a part may import itself and everything after it. */
const TYPESCRIPT_PARTS = [
  'cli',
  'server',
  'index',
  'engine',
  'evaluate',
  'feedback',
  'recommend',
  'student',
  'knowledge',
  'teacher',
  'prepare',
  'formats',
  'binding',
  'arguments',
  'errors',
];

/** What a part may include besides itself. */
const NATIVE_PARTS = {
  napi: ['accelerator', 'train', 'retrieve', 'model', 'ops', 'cpu', 'core'],
  accelerator: ['train', 'model', 'ops', 'cpu', 'core'],
  train: ['model', 'ops', 'cpu', 'core'],
  retrieve: ['model', 'ops', 'cpu', 'core'],
  model: ['ops', 'cpu', 'core'],
  ops: ['cpu', 'core'],
  cpu: ['core'],
  cuda: ['train', 'model', 'ops', 'core'],
  core: [],
};

/** Headers that one more part may include. */
const SHARED_HEADERS = { 'cuda/api.h': 'accelerator' };

const CUDA_HEADER = /^(cuda|cublas|cudnn|curand|cusolver|cusparse|nccl|nvrtc|nvml|nvtx)\w*(\/.*)?(\.h|\.hpp|\.cuh)?$/i;

/**
 * @typedef {{ file: string, line: number, message: string }} Violation `file` is relative to the root.
 * @param {string} root The package's folder.
 * @returns {Violation[]}
 */
export function checkLayers(root) {
  return [...checkTypeScript(root), ...checkNative(root)];
}

/**
 * @param {string} root
 * @returns {Violation[]}
 */
function checkTypeScript(root) {
  const source = join(root, 'src');
  /** @type {Violation[]} */
  const violations = [];
  /** @type {Map<string, string[]>} */
  const graph = new Map();
  for (const path of listFiles(source, (name) => name.endsWith('.ts'))) {
    const file = toSlashes(relative(root, path));
    const text = readFileSync(path, 'utf8');
    const { importedFiles } = ts.preProcessFile(text, true, true);
    const imports = importedFiles.map(({ fileName, pos }) => ({
      name: fileName,
      line: lineAt(text, pos),
      isType: /^(import|export) type\b/.test(statementAt(text, pos)),
      target: fileName.startsWith('.') ? resolve(dirname(path), fileName.replace(/\.js$/, '.ts')) : undefined,
    }));
    graph.set(
      file,
      imports.flatMap(({ target }) => (target === undefined ? [] : [toSlashes(relative(root, target))])),
    );
    for (const { name, line, target, isType } of imports) {
      const message =
        partOf(source, path) === 'client'
          ? judgeClientImport(source, target, name, isType)
          : target === undefined
            ? undefined
            : judgeImport(source, path, target, name);
      if (message !== undefined) violations.push({ file, line, message });
    }
    violations.push(...findAddonLoads(file, text));
  }
  return [...violations, ...findCycles(graph)];
}

/** @returns {string | undefined} Why `path` may not import `target`. */
function judgeImport(source, path, target, name) {
  const from = partOf(source, path);
  const to = partOf(source, target);
  if (from === to) return undefined;
  const level = TYPESCRIPT_PARTS.indexOf(from);
  if (level < 0) return `src/${from} is no part of the design; allowed are ${TYPESCRIPT_PARTS.join(', ')}`;
  const allowed = TYPESCRIPT_PARTS.slice(level + 1);
  if (allowed.includes(to)) return undefined;
  return `${from} imports '${name}' (${to}); allowed: ${allowed.join(', ') || 'nothing'}`;
}

/** @returns {string | undefined} Why the client, which depends on nothing, may not import `target`. */
function judgeClientImport(source, target, name, isType) {
  if (target !== undefined && partOf(source, target) === 'client') return undefined;
  if (isType && target === join(source, 'server/schemas.ts')) return undefined;
  return `client imports '${name}'; allowed: types of server/schemas.ts alone`;
}

/** @returns {Violation[]} Native addons loaded anywhere but in src/binding.ts. */
function findAddonLoads(file, text) {
  if (file === 'src/binding.ts' || !/createRequire|dlopen/.test(text)) return [];
  return [...text.matchAll(/process\.dlopen|\.node['"`]/g)].map(({ index, 0: found }) => ({
    file,
    line: lineAt(text, index),
    message: `loads a native addon (${found}); allowed: src/binding.ts alone`,
  }));
}

/** @returns {Violation[]} One for each circle, at the first file of it that was met. */
function findCycles(graph) {
  /** @type {Violation[]} */
  const violations = [];
  const finished = new Set();
  /** @type {string[]} */
  const path = [];
  const visit = (file) => {
    if (finished.has(file)) return;
    const start = path.indexOf(file);
    if (start >= 0) {
      const circle = [...path.slice(start), file].join(' → ');
      violations.push({ file, line: 1, message: `imports itself in a circle: ${circle}; allowed: none` });
      return;
    }
    path.push(file);
    for (const target of graph.get(file) ?? []) visit(target);
    path.pop();
    finished.add(file);
  };
  for (const file of graph.keys()) visit(file);
  return violations;
}

/**
 * @param {string} root
 * @returns {Violation[]}
 */
function checkNative(root) {
  const native = join(root, 'native');
  /** @type {Violation[]} */
  const violations = [];
  for (const path of listFiles(native, (name) => /\.(cc|h|cu|cuh)$/.test(name))) {
    const file = toSlashes(relative(root, path));
    const text = readFileSync(path, 'utf8');
    for (const match of text.matchAll(/^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]/gm)) {
      const message = judgeInclude(native, path, String(match[2]));
      if (message !== undefined) violations.push({ file, line: lineAt(text, match.index), message });
    }
  }
  return violations;
}

/** @returns {string | undefined} Why `path` may not include `name`. */
function judgeInclude(native, path, name) {
  const from = partOf(native, path);
  const allowed = NATIVE_PARTS[from];
  if (allowed === undefined) {
    return `native/${from} is no part of the design; allowed are ${Object.keys(NATIVE_PARTS).join(', ')}`;
  }
  if (/^(napi|node_api|js_native_api|uv|v8|node)\b/.test(name)) {
    return from === 'napi' ? undefined : `${from} includes <${name}>; allowed: in native/napi alone`;
  }
  const target = [dirname(path), native].map((folder) => join(folder, name)).find((file) => existsSync(file));
  if (target === undefined) {
    const isCuda = CUDA_HEADER.test(name);
    return isCuda && from !== 'cuda' ? `${from} includes <${name}>; allowed: in native/cuda alone` : undefined;
  }
  const to = partOf(native, target);
  if (to === from || allowed.includes(to)) return undefined;
  if (SHARED_HEADERS[toSlashes(relative(native, target))] === from) return undefined;
  return `${from} includes "${name}" (${to}); allowed: ${[from, ...allowed].join(', ')}`;
}

/** @returns {string} The folder, or the file without its ending, right under `root`. */
function partOf(root, path) {
  return String(relative(root, path).split(sep)[0]).replace(/\.\w+$/, '');
}

/** @returns {string} From the keyword of the import or export that names a module at `position`. */
function statementAt(text, position) {
  const before = text.slice(0, position);
  return before.slice(Math.max(before.lastIndexOf('import'), before.lastIndexOf('export')));
}

function lineAt(text, position) {
  return text.slice(0, position).split('\n').length;
}

function toSlashes(path) {
  return path.split(sep).join('/');
}

if (realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const violations = checkLayers(resolve(import.meta.dirname, '..'));
  for (const { file, line, message } of violations) console.error(`${file}:${line}: ${message}`);
  if (violations.length > 0) process.exitCode = 1;
}
