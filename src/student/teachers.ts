/** The teachers of a language student: one or several, of its vocabulary or of others. */
import { isDeepStrictEqual } from 'node:util';
import { z } from 'zod';
import type { NativeTrainer, TeacherSignal } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { Knowledge } from '../knowledge/knowledge.js';
import { parseOptions } from '../prepare/parse-options.js';
import { eachText, isTextFile, type Texts } from '../prepare/text-lines.js';
import type { PieceSource } from '../teacher/corpus.js';
import { LanguageModel } from '../teacher/language-model.js';
import type { LanguageModelTeaching, TrainingBatch } from '../teacher/pretrain.js';
import { type AlignedCorpus, alignCorpus, alignedSignal } from './aligned-teacher.js';
import { uniformLayerPairs } from './initialise.js';
import type { LanguageTeacher, OpenLanguageTeacher, TeachingRequest } from './language-teacher.js';
import { layerMapSchema } from './options.js';
import { checkLayerMap } from './teacher-weights.js';
import { isUsed, setFeatureMappings } from './transfer.js';

const weightedTeacherSchema = z.strictObject({
  teacher: z.custom<LanguageTeacher>(
    isTeacher,
    'expected a language model, a knowledge store, or { knowledge, model }',
  ),
  /** Of its part in each term: KD = Σ weight·τ²·KL(teacher ‖ student). Weights need not add up to 1. */
  weight: z.number().gt(0).max(1000),
  /** Of a teacher of the student's vocabulary. @defaultValue the option `layerMap` for the first, spread evenly for others */
  layerMap: layerMapSchema.optional(),
  /** A teacher of another vocabulary is asked for its best so many tokens; what they leave is one class. */
  topK: z.int().min(1).max(4096).default(128),
});

/** One of several teachers. */
export type WeightedTeacher = z.input<typeof weightedTeacherSchema>;
type ResolvedTeacher = z.output<typeof weightedTeacherSchema>;
export type OpenTeacher = Omit<ResolvedTeacher, 'teacher'> & { readonly teacher: OpenLanguageTeacher };

/** @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION */
export function resolveTeachers(teachers: LanguageTeacher | readonly WeightedTeacher[]): readonly ResolvedTeacher[] {
  const list = isList(teachers) ? teachers : [{ teacher: teachers, weight: 1 }];
  return parseOptions(z.array(weightedTeacherSchema).min(1), list, 'teachers');
}

function isList(teachers: LanguageTeacher | readonly WeightedTeacher[]): teachers is readonly WeightedTeacher[] {
  return Array.isArray(teachers);
}

function isTeacher(value: unknown): boolean {
  if (value instanceof LanguageModel || value instanceof Knowledge) return true;
  const both = value as { readonly knowledge?: unknown; readonly model?: unknown } | null | undefined;
  return both?.knowledge instanceof Knowledge && both.model instanceof LanguageModel;
}

/** What decides how a model reads texts. */
type Reading = Pick<LanguageModel, 'config' | 'tokenizer'>;

/** Whether two models read texts as the same ids. */
export function haveOneVocabulary(a: Reading, b: Reading): boolean {
  if (a.config.vocabSize !== b.config.vocabSize) return false;
  return a.tokenizer === b.tokenizer || isDeepStrictEqual(asSaved(a), asSaved(b));
}

/** Tokenizers are made of objects of several kinds, and files of one. */
function asSaved({ tokenizer }: Reading): unknown {
  return JSON.parse(JSON.stringify(tokenizer.json));
}

export interface TogetherOptions extends Pick<TeachingRequest, 'losses' | 'relationHeads' | 'maxLength'> {
  readonly texts: Texts;
  /** Of the first teacher. @defaultValue spread evenly */
  readonly layerMap: TeachingRequest['layerMap'] | undefined;
}

type Teaching = Pick<LanguageModelTeaching, 'check'> & {
  readonly signal: (batch: TrainingBatch) => TeacherSignal | Promise<TeacherSignal>;
};

/**
 * What teachers say of batches of a student's training.
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT when one of them has nothing to say or reads shorter texts, or, on a GPU, there
 * are several or one has another vocabulary; ERR_TOKENIZER, ERR_UNSUPPORTED_TOKENIZER when vocabularies cannot be aligned
 */
export function teachTogether(
  student: LanguageModel,
  teachers: readonly OpenTeacher[],
  options: TogetherOptions,
): Required<Pick<LanguageModelTeaching, 'check' | 'signal' | 'prepare'>> {
  checkDevice(student, teachers);
  const { losses, relationHeads, maxLength } = options;
  const usesLayers = isUsed(losses.hidden) || isUsed(losses.attention) || isUsed(losses.relation);
  const { numHiddenLayers } = student.config;
  const layerMaps = teachers.map((one, i) => {
    if (!haveOneVocabulary(student, one.teacher)) return undefined;
    const teacherLayers = one.teacher.config.numHiddenLayers;
    const map =
      one.layerMap ?? (i === 0 ? options.layerMap : undefined) ?? uniformLayerPairs(numHiddenLayers, teacherLayers);
    checkLayerMap(map, numHiddenLayers, teacherLayers);
    return usesLayers ? map : [];
  });
  if (usesLayers && layerMaps.every((map) => map === undefined)) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      'losses: the hidden, attention and relation terms need a teacher of the student’s vocabulary; others teach by kd alone',
    );
  }
  const teachings = teachers.map((one, i): Teaching => {
    const layerMap = layerMaps[i];
    if (layerMap === undefined) return alignedTeaching(student, one, options, i);
    const { check, signal } = one.teacher.teach({
      student: student.config,
      losses,
      layerMap,
      relationHeads,
      maxLength,
    });
    const ofOne = signal as Teaching['signal'];
    return {
      ...(check && { check }),
      signal: one.weight === 1 ? ofOne : async (batch) => ({ ...(await ofOne(batch)), weight: one.weight }),
    };
  });
  return {
    check: async (train, hooks) => {
      teachers.forEach(({ teacher }, i) => {
        if (layerMaps[i] !== undefined) checkPositions(train, teacher, i);
      });
      for (const { check } of teachings) await check?.(train, hooks);
    },
    signal: (batch) => Promise.all(teachings.map(({ signal }) => signal(batch))),
    prepare: (trainer) => (isUsed(losses.hidden) ? setMappings(trainer, student, teachers, layerMaps) : []),
  };
}

