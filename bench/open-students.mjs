/**
 * `node bench/open-students.mjs`: language students of every family, saved, and opened by Python's transformers. PYTHON names
 * an interpreter that has it. Fails when logits differ by more than 1e-5, or weights or tokens (but Qwen2's) are not the same.
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { createEngine } from '../dist/index.js';

/** @type {Record<string, import('../dist/formats/model-config.js').ModelFamily[]>} */
const FAMILIES = {
  causal: ['gpt2', 'llama', 'mistral', 'qwen2', 'qwen3'],
  masked: ['bert', 'distilbert', 'roberta', 'xlm-roberta'],
};
const WORDS = 'red green blue small large cat dog bird sees eats likes the a old young tree'.split(' ');
// Digits, a contraction and line breaks are where pre-tokenizers differ.
const texts = Array.from({ length: 120 }, (_, i) => {
  const words = Array.from({ length: 8 }, (_, j) => WORDS[(i * 7 + j * j * 3 + i * j) % WORDS.length]);
  return `${words.join(' ')}, it's ${1900 + i}\n\n!`;
});
const corpus = { train: texts.slice(0, 100), validation: texts.slice(100) };
const training = { epochs: 2, batchTokens: 512 };
const shape = { hiddenSize: 24, numHiddenLayers: 3, numAttentionHeads: 4, dropout: 0 };
const teacherShape = { ...shape, hiddenSize: 32, numHiddenLayers: 2, maxPositionEmbeddings: 32 };

const folder = mkdtempSync(join(tmpdir(), 'limbeck-students-'));
try {
  const engine = await createEngine({ device: 'cpu', threads: 1 });
  const expected = {};
  for (const [objective, families] of Object.entries(FAMILIES)) {
    const { model: teacher } = await engine.pretrain(corpus, {
      objective: /** @type {'causal' | 'masked'} */ (objective),
      architecture: teacherShape,
      tokenizer: { vocabSize: 300 },
      training,
    });
    for (const family of families) {
      const isCausal = objective === 'causal';
      const architecture = { ...shape, ...(isCausal && family !== 'gpt2' ? { numKeyValueHeads: 2 } : {}) };
      const { model } = await engine.distillLanguageModel(teacher, corpus, { family, architecture, training });
      await model.save(join(folder, family));
      const text = texts[5];
      const { logits, inputIds } = await model.forward([text], { logits: 'dense' });
      expected[family] = { isCausal, text, ids: Array.from(inputIds), logits: Array.from(logits ?? []) };
      model.dispose();
    }
    teacher.dispose();
  }
  engine.dispose();
  writeFileSync(join(folder, 'expected.json'), JSON.stringify(expected));
  const peer = resolve(import.meta.dirname, 'peers/open_students.py');
  const output = execFileSync(process.env.PYTHON ?? 'python3', [peer, folder], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  const rows = output
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  for (const { family, difference, missing, unexpected, sameTokens } of rows) {
    // Transformers 5 splits texts for model_type qwen2 as Qwen2 does, whatever the files of the tokenizer say.
    const isSplitAlike = sameTokens || family === 'qwen2';
    const isSame = difference <= 1e-5 && missing.length === 0 && unexpected.length === 0 && isSplitAlike;
    const tokens = sameTokens ? 'the same tokens' : 'other tokens';
    console.log(`${isSame ? 'ok  ' : 'FAIL'} ${family}: ${tokens}, logits within ${difference.toExponential(1)}`);
    if (!isSame) process.exitCode = 1;
  }
  if (rows.length !== Object.keys(expected).length) throw new Error(`transformers opened ${rows.length} models`);
} finally {
  rmSync(folder, { recursive: true, force: true });
}
