/** Teachers of language students: a model that is run on every batch, or what it said before, read from a store. */
import type { TeacherSignal, TransformerConfig } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { type ModelFamily, readModelConfig } from '../formats/model-config.js';
import { loadTokenizer, type Tokenizer } from '../formats/tokenizer.js';
import { hashPieces, hashTeacher } from '../knowledge/extract.js';
import { Knowledge } from '../knowledge/knowledge.js';
import { type Manifest, teacherDirectory } from '../knowledge/manifest.js';
import type { KnowledgeReader } from '../knowledge/reader.js';
import { type Hooks, throwIfAborted } from '../prepare/hooks.js';
import type { PieceSource } from '../teacher/corpus.js';
import { LanguageModel } from '../teacher/language-model.js';
import type { LanguageModelTeaching } from '../teacher/pretrain.js';
import type { Schedule } from './options.js';
import { isUsed } from './transfer.js';

/**
 * A model; or the knowledge that one left of the training texts (`extract` with `pieces: true`), and then no model is in
 * memory; or both, where a student starts from the model's weights and learns from the store.
 */
export type LanguageTeacher =
  | LanguageModel
  | Knowledge
  | { readonly knowledge: Knowledge; readonly model: LanguageModel };

/** What a student asks of its teacher. */
export interface TeachingRequest {
  readonly student: TransformerConfig;
  readonly losses: Readonly<Record<'kd' | 'hidden' | 'attention' | 'relation', Schedule>>;
  /** Pairs [student block, teacher block], from 1. */
  readonly layerMap: readonly (readonly [number, number])[];
  /** @defaultValue what the store has; of a model, as many as divide the student's key-value heads and its values */
  readonly relationHeads: number | undefined;
  /** Of the training. @defaultValue the student's positions */
  readonly maxLength: number | undefined;
}

/** A teacher that is ready to be asked. */
export interface OpenLanguageTeacher {
  readonly family: ModelFamily;
  readonly config: TransformerConfig;
  readonly tokenizer: Tokenizer;
  /** Where it is in memory. */
  readonly model: LanguageModel | undefined;
  /** @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_SHAPE_MISMATCH for what it cannot answer */
  teach(request: TeachingRequest): Pick<LanguageModelTeaching, 'check' | 'signal'>;
  close(): Promise<void>;
}

/**
 * @throws LimbeckError ERR_CHECKPOINT_MISMATCH when knowledge and model are not of one teacher; ERR_INVALID_ARGUMENT for a
 * store that was not made for training; ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT, ERR_UNSUPPORTED_MODEL, ERR_TOKENIZER, ERR_IO
 */
export async function openLanguageTeacher(teacher: LanguageTeacher, hooks: Hooks = {}): Promise<OpenLanguageTeacher> {
  if (teacher instanceof LanguageModel) return runningTeacher(teacher);
  if (teacher instanceof Knowledge) return storedTeacher(teacher);
  const { knowledge, model } = teacher;
  if ((await hashTeacher(model, hooks)) !== knowledge.manifest.teacher) {
    throw new LimbeckError(
      'ERR_CHECKPOINT_MISMATCH',
      `'${knowledge.directory}' holds the knowledge of another teacher than the model given with it`,
    );
  }
  return { ...(await storedTeacher(knowledge)), model };
}

function runningTeacher(model: LanguageModel): OpenLanguageTeacher {
  const { family, config, tokenizer, native } = model;
  const valueColumns = config.numKeyValueHeads * config.headDim;
  return {
    family,
    config,
    tokenizer,
    model,
    teach({ student, layerMap, relationHeads = commonDivisor(student.numKeyValueHeads, valueColumns) }) {
      const signal: TeacherSignal = { model: native, layerMap, relationHeads };
      return { signal: () => signal };
    },
    close: async () => {},
  };
}

function commonDivisor(a: number, b: number): number {
  return b === 0 ? a : commonDivisor(b, a % b);
}

async function storedTeacher(knowledge: Knowledge): Promise<OpenLanguageTeacher> {
  const { directory, manifest } = knowledge;
  if (manifest.pieceLength === undefined) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `'${directory}' does not hold texts as training reads them. Extract them with pieces: true.`,
    );
  }
  const { family, config } = await readModelConfig(teacherDirectory(directory));
  if (config.attention !== 'causal') {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `'${directory}' is of a masked model: it has not seen the masks that training draws. Give the model itself.`,
    );
  }
  const tokenizer = await loadTokenizer(teacherDirectory(directory));
  const reader = knowledge.openReader();
  return {
    family,
    config,
    tokenizer,
    model: undefined,
    teach(request) {
      checkRequest(knowledge, request);
      return {
        check: (train, hooks) => checkPieces(knowledge, reader, train, hooks),
        signal: ({ indices }) => readSignal(reader, indices, request),
      };
    },
    close: () => reader.close(),
  };
}

