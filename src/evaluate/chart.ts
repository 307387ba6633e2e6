/**
 * Three charts as inline SVG: no script, no external resource. Colours come from the page's custom properties
 * (`--series-0` … `--series-3`, `--ink`, `--muted`, `--grid`), so they follow its light and dark modes. Lengths are in
 * SVG units; a chart is 440 wide and scales with its container.
 */
import { formatLatency, formatNumber } from './format.js';
import { escapeHtml, shorten } from './html.js';
import type { LatencySummary } from './latency.js';

export interface Series {
  readonly name: string;
  readonly points: readonly { readonly x: number; readonly y: number }[];
}

export interface LineChartOptions {
  /** Unique in the page. */
  readonly id: string;
  readonly title: string;
  readonly xLabel: string;
  readonly yLabel: string;
  readonly series: readonly Series[];
}

export interface HistogramOptions {
  /** Unique in the page. */
  readonly id: string;
  readonly title: string;
  readonly latency: LatencySummary;
}

export interface IntervalChartOptions {
  /** Unique in the page. */
  readonly id: string;
  readonly title: string;
  readonly xLabel: string;
  /** From the top down; one without an interval is drawn open. */
  readonly entries: readonly {
    readonly name: string;
    readonly value: number;
    readonly interval?: readonly [number, number];
  }[];
  /** Where a dashed line stands, such as no difference. */
  readonly reference?: number;
}

type Point = Series['points'][number];

const WIDTH = 440;
const HEIGHT = 260;
const MARGIN = { left: 60, right: 24, bottom: 44, top: 12 };
/** Height of an entry of the interval chart. */
const INTERVAL_HEIGHT = 22;
/** Height of a legend line or a row of marker labels. */
const LINE_HEIGHT = 18;
/** More points than this are not told apart on a chart of this width. */
const MAX_POINTS = 400;
const NUM_COLOURS = 4;
/** Lines differ by dash too, for eyes and printers that do not tell the colours apart. */
const dashes = ['', '6 3', '2 3', '8 3 2 3'];

/** Lines over a linear axis; values that are not finite leave a gap. */
export function lineChart({ id, title, xLabel, yLabel, series }: LineChartOptions): string {
  const finite = series.flatMap(({ points }) => points.filter(isFinitePoint));
  const xRange = range(finite.map((point) => point.x));
  const isWhole = finite.every((point) => Number.isInteger(point.x));
  const xTicks = ticks(xRange, 6).filter(
    (tick) => tick >= xRange[0] && tick <= xRange[1] && (!isWhole || Number.isInteger(tick)),
  );
  const yTicks = ticks(range(finite.map((point) => point.y)), 5);
  const legend = series.length > 1 ? drawLegend(series) : { svg: '', height: 0 };
  const top = MARGIN.top + legend.height;
  const x = scale(xRange, MARGIN.left, WIDTH - MARGIN.right);
  const y = scale(yTicks, HEIGHT - MARGIN.bottom, top);
  const lines = series.map(({ points }, index) => drawLine(thin(points), index, x, y)).join('');
  const body = [
    legend.svg,
    yTicks.map((tick) => gridLine(y(tick), formatNumber(tick))).join(''),
    xTicks.map((tick) => xTick(x(tick), formatNumber(tick))).join(''),
    axisLabels(xLabel, yLabel, top),
    lines,
  ].join('');
  return svg(id, title, series.map(describe).join(' '), body);
}

