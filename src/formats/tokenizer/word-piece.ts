/**
 * WordPiece: the longest known beginning of what is left of a word, again and again; a word with a part that is not known
 * is unknown as a whole.
 *
 * @see Devlin et al. 2019 (arXiv:1810.04805)
 */
import { invalid, type Part, readCount, readString } from './json.js';
import type { WordModel } from './word-model.js';

/** @throws LimbeckError ERR_TOKENIZER */
export function createWordPieceModel(part: Part, idOf: ReadonlyMap<string, number>): WordModel {
  const unknown = readString(part, 'unk_token', '[UNK]');
  const prefix = readString(part, 'continuing_subword_prefix', '##');
  const longestWord = readCount(part, 'max_input_chars_per_word', 100);
  const unknownId = idOf.get(unknown);
  let longestToken = 0;
  for (const token of idOf.keys()) longestToken = Math.max(longestToken, token.length);

  const pushUnknown = (ids: number[]) => {
    if (unknownId === undefined)
      throw invalid(part.place, `the vocabulary lacks the unk_token '${unknown}' for an unknown word`);
    ids.push(unknownId);
  };
  return (word, ids) => {
    if (word.length > longestWord && Array.from(word).length > longestWord) return pushUnknown(ids);
    const found: number[] = [];
    let begin = 0;
    while (begin < word.length) {
      let end = Math.min(word.length, begin + longestToken);
      let id: number | undefined;
      for (; end > begin; end--) {
        if (isInsidePair(word, end)) continue;
        const piece = word.slice(begin, end);
        id = idOf.get(begin > 0 ? prefix + piece : piece);
        if (id !== undefined) break;
      }
      if (id === undefined) return pushUnknown(ids);
      found.push(id);
      begin = end;
    }
    for (const id of found) ids.push(id);
  };
}

function isInsidePair(word: string, index: number): boolean {
  return (word.charCodeAt(index) & 0xfc00) === 0xdc00 && (word.charCodeAt(index - 1) & 0xfc00) === 0xd800;
}
