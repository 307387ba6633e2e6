/** @import { Api } from './api.js' */
/** @import { Interval } from './service-metrics.js' */
import { byId, element } from './dom.js';
import { countOf, formatCount, formatMs, formatRate } from './format.js';
import { explain, problemNotice } from './problem-notice.js';
import { Reading } from './service-metrics.js';
import { sparkline } from './sparkline.js';

const PERIOD_MS = 2000;
/** Two minutes. */
const NUM_INTERVALS = 60;

/** @typedef {{ id: string, title: string, value: (interval: Interval) => number | undefined, format: (value: number) => string }} Tile */

/** @type {Tile[]} */
const TILES = [
  { id: 'rate', title: 'Requests per second', value: ({ requestsPerSecond }) => requestsPerSecond, format: formatRate },
  { id: 'p50', title: 'Recommend, p50', value: ({ p50Ms }) => p50Ms, format: formatMs },
  { id: 'p99', title: 'Recommend, p99', value: ({ p99Ms }) => p99Ms, format: formatMs },
  { id: 'unavailable', title: 'Refused (503)', value: ({ unavailable }) => unavailable, format: formatCount },
];

/** What the service tells of itself, every two seconds while the page is looked at. */
export class MetricsPanel {
  #api;
  #tiles = byId('metric-tiles', HTMLElement);
  #state = byId('metrics-state', HTMLElement);
  #facts = byId('service-facts', HTMLElement);
  #status = byId('status', HTMLElement);
  /** @type {Interval[]} */
  #intervals = [];
  /** @type {Reading | undefined} */
  #last;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;

  /** @param {Api} api */
  constructor(api) {
    this.#api = api;
    document.addEventListener('visibilitychange', () => {
      // The time that nobody looked is no interval to show.
      this.#last = undefined;
      this.start();
    });
  }

  start() {
    clearTimeout(this.#timer);
    if (!document.hidden) void this.#read();
  }

  async #read() {
    try {
      const reading = new Reading(await this.#api.metrics(), performance.now());
      const interval = this.#last && reading.since(this.#last);
      if (interval !== undefined) this.#intervals = [...this.#intervals, interval].slice(-NUM_INTERVALS);
      this.#last = reading;
      this.#show(reading);
    } catch (error) {
      this.#last = undefined;
      this.#showProblem(error);
    }
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.start(), PERIOD_MS);
  }

  /** @param {Reading} reading */
  #show(reading) {
    this.#setStatus(reading.isReady ? 'ready' : 'draining', reading.isReady ? 'Ready' : 'Not ready');
    this.#state.replaceChildren();
    this.#facts.textContent = [
      countOf(reading.numItems, 'item'),
      countOf(reading.numUsers, 'user'),
      `${countOf(reading.numEvents, 'event')} since the start`,
    ].join(' · ');
    this.#tiles.replaceChildren(
      ...TILES.map(({ id, title, value, format }) => {
        const values = this.#intervals.map(value);
        const latest = values.at(-1);
        return element(
          'div',
          { class: 'tile', 'data-metric': id },
          element('dt', {}, title),
          element('dd', {}, latest === undefined ? '–' : format(latest)),
          element('dd', { class: 'chart' }, sparkline(values, NUM_INTERVALS)),
        );
      }),
    );
  }

  /** @param {unknown} error */
  #showProblem(error) {
    const { title } = explain(error);
    this.#setStatus('failed', title);
    // Said once: the next reading comes in two seconds, and may fail alike.
    if (this.#state.dataset['title'] === title && this.#state.hasChildNodes()) return;
    this.#state.dataset['title'] = title;
    this.#state.replaceChildren(problemNotice(error));
  }

  /**
   * @param {string} kind
   * @param {string} text
   */
  #setStatus(kind, text) {
    if (this.#status.textContent === text) return;
    this.#status.textContent = text;
    this.#status.dataset['kind'] = kind;
  }
}
