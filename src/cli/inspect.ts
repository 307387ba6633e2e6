import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { TransformerConfig } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { formatTable } from '../evaluate/table.js';
import { pathExists, readJsonFile } from '../formats/files.js';
import { readModelConfig } from '../formats/model-config.js';
import { listSafetensors } from '../formats/safetensors.js';
import { nativeParameterShapes } from '../formats/tensor-names.js';
import { fileChecksum } from '../knowledge/knowledge.js';
import { isComplete, readManifest, shardFile } from '../knowledge/manifest.js';
import { ITEMS_FILE, TEXT_ENCODER_DIRECTORY } from '../recommend/student-files.js';
import { modelDirectory } from '../teacher/model-hub.js';
import { type CommandContext, print } from './output.js';
import { readReport } from './read-report.js';

interface Description {
  readonly kind: string;
  /** For people; the rest is for `--json`. */
  readonly lines: readonly string[];
  /** Whether the content is what its checksums say; only where there are some. */
  readonly isIntact?: boolean;
  readonly [key: string]: unknown;
}

/** A whole checkpoint, or one of the shards of a large one. */
const WEIGHTS_FILE = /^model(-\d+-of-\d+)?\.safetensors$/;
const UNFINISHED = '.unfinished';

/**
 * `limbeck inspect FILE|DIR`. Returns false when a checksum does not hold.
 *
 * @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT, ERR_SAFETENSORS, ERR_UNSUPPORTED_MODEL, ERR_IO
 */
export async function inspectCommand(
  path: string,
  flags: { readonly json?: boolean },
  { streams }: CommandContext,
): Promise<boolean> {
  const { lines, ...object } = await describe(await modelDirectory(path));
  print(streams, flags.json ?? false, object, () => [`${path}: ${object.kind}`, ...lines].join('\n'));
  return object.isIntact ?? true;
}

async function describe(path: string): Promise<Description> {
  if (!(await pathExists(path))) throw new LimbeckError('ERR_FILE_NOT_FOUND', `'${path}' does not exist`);
  if (!(await stat(path)).isDirectory()) return describeSafetensors(path);
  const has = (name: string) => pathExists(join(path, name));
  if ((await has('report.json')) || (await has(UNFINISHED))) return describeOutput(path);
  if (await has('manifest.json')) return describeKnowledge(path);
  if (await has(ITEMS_FILE)) return describeStudent(path);
  if (await has('config.json')) return describeCheckpoint(path);
  throw new LimbeckError(
    'ERR_FILE_FORMAT',
    `'${path}' is neither a model, a student, a knowledge store nor the output of a distillation`,
  );
}

async function describeSafetensors(path: string): Promise<Description> {
  const { tensors: found, metadata } = await listSafetensors(path);
  const tensors = [...found].map(([name, { dtype, shape, begin, end }]) => ({
    name,
    dtype,
    shape,
    sizeBytes: end - begin,
  }));
  const sizeBytes = tensors.reduce((sum, tensor) => sum + tensor.sizeBytes, 0);
  return {
    kind: 'safetensors file',
    tensors,
    metadata,
    sizeBytes,
    lines: [
      ...tensors.map((tensor) => {
        return `  ${tensor.name}  ${tensor.dtype} [${tensor.shape.join(', ')}]  ${tensor.sizeBytes} bytes`;
      }),
      ...Object.entries(metadata).map(([key, text]) => `  ${key}: ${text}`),
      `  ${tensors.length} tensors, ${sizeBytes} bytes`,
    ],
  };
}

async function describeCheckpoint(path: string): Promise<Description> {
  const { family, config } = await readModelConfig(path);
  const parameters = countParameters(config);
  const weights = await describeWeights(path);
  return {
    kind: `${family} checkpoint`,
    family,
    config,
    parameters,
    ...weights,
    lines: [
      shapeLine(config),
      `  ${parameters} parameters; ${weights.dtypes.join(', ')}, ${weights.numTensors} tensors, ` +
        `${weights.sizeBytes} bytes in ${weights.files.join(', ')}`,
    ],
  };
}

/** What the weight files hold, by their headers. */
async function describeWeights(directory: string) {
  const files = (await readdir(directory)).filter((name) => WEIGHTS_FILE.test(name)).sort();
  if (files.length === 0) {
    throw new LimbeckError('ERR_FILE_NOT_FOUND', `Expected model.safetensors, whole or in shards, in '${directory}'`);
  }
  const dtypes = new Set<string>();
  let numTensors = 0;
  let sizeBytes = 0;
  for (const file of files) {
    for (const { dtype, begin, end } of (await listSafetensors(join(directory, file))).tensors.values()) {
      dtypes.add(dtype);
      numTensors += 1;
      sizeBytes += end - begin;
    }
  }
  return { files, dtypes: [...dtypes].sort(), numTensors, sizeBytes };
}

