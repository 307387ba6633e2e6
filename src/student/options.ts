import { z } from 'zod';
import { optimizationShape } from '../teacher/options.js';

const size = z
  .int()
  .min(1)
  .max(1 << 16);
const weight = z.number().min(0).max(1000);

/** A constant, or a value that goes linearly from one to another and stays there. */
const scheduleSchema = z.union([
  z.number(),
  z.strictObject({
    from: z.number(),
    to: z.number(),
    /** Share of all steps after which `to` is reached, in (0, 1]; with 1 no step has it. */
    until: z.number().gt(0).max(1).default(1),
  }),
]);
export type Schedule = z.input<typeof scheduleSchema>;

/** A schedule all values of which are allowed: those between its ends are where the ends are. */
function scheduleOf(isAllowed: (value: number) => boolean, message: string) {
  return scheduleSchema.refine(
    (schedule) => (typeof schedule === 'number' ? [schedule] : [schedule.from, schedule.to]).every(isAllowed),
    { message },
  );
}

const temperatureSchema = scheduleOf(
  (value) => value > 0 && value <= 100,
  'expected a temperature above 0, of at most 100',
);
const shareSchema = scheduleOf((value) => value >= 0 && value <= 1, 'expected a share from 0 to 1');
/** Weight of a loss term. */
export const weightScheduleSchema = scheduleOf((value) => value >= 0, 'expected a weight of 0 or more');

/** Shape of a sequence model: a causal transformer over the items of a history. */
export const sequenceArchitectureSchema = z
  .strictObject({
    hiddenSize: size.default(128),
    numHiddenLayers: z.int().min(1).max(64).default(2),
    numAttentionHeads: size.default(2),
    /** @defaultValue 4 · hiddenSize */
    intermediateSize: size.optional(),
    /** Items of a history that count: the last ones. */
    maxHistory: z
      .int()
      .min(2)
      .max(1 << 14)
      .default(50),
    /** Of embeddings, attention and blocks. On sparse histories much is right: .4 on Beauty and MovieTweetings. */
    dropout: z.number().min(0).lt(1).default(0.4),
    /**
     * `after`: each block's norms follow its sums, and one follows the embeddings, as in the original transformer.
     * `before`: as in GPT-2. Without a teacher, `after` is worth .0559 instead of .0413 test ndcg@10 on Beauty, and .1268
     * instead of .1118 on MovieTweetings; it wants learning rates of at most .002.
     */
    normPlacement: z.enum(['before', 'after']).default('after'),
  })
  .refine(({ hiddenSize, numAttentionHeads }) => hiddenSize % numAttentionHeads === 0, {
    message: 'expected a multiple of numAttentionHeads',
    path: ['hiddenSize'],
  });

/** Weights of w_ce·CE + w_kd·τ²·KL + w_h·MSE + w_a·KL of attention maps, and τ; what is a schedule may change by the step. */
export const distillationLossesShape = {
  ce: weightScheduleSchema.default(1),
  kd: weightScheduleSchema.default(0),
  hidden: weightScheduleSchema.default(0),
  attention: weightScheduleSchema.default(0),
  /** τ of the soft labels. */
  temperature: temperatureSchema.default(1),
  /** Soft labels mix the logits of teacher (this share) and student. */
  fusion: shareSchema.default(1),
  /** Weight of the KD term where the teacher ranks the label worse than the student does; 1 = no gate. */
  gate: weight.default(1),
} as const;

/** Parameter interpolation θ ← θ + α(φ(T) − θ) after every step, on the parameters that the teacher has too. */
export const interpolationSchema = z.strictObject({
  alpha: scheduleSchema,
  /** How a wider teacher's residual stream is reduced: some of its channels, or turned onto its principal axes. */
  width: z.enum(['selection', 'pca']).default('pca'),
});

/** Pairs [student block, teacher block], from 1. */
export const layerMapSchema = z.array(z.tuple([z.int().min(1), z.int().min(1)])).min(1);

export const fineTuneOptionsSchema = z.strictObject({
  ...optimizationShape,
  /** Beauty goes on rising to 14 without a teacher, and is at its best by 12 with one. */
  epochs: optimizationShape.epochs.default(14),
  /** The norms after the blocks want it low: .004 is worth .0781 test ndcg@10 on MovieTweetings, .002 .1268. */
  learningRate: optimizationShape.learningRate.default(1e-3),
  batchTokens: optimizationShape.batchTokens.default(1024),
  patience: optimizationShape.patience.default(3),
  losses: z.strictObject(distillationLossesShape).prefault({}),
  /** Pairs [student block, teacher block], from 1, for the hidden and attention terms. @defaultValue spread evenly */
  layerMap: layerMapSchema.optional(),
  /**
   * Uniform negatives, shared by the batch, instead of the whole catalogue, for cross-entropy alone; 0 = the whole
   * catalogue. On Beauty 1,024 of 12,101 have .013 validation ndcg@10 after five epochs, the whole catalogue .032.
   */
  sampledNegatives: z.int().min(0).default(0),
  interpolation: interpolationSchema.optional(),
});

export type SequenceArchitecture = z.input<typeof sequenceArchitectureSchema>;
export type FineTuneOptions = z.input<typeof fineTuneOptionsSchema>;
export type ResolvedFineTuneOptions = z.output<typeof fineTuneOptionsSchema>;
