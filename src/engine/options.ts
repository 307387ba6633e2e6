import { z } from 'zod';
import { LimbeckError } from '../errors.js';
import { fusionSchema } from '../knowledge/fuse.js';
import { eachOnce } from '../prepare/each-once.js';
import { prepareOptionsSchema } from '../prepare/options.js';
import { checkFineTune } from '../student/fine-tune.js';
import { languageStudentOptionsSchema } from '../student/language-student.js';
import { distillationLossesShape, fineTuneOptionsSchema, sequenceArchitectureSchema } from '../student/options.js';
import { rankingSignalSchema } from '../student/ranking-signal.js';
import { rareItemsSchema } from '../student/rare-items.js';
import { languageModelAdaptationSchema, pretrainOptionsSchema } from '../teacher/options.js';
import { staticEncoderSchema } from '../teacher/static-encoder.js';

/** A teacher that exists, used as it is or trained further on the texts at hand. */
const loadedTeacherSchema = z.strictObject({
  /** A Hugging Face directory of a family in docs/language-models.md, or `hf://owner/model[@revision]`, downloaded once. */
  directory: z.string().min(1),
  /** Training on item texts and histories; without it the weights stay as they are. */
  adapt: languageModelAdaptationSchema.optional(),
});

/** Vectors of words instead of a model that reads texts: fitted in seconds, and on short titles as good. */
const staticTeacherSchema = z.strictObject({ static: staticEncoderSchema });

const corpusSchema = z.strictObject({
  /** Items of the end of each history that are told as text; 0 = no histories. */
  maxHistory: z.int().min(0).default(8),
  /** Share of histories, or of items without them, held out for validation, and as much again for the test loss. */
  heldOut: z.number().gt(0).lt(0.5).default(0.05),
});

const knowledgeSchema = z.strictObject({
  /** Layers fused into item vectors, 0 = embeddings. @defaultValue all; of a static encoder, 0 */
  hiddenStates: eachOnce(z.array(z.int().min(0)).min(1)).optional(),
  fusion: fusionSchema.prefault({}),
  /** Width of the item features. @defaultValue 48, or as many as there are items or columns that were fused */
  components: z.int().min(1).max(4096).optional(),
});

const sequenceTeacherSchema = z.strictObject({
  /** Models trained with the seeds `training.seed`, `training.seed + 1`, …; their logits are averaged. */
  members: z.int().min(1).max(32).default(1),
  /** Gives them the language model's item vectors; otherwise they know items by their ids alone. */
  itemFeatures: z.boolean().default(true),
  architecture: sequenceArchitectureSchema
    .safeExtend({ numAttentionHeads: sequenceArchitectureSchema.shape.numAttentionHeads.default(4) })
    .prefault({}),
  training: fineTuneOptionsSchema.omit({ losses: true, layerMap: true, interpolation: true }).prefault({}),
});

const studentSchema = z.strictObject({
  architecture: sequenceArchitectureSchema.prefault({}),
  /**
   * `random`, or `width`: the weights of the sequence teacher (of several, the first one's), reduced to the student's layers,
   * and to its width as `training.interpolation.width` says: by principal axes without one.
   */
  initialise: z.enum(['random', 'width']).default('random'),
  /**
   * Gives the student the item features, so that it knows new items by their text. On Beauty, with a static encoder's,
   * worth .0639 instead of .0559 test ndcg@10.
   */
  itemFeatures: z.boolean().default(true),
  /** What is added to the scores of rare items; the student without distillation gets the same. */
  rareItems: rareItemsSchema.prefault({}),
  /**
   * Learns from the clicks and from the sequence teacher in equal parts. On Beauty, beside item features that both have,
   * the teacher is worth .0804 instead of .0781 validation ndcg@10, and half the epochs.
   */
  training: fineTuneOptionsSchema
    .extend({
      losses: z
        .strictObject({
          ...distillationLossesShape,
          ce: distillationLossesShape.ce.default(0.5),
          kd: distillationLossesShape.kd.default(0.5),
          gate: distillationLossesShape.gate.default(0.2),
        })
        .prefault({}),
    })
    .prefault({}),
});

export const evaluationSchema = z.strictObject({
  /** Cut-offs of the metrics. */
  ks: z.array(z.int().min(1)).min(1).default([1, 5, 10, 20]),
  /** Users shown in the report. */
  examples: z.int().min(0).max(1000).default(10),
});

/** What `engine.distill()` takes; every part but the data has defaults. */
export const distillOptionsSchema = z.strictObject({
  title: z.string().min(1).default('Distillation'),
  /** Directory of the results; made when it is missing. */
  output: z.string(),
  /** Training runs of the students, and of what they are compared with. */
  seeds: eachOnce(
    z
      .array(
        z
          .int()
          .min(0)
          .max(2 ** 31 - 1),
      )
      .min(1)
      .max(100),
  ).default([0, 1, 2]),
  data: prepareOptionsSchema,
  teacher: z.union([loadedTeacherSchema, staticTeacherSchema, pretrainOptionsSchema]).prefault({}),
  corpus: corpusSchema.prefault({}),
  knowledge: knowledgeSchema.prefault({}),
  /** The teacher as a recommender: one or several sequence models over the language model's item vectors. */
  sequenceTeacher: sequenceTeacherSchema.prefault({}),
  student: studentSchema.prefault({}),
  /** Rankings that another teacher made, which the distilled student learns from too. */
  rankings: rankingSignalSchema
    .extend({
      /** What `limbeck knowledge import` wrote. */
      path: z.string().min(1),
    })
    .optional(),
  /** A small language model distilled from the teacher; left out when this is. */
  languageStudent: languageStudentOptionsSchema.optional(),
  evaluation: evaluationSchema.prefault({}),
});

/**
 * Refuses a student that cannot learn from this sequence teacher, before the teacher is trained.
 *
 * @param path of the student's options
 * @throws LimbeckError ERR_INVALID_ARGUMENT
 */
export function checkStudent(
  { members, architecture: { maxHistory } }: DistillSettings['sequenceTeacher'],
  { architecture, training }: Pick<DistillSettings['student'], 'architecture' | 'training'>,
  path: string,
): void {
  checkFineTune(training, `${path}.training`);
  // It goes towards the teacher all through the training, and an ensemble has no weights of its own.
  if (training.interpolation !== undefined && members > 1) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `${path}.training.interpolation goes towards one model, and sequenceTeacher.members asks for ${members}; ` +
        'leave one of the two out',
    );
  }
  if (architecture.maxHistory !== maxHistory) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `${path}.architecture.maxHistory: expected the ${maxHistory} of sequenceTeacher, whose answers it learns from, got ` +
        `${architecture.maxHistory}`,
    );
  }
}

/**
 * Refuses item features wider than the items allow, before a teacher is trained for them.
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT
 */
export function checkComponents({ components }: DistillSettings['knowledge'], numItems: number): void {
  if (components === undefined || components <= numItems) return;
  throw new LimbeckError(
    'ERR_INVALID_ARGUMENT',
    `knowledge.components: expected at most the number of items, which is ${numItems}, got ${components}; lower it, or ` +
      'leave it out',
  );
}

export type DistillOptions = z.input<typeof distillOptionsSchema>;
export type DistillSettings = z.output<typeof distillOptionsSchema>;
