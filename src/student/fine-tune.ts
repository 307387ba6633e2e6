/** Step 6 of distillation: cross-entropy on the next item, and what the teacher adds to it. */
import { checkInstance, checkObject } from '../arguments.js';
import type { NativeEngine, TeacherSignal } from '../binding.js';
import { LimbeckError } from '../errors.js';
import type { EvaluationCases, PackedSequences } from '../prepare/dataset.js';
import type { Hooks, ProgressEvent } from '../prepare/hooks.js';
import { parseOptions } from '../prepare/parse-options.js';
import { batchesByTokens, gatherBatch, shuffled } from '../teacher/batches.js';
import { type FitResult, fitModel, type StepPosition } from '../teacher/fit-model.js';
import { createTrainer, perEpoch } from '../teacher/pretrain.js';
import type { CheckpointOptions } from '../teacher/training-checkpoint.js';
import { uniformLayerPairs } from './initialise.js';
import { type FineTuneOptions, fineTuneOptionsSchema, type ResolvedFineTuneOptions } from './options.js';
import type { RankOptions } from './rank-cases.js';
import { interleave, type RankingSignal, rankingBatches, rankingRequest } from './ranking-signal.js';
import { SequenceModel } from './sequence-model.js';
import type { SequenceTeacher } from './teacher-cache.js';
import {
  featureAxes,
  interpolateParameters,
  isUsed,
  lossesAt,
  projectTeacher,
  scheduleAt,
  sequenceProjection,
  setFeatureMappings,
} from './transfer.js';
import { trainingWindows } from './windows.js';

export interface SequenceTrainingData {
  readonly train: PackedSequences;
  /** Cases that choose the best epoch, with the items left out of each ranking. */
  readonly validation: EvaluationCases & Pick<RankOptions, 'excludeIds' | 'excludeOffsets'>;
}

export interface FineTuneContext extends Hooks {
  readonly teacher?: SequenceTeacher | undefined;
  /** Rankings that others made, each with its weight: steps of their own among those of the data. */
  readonly rankings?: RankingSignal | readonly RankingSignal[] | undefined;
  readonly checkpoint?: CheckpointOptions | undefined;
  readonly describe?: Pick<ProgressEvent, 'step' | 'name'>;
}

/** @throws LimbeckError ERR_INVALID_ARGUMENT */
function checkCases(data: SequenceTrainingData): void {
  checkObject(data, 'data', '{ train, validation }', ['train', 'validation']);
  const { train, validation } = data;
  checkObject(train, 'data.train', 'sequences, as trainSequences() gives', ['sequences', 'sequenceOffsets']);
  checkObject(validation, 'data.validation', 'cases, as evaluationSet() gives', ['targets', 'excludeOffsets']);
}

/** Rows that the principal axes of a feature mapping are found from. */
const MAPPING_ROWS = 8192;

/**
 * Trains a sequence model; with a teacher, by distillation. It ends with the parameters of the epoch that had the
 * highest ndcg@10 on the validation cases, by full ranking (`validationLoss` in the records is its negative).
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION, ERR_EMPTY_DATA, ERR_ABORTED, ERR_NOT_FINITE,
 * ERR_CHECKPOINT_MISMATCH, ERR_NO_SPACE, ERR_IO, ERR_OUT_OF_MEMORY
 */
export async function fineTuneSequenceModel(
  engine: NativeEngine,
  model: SequenceModel,
  data: SequenceTrainingData,
  options: FineTuneOptions = {},
  context: FineTuneContext = {},
): Promise<FitResult> {
  checkInstance(model, SequenceModel, 'model');
  const settings = parseOptions(fineTuneOptionsSchema, options, 'fineTune');
  checkObject(context, 'context', '{ teacher, rankings, checkpoint, describe }');
  checkCases(data);
  const { teacher, signal } = context;
  if (teacher !== undefined) {
    checkObject(teacher, 'teacher', 'what cacheSequenceTeacher() gives', ['rows', 'windows', 'head']);
  }
  const rankings = [context.rankings ?? []].flat();
  for (const one of rankings)
    checkObject(one, 'rankings', 'what rankingSignal() gives', ['histories', 'logProbabilities']);
  checkTeacher(model, settings, teacher);
  const { maxPositionEmbeddings: maxHistory, numHiddenLayers, hiddenSize } = model.config;
  const { seed, batchTokens, microBatchTokens, losses, interpolation } = settings;
  const windows = teacher?.windows ?? trainingWindows(data.train, maxHistory);
  if (windows.inputIds.length === 0) {
    throw new LimbeckError('ERR_EMPTY_DATA', 'Expected histories of at least two items to train on, got none');
  }
  if (data.validation.targets.length === 0) {
    throw new LimbeckError(
      'ERR_EMPTY_DATA',
      'Expected at least one validation case to choose the best epoch, got none',
    );
  }
  const usesStates = isUsed(losses.hidden);
  const layerMap =
    teacher && usesStates ? (settings.layerMap ?? uniformLayerPairs(numHiddenLayers, teacher.numHiddenLayers)) : [];
  const projected =
    interpolation && teacher
      ? await projectTeacher(
          model.native,
          teacher.model,
          await sequenceProjection(engine, teacher, model.config, interpolation.width, { signal }),
        )
      : undefined;

  const numWindows = windows.offsets.length - 1;
  const batchesOf = perEpoch((epoch) => {
    const clicks = batchesByTokens(windows.offsets, batchTokens, shuffled(numWindows, seed, epoch));
    return rankings.reduce<{ indices: Int32Array; rankings: RankingSignal | undefined }[]>(
      (steps, one) =>
        interleave(
          steps,
          rankingBatches(one, batchTokens, seed, epoch).map((indices) => ({ indices, rankings: one })),
        ),
      clicks.map((indices) => ({ indices, rankings: undefined })),
    );
  });
  const trainer = createTrainer(engine, model.native, settings);
  try {
    const axes: Float32Array[] = [];
    for (const [, layer] of layerMap) axes.push(await axesOf(engine, teacher, layer, hiddenSize, seed));
    const projections = setFeatureMappings(trainer, {
      studentWidth: hiddenSize,
      teacherWidth: teacher?.hiddenSize ?? 0,
      axes,
    });
    return await fitModel(
      {
        model: model.native,
        trainer,
        projections,
        epochs: settings.epochs,
        stepsOf: (epoch) => batchesOf(epoch).length,
        schedule: settings,
        patience: settings.patience,
        seed,
        memory: { microBatchTokens, activationCheckpointing: settings.activationCheckpointing },
        request: (position) => {
          const step = batchesOf(position.epoch)[position.index];
          const indices = step?.indices ?? new Int32Array(0);
          const { learningRate, dropoutSeed } = position;
          if (step?.rankings) {
            return { ...rankingRequest(step.rankings, indices, maxHistory), learningRate, dropoutSeed };
          }
          const batch = gatherBatch(windows.inputIds, windows.offsets, indices);
          return {
            ...batch,
            labels: gatherBatch(windows.labels, windows.offsets, indices).inputIds,
            learningRate,
            dropoutSeed,
            losses: lossesAt(losses, position),
            ...(teacher ? { teacher: teacherSignal(teacher, layerMap, indices) } : {}),
            sampledNegatives: settings.sampledNegatives,
          };
        },
        readsAhead: true,
        ...(projected && interpolation
          ? {
              afterStep: ({ step, totalSteps }: StepPosition) =>
                interpolateParameters(model.native, projected, scheduleAt(interpolation.alpha, step, totalSteps)),
            }
          : {}),
        validate: async () => -meanNdcgAt10((await model.rank(data.validation, data.validation, { signal })).ranks),
        checkpoint: context.checkpoint,
        describe: context.describe ?? { step: 'fineTune', name: 'student' },
      },
      context,
    );
  } finally {
    trainer.dispose();
  }
}