/** Calls by latency on a logarithmic axis, with the median and the tail marked. */
export function histogramChart({ id, title, latency }: HistogramOptions): string {
  const { edgesMs, counts } = latency.histogram;
  const edges = edgesMs.map(Math.log10);
  const markers = [
    ['p50', latency.p50Ms],
    ['p95', latency.p95Ms],
    ['p99', latency.p99Ms],
  ] as const;
  const top = MARGIN.top + markers.length * LINE_HEIGHT;
  const bottom = HEIGHT - MARGIN.bottom;
  const yTicks = ticks([0, Math.max(1, ...counts)], 4).filter(Number.isInteger);
  const y = scale(yTicks, bottom, top);
  const x = scale([edges[0] ?? 0, edges.at(-1) ?? 1], MARGIN.left, WIDTH - MARGIN.right);
  const bars = counts.map((count, bin) => {
    const left = x(edges[bin] ?? 0);
    const width = Math.max(0.5, x(edges[bin + 1] ?? 0) - left - 1);
    const tip = `${formatLatency(edgesMs[bin] ?? 0)} to ${formatLatency(edgesMs[bin + 1] ?? 0)}: ${formatNumber(count)} calls`;
    const shape = `x="${fixed(left)}" y="${fixed(y(count))}" width="${fixed(width)}" height="${fixed(bottom - y(count))}"`;
    return count === 0 ? '' : `<rect class="bar" ${shape}><title>${tip}</title></rect>`;
  });
  const marks = markers.map(([name, value], index) => {
    const at = x(Math.log10(Math.max(value, edgesMs[0] ?? 0)));
    const lineTop = MARGIN.top + index * LINE_HEIGHT + 4;
    const before = at > WIDTH / 2;
    const text = `<text x="${fixed(at + (before ? -5 : 5))}" y="${lineTop + 8}" ${before ? 'text-anchor="end"' : ''}>`;
    return `<line class="mark" x1="${fixed(at)}" x2="${fixed(at)}" y1="${lineTop}" y2="${bottom}"/>${text}${name} ${formatLatency(value)}</text>`;
  });
  const body = [
    yTicks.map((tick) => gridLine(y(tick), formatNumber(tick))).join(''),
    latencyTicks(edgesMs[0] ?? 1, edgesMs.at(-1) ?? 1)
      .map((tick) => xTick(x(Math.log10(tick)), formatLatency(tick)))
      .join(''),
    axisLabels('time of one call (logarithmic)', 'calls', top),
    ...bars,
    ...marks,
  ].join('');
  const total = counts.reduce((sum, count) => sum + count, 0);
  const summary = markers.map(([name, value]) => `${name} ${formatLatency(value)}`).join(', ');
  return svg(id, title, `Histogram of ${formatNumber(total)} calls: ${summary}.`, body);
}

/** One line an entry: its name, its value as a dot, and its interval as a bar through it. */
export function intervalChart({ id, title, xLabel, entries, reference }: IntervalChartOptions): string {
  const left = 180;
  const shown = entries.filter(({ value }) => Number.isFinite(value));
  const bottom = MARGIN.top + shown.length * INTERVAL_HEIGHT;
  const height = bottom + MARGIN.bottom;
  const bounds = shown.flatMap(({ value, interval }) => [value, ...(interval ?? [])]);
  const xTicks = ticks(range(reference === undefined ? bounds : [...bounds, reference]), 4);
  const x = scale(xTicks, left, WIDTH - MARGIN.right);
  const grid = xTicks.map((tick) => {
    const at = fixed(x(tick));
    return `<line class="grid" x1="${at}" x2="${at}" y1="${MARGIN.top}" y2="${bottom}"/><text class="tick" x="${at}" y="${bottom + 17}" text-anchor="middle">${formatNumber(tick)}</text>`;
  });
  const rows = shown.map(({ name, value, interval }, index) => {
    const y = MARGIN.top + (index + 0.5) * INTERVAL_HEIGHT;
    const label = `<text x="${left - 10}" y="${fixed(y + 4)}" text-anchor="end">${escapeHtml(shorten(name, 24))}<title>${escapeHtml(name)}</title></text>`;
    const [low, high] = interval ?? [value, value];
    const bar = `<line class="line" x1="${fixed(x(low))}" x2="${fixed(x(high))}" y1="${fixed(y)}" y2="${fixed(y)}" stroke="var(--series-1)"/>`;
    const fill = interval === undefined ? 'fill="var(--panel)"' : 'fill="var(--series-0)"';
    const tip = `${name}: ${formatNumber(value)}${interval === undefined ? '' : `, ${interval.map(formatNumber).join(' to ')}`}`;
    return `${label}${interval === undefined ? '' : bar}<circle cx="${fixed(x(value))}" cy="${fixed(y)}" r="4" ${fill} stroke="var(--series-0)"><title>${escapeHtml(tip)}</title></circle>`;
  });
  const mark =
    reference === undefined
      ? ''
      : `<line class="mark" x1="${fixed(x(reference))}" x2="${fixed(x(reference))}" y1="${MARGIN.top}" y2="${bottom}"/>`;
  const axis = `<line class="axis" x1="${left}" x2="${WIDTH - MARGIN.right}" y1="${bottom}" y2="${bottom}"/><text class="label" x="${(left + WIDTH - MARGIN.right) / 2}" y="${height - 7}" text-anchor="middle">${escapeHtml(xLabel)}</text>`;
  const summary = shown.map(({ name, value }) => `${name}: ${formatNumber(value)}.`).join(' ');
  return svg(id, title, summary, [...grid, mark, axis, ...rows].join(''), height);
}

