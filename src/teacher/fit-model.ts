/** The training loop of every model: language models, sequence teachers and sequence students. */
import { setTimeout } from 'node:timers/promises';
import { z } from 'zod';
import type { NativeTrainer, NativeTransformer, StepMemory, StepRequest, StepResult } from '../binding.js';
import { LimbeckError, type LimbeckErrorCode } from '../errors.js';
import { type Hooks, type ProgressEvent, throwIfAborted } from '../prepare/hooks.js';
import { hashSeed } from './batches.js';
import {
  type CheckpointOptions,
  copyParameters,
  loadTrainingCheckpoint,
  type ParameterCopies,
  restoreParameters,
  saveTrainingCheckpoint,
} from './training-checkpoint.js';

/** Linear warm-up from 0, then half a cosine down to a share of the peak (Loshchilov & Hutter 2017, arXiv:1608.03983). */
export interface LearningRateSchedule {
  /** The peak. > 0. */
  readonly learningRate: number;
  /** Share of all steps that warm up, in [0, 1). */
  readonly warmupRatio: number;
  /** Rate after the last step / peak, in [0, 1]. */
  readonly minLearningRateRatio: number;
}

/** @param step from 0 */
export function learningRateAt(schedule: LearningRateSchedule, step: number, totalSteps: number): number {
  const { learningRate, warmupRatio, minLearningRateRatio } = schedule;
  const warmupSteps = Math.floor(warmupRatio * totalSteps);
  if (step < warmupSteps) return (learningRate * (step + 1)) / (warmupSteps + 1);
  const progress = (step - warmupSteps) / Math.max(1, totalSteps - warmupSteps);
  const cosine = 0.5 * (1 + Math.cos(Math.PI * Math.min(1, progress)));
  return learningRate * (minLearningRateRatio + (1 - minLearningRateRatio) * cosine);
}

/** Where a step stands in its run. */
export interface StepPosition {
  /** From 1. */
  readonly epoch: number;
  /** In the epoch, from 0. */
  readonly index: number;
  /** In the run, from 0. */
  readonly step: number;
  readonly totalSteps: number;
  readonly learningRate: number;
  /** In [0, 2^31). */
  readonly dropoutSeed: number;
}

/** Training terms are means over the steps of the epoch, before their weights. */
export interface EpochRecord {
  /** From 1. */
  readonly epoch: number;
  readonly trainLoss: number;
  readonly ce: number;
  readonly kd: number;
  readonly hidden: number;
  readonly attention: number;
  readonly relation: number;
  /** Less is better. */
  readonly validationLoss: number;
  readonly seconds: number;
}

export interface FitOptions {
  readonly model: NativeTransformer;
  readonly trainer: NativeTrainer;
  /** Shapes [rows, columns] of the learned projections that were set. */
  readonly projections?: readonly (readonly [number, number])[];
  readonly epochs: number;
  /** Steps of an epoch, counted from 1. */
  readonly stepsOf: (epoch: number) => number;
  readonly schedule: LearningRateSchedule;
  /** Epochs without a better validation value after which training stops; 0 = never. */
  readonly patience: number;
  readonly seed: number;
  /** Of every step. */
  readonly memory?: StepMemory;
  readonly request: (position: StepPosition) => StepRequest | Promise<StepRequest>;
  /**
   * Whether the requests of the next steps may be made while a step runs: they do not depend on what that one changes. On
   * a GPU steps then overlap, unless something comes after each.
   */
  readonly readsAhead?: boolean;
  readonly afterStep?: ((position: StepPosition) => Promise<void>) | undefined;
  /** Less is better; the parameters of the best epoch are kept. */
  readonly validate: () => Promise<number>;
  readonly afterEpoch?: ((record: EpochRecord) => Promise<void>) | undefined;
  readonly checkpoint?: CheckpointOptions | undefined;
  readonly describe: Pick<ProgressEvent, 'step' | 'name'>;
}

export interface FitResult {
  readonly epochs: readonly EpochRecord[];
  readonly bestEpoch: number;
  readonly stepCount: number;
  /** Of this call: time in steps, and in waiting for what they learn from. */
  readonly stepSeconds: number;
  readonly waitSeconds: number;
}

