/**
 * Compares the product's code path with what a float64 reference computed: `npm run --silent parity -- DIR…`.
 *
 * A folder holds a checkpoint and `expected.safetensors` (hidden states, attention maps, logits, loss, gradients, three
 * AdamW steps), or `teacher/`, `student/`, `distil.json` and `expected.safetensors` (the terms of the distillation loss
 * and their gradients). Prints one JSON object with the worst relative error ‖out − reference‖/‖reference‖ of each
 * group; a reference tensor that is nothing but rounding noise is measured against the norm of its group. Exit code 0:
 * within tolerance, 1: not, 2: a folder of another layout.
 */
import { realpathSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { compareDirectory } from './parity/compare.mjs';
import { setup } from './setup.mjs';

/** @returns {Promise<import('./parity/compare.mjs').Product>} */
async function loadProduct() {
  const load = (/** @type {string} */ path) => import(new URL(`../dist/${path}`, import.meta.url).href);
  const { loadBinding } = await load('binding.js');
  const { loadCheckpoint } = await load('formats/checkpoint.js');
  const { readJsonFile } = await load('formats/files.js');
  const { readSafetensors } = await load('formats/safetensors.js');
  const { huggingFaceFromNative } = await load('formats/tensor-names.js');
  const engine = loadBinding().createEngine({ threads: 0 });
  return { engine, loadCheckpoint, readJsonFile, readSafetensors, huggingFaceFromNative };
}

/**
 * @param {readonly string[]} directories
 * @returns {Promise<number>} The exit code.
 */
export async function parity(directories) {
  if (directories.length === 0) {
    console.error('Usage: npm run --silent parity -- DIR…');
    return 2;
  }
  setup();
  const product = await loadProduct();
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
