/** @import { Sample } from './prometheus.js' */
import { bucketsOf, parseMetrics, quantileBetween, sumOf } from './prometheus.js';

const REQUESTS = 'limbeck_http_request_duration_seconds';
/** The page's own reading is no traffic. */
const isTraffic = (/** @type {Record<string, string>} */ { route }) => route !== '/metrics';
const isRecommendation = (/** @type {Record<string, string>} */ { route }) => route === '/v1/recommend';
/** What is refused before it has a route is not among the requests. */
const isShedEarly = (/** @type {Record<string, string>} */ { reason }) => reason === 'queue';

/**
 * What happened between two readings of `/metrics`.
 *
 * @typedef {object} Interval
 * @property {number} requestsPerSecond
 * @property {number | undefined} p50Ms Of `/v1/recommend`; undefined without a request.
 * @property {number | undefined} p99Ms
 * @property {number} unavailable Answers with 503.
 */

/** One reading of `/metrics`. */
export class Reading {
  #timeMs;
  #samples;

  /**
   * @param {string} text Prometheus text.
   * @param {number} timeMs When it was read; any monotonic clock.
   */
  constructor(text, timeMs) {
    /** @type {Sample[]} */
    this.#samples = parseMetrics(text);
    this.#timeMs = timeMs;
  }

  /**
   * @param {Reading} before
   * @returns {Interval | undefined} undefined when the service began anew in between.
   */
  since(before) {
    const seconds = (this.#timeMs - before.#timeMs) / 1000;
    const requests = this.#requests - before.#requests;
    if (requests < 0 || seconds <= 0) return undefined;
    const from = bucketsOf(before.#samples, REQUESTS, isRecommendation);
    const to = bucketsOf(this.#samples, REQUESTS, isRecommendation);
    const quantileMs = (/** @type {number} */ q) => {
      const quantile = quantileBetween(from, to, q);
      return quantile === undefined ? undefined : quantile * 1000;
    };
    return {
      requestsPerSecond: requests / seconds,
      p50Ms: quantileMs(0.5),
      p99Ms: quantileMs(0.99),
      unavailable: this.#unavailable - before.#unavailable,
    };
  }

  get isReady() {
    return sumOf(this.#samples, 'limbeck_ready') > 0;
  }

  get numItems() {
    return sumOf(this.#samples, 'limbeck_items');
  }

  get numUsers() {
    return sumOf(this.#samples, 'limbeck_users');
  }

  get numEvents() {
    return sumOf(this.#samples, 'limbeck_events_total', ({ result }) => result === 'accepted');
  }

  get #requests() {
    return (
      sumOf(this.#samples, `${REQUESTS}_count`, isTraffic) +
      sumOf(this.#samples, 'limbeck_shed_requests_total', isShedEarly)
    );
  }

  get #unavailable() {
    return (
      sumOf(this.#samples, `${REQUESTS}_count`, ({ code }) => code === '503') +
      sumOf(this.#samples, 'limbeck_shed_requests_total', isShedEarly)
    );
  }
}
