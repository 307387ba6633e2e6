/** The CUDA library whose kernels run on the processor, and machines that it can pretend to find. */
import { copyFileSync, existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe } from 'vitest';
import { loadBinding, type NativeEngine } from '../../src/binding.js';

const library = fileURLToPath(new URL('../../build/cuda-emulated/liblimbeck_cuda.so', import.meta.url));

/** Of copies of the library. The hook is made here because one made inside a test never runs. */
const folders: string[] = [];
afterAll(() => {
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
});

/** As describe(), or skipped, saying why, where the library was not built: `npm test` builds it where CMake is found. */
export function describeEmulated(title: string, body: () => void): void {
  if (existsSync(library)) describe(title, body);
  else describe.skip(`${title} (skipped: ${library} was not built)`, body);
}

/** See Machine in native/cuda/emulator/runtime.h. */
export interface EmulatedMachine {
  readonly driver_version?: number;
  readonly num_devices?: number;
  readonly has_cublas?: 0 | 1;
  readonly major?: number;
  readonly minor?: number;
  readonly total_bytes?: number;
  readonly used_by_others_bytes?: number;
  readonly calls_until_lost?: number;
}

/** Path of a library, loaded now, that finds this machine: a copy of its own, because each has one machine. */
export function libraryOn(machine: EmulatedMachine = {}): string {
  const folder = mkdtempSync(join(tmpdir(), 'limbeck-cuda-'));
  folders.push(folder);
  const copy = join(folder, 'liblimbeck_cuda.so');
  copyFileSync(library, copy);
  process.env['LIMBECK_EMULATED_MACHINE'] = Object.entries(machine)
    .map(([name, value]) => `${name}=${value}`)
    .join(';');
  try {
    loadBinding().cudaInfo(copy); // reads the machine as it is loaded
  } finally {
    delete process.env['LIMBECK_EMULATED_MACHINE'];
  }
  return copy;
}

export function emulatedEngine(
  options: { readonly precision?: 'float32' | 'bfloat16'; readonly machine?: EmulatedMachine } = {},
): NativeEngine {
  const { precision = 'float32', machine } = options;
  return loadBinding().createEngine({
    threads: 1,
    precision,
    cuda: { library: machine === undefined ? library : libraryOn(machine), device: 0 },
  });
}
