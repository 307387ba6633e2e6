/** Checkpoint directories in and out of the native transformer: `config.json` beside `model.safetensors`. */
import { join } from 'node:path';
import type { NativeEngine, NativeTransformer, TransformerConfig } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { CheckpointTensors } from './checkpoint-files.js';
import { makeDirectory, pathExists, readJsonFile, writeFileAtomic } from './files.js';
import { type ModelFamily, readModelConfig, toHuggingFaceConfig } from './model-config.js';
import { notFinite, writeSafetensors } from './safetensors.js';
import {
  type FloatTensor,
  huggingFaceFromNative,
  nativeParameterShapes,
  placeTensors,
  type TensorPlacement,
} from './tensor-names.js';
import { copiesOfParameters, tensorSources } from './tensor-sources.js';

export interface Checkpoint {
  readonly model: NativeTransformer;
  readonly family: ModelFamily;
  readonly config: TransformerConfig;
}

export interface LoadedCheckpoint extends Checkpoint {
  /** What config.json says, checked. */
  readonly huggingFace: object;
}

/** What is read at once: long enough for the disk, and nothing beside the model. A multiple of every dtype's size. */
const READ_BYTES = 4 * 1024 * 1024;

/**
 * Loads a Hugging Face checkpoint directory. The config, and the names, shapes and dtypes of all tensors are checked
 * before the engine is asked for memory; then weights go piece by piece from the files into the model, so that loading
 * takes no memory beside it. The caller disposes of the model.
 *
 * @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT, ERR_SAFETENSORS, ERR_UNSUPPORTED_MODEL,
 * ERR_CHECKPOINT_MISMATCH, ERR_NOT_FINITE (NaN or infinite weights), ERR_OUT_OF_MEMORY, ERR_IO
 */
export async function loadCheckpoint(engine: NativeEngine, directory: string): Promise<LoadedCheckpoint> {
  const { family, config, huggingFace } = await readModelConfig(directory);
  const checkpoint = await CheckpointTensors.open(directory);
  try {
    const placements = placeTensors(family, config, checkpoint.tensors, directory);
    await checkCopies(checkpoint, copiesOfParameters(family, config.tieWordEmbeddings), placements, directory);
    const model = engine.createTransformer(config);
    try {
      checkParameters(model, config);
      const buffer = new Uint8Array(READ_BYTES);
      for (const placement of placements) await loadTensor(model, checkpoint, placement, buffer);
    } catch (error) {
      model.dispose();
      throw error;
    }
    return { model, family, config, huggingFace };
  } finally {
    await checkpoint.close();
  }
}

/** Refuses a copy that differs: transformers 4 computes with the original, transformers 5 with the copy. */
async function checkCopies(
  checkpoint: CheckpointTensors,
  copies: ReadonlyMap<string, string>,
  placements: readonly TensorPlacement[],
  directory: string,
): Promise<void> {
  for (const [copy, parameter] of copies) {
    const original = placements.find((placement) => placement.parameter === parameter)?.fileName;
    if (original === undefined || !checkpoint.tensors.has(copy)) continue;
    if (await isSameTensor(checkpoint, copy, original)) continue;
    const why =
      parameter === 'embeddings.word'
        ? 'of which it is a copy by config.json (tie_word_embeddings). Remove it, or change config.json.'
        : 'which is another name of the same. Make them equal.';
    throw new LimbeckError(
      'ERR_CHECKPOINT_MISMATCH',
      `'${directory}': tensor '${copy}' differs from '${original}', ${why}`,
    );
  }
}

async function isSameTensor(checkpoint: CheckpointTensors, a: string, b: string): Promise<boolean> {
  const [first, second] = [checkpoint.tensors.get(a), checkpoint.tensors.get(b)];
  if (first?.dtype !== second?.dtype || first?.shape.join() !== second?.shape.join()) return false;
  const others = checkpoint.read(b, new Uint8Array(READ_BYTES));
  for await (const { bytes } of checkpoint.read(a, new Uint8Array(READ_BYTES))) {
    const { value } = await others.next();
    if (Buffer.compare(bytes, value?.bytes ?? new Uint8Array()) !== 0) return false;
  }
  return true;
}

async function loadTensor(
  model: NativeTransformer,
  checkpoint: CheckpointTensors,
  { fileName, parameter, offset, isTransposed, dtype, valueBytes }: TensorPlacement,
  buffer: Uint8Array,
): Promise<void> {
  for await (const piece of checkpoint.read(fileName, buffer)) {
    const first = piece.offset / valueBytes;
    const bad = model.loadParameter(parameter, { dtype, bytes: piece.bytes, offset: offset + first, isTransposed });
    if (bad >= 0) throw notFinite(fileName, checkpoint.pathOf(fileName), first + bad);
  }
}

/**
 * Writes `config.json` and `model.safetensors` (float32, Hugging Face names) into a directory, which is made when it is
 * missing. Each file is replaced as a whole; for both at once, call this inside `writeDirectoryAtomic`.
 *
 * @param specialIds keys such as `eos_token_id`
 * @throws LimbeckError ERR_UNSUPPORTED_MODEL (the family cannot express the config), ERR_NO_SPACE, ERR_IO
 */
export async function saveCheckpoint(
  directory: string,
  { model, family, config }: Checkpoint,
  specialIds: Readonly<Record<string, number | number[] | null>> = {},
): Promise<void> {
  const json = { ...specialIds, ...toHuggingFaceConfig(family, config) };
  const tensors = huggingFaceFromNative(family, config, (name) => model.getParameter(name));
  if (config.maskedLmHead && !config.tieWordEmbeddings) {
    // Of BERT's and RoBERTa's two names for a bias, transformers 5 reads only the second where nothing is tied.
    for (const [copy, parameter] of copiesOfParameters(family, false)) {
      const [name = ''] = tensorSources(family, parameter).names;
      tensors.set(copy, tensors.get(name) as FloatTensor);
    }
  }
  await makeDirectory(directory);
  await writeSafetensors(join(directory, 'model.safetensors'), tensors, { format: 'pt' });
  await writeFileAtomic(join(directory, 'config.json'), `${JSON.stringify(json, null, 2)}\n`);
}

/** The tokens that end a text, as generation_config.json says or else config.json. @throws LimbeckError ERR_FILE_FORMAT, ERR_IO */
export async function readEosTokenIds(directory: string, huggingFace: object, vocabSize: number): Promise<number[]> {
  const path = join(directory, 'generation_config.json');
  const generation = (await pathExists(path)) ? await readJsonFile(path) : {};
  const { eos_token_id: first } = (generation ?? {}) as { eos_token_id?: unknown };
  const { eos_token_id: second } = huggingFace as { eos_token_id?: unknown };
  const ids = [first ?? second].flat() as number[];
  return ids.filter((id) => Number.isInteger(id) && id >= 0 && id < vocabSize);
}

/** The contract between the two sides of the addon: both derive the same parameters from one config. */
function checkParameters(model: NativeTransformer, config: TransformerConfig): void {
  const native = new Map(model.parameters().map(({ name, shape }) => [name, shape.join()]));
  for (const [name, shape] of nativeParameterShapes(config)) {
    if (native.get(name) !== shape.join()) {
      throw new LimbeckError(
        'ERR_INTERNAL',
        `The native model has [${native.get(name) ?? 'nothing'}] as '${name}', the checkpoint reader [${shape.join()}]`,
      );
    }
    native.delete(name);
  }
  for (const name of native.keys()) {
    throw new LimbeckError(
      'ERR_INTERNAL',
      `The native model has a parameter '${name}', which the reader does not know`,
    );
  }
}
