import { z } from 'zod';
import { described } from '../arguments.js';
import { LimbeckError } from '../errors.js';
import { parseOptions } from './parse-options.js';

/** How a caller follows and stops long work. */
export interface Hooks {
  /** Stops the work between two native calls, each shorter than 100 ms as a rule. */
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((event: ProgressEvent) => void) | undefined;
}

export interface ProgressEvent {
  readonly step: 'prepare' | 'teacher' | 'extract' | 'initialise' | 'transfer' | 'fineTune' | 'recommend' | 'evaluate';
  /** What is at work, e.g. `pretrain` or `student, seed 1`. */
  readonly name: string;
  /** Units of work finished, of `total`. */
  readonly done: number;
  readonly total: number;
  /** Training loss of the last step, where there is one. */
  readonly loss?: number;
  /** Validation value of the last epoch; less is better. */
  readonly validationLoss?: number;
}

const hooksShape = {
  signal: z.instanceof(AbortSignal, { error: 'expected an AbortSignal' }).optional(),
  onProgress: z.custom<Hooks['onProgress']>((hook) => typeof hook === 'function', 'expected a function').optional(),
};

/**
 * Whoever stops work by `{ signal: controller }` would otherwise wait for ever.
 *
 * @param others keys that the hooks may have besides
 * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION
 */
export function checkHooks(hooks: Hooks, others: readonly string[] = []): void {
  const shape = Object.fromEntries(others.map((key) => [key, z.unknown().optional()]));
  parseOptions(z.strictObject({ ...hooksShape, ...shape }), hooks, 'hooks');
}

/** @throws LimbeckError ERR_ABORTED; ERR_INVALID_ARGUMENT for what is no signal */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal === undefined) return;
  if (!(signal instanceof AbortSignal)) {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `signal: expected an AbortSignal, got ${described(signal)}`);
  }
  if (signal.aborted) throw new LimbeckError('ERR_ABORTED', 'Stopped by the AbortSignal.', { cause: signal.reason });
}
