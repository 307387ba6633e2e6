import { afterAll, beforeAll, expect, test } from 'vitest';
import { loadBinding, type NativeEngine } from '../../../src/binding.js';
import { describeEmulated, emulatedEngine, libraryOn } from '../../support/emulated-cuda.js';
import { expectClose } from '../../support/tiny-models.js';

describeEmulated('principal components on the GPU', () => {
  let cpu: NativeEngine;
  let gpu: NativeEngine;
  beforeAll(() => {
    cpu = loadBinding().createEngine({ threads: 1 });
    gpu = emulatedEngine({ precision: 'bfloat16' }); // of models; these are always found in float32
  });
  afterAll(() => {
    cpu.dispose();
    gpu.dispose();
  });

  const [rows, columns] = [60, 13];
  const x = Float32Array.from({ length: rows * columns }, (_, i) => Math.sin(i * i) / (1 + (i % columns)) + 2);

  test.each([true, false])('are those of the processor, whitened: %s', async (whiten) => {
    const request = { x, rows, columns, components: 4, seed: 3, whiten };
    const [expected, actual] = [await cpu.pca(request), await gpu.pca(request)];
    expectClose(actual.mean, expected.mean, 1e-6);
    expectClose(actual.explainedVariance, expected.explainedVariance, 1e-6);
    expectClose(actual.components, expected.components, 1e-4);
    const { mean, components } = expected;
    const transform = { x, rows, columns, mean, components };
    expectClose(await gpu.pcaTransform(transform), await cpu.pcaTransform(transform), 1e-5);
  });

  test('are refused where the processor refuses, and where the data does not fit', async () => {
    const request = { x, rows, columns, components: 4, seed: 3, whiten: false };
    await expect(gpu.pca({ ...request, x: x.map(() => Number.NaN) })).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
    });
    const library = libraryOn({ total_bytes: 4 << 20 });
    const small = loadBinding().createEngine({ threads: 1, cuda: { library, device: 0 } });
    const freeBytes = () => loadBinding().cudaInfo(library).devices[0]?.freeBytes;
    const atFirst = freeBytes();
    const large = { ...request, x: new Float32Array(1 << 20).map((_, i) => Math.sin(i)), rows: 1 << 14, columns: 64 };
    await expect(small.pca(large)).rejects.toMatchObject({ code: 'ERR_OUT_OF_MEMORY' });
    expect((await small.pca(request)).explainedVariance[3]).toBeGreaterThan(0);
    // Rows are projected some at a time.
    const axes = await cpu.pca({ ...large, components: 2 });
    const transform = { ...large, mean: axes.mean, components: axes.components };
    expectClose(await small.pcaTransform(transform), await cpu.pcaTransform(transform), 1e-5);
    expect(freeBytes()).toBe(atFirst); // nothing is kept
    small.dispose();
  });
});
