/** Routes that answer from the model: synchronously, so that a model is never swapped under a request. */
import { LimbeckError } from '../errors.js';
import type { Recommendation } from '../recommend/answers.js';
import type { History, RecommendRequest as StudentRequest } from '../recommend/request.js';
import type { Student } from '../recommend/student.js';
import { HttpError } from './http-error.js';
import { popularItems } from './popular-items.js';
import { defineRoute, type Route } from './route.js';
import * as schemas from './schemas.js';
import type { ServiceContext } from './service-context.js';

/** What a request asks of the model besides a history. */
type Wishes = Omit<StudentRequest, 'history'>;

interface ChosenStrategy {
  readonly name: string;
  readonly weights: Pick<StudentRequest, 'diversity' | 'novelty' | 'explore'>;
}

/** The list that users get of whom nothing is known. */
const POPULAR: ChosenStrategy = { name: 'popular', weights: { diversity: 0, novelty: 0, explore: 0 } };

export function recommendRoutes(context: ServiceContext): Route[] {
  const { models, metrics } = context;
  return [
    defineRoute(
      {
        method: 'POST',
        url: '/v1/recommend',
        summary: 'The best items for a user, or after a history',
        scope: 'read',
        body: schemas.recommendRequest,
        answer: schemas.recommendAnswer,
        errors: [404, 422],
      },
      ({ body, request }) => {
        const start = performance.now();
        const { userId, history: given, model: name, texts = false, ...wishes } = body;
        const { name: model, student } = models.get(name);
        const history = historyOf(context, userId, given);
        // Keys that a request left out are not there, which its type cannot say.
        const options = wishes as Wishes & { k: number; exclude: readonly string[] };
        options.k = Math.min(options.k, student.numItems);
        options.exclude = withHidden(context, userId, wishes.exclude);
        let strategy = chooseStrategy(context, student, request.id, userId, options, history.length);
        let answer: Recommendation;
        if (strategy === POPULAR) {
          answer = popularAnswer(context, student, options);
        } else {
          try {
            answer = student.recommend({ ...options, ...strategy?.weights, history });
          } catch (error) {
            // Everything that the user chose may have left the catalogue; a client that names items had better know.
            if (given !== undefined || !isUnknownItems(error)) throw error;
            strategy = POPULAR;
            answer = popularAnswer(context, student, options);
          }
        }
        const latencyMs = performance.now() - start;
        metrics.observeRecommend(latencyMs / 1000);
        return {
          requestId: request.id,
          model,
          strategy: strategy?.name,
          items: texts ? withTexts(student, answer.items) : answer.items,
          unknownItems: answer.unknownItems,
          latencyMs,
          // The schema's lists are mutable, the library's are not; nothing here changes them.
        } as schemas.RecommendAnswer;
      },
    ),
    defineRoute(
      {
        method: 'POST',
        url: '/v1/similar',
        summary: 'Items like one item',
        scope: 'read',
        body: schemas.similarRequest,
        answer: schemas.itemsAnswer,
        errors: [404],
      },
      ({ body: { item, ...options } }) => {
        const { student } = models.current;
        if (student.indexOf(item) === undefined)
          throw new HttpError(404, 'ERR_NOT_FOUND', `There is no item '${item}'.`);
        const items = student.similar(item, { ...options, k: Math.min(options.k, student.numItems) });
        return { items: withTexts(student, items) };
      },
    ),
    defineRoute(
      {
        method: 'POST',
        url: '/v1/search',
        summary: 'Items that a text asks for, by meaning; nearer to the taste of a user, where there is one',
        scope: 'read',
        body: schemas.searchRequest,
        answer: schemas.itemsAnswer,
        errors: [422],
      },
      ({ body: { text, userId, history: given, ...options } }) => {
        const { student } = models.current;
        const history = userId === undefined && given === undefined ? [] : historyOf(context, userId, given);
        const k = Math.min(options.k, student.numItems);
        const items = student.search(text, { ...options, k, ...(history.length > 0 && { history }) });
        return { items: withTexts(student, items) };
      },
    ),
    defineRoute(
      {
        method: 'POST',
        url: '/v1/interests',
        summary: 'What a history tells of its user',
        scope: 'read',
        body: schemas.interestsRequest,
        answer: schemas.interestsAnswer,
        errors: [422],
      },
      ({ body: { userId, history: given, k } }) => {
        const history = historyOf(context, userId, given);
        const interests = history.length === 0 ? [] : models.current.student.interests(history, { k });
        return { interests } as schemas.InterestsAnswer;
      },
    ),
  ];
}

/** The history that a request brings, or that of the user that it names. */
function historyOf({ feedback }: ServiceContext, userId: string | undefined, given: History | undefined): History {
  if (given !== undefined) return given;
  if (userId === undefined) throw new HttpError(400, 'ERR_INVALID_ARGUMENT', 'Give a userId or a history.');
  return feedback?.history(userId) ?? [];
}

/** What the request excludes, and what its user dismissed. */
function withHidden(
  { feedback }: ServiceContext,
  userId: string | undefined,
  exclude: readonly string[] = [],
): readonly string[] {
  const hidden = userId === undefined ? [] : (feedback?.hidden(userId) ?? []);
  return hidden.length === 0 ? exclude : [...exclude, ...hidden];
}

/** The service chooses how to rank for the users that it knows, unless the request says how. */
function chooseStrategy(
  { feedback }: ServiceContext,
  { hasPopularity }: Student,
  requestId: string,
  userId: string | undefined,
  { diversity, novelty, explore }: Wishes,
  historyLength: number,
): ChosenStrategy | undefined {
  if (historyLength === 0) return POPULAR;
  if (userId === undefined || feedback === undefined) return undefined;
  if (diversity !== undefined || novelty !== undefined || explore !== undefined) return undefined;
  const { name, ...weights } = feedback.chooseStrategy(requestId, historyLength);
  // A student that does not know how popular its items are cannot weigh it.
  return { name, weights: hasPopularity ? weights : { ...weights, novelty: 0 } };
}

/** Popular with the users of this service; without any, what the model thinks is. */
function popularAnswer(context: ServiceContext, student: Student, options: Wishes): Recommendation {
  const items = popularItems(student, context.feedback, options);
  if (items.length > 0) return { items, unknownItems: [] };
  try {
    return student.recommend({ ...options, history: [] });
  } catch (error) {
    if (!isUnknownItems(error)) throw error;
    return { items: [], unknownItems: [] };
  }
}

function withTexts<Item extends { readonly id: string; readonly score: number }>(
  student: Student,
  items: readonly Item[],
): (Item & { text: string })[] {
  return items.map((item) => ({ ...item, text: student.items[student.indexOf(item.id) ?? -1]?.text ?? '' }));
}

function isUnknownItems(error: unknown): boolean {
  return error instanceof LimbeckError && error.code === 'ERR_UNKNOWN_ITEMS';
}
