/**
 * A client of the service, for Node and browsers: `fetch` and nothing else. Types come from the schemas that the service
 * checks requests with.
 */
import type {
  CatalogueItem,
  EventsAnswer,
  FeedbackEvent,
  InterestsAnswer,
  InterestsRequest,
  ItemsAnswer,
  ListItemsAnswer,
  ModelsAnswer,
  RecommendAnswer,
  RecommendRequest,
  SearchRequest,
  SimilarRequest,
  UserAnswer,
} from '../server/schemas.js';

export type {
  CatalogueItem,
  EventsAnswer,
  FeedbackEvent,
  InterestsAnswer,
  InterestsRequest,
  ItemsAnswer,
  ListItemsAnswer,
  ModelsAnswer,
  RecommendAnswer,
  RecommendRequest,
  SearchRequest,
  SimilarRequest,
  UserAnswer,
} from '../server/schemas.js';

export interface ClientOptions {
  /** Sent as `Authorization: Bearer KEY`. */
  readonly key?: string;
  /** How often a request is sent again after 429, 503, or no answer. @defaultValue 3 */
  readonly retries?: number;
  /** Until a request, with all that is sent again, is given up. @defaultValue 10,000 */
  readonly timeoutMs?: number;
  /** @defaultValue the global one */
  readonly fetch?: typeof fetch;
}

export interface CallOptions {
  readonly signal?: AbortSignal;
}

/** What the service refused, in its words. */
export class LimbeckClientError extends Error {
  override readonly name = 'LimbeckClientError';

  constructor(
    /** HTTP status. */
    readonly status: number,
    /** Stable, such as `ERR_UNKNOWN_ITEMS`. */
    readonly code: string,
    message: string,
    /** To look for in the service's log. */
    readonly requestId: string,
  ) {
    super(message);
  }
}

const DEFAULT_RETRIES = 3;
const DEFAULT_TIMEOUT_MS = 10_000;
/** First wait when the service does not say how long; doubled every time, and shortened at random by up to half. */
const FIRST_WAIT_MS = 100;

/**
 * @example
 * const client = new LimbeckClient('http://127.0.0.1:8080');
 * const { requestId, strategy, items } = await client.recommend({ userId: 'u1', k: 10 });
 * await client.sendEvents([{ userId: 'u1', itemId: items[0].id, type: 'click', requestId, strategy }]);
 */
export class LimbeckClient {
  readonly #url: string;
  readonly #options: ClientOptions;

  /** @param url of the service, such as `http://127.0.0.1:8080` */
  constructor(url: string | URL, options: ClientOptions = {}) {
    this.#url = String(url).replace(/\/+$/, '');
    this.#options = options;
  }

  recommend(request: RecommendRequest, options?: CallOptions): Promise<RecommendAnswer> {
    return this.#call('POST', '/v1/recommend', request, options);
  }

  similar(request: SimilarRequest, options?: CallOptions): Promise<ItemsAnswer> {
    return this.#call('POST', '/v1/similar', request, options);
  }

  search(request: SearchRequest, options?: CallOptions): Promise<ItemsAnswer> {
    return this.#call('POST', '/v1/search', request, options);
  }

  interests(request: InterestsRequest, options?: CallOptions): Promise<InterestsAnswer> {
    return this.#call('POST', '/v1/interests', request, options);
  }

  /** Events without an id are given one, so that one that is sent again counts once. */
  sendEvents(events: readonly FeedbackEvent[], options?: CallOptions): Promise<EventsAnswer> {
    const named = events.map((event) => ({ ...event, id: event.id ?? randomId() }));
    return this.#call('POST', '/v1/events', { events: named }, options);
  }

  user(userId: string, options?: CallOptions): Promise<UserAnswer> {
    return this.#call('GET', `/v1/users/${encodeURIComponent(userId)}`, undefined, options);
  }

  /** Items whose id or text has `query`, or those of these `ids`; 20 at most, or `limit`. */
  listItems(
    { query, ids, limit }: { readonly query?: string; readonly ids?: readonly string[]; readonly limit?: number } = {},
    options?: CallOptions,
  ): Promise<ListItemsAnswer> {
    if (ids?.length === 0) return Promise.resolve({ items: [] });
    const parameters = new URLSearchParams();
    if (query !== undefined) parameters.set('query', query);
    // An id that stands alone would be read as a list with commas.
    const named = ids?.length === 1 ? [...ids, ...ids] : ids;
    for (const id of named ?? []) parameters.append('ids', id);
    if (limit !== undefined) parameters.set('limit', String(limit));
    return this.#call('GET', `/v1/items?${parameters}`, undefined, options);
  }

