import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, it } from 'vitest';
import { inspectCommand } from '../../../src/cli/inspect.js';
import { createEngine } from '../../../src/engine.js';
import { writeSafetensors } from '../../../src/formats/safetensors.js';
import { fileChecksum } from '../../../src/knowledge/knowledge.js';
import { shardFile, writeManifest } from '../../../src/knowledge/manifest.js';
import { sampleReport } from '../evaluate/sample-report.js';

const gpt2 = fileURLToPath(new URL('../../fixtures/gpt2', import.meta.url));
const root = mkdtempSync(join(tmpdir(), 'limbeck-cli-'));
afterAll(() => rmSync(root, { recursive: true, force: true }));

async function inspectText(path: string, json = false): Promise<{ isIntact: boolean; output: string }> {
  const stdout = new PassThrough();
  const isIntact = await inspectCommand(path, { json }, { streams: { stdout, stderr: new PassThrough() } });
  return { isIntact, output: String(stdout.read()) };
}

async function inspect(path: string) {
  const { isIntact, output } = await inspectText(path, true);
  return { isIntact, report: JSON.parse(output) };
}

function makeDirectory(name: string): string {
  const directory = join(root, name);
  mkdirSync(directory);
  return directory;
}

describe('inspect a safetensors file', () => {
  it('lists tensors, sizes and metadata', async () => {
    const path = join(root, 'two.safetensors');
    const b = { shape: [2, 3], data: new Float32Array(6) };
    await writeSafetensors(
      path,
      [
        ['b', b],
        ['a', { shape: [4], data: new Int32Array(4) }],
      ],
      { format: 'pt' },
    );
    const { report } = await inspect(path);
    expect(report).toEqual({
      kind: 'safetensors file',
      tensors: [
        { name: 'a', dtype: 'I32', shape: [4], sizeBytes: 16 },
        { name: 'b', dtype: 'F32', shape: [2, 3], sizeBytes: 24 },
      ],
      metadata: { format: 'pt' },
      sizeBytes: 40,
    });
    const { output } = await inspectText(path);
    expect(output).toContain('  b  F32 [2, 3]  24 bytes\n');
    expect(output).toContain('  format: pt\n');
  });

  it('refuses another file', async () => {
    const path = join(root, 'text.safetensors');
    writeFileSync(path, 'not a safetensors file');
    await expect(inspect(path)).rejects.toMatchObject({ code: 'ERR_SAFETENSORS' });
  });

  it('says that a path does not exist', async () => {
    await expect(inspect(join(root, 'none'))).rejects.toMatchObject({ code: 'ERR_FILE_NOT_FOUND' });
  });
});

describe('inspect a checkpoint', () => {
  it('counts the parameters that the engine counts', async () => {
    const engine = await createEngine({ threads: 1 });
    const model = await engine.loadLanguageModel(gpt2);
    const { report } = await inspect(gpt2);
    expect(report).toMatchObject({
      kind: 'gpt2 checkpoint',
      family: 'gpt2',
      config: { hiddenSize: 48, numHiddenLayers: 3, vocabSize: 131 },
      parameters: model.numParameters,
      files: ['model.safetensors'],
      dtypes: ['F32'],
    });
    model.dispose();
    engine.dispose();
  });

  it('reads the headers of every shard', async () => {
    const directory = makeDirectory('shards');
    cpSync(join(gpt2, 'config.json'), join(directory, 'config.json'));
    for (const shard of [1, 2]) {
      const file = join(directory, `model-0000${shard}-of-00002.safetensors`);
      await writeSafetensors(file, [[`tensor.${shard}`, { shape: [5], data: new Float32Array(5) }]]);
    }
    const { report } = await inspect(directory);
    expect(report).toMatchObject({ numTensors: 2, sizeBytes: 40 });
    expect(report.files).toHaveLength(2);
  });

  it('says that the weights are missing', async () => {
    const directory = makeDirectory('no-weights');
    cpSync(join(gpt2, 'config.json'), join(directory, 'config.json'));
    await expect(inspect(directory)).rejects.toMatchObject({ code: 'ERR_FILE_NOT_FOUND' });
  });

  it('refuses a directory that holds nothing of ours', async () => {
    await expect(inspect(makeDirectory('empty'))).rejects.toMatchObject({ code: 'ERR_FILE_FORMAT' });
  });
});

