/** Checks of a tokenizer.json before the tokenizer library sees it, and builders from the older vocabulary files. */
import { LimbeckError } from '../errors.js';

/** Ids are array indices in the library; a single huge one would make a huge array. */
export const MAX_TOKEN_ID = 16_000_000;
/** Matching one word costs the square of its length; BERT uses 100. */
export const MAX_WORD_PIECE_CHARACTERS = 200;

/**
 * The pre-tokenisation patterns of the supported families: GPT-2, Llama 3, Qwen2, and white space. They run in linear time on any text,
 * which an unknown pattern need not.
 */
const KNOWN_PATTERNS: ReadonlySet<string> = new Set([
  "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
  '\\s+',
]);

type Json = Readonly<Record<string, unknown>>;

/** How words are cut: by merges, greedily, or by the likeliest pieces (static encoders). */
const MODEL_TYPES = ['BPE', 'WordPiece', 'Unigram'] as const;
type ModelType = (typeof MODEL_TYPES)[number];

export interface TokenizerVocabulary {
  readonly idOf: ReadonlyMap<string, number>;
  readonly tokenOf: ReadonlyMap<number, string>;
  /** The largest id plus one. */
  readonly vocabSize: number;
  readonly modelType: ModelType;
}

/** @throws LimbeckError ERR_TOKENIZER with what is wrong */
export function checkTokenizerJson(json: object, source: string): TokenizerVocabulary {
  const fail = (what: string): never => {
    throw new LimbeckError('ERR_TOKENIZER', `'${source}': ${what}`);
  };
  const { model, added_tokens: addedTokens = [], ...pipeline } = json as Json;
  if (!isRecord(model)) return fail('expected an object "model"');
  const named = model['type'] ?? (Array.isArray(model['merges']) ? 'BPE' : 'WordPiece');
  const modelType = MODEL_TYPES.find((type) => type === named);
  if (modelType === undefined) {
    return fail(`expected a BPE, WordPiece or Unigram model, got ${JSON.stringify(named)}`);
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
  for (const token of addedTokens) {
    if (!isRecord(token)) return fail('expected objects in "added_tokens"');
    add(token['content'], token['id']);
  }
  if (largestId < 0) fail('the vocabulary is empty');
  if (modelType === 'BPE') checkMerges(model, idOf, fail);
  const wordLimit = model['max_input_chars_per_word'] ?? 0;
  if (typeof wordLimit !== 'number' || wordLimit > MAX_WORD_PIECE_CHARACTERS) {
    fail(`max_input_chars_per_word must be at most ${MAX_WORD_PIECE_CHARACTERS}, got ${JSON.stringify(wordLimit)}`);
  }
  checkPatterns(pipeline, fail);
  return { idOf, tokenOf, vocabSize: largestId + 1, modelType };
}

/** Every merge joins two tokens into a third one. */
function checkMerges(model: Json, idOf: ReadonlyMap<string, number>, fail: (what: string) => never): void {
  const merges: unknown[] = Array.isArray(model['merges']) ? model['merges'] : fail('expected a list "model.merges"');
  const prefix = model['continuing_subword_prefix'] ?? '';
  if (prefix !== '') fail(`BPE with continuing_subword_prefix ${JSON.stringify(prefix)} is not supported`);
  for (const merge of merges) {
    const pair: unknown = typeof merge === 'string' ? merge.split(' ') : merge;
    const isKnown = Array.isArray(pair) && pair.length === 2 && pair.every((token) => idOf.has(token));
    if (!isKnown) fail(`expected a merge of two known tokens, got ${JSON.stringify(merge)}`);
    if (!idOf.has((pair as string[]).join('')))
      fail(`the merge ${JSON.stringify(merge)} makes a token that is not in the vocabulary`);
  }
}

/** Looks for `{ "Regex": … }` in the normaliser, the pre-tokeniser and the decoder, however deep. */
function checkPatterns(value: unknown, fail: (what: string) => never): void {
  if (typeof value !== 'object' || value === null) return;
  for (const [key, child] of Object.entries(value)) {
    if (key === 'Regex' && !KNOWN_PATTERNS.has(child as string)) {
      fail(`the pattern ${JSON.stringify(child)} is not one of the known linear-time ones`);
    }
    checkPatterns(child, fail);
  }
}

/** GPT-2's vocab.json and merges.txt as a tokenizer.json. */
export function bytePairTokenizerJson(vocab: Json, mergesText: string): object {
  const lines = mergesText.split(/\r?\n/);
  if (lines[0]?.startsWith('#version')) lines.shift();
  return byteLevelJson(
    vocab,
    lines.filter((line) => line !== ''),
    ['<|endoftext|>'],
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

/** BERT's vocab.txt (one token a line, ids from 0) as a tokenizer.json. */
export function wordPieceTokenizerJson(vocabText: string, lowercase: boolean): object {
  const tokens = vocabText.split(/\r?\n/);
  if (tokens.at(-1) === '') tokens.pop();
  const vocab: Record<string, number> = Object.create(null);
  tokens.forEach((token, id) => {
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
  idOf('[UNK]');
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: addedTokens(vocab, ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']),
    normalizer: {
      type: 'BertNormalizer',
      clean_text: true,
      handle_chinese_chars: true,
      strip_accents: null,
      lowercase,
    },
    pre_tokenizer: { type: 'BertPreTokenizer' },
    post_processor: {
      type: 'TemplateProcessing',
      single: [mark('[CLS]', 0), around('A', 0), mark('[SEP]', 0)],
      pair: [mark('[CLS]', 0), around('A', 0), mark('[SEP]', 0), around('B', 1), mark('[SEP]', 1)],
      special_tokens: { '[CLS]': special('[CLS]'), '[SEP]': special('[SEP]') },
    },
    decoder: { type: 'WordPiece', prefix: '##', cleanup: true },
    model: {
      type: 'WordPiece',
      unk_token: '[UNK]',
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

function isRecord(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