const sumsSchema = z.object({
  loss: z.number(),
  ce: z.number(),
  kd: z.number(),
  hidden: z.number(),
  attention: z.number(),
  relation: z.number(),
});
const count = z.int().min(0);
const stateSchema = z.object({
  epoch: z.int().min(1),
  index: count,
  step: count,
  records: z.array(z.object({ epoch: z.int().min(1), validationLoss: z.number() })),
  bestEpoch: count,
  bestValidationLoss: z.number().nullable(),
  sums: sumsSchema,
  seconds: z.number(),
});

/** There is a record of every epoch that is over. */
function isFitState(state: unknown): boolean {
  const { success, data } = stateSchema.safeParse(state);
  return success && data.records.length === data.epoch - 1 && data.bestEpoch < data.epoch;
}

interface FitState {
  /** Next step: epoch from 1, index from 0, step of the run from 0. */
  epoch: number;
  index: number;
  step: number;
  records: EpochRecord[];
  bestEpoch: number;
  bestValidationLoss: number | null;
  /** Sums over the steps of this epoch so far. */
  sums: Sums;
  seconds: number;
}

type Sums = z.infer<typeof sumsSchema>;
const noSums = (): Sums => ({ loss: 0, ce: 0, kd: 0, hidden: 0, attention: 0, relation: 0 });

/**
 * Trains until the last epoch or until validation stops getting better; the model ends with the parameters of its best
 * epoch. With a checkpoint, a run that was killed goes on from its last state and ends with the same bits. The last state is
 * that of the end, from which the same model is had at once: whoever saves the model deletes it then, and not before.
 *
 * @throws LimbeckError ERR_BUSY for a model that is being trained already; ERR_ABORTED, ERR_NOT_FINITE,
 * ERR_CHECKPOINT_MISMATCH, ERR_NO_SPACE, ERR_IO, ERR_OUT_OF_MEMORY
 */
export async function fitModel(options: FitOptions, hooks: Hooks = {}): Promise<FitResult> {
  if (inTraining.has(options.model)) {
    throw new LimbeckError('ERR_BUSY', 'This model is being trained: wait for that training, or abort it');
  }
  inTraining.add(options.model);
  const steps = new Steps(options);
  try {
    return await runEpochs(options, steps, hooks);
  } finally {
    await steps.settle();
    inTraining.delete(options.model);
  }
}

/** Two trainings of one model would spoil each other. */
const inTraining = new WeakSet<NativeTransformer>();

const BUSY_WAIT_MS = 1;

/**
 * Reads or writes parameters as soon as no one else's forward pass uses the model: a training does not fail for one. It
 * waits, while passes follow each other without a gap.
 */
async function whenIdle<T>(work: () => T, signal: AbortSignal | undefined): Promise<Awaited<T>> {
  for (;;) {
    throwIfAborted(signal);
    try {
      return await work();
    } catch (error) {
      if (!hasCode(error, 'ERR_BUSY')) throw error;
      await setTimeout(BUSY_WAIT_MS);
    }
  }
}

function hasCode(error: unknown, code: LimbeckErrorCode): boolean {
  return error instanceof Error && 'code' in error && error.code === code;
}

interface BegunStep {
  readonly position: StepPosition;
  readonly result: Promise<StepResult>;
}

/** Two that the GPU has, and one that waits: so the GPU never does. */
const MAX_STEPS_IN_FLIGHT = 3;

/** The steps of a run in order; where it is free to, it begins some before those before them have ended. */
class Steps {
  readonly #options: FitOptions;
  readonly #requests: Requests;
  readonly #maxInFlight: number;
  readonly #begun: BegunStep[] = [];
  stepMs = 0;
  waitMs = 0;

  /** Steps that were begun and have not been taken by next(). */
  get numBegun(): number {
    return this.#begun.length;
  }

  constructor(options: FitOptions) {
    this.#options = options;
    this.#requests = new Requests(options.request);
    const overlaps = options.model.device === 'cuda' && options.readsAhead && !options.afterStep;
    this.#maxInFlight = overlaps ? MAX_STEPS_IN_FLIGHT : 1;
  }

