/** Which of its teacher's weights a language student starts from, and is interpolated towards. */
import type { ChannelSelection, NativeEngine, TransformerConfig } from '../binding.js';
import { LimbeckError } from '../errors.js';
import type { Hooks } from '../prepare/hooks.js';
import { checkTextFile, eachText, isTextFile, type TextFile, type Texts } from '../prepare/text-lines.js';
import type { LanguageModel } from '../teacher/language-model.js';
import { type Importance, type ImportanceKind, measureImportance, selectByMass } from './importance.js';
import { startLayerMap } from './initialise.js';

export interface TeacherWeightsOptions {
  /** Entry i = teacher block (from 1) of block i + 1. @defaultValue by `importance`, else {@link startLayerMap} */
  readonly layers?: readonly number[] | undefined;
  /** What blocks, channels and heads are chosen by. @defaultValue spread evenly */
  readonly importance?: ImportanceKind | undefined;
  /** Texts that importance is measured on. */
  readonly importanceTexts: number;
  /** Measures also where nothing is chosen by it. */
  readonly alwaysMeasure: boolean;
}

export interface TeacherWeights {
  readonly map: { readonly layers: readonly number[]; readonly channels?: ChannelSelection };
  /** Where it was measured. */
  readonly importance?: Importance;
}

/**
 * The same at every call: importance is measured on evenly spread texts.
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT when the student does not fit into the teacher; the codes of
 * {@link measureImportance}
 */
export async function chooseTeacherWeights(
  engine: NativeEngine,
  teacher: LanguageModel,
  student: TransformerConfig,
  texts: Texts,
  { layers, importance: by, importanceTexts, alwaysMeasure }: TeacherWeightsOptions,
  hooks: Hooks = {},
): Promise<TeacherWeights> {
  const spread = startLayerMap(student.numHiddenLayers, teacher.numHiddenLayers);
  if (by === undefined && !alwaysMeasure) return { map: { layers: layers ?? spread } };
  const importance = await measureImportance(engine, teacher, await spreadTexts(texts, importanceTexts, hooks), hooks);
  if (by === undefined) return { map: { layers: layers ?? spread }, importance };
  checkFits(teacher.config, student);
  const isShallower = student.numHiddenLayers < teacher.numHiddenLayers;
  return { map: selectByMass(importance[by], student, layers ?? (isShallower ? undefined : spread)), importance };
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

function spreadPlaces(total: number, count: number): number[] {
  return Array.from({ length: count }, (_, i) => Math.floor(((i + 0.5) * total) / count));
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
