/** Tokens that tokenizer_config.json names beside tokenizer.json; they are added as transformers adds them. */
import { type AddedToken, readAddedToken } from './tokenizer/added-tokens.js';
import { asPart, isRecord, type Json, unsupported } from './tokenizer/json.js';
import { checkTokenizerJson, type TokenizerVocabulary } from './tokenizer-json.js';

/** In the order in which tokens that the vocabulary lacks get their ids. */
const NAMES = ['bos_token', 'eos_token', 'unk_token', 'sep_token', 'pad_token', 'cls_token', 'mask_token'];

interface NamedToken {
  /** By `added_tokens_decoder` with its id, by a key such as `eos_token`, or by a list such as `extra_special_tokens`. */
  readonly kind: 'described' | 'named' | 'listed';
  readonly key: string;
  readonly token: AddedToken;
}

/**
 * A tokenizer.json in which every token that the config names is an added token: with the id of the vocabulary or else the
 * next one, and as `added_tokens_decoder` describes it, or else tokenizer.json, or else the key that names it.
 *
 * @throws LimbeckError ERR_UNSUPPORTED_TOKENIZER where `added_tokens_decoder` says another id; ERR_TOKENIZER
 */
export function withNamedTokens(json: object, config: Json, source: string): object {
  const { added_tokens: listed = [] } = json as Json;
  if (!Array.isArray(listed)) return json; // refused later, as all that is wrong with a tokenizer.json
  const before = listed.map((token, i) => readAddedToken(asPart(token, `'${source}': added_tokens[${i}]`)));
  const named = namedTokens(config, `'${source}': tokenizer_config.json: `);
  const described = named.filter(({ kind }) => kind === 'described').map(({ token }) => token);
  const known = new Set([...before, ...described].map(({ content }) => content));
  // Where the config describes tokens, transformers leaves all others of tokenizer.json as they are.
  const becomesSpecial = new Set(('added_tokens_decoder' in config ? described : before).map(({ content }) => content));
  const tokens = new Map(before.map((token) => [token.content, token]));

  let vocabulary: TokenizerVocabulary | undefined;
  let nextId = 0;
  const idOf = (content: string): number => {
    if (vocabulary === undefined) {
      vocabulary = checkTokenizerJson(json, source);
      nextId = Math.max(vocabulary.modelIdOf.size, ...before.map(({ id }) => id + 1));
    }
    return vocabulary.idOf.get(content) ?? nextId++;
  };
  for (const { kind, key, token } of named) {
    const { content } = token;
    const old = tokens.get(content);
    if (kind === 'described' || !known.has(content)) {
      const id = old?.id ?? idOf(content);
      if (kind === 'described' && id !== token.id) {
        throw unsupported(
          `'${source}'`,
          `tokenizer_config.json says ${key} = '${content}', and that is token ${id}; save tokenizer.json with transformers`,
        );
      }
      tokens.set(content, { ...token, id, isSpecial: token.isSpecial || old?.isSpecial === true });
    } else if (kind === 'named' && old !== undefined && becomesSpecial.has(content)) {
      tokens.set(content, { ...old, isSpecial: true });
    }
  }
  if (before.every((token) => isSame(token, tokens.get(token.content))) && tokens.size === before.length) return json;
  return { ...json, added_tokens: [...tokens.values()].sort((a, b) => a.id - b.id).map(asJson) };
}

function isSame(a: AddedToken, b: AddedToken | undefined): boolean {
  return b !== undefined && JSON.stringify(asJson(a)) === JSON.stringify(asJson(b));
}

/** In the order in which transformers adds them. */
function namedTokens(config: Json, place: string): NamedToken[] {
  const { added_tokens_decoder: decoder, extra_special_tokens: extra, additional_special_tokens: additional } = config;
  const described = Object.entries(asPart(decoder ?? {}, `${place}added_tokens_decoder`).json).map(([id, value]) => {
    const key = `added_tokens_decoder.${id}`;
    const { json } = asPart(value, `${place}${key}`);
    const token = readAddedToken(asPart({ ...json, id: Number(id) }, `${place}${key}`));
    return { kind: 'described' as const, key, token };
  });
  const otherKeys = Object.keys(config).filter((key) => key.endsWith('_token') && !NAMES.includes(key));
  // Of two lists, transformers reads the first.
  const [list, listKey] =
    Array.isArray(extra) && extra.length > 0
      ? [extra, 'extra_special_tokens']
      : [Array.isArray(additional) ? additional : [], 'additional_special_tokens'];
  const named = [
    ...[...NAMES, ...otherKeys].map((key) => ({ kind: 'named' as const, key, value: config[key] })),
    ...Object.entries(isRecord(extra) ? extra : {}).map(([key, value]) => ({ kind: 'named' as const, key, value })),
    ...list.map((value: unknown) => ({ kind: 'listed' as const, key: listKey, value })),
  ];
  const values = named.map(({ value }) => JSON.stringify(value ?? null));
  const others = named
    // Of a token that is named in several ways, the one that is new last counts.
    .filter((_, i) => values.indexOf(values[i] as string) === i)
    .flatMap(({ kind, key, value }) => {
      const json = typeof value === 'string' ? { content: value, special: true } : value;
      // Such as a Boolean add_bos_token.
      if (!isRecord(json) || typeof json['content'] !== 'string') return [];
      const { special = false, normalized = !special } = json;
      const part = asPart({ ...json, id: 0, normalized, special: kind === 'named' || special }, `${place}${key}`);
      return [{ kind, key, token: readAddedToken(part) }];
    });
  return [...described, ...others].filter(({ token }) => token.content !== '');
}

function asJson({ id, content, isSingleWord, stripsLeft, stripsRight, isNormalized, isSpecial }: AddedToken): object {
  return {
    id,
    content,
    single_word: isSingleWord,
    lstrip: stripsLeft,
    rstrip: stripsRight,
    normalized: isNormalized,
    special: isSpecial,
  };
}