  /**
   * Ends the step that comes next.
   *
   * @param positionOf of the step so many behind it
   * @param numFree steps from it on that may overlap; 0: no more are begun
   * @param numReadable steps from it on whose requests may be made now
   */
  async next(
    positionOf: (ahead: number) => StepPosition,
    numFree: number,
    numReadable: number,
  ): Promise<{
    position: StepPosition;
    result: StepResult;
  }> {
    let hasRequest = true;
    while (hasRequest && this.#begun.length < Math.min(this.#maxInFlight, numFree)) {
      hasRequest = await this.#begin(positionOf, numReadable);
    }
    const { position, result: promise } = this.#begun[0] as BegunStep;
    const begun = performance.now();
    const result = await promise;
    this.#begun.shift();
    this.stepMs += performance.now() - begun;
    return { position, result };
  }

  /** Whether it did: a request made ahead that failed is for its own turn to throw. */
  async #begin(positionOf: (ahead: number) => StepPosition, numReadable: number): Promise<boolean> {
    const { trainer, memory, readsAhead } = this.#options;
    const ahead = this.#begun.length;
    const position = positionOf(ahead);
    const asked = performance.now();
    let request: StepRequest;
    try {
      request = await this.#requests.next(position);
    } catch (error) {
      if (ahead === 0) throw error;
      return false;
    }
    const waited = performance.now() - asked;
    // While a step runs, time to read is not lost.
    if (ahead === 0) this.waitMs += waited;
    else this.stepMs += waited;
    const result = trainer.step({ ...request, ...memory });
    result.catch(() => {}); // next() throws it, unless a step before fails
    this.#begun.push({ position, result });
    if (readsAhead && ahead + 1 < numReadable) this.#requests.makeAhead(positionOf(ahead + 1));
    return true;
  }

  /** Waits for what no one will take: what it reads or writes may be closed then. */
  async settle(): Promise<void> {
    await Promise.allSettled(this.#begun.map(({ result }) => result));
    await this.#requests.settle();
  }
}

/** Requests of steps, at most one of them made before its turn. */
class Requests {
  readonly #request: FitOptions['request'];
  #ahead: Promise<StepRequest> | undefined;

  constructor(request: FitOptions['request']) {
    this.#request = request;
  }