/** Nice round numbers (1, 2, 5 × 10ⁿ) that enclose the range, ascending, about `wanted` of them. */
export function ticks([low, high]: readonly [number, number], wanted: number): number[] {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999) ?? 10);
  const first = Math.floor(low / step + 1e-9);
  const last = Math.ceil(high / step - 1e-9);
  // Rounded, because 3 × 0.1 is not 0.3.
  return Array.from({ length: last - first + 1 }, (_, index) => Number(((first + index) * step).toPrecision(12)));
}

/** Round numbers within the range, the closer the narrower it is; its ends when it holds fewer than two. */
function latencyTicks(lowMs: number, highMs: number): number[] {
  const decades = Math.log10(highMs / lowMs);
  const factors = decades > 3 ? [1] : decades > 1.5 ? [1, 3] : decades > 1 ? [1, 2, 5] : [1, 1.5, 2, 3, 5, 7];
  const found: number[] = [];
  for (let power = Math.floor(Math.log10(lowMs)); power <= Math.ceil(Math.log10(highMs)); power++) {
    found.push(...factors.map((factor) => factor * 10 ** power));
  }
  const inside = found.filter((tick) => tick >= lowMs * 0.999 && tick <= highMs * 1.001);
  return inside.length < 2 ? [lowMs, highMs] : inside;
}

function isFinitePoint({ x, y }: Point): boolean {
  return Number.isFinite(x) && Number.isFinite(y);
}

/** Smallest and largest value; never of zero width. */
function range(values: readonly number[]): [number, number] {
  if (values.length === 0) return [0, 1];
  const low = values.reduce((a, b) => Math.min(a, b));
  const high = values.reduce((a, b) => Math.max(a, b));
  return low === high ? [low - Math.max(1, Math.abs(low)) / 2, high + Math.max(1, Math.abs(high)) / 2] : [low, high];
}

/** Keeps the smallest and the largest value of every stretch, so that spikes survive. */
function thin(points: readonly Point[]): readonly Point[] {
  if (points.length <= MAX_POINTS) return points;
  const stretch = Math.ceil((2 * points.length) / MAX_POINTS);
  const kept: Point[] = [];
  for (let start = 0; start < points.length; start += stretch) {
    const part = points.slice(start, start + stretch);
    const low = part.reduce((a, b) => (b.y < a.y ? b : a));
    const high = part.reduce((a, b) => (b.y > a.y ? b : a));
    kept.push(...(low.x < high.x ? [low, high] : low === high ? [low] : [high, low]));
  }
  return kept;
}

function scale(domain: readonly number[], from: number, to: number): (value: number) => number {
  const low = domain[0] ?? 0;
  const width = (domain.at(-1) ?? 1) - low || 1;
  return (value) => from + ((value - low) / width) * (to - from);
}

function fixed(value: number): string {
  return String(Number(value.toFixed(1)));
}

function lineStyle(index: number): string {
  const dash = dashes[Math.floor(index / NUM_COLOURS + index) % dashes.length];
  return `stroke="var(--series-${index % NUM_COLOURS})"${dash ? ` stroke-dasharray="${dash}"` : ''}`;
}

