/** Prometheus metrics. Durations are in seconds, as is the custom there. */
import { Counter, collectDefaultMetrics, Gauge, Registry } from 'prom-client';
import { DurationHistogram, type Durations } from './duration-histogram.js';

/** What is asked for when the metrics are. */
export interface Gauges {
  readonly users: () => number;
  readonly items: () => number;
  readonly model: () => string;
  readonly isReady: () => boolean;
}

export class Metrics {
  readonly registry = new Registry();
  readonly #requests = new DurationHistogram(
    this.registry,
    'limbeck_http_request_duration_seconds',
    'From the arrival of a request to the end of its answer',
  );
  readonly #engine = new DurationHistogram(
    this.registry,
    'limbeck_recommend_duration_seconds',
    'Time in the model of one recommendation',
  ).labels({});
  /** By reason; a counter that hashes its labels would be a tenth of what it takes to refuse. */
  readonly #shed = new Map<string, number>();
  readonly #events = new Counter({
    name: 'limbeck_events_total',
    help: 'Feedback events stored',
    labelNames: ['result'],
    registers: [this.registry],
  });
  readonly #append = new DurationHistogram(
    this.registry,
    'limbeck_event_append_duration_seconds',
    'Until a batch of events was durable',
  ).labels({});
  readonly #swaps = new Counter({
    name: 'limbeck_model_changes_total',
    help: 'Models loaded, promoted and rolled back, and those refused',
    labelNames: ['result'],
    registers: [this.registry],
  });
  /** By route and code. */
  readonly #answered = new Map<string, Map<number, Durations>>();

  constructor(gauges: Gauges) {
    collectDefaultMetrics({ register: this.registry });
    const registers = [this.registry];
    const shed = this.#shed;
    new Counter({
      name: 'limbeck_shed_requests_total',
      help: 'Requests refused with 503 or 429',
      labelNames: ['reason'],
      registers,
      collect() {
        this.reset();
        for (const [reason, count] of shed) this.inc({ reason }, count);
      },
    });
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
    let byCode = this.#answered.get(route);
    if (byCode === undefined) {
      byCode = new Map();
      this.#answered.set(route, byCode);
    }
    let durations = byCode.get(code);
    if (durations === undefined) {
      durations = this.#requests.labels({ route, code });
      byCode.set(code, durations);
    }
    durations.observe(seconds);
  }

  observeRecommend(seconds: number): void {
    this.#engine.observe(seconds);
  }

  countShed(reason: string): void {
    this.#shed.set(reason, (this.#shed.get(reason) ?? 0) + 1);
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