/** A teacher of the student's vocabulary reads each piece as it is. @throws LimbeckError ERR_INVALID_ARGUMENT */
function checkPositions({ offsets }: PieceSource, { config }: OpenLanguageTeacher, index: number): void {
  const { maxPositionEmbeddings } = config;
  let longest = 0;
  for (let piece = 0; piece + 1 < offsets.length; piece++) {
    longest = Math.max(longest, (offsets[piece + 1] ?? 0) - (offsets[piece] ?? 0));
  }
  if (longest <= maxPositionEmbeddings) return;
  throw new LimbeckError(
    'ERR_INVALID_ARGUMENT',
    `teachers[${index}]: expected pieces of at most ${maxPositionEmbeddings} tokens, which is what it reads, and the longest ` +
      `training text has ${longest}. Set training.maxLength to ${maxPositionEmbeddings} or less`,
  );
}

/** @returns shapes of the learned projections of the hidden term, teacher by teacher */
function setMappings(
  trainer: NativeTrainer,
  student: LanguageModel,
  teachers: readonly OpenTeacher[],
  layerMaps: readonly (TeachingRequest['layerMap'] | undefined)[],
): [number, number][] {
  const shapes: [number, number][] = [];
  teachers.forEach(({ teacher }, i) => {
    const mappings = {
      studentWidth: student.config.hiddenSize,
      teacherWidth: teacher.config.hiddenSize,
      axes: (layerMaps[i] ?? []).map(() => undefined),
      firstIndex: shapes.length,
    };
    shapes.push(...setFeatureMappings(trainer, mappings));
  });
  return shapes;
}

/** A teacher of another vocabulary, laid over the training texts before the first step; they are in memory meanwhile. */
function alignedTeaching(
  student: LanguageModel,
  one: OpenTeacher,
  { texts, losses, maxLength }: TogetherOptions,
  index: number,
): Teaching {
  const teacher = alignableModel(student, one, isUsed(losses.kd), index);
  let corpus: AlignedCorpus | undefined;
  return {
    check: async (train, { signal }) => {
      const all = isTextFile(texts) ? await collect(eachText(texts, signal)) : texts;
      const sideOf = ({ tokenizer, config }: LanguageModel, longest: number) => ({
        tokenizer,
        vocabSize: config.vocabSize,
        maxLength: longest,
      });
      const positions = student.config.maxPositionEmbeddings;
      corpus = await alignCorpus(
        all,
        sideOf(student, Math.min(maxLength ?? positions, positions)),
        sideOf(teacher, teacher.config.maxPositionEmbeddings),
      );
      checkAligned(corpus, train, index);
    },
    signal: (batch) => alignedSignal(teacher, corpus as AlignedCorpus, batch, one),
  };
}

function checkAligned(corpus: AlignedCorpus, train: PieceSource, index: number): void {
  if (corpus.rowOffsets.length !== train.offsets.length || corpus.rowOffsets.some((at, i) => at !== train.offsets[i])) {
    throw new LimbeckError('ERR_INTERNAL', 'The training texts were cut in two ways');
  }
  if (corpus.numShared > 0 && corpus.teacherClasses.some((one) => one !== -1)) return;
  throw new LimbeckError(
    'ERR_INVALID_ARGUMENT',
    `teachers[${index}]: none of its tokens ends in the training texts where one of the student's does and has a piece in ` +
      'common with them, so it has nothing to teach. Are the texts longer than a token?',
  );
}

async function collect(texts: AsyncIterable<string>): Promise<string[]> {
  const all: string[] = [];
  for await (const text of texts) all.push(text);
  return all;
}

function alignableModel(
  student: LanguageModel,
  { teacher, layerMap }: OpenTeacher,
  usesKd: boolean,
  index: number,
): LanguageModel {
  const wrong =
    teacher.model === undefined
      ? 'a knowledge store is of its teacher’s own tokens: give the model itself to a student of another vocabulary'
      : student.config.attention !== 'causal' || teacher.config.attention !== 'causal'
        ? 'masked models must have the student’s vocabulary: what they hide differs with the tokens'
        : layerMap !== undefined
          ? 'layerMap: a teacher of another vocabulary teaches by kd alone'
          : usesKd
            ? undefined
            : 'a teacher of another vocabulary teaches by kd alone, and losses.kd is 0';
  if (wrong === undefined) return teacher.model as LanguageModel;
  throw new LimbeckError('ERR_INVALID_ARGUMENT', `teachers[${index}]: ${wrong}`);
}

function checkDevice(student: LanguageModel, teachers: readonly OpenTeacher[]): void {
  if (student.native.device !== 'cuda') return;
  const [first] = teachers;
  if (teachers.length === 1 && first?.weight === 1 && haveOneVocabulary(student, first.teacher)) return;
  throw new LimbeckError(
    'ERR_INVALID_ARGUMENT',
    'teachers: a GPU takes one teacher of weight 1 and of the student’s vocabulary; create the engine with device "cpu" ' +
      'for others',
  );
}