  addItems(items: readonly CatalogueItem[], options?: CallOptions): Promise<{ added: number }> {
    return this.#call('POST', '/v1/items', { items }, options, false);
  }

  removeItems(ids: readonly string[], options?: CallOptions): Promise<{ removed: number }> {
    return this.#call('DELETE', '/v1/items', { ids }, options);
  }

  models(options?: CallOptions): Promise<ModelsAnswer> {
    return this.#call('GET', '/v1/models', undefined, options);
  }

  loadModel(name: string, options?: CallOptions): Promise<{ name: string; numItems: number }> {
    return this.#call('POST', '/v1/models/load', { name }, options);
  }

  promoteModel(name: string, options?: CallOptions): Promise<{ current: string }> {
    return this.#call('POST', '/v1/models/promote', { name }, options);
  }

  rollbackModel(options?: CallOptions): Promise<{ current: string }> {
    return this.#call('POST', '/v1/models/rollback', {}, options, false);
  }

  /** @param isRepeatable whether it may happen twice: then it is sent again when no answer came */
  async #call<Answer>(
    method: string,
    path: string,
    body: object | undefined,
    options?: CallOptions,
    isRepeatable = true,
  ): Promise<Answer> {
    const { key, retries = DEFAULT_RETRIES, timeoutMs = DEFAULT_TIMEOUT_MS } = this.#options;
    const timeout = AbortSignal.timeout(timeoutMs);
    const deadline = performance.now() + timeoutMs;
    const signal = options?.signal === undefined ? timeout : AbortSignal.any([timeout, options.signal]);
    const send = this.#options.fetch ?? fetch;
    const request = {
      method,
      signal,
      headers: {
        ...(body !== undefined && { 'content-type': 'application/json' }),
        ...(key !== undefined && { authorization: `Bearer ${key}` }),
      },
      ...(body !== undefined && { body: JSON.stringify(body) }),
    };
    for (let attempt = 0; ; attempt++) {
      let response: Response;
      let text: string;
      try {
        response = await send(this.#url + path, request);
        text = await response.text();
      } catch (error) {
        if (signal.aborted || !isRepeatable || attempt >= retries) throw error;
        await wait(backoffMs(attempt), signal);
        continue;
      }
      if (response.ok) return answerOf(response, text) as Answer;
      const waitMs = retryAfterMs(response) ?? backoffMs(attempt);
      // Waiting until the time is over would end without the reason that the service gave.
      const isTooLate = performance.now() + waitMs > deadline;
      if (!isWorthAnother(response.status) || attempt >= retries || isTooLate) throw errorOf(response, text);
      await wait(waitMs, signal);
    }
  }
}

function isWorthAnother(status: number): boolean {
  return status === 429 || status === 503;
}

/** What the header asks for, in seconds or as a date. */
function retryAfterMs(response: Response): number | undefined {
  const value = response.headers.get('retry-after');
  if (value === null || value.trim() === '') return undefined;
  const seconds = Number(value);
  const ms = Number.isNaN(seconds) ? Date.parse(value) - Date.now() : seconds * 1000;
  return Number.isNaN(ms) ? undefined : Math.max(0, ms);
}

function backoffMs(attempt: number): number {
  return FIRST_WAIT_MS * 2 ** attempt * (1 - Math.random() / 2);
}

function wait(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal.aborted) return reject(signal.reason);
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener('abort', stop);
      resolve();
    }, ms);
    signal.addEventListener('abort', stop, { once: true });
  });
}

/** @throws LimbeckClientError where a proxy in between answers with a page of its own */
function answerOf({ status }: Response, text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new LimbeckClientError(status, 'ERR_HTTP', `Expected JSON of the service, got ${status} with other text`, '');
  }
}

function errorOf({ status }: Response, text: string): LimbeckClientError {
  let error: { code?: unknown; message?: unknown; requestId?: unknown } | undefined;
  try {
    error = (JSON.parse(text) as { error?: typeof error }).error;
  } catch {
    // A proxy in between answers in words of its own.
  }
  const { code = 'ERR_HTTP', message = `The service answered ${status}`, requestId = '' } = error ?? {};
  return new LimbeckClientError(status, String(code), String(message), String(requestId));
}

/** `crypto.randomUUID` is for secure origins alone; pages are opened over plain HTTP in private networks too. */
function randomId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}
