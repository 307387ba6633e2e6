/**
 * What the service reads and answers: the one definition that requests are checked with, that OpenAPI is written from,
 * and that the client's types come from. Unknown keys are errors.
 */
import { z } from 'zod';
import { isId, MAX_ID_BYTES } from '../feedback/event.js';

/** Most items that one answer has. */
export const MAX_K = 1000;
/** Most events that one request brings. */
export const MAX_EVENTS = 1000;

const MAX_HISTORY = 1000;
// Texts of a history, and characters of all of them: the language model reads them on the thread that answers.
const MAX_TEXTS = 100;
const MAX_TEXT_LENGTH = 10_000;

/** What the event store takes, so that what an answer names can come back in events. */
const id = z
  .string()
  .min(1)
  .max(MAX_ID_BYTES)
  .refine(isId, { error: `Invalid id: expected 1 to ${MAX_ID_BYTES} bytes of UTF-8, without lone surrogates` });
const itemId = id.describe('Id of an item.');
const userId = id.describe('Id of a user; the history is what their events tell.');
const categories = z.array(z.string().min(1).max(256)).max(1000);
const itemIds = z.array(itemId).max(10_000);
/** Of an item of a history, or of a query. */
const text = z.string().min(1).max(MAX_TEXT_LENGTH);

const history = z
  .array(z.union([itemId, z.strictObject({ text })]))
  .max(MAX_HISTORY)
  .refine(areFewTexts, {
    error: `Too big: expected at most ${MAX_TEXTS} texts, of at most ${MAX_TEXT_LENGTH} characters together`,
  })
  .describe('What the user chose, oldest first: ids, or texts of items that the catalogue does not have.');

// Nearly all histories are ids alone. Trying the union on each entry would be most of what a request's checks take.
const checkHistory = history._zod.run;
history._zod.run = (payload, context) => (isIdHistory(payload.value) ? payload : checkHistory(payload, context));

function areFewTexts(history: readonly (string | { readonly text: string })[]): boolean {
  const lengths = history.filter((entry) => typeof entry !== 'string').map(({ text }) => text.length);
  // Of one that is too long by itself, that is said.
  const isOneTooLong = lengths.some((length) => length > MAX_TEXT_LENGTH);
  const sum = lengths.reduce((total, length) => total + length, 0);
  return lengths.length <= MAX_TEXTS && (isOneTooLong || sum <= MAX_TEXT_LENGTH);
}

/** Whether a value is a history of ids: what the schema takes as it is. */
function isIdHistory(value: unknown): boolean {
  if (!Array.isArray(value) || value.length > MAX_HISTORY) return false;
  return value.every(isId);
}

const filter = z
  .strictObject({ any: categories.optional(), all: categories.optional(), none: categories.optional() })
  .describe('Categories of which an item must have any or all, and those that it must not have.');

const k = z.int().min(1).max(MAX_K).describe('How many items at most.').default(10);

/** Letters, digits, dots, dashes and underscores: never a path. */
export const modelName = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/, 'expected 1 to 128 letters, digits, dots, dashes or underscores')
  .describe('Name of a model, as GET /v1/models lists them.');

export const recommendRequest = z.strictObject({
  userId: userId.optional(),
  history: history.optional(),
  k,
  exclude: itemIds.optional().describe('Never in the answer.'),
  filter: filter.optional(),
  candidates: itemIds.optional().describe('Only these may be in the answer.'),
  diversity: z.number().min(0).max(1).optional().describe('0: relevance alone; 1: as different as can be.'),
  novelty: z.number().min(0).max(100).optional().describe('Weight of −log popularity.'),
  explore: z.number().min(0).max(1).optional().describe('Share of the places that sampling gives.'),
  seed: z
    .int()
    .min(0)
    .max(2 ** 32 - 1)
    .optional()
    .describe('Of the sampling.'),
  boosts: z.record(itemId, z.number()).optional().describe('Added to the scores of these items.'),
  explain: z.boolean().optional().describe('Whether to say what each item came from.'),
  texts: z.boolean().optional().describe("Whether to give the items' texts."),
  model: modelName.optional().describe('A loaded model other than the current one.'),
});

export const similarRequest = z.strictObject({
  item: itemId,
  k,
  filter: filter.optional(),
  exclude: itemIds.optional(),
});

export const searchRequest = z.strictObject({
  text,
  userId: userId.optional(),
  history: history.optional(),
  k,
  filter: filter.optional(),
});

export const interestsRequest = z.strictObject({
  userId: userId.optional(),
  history: history.optional(),
  k: z.int().min(1).max(100).describe('How many interests at most.').default(5),
});

