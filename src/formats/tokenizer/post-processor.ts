/** Post-processors of a tokenizer.json: what a model was trained with around a text. */
import { asPart, invalid, isRecord, type Part, readParts, typeOf, unsupported } from './json.js';

/** Ids before and after those of the text. */
export interface Surroundings {
  readonly before: readonly number[];
  readonly after: readonly number[];
}

const NOTHING: Surroundings = { before: [], after: [] };

/** @throws LimbeckError ERR_TOKENIZER, ERR_UNSUPPORTED_TOKENIZER */
export function readPostProcessor(value: unknown, place: string): Surroundings {
  if (value === null || value === undefined) return NOTHING;
  const part = asPart(value, place);
  const type = typeOf(part);
  switch (type) {
    case 'Sequence':
      return readParts(part, 'processors')
        .map(({ json, place: at }) => readPostProcessor(json, at))
        .reduce(
          (inner, outer) => ({
            before: [...outer.before, ...inner.before],
            after: [...inner.after, ...outer.after],
          }),
          NOTHING,
        );
    case 'ByteLevel':
      return NOTHING; // moves offsets alone
    case 'BertProcessing':
    case 'RobertaProcessing':
      return { before: [tokenWithId(part, 'cls')], after: [tokenWithId(part, 'sep')] };
    case 'TemplateProcessing':
      return template(part);
    default:
      throw unsupported(place, `the post-processor ${JSON.stringify(type)} is not supported`);
  }
}

function tokenWithId({ json, place }: Part, key: string): number {
  const value = json[key];
  const id: unknown = Array.isArray(value) ? value[1] : undefined;
  if (!Number.isInteger(id)) throw invalid(place, `expected "${key}" as [token, id], got ${JSON.stringify(value)}`);
  return id as number;
}

function template(part: Part): Surroundings {
  const before: number[] = [];
  const after: number[] = [];
  let numTexts = 0;
  for (const { json, place } of readParts(part, 'single')) {
    if (isRecord(json['Sequence'])) {
      numTexts++;
      continue;
    }
    const special = json['SpecialToken'];
    const name = isRecord(special) ? special['id'] : undefined;
    const known = part.json['special_tokens'];
    const entry = typeof name === 'string' && isRecord(known) && Object.hasOwn(known, name) ? known[name] : undefined;
    const ids = isRecord(entry) ? entry['ids'] : undefined;
    if (!Array.isArray(ids) || !ids.every(Number.isInteger)) {
      throw invalid(
        place,
        `expected a Sequence, or a SpecialToken with ids in "special_tokens", got ${JSON.stringify(json)}`,
      );
    }
    (numTexts === 0 ? before : after).push(...(ids as number[]));
  }
  if (numTexts !== 1) throw invalid(part.place, `expected one Sequence in "single", got ${numTexts}`);
  return { before, after };
}
