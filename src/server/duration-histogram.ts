import type { Metric, MetricValueWithName, Registry } from 'prom-client';

/** From 50 µs, which a small student needs, to what a client may wait, s. */
export const BOUNDS: readonly number[] = [
  0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10,
];

type Labels = Readonly<Record<string, string | number>>;

/** Durations under one set of labels. */
export class Durations {
  /** Of each bucket alone, not of those below it; the last is of what passes every bound. */
  readonly counts = new Float64Array(BOUNDS.length + 1);
  /** Seconds. */
  sum = 0;

  constructor(readonly labels: Labels) {}

  observe(seconds: number): void {
    let bucket = 0;
    while (bucket < BOUNDS.length && seconds > (BOUNDS[bucket] as number)) bucket++;
    (this.counts[bucket] as number)++;
    this.sum += seconds;
  }
}

/** A histogram that every request can afford: prom-client's checks and hashes the labels of each observation. */
export class DurationHistogram {
  readonly type = 'histogram';
  readonly aggregator = 'sum';
  readonly #children: Durations[] = [];

  constructor(
    registry: Registry,
    readonly name: string,
    readonly help: string,
  ) {
    // All that a registry asks of a metric is get().
    registry.registerMetric(this as unknown as Metric);
  }

  /** Once for each set of labels: what is returned is kept by the caller. */
  labels(labels: Labels): Durations {
    const child = new Durations(labels);
    this.#children.push(child);
    return child;
  }

  async get() {
    const { name, help, type, aggregator } = this;
    return { name, help, type, aggregator, values: this.#children.flatMap((child) => this.#valuesOf(child)) };
  }

  #valuesOf({ labels, counts, sum }: Durations): MetricValueWithName<string>[] {
    let count = 0;
    const buckets = Array.from(counts, (own, i) => {
      count += own;
      return { metricName: `${this.name}_bucket`, labels: { le: BOUNDS[i] ?? '+Inf', ...labels }, value: count };
    });
    return [
      ...buckets,
      { metricName: `${this.name}_sum`, labels, value: sum },
      { metricName: `${this.name}_count`, labels, value: count },
    ];
  }
}
