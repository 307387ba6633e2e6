import { describe, expect, test } from 'vitest';
import { Reading } from '../../../../src/server/console/service-metrics.js';

const REQUESTS = 'limbeck_http_request_duration_seconds';

function reading(
  timeMs: number,
  counts: { recommend?: number; metrics?: number; full?: number; shed?: number },
): Reading {
  const { recommend = 0, metrics = 0, full = 0, shed = 0 } = counts;
  const text = [
    `${REQUESTS}_count{route="/v1/recommend",code="200"} ${recommend}`,
    `${REQUESTS}_bucket{route="/v1/recommend",code="200",le="0.001"} ${recommend}`,
    `${REQUESTS}_bucket{route="/v1/recommend",code="200",le="+Inf"} ${recommend}`,
    `${REQUESTS}_count{route="/metrics",code="200"} ${metrics}`,
    `${REQUESTS}_count{route="/v1/events",code="503"} ${full}`,
    `limbeck_shed_requests_total{reason="queue"} ${shed}`,
    `limbeck_shed_requests_total{reason="rate"} 7`,
    'limbeck_ready 1',
    'limbeck_events_total{result="accepted"} 3',
    'limbeck_events_total{result="duplicate"} 9',
  ].join('\n');
  return new Reading(text, timeMs);
}

describe('what happened between two readings', () => {
  test('is a rate, quantiles in ms, and the answers with 503', () => {
    const interval = reading(2000, { recommend: 10, full: 2, shed: 8 }).since(reading(0, {}));
    expect(interval).toMatchObject({ requestsPerSecond: 10, p50Ms: 0.5, unavailable: 10 });
    expect(interval?.p99Ms).toBeCloseTo(0.99);
  });

  test("does not count the page's own reading", () => {
    expect(reading(1000, { metrics: 50 }).since(reading(0, {}))?.requestsPerSecond).toBe(0);
  });

  test('is unknown when the service began anew', () => {
    expect(reading(1000, { recommend: 1 }).since(reading(0, { recommend: 5 }))).toBeUndefined();
  });

  test('counts accepted events alone', () => {
    expect([reading(0, {}).numEvents, reading(0, {}).isReady]).toEqual([3, true]);
  });
});
