/** The vocabulary of a tokenizer.json, checked, and builders from the older vocabulary files. */
import { LimbeckError } from '../errors.js';
import { type AddedToken, readAddedToken } from './tokenizer/added-tokens.js';
import { asPart, isRecord, type Json, unsupported } from './tokenizer/json.js';
import { MODEL_TYPES, type ModelType } from './tokenizer/model.js';

/** A model has a row for every id up to the largest. */
export const MAX_TOKEN_ID = 16_000_000;
/** Matching one word costs the square of its length; BERT uses 100. */
const MAX_WORD_PIECE_CHARACTERS = 200;

/** What transformers takes where tokenizer_config.json names no other. */
export const GPT2_TOKENS = { bos_token: '<|endoftext|>', eos_token: '<|endoftext|>', unk_token: '<|endoftext|>' };
export const BERT_TOKENS = {
  unk_token: '[UNK]',
  sep_token: '[SEP]',
  pad_token: '[PAD]',
  cls_token: '[CLS]',
  mask_token: '[MASK]',
};

export interface TokenizerVocabulary {
  /** Of all tokens. */
  readonly idOf: ReadonlyMap<string, number>;
  readonly tokenOf: ReadonlyMap<number, string>;
  /** Of the model's alone: an added token is never the part of a word. */
  readonly modelIdOf: ReadonlyMap<string, number>;
  readonly addedTokens: readonly AddedToken[];
  /** The largest id plus one. */
  readonly vocabSize: number;
  readonly modelType: ModelType;
}

/** @throws LimbeckError ERR_TOKENIZER with what is wrong, ERR_UNSUPPORTED_TOKENIZER for another kind of model */
export function checkTokenizerJson(json: object, source: string): TokenizerVocabulary {
  const fail = (what: string): never => {
    throw new LimbeckError('ERR_TOKENIZER', `'${source}': ${what}`);
  };
  const { model, added_tokens: addedTokens = [] } = json as Json;
  if (!isRecord(model)) return fail('expected an object "model"');
  const named = model['type'] ?? (Array.isArray(model['merges']) ? 'BPE' : 'WordPiece');
  const modelType = MODEL_TYPES.find((type) => type === named);
  if (modelType === undefined) {
    throw unsupported(`'${source}'`, `expected a BPE, WordPiece or Unigram model, got ${JSON.stringify(named)}`);
  }
  const { vocab } = model;
  if (modelType === 'Unigram' ? !Array.isArray(vocab) : !isRecord(vocab)) {
    return fail(`expected ${modelType === 'Unigram' ? 'a list' : 'an object'} "model.vocab"`);
  }
  if (!Array.isArray(addedTokens)) return fail('expected a list "added_tokens"');

  const idOf = new Map<string, number>();
  const tokenOf = new Map<number, string>();
  let largestId = -1;
  const add = (token: unknown, id: unknown): void => {
    if (typeof token !== 'string' || token === '' || !Number.isInteger(id) || (id as number) < 0) {
      fail(`expected a text with an id from 0, got ${JSON.stringify(token)} with ${JSON.stringify(id)}`);
    }
    if ((id as number) > MAX_TOKEN_ID) fail(`token ids must be at most ${MAX_TOKEN_ID}, got ${id}`);
    const taken = tokenOf.get(id as number) ?? token;
    if (taken !== token || (idOf.get(token as string) ?? id) !== id)
      fail(`token '${token}' and id ${id} are used twice`);
    idOf.set(token as string, id as number);
    tokenOf.set(id as number, token as string);
    largestId = Math.max(largestId, id as number);
  };
  if (modelType === 'Unigram') {
    (vocab as unknown[]).forEach((piece, id) => {
      const [token, score] = Array.isArray(piece) ? piece : [];
      if (typeof score !== 'number') fail(`expected a piece with its score, got ${JSON.stringify(piece)}`);
      add(token, id);
    });
  } else {
    for (const [token, id] of Object.entries(vocab as Json)) add(token, id);
  }
  const modelIdOf = new Map(idOf);
  const added = addedTokens.map((token, i) => readAddedToken(asPart(token, `'${source}': added_tokens[${i}]`)));
  for (const { content, id } of added) add(content, id);
  if (largestId < 0) fail('the vocabulary is empty');
  const wordLimit = model['max_input_chars_per_word'] ?? 0;
  if (typeof wordLimit !== 'number' || wordLimit > MAX_WORD_PIECE_CHARACTERS) {
    fail(`max_input_chars_per_word must be at most ${MAX_WORD_PIECE_CHARACTERS}, got ${JSON.stringify(wordLimit)}`);
  }
  return { idOf, tokenOf, modelIdOf, addedTokens: added, vocabSize: largestId + 1, modelType };
}

