import { Histogram, Registry } from 'prom-client';
import { expect, it } from 'vitest';
import { BOUNDS, DurationHistogram } from '../../../src/server/duration-histogram.js';

it("tells what prom-client's own tells of the same durations", async () => {
  const [name, help] = ['duration_seconds', 'Of something'];
  const [ours, theirs] = [new Registry(), new Registry()];
  const histogram = new DurationHistogram(ours, name, help);
  const reference = new Histogram({
    name,
    help,
    labelNames: ['route', 'code'],
    buckets: [...BOUNDS],
    registers: [theirs],
  });
  const all = [0, ...BOUNDS, ...BOUNDS.map((bound) => bound * 1.01), 1e3];
  for (const [route, code, durations] of [
    ['/a', 200, all],
    ['/a', 503, [0.3]],
    ['/b"\n', 200, [2, 2, 0.001]],
  ] as const) {
    const child = histogram.labels({ route, code });
    for (const seconds of durations) {
      child.observe(seconds);
      reference.observe({ route, code }, seconds);
    }
  }
  expect(await ours.metrics()).toBe(await theirs.metrics());
});

it('is there before anything was observed', async () => {
  const [ours, theirs] = [new Registry(), new Registry()];
  new DurationHistogram(ours, 'a', 'b').labels({});
  new Histogram({ name: 'a', help: 'b', buckets: [...BOUNDS], registers: [theirs] });
  expect(await ours.metrics()).toBe(await theirs.metrics());
});
