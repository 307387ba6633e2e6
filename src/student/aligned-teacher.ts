/** A teacher of another vocabulary: what it says where a token of its own and one of the student's end together. */
import type { TeacherSignal } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { createPacer } from '../formats/pacer.js';
import { createTokenSpelling, sharedClasses } from '../formats/token-spelling.js';
import type { Tokenizer } from '../formats/tokenizer.js';
import { encodeTexts } from '../formats/tokenizer-workers.js';
import { sharedEnds, tokenEnds } from '../teacher/alignment.js';
import { cutText } from '../teacher/corpus.js';
import type { LanguageModel } from '../teacher/language-model.js';
import type { TrainingBatch } from '../teacher/pretrain.js';

/** The student's pieces of a corpus in a teacher's tokens. */
export interface AlignedCorpus {
  /** What the teacher reads of each piece; nothing where no end is shared. */
  readonly ids: Int32Array;
  readonly offsets: Int32Array; // [S + 1]
  /** For each token of the student, the one of the teacher that ends with it, counted in its piece; -1 = none. */
  readonly rows: Int32Array; // [N]
  readonly rowOffsets: Int32Array; // [S + 1]
  /** Tokens that the student predicts the next one after, and those of them that the teacher has a word on. */
  readonly numLabels: number;
  readonly numShared: number;
  /** The class of each token of the student, [V]; the last class has those that the teacher knows nothing of. */
  readonly classes: Int32Array;
  readonly numClasses: number;
  /** The class of each token of the teacher, -1 = none. */
  readonly teacherClasses: Int32Array;
}

/** One side of an alignment. */
export interface AlignedSide {
  readonly tokenizer: Tokenizer;
  /** Rows of the model's table. */
  readonly vocabSize: number;
  /** Longer texts are cut into pieces of so many tokens (student), or not read further (teacher). */
  readonly maxLength: number;
}

/**
 * Aligns two tokenisations of texts; see {@link tokenEnds}. The first token of a text is left out: SentencePiece puts a
 * space before it that the text does not have.
 *
 * @throws LimbeckError ERR_TOKENIZER when the tokens of a text do not spell it, ERR_UNSUPPORTED_TOKENIZER
 */
export async function alignCorpus(
  texts: readonly string[],
  student: AlignedSide,
  teacher: AlignedSide,
): Promise<AlignedCorpus> {
  const sides = [student, teacher].map(({ tokenizer }) => createTokenSpelling(tokenizer));
  const [ours, theirs] = sides as [(typeof sides)[number], (typeof sides)[number]];
  const [studentTexts, teacherTexts] = [
    await encodeTexts(student.tokenizer, texts),
    await encodeTexts(teacher.tokenizer, texts),
  ];
  const { eosTokenId } = student.tokenizer;
  const needsSpaces = ours.style !== theirs.style;
  const pause = createPacer();
  const ids: number[] = [];
  const rows: number[] = [];
  const [offsets, rowOffsets] = [[0], [0]];
  let [numLabels, numShared] = [0, 0];

  for (const [i, text] of texts.entries()) {
    await pause();
    const studentIds = studentTexts.ids.subarray(studentTexts.offsets[i], studentTexts.offsets[i + 1]);
    const teacherIds = teacherTexts.ids.subarray(teacherTexts.offsets[i], teacherTexts.offsets[i + 1]);
    const studentEnds = endsOf(text, i, studentIds, ours);
    const teacherEnds = endsOf(text, i, teacherIds, theirs);
    const shared = sharedEnds(studentEnds, teacherEnds, Buffer.from(text.toWellFormed()), { needsSpaces });
    const lastHasNext = theirs.endTokenId !== undefined;
    const hasEos = eosTokenId === undefined || studentIds.at(-1) === eosTokenId;
    const pieces = cutText(studentIds.length + (hasEos ? 0 : 1), { maxLength: student.maxLength, minLength: 2 });
    for (const [begin, end] of pieces) {
      const first = firstTeacherToken(begin - ours.before.length, studentEnds, teacherEnds);
      const start = first === 0 ? 0 : first + theirs.before.length;
      let length = 0;
      for (let token = begin; token < end; token++) {
        // The last token of a piece has no label.
        const match = token + 1 < end ? (shared[token - ours.before.length] ?? -1) : -1;
        const row = match + theirs.before.length - start;
        const isKept = match >= first && row < teacher.maxLength && (lastHasNext || match + 1 < teacherEnds.length);
        rows.push(isKept ? row : -1);
        if (!isKept) continue;
        length = row + 1;
        numShared++;
      }
      numLabels += end - begin - 1;
      for (let token = start; token < start + length; token++) ids.push(teacherIds[token] ?? 0);
      offsets.push(ids.length);
      rowOffsets.push(rows.length);
    }
  }
  const { first, second, numClasses } = sharedClasses(ours, student.vocabSize, theirs, teacher.vocabSize);
  const hasOthers = first.includes(-1);
  return {
    ids: Int32Array.from(ids),
    offsets: Int32Array.from(offsets),
    rows: Int32Array.from(rows),
    rowOffsets: Int32Array.from(rowOffsets),
    numLabels,
    numShared,
    classes: first.map((one) => (one === -1 ? numClasses : one)),
    numClasses: numClasses + (hasOthers ? 1 : 0),
    teacherClasses: second,
  };
}

