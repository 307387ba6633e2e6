import { LimbeckError } from '../errors.js';

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

/** @throws LimbeckError ERR_ABORTED */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new LimbeckError('ERR_ABORTED', 'Stopped by the AbortSignal.', { cause: signal.reason });
}
