/** Prometheus metrics. Durations are in seconds, as is the custom there. */
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';

/** From 50 µs, which a small student needs, to what a client may wait. */
const LATENCY_BUCKETS = [
  0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10,
];

/** What is asked for when the metrics are. */
export interface Gauges {
  readonly users: () => number;
  readonly items: () => number;
  readonly model: () => string;
  readonly isReady: () => boolean;
}

export class Metrics {
  readonly registry = new Registry();
  readonly #requests = new Histogram({
    name: 'limbeck_http_request_duration_seconds',
    help: 'From the arrival of a request to the end of its answer',
    labelNames: ['route', 'code'],
    buckets: LATENCY_BUCKETS,
    registers: [this.registry],
  });
  readonly #engine = new Histogram({
    name: 'limbeck_recommend_duration_seconds',
    help: 'Time in the model of one recommendation',
    buckets: LATENCY_BUCKETS,
    registers: [this.registry],
  });
  readonly #shed = new Counter({
    name: 'limbeck_shed_requests_total',
    help: 'Requests refused with 503 or 429',
    labelNames: ['reason'],
    registers: [this.registry],
  });
  readonly #events = new Counter({
    name: 'limbeck_events_total',
    help: 'Feedback events stored',
    labelNames: ['result'],
    registers: [this.registry],
  });
  readonly #append = new Histogram({
    name: 'limbeck_event_append_duration_seconds',
    help: 'Until a batch of events was durable',
    buckets: LATENCY_BUCKETS,
    registers: [this.registry],
  });
  readonly #swaps = new Counter({
    name: 'limbeck_model_changes_total',
    help: 'Models loaded, promoted and rolled back, and those refused',
    labelNames: ['result'],
    registers: [this.registry],
  });
  readonly #children = new Map<string, { observe: (seconds: number) => void }>();

  constructor(gauges: Gauges) {
    collectDefaultMetrics({ register: this.registry });
    const registers = [this.registry];
    const gauge = (name: string, help: string, read: () => number) =>
      new Gauge({
        name,
        help,
        registers,
        collect() {
          this.set(read());
        },
      });
    gauge('limbeck_users', 'Users with a state', gauges.users);
    gauge('limbeck_items', 'Items of the current model', gauges.items);
    gauge('limbeck_ready', '1 when /readyz says so', () => Number(gauges.isReady()));
    new Gauge({
      name: 'limbeck_model_info',
      help: '1 for the current model',
      labelNames: ['model'],
      registers,
      collect() {
        this.reset();
        this.set({ model: gauges.model() }, 1);
      },
    });
  }

  /** @param route as it was declared, so that strangers cannot make labels */
  observeRequest(route: string, code: number, seconds: number): void {
    const key = `${code} ${route}`;
    let child = this.#children.get(key);
    if (child === undefined) {
      child = this.#requests.labels(route, String(code));
      this.#children.set(key, child);
    }
    child.observe(seconds);
  }

  observeRecommend(seconds: number): void {
    this.#engine.observe(seconds);
  }

  countShed(reason: string): void {
    this.#shed.inc({ reason });
  }

  countEvents(accepted: number, duplicates: number, seconds: number): void {
    this.#events.inc({ result: 'accepted' }, accepted);
    this.#events.inc({ result: 'duplicate' }, duplicates);
    this.#append.observe(seconds);
  }

  countModelChange(result: 'loaded' | 'promoted' | 'rolled-back' | 'refused'): void {
    this.#swaps.inc({ result });
  }
}
