/** What tokenizer_config.json says beside tokenizer.json. */
import { join } from 'node:path';
import { pathExists, readJsonFile } from './files.js';
import { isRecord, type Json, unsupported } from './tokenizer/json.js';

const BPE = 'BPE';
const WORD_PIECE = 'WordPiece';
/** Families whose own class takes a tokenizer.json as it is, of this model. */
const FAMILY_MODELS: Json = {
  gpt2: BPE,
  roberta: BPE,
  bert: WORD_PIECE,
  distilbert: WORD_PIECE,
  'xlm-roberta': 'Unigram',
};
/** Tokenizers of which vocabulary files say all. */
const PLAIN: Json = {
  gpt2: BPE,
  GPT2Tokenizer: BPE,
  bert: WORD_PIECE,
  distilbert: WORD_PIECE,
  BertTokenizer: WORD_PIECE,
  DistilBertTokenizer: WORD_PIECE,
};

/**
 * @param vocab token → id of the files
 * @throws LimbeckError ERR_UNSUPPORTED_TOKENIZER for vocabulary files of other tokenizers than GPT-2's and BERT's, and for
 * tokens added to them; ERR_FILE_FORMAT, ERR_IO
 */
export async function checkVocabularyFiles(
  directory: string,
  model: 'BPE' | 'WordPiece',
  config: Json,
  vocab: Json,
): Promise<void> {
  const path = join(directory, 'config.json');
  const json = (await pathExists(path)) ? (((await readJsonFile(path)) ?? {}) as Json) : {};
  const given = config['tokenizer_class'] ?? json['tokenizer_class'] ?? json['model_type'] ?? '';
  const name = typeof given === 'string' ? given : JSON.stringify(given);
  const isPlain = name === '' || PLAIN[name.replace(/Fast$/, '')] === model;
  const addedPath = join(directory, 'added_tokens.json');
  const added = isPlain && (await pathExists(addedPath)) ? (((await readJsonFile(addedPath)) ?? {}) as Json) : {};
  if (isPlain && Object.keys(added).every((token) => added[token] === vocab[token])) return;
  const what = isPlain ? 'added_tokens.json' : `the vocabulary files of ${name}`;
  throw unsupported(`'${directory}'`, `${what} cannot be read; save tokenizer.json with transformers`);
}

interface Files {
  readonly json: object;
  readonly config: object;
}

interface Described extends Files {
  readonly bosTokenId?: number;
  readonly eosTokenId?: number;
}

/** Ids that a tokenizer puts around a text. */
interface AroundText {
  readonly before: readonly number[];
  readonly after: readonly number[];
}

/**
 * The post-processor that transformers' Llama class, or GPT-2's of vocabulary files, puts in the place of tokenizer.json's,
 * where that is another: of DeepSeek's tokenizers `add_bos_token` alone says that texts begin with a token.
 */
export function postProcessorByKeys(
  { config, bosTokenId, eosTokenId }: Described,
  { before, after }: AroundText,
  isOfGpt2Files: boolean,
): object | undefined {
  const {
    tokenizer_class: name,
    add_bos_token: addsBos,
    add_eos_token: addsEos,
    bos_token,
    eos_token,
  } = config as Json;
  const isLlama = name === 'LlamaTokenizer' || name === 'LlamaTokenizerFast';
  // Of add_eos_token, transformers 4 and 5 make different tokenizers from GPT-2's files.
  const countsKeys = isLlama || (isOfGpt2Files && addsEos !== true);
  if (!countsKeys || typeof addsBos !== 'boolean') return undefined;
  const bos = addsBos ? { id: bosTokenId, token: contentOf(bos_token) } : undefined;
  const eos = addsEos === true ? { id: eosTokenId, token: contentOf(eos_token) } : undefined;
  const wanted = [bos ? [bos.id] : [], eos ? [eos.id] : []];
  if (String(wanted[0]) === String(before) && String(wanted[1]) === String(after)) return undefined;
  const marks = [bos, eos].filter((mark) => mark !== undefined);
  if (marks.some(({ id, token }) => id === undefined || token === undefined)) return undefined;
  const special = (mark: typeof bos, type_id: number) => (mark ? [{ SpecialToken: { id: mark.token, type_id } }] : []);
  const single = (id: string, type_id: number) => [
    ...special(bos, type_id),
    { Sequence: { id, type_id } },
    ...special(eos, type_id),
  ];
  return {
    type: 'TemplateProcessing',
    single: single('A', 0),
    pair: [...single('A', 0), ...single('B', 1)],
    special_tokens: Object.fromEntries(
      marks.map(({ id, token }) => [token, { id: token, ids: [id], tokens: [token] }]),
    ),
  };
}

export function contentOf(token: unknown): string | undefined {
  const content = isRecord(token) ? token['content'] : token;
  return typeof content === 'string' ? content : undefined;
}

/**
 * Refuses keys with which transformers changes what tokenizer.json says.
 *
 * @throws LimbeckError ERR_UNSUPPORTED_TOKENIZER
 */
export function checkTokenizerConfig(
  { json, config, bosTokenId, eosTokenId }: Described,
  { before, after }: AroundText,
  source: string,
): void {
  const keys = config as Json;
  const compare = (key: string, says: unknown): void => {
    if (typeof keys[key] !== 'boolean' || keys[key] === says) return;
    throw unsupported(`'${source}'`, `tokenizer_config.json says ${key} = ${keys[key]}, and tokenizer.json ${says}`);
  };
  compare('split_special_tokens', false);
  // No token is added before or after a text where none is named, and the keys may then say false alone.
  if (bosTokenId !== undefined || before.length === 0) compare('add_bos_token', isAt(before[0], bosTokenId));
  if (eosTokenId !== undefined || after.length === 0) compare('add_eos_token', isAt(after.at(-1), eosTokenId));
  const { normalizer, pre_tokenizer: words } = json as Json;
  if (isRecord(words) && words['type'] === 'ByteLevel') compare('add_prefix_space', words['add_prefix_space'] ?? true);
  // The plain class takes tokenizer.json as it is.
  if (!isRecord(normalizer) || keys['tokenizer_class'] === 'PreTrainedTokenizerFast') return;
  if (normalizer['type'] !== 'BertNormalizer') return;
  const lowercase = normalizer['lowercase'] ?? true;
  compare('do_lower_case', lowercase);
  compare('strip_accents', normalizer['strip_accents'] ?? lowercase);
  compare('tokenize_chinese_chars', normalizer['handle_chinese_chars'] ?? true);
}

function isAt(id: number | undefined, tokenId: number | undefined): boolean {
  return id !== undefined && id === tokenId;
}

/** Keys by which transformers gives a saved model the ids that it had here. */
export function keysForModel({ json, config }: Files, family: string, typeVocabSize: number): object {
  const { model } = json as { readonly model: Json };
  // Without one, transformers takes the class of the family.
  const needsClass = !('tokenizer_class' in config) && model['type'] !== FAMILY_MODELS[family];
  return {
    ...(needsClass && { tokenizer_class: 'PreTrainedTokenizerFast' }),
    // Transformers 4 gives token types by default, for which GPT-2 adds the embedding of token 0.
    ...(typeVocabSize === 0 && { model_input_names: ['input_ids', 'attention_mask'] }),
  };
}

/** Without what {@link keysForModel} adds, which changes no id. */
export function withoutModelKeys(config: object): object {
  const { tokenizer_class: _class, model_input_names: _names, ...rest } = config as Json;
  return rest;
}
