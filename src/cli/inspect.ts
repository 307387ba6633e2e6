import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { LimbeckError } from '../errors.js';
import type { DistillationReport } from '../evaluate/report-types.js';
import { formatTable } from '../evaluate/table.js';
import { pathExists, readJsonFile } from '../formats/files.js';
import { readModelConfig } from '../formats/model-config.js';
import { listSafetensors } from '../formats/safetensors.js';
import { Knowledge } from '../knowledge/knowledge.js';
import { readManifest } from '../knowledge/manifest.js';
import { type CommandContext, print } from './output.js';

interface Description {
  readonly kind: string;
  readonly lines: readonly string[];
  readonly [key: string]: unknown;
}

/** `limbeck inspect FILE|DIR` */
export async function inspectCommand(
  path: string,
  flags: { readonly json?: boolean },
  { streams }: CommandContext,
): Promise<void> {
  const { lines, ...object } = await describe(path);
  print(streams, flags.json ?? false, object, () => [`${path}: ${object.kind}`, ...lines].join('\n'));
}

async function describe(path: string): Promise<Description> {
  if (!(await pathExists(path))) throw new LimbeckError('ERR_FILE_NOT_FOUND', `'${path}' does not exist`);
  if (!(await stat(path)).isDirectory()) return describeSafetensors(path);
  const has = (name: string) => pathExists(join(path, name));
  if (await has('report.json')) return describeOutput(path);
  if (await has('manifest.json')) return describeKnowledge(path);
  if (await has('items.json')) return describeStudent(path);
  if (await has('config.json')) return describeCheckpoint(path);
  throw new LimbeckError(
    'ERR_FILE_FORMAT',
    `'${path}' is neither a model, a student, a knowledge store nor the output of a distillation`,
  );
}

async function describeSafetensors(path: string): Promise<Description> {
  const { tensors, metadata } = await listSafetensors(path);
  const list = [...tensors].map(([name, { dtype, shape, begin, end }]) => ({
    name,
    dtype,
    shape,
    sizeBytes: end - begin,
  }));
  const sizeBytes = list.reduce((sum, tensor) => sum + tensor.sizeBytes, 0);
  return {
    kind: 'safetensors file',
    tensors: list,
    metadata,
    sizeBytes,
    lines: [
      ...list.map(
        ({ name, dtype, shape, sizeBytes: bytes }) => `  ${name}  ${dtype} [${shape.join(', ')}]  ${bytes} bytes`,
      ),
      `  ${list.length} tensors, ${sizeBytes} bytes`,
    ],
  };
}

async function describeCheckpoint(path: string): Promise<Description> {
  const { family, config } = await readModelConfig(path);
  const { tensors } = await listSafetensors(join(path, 'model.safetensors'));
  const parameters = [...tensors.values()].reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
  const { hiddenSize, numHiddenLayers, numAttentionHeads, vocabSize, maxPositionEmbeddings } = config;
  return {
    kind: `${family} checkpoint`,
    family,
    config,
    parameters,
    lines: [
      `  ${numHiddenLayers} layers, hidden size ${hiddenSize}, ${numAttentionHeads} heads, vocabulary ${vocabSize}, ` +
        `${maxPositionEmbeddings} positions`,
      `  ${parameters} parameters in ${tensors.size} tensors`,
    ],
  };
}

async function describeStudent(path: string): Promise<Description> {
  const checkpoint = await describeCheckpoint(path);
  const items = await readJsonFile(join(path, 'items.json'));
  const numItems = Array.isArray(items) ? items.length : 0;
  const readsTexts = await pathExists(join(path, 'text_encoder'));
  return {
    ...checkpoint,
    kind: 'student',
    numItems,
    readsTexts,
    lines: [
      `  ${numItems} items; ${readsTexts ? 'knows new items by their text' : 'knows items of its catalogue only'}`,
      ...checkpoint.lines,
    ],
  };
}

async function describeKnowledge(path: string): Promise<Description> {
  const manifest = await readManifest(path);
  if (manifest.complete) await Knowledge.open(path); // compares every checksum
  const { numTexts, hiddenStates, pooling, attentions, shards, complete } = manifest;
  return {
    kind: 'knowledge store',
    manifest,
    lines: [
      `  ${numTexts} texts; hidden states ${hiddenStates.join(', ') || 'none'} (pooling ${pooling}); ` +
        `attention maps ${attentions.join(', ') || 'none'}`,
      `  ${shards.length} shards, ${complete ? 'complete, checksums hold' : 'unfinished: the extraction can go on'}`,
    ],
  };
}

async function describeOutput(path: string): Promise<Description> {
  const report = (await readJsonFile(join(path, 'report.json'))) as unknown as DistillationReport;
  if (!Array.isArray(report.rows) || report.rows.length === 0) {
    throw new LimbeckError('ERR_FILE_FORMAT', `'${join(path, 'report.json')}' has no rows`);
  }
  return {
    kind: 'output of a distillation',
    title: report.title,
    createdAt: report.createdAt,
    rows: report.rows,
    lines: [`  ${report.title}, ${report.createdAt}`, formatTable(report.rows)],
  };
}
