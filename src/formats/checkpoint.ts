/** Checkpoint directories in and out of the native transformer: `config.json` beside `model.safetensors`. */
import { join } from 'node:path';
import type { NativeEngine, NativeTransformer, TransformerConfig } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { readCheckpointTensors } from './checkpoint-files.js';
import { makeDirectory, writeFileAtomic } from './files.js';
import { type ModelFamily, readModelConfig, toHuggingFaceConfig } from './model-config.js';
import { writeSafetensors } from './safetensors.js';
import { huggingFaceFromNative, nativeFromHuggingFace } from './tensor-names.js';

export interface Checkpoint {
  readonly model: NativeTransformer;
  readonly family: ModelFamily;
  readonly config: TransformerConfig;
}

/**
 * Loads a Hugging Face checkpoint directory. The config and every tensor are checked before the engine is asked for
 * memory; the caller disposes of the model.
 *
 * @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT, ERR_SAFETENSORS, ERR_UNSUPPORTED_MODEL,
 * ERR_CHECKPOINT_MISMATCH, ERR_NOT_FINITE (NaN or infinite weights), ERR_OUT_OF_MEMORY, ERR_IO
 */
export async function loadCheckpoint(engine: NativeEngine, directory: string): Promise<Checkpoint> {
  const { family, config } = await readModelConfig(directory);
  const { tensors } = await readCheckpointTensors(directory);
  const parameters = nativeFromHuggingFace(family, config, tensors);
  const model = engine.createTransformer(config);
  try {
    checkParameters(model, parameters);
    for (const [name, { data }] of parameters) model.setParameter(name, data);
  } catch (error) {
    model.dispose();
    throw error;
  }
  return { model, family, config };
}

/**
 * Writes `config.json` and `model.safetensors` (float32, Hugging Face names) into a directory, which is made when it is
 * missing. Each file is replaced as a whole; for both at once, call this inside `writeDirectoryAtomic`.
 *
 * @throws LimbeckError ERR_UNSUPPORTED_MODEL (the family cannot express the config), ERR_NO_SPACE, ERR_IO
 */
export async function saveCheckpoint(directory: string, { model, family, config }: Checkpoint): Promise<void> {
  const json = toHuggingFaceConfig(family, config);
  const tensors = huggingFaceFromNative(family, config, (name) => model.getParameter(name));
  await makeDirectory(directory);
  await writeSafetensors(join(directory, 'model.safetensors'), tensors, { format: 'pt' });
  await writeFileAtomic(join(directory, 'config.json'), `${JSON.stringify(json, null, 2)}\n`);
}

/** The contract between the two sides of the addon: both derive the same parameters from one config. */
function checkParameters(
  model: NativeTransformer,
  parameters: ReadonlyMap<string, { shape: readonly number[] }>,
): void {
  const native = new Map(model.parameters().map(({ name, shape }) => [name, shape.join()]));
  for (const [name, { shape }] of parameters) {
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
