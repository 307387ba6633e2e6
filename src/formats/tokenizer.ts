/** Text to token ids and back, for the models that the supported families use: BPE, WordPiece and Unigram. */

import { join } from 'node:path';
import { LimbeckError } from '../errors.js';
import { makeDirectory, pathExists, readJsonFile, readTextFile, writeFileAtomic } from './files.js';
import { withNamedTokens } from './named-tokens.js';
import { isJsonObject } from './strict-json.js';
import { createSplitter } from './tokenizer/added-tokens.js';
import { cleanUpSpaces, readDecoder } from './tokenizer/decoder.js';
import { asPart, type Json } from './tokenizer/json.js';
import { createModel } from './tokenizer/model.js';
import { readNormalizer } from './tokenizer/normalizer.js';
import { readPostProcessor } from './tokenizer/post-processor.js';
import { readPreTokenizer } from './tokenizer/pre-tokenizer.js';
import { checkTokenizerConfig, checkVocabularyFiles, contentOf, postProcessorByKeys } from './tokenizer-config.js';
import {
  BERT_TOKENS,
  bytePairTokenizerJson,
  checkTokenizerJson,
  GPT2_TOKENS,
  wordPieceTokenizerJson,
} from './tokenizer-json.js';

export interface EncodeOptions {
  /** Adds what the model was trained with around a text, such as BERT's [CLS] and [SEP]. @defaultValue true */
  readonly addSpecialTokens?: boolean;
}

export interface DecodeOptions {
  /** @defaultValue false */
  readonly skipSpecialTokens?: boolean;
}

export interface Tokenizer {
  /** The largest id plus one. */
  readonly vocabSize: number;
  readonly bosTokenId?: number;
  readonly eosTokenId?: number;
  readonly maskTokenId?: number;
  readonly padTokenId?: number;
  /** The content of tokenizer.json. */
  readonly json: object;
  /** The content of tokenizer_config.json, with the special tokens that it leaves out. */
  readonly config: object;
  /** @throws LimbeckError ERR_TOKENIZER when a part of the text has no token */
  encode(text: string, options?: EncodeOptions): number[];
  /** @throws LimbeckError ERR_TOKENIZER for an id without a token */
  decode(ids: Iterable<number>, options?: DecodeOptions): string;
  /** Writes tokenizer.json and tokenizer_config.json. @param keys of tokenizer_config.json beside {@link config} */
  save(directory: string, keys?: object): Promise<void>;
}

/** Used where tokenizer_config.json does not say; only names that the vocabulary has count. */
const USUAL_TOKENS = {
  bos_token: [],
  eos_token: ['<|endoftext|>', '</s>', '<|end_of_text|>'],
  mask_token: ['[MASK]', '<mask>'],
  pad_token: ['[PAD]', '<pad>'],
} as const;

/**
 * Reads `tokenizer.json`, or else GPT-2's `vocab.json` and `merges.txt`, or else BERT's `vocab.txt`.
 *
 * @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_TOKENIZER, ERR_UNSUPPORTED_TOKENIZER, ERR_FILE_FORMAT, ERR_IO
 */
export async function loadTokenizer(directory: string): Promise<Tokenizer> {
  const files = await readTokenizerFiles(directory, await readTokenizerConfig(directory));
  const { config } = files;
  let json = withNamedTokens(files.json, config, directory);
  let tokenizer = createTokenizer(json, config, directory);
  const post_processor = postProcessorByKeys(tokenizer, postProcessorOf(json, directory), files.isGpt2);
  if (post_processor !== undefined) {
    json = { ...json, post_processor };
    tokenizer = createTokenizer(json, config, directory);
  }
  checkTokenizerConfig(tokenizer, postProcessorOf(json, directory), directory);
  return tokenizer;
}

/** As transformers reads it: with special_tokens_map.json, unless tokenizer_config.json describes its tokens itself. */
async function readTokenizerConfig(directory: string): Promise<Json> {
  const config = await readOptionalObject(join(directory, 'tokenizer_config.json'));
  if ('added_tokens_decoder' in config) return config;
  const map = Object.entries(await readOptionalObject(join(directory, 'special_tokens_map.json')));
  const lists = Array.isArray(config['extra_special_tokens'])
    ? []
    : map.filter(([key]) => key.endsWith('_special_tokens'));
  const tokens = map.filter(([key]) => key.endsWith('_token'));
  return { ...Object.fromEntries(lists), ...config, ...Object.fromEntries(tokens) };
}

/** Nothing where there is no file. @throws LimbeckError ERR_TOKENIZER, ERR_FILE_FORMAT, ERR_IO */
async function readOptionalObject(path: string): Promise<Json> {
  const json = (await pathExists(path)) ? await readJsonFile(path) : {};
  if (isJsonObject(json)) return json;
  throw new LimbeckError('ERR_TOKENIZER', `'${path}': expected a JSON object`);
}

