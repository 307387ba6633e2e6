/** A small language model distilled from a large one over the same vocabulary. */
import { z } from 'zod';
import type { NativeEngine } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { FAMILY_NAMES } from '../formats/model-config.js';
import { parseOptions } from '../prepare/parse-options.js';
import type { EpochRecord, FitResult } from '../teacher/fit-model.js';
import { LanguageModel } from '../teacher/language-model.js';
import { languageModelTrainingSchema, languageStudentArchitectureSchema } from '../teacher/options.js';
import { type TextCorpus, type TrainLanguageModelContext, trainLanguageModel } from '../teacher/pretrain.js';
import { fisherWeights } from './importance.js';
import { initialiseStudent, startLayerMap, uniformLayerPairs } from './initialise.js';
import { languageStudentConfig } from './language-student-config.js';
import { type LanguageTeacher, type OpenLanguageTeacher, openLanguageTeacher } from './language-teacher.js';
import { distillationLossesShape, interpolationSchema, layerMapSchema, scheduleSchema } from './options.js';
import { checkLayerMap, checkLayers, chooseTeacherWeights } from './teacher-weights.js';
import { interpolateParameters, lossesAt, projectTeacher, scheduleAt, setFeatureMappings } from './transfer.js';

export const languageStudentOptionsSchema = z.strictObject({
  /** Another family than the teacher's, of the same objective, over the same vocabulary. @defaultValue the teacher's */
  family: z.enum(FAMILY_NAMES).optional(),
  architecture: languageStudentArchitectureSchema.prefault({}),
  /** `layers`: the teacher's blocks as they are; `width`: of a wider teacher, some channels of them. */
  initialise: z.enum(['random', 'layers', 'width']).default('random'),
  /**
   * Which teacher's block, from 1, each block of the student starts from and is interpolated towards: any map.
   *
   * @defaultValue those that matter most by `importance`, else spread evenly from the first to the last
   */
  layers: z.array(z.int().min(1)).min(1).optional(),
  /**
   * Which blocks, channels and heads of a larger teacher are taken: those of the largest mean absolute activation, mean
   * squared gradient, or that times the squared parameter. @defaultValue spread evenly
   */
  importance: z.enum(['activation', 'fisher', 'saliency']).optional(),
  /** Training texts, spread evenly, that importance is measured on. */
  importanceTexts: z.int().min(1).default(256),
  training: languageModelTrainingSchema.prefault({}),
  losses: z
    .strictObject({
      ...distillationLossesShape,
      kd: distillationLossesShape.kd.default(1),
      /** Weight of the KL of value relations (MiniLMv2): teacher and student may have other numbers of heads. */
      relation: scheduleSchema.default(0),
    })
    .prefault({}),
  /** Of the hidden, attention and relation terms. @defaultValue spread evenly */
  layerMap: layerMapSchema.optional(),
  /** Heads that values are cut into for the relation term; divides the values of student and teacher. */
  relationHeads: z.int().min(1).optional(),
  interpolation: interpolationSchema
    .omit({ width: true })
    .extend({
      /** `fisher`: each parameter moves by √(F / largest F of its tensor) of the way. */
      weights: z.enum(['uniform', 'fisher']).default('uniform'),
    })
    .optional(),
});

export type LanguageStudentOptions = z.input<typeof languageStudentOptionsSchema>;

export interface LanguageStudentContext extends Omit<TrainLanguageModelContext, 'teaching' | 'afterEpoch'> {
  readonly afterEpoch?: (record: EpochRecord, student: LanguageModel) => Promise<void>;
}

/**
 * Distils a language model: w_ce·CE + w_kd·τ²·KL of logits + w_h·MSE of hidden states + w_a·KL of attention maps
 * + w_r·KL of value relations. A model as teacher is run on every batch; a store is read, and must be of the same texts.
 *
 * @param context.afterEpoch is given the student too, for example to measure its test loss
 * @throws LimbeckError as trainLanguageModel; ERR_INVALID_ARGUMENT when attention maps are asked for and the head counts
 * differ
 */