describe('inspect a student', () => {
  it('tells items, features and the parameters of the results table', async () => {
    const directory = join(root, 'student');
    const engine = await createEngine({ threads: 1 });
    const architecture = { hiddenSize: 16, numHiddenLayers: 1, numAttentionHeads: 2, maxHistory: 7, dropout: 0 };
    const itemFeatures = new Float32Array(12 * 5).fill(0.1);
    const model = engine.createSequenceModel(architecture, { numItems: 12, seed: 1, itemFeatures });
    const student = engine.createStudent(
      model,
      Array.from({ length: 12 }, (_, i) => ({ id: `i${i}`, text: `item ${i}` })),
    );
    await student.save(directory);
    const { report } = await inspect(directory);
    expect(report).toMatchObject({
      kind: 'student',
      numItems: 12,
      itemFeatureSize: 5,
      maxHistory: 7,
      parameters: student.numParameters,
      readsTexts: false,
    });
    student.dispose();
    engine.dispose();
  });
});

describe('inspect a knowledge store', () => {
  async function makeStore(name: string): Promise<string> {
    const directory = makeDirectory(name);
    const shards = [];
    for (const index of [0, 1]) {
      const path = join(directory, shardFile(index));
      await writeSafetensors(path, [['lengths', { shape: [2], data: Int32Array.of(3, 4) }]]);
      shards.push({ index, texts: 2, tokens: 7, truncatedTexts: 0, crc32c: await fileChecksum(path) });
    }
    await writeManifest(directory, {
      format: 'limbeck-knowledge',
      version: 2,
      teacher: '0'.repeat(16),
      texts: '1'.repeat(16),
      hiddenStates: [0, 3],
      pooling: 'mean',
      attentions: [],
      valueRelations: [],
      relationHeads: 0,
      logits: { topK: 8, packed: true },
      dtype: 'float32',
      shardTexts: 2,
      hiddenSize: 48,
      vocabSize: 131,
      numAttentionHeads: 4,
      numTexts: 4,
      shards,
    });
    return directory;
  }

  it('says that every checksum holds', async () => {
    const directory = await makeStore('intact');
    const { isIntact, report } = await inspect(directory);
    expect(isIntact).toBe(true);
    expect(report).toMatchObject({ kind: 'knowledge store', numTexts: 4, complete: true, isIntact: true });
    expect((await inspectText(directory)).output).toContain('complete; every checksum holds');
  });

  it.each([
    ['missing', (path: string) => rmSync(path)],
    ['changed', (path: string) => writeFileSync(path, 'changed')],
  ])('names a shard that is %s', async (state, damage) => {
    const directory = await makeStore(state);
    damage(join(directory, 'knowledge-00001.safetensors'));
    const { isIntact, report } = await inspect(directory);
    expect(isIntact).toBe(false);
    expect(report.shards.map((shard: { state: string }) => shard.state)).toEqual(['intact', state]);
    expect((await inspectText(directory)).output).toContain('damaged');
  });
});

describe('inspect an output directory', () => {
  it('shows what it holds and the table', async () => {
    const directory = makeDirectory('output');
    writeFileSync(join(directory, 'report.json'), JSON.stringify(sampleReport));
    writeFileSync(join(directory, 'report.html'), '<!doctype html>');
    const { report } = await inspect(directory);
    expect(report).toMatchObject({ title: sampleReport.title, contents: ['report.html', 'report.json'] });
    expect(report.rows).toHaveLength(4);
    const { output } = await inspectText(directory);
    expect(output).toMatch(/^distilled student +0\.\d{4} ± /m);
  });

  it('shows a report without a recommender', async () => {
    const directory = makeDirectory('no-rows');
    writeFileSync(join(directory, 'report.json'), JSON.stringify({ ...sampleReport, rows: [] }));
    expect((await inspectText(directory)).output).toContain('no recommender was evaluated');
  });

  it('knows a run that was stopped', async () => {
    const directory = makeDirectory('stopped');
    mkdirSync(join(directory, '.unfinished'));
    expect((await inspect(directory)).report).toMatchObject({ isUnfinished: true, rows: [] });
  });
});
