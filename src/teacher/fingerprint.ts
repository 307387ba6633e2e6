/** What tells two models with the same shape apart. */
import { createHash, type Hash } from 'node:crypto';
import type { NativeTransformer } from '../binding.js';
import { createPacer } from '../formats/pacer.js';
import { type Hooks, throwIfAborted } from '../prepare/hooks.js';

/** 16 hexadecimal digits of all parameters. @throws LimbeckError ERR_ABORTED, ERR_BUSY, ERR_DISPOSED */
export async function fingerprintOfModel(model: NativeTransformer, hooks: Hooks = {}): Promise<string> {
  const hash = createHash('sha256');
  await hashParameters(hash, model, hooks);
  return hash.digest('hex').slice(0, 16);
}

/** Adds the name and the CRC-32C of every parameter; other work gets its turn in between. */
export async function hashParameters(hash: Hash, model: NativeTransformer, { signal }: Hooks): Promise<void> {
  const pause = createPacer();
  for (const { name } of model.parameters()) {
    await pause();
    throwIfAborted(signal);
    hash.update(`${name} ${model.parameterChecksum(name)}\n`);
  }
}
