/**
 * Compares the product's code path with what a float64 reference computed: `npm run --silent parity -- DIR…`, on a GPU
 * with `--device cuda`. `--built` takes the package as it is built, on a machine that cannot build it.
 *
 * A folder holds a checkpoint and `expected.safetensors` (hidden states, attention maps, logits, loss, gradients, three
 * AdamW steps), or `teacher/`, `student/`, `distil.json` and `expected.safetensors` (the terms of the distillation loss
 * and their gradients). Prints one JSON object with the worst relative error ‖out − reference‖/‖reference‖ of each
 * group; a reference tensor that is nothing but rounding noise is measured against the norm of its group. Exit code 0:
 * within tolerance, 1: not, 2: a folder of another layout.
 */
import { realpathSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { compareDirectory } from './parity/compare.mjs';

/**
 * @param {string} device
 * @returns {Promise<import('./parity/compare.mjs').Product>}
 */
async function loadProduct(device) {
  const load = (/** @type {string} */ path) => import(new URL(`../dist/${path}`, import.meta.url).href);
  const { findCudaLibrary, loadBinding } = await load('binding.js');
  const { loadCheckpoint } = await load('formats/checkpoint.js');
  const { readJsonFile } = await load('formats/files.js');
  const { readSafetensors } = await load('formats/safetensors.js');
  const { huggingFaceFromNative } = await load('formats/tensor-names.js');
  const cuda = device === 'cuda' ? { cuda: { library: findCudaLibrary(), device: 0 } } : {};
  const engine = loadBinding().createEngine({ threads: 0, ...cuda });
  return { engine, loadCheckpoint, readJsonFile, readSafetensors, huggingFaceFromNative };
}

/**
 * @param {readonly string[]} args
 * @returns {Promise<number>} The exit code.
 */
export async function parity(args) {
  const { values: options, positionals: directories } = parseArgs({
    args: [...args],
    allowPositionals: true,
    options: { device: { type: 'string', default: 'cpu' }, built: { type: 'boolean', default: false } },
  });
  if (directories.length === 0) {
    console.error('Usage: npm run --silent parity -- [--device cuda] DIR…');
    return 2;
  }
  if (!options.built) (await import('./setup.mjs')).setup();
  const product = await loadProduct(options.device);
  const cases = [];
  try {
    for (const directory of directories) {
      try {
        cases.push(await compareDirectory(product, directory));
      } catch (error) {
        if (error.code === undefined) throw error;
        console.error(`${directory}: ${error.message} (${error.code})`);
        return 2;
      }
    }
  } finally {
    product.engine.dispose();
  }
  const passed = cases.every((one) => one.passed);
  console.log(JSON.stringify({ passed, cases }));
  return passed ? 0 : 1;
}

if (realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  try {
    process.exitCode = await parity(process.argv.slice(2));
  } catch (error) {
    console.error(error);
    process.exitCode = 2;
  }
}
