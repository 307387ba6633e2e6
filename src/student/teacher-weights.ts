/** Which of its teacher's weights a language student starts from, and is interpolated towards. */
import type { NativeEngine, ProjectionMap, TransformerConfig } from '../binding.js';
import { LimbeckError } from '../errors.js';
import type { Hooks } from '../prepare/hooks.js';
import { checkTextFile, eachText, isTextFile, type TextFile, type Texts } from '../prepare/text-lines.js';
import { spreadPlaces } from '../teacher/batches.js';
import type { LanguageModel } from '../teacher/language-model.js';
import { type Importance, type ImportanceKind, measureImportance, selectByMass } from './importance.js';
import { startLayerMap } from './initialise.js';
import { residualAxes } from './residual-axes.js';

export interface TeacherWeightsOptions {
  /** Entry i = teacher block (from 1) of block i + 1. @defaultValue by `importance`, else {@link startLayerMap} */
  readonly layers?: readonly number[] | undefined;
  /** How a wider teacher's residual stream is reduced: some of its channels, or its principal axes. */
  readonly width: ProjectionMap['width'];
  /** What blocks, channels and heads are chosen by. @defaultValue spread evenly */
  readonly importance?: ImportanceKind | undefined;
  /** Texts that importance and principal axes are measured on. */
  readonly importanceTexts: number;
  /** Measures importance also where nothing is chosen by it. */
  readonly alwaysMeasure: boolean;
}

export interface TeacherWeights {
  readonly map: ProjectionMap;
  /** Where it was measured. */
  readonly importance?: Importance;
}

/**
 * The same at every call: importance and axes are measured on evenly spread texts.
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT when the student does not fit into the teacher; the codes of
 * {@link measureImportance} and {@link residualAxes}
 */
export async function chooseTeacherWeights(
  engine: NativeEngine,
  teacher: LanguageModel,
  student: TransformerConfig,
  texts: Texts,
  { layers, width, importance: by, importanceTexts, alwaysMeasure }: TeacherWeightsOptions,
  hooks: Hooks = {},
): Promise<TeacherWeights> {
  const spread = startLayerMap(student.numHiddenLayers, teacher.numHiddenLayers);
  const turns = width === 'pca' && student.hiddenSize < teacher.config.hiddenSize;
  const measures = by !== undefined || alwaysMeasure;
  if (by !== undefined) checkFits(teacher.config, student);
  const sample = turns || measures ? await spreadTexts(texts, importanceTexts, hooks) : [];
  const importance = measures ? await measureImportance(engine, teacher, sample, hooks) : undefined;
  const isShallower = student.numHiddenLayers < teacher.numHiddenLayers;
  const chosen =
    by !== undefined && importance
      ? selectByMass(importance[by], student, layers ?? (isShallower ? undefined : spread))
      : { layers: layers ?? spread };
  const components = turns ? await residualAxes(engine, teacher, sample, student.hiddenSize, hooks) : undefined;
  const map =
    width === 'pca' ? { ...withoutResidual(chosen), width, ...(components && { components }) } : { ...chosen, width };
  return { map, ...(importance && { importance }) };
}

/** Turned, all residual channels are kept in part. */
function withoutResidual({ layers, channels }: Omit<ProjectionMap, 'width'>): Omit<ProjectionMap, 'width'> {
  if (channels === undefined) return { layers };
  const { residual: _, ...others } = channels;
  return { layers, channels: others };
}

async function spreadTexts(texts: Texts, count: number, { signal }: Hooks): Promise<readonly string[]> {
  if (isTextFile(texts)) return spreadTextsOfFile(texts, count, signal);
  if (texts.length <= count) return texts;
  return spreadPlaces(texts.length, count).map((place) => texts[place] ?? '');
}

/** Reads the file twice: how many texts there are is known at its end. */
async function spreadTextsOfFile(file: TextFile, count: number, signal: AbortSignal | undefined): Promise<string[]> {
  checkTextFile(file, 'corpus.train');
  let total = 0;
  for await (const _ of eachText(file, signal)) total++;
  const places = new Set(total <= count ? undefined : spreadPlaces(total, count));
  const spread: string[] = [];
  let place = 0;
  for await (const text of eachText(file, signal)) {
    if (total <= count || places.has(place)) spread.push(text);
    place++;
  }
  return spread;
}

function checkFits(teacher: TransformerConfig, student: TransformerConfig): void {
  for (const size of ['hiddenSize', 'intermediateSize', 'numKeyValueHeads'] as const) {
    if (student[size] <= teacher[size]) continue;
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `importance chooses ${student[size]} of the teacher's ${teacher[size]} (${size}): choose a smaller student`,
    );
  }
}

/** @throws LimbeckError ERR_INVALID_ARGUMENT */
export function checkLayers(layers: readonly number[], studentLayers: number, teacherLayers: number): void {
  if (layers.length === studentLayers && layers.every((layer) => layer <= teacherLayers)) return;
  throw new LimbeckError(
    'ERR_INVALID_ARGUMENT',
    `layers: expected a block of the teacher, from 1 to ${teacherLayers}, for each of the student's ${studentLayers}, ` +
      `got [${layers.join(', ')}]`,
  );
}

/** @throws LimbeckError ERR_INVALID_ARGUMENT */
export function checkLayerMap(
  layerMap: readonly (readonly [number, number])[],
  studentLayers: number,
  teacherLayers: number,
): void {
  const wrong = layerMap.find(([student, teacher]) => student > studentLayers || teacher > teacherLayers);
  if (wrong === undefined) return;
  throw new LimbeckError(
    'ERR_INVALID_ARGUMENT',
    `layerMap: expected pairs of a student's block, from 1 to ${studentLayers}, and a teacher's, from 1 to ` +
      `${teacherLayers}, got [${wrong.join(', ')}]`,
  );
}
