/** What tokenizer_config.json says beside tokenizer.json: transformers builds the same tokenizer from both, or another one. */
import { join } from 'node:path';
import { pathExists, readJsonFile } from './files.js';
import { isJsonObject } from './strict-json.js';
import { isRecord, type Json, unsupported } from './tokenizer/json.js';

/** Vocabulary files without a tokenizer.json, which alone say nothing of what else a tokenizer does. */
export type VocabularyKind = 'GPT-2' | 'BERT';

const KIND_OF_CLASS: Readonly<Record<string, VocabularyKind>> = {
  GPT2Tokenizer: 'GPT-2',
  BertTokenizer: 'BERT',
  DistilBertTokenizer: 'BERT',
};
const KIND_OF_MODEL: Readonly<Record<string, VocabularyKind>> = { gpt2: 'GPT-2', bert: 'BERT', distilbert: 'BERT' };

/**
 * Checks that vocabulary files are those of GPT-2's or BERT's own tokenizer, and the whole of it.
 *
 * @throws LimbeckError ERR_UNSUPPORTED_TOKENIZER; ERR_FILE_FORMAT, ERR_IO
 */
export async function checkVocabularyKind(directory: string, kind: VocabularyKind, config: Json): Promise<void> {
  const path = join(directory, 'config.json');
  const json = (await pathExists(path)) ? await readJsonFile(path) : {};
  const model: Json = isJsonObject(json) ? json : {};
  const className = config['tokenizer_class'] ?? model['tokenizer_class'];
  const named = typeof className === 'string' ? className.replace(/Fast$/, '') : undefined;
  const family = model['model_type'];
  const found =
    named === undefined ? (typeof family === 'string' ? KIND_OF_MODEL[family] : kind) : KIND_OF_CLASS[named];
  const remedy = 'save its tokenizer.json with transformers';
  if (found !== kind) {
    throw unsupported(`'${directory}'`, `the vocabulary files of ${named ?? family} are not supported; ${remedy}`);
  }
  if (await pathExists(join(directory, 'added_tokens.json'))) {
    throw unsupported(`'${directory}'`, `added_tokens.json is not read; ${remedy}`);
  }
}

interface TokenizerOfFiles {
  /** Of tokenizer.json. */
  readonly json: object;
  /** Of tokenizer_config.json. */
  readonly config: object;
  readonly bosTokenId?: number;
  readonly eosTokenId?: number;
  encode(text: string): number[];
}

/**
 * Refuses keys of tokenizer_config.json with which transformers changes what tokenizer.json says.
 *
 * @throws LimbeckError ERR_UNSUPPORTED_TOKENIZER naming the key
 */
export function checkTokenizerConfig(tokenizer: TokenizerOfFiles, source: string): void {
  const { bosTokenId, eosTokenId } = tokenizer;
  const config = tokenizer.config as Json;
  const compare = (key: string, says: unknown): void => {
    const value = config[key];
    if (typeof value !== 'boolean' || value === says) return;
    throw unsupported(`'${source}'`, `tokenizer_config.json says ${key} = ${value}, and tokenizer.json ${says}`);
  };
  compare('split_special_tokens', false);
  const around = tokenizer.encode('');
  if (bosTokenId !== undefined) compare('add_bos_token', around[0] === bosTokenId);
  if (eosTokenId !== undefined) compare('add_eos_token', around.at(-1) === eosTokenId);
  const { normalizer, pre_tokenizer: preTokenizer } = tokenizer.json as Json;
  if (isRecord(preTokenizer) && preTokenizer['type'] === 'ByteLevel') {
    compare('add_prefix_space', preTokenizer['add_prefix_space'] ?? true);
  }
  // The plain class takes tokenizer.json as it is.
  if (isRecord(normalizer) && normalizer['type'] === 'BertNormalizer' && !isPlain(config['tokenizer_class'])) {
    const lowercase = normalizer['lowercase'] ?? true;
    compare('do_lower_case', lowercase);
    compare('strip_accents', normalizer['strip_accents'] ?? lowercase);
    compare('tokenize_chinese_chars', normalizer['handle_chinese_chars'] ?? true);
  }
}

/** Families whose own tokenizer class takes tokenizer.json as it is, and the model that it must have. */
const OWN_MODEL: Readonly<Record<string, string>> = {
  gpt2: 'BPE',
  roberta: 'BPE',
  bert: 'WordPiece',
  distilbert: 'WordPiece',
  'xlm-roberta': 'Unigram',
};

/** The keys of tokenizer_config.json by which transformers gives a saved model the ids that it had here. */
export function keysForModel(
  tokenizer: Pick<TokenizerOfFiles, 'json' | 'config'>,
  family: string,
  typeVocabSize: number,
): object {
  const { model } = tokenizer.json as Json;
  const isOwn = isRecord(model) && model['type'] === OWN_MODEL[family];
  return {
    // Without it, transformers takes the class of the model's family.
    ...('tokenizer_class' in tokenizer.config || isOwn ? {} : { tokenizer_class: 'PreTrainedTokenizerFast' }),
    // Transformers 4 gives token types by default, and GPT-2 adds the embedding of token 0 for each.
    ...(typeVocabSize === 0 ? { model_input_names: ['input_ids', 'attention_mask'] } : {}),
  };
}

/** A tokenizer_config.json without what {@link keysForModel} adds, which changes no id. */
export function withoutModelKeys(config: object): object {
  const { tokenizer_class: _class, model_input_names: _names, ...rest } = config as Json;
  return rest;
}

function isPlain(className: unknown): boolean {
  return className === 'PreTrainedTokenizerFast' || className === 'TokenizersBackend';
}
