/** The shape of a language student. */
import type { TransformerConfig } from '../binding.js';
import { LimbeckError } from '../errors.js';
import { type ModelFamily, toHuggingFaceConfig } from '../formats/model-config.js';
import { FAMILY_STRUCTURES, type FamilyStructure } from '../teacher/family-structures.js';
import type { LanguageModel } from '../teacher/language-model.js';
import type { LanguageStudentArchitecture } from '../teacher/options.js';

/** What a student takes after. */
type Teacher = Pick<LanguageModel, 'family' | 'config' | 'tokenizer'>;

/**
 * A student over its teacher's vocabulary. In the teacher's family it is built as the teacher is; in another one, as a plain
 * model of that family, with the teacher's choice of tied or untied output.
 *
 * What the architecture leaves out is in proportion to the teacher:
 * - intermediateSize = hiddenSize · the teacher's ratio; where one of the two has a SwiGLU and the other has not, 8/3 ·
 *   hiddenSize for the SwiGLU (Shazeer 2020, arXiv:2002.05202: as many parameters as 4 · hiddenSize without a gate), and 4 ·
 *   hiddenSize for the other;
 * - numKeyValueHeads = numAttentionHeads / queries of a group of the teacher's, or the next divisor of numAttentionHeads below
 *   that; numAttentionHeads in families without groups;
 * - headDim = hiddenSize / numAttentionHeads · the teacher's ratio where that is even, without the ratio where it is not and in
 *   families without rotary positions.
 *
 * @param layers the teacher's block for each of the student: a block has a sliding window where its teacher's has
 * @throws LimbeckError ERR_INVALID_ARGUMENT for a family of the other objective and for more positions than the teacher's;
 * ERR_UNSUPPORTED_MODEL for a shape that the family cannot have; ERR_TOKENIZER for RoBERTa without a padding token
 */
export function languageStudentConfig(
  teacher: Teacher,
  family: ModelFamily,
  architecture: LanguageStudentArchitecture,
  layers: readonly number[],
): TransformerConfig {
  const { hiddenSize, numHiddenLayers, numAttentionHeads, dropout } = architecture;
  const base = family === teacher.family ? ownStructure(teacher.config, layers) : otherStructure(family, teacher);
  const { numKeyValueHeads, headDim, intermediateSize } = proportions(teacher.config, base, architecture);
  const config = {
    ...base,
    hiddenSize,
    numHiddenLayers,
    numAttentionHeads,
    numKeyValueHeads: architecture.numKeyValueHeads ?? numKeyValueHeads,
    headDim: architecture.headDim ?? headDim,
    intermediateSize: architecture.intermediateSize ?? intermediateSize,
    maxPositionEmbeddings: positionsOf(teacher.config, architecture),
    embeddingDropout: dropout,
    attentionDropout: dropout,
    hiddenDropout: dropout,
  };
  // What could not be saved at the end is refused before the first step.
  toHuggingFaceConfig(family, config);
  return config;
}

/** Blocks without a sliding window come first: as many as have a teacher's block without one. */
function ownStructure(
  { slidingWindow, maxWindowLayers = 0, ...rest }: TransformerConfig,
  layers: readonly number[],
): TransformerConfig {
  const withoutWindow = layers.filter((layer) => layer <= maxWindowLayers).length;
  if (slidingWindow === undefined || withoutWindow === layers.length) return rest;
  return { ...rest, slidingWindow, ...(withoutWindow > 0 ? { maxWindowLayers: withoutWindow } : {}) };
}

function otherStructure(
  family: ModelFamily,
  teacher: Teacher,
): FamilyStructure & Pick<TransformerConfig, 'vocabSize' | 'tieWordEmbeddings'> {
  const structure = FAMILY_STRUCTURES[family];
  const { attention, vocabSize, tieWordEmbeddings } = teacher.config;
  if (structure.attention !== attention) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `family: a ${family} is ${structure.attention}, and its teacher, a ${teacher.family}, is ${attention}: they learn ` +
        'different objectives. Choose a family of the same kind',
    );
  }
  const isRoberta = family === 'roberta' || family === 'xlm-roberta';
  return {
    ...structure,
    ...(isRoberta ? { positionOffset: paddingId(teacher) + 1 } : {}),
    vocabSize,
    tieWordEmbeddings,
  };
}

function paddingId({ tokenizer }: Teacher): number {
  if (tokenizer.padTokenId !== undefined) return tokenizer.padTokenId;
  throw new LimbeckError(
    'ERR_TOKENIZER',
    'family: RoBERTa counts positions from its padding token, and the tokenizer has none. Add <pad> to its special tokens',
  );
}

function proportions(
  teacher: TransformerConfig,
  { positions, hiddenAct }: Pick<TransformerConfig, 'positions' | 'hiddenAct'>,
  { hiddenSize, numAttentionHeads }: LanguageStudentArchitecture,
): Pick<TransformerConfig, 'numKeyValueHeads' | 'headDim' | 'intermediateSize'> {
  const isGated = hiddenAct === 'swiglu';
  const isAlike = isGated === (teacher.hiddenAct === 'swiglu');
  const ratio = isAlike ? teacher.intermediateSize / teacher.hiddenSize : isGated ? 8 / 3 : 4;
  const intermediateSize = Math.max(1, Math.round(hiddenSize * ratio));
  const evenHeadDim = hiddenSize / numAttentionHeads;
  if (positions === 'learned') return { numKeyValueHeads: numAttentionHeads, headDim: evenHeadDim, intermediateSize };

  let numKeyValueHeads = Math.max(
    1,
    Math.floor((numAttentionHeads * teacher.numKeyValueHeads) / teacher.numAttentionHeads),
  );
  while (numAttentionHeads % numKeyValueHeads !== 0) numKeyValueHeads--;
  const headDim = (evenHeadDim * teacher.headDim * teacher.numAttentionHeads) / teacher.hiddenSize;
  return { numKeyValueHeads, headDim: headDim % 2 === 0 ? headDim : evenHeadDim, intermediateSize };
}

function positionsOf(teacher: TransformerConfig, { maxPositionEmbeddings }: LanguageStudentArchitecture): number {
  if (maxPositionEmbeddings === undefined) return teacher.maxPositionEmbeddings;
  if (maxPositionEmbeddings <= teacher.maxPositionEmbeddings) return maxPositionEmbeddings;
  throw new LimbeckError(
    'ERR_INVALID_ARGUMENT',
    `architecture.maxPositionEmbeddings: expected at most the teacher's ${teacher.maxPositionEmbeddings}, which has to ` +
      `read the same texts, got ${maxPositionEmbeddings}`,
  );
}
