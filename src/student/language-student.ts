/** A small language model distilled from a large one over the same vocabulary. */
import { z } from 'zod';
import type { NativeEngine } from '../binding.js';
import { parseOptions } from '../prepare/parse-options.js';
import type { EpochRecord, FitResult } from '../teacher/fit-model.js';
import { LanguageModel } from '../teacher/language-model.js';
import { languageModelArchitectureSchema, languageModelTrainingSchema } from '../teacher/options.js';
import { type TextCorpus, type TrainLanguageModelContext, trainLanguageModel } from '../teacher/pretrain.js';
import { initialiseStudent, uniformLayerMap, uniformLayerPairs } from './initialise.js';
import { distillationLossesShape, interpolationSchema, scheduleSchema } from './options.js';
import { interpolateParameters, lossesAt, projectTeacher, scheduleAt, setFeatureMappings } from './transfer.js';

export const languageStudentOptionsSchema = z.strictObject({
  /** Norms, positions, activation and vocabulary are the teacher's. */
  architecture: languageModelArchitectureSchema.prefault({ hiddenSize: 64, numHiddenLayers: 2, numAttentionHeads: 2 }),
  initialise: z.enum(['random', 'layers', 'width']).default('random'),
  training: languageModelTrainingSchema.prefault({}),
  losses: z
    .strictObject({
      ...distillationLossesShape,
      kd: distillationLossesShape.kd.default(1),
      /** Weight of the KL of value relations (MiniLMv2): teacher and student may have other numbers of heads. */
      relation: scheduleSchema.default(0),
    })
    .prefault({}),
  /** Heads that values are cut into for the relation term; divides hiddenSize of the student and the teacher's values. */
  relationHeads: z.int().min(1).optional(),
  interpolation: interpolationSchema.omit({ width: true }).optional(),
});

export type LanguageStudentOptions = z.input<typeof languageStudentOptionsSchema>;

/**
 * Distils a language model: w_ce·CE + w_kd·τ²·KL of logits + w_h·MSE of hidden states + w_a·KL of attention maps
 * + w_r·KL of value relations, the teacher run on every batch.
 *
 * @param context.afterEpoch is given the student too, for example to measure its test loss
 * @throws LimbeckError as trainLanguageModel; ERR_INVALID_ARGUMENT when attention maps are asked for and the head counts
 * differ
 */
export async function distillLanguageModel(
  engine: NativeEngine,
  teacher: LanguageModel,
  corpus: TextCorpus,
  options: LanguageStudentOptions = {},
  context: Omit<TrainLanguageModelContext, 'teaching' | 'afterEpoch'> & {
    readonly afterEpoch?: (record: EpochRecord, student: LanguageModel) => Promise<void>;
  } = {},
): Promise<FitResult & { model: LanguageModel }> {
  const settings = parseOptions(languageStudentOptionsSchema, options, 'languageStudent');
  const { architecture, training, losses, interpolation } = settings;
  const { hiddenSize, numAttentionHeads, numHiddenLayers, dropout } = architecture;
  const config = {
    ...teacher.config,
    hiddenSize,
    numAttentionHeads,
    numKeyValueHeads: numAttentionHeads,
    headDim: hiddenSize / numAttentionHeads,
    numHiddenLayers,
    intermediateSize: architecture.intermediateSize ?? 4 * hiddenSize,
    embeddingDropout: dropout,
    attentionDropout: dropout,
    hiddenDropout: dropout,
  };
  const model = LanguageModel.create(engine, teacher.family, config, teacher.tokenizer, { seed: training.seed });
  try {
    const layers = uniformLayerMap(numHiddenLayers, teacher.numHiddenLayers);
    await initialiseStudent(model.native, {
      method: settings.initialise,
      teacher: teacher.native,
      layers,
      studentLayers: numHiddenLayers,
      teacherLayers: teacher.numHiddenLayers,
    });
    const usesLayers = losses.hidden !== 0 || losses.attention !== 0 || losses.relation !== 0;
    const layerMap = usesLayers ? uniformLayerPairs(numHiddenLayers, teacher.numHiddenLayers) : [];
    const signal = { model: teacher.native, layerMap, relationHeads: settings.relationHeads ?? numAttentionHeads };
    const projected =
      interpolation && (await projectTeacher(model.native, teacher.native, { layers, width: 'selection' }));
    const result = await trainLanguageModel(engine, model, corpus, training, {
      ...context,
      describe: context.describe ?? { step: 'fineTune', name: 'language student' },
      afterEpoch: async (record) => context.afterEpoch?.(record, model),
      teaching: {
        signal: () => signal,
        prepare: (trainer) =>
          losses.hidden === 0
            ? []
            : setFeatureMappings(trainer, {
                studentWidth: hiddenSize,
                teacherWidth: teacher.config.hiddenSize,
                axes: layerMap.map(() => undefined),
              }),
        losses: (position) => ({
          ...lossesAt(losses, position),
          relation: scheduleAt(losses.relation, position.step, position.totalSteps),
        }),
        ...(projected && interpolation
          ? {
              afterStep: ({ step, totalSteps }) =>
                interpolateParameters(model.native, projected, scheduleAt(interpolation.alpha, step, totalSteps)),
            }
          : {}),
      },
    });
    return { ...result, model };
  } catch (error) {
    model.dispose();
    throw error;
  }
}