function drawLine(points: readonly Point[], index: number, x: (v: number) => number, y: (v: number) => number): string {
  let isGap = true;
  let path = '';
  for (const point of points) {
    // h0 gives a value between two gaps a dot: the caps are round.
    if (isFinitePoint(point))
      path += `${isGap ? 'M' : 'L'}${fixed(x(point.x))} ${fixed(y(point.y))}${isGap ? 'h0' : ''}`;
    isGap = !isFinitePoint(point);
  }
  const dots = points.filter(isFinitePoint).length > 12 ? [] : points.filter(isFinitePoint);
  const colour = `fill="var(--series-${index % NUM_COLOURS})"`;
  const circles = dots.map(
    (point) => `<circle cx="${fixed(x(point.x))}" cy="${fixed(y(point.y))}" r="2.5" ${colour}/>`,
  );
  return `<path class="line" d="${path}" ${lineStyle(index)}/>${circles.join('')}`;
}

function drawLegend(series: readonly Series[]): { svg: string; height: number } {
  let left = MARGIN.left;
  let row = 0;
  const entries = series.map(({ name }, index) => {
    const label = shorten(name, 40);
    // 7.2 units is a generous mean width of a letter; the text itself is never cut by it.
    const width = 36 + label.length * 7.2;
    if (left > MARGIN.left && left + width > WIDTH) {
      left = MARGIN.left;
      row++;
    }
    const y = MARGIN.top + row * LINE_HEIGHT;
    const entry = `<line class="key" x1="${fixed(left)}" x2="${fixed(left + 20)}" y1="${y}" y2="${y}" ${lineStyle(index)}/><text x="${fixed(left + 26)}" y="${y + 4}">${escapeHtml(label)}</text>`;
    left += width;
    return entry;
  });
  return { svg: entries.join(''), height: (row + 1) * LINE_HEIGHT };
}

function gridLine(y: number, label: string): string {
  const right = WIDTH - MARGIN.right;
  return `<line class="grid" x1="${MARGIN.left}" x2="${right}" y1="${fixed(y)}" y2="${fixed(y)}"/><text class="tick" x="${MARGIN.left - 7}" y="${fixed(y + 4)}" text-anchor="end">${label}</text>`;
}

function xTick(x: number, label: string): string {
  const y = HEIGHT - MARGIN.bottom;
  return `<line class="axis" x1="${fixed(x)}" x2="${fixed(x)}" y1="${y}" y2="${y + 4}"/><text class="tick" x="${fixed(x)}" y="${y + 17}" text-anchor="middle">${label}</text>`;
}

function axisLabels(xLabel: string, yLabel: string, top: number): string {
  const middle = (MARGIN.left + WIDTH - MARGIN.right) / 2;
  const centre = (top + HEIGHT - MARGIN.bottom) / 2;
  const bottom = HEIGHT - MARGIN.bottom;
  return [
    `<line class="axis" x1="${MARGIN.left}" x2="${WIDTH - MARGIN.right}" y1="${bottom}" y2="${bottom}"/>`,
    `<text class="label" x="${middle}" y="${HEIGHT - 7}" text-anchor="middle">${escapeHtml(xLabel)}</text>`,
    `<text class="label" transform="translate(11 ${centre}) rotate(-90)" text-anchor="middle">${escapeHtml(yLabel)}</text>`,
  ].join('');
}

function describe({ name, points }: Series): string {
  const finite = points.filter(isFinitePoint);
  const first = finite[0];
  const last = finite.at(-1);
  if (first === undefined || last === undefined) return `${name}: no values.`;
  return `${name}: ${formatNumber(first.y)} at ${formatNumber(first.x)}, ${formatNumber(last.y)} at ${formatNumber(last.x)}.`;
}

function svg(id: string, title: string, description: string, body: string, height = HEIGHT): string {
  const names = `<title id="${id}-title">${escapeHtml(title)}</title><desc id="${id}-desc">${escapeHtml(description)}</desc>`;
  return `<svg viewBox="0 0 ${WIDTH} ${height}" role="img" aria-labelledby="${id}-title" aria-describedby="${id}-desc">${names}${body}</svg>`;
}