/** GPT-2's vocab.json and merges.txt as a tokenizer.json without added tokens. */
export function bytePairTokenizerJson(vocab: Json, mergesText: string): object {
  const lines = mergesText.split(/\r?\n/);
  if (lines[0]?.startsWith('#version')) lines.shift();
  return byteLevelJson(
    vocab,
    lines.filter((line) => line !== ''),
    [],
  );
}

/** A byte-level BPE tokenizer.json; those of `specialTokens` that the vocabulary has become special. */
export function byteLevelJson(vocab: Json, merges: readonly string[], specialTokens: readonly string[]): object {
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: addedTokens(vocab, specialTokens),
    normalizer: null,
    pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
    post_processor: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: false, use_regex: true },
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: '',
      end_of_word_suffix: '',
      fuse_unk: false,
      byte_fallback: false,
      vocab,
      merges,
    },
  };
}

/** BERT's vocab.txt (one token a line, ids from 0) as a tokenizer.json; `tokens` are the special ones. */
export function wordPieceTokenizerJson(
  vocabText: string,
  lowercase: boolean,
  normalizer: object = {},
  tokens: Readonly<Record<keyof typeof BERT_TOKENS, string>> = BERT_TOKENS,
) {
  const { unk_token: unk, cls_token: cls, sep_token: sep } = tokens;
  const lines = vocabText.split(/\r?\n/);
  if (lines.at(-1) === '') lines.pop();
  const vocab: Record<string, number> = Object.create(null);
  lines.forEach((token, id) => {
    vocab[token] = id;
  });
  const idOf = (token: string): number => {
    const id = vocab[token];
    if (id === undefined) throw new LimbeckError('ERR_TOKENIZER', `vocab.txt: expected the token '${token}'`);
    return id;
  };
  const special = (token: string) => ({ id: token, ids: [idOf(token)], tokens: [token] });
  const around = (sequence: string, typeId: number) => ({ Sequence: { id: sequence, type_id: typeId } });
  const mark = (token: string, typeId: number) => ({ SpecialToken: { id: token, type_id: typeId } });
  idOf(unk);
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: addedTokens(vocab, Object.values(tokens)),
    normalizer: {
      type: 'BertNormalizer',
      clean_text: true,
      handle_chinese_chars: true,
      strip_accents: null,
      lowercase,
      ...normalizer,
    },
    pre_tokenizer: { type: 'BertPreTokenizer' },
    post_processor: {
      type: 'TemplateProcessing',
      single: [mark(cls, 0), around('A', 0), mark(sep, 0)],
      pair: [mark(cls, 0), around('A', 0), mark(sep, 0), around('B', 1), mark(sep, 1)],
      special_tokens: { [cls]: special(cls), [sep]: special(sep) },
    },
    decoder: { type: 'WordPiece', prefix: '##', cleanup: true },
    model: {
      type: 'WordPiece',
      unk_token: unk,
      continuing_subword_prefix: '##',
      max_input_chars_per_word: 100,
      vocab,
    },
  };
}

function addedTokens(vocab: Json, specialTokens: readonly string[]): object[] {
  return specialTokens
    .filter((token) => Object.hasOwn(vocab, token))
    .map((token) => ({
      id: vocab[token],
      content: token,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    }))
    .sort((a, b) => (a.id as number) - (b.id as number));
}