/** Principal axes of a teacher layer, for a student of this width. */
async function axesOf(
  engine: NativeEngine,
  teacher: SequenceTeacher | undefined,
  layer: number,
  studentWidth: number,
  seed: number,
): Promise<Float32Array> {
  const states = teacher?.hiddenStates.get(layer);
  if (teacher === undefined || states === undefined) {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `The teacher's states of layer ${layer} were not cached`);
  }
  const { hiddenSize: teacherWidth } = teacher;
  return featureAxes(engine, states.subarray(0, MAPPING_ROWS * teacherWidth), { studentWidth, teacherWidth, seed });
}

function teacherSignal(
  teacher: SequenceTeacher,
  layerMap: readonly (readonly [number, number])[],
  windows: Int32Array,
): TeacherSignal {
  return {
    layerMap,
    hidden: layerMap.map(([, layer]) => teacher.rows(layer, windows)),
    logits: { hidden: teacher.rows(teacher.numHiddenLayers, windows), head: teacher.head },
  };
}

/**
 * Losses that no training of a sequence model can have, whatever its teacher.
 *
 * @param path of the settings
 * @throws LimbeckError ERR_INVALID_ARGUMENT
 */
export function checkFineTune(
  { losses, sampledNegatives }: Pick<ResolvedFineTuneOptions, 'losses' | 'sampledNegatives'>,
  path: string,
): void {
  if (isUsed(losses.attention)) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `${path}.losses.attention: a cached sequence teacher keeps no attention maps; use hidden or kd`,
    );
  }
  if (sampledNegatives > 0 && isUsed(losses.kd)) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `${path}.sampledNegatives: soft labels are of the whole catalogue, and ${sampledNegatives} sampled negatives are ` +
        'not; set it to 0, or losses.kd',
    );
  }
}

function checkTeacher(
  model: SequenceModel,
  settings: ResolvedFineTuneOptions,
  teacher: SequenceTeacher | undefined,
): void {
  checkFineTune(settings, 'fineTune');
  const { losses, layerMap, interpolation } = settings;
  const wanted = (['kd', 'hidden'] as const).find((term) => isUsed(losses[term]));
  if (teacher === undefined) {
    const needy = wanted !== undefined ? `losses.${wanted}` : interpolation !== undefined ? 'interpolation' : undefined;
    if (needy === undefined) return;
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `fineTune.${needy}: expected a teacher, got none`);
  }
  if (interpolation !== undefined && teacher.head !== teacher.model) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      'fineTune.interpolation goes towards one model, and this teacher is several; leave it out',
    );
  }
  const { maxPositionEmbeddings: maxHistory, numHiddenLayers } = model.config;
  if (teacher.maxHistory !== maxHistory) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `The teacher reads histories of ${teacher.maxHistory} items and the student of ${maxHistory}: make them equal`,
    );
  }
  for (const [student, source] of layerMap ?? []) {
    if (student > numHiddenLayers || source > teacher.numHiddenLayers || !teacher.hiddenStates.has(source)) {
      throw new LimbeckError(
        'ERR_INVALID_ARGUMENT',
        `fineTune.layerMap: [${student}, ${source}] names a block that student or teacher (cached: ` +
          `${[...teacher.hiddenStates.keys()].join(', ')}) does not have`,
      );
    }
  }
}

/** What the best epoch is chosen by; the results table has its own, fuller metrics. */
export function meanNdcgAt10(ranks: Int32Array): number {
  let sum = 0;
  for (const rank of ranks) if (rank <= 10) sum += 1 / Math.log2(rank + 1);
  return sum / ranks.length;
}
