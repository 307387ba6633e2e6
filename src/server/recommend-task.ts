/** One request for recommendations on its way through the model: what it asks, and what it is answered. */
import type { z } from 'zod';
import { LimbeckError } from '../errors.js';
import type { Strategy } from '../feedback/strategy.js';
import type { Recommendation } from '../recommend/answers.js';
import type { History, HistoryRequest } from '../recommend/request.js';
import type { Student } from '../recommend/student.js';
import { HttpError } from './http-error.js';
import { parseJson } from './json-body.js';
import type { ServedModel } from './model-host.js';
import { popularItems } from './popular-items.js';
import { checked } from './route.js';
import * as schemas from './schemas.js';
import type { ServiceContext } from './service-context.js';

/** What of the service an answer needs. */
export type RecommendContext = Pick<ServiceContext, 'models' | 'feedback' | 'metrics'>;

/** A request that came. */
export interface ReceivedRequest {
  /** The body, in JSON. */
  readonly bytes: Buffer;
  /** Without characters that JSON escapes. */
  readonly requestId: string;
  /** When it came, ms. */
  readonly start: number;
  /** Takes the answer, or its JSON. */
  readonly resolve: (answer: schemas.RecommendAnswer | string) => void;
  readonly reject: (error: unknown) => void;
}

type Body = z.output<typeof schemas.recommendRequest>;

export interface RecommendTask {
  readonly received: ReceivedRequest;
  readonly body: Body;
  /** The one that is current when the task is made, whatever is promoted until it is answered. */
  readonly model: ServedModel;
  readonly request: HistoryRequest;
  readonly strategy: string | undefined;
  /** Nothing is known of the user: the list is that of the popular items, and the model is not asked. */
  readonly isPopular: boolean;
}

/** Name of the list that users get of whom nothing is known. */
const POPULAR = 'popular';

/** @throws HttpError for a request that cannot be answered */
export function taskOf(context: RecommendContext, received: ReceivedRequest): RecommendTask {
  const body = checked(schemas.recommendRequest, parseJson(received.bytes));
  const { userId, filter, candidates, boosts, seed, explain } = body;
  const model = context.models.get(body.model);
  const { student } = model;
  const history = historyOf(context, userId, body.history);
  const isPopular = history.length === 0;
  const chosen = isPopular ? undefined : chooseStrategy(context, body, received.requestId, history.length);
  const { diversity, novelty, explore } = chosen ?? body;
  // Every key, so that all requests are of one shape.
  const request: HistoryRequest = {
    history,
    k: Math.min(body.k, student.numItems),
    exclude: withHidden(context, userId, body.exclude),
    filter,
    candidates,
    diversity,
    // A student that does not know how popular its items are cannot weigh it.
    novelty: chosen === undefined || student.hasPopularity ? novelty : 0,
    explore,
    seed,
    boosts,
    explain,
  };
  return { received, body, model, request, strategy: isPopular ? POPULAR : chosen?.name, isPopular };
}

/** Answers the request. @param answer of the model, or its JSON; undefined when it was not asked */
export function finish(
  context: RecommendContext,
  task: RecommendTask,
  answer: string | Recommendation | Error | undefined,
): void {
  const { received, body, model, request } = task;
  const { requestId, start, resolve, reject } = received;
  try {
    let { strategy } = task;
    if (typeof answer === 'string' && body.texts !== true) {
      finishText(received, model, answer, strategy);
      return;
    }
    let recommendation = typeof answer === 'string' ? (JSON.parse(`{${answer}}`) as Recommendation) : answer;
    // Everything that the user chose may have left the catalogue; a client that names items had better know.
    if (answer === undefined || (body.history === undefined && isUnknownItems(answer))) {
      strategy = POPULAR;
      // The model may be gone since it was asked.
      const { student } = context.models.loaded.includes(model) ? model : context.models.current;
      recommendation = popularAnswer(context, student, request);
    }
    if (recommendation === undefined || recommendation instanceof Error) throw recommendation;
    const { items, unknownItems } = recommendation;
    resolve({
      requestId,
      model: model.name,
      strategy,
      items: body.texts === true ? withTexts(model.student, items) : items,
      unknownItems,
      latencyMs: performance.now() - start,
      // The schema's lists are mutable, the library's are not; nothing here changes them.
    } as schemas.RecommendAnswer);
  } catch (error) {
    reject(error);
  }
}

/** Answers with what never became an object. @param answer of the model: `"items":[…],"unknownItems":[…]` */
export function finishText(
  { requestId, start, resolve }: ReceivedRequest,
  model: ServedModel,
  answer: string,
  strategy?: string,
): void {
  const ranked = strategy === undefined ? '' : `"strategy":${JSON.stringify(strategy)},`;
  const latencyMs = performance.now() - start;
  resolve(
    `{"requestId":"${requestId}","model":${JSON.stringify(model.name)},${ranked}${answer},"latencyMs":${latencyMs}}`,
  );
}

/** What the request excludes, and what its user dismissed. */
function withHidden(
  { feedback }: RecommendContext,
  userId: string | undefined,
  exclude: readonly string[] = [],
): readonly string[] {
  const hidden = userId === undefined ? [] : (feedback?.hidden(userId) ?? []);
  return hidden.length === 0 ? exclude : [...exclude, ...hidden];
}

/** The service chooses how to rank for the users that it knows, unless the request says how. */
function chooseStrategy(
  { feedback }: RecommendContext,
  { userId, diversity, novelty, explore }: Body,
  requestId: string,
  historyLength: number,
): Strategy | undefined {
  if (userId === undefined || feedback === undefined) return undefined;
  if (diversity !== undefined || novelty !== undefined || explore !== undefined) return undefined;
  return feedback.chooseStrategy(requestId, historyLength);
}

/** Popular with the users of this service; the places that are left are for what the model thinks is. */
function popularAnswer(context: RecommendContext, student: Student, request: HistoryRequest): Recommendation {
  const items = popularItems(student, context.feedback, request);
  const { k = items.length, exclude = [] } = request;
  if (items.length === k) return { items, unknownItems: [] };
  try {
    const others = {
      ...request,
      history: [],
      k: k - items.length,
      exclude: [...exclude, ...items.map(({ id }) => id)],
    };
    return { items: [...items, ...student.recommend(others).items], unknownItems: [] };
  } catch (error) {
    if (!isUnknownItems(error)) throw error;
    return { items, unknownItems: [] };
  }
}

function isUnknownItems(error: unknown): boolean {
  return error instanceof LimbeckError && error.code === 'ERR_UNKNOWN_ITEMS';
}

/** The history that a request brings, or that of the user that it names. */
export function historyOf(
  { feedback }: Pick<RecommendContext, 'feedback'>,
  userId: string | undefined,
  given: History | undefined,
): History {
  if (given !== undefined) return given;
  if (userId === undefined) throw new HttpError(400, 'ERR_INVALID_ARGUMENT', 'Give a userId or a history.');
  return feedback?.history(userId) ?? [];
}

export function withTexts<Item extends { readonly id: string; readonly score: number }>(
  student: Student,
  items: readonly Item[],
): (Item & { text: string })[] {
  return items.map((item) => ({ ...item, text: student.items[student.indexOf(item.id) ?? -1]?.text ?? '' }));
}