/** What the losses need of these pieces, and nothing else. */
async function readSignal(
  reader: KnowledgeReader,
  pieces: Int32Array,
  { losses, layerMap }: TeachingRequest,
): Promise<TeacherSignal> {
  const ofBlocks = async (
    term: 'hidden' | 'attention' | 'relation',
    read: (layer: number) => Promise<Float32Array>,
  ) => {
    if (!isUsed(losses[term])) return undefined;
    const layers = [...new Set(layerMap.map(([, layer]) => layer))];
    const rows = new Map(await Promise.all(layers.map(async (layer) => [layer, await read(layer)] as const)));
    return layerMap.map(([, layer]) => rows.get(layer) ?? new Float32Array(0));
  };
  const [hidden, attentions, relations, logits] = await Promise.all([
    ofBlocks('hidden', (layer) => reader.hiddenState(layer, pieces)),
    ofBlocks('attention', (block) => reader.attentions(block, pieces)),
    ofBlocks('relation', (block) => reader.valueRelations(block, pieces)),
    isUsed(losses.kd) ? readLogits(reader, pieces) : undefined,
  ]);
  return {
    layerMap,
    ...(hidden && { hidden }),
    ...(attentions && { attentions }),
    ...(relations && { relations, relationHeads: reader.manifest.relationHeads }),
    ...(logits && { logits }),
  };
}

async function readLogits(reader: KnowledgeReader, pieces: Int32Array): Promise<TeacherSignal['logits']> {
  const { logits } = reader.manifest;
  if (typeof logits === 'string') return { dense: await reader.logits(pieces) };
  if (!logits.packed) return reader.topK(pieces);
  return { topK: logits.topK, packed: await reader.packedTopK(pieces) };
}

function checkRequest(
  { directory, manifest }: Knowledge,
  { student, losses, layerMap, relationHeads, maxLength = student.maxPositionEmbeddings }: TeachingRequest,
): void {
  const pieceLength = Math.min(maxLength, student.maxPositionEmbeddings);
  if (pieceLength !== manifest.pieceLength) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `training.maxLength: '${directory}' was extracted in pieces of ${manifest.pieceLength} tokens, the training cuts ` +
        `them at ${pieceLength}. Make the two equal.`,
    );
  }
  if (isUsed(losses.kd) && manifest.logits === 'none') throw lacks(directory, 'kd', 'logits', 'logits');
  if (isUsed(losses.hidden) && manifest.pooling !== 'none') {
    throw lacks(directory, 'hidden', 'a hidden state for every token', "pooling: 'none'");
  }
  const kept = {
    hidden: ['hiddenStates', manifest.hiddenStates],
    attention: ['attentions', manifest.attentions],
    relation: ['valueRelations', manifest.valueRelations],
  } as const satisfies Record<string, readonly [keyof Manifest, readonly number[]]>;
  for (const [term, [option, layers]] of Object.entries(kept) as [keyof typeof kept, (typeof kept)['hidden']][]) {
    const missing = layerMap.find(([, layer]) => !layers.includes(layer));
    if (missing === undefined || !isUsed(losses[term])) continue;
    throw lacks(directory, term, `layer ${missing[1]} (it has ${layers.join(', ') || 'none'})`, option);
  }
  if (isUsed(losses.attention) && manifest.numAttentionHeads !== student.numAttentionHeads) {
    throw new LimbeckError(
      'ERR_SHAPE_MISMATCH',
      `The attention loss needs equal head counts: the teacher has ${manifest.numAttentionHeads}, the student ` +
        `${student.numAttentionHeads}; the relation loss does not.`,
    );
  }
  if (isUsed(losses.relation) && relationHeads !== undefined && relationHeads !== manifest.relationHeads) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `relationHeads: '${directory}' keeps relations of ${manifest.relationHeads} heads, got ${relationHeads}`,
    );
  }
}

function lacks(directory: string, term: string, what: string, option: string): LimbeckError {
  return new LimbeckError(
    'ERR_INVALID_ARGUMENT',
    `losses.${term}: '${directory}' does not hold ${what}. Name it as ${option} of the extraction, or leave the loss out.`,
  );
}

/** Whether the store is of these pieces in this order; says which is the first that it is not of. */
async function checkPieces(
  { directory, manifest }: Knowledge,
  reader: KnowledgeReader,
  train: PieceSource,
  hooks: Hooks,
): Promise<void> {
  const count = train.offsets.length - 1;
  if (count === manifest.numTexts && (await hashPieces(train, hooks.signal)) === manifest.texts) return;
  const shared = Int32Array.from({ length: Math.min(count, manifest.numTexts) }, (_, piece) => piece);
  throwIfAborted(hooks.signal);
  const stored = await reader.sequenceOffsets(shared);
  const other = shared.find(
    (piece) =>
      (stored[piece + 1] ?? 0) - (stored[piece] ?? 0) !== (train.offsets[piece + 1] ?? 0) - (train.offsets[piece] ?? 0),
  );
  const difference = other === undefined ? '' : `, the first that differs in length is piece ${other}`;
  throw new LimbeckError(
    'ERR_CHECKPOINT_MISMATCH',
    `'${directory}' is not of these training texts: it holds ${manifest.numTexts} pieces, they are ${count}${difference}. ` +
      'Extract it of the same texts in the same order, or give the model itself.',
  );
}
