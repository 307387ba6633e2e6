import { describe, expect, it } from 'vitest';
import { histogramChart, intervalChart, lineChart, ticks } from '../../../src/evaluate/chart.js';
import { summarizeLatency } from '../../../src/evaluate/latency.js';

const axes = { id: 'c', title: 'student', xLabel: 'epoch', yLabel: 'loss' };

describe('ticks', () => {
  it('are round numbers that enclose the range', () => {
    expect(ticks([0, 10], 5)).toEqual([0, 2, 4, 6, 8, 10]);
    expect(ticks([0.13, 0.58], 5)).toEqual([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]);
    expect(ticks([-3, 3], 6)).toEqual([-3, -2, -1, 0, 1, 2, 3]);
    expect(ticks([1e-6, 9e-6], 4)).toEqual([0, 2e-6, 4e-6, 6e-6, 8e-6, 1e-5]);
  });
});

describe('lineChart', () => {
  it('draws rising values upwards, within the frame', () => {
    const points = [
      { x: 0, y: 1 },
      { x: 5, y: 2 },
      { x: 10, y: 3 },
    ];
    const svg = lineChart({ ...axes, series: [{ name: 'training', points }] });
    const path = /<path class="line" d="M([\d.]+) ([\d.]+)h0L([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"/.exec(svg);
    const [x0 = 0, y0 = 0, x1 = 0, y1 = 0, x2 = 0, y2 = 0] = (path ?? []).slice(1).map(Number);
    expect(x0).toBeLessThan(x1);
    expect(x1).toBeLessThan(x2);
    expect(y0).toBeGreaterThan(y1);
    expect(y1).toBeGreaterThan(y2);
    expect(y2).toBeGreaterThan(0);
  });

  it('has a title, a description with the values, axis labels, and a legend for several lines', () => {
    const points = [
      { x: 1, y: 9.2 },
      { x: 8, y: 4.1 },
    ];
    const svg = lineChart({
      ...axes,
      series: [
        { name: 'training', points },
        { name: 'vali<dation', points },
      ],
    });
    expect(svg).toContain('<title id="c-title">student</title>');
    expect(svg).toContain('training: 9.2 at 1, 4.1 at 8.');
    expect(svg).toContain('aria-labelledby="c-title" aria-describedby="c-desc"');
    expect(svg).toMatch(/class="label"[^>]*>epoch</);
    expect(svg).toMatch(/class="label"[^>]*>loss</);
    expect(svg.match(/class="key"/g)).toHaveLength(2);
    expect(svg).toContain('vali&lt;dation');
    expect(lineChart({ ...axes, series: [{ name: 'training', points }] })).not.toContain('class="key"');
  });

  it('leaves a gap at values that are not finite and never writes NaN', () => {
    const points = [1, 2, Number.NaN, 4, Number.POSITIVE_INFINITY].map((y, x) => ({ x, y }));
    const svg = lineChart({ ...axes, series: [{ name: 'a', points }] });
    expect(/ d="([^"]*)"/.exec(svg)?.[1]?.match(/M/g)).toHaveLength(2);
    expect(svg).not.toMatch(/NaN|Infinity/);
  });

  it('draws nothing, one point, and constant lines without NaN', () => {
    for (const points of [
      [],
      [{ x: 3, y: 0 }],
      [
        { x: 1, y: 2 },
        { x: 2, y: 2 },
      ],
    ]) {
      expect(lineChart({ ...axes, series: [{ name: 'a', points }] })).not.toMatch(/NaN|Infinity/);
    }
  });

  it('stays small for a hundred thousand steps and keeps a single spike', () => {
    const points = Array.from({ length: 100_000 }, (_, x) => ({ x, y: x === 51_237 ? 9 : 1 }));
    const svg = lineChart({ ...axes, series: [{ name: 'a', points }] });
    expect(svg.length).toBeLessThan(20_000);
    const heights = [...(/ d="([^"]*)"/.exec(svg)?.[1] ?? '').matchAll(/[ML][\d.]+ ([\d.]+)/g)].map((match) =>
      Number(match[1]),
    );
    expect(new Set(heights).size).toBe(2);
  });
});

describe('histogramChart', () => {
  it('draws one bar a filled bin and marks the percentiles', () => {
    const latency = summarizeLatency(Float64Array.of(0.1, 0.1, 0.1, 0.5, 3));
    const svg = histogramChart({ id: 'h', title: 'latency', latency });
    expect(svg.match(/class="bar"/g)).toHaveLength(3);
    expect(svg).toContain('p50 100 µs');
    expect(svg).toContain('p99 3 ms');
    expect(svg).toContain('Histogram of 5 calls: p50 100 µs, p95 3 ms, p99 3 ms.');
    expect(svg).not.toMatch(/NaN|Infinity/);
  });

  it('draws a single bin and durations of zero without NaN', () => {
    for (const durations of [Float64Array.of(0), Float64Array.of(0.3)]) {
      const svg = histogramChart({ id: 'h', title: 'latency', latency: summarizeLatency(durations) });
      expect(svg.match(/class="bar"/g)).toHaveLength(1);
      expect(svg).not.toMatch(/NaN|Infinity/);
    }
  });
});

describe('intervalChart', () => {
  const entries = [
    { name: 'low', value: 0.1, interval: [0.05, 0.15] as const },
    { name: 'high <b>', value: 0.3, interval: [0.2, 0.4] as const },
    { name: 'published', value: 0.25 },
  ];
  const svg = intervalChart({ id: 'i', title: 'ndcg@10', xLabel: 'ndcg@10', entries, reference: 0 });

  it('places values and bounds on one axis, an entry a line', () => {
    const dots = [...svg.matchAll(/<circle cx="([\d.]+)" cy="([\d.]+)"/g)].map(([, x, y]) => [Number(x), Number(y)]);
    const bars = [...svg.matchAll(/<line class="line" x1="([\d.]+)" x2="([\d.]+)"/g)].map(([, a, b]) => [
      Number(a),
      Number(b),
    ]);
    const [low = [], high = [], published = []] = dots;
    expect(low[0]).toBeLessThan(published[0] ?? 0);
    expect(published[0]).toBeLessThan(high[0] ?? 0);
    expect(dots.map(([, y]) => y)).toEqual([...dots.map(([, y]) => y)].sort((a = 0, b = 0) => a - b));
    expect(bars).toHaveLength(2);
    bars.forEach(([from = 0, to = 0], i) => {
      expect(from).toBeLessThan(dots[i]?.[0] ?? 0);
      expect(to).toBeGreaterThan(dots[i]?.[0] ?? 0);
    });
    const mark = Number(/<line class="mark" x1="([\d.]+)"/.exec(svg)?.[1]);
    expect(mark).toBeLessThan(bars[0]?.[0] ?? 0);
  });

  it('escapes names, and draws a value that is not finite not at all', () => {
    expect(svg).toContain('high &lt;b&gt;');
    const broken = intervalChart({
      id: 'i',
      title: 't',
      xLabel: 'x',
      entries: [...entries, { name: 'n', value: Number.NaN }],
    });
    expect(broken.match(/<circle/g)).toHaveLength(3);
    expect(broken).not.toContain('NaN');
  });
});
