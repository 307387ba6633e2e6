import { join } from 'node:path';
import { expect } from 'vitest';
import { readSafetensors, type WritableTensor, writeSafetensors } from '../../src/formats/safetensors.js';

/** Changes tensors of a safetensors file, which has them all, value by value. */
export async function changeWeights(
  directory: string,
  path: string,
  changes: Readonly<Record<string, (value: number, index: number) => number>>,
): Promise<void> {
  const file = join(directory, path);
  const { tensors, metadata } = await readSafetensors(file);
  expect([...tensors.keys()]).toEqual(expect.arrayContaining(Object.keys(changes)));
  const changed = [...tensors].map(([name, { shape, data }]): [string, WritableTensor] => {
    const [values, change] = [data as Float32Array, changes[name]];
    return [name, { shape, data: change === undefined ? values : values.map(change) }];
  });
  await writeSafetensors(file, changed, metadata);
}
