/** Checkpoint directories in and out of the native transformer: `config.json` beside `model.safetensors`. */
import { join } from 'node:path';
import type { NativeEngine, NativeTransformer, TransformerConfig } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { CheckpointTensors } from './checkpoint-files.js';
import { makeDirectory, writeFileAtomic } from './files.js';
import { type ModelFamily, readModelConfig, toHuggingFaceConfig } from './model-config.js';
import { notFinite, writeSafetensors } from './safetensors.js';
import { huggingFaceFromNative, nativeParameterShapes, placeTensors, type TensorPlacement } from './tensor-names.js';

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
  specialIds: Readonly<Record<string, number | null>> = {},
): Promise<void> {
  const json = { ...specialIds, ...toHuggingFaceConfig(family, config) };
  const tensors = huggingFaceFromNative(family, config, (name) => model.getParameter(name));
  await makeDirectory(directory);
  await writeSafetensors(join(directory, 'model.safetensors'), tensors, { format: 'pt' });
  await writeFileAtomic(join(directory, 'config.json'), `${JSON.stringify(json, null, 2)}\n`);
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