  /** The request made ahead, if there is one. */
  async next(position: StepPosition): Promise<StepRequest> {
    const request = await (this.#ahead ?? this.#request(position));
    this.#ahead = undefined;
    return request;
  }

  /** Begins to make the request of the step that comes next. */
  makeAhead(position: StepPosition): void {
    this.#ahead = (async () => this.#request(position))();
    this.#ahead.catch(() => {}); // next() throws it, unless the step before fails
  }

  /** Waits for one that no step will take: what it reads may be closed then. */
  async settle(): Promise<void> {
    await Promise.allSettled([this.#ahead]);
  }
}

async function runEpochs(options: FitOptions, running: Steps, hooks: Hooks): Promise<FitResult> {
  const { model, trainer, checkpoint, epochs } = options;
  const { signal } = hooks;
  const projections = options.projections ?? [];
  let totalSteps = 0;
  for (let epoch = 1; epoch <= epochs; epoch++) totalSteps += options.stepsOf(epoch);
  const resumed =
    checkpoint && (await loadTrainingCheckpoint<FitState>(checkpoint, { model, trainer, projections }, isFitState));
  const state: FitState = resumed?.state ?? {
    epoch: 1,
    index: 0,
    step: 0,
    records: [],
    bestEpoch: 0,
    bestValidationLoss: null,
    sums: noSums(),
    seconds: 0,
  };
  let best: ParameterCopies | undefined = resumed?.best;
  let savedStep = state.step;
  const save = async () => {
    if (!checkpoint) return;
    await whenIdle(() => saveTrainingCheckpoint(checkpoint, { model, trainer, projections, best, state }), signal);
    savedStep = state.step;
  };
  /**
   * A run that is stopped goes on from its last step; from its last checkpoint, where somebody else uses the model or has
   * disposed of it.
   */
  const throwIfStopped = async () => {
    if (signal?.aborted && checkpoint && state.step > savedStep) {
      try {
        await saveTrainingCheckpoint(checkpoint, { model, trainer, projections, best, state });
      } catch (error) {
        if (!hasCode(error, 'ERR_BUSY') && !hasCode(error, 'ERR_DISPOSED')) throw error;
      }
    }
    throwIfAborted(signal);
  };

  while (state.epoch <= epochs && !isExhausted(state, options.patience)) {
    const steps = options.stepsOf(state.epoch);
    let start = performance.now();
    while (state.index < steps) {
      const isStopped = signal?.aborted ?? false;
      if (isStopped && running.numBegun === 0) await throwIfStopped();
      const numLeft = steps - state.index;
      // A checkpoint is of the step that it follows.
      const numFree = checkpoint ? checkpoint.everySteps - (state.step % checkpoint.everySteps) : numLeft;
      const positionOf = (ahead: number) => positionAt(options, state, ahead, totalSteps);
      const { position, result } = await running.next(positionOf, isStopped ? 0 : Math.min(numFree, numLeft), numLeft);
      await options.afterStep?.(position);
      addTo(state.sums, result);
      state.index++;
      state.step++;
      const last = state.records.at(-1)?.validationLoss;
      hooks.onProgress?.({
        ...options.describe,
        done: state.step,
        total: totalSteps,
        loss: result.loss,
        ...(last === undefined ? {} : { validationLoss: last }),
      });
      if (checkpoint && state.step % checkpoint.everySteps === 0) {
        state.seconds += (performance.now() - start) / 1000;
        start = performance.now();
        await save();
      }
    }
    await throwIfStopped();
    const validationLoss = await options.validate().catch(async (error) => {
      await throwIfStopped();
      throw error;
    });
    state.seconds += (performance.now() - start) / 1000;
    const record = epochRecord(state, steps, validationLoss);
    state.records.push(record);
    if (state.bestValidationLoss === null || validationLoss < state.bestValidationLoss) {
      state.bestValidationLoss = validationLoss;
      state.bestEpoch = state.epoch;
      best = await whenIdle(() => copyParameters(model), signal);
    }
    state.epoch++;
    state.index = 0;
    state.sums = noSums();
    state.seconds = 0;
    await options.afterEpoch?.(record);
    await save();
  }
  const kept = best;
  if (kept) await whenIdle(() => restoreParameters(model, kept), signal);
  const { describe } = options;
  // Early stopping leaves steps undone that no one waits for.
  hooks.onProgress?.({ ...describe, done: totalSteps, total: totalSteps });
  return {
    epochs: state.records,
    bestEpoch: state.bestEpoch,
    stepCount: state.step,
    stepSeconds: running.stepMs / 1000,
    waitSeconds: running.waitMs / 1000,
  };
}

/** @param ahead steps behind the one that `state` stands at, in the same epoch */
function positionAt(options: FitOptions, state: FitState, ahead: number, totalSteps: number): StepPosition {
  const step = state.step + ahead;
  return {
    epoch: state.epoch,
    index: state.index + ahead,
    step,
    totalSteps,
    learningRate: learningRateAt(options.schedule, step, totalSteps),
    dropoutSeed: hashSeed(options.seed, step),
  };
}

function isExhausted({ records, bestEpoch }: FitState, patience: number): boolean {
  return patience > 0 && records.length - bestEpoch >= patience;
}

function addTo(sums: Sums, result: StepResult): void {
  sums.loss += result.loss;
  sums.ce += result.ce;
  sums.kd += result.kd;
  sums.hidden += result.hidden;
  sums.attention += result.attention;
  sums.relation += result.relation;
}

function epochRecord({ epoch, sums, seconds }: FitState, steps: number, validationLoss: number): EpochRecord {
  return {
    epoch,
    trainLoss: sums.loss / steps,
    ce: sums.ce / steps,
    kd: sums.kd / steps,
    hidden: sums.hidden / steps,
    attention: sums.attention / steps,
    relation: sums.relation / steps,
    validationLoss,
    seconds,
  };
}