export const feedbackEvent = z.strictObject({
  id: id.optional().describe("The client's own id: an event that comes twice counts once."),
  userId,
  itemId,
  type: z.enum(['view', 'click', 'purchase', 'rating', 'dismiss']),
  value: z.number().min(1).max(5).optional().describe('Of a rating, and only of one.'),
  time: z.int().min(0).max(8.64e15).optional().describe('ms since epoch; without it, the time of receipt.'),
  strategy: id.optional().describe('As the answer that showed the item named it.'),
  requestId: id.optional().describe('Of the answer that showed the item.'),
});

export const eventsRequest = z.strictObject({ events: z.array(feedbackEvent).min(1).max(MAX_EVENTS) });

const catalogueItem = z.strictObject({
  id: itemId,
  text,
  categories: categories.optional(),
  hidden: z.boolean().optional().describe('Known in histories, and never recommended.'),
  boost: z.number().optional().describe('Added to the score.'),
  publishedAt: z.int().optional().describe('ms since epoch.'),
});

export const addItemsRequest = z.strictObject({ items: z.array(catalogueItem).min(1).max(100) });
export const removeItemsRequest = z.strictObject({ ids: z.array(itemId).min(1).max(1000) });
export const listItemsQuery = z.strictObject({
  query: z.string().max(256).optional().describe('A part of the id or the text, in any case.'),
  ids: z
    .union([z.string().min(1).max(8192), z.array(itemId).max(MAX_K)])
    .optional()
    .describe(
      'These items, each once, in this order; those that are unknown are left out. One id a parameter; where there is one ' +
        'parameter alone, it is a list of ids separated by commas.',
    ),
  limit: z.coerce.number().int().min(1).max(MAX_K).default(20),
});
export const userParams = z.strictObject({ id: userId });
export const modelRequest = z.strictObject({ name: modelName });
export const noBody = z.strictObject({});

// ── Answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────

const requestId = z.string().describe('Names this answer in events and in the log.');
const scored = { id: z.string(), score: z.number(), text: z.string().optional() };
const scoredItems = z.array(z.object(scored));

export const recommendAnswer = z.object({
  requestId,
  model: z.string(),
  strategy: z.string().optional().describe('How the list was ranked, where the service chose.'),
  items: z.array(
    z.object({
      ...scored,
      because: z
        .array(z.object({ item: z.string(), weight: z.number() }))
        .optional()
        .describe('Items of the history that the score came from.'),
      interests: z.array(z.object({ name: z.string(), weight: z.number() })).optional(),
    }),
  ),
  unknownItems: z.array(z.string()).describe('Ids of the history that the model does not know.'),
  latencyMs: z.number().describe('Time that the answer took inside the service.'),
});
export const itemsAnswer = z.object({ items: scoredItems });
export const interestsAnswer = z.object({
  interests: z.array(z.object({ name: z.string(), weight: z.number(), items: z.array(z.string()) })),
});
export const eventsAnswer = z.object({ accepted: z.int(), duplicates: z.int() });
export const addItemsAnswer = z.object({ added: z.int() });
export const removeItemsAnswer = z.object({ removed: z.int() });
export const listItemsAnswer = z.object({
  items: z.array(z.object({ id: z.string(), text: z.string(), categories: z.array(z.string()).optional() })),
});
export const userAnswer = z.object({ userId: z.string(), history: z.array(z.string()), hidden: z.array(z.string()) });
export const modelsAnswer = z.object({
  current: z.string().describe('The one that answers.'),
  promoted: z
    .string()
    .describe("The registry's current one: another until the service has loaded it, or because it refused it."),
  models: z.array(z.object({ name: z.string(), loaded: z.boolean(), numItems: z.int().optional() })),
});
export const currentModelAnswer = z.object({ current: z.string() });
export const loadedModelAnswer = z.object({ name: z.string(), numItems: z.int() });
export const healthAnswer = z.object({ status: z.enum(['ok', 'unavailable']), reason: z.string().optional() });
export const errorAnswer = z.object({
  error: z.object({ code: z.string(), message: z.string(), requestId: z.string() }),
});

export type RecommendRequest = z.input<typeof recommendRequest>;
export type SimilarRequest = z.input<typeof similarRequest>;
export type SearchRequest = z.input<typeof searchRequest>;
export type InterestsRequest = z.input<typeof interestsRequest>;
export type FeedbackEvent = z.input<typeof feedbackEvent>;
export type CatalogueItem = z.input<typeof catalogueItem>;
export type RecommendAnswer = z.output<typeof recommendAnswer>;
export type ItemsAnswer = z.output<typeof itemsAnswer>;
export type InterestsAnswer = z.output<typeof interestsAnswer>;
export type EventsAnswer = z.output<typeof eventsAnswer>;
export type ListItemsAnswer = z.output<typeof listItemsAnswer>;
export type UserAnswer = z.output<typeof userAnswer>;
export type ModelsAnswer = z.output<typeof modelsAnswer>;
