import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, describe, expect, test } from 'vitest';
import { findCudaLibrary, loadBinding } from '../../../src/binding.js';
import { createEngine } from '../../../src/index.js';
import { runProgram } from '../../support/run-program.js';

const folder = mkdtempSync(join(tmpdir(), 'limbeck-cuda-library-'));
afterAll(() => rmSync(folder, { recursive: true }));
afterEach(() => {
  delete process.env['LIMBECK_CUDA_LIBRARY'];
});

function compile(name: string, source: string): string {
  const file = join(folder, `${name}.so`);
  writeFileSync(join(folder, `${name}.cc`), source);
  const { status, stderr } = runProgram('c++', ['-shared', '-fPIC', '-o', file, join(folder, `${name}.cc`)]);
  expect(status, stderr).toBe(0);
  return file;
}

function failureOf(library: string): { code: string; message: string } {
  try {
    loadBinding().cudaInfo(library);
  } catch (error) {
    return error as { code: string; message: string };
  }
  throw new Error('The library was taken.');
}

describe('the CUDA library', () => {
  test('is the one that the environment names', () => {
    const file = join(folder, 'named.so');
    writeFileSync(file, '');
    expect(findCudaLibrary({ LIMBECK_CUDA_LIBRARY: file })).toBe(file);
    expect(() => findCudaLibrary({ LIMBECK_CUDA_LIBRARY: join(folder, 'nowhere.so') })).toThrow(
      expect.objectContaining({
        code: 'ERR_CUDA_UNAVAILABLE',
        message: expect.stringMatching(/nowhere\.so.*npm run build:cuda/),
      }),
    );
  });

  test.skipIf(process.platform !== 'linux').each([
    ['empty', undefined, /cannot be loaded.*npm run build:cuda/],
    ['another', 'int x;', /not Limbeck's CUDA library/],
    ['older', 'extern "C" const void* limbeck_cuda_api(unsigned) { return nullptr; }', /another version of Limbeck/],
    [
      'larger',
      'static const unsigned api[2] = {1, 4}; extern "C" const void* limbeck_cuda_api(unsigned) { return api; }',
      /another version of Limbeck/,
    ],
  ])('is refused when it is %s', (name, source, message) => {
    const file = source === undefined ? join(folder, `${name}.so`) : compile(name, source);
    if (source === undefined) writeFileSync(file, '');
    const { code, message: text } = failureOf(file);
    expect(code).toBe('ERR_CUDA_UNAVAILABLE');
    expect(text).toMatch(message);
  });
});

describe('createEngine()', () => {
  test("with device 'cuda' says what is missing", async () => {
    process.env['LIMBECK_CUDA_LIBRARY'] = join(folder, 'nowhere.so');
    await expect(createEngine({ device: 'cuda' })).rejects.toMatchObject({
      name: 'LimbeckError',
      code: 'ERR_CUDA_UNAVAILABLE',
    });
  });

  test("with device 'auto' takes the processor then", async () => {
    process.env['LIMBECK_CUDA_LIBRARY'] = join(folder, 'nowhere.so');
    const engine = await createEngine({ threads: 1 });
    expect(engine.device).toBe('cpu');
    expect(engine.deviceName).not.toBe('');
    engine.dispose();
  });

  test('refuses other devices', async () => {
    await expect(createEngine({ device: 'tpu' as 'cpu' })).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
    await expect(createEngine({ deviceIndex: -1 })).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
  });
});