/** Whether a directory holds the files of a tokenizer. @throws LimbeckError ERR_IO */
export async function hasTokenizer(directory: string): Promise<boolean> {
  for (const file of ['tokenizer.json', 'vocab.json', 'vocab.txt']) {
    if (await pathExists(join(directory, file))) return true;
  }
  return false;
}

/**
 * Builds the tokenizer that a tokenizer.json describes (for example one from `trainBytePairTokenizer`); `source` is named
 * in messages. Its ids are those of the Rust tokenizers for every text; a lone surrogate counts as U+FFFD, and what the
 * file says about truncation and padding is left to the caller.
 *
 * @throws LimbeckError ERR_TOKENIZER, ERR_UNSUPPORTED_TOKENIZER
 */
export function createTokenizer(json: object, config: object = {}, source = 'tokenizer.json'): Tokenizer {
  const { idOf, tokenOf, modelIdOf, addedTokens, vocabSize, modelType } = checkTokenizerJson(json, source);
  const parts = json as Json;
  const placeOf = (key: string) => `'${source}': ${key}`;
  const split = createSplitter(
    addedTokens,
    readNormalizer(parts['normalizer'], placeOf('normalizer')),
    placeOf('added_tokens'),
  );
  const preTokenize = readPreTokenizer(parts['pre_tokenizer'], placeOf('pre_tokenizer'));
  const model = createModel(modelType, asPart(parts['model'], placeOf('model')), modelIdOf);
  const { before, after } = postProcessorOf(json, source);
  const decodeTokens = readDecoder(parts['decoder'], placeOf('decoder'));
  const specialIds = new Set(addedTokens.filter(({ isSpecial }) => isSpecial).map(({ id }) => id));
  const settings: Record<string, unknown> = { ...config };

  const specialId = (key: keyof typeof USUAL_TOKENS): number | undefined => {
    const named = contentOf(settings[key]);
    if (named !== undefined) return idOf.get(named);
    const usual = (USUAL_TOKENS[key] as readonly string[]).find((token) => idOf.has(token));
    if (usual === undefined) return undefined;
    // So that the tokenizer is saved with the name; by it transformers would cut the token out of texts, too.
    if (addedTokens.some(({ content }) => content === usual)) settings[key] = usual;
    return idOf.get(usual);
  };
  const bosTokenId = specialId('bos_token');
  const eosTokenId = specialId('eos_token');
  const maskTokenId = specialId('mask_token');
  const padTokenId = specialId('pad_token');

  const tokenizer: Tokenizer = {
    vocabSize,
    ...(bosTokenId === undefined ? {} : { bosTokenId }),
    ...(eosTokenId === undefined ? {} : { eosTokenId }),
    ...(maskTokenId === undefined ? {} : { maskTokenId }),
    ...(padTokenId === undefined ? {} : { padTokenId }),
    json,
    config: settings,
    encode(text, { addSpecialTokens = true } = {}) {
      const ids = addSpecialTokens ? [...before] : [];
      for (const section of split(text.toWellFormed())) {
        if (typeof section === 'number') ids.push(section);
        else
          for (const word of preTokenize({ texts: [section.text], isStart: section.isStart }).texts) model(word, ids);
      }
      if (addSpecialTokens) ids.push(...after);
      return ids;
    },
    decode(ids, { skipSpecialTokens = false } = {}) {
      const tokens: string[] = [];
      for (const id of ids) {
        const token = tokenOf.get(id);
        if (token === undefined) throw new LimbeckError('ERR_TOKENIZER', `'${source}' has no token with id ${id}`);
        if (!skipSpecialTokens || !specialIds.has(id)) tokens.push(token);
      }
      const text = decodeTokens(tokens).join('');
      return settings['clean_up_tokenization_spaces'] === true ? cleanUpSpaces(text) : text;
    },
    async save(target, keys = {}) {
      await makeDirectory(target);
      await writeFileAtomic(join(target, 'tokenizer.json'), `${JSON.stringify(json)}\n`);
      await writeFileAtomic(
        join(target, 'tokenizer_config.json'),
        `${JSON.stringify({ ...settings, ...keys }, null, 2)}\n`,
      );
    },
  };
  reproducible.add(tokenizer);
  return tokenizer;
}

const reproducible = new WeakSet<Tokenizer>();

/** Whether {@link createTokenizer} made it, so that its `json` and `config` make one that does the same. */
export function isReproducible(tokenizer: Tokenizer): boolean {
  return reproducible.has(tokenizer);
}

/**
 * Checks that a model has a row for every token.
 *
 * @throws LimbeckError ERR_TOKENIZER when an id is not below `vocabSize`
 */
export function checkVocabulary(tokenizer: Tokenizer, vocabSize: number): void {
  if (tokenizer.vocabSize <= vocabSize) return;
  throw new LimbeckError(
    'ERR_TOKENIZER',
    `The tokenizer has ids up to ${tokenizer.vocabSize - 1}, the model a vocabulary of ${vocabSize}; ` +
      'they come from different checkpoints',
  );
}

