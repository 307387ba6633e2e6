import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { readSafetensors } from '../../src/formats/safetensors.js';
import { createEngine, type Engine } from '../../src/index.js';

const fixtures = join(import.meta.dirname, '../fixtures');
let engine: Engine;
let folder: string;
beforeAll(async () => {
  engine = await createEngine({ threads: 1 });
  folder = mkdtempSync(join(tmpdir(), 'limbeck-checkpoints-'));
});
afterAll(() => {
  engine.dispose();
  rmSync(folder, { recursive: true });
});

test.each(['gpt2', 'llama', 'bert'])(
  'a saved %s has the tensors it was loaded from, and reloads to the same bits',
  async (name) => {
    const model = await engine.loadLanguageModel(join(fixtures, name));
    await model.save(join(folder, name));
    const original = (await readSafetensors(join(fixtures, name, 'model.safetensors'))).tensors;
    const saved = (await readSafetensors(join(folder, name, 'model.safetensors'))).tensors;
    for (const [tensor, { shape, data }] of saved) {
      expect(original.get(tensor)?.shape, tensor).toEqual(shape);
      expect(original.get(tensor)?.data, tensor).toEqual(data);
    }
    const again = await engine.loadLanguageModel(join(folder, name));
    expect(again.config).toEqual(model.config);
    const inputIds = [
      [5, 9, 1, 30],
      [7, 2],
    ];
    const logits = async (one: typeof model) => (await one.forward({ inputIds }, { logits: 'dense' })).logits;
    const expected = await logits(model);
    expect(expected?.some((value) => value !== 0)).toBe(true);
    expect(await logits(again)).toEqual(expected);
  },
);
