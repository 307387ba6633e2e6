/** Models of a tokenizer.json: the ids of one word. */
import { createBytePairModel } from './bpe.js';
import type { Part } from './json.js';
import { createUnigramModel } from './unigram.js';
import type { WordModel } from './word-model.js';
import { createWordPieceModel } from './word-piece.js';

export const MODEL_TYPES = ['BPE', 'WordPiece', 'Unigram'] as const;
export type ModelType = (typeof MODEL_TYPES)[number];

/** @param idOf of the model's vocabulary alone */
export function createModel(type: ModelType, part: Part, idOf: ReadonlyMap<string, number>): WordModel {
  const model = { BPE: createBytePairModel, WordPiece: createWordPieceModel, Unigram: createUnigramModel }[type](
    part,
    idOf,
  );
  return remembering(model);
}

/** Words of a text come again and again. Long ones do not, and would fill the memory. */
const MAX_REMEMBERED_WORDS = 20_000;
const MAX_REMEMBERED_LENGTH = 64;

function remembering(model: WordModel): WordModel {
  const known = new Map<string, readonly number[]>();
  return (word, ids) => {
    if (word.length > MAX_REMEMBERED_LENGTH) return model(word, ids);
    let found = known.get(word);
    if (found === undefined) {
      const fresh: number[] = [];
      model(word, fresh);
      found = fresh;
      if (known.size >= MAX_REMEMBERED_WORDS) known.clear();
      known.set(word, found);
    }
    for (const id of found) ids.push(id);
  };
}
