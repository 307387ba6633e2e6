/** A real pretrained Llama, where it is on this machine: its licence keeps it out of the repository. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { createEngine } from '../../src/index.js';

const directory = join(import.meta.dirname, '../../../shared/data/models/stories260K');

test.skipIf(!existsSync(directory))(
  'stories260K continues greedily token for token as its authors publish',
  async () => {
    const { prompt_ids: prompt, greedy_ids: expected } = JSON.parse(
      readFileSync(join(directory, 'greedy.json'), 'utf8'),
    );
    const engine = await createEngine();
    try {
      const model = await engine.loadLanguageModel(directory);
      const ids = await model.generateIds(prompt, { maxNewTokens: expected.length - prompt.length });
      expect([...prompt, ...ids]).toEqual(expected);
    } finally {
      engine.dispose();
    }
  },
);
