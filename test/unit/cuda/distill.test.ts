import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { createEngine, type Engine } from '../../../src/index.js';
import { describeEmulated, libraryOn } from '../../support/emulated-cuda.js';
import { tinyOptions } from '../../support/tiny.js';

describeEmulated('a distillation on the GPU', () => {
  const folder = mkdtempSync(join(tmpdir(), 'limbeck-cuda-distill-'));
  afterAll(() => {
    delete process.env['LIMBECK_CUDA_LIBRARY'];
    rmSync(folder, { recursive: true });
  });

  const distilled = async (engine: Engine, name: string) => {
    const options = tinyOptions(folder, join(folder, name));
    const result = await engine.distill(options);
    const answer = result.student.recommend({ history: ['i1', 'i2', 'i3'], k: 5 });
    const again = await engine.loadStudent(join(result.directory, 'student'));
    expect(again.recommend({ history: ['i1', 'i2', 'i3'], k: 5 })).toEqual(answer);
    return { report: result.report, answer };
  };

  test('loses what one on the processor loses, epoch by epoch', async () => {
    const cpu = await createEngine({ device: 'cpu', threads: 1 });
    process.env['LIMBECK_CUDA_LIBRARY'] = libraryOn();
    const gpu = await createEngine({ device: 'cuda', threads: 1 });
    const expected = await distilled(cpu, 'cpu');
    const actual = await distilled(gpu, 'gpu');
    expect(actual.report.curves.map(({ name }) => name)).toEqual(expected.report.curves.map(({ name }) => name));
    const student = expected.report.curves.filter(({ points }) => points.length >= 3);
    expect(student.length).toBeGreaterThan(0);
    for (const [i, { name, points }] of expected.report.curves.entries()) {
      for (const [j, { y }] of points.entries()) {
        expect(Math.abs((actual.report.curves[i]?.points[j]?.y ?? Number.NaN) - y), name).toBeLessThan(
          0.02 * Math.max(1, Math.abs(y)),
        );
      }
    }
    // The same settings begin anew on another device: its bits are others.
    cpu.dispose();
    gpu.dispose();
  }, 300_000);
});
