/** A small language model distilled from a large one, or from several. */
import { z } from 'zod';
import type { NativeEngine, ProjectionMap } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { FAMILY_NAMES } from '../formats/model-config.js';
import type { Tokenizer } from '../formats/tokenizer.js';
import { parseOptions } from '../prepare/parse-options.js';
import type { EpochRecord, FitResult } from '../teacher/fit-model.js';
import { LanguageModel } from '../teacher/language-model.js';
import { languageModelTrainingSchema, languageStudentArchitectureSchema } from '../teacher/options.js';
import {
  checkCorpus,
  type TextCorpus,
  type TrainLanguageModelContext,
  trainLanguageModel,
} from '../teacher/pretrain.js';
import { fisherWeights } from './importance.js';
import { initialiseStudent, startLayerMap } from './initialise.js';
import { languageStudentConfig } from './language-student-config.js';
import { type LanguageTeacher, type OpenLanguageTeacher, openLanguageTeacher } from './language-teacher.js';
import { distillationLossesShape, interpolationSchema, layerMapSchema, weightScheduleSchema } from './options.js';
import { checkLayers, chooseTeacherWeights } from './teacher-weights.js';
import {
  haveOneVocabulary,
  type OpenTeacher,
  resolveTeachers,
  teachTogether,
  type WeightedTeacher,
} from './teachers.js';
import { interpolateParameters, lossesAt, projectTeacher, scheduleAt } from './transfer.js';