/**
 * Checks that the tokenizer has a token for each special id of a config.json; `null` and -1 mean that there is none.
 *
 * @throws LimbeckError ERR_TOKENIZER naming the key
 */
export function checkSpecialTokens(tokenizer: Tokenizer, huggingFace: object): void {
  const values = huggingFace as Readonly<Record<string, unknown>>;
  for (const key of ['bos', 'eos', 'pad', 'unk', 'sep', 'cls', 'mask'].map((token) => `${token}_token_id`)) {
    if (!Object.hasOwn(values, key)) continue;
    for (const id of [values[key]].flat()) {
      if (id === null || id === -1) continue;
      try {
        tokenizer.decode([id as number]);
      } catch (error) {
        throw new LimbeckError(
          'ERR_TOKENIZER',
          `config.json names ${key} = ${JSON.stringify(id)}, and the tokenizer has no such token; ` +
            'they come from different checkpoints',
          { cause: error },
        );
      }
    }
  }
}

function postProcessorOf(json: object, source: string): ReturnType<typeof readPostProcessor> {
  return readPostProcessor((json as Json)['post_processor'], `'${source}': post_processor`);
}

/**
 * Ids that `encode` gave, cut to `maxLength`: what it puts after every text, such as BERT's [SEP], stays the end, as the
 * model was trained to read texts.
 */
export function truncateIds<Ids extends number[] | Int32Array>(tokenizer: Tokenizer, ids: Ids, maxLength: number): Ids {
  if (ids.length <= maxLength) return ids;
  const { after } = postProcessorOf(tokenizer.json, 'tokenizer.json');
  const cut = ids.slice(0, maxLength) as Ids;
  after.slice(-maxLength).forEach((id, i, { length }) => {
    cut[maxLength - length + i] = id;
  });
  return cut;
}

/** Whether an id has a token. */
export function hasToken(tokenizer: Tokenizer, id: number): boolean {
  try {
    tokenizer.decode([id]);
    return true;
  } catch (error) {
    if (error instanceof LimbeckError && error.code === 'ERR_TOKENIZER') return false;
    throw error;
  }
}

/** Reads tokenizer.json alone. @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_TOKENIZER, ERR_FILE_FORMAT, ERR_IO */
export async function readTokenizerJson(directory: string): Promise<object> {
  const path = join(directory, 'tokenizer.json');
  const json = await readJsonFile(path);
  if (isJsonObject(json)) return json;
  throw new LimbeckError('ERR_TOKENIZER', `'${path}': expected a JSON object`);
}

interface TokenizerFiles {
  readonly json: object;
  readonly config: Json;
  /** Of vocab.json and merges.txt. */
  readonly isGpt2: boolean;
}

async function readTokenizerFiles(directory: string, config: Json): Promise<TokenizerFiles> {
  const path = (name: string) => join(directory, name);
  if (await pathExists(path('tokenizer.json'))) {
    return { json: await readTokenizerJson(directory), config, isGpt2: false };
  }
  if ((await pathExists(path('vocab.json'))) && (await pathExists(path('merges.txt')))) {
    const vocab = await readJsonFile(path('vocab.json'));
    if (!isJsonObject(vocab))
      throw new LimbeckError('ERR_TOKENIZER', `'${path('vocab.json')}': expected a JSON object`);
    await checkVocabularyFiles(directory, 'BPE', config, vocab);
    const json = bytePairTokenizerJson(vocab, await readTextFile(path('merges.txt')));
    return { json, config: { ...tokensOf(vocab, GPT2_TOKENS), ...config }, isGpt2: true };
  }
  if (await pathExists(path('vocab.txt'))) {
    const tokens = { ...BERT_TOKENS };
    for (const key of Object.keys(tokens) as (keyof typeof tokens)[])
      tokens[key] = contentOf(config[key]) ?? tokens[key];
    const normalizer = {
      strip_accents: config['strip_accents'] ?? null,
      handle_chinese_chars: config['tokenize_chinese_chars'] !== false,
    };
    const lowercase = config['do_lower_case'] !== false;
    const json = wordPieceTokenizerJson(await readTextFile(path('vocab.txt')), lowercase, normalizer, tokens);
    await checkVocabularyFiles(directory, 'WordPiece', config, json.model.vocab);
    const named = { ...tokensOf(json.model.vocab, BERT_TOKENS), ...config };
    return { json: { ...json, added_tokens: [] }, config: named, isGpt2: false };
  }
  throw new LimbeckError(
    'ERR_FILE_NOT_FOUND',
    `Expected tokenizer.json, or vocab.json with merges.txt, or vocab.txt in '${directory}'`,
  );
}

/** Those of the names that a vocabulary has. */
function tokensOf(vocab: Json, names: Readonly<Record<string, string>>): Json {
  return Object.fromEntries(Object.entries(names).filter(([, token]) => Object.hasOwn(vocab, token)));
}
