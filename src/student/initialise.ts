/** Step 4 of distillation: where a student starts from. */
import { checkObject } from '../arguments.js';
import type { ChannelSelection, NativeTransformer, ProjectionMap } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { MAX_LAYERS } from '../formats/common-config.js';

export type InitialisationMethod = 'random' | 'layers' | 'width';

export interface InitialisationOptions {
  /**
   * `random`: as the student was made; `layers`: blocks of a teacher of the same width; `width`: a wider teacher,
   * its axes selected, or its residual stream turned onto `components`.
   */
  readonly method: InitialisationMethod;
  readonly teacher?: NativeTransformer;
  /** Entry i = teacher block (from 1) that fills block i + 1. @defaultValue spread evenly */
  readonly layers?: readonly number[];
  /** For `width`: how a wider teacher is reduced. @defaultValue pca with `components`, else selection */
  readonly width?: ProjectionMap['width'];
  /** For `width`: orthonormal rows [d, d_teacher], as from `residualAxes`. */
  readonly components?: Float32Array;
  /** For `width`, as from `selectByMass`; with components without `residual`. @defaultValue evenly spread channels */
  readonly channels?: ChannelSelection;
}

/**
 * Teacher blocks for a student of fewer blocks, evenly spread; the last student block takes the last teacher block.
 * Any two numbers work: no divisibility is asked for. A student with more blocks repeats teacher blocks.
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT for what is no number of blocks
 */
export function uniformLayerMap(studentLayers: number, teacherLayers: number): number[] {
  for (const layers of [studentLayers, teacherLayers]) {
    if (Number.isInteger(layers) && layers >= 1 && layers <= MAX_LAYERS) continue;
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `Expected numbers of blocks from 1 to ${MAX_LAYERS}, got ${layers}`);
  }
  return Array.from({ length: studentLayers }, (_, i) =>
    Math.max(1, Math.round(((i + 1) * teacherLayers) / studentLayers)),
  );
}

/**
 * Teacher blocks that a language student starts from: evenly spread from the first to the last one. Without the first
 * block little is left of a language model, whatever other blocks are kept (`docs/language-students.md`).
 *
 * @see Shleifer & Rush 2020, arXiv:2010.13002
 */
export function startLayerMap(studentLayers: number, teacherLayers: number): number[] {
  const step = (teacherLayers - 1) / Math.max(1, studentLayers - 1);
  return Array.from({ length: studentLayers }, (_, i) => 1 + Math.round(i * step));
}

/** Pairs [student block, teacher block] of {@link uniformLayerMap}. */
export function uniformLayerPairs(studentLayers: number, teacherLayers: number): [number, number][] {
  return uniformLayerMap(studentLayers, teacherLayers).map((teacher, i) => [i + 1, teacher]);
}

/**
 * Fills a student from a teacher. Parameters that the teacher lacks keep their values.
 *
 * @returns names of the parameters that were filled
 * @throws LimbeckError ERR_INVALID_ARGUMENT when the two do not fit together
 */
export async function initialiseStudent(
  student: NativeTransformer,
  options: InitialisationOptions & { readonly studentLayers: number; readonly teacherLayers?: number },
): Promise<string[]> {
  checkObject(student, 'student', 'the `native` of a model', ['project']);
  checkObject(options, 'options', '{ method, studentLayers }', ['method', 'studentLayers']);
  const { method, teacher, components, channels, studentLayers, teacherLayers } = options;
  if (method === 'random') return [];
  if (teacher === undefined || teacherLayers === undefined) {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `initialise: method "${method}" needs a teacher`);
  }
  const map: ProjectionMap = {
    layers: options.layers ?? uniformLayerMap(studentLayers, teacherLayers),
    width: options.width ?? (components === undefined ? 'selection' : 'pca'),
    ...(components === undefined ? {} : { components }),
    ...(channels === undefined ? {} : { channels }),
  };
  if (method === 'layers') checkSameWidth(student, teacher);
  const filled = await student.project(teacher, map);
  for (const { name, values } of filled) student.setParameter(name, values);
  return filled.map(({ name }) => name);
}

function checkSameWidth(student: NativeTransformer, teacher: NativeTransformer): void {
  const widthOf = (model: NativeTransformer) =>
    model.parameters().find(({ name }) => name === 'embeddings.word')?.shape[1];
  if (widthOf(student) === widthOf(teacher)) return;
  throw new LimbeckError(
    'ERR_INVALID_ARGUMENT',
    `initialise: method "layers" needs a teacher of the student's width ${widthOf(student)}, got ${widthOf(teacher)}; ` +
      'use method "width"',
  );
}
