/** The fixture student, with genres as categories and a popularity prior. */
import { cpSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { writeSafetensors } from '../../src/formats/safetensors.js';

const fixture = join(import.meta.dirname, '../fixtures/student');

export interface FixtureItem {
  readonly id: string;
  readonly text: string;
  readonly categories: readonly string[];
}

/** Writes a student directory; `change` may alter the catalogue. Item i was chosen 100 / (i + 1) times. */
export async function writeCategorisedStudent(
  directory: string,
  change: (item: FixtureItem, index: number) => object = (item) => item,
): Promise<FixtureItem[]> {
  cpSync(fixture, directory, { recursive: true });
  const raw = JSON.parse(readFileSync(join(fixture, 'items.json'), 'utf8')) as { id: string; text: string }[];
  const items = raw.map(({ id, text }) => ({ id, text, categories: (text.split('. ').at(-1) ?? '').split(', ') }));
  writeFileSync(join(directory, 'items.json'), JSON.stringify(items.map(change)));
  const data = Float32Array.from(items, (_, i) => Math.floor(100 / (i + 1)));
  await writeSafetensors(join(directory, 'popularity.safetensors'), [['counts', { shape: [data.length], data }]]);
  return items;
}