/** Ends of the tokens of a text, without those around it. */
function endsOf(
  text: string,
  index: number,
  ids: Int32Array,
  spelling: ReturnType<typeof createTokenSpelling>,
): Int32Array {
  const { before, after } = spelling;
  try {
    return tokenEnds(text, ids.subarray(before.length, ids.length - after.length), spelling);
  } catch (error) {
    if (!(error instanceof LimbeckError)) throw error;
    throw new LimbeckError(error.code, `train[${index}]: ${error.message}`, { cause: error });
  }
}

/** The teacher's first token of a piece that begins with the student's token `begin` of the text, if not before it. */
function firstTeacherToken(begin: number, student: Int32Array, teacher: Int32Array): number {
  if (begin <= 0) return 0;
  let before = begin - 1;
  while (before >= 0 && (student[before] ?? -1) <= 0) before--;
  const place = student[before] ?? 0;
  // Ends go up, but for the -1 among them.
  return teacher.findLastIndex((end) => end > 0 && end <= place) + 1;
}

/** What the teacher says of a batch: its best tokens at each shared end, by class. */
export async function alignedSignal(
  teacher: LanguageModel,
  corpus: AlignedCorpus,
  { inputIds, indices }: TrainingBatch,
  options: { readonly weight: number; readonly topK: number },
): Promise<TeacherSignal> {
  const asked = Math.min(options.topK, teacher.config.vocabSize);
  const topK = Math.min(asked, corpus.numClasses);
  const sequenceOffsets = [0];
  const parts: Int32Array[] = [];
  const [studentRows, logitRows]: [number[], number[]] = [[], []];
  let [numRows, numTokens] = [0, 0];
  for (const piece of indices) {
    const rows = corpus.rows.subarray(corpus.rowOffsets[piece], corpus.rowOffsets[piece + 1]);
    rows.forEach((row, token) => {
      if (row === -1) return;
      studentRows.push(numRows + token);
      logitRows.push(numTokens + row);
    });
    numRows += rows.length;
    const ids = corpus.ids.subarray(corpus.offsets[piece], corpus.offsets[piece + 1]);
    if (ids.length === 0) continue;
    parts.push(ids);
    numTokens += ids.length;
    sequenceOffsets.push(numTokens);
  }
  if (numRows !== inputIds.length) {
    throw new LimbeckError('ERR_INTERNAL', `Aligned pieces of ${numRows} tokens with a batch of ${inputIds.length}`);
  }
  const lists = {
    topK,
    indices: new Int32Array(numRows * topK).fill(-1),
    values: new Float32Array(numRows * topK),
    logSumExp: new Float32Array(numRows),
    classes: corpus.classes,
    numClasses: corpus.numClasses,
  };
  if (logitRows.length > 0) {
    const ids = new Int32Array(numTokens);
    parts.forEach((part, i) => {
      ids.set(part, sequenceOffsets[i]);
    });
    const { topK: best } = await teacher.native.forward({
      inputIds: ids,
      sequenceOffsets: Int32Array.from(sequenceOffsets),
      logits: { topK: asked },
      logitRows: Int32Array.from(logitRows),
    });
    if (best) classify({ ...best, topK: asked }, corpus.teacherClasses, studentRows, lists);
  }
  return { weight: options.weight, layerMap: [], logits: lists };
}

interface LogitLists {
  readonly topK: number;
  readonly indices: Int32Array; // [rows, topK]
  readonly values: Float32Array; // [rows, topK]
  readonly logSumExp: Float32Array; // [rows]
}

/**
 * Row i of `from` becomes row `rows[i]` of `to`. Tokens of no class are left to the rest class, since the log-sum-exp is
 * over all; the probabilities of those of one class add up.
 */
function classify(
  from: LogitLists,
  classes: Int32Array,
  rows: readonly number[],
  to: LogitLists & { readonly numClasses: number },
): void {
  const rowOf = new Int32Array(to.numClasses).fill(-1);
  const placeOf = new Int32Array(to.numClasses);
  rows.forEach((row, i) => {
    let listed = row * to.topK;
    for (let k = i * from.topK; k < (i + 1) * from.topK; k++) {
      const one = classes[from.indices[k] ?? -1] ?? -1;
      if (one === -1) continue;
      const value = from.values[k] ?? 0;
      if (rowOf[one] !== i) {
        rowOf[one] = i;
        placeOf[one] = listed;
        to.indices[listed] = one;
        to.values[listed++] = value;
        continue;
      }
      // The first is the highest.
      const place = placeOf[one] ?? 0;
      const highest = to.values[place] ?? 0;
      to.values[place] = highest + Math.log1p(Math.exp(value - highest));
    }
    to.logSumExp[row] = from.logSumExp[i] ?? 0;
  });
}