export const languageStudentOptionsSchema = z.strictObject({
  /** Another family than the teacher's, of the same objective, over the same vocabulary. @defaultValue the teacher's */
  family: z.enum(FAMILY_NAMES).optional(),
  architecture: languageStudentArchitectureSchema.prefault({}),
  /** `layers`: the teacher's blocks as they are; `width`: of a wider teacher, what `width` says of them. */
  initialise: z.enum(['random', 'layers', 'width']).default('random'),
  /**
   * How a wider teacher is reduced: `pca` turns its residual stream onto the axes that carry most of what its norms pass on,
   * and narrower heads onto what they do; `selection` keeps some channels. Whole heads and intermediate channels are
   * selected either way.
   *
   * @defaultValue pca; selection with `interpolation.weights` by Fisher information
   */
  width: z.enum(['selection', 'pca']).optional(),
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
  /** Training texts, spread evenly, that importance and principal axes are measured on. */
  importanceTexts: z.int().min(1).default(256),
  training: languageModelTrainingSchema.prefault({}),
  losses: z
    .strictObject({
      ...distillationLossesShape,
      kd: distillationLossesShape.kd.default(1),
      /** Weight of the KL of value relations (MiniLMv2): teacher and student may have other numbers of heads. */
      relation: weightScheduleSchema.default(0),
    })
    .prefault({}),
  /** Of the hidden, attention and relation terms, with the first teacher. @defaultValue spread evenly */
  layerMap: layerMapSchema.optional(),
  /**
   * Heads that values are cut into for the relation term; divides the columns of the values of student and teacher.
   *
   * @defaultValue those of the teacher's knowledge; of a model, the largest divisor of the student's key-value heads that
   * divides the columns of its values
   */
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
  /** Is given the student too, for example to measure its test loss. */
  readonly afterEpoch?: (record: EpochRecord, student: LanguageModel) => Promise<void>;
  /** Of the student, which then starts at random. @defaultValue the first teacher's */
  readonly tokenizer?: Tokenizer | undefined;
}

/**
 * Distils a language model: w_ce·CE + w_kd·τ²·KL of logits + w_h·MSE of hidden states + w_a·KL of attention maps
 * + w_r·KL of value relations. A model as teacher is run on every batch; a store is read, and must be of the same texts.
 *
 * Of several teachers each term is the sum by their weights; the student has the first one's kind of layers and starts from
 * it. Teachers of other vocabularies read the same texts in their own tokens, and are heard by kd where a token of both
 * ends.
 *
 * @throws LimbeckError as trainLanguageModel, {@link openLanguageTeacher} and {@link teachTogether}; ERR_SHAPE_MISMATCH when
 * attention maps are asked for and the head counts differ
 */
export async function distillLanguageModel(
  engine: NativeEngine,
  teachers: LanguageTeacher | readonly WeightedTeacher[],
  corpus: TextCorpus,
  options: LanguageStudentOptions = {},
  context: LanguageStudentContext = {},
): Promise<FitResult & { model: LanguageModel }> {
  checkCorpus(corpus);
  const resolved = resolveTeachers(teachers);
  const opened: OpenTeacher[] = [];
  try {
    for (const one of resolved) opened.push({ ...one, teacher: await openLanguageTeacher(one.teacher, context) });
    return await distilFrom(engine, opened as [OpenTeacher, ...OpenTeacher[]], corpus, options, context);
  } finally {
    for (const { teacher } of opened) await teacher.close();
  }
}

async function distilFrom(
  engine: NativeEngine,
  teachers: readonly [OpenTeacher, ...OpenTeacher[]],
  corpus: TextCorpus,
  options: LanguageStudentOptions,
  { tokenizer, afterEpoch, ...context }: LanguageStudentContext,
): Promise<FitResult & { model: LanguageModel }> {
  const [{ teacher }] = teachers;
  const settings = parseOptions(languageStudentOptionsSchema, options, 'languageStudent');
  const { architecture, training, losses, interpolation } = settings;
  const { numHiddenLayers } = architecture;
  const { numHiddenLayers: teacherLayers } = teacher.config;
  const layers = settings.layers ?? startLayerMap(numHiddenLayers, teacherLayers);
  checkLayers(layers, numHiddenLayers, teacherLayers);
  const weightsOf = checkUseOfWeights(settings) ? modelOf(teacher) : undefined;
  const family = settings.family ?? teacher.family;
  const source = tokenizer === undefined ? teacher : withVocabulary(teacher, tokenizer);
  if (weightsOf && !haveOneVocabulary(source, teacher)) throw ownVocabulary(settings);
  const config = languageStudentConfig(source, family, architecture, layers);
  const model = LanguageModel.create(engine, family, config, source.tokenizer, { seed: training.seed });
  try {
    const weighsByFisher = interpolation?.weights === 'fisher';
    const from = weightsOf
      ? await chooseTeacherWeights(
          engine,
          weightsOf,
          config,
          corpus.train,
          { ...settings, width: widthOf(settings), alwaysMeasure: weighsByFisher },
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
    const { layerMap, relationHeads } = settings;
    const teach = teachTogether(model, teachers, {
      texts: corpus.train,
      losses,
      layerMap,
      relationHeads,
      maxLength: training.maxLength,
    });
    const projected =
      interpolation && from && weightsOf && (await projectTeacher(model.native, weightsOf.native, from.map));
    const interpolationWeights =
      weighsByFisher && from?.importance
        ? await fisherWeights(engine, model.native, teacher.config, from.importance, from.map)
        : undefined;
    const result = await trainLanguageModel(engine, model, corpus, training, {
      ...context,
      describe: context.describe ?? { step: 'fineTune', name: 'language student' },
      afterEpoch: async (record) => afterEpoch?.(record, model),
      teaching: {
        ...teach,
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

/**
 * @returns whether the student starts from its teacher's weights, or goes towards them
 * @throws LimbeckError ERR_INVALID_ARGUMENT
 */
function checkUseOfWeights({
  initialise,
  interpolation,
  ...chosen
}: z.output<typeof languageStudentOptionsSchema>): boolean {
  if (initialise !== 'random' || interpolation !== undefined) return true;
  const option = (['width', 'layers', 'importance'] as const).find((name) => chosen[name] !== undefined);
  if (option === undefined) return false;
  throw new LimbeckError(
    'ERR_INVALID_ARGUMENT',
    `${option} says what of the teacher a student starts from, and this one starts from random weights. Set initialise to ` +
      '"layers" or "width", or leave it out',
  );
}

/** @throws LimbeckError ERR_INVALID_ARGUMENT */
function widthOf({ width, interpolation }: z.output<typeof languageStudentOptionsSchema>): ProjectionMap['width'] {
  if (interpolation?.weights !== 'fisher') return width ?? 'pca';
  if (width !== 'pca') return 'selection';
  throw new LimbeckError(
    'ERR_INVALID_ARGUMENT',
    "interpolation.weights: Fisher information is of the teacher's own parameters, which width: 'pca' turns. Set width to " +
      '"selection", or weights to "uniform"',
  );
}

/** What a student over another tokenizer takes after. */
function withVocabulary(teacher: OpenLanguageTeacher, tokenizer: Tokenizer): OpenLanguageTeacher {
  return { ...teacher, tokenizer, config: { ...teacher.config, vocabSize: tokenizer.vocabSize } };
}

function ownVocabulary({ initialise }: z.output<typeof languageStudentOptionsSchema>): LimbeckError {
  return new LimbeckError(
    'ERR_INVALID_ARGUMENT',
    `${initialise === 'random' ? 'interpolation' : 'initialise'}: a student with a tokenizer of its own cannot take over its ` +
      'teacher’s weights; start at random',
  );
}
