/** The service's HTTP interface, as the page uses it. */

/** @typedef {'view' | 'click' | 'purchase' | 'rating' | 'dismiss'} EventType */
/** @typedef {{ id: string, text: string }} CatalogueItem */
/** @typedef {{ name: string, weight: number }} Interest */
/**
 * @typedef {object} ScoredItem
 * @property {string} id
 * @property {number} score
 * @property {string} [text]
 * @property {{ item: string, weight: number }[]} [because]
 * @property {Interest[]} [interests]
 */
/**
 * @typedef {object} Recommendation
 * @property {string} requestId
 * @property {string} model
 * @property {string} [strategy]
 * @property {ScoredItem[]} items
 * @property {string[]} unknownItems
 * @property {number} latencyMs Inside the service.
 */
/** @typedef {{ current: string, models: { name: string, loaded?: boolean, numItems?: number }[] }} Models */
/** @typedef {{ userId: string, history: string[], hidden: string[] }} User */

const KEY_PLACE = 'limbeck-api-key';

/** An answer that is no success, or none at all. */
export class ApiError extends Error {
  /**
   * @param {number} status HTTP status; 0 when the service was not reached.
   * @param {string} code
   * @param {string} message
   * @param {{ requestId?: string | undefined, retryAfterSeconds?: number | undefined }} [details]
   */
  constructor(status, code, message, { requestId, retryAfterSeconds } = {}) {
    super(message);
    this.name = 'ApiError';
    this.status = status;
    this.code = code;
    this.requestId = requestId;
    this.retryAfterSeconds = retryAfterSeconds;
  }
}

/** Sends `key` events when the key changes, and `unauthorized` when the service wants one. */
export class Api extends EventTarget {
  /** Kept until the tab closes, and never written anywhere else. */
  get key() {
    return sessionStorage.getItem(KEY_PLACE) ?? '';
  }

  set key(value) {
    if (value === '') sessionStorage.removeItem(KEY_PLACE);
    else sessionStorage.setItem(KEY_PLACE, value);
    this.dispatchEvent(new Event('key'));
  }

  /** @param {string} query */
  async findItems(query, limit = 20) {
    const path = `/v1/items?query=${encodeURIComponent(query)}&limit=${limit}`;
    return /** @type {{ items: CatalogueItem[] }} */ (await this.#json('GET', path)).items;
  }

  /**
   * @param {string} userId
   * @returns {Promise<User>}
   */
  user(userId) {
    return this.#json('GET', `/v1/users/${encodeURIComponent(userId)}`);
  }

  /**
   * @param {object} request
   * @param {AbortSignal} [signal]
   * @returns {Promise<Recommendation>}
   */
  recommend(request, signal) {
    return this.#json('POST', '/v1/recommend', { texts: true, explain: true, ...request }, signal);
  }

  /**
   * @param {object} request
   * @returns {Promise<{ items: ScoredItem[] }>}
   */
  search(request) {
    return this.#json('POST', '/v1/search', request);
  }

  /**
   * @param {object} request
   * @returns {Promise<{ items: ScoredItem[] }>}
   */
  similar(request) {
    return this.#json('POST', '/v1/similar', request);
  }

  /**
   * @param {object} request
   * @param {AbortSignal} [signal]
   * @returns {Promise<{ interests: (Interest & { items: string[] })[] }>}
   */
  interests(request, signal) {
    return this.#json('POST', '/v1/interests', request, signal);
  }

  /**
   * @param {object[]} events
   * @returns {Promise<{ accepted: number, duplicates: number }>}
   */
  sendEvents(events) {
    return this.#json('POST', '/v1/events', { events });
  }

  /** @returns {Promise<Models>} */
  models() {
    return this.#json('GET', '/v1/models');
  }

  /** @param {string} name */
  loadModel(name) {
    return this.#json('POST', '/v1/models/load', { name });
  }

  /**
   * @param {string} name
   * @returns {Promise<{ current: string }>}
   */
  promoteModel(name) {
    return this.#json('POST', '/v1/models/promote', { name });
  }

  /** @returns {Promise<{ current: string }>} */
  rollBackModel() {
    return this.#json('POST', '/v1/models/rollback', {});
  }

  /** @returns {Promise<string>} Prometheus text. */
  async metrics() {
    return (await this.#request('GET', '/metrics')).text();
  }

  /**
   * @param {string} method
   * @param {string} path
   * @param {object} [body]
   * @param {AbortSignal} [signal]
   */
  async #json(method, path, body, signal) {
    const response = await this.#request(method, path, body, signal);
    try {
      return await response.json();
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ApiError(response.status, 'ERR_ANSWER', `The answer to ${method} ${path} is not JSON.`);
    }
  }

  /**
   * @param {string} method
   * @param {string} path
   * @param {object} [body]
   * @param {AbortSignal} [signal]
   */
  async #request(method, path, body, signal) {
    const { key } = this;
    /** @type {Record<string, string>} */
    const headers = {};
    if (key !== '') headers['authorization'] = `Bearer ${key}`;
    if (body !== undefined) headers['content-type'] = 'application/json';
    /** @type {Response} */
    let response;
    try {
      response = await fetch(path, {
        method,
        headers,
        cache: 'no-store',
        ...(body !== undefined && { body: JSON.stringify(body) }),
        ...(signal && { signal }),
      });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ApiError(0, 'ERR_UNREACHABLE', 'The service did not answer. It may be stopped, or the network down.');
    }
    if (response.ok) return response;
    const error = await readError(response);
    if (error.status === 401) this.dispatchEvent(new Event('unauthorized'));
    throw error;
  }
}

/** @param {Response} response */
async function readError(response) {
  const seconds = Number(response.headers.get('retry-after') ?? Number.NaN);
  /** @type {{ code?: unknown, message?: unknown, requestId?: unknown }} */
  let told = {};
  try {
    told = (await response.json()).error ?? {};
  } catch {
    // A proxy's page, or nothing: the status says what there is to say.
  }
  return new ApiError(
    response.status,
    typeof told.code === 'string' ? told.code : `HTTP ${response.status}`,
    typeof told.message === 'string' ? told.message : `The service answered with HTTP ${response.status}.`,
    {
      requestId: typeof told.requestId === 'string' ? told.requestId : undefined,
      retryAfterSeconds: Number.isFinite(seconds) ? seconds : undefined,
    },
  );
}