/** Parameters of a model of this shape; buffers and copies that a file may hold beside them do not count. */
function countParameters(config: TransformerConfig): number {
  const sizes = [...nativeParameterShapes(config).values()].map((shape) => shape.reduce((a, b) => a * b, 1));
  return sizes.reduce((sum, size) => sum + size, 0);
}

function shapeLine(config: TransformerConfig): string {
  const { hiddenSize, numHiddenLayers, numAttentionHeads, vocabSize, maxPositionEmbeddings } = config;
  return (
    `  ${numHiddenLayers} layers, hidden size ${hiddenSize}, ${numAttentionHeads} heads, vocabulary ${vocabSize}, ` +
    `${maxPositionEmbeddings} positions`
  );
}

async function describeStudent(path: string): Promise<Description> {
  const { family, config } = await readModelConfig(path);
  const { hiddenSize, itemFeatureSize, maxPositionEmbeddings: maxHistory } = config;
  const items = await readJsonFile(join(path, ITEMS_FILE));
  if (!Array.isArray(items)) {
    throw new LimbeckError('ERR_FILE_FORMAT', `'${join(path, ITEMS_FILE)}': expected a list of items`);
  }
  // As in the results table: what serves a request, with the item features folded into the item vectors.
  const parameters = countParameters(config) - hiddenSize * itemFeatureSize;
  const readsTexts = await pathExists(join(path, TEXT_ENCODER_DIRECTORY));
  return {
    kind: 'student',
    family,
    config,
    numItems: items.length,
    parameters,
    itemFeatureSize,
    maxHistory,
    readsTexts,
    lines: [
      `  ${items.length} items, ${itemFeatureSize} features each; ` +
        (readsTexts ? 'knows new items by their text' : 'knows the items of its catalogue only'),
      `  histories of up to ${maxHistory} items`,
      `  ${parameters} parameters to serve a request`,
      shapeLine(config),
    ],
  };
}

async function describeKnowledge(path: string): Promise<Description> {
  const manifest = await readManifest(path);
  const { shards: listed, ...summary } = manifest;
  const shards: { file: string; texts: number; tokens: number; state: 'intact' | 'changed' | 'missing' }[] = [];
  for (const { index, texts, tokens, crc32c } of listed) {
    const file = shardFile(index);
    const isPresent = await pathExists(join(path, file));
    const state = !isPresent ? 'missing' : (await fileChecksum(join(path, file))) === crc32c ? 'intact' : 'changed';
    shards.push({ file, texts, tokens, state });
  }
  const { numTexts, pieceLength, hiddenStates, pooling, attentions, valueRelations, logits } = summary;
  const complete = isComplete(manifest);
  const isIntact = shards.every(({ state }) => state === 'intact');
  return {
    kind: 'knowledge store',
    ...summary,
    complete,
    shards,
    isIntact,
    lines: [
      `  ${numTexts} ${pieceLength === undefined ? 'texts' : `pieces of up to ${pieceLength} tokens`}; hidden states ${hiddenStates.join(', ') || 'none'} (pooling ${pooling}); ` +
        `attention maps ${attentions.join(', ') || 'none'}; value relations ${valueRelations.join(', ') || 'none'}; ` +
        `logits ${typeof logits === 'string' ? logits : `top ${logits.topK}`}`,
      ...shards.map(({ file, texts, tokens, state }) => `  ${file}  ${texts} texts, ${tokens} tokens  ${state}`),
      `  ${complete ? 'complete' : 'unfinished: the extraction can go on'}; ` +
        (isIntact ? 'every checksum holds' : 'damaged: extract again'),
    ],
  };
}

async function describeOutput(path: string): Promise<Description> {
  const contents = (await readdir(path)).sort();
  const isUnfinished = contents.includes(UNFINISHED);
  const unfinished = isUnfinished ? ['  an unfinished run: the same command goes on where it stopped'] : [];
  const kind = 'output of a distillation';
  const contentsLine = `  holds ${contents.join(', ')}`;
  if (!contents.includes('report.json')) {
    return { kind, contents, isUnfinished, rows: [], lines: [contentsLine, ...unfinished] };
  }
  const { title, createdAt, rows } = await readReport(join(path, 'report.json'));
  return {
    kind,
    title,
    createdAt,
    contents,
    isUnfinished,
    rows: rows.map(({ metrics: _metrics, ...row }) => row),
    lines: [
      `  ${title}, ${createdAt}`,
      contentsLine,
      ...unfinished,
      '',
      rows.length === 0 ? '  no recommender was evaluated' : formatTable(rows),
    ],
  };
}
