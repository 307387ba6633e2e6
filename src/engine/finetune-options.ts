import { z } from 'zod';
import { fineTuneOptionsSchema } from '../student/options.js';
import { optimizationShape } from '../teacher/options.js';

/** What `engine.finetune()` takes, besides earlier data. */
export const finetuneOptionsSchema = z.strictObject({
  /** Events that count as a choice; a rating does from `minRating` on. */
  types: z
    .array(z.enum(['view', 'click', 'purchase', 'rating']))
    .min(1)
    .default(['view', 'click', 'purchase', 'rating']),
  /** Ratings below it are dislikes, as dismissals are: the item leaves the user's sequence. */
  minRating: z.number().min(1).max(5).default(3),
  /** The latest choices of a user that count, so that no one user outweighs the others. */
  maxEventsPerUser: z.int().min(3).max(100_000).default(200),
  /** Users that must be left to judge by. */
  minCases: z.int().min(1).default(30),
  /** Users that are judged by; of more, an even spread. */
  maxCases: z.int().min(1).default(10_000),
  /** Items of earlier sequences trained on for each item of feedback. */
  replayRatio: z.number().min(0).max(1000).default(4),
  /** How far below 0 the interval of the difference in ndcg@10 may begin for the new student to be promoted. */
  tolerance: z.number().min(0).max(1).default(0.01),
  /** Coverage of the interval of the difference. */
  confidence: z.number().gt(0).lt(1).default(0.95),
  /** As for `engine.fineTune()`, with a lower learning rate and less patience: the student knows most already. */
  training: fineTuneOptionsSchema
    .omit({ losses: true, layerMap: true, interpolation: true })
    .extend({
      epochs: optimizationShape.epochs.default(10),
      learningRate: optimizationShape.learningRate.default(1e-3),
      patience: optimizationShape.patience.default(2),
    })
    .prefault({}),
});

export type FinetuneSettings = z.output<typeof finetuneOptionsSchema>;
