/** Step 5 of distillation: parameter interpolation, feature mapping, model fusion. */
import { checkInstance, checkList, checkObject } from '../arguments.js';
import type {
  LossOptions,
  NativeEngine,
  NativeTrainer,
  NativeTransformer,
  ProjectionMap,
  TransformerConfig,
} from '../binding.js';
import { LimbeckError } from '../errors.js';
import type { Hooks } from '../prepare/hooks.js';
import type { StepPosition } from '../teacher/fit-model.js';
import { uniformLayerMap } from './initialise.js';
import type { ResolvedFineTuneOptions, Schedule } from './options.js';
import { sequenceAxes } from './residual-axes.js';
import type { SequenceTeacher } from './teacher-cache.js';

/** Value of a schedule at a step. @param step from 0 */
export function scheduleAt(schedule: Schedule, step: number, totalSteps: number): number {
  if (typeof schedule === 'number') return schedule;
  const { from, to, until = 1 } = schedule;
  const progress = Math.min(1, step / Math.max(1, until * totalSteps));
  return from + (to - from) * progress;
}

/** Whether a loss term counts at any step. */
export function isUsed(schedule: Schedule): boolean {
  return typeof schedule === 'number' ? schedule !== 0 : schedule.from !== 0 || schedule.to !== 0;
}

/** Loss weights at a step; `fusion` mixes the logits of teacher and student into the soft labels (model fusion). */
export function lossesAt(losses: ResolvedFineTuneOptions['losses'], { step, totalSteps }: StepPosition): LossOptions {
  const at = (schedule: Schedule) => scheduleAt(schedule, step, totalSteps);
  return {
    ce: at(losses.ce),
    kd: at(losses.kd),
    hidden: at(losses.hidden),
    attention: at(losses.attention),
    temperature: at(losses.temperature),
    fusion: at(losses.fusion),
    gate: losses.gate,
  };
}

/** φ(teacher) in the shapes of the student: worked out once, used at every α. */
export interface ProjectedTeacher {
  readonly parameters: readonly { readonly name: string; readonly values: Float32Array }[];
  /** The same as a model on the student's GPU, where there is one and no parameter of the student is left out. */
  readonly model?: NativeTransformer;
}

/** @throws LimbeckError ERR_INVALID_ARGUMENT when the models do not fit the map */
export async function projectTeacher(
  student: NativeTransformer,
  teacher: NativeTransformer,
  map: ProjectionMap,
): Promise<ProjectedTeacher> {
  checkObject(student, 'student', 'the `native` of a model', ['project']);
  checkObject(teacher, 'teacher', 'the `native` of a model', ['project']);
  const parameters = await student.project(teacher, map);
  if (student.device === 'cpu' || parameters.length < student.parameters().length) return { parameters };
  const model = student.copy();
  for (const { name, values } of parameters) model.setParameter(name, values);
  return { parameters, model };
}

/**
 * θ ← θ + α·w⊙(φ(T) − θ) for every parameter that the teacher has too.
 *
 * @param alpha 0 leaves the student as it is, 1 makes it the projected teacher; values outside [0, 1] extrapolate
 * @param weights w by parameter, as from `fisherWeights` @defaultValue ones
 * @throws LimbeckError ERR_INVALID_ARGUMENT when α is not finite
 */
export async function interpolateParameters(
  student: NativeTransformer,
  teacher: ProjectedTeacher,
  alpha: number,
  weights?: ReadonlyMap<string, Float32Array>,
): Promise<void> {
  checkObject(student, 'student', 'the `native` of a model', ['interpolate']);
  checkObject(teacher, 'teacher', 'what projectTeacher() gives', ['parameters']);
  checkList(teacher.parameters, 'teacher.parameters', 'those that projectTeacher() gives');
  if (weights !== undefined) checkInstance(weights, Map, 'weights');
  if (!Number.isFinite(alpha)) throw new LimbeckError('ERR_INVALID_ARGUMENT', `alpha: expected a number, got ${alpha}`);
  if (weights === undefined && teacher.model !== undefined) return student.interpolateFrom(teacher.model, alpha);
  await Promise.all(
    teacher.parameters.map(({ name, values }) => student.interpolate(name, values, alpha, weights?.get(name))),
  );
}

/**
 * How a sequence teacher's model is reduced to the shape of a student. The residual stream of a student as wide as its
 * teacher is the teacher's own.
 *
 * @throws LimbeckError as {@link sequenceAxes}
 */
export async function sequenceProjection(
  engine: NativeEngine,
  teacher: SequenceTeacher,
  student: Pick<TransformerConfig, 'hiddenSize' | 'numHiddenLayers'>,
  width: ProjectionMap['width'],
  hooks: Hooks = {},
): Promise<ProjectionMap> {
  const layers = uniformLayerMap(student.numHiddenLayers, teacher.numHiddenLayers);
  if (width === 'selection' || student.hiddenSize >= teacher.config.hiddenSize) return { layers, width };
  return { layers, width, components: await sequenceAxes(engine, teacher, student.hiddenSize, hooks) };
}

/** Principal axes [min(d_student, d_teacher, rows), d_teacher] of teacher states [rows, d_teacher]. */
export async function featureAxes(
  engine: NativeEngine,
  x: Float32Array,
  {
    studentWidth,
    teacherWidth,
    seed,
  }: { readonly studentWidth: number; readonly teacherWidth: number; readonly seed: number },
): Promise<Float32Array> {
  const rows = x.length / teacherWidth;
  const components = Math.min(studentWidth, teacherWidth, rows);
  return (await engine.pca({ x, rows, columns: teacherWidth, components, seed, whiten: false })).components;
}

/**
 * Feature mapping: gives the trainer one learned projection W [d_teacher, d_student] a layer pair. W starts from the
 * principal axes of the teacher's states, so that the student first learns the directions that carry most, or from rows
 * of the identity.
 *
 * @param options.axes of each pair, from {@link featureAxes}
 * @returns shapes of the projections
 */
export function setFeatureMappings(
  trainer: NativeTrainer,
  options: {
    readonly studentWidth: number;
    readonly teacherWidth: number;
    readonly axes: readonly (Float32Array | undefined)[];
    /** Projections of the teachers before. @defaultValue 0 */
    readonly firstIndex?: number;
  },
): [number, number][] {
  const { studentWidth, teacherWidth, axes, firstIndex = 0 } = options;
  return axes.map((one, index) => {
    trainer.setProjection(
      firstIndex + index,
      teacherWidth,
      studentWidth,
      initialProjection(teacherWidth, studentWidth, one),
    );
    return [teacherWidth, studentWidth];
  });
}

/** axesᵀ [teacherWidth, studentWidth], columns beyond the axes zero; the identity without axes. */
function initialProjection(teacherWidth: number, studentWidth: number, axes: Float32Array | undefined): Float32Array {
  const values = new Float32Array(teacherWidth * studentWidth);
  const columns = axes === undefined ? Math.min(teacherWidth, studentWidth) : axes.length / teacherWidth;
  for (let row = 0; row < teacherWidth; row++) {
    for (let column = 0; column < columns; column++) {
      values[row * studentWidth + column] =
        axes === undefined ? Number(row === column) : (axes[column * teacherWidth + row] ?? 0);
    }
  }
  return values;
}
