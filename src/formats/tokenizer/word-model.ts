/** Appends the ids of a word, which is not empty, to `ids`. @throws LimbeckError ERR_TOKENIZER */
export type WordModel = (word: string, ids: number[]) => void;