export async function distillLanguageModel(
  engine: NativeEngine,
  teacher: LanguageTeacher,
  corpus: TextCorpus,
  options: LanguageStudentOptions = {},
  context: LanguageStudentContext = {},
): Promise<FitResult & { model: LanguageModel }> {
  const source = await openLanguageTeacher(teacher, context);
  try {
    return await distilFrom(engine, source, corpus, options, context);
  } finally {
    await source.close();
  }
}

async function distilFrom(
  engine: NativeEngine,
  teacher: OpenLanguageTeacher,
  corpus: TextCorpus,
  options: LanguageStudentOptions,
  context: LanguageStudentContext,
): Promise<FitResult & { model: LanguageModel }> {
  const settings = parseOptions(languageStudentOptionsSchema, options, 'languageStudent');
  const { architecture, training, losses, interpolation } = settings;
  const { hiddenSize, numHiddenLayers } = architecture;
  const { numHiddenLayers: teacherLayers } = teacher.config;
  const pairs = settings.layerMap ?? uniformLayerPairs(numHiddenLayers, teacherLayers);
  const layers = settings.layers ?? startLayerMap(numHiddenLayers, teacherLayers);
  checkLayerMap(pairs, numHiddenLayers, teacherLayers);
  checkLayers(layers, numHiddenLayers, teacherLayers);
  const weightsOf = checkUseOfWeights(settings) ? modelOf(teacher) : undefined;
  const family = settings.family ?? teacher.family;
  const config = languageStudentConfig(teacher, family, architecture, layers);
  const model = LanguageModel.create(engine, family, config, teacher.tokenizer, { seed: training.seed });
  try {
    const weighsByFisher = interpolation?.weights === 'fisher';
    const from = weightsOf
      ? await chooseTeacherWeights(
          engine,
          weightsOf,
          config,
          corpus.train,
          { ...settings, alwaysMeasure: weighsByFisher },
          context,
        )
      : undefined;
    await initialiseStudent(model.native, {
      method: settings.initialise,
      ...(weightsOf && { teacher: weightsOf.native }),
      ...from?.map,
      studentLayers: numHiddenLayers,
      teacherLayers,
    });
    const usesLayers = losses.hidden !== 0 || losses.attention !== 0 || losses.relation !== 0;
    const layerMap = usesLayers ? pairs : [];
    const { relationHeads } = settings;
    const teach = teacher.teach({ student: config, losses, layerMap, relationHeads, maxLength: training.maxLength });
    const projected =
      interpolation &&
      from &&
      weightsOf &&
      (await projectTeacher(model.native, weightsOf.native, { ...from.map, width: 'selection' }));
    const interpolationWeights =
      weighsByFisher && from?.importance
        ? await fisherWeights(engine, model.native, teacher.config, from.importance, from.map)
        : undefined;
    const result = await trainLanguageModel(engine, model, corpus, training, {
      ...context,
      describe: context.describe ?? { step: 'fineTune', name: 'language student' },
      afterEpoch: async (record) => context.afterEpoch?.(record, model),
      teaching: {
        ...teach,
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
                interpolateParameters(
                  model.native,
                  projected,
                  scheduleAt(interpolation.alpha, step, totalSteps),
                  interpolationWeights,
                ),
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

/** @throws LimbeckError ERR_INVALID_ARGUMENT for a store alone */
function modelOf({ model }: OpenLanguageTeacher): LanguageModel {
  if (model) return model;
  throw new LimbeckError(
    'ERR_INVALID_ARGUMENT',
    'initialise and interpolation take weights, and a knowledge store has none. Give the model beside it, as ' +
      '{ knowledge, model }',
  );
}

/** @returns whether the student starts from its teacher's weights, or goes towards them @throws LimbeckError ERR_INVALID_ARGUMENT */
function checkUseOfWeights({
  initialise,
  interpolation,
  layers,
  importance,
}: z.output<typeof languageStudentOptionsSchema>): boolean {
  if (initialise !== 'random' || interpolation !== undefined) return true;
  const option = layers !== undefined ? 'layers' : importance !== undefined ? 'importance' : undefined;
  if (option === undefined) return false;
  throw new LimbeckError(
    'ERR_INVALID_ARGUMENT',
    `${option} says what of the teacher a student starts from, and this one starts from random weights. Set initialise to ` +
      '"layers" or "width", or leave it out',
  );
}
