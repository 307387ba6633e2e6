/** Numbers as people read them in the report and the terminal. */

/** What stands where there is no value. */
const NONE = '–';

const magnitudes = [
  [1e12, 'T'],
  [1e9, 'B'],
  [1e6, 'M'],
  [1e3, 'k'],
] as const;

/** A quality metric in 0 … 1: four decimals. */
export function formatMetric(value: number): string {
  return Number.isFinite(value) ? value.toFixed(4) : NONE;
}

/** A metric, ± half the width of its interval. */
export function formatWithInterval(value: number, [low, high]: readonly [number, number]): string {
  return `${formatMetric(value)} ± ${formatMetric((high - low) / 2)}`;
}

/** A difference of metrics, always with its sign. */
export function formatDifference(value: number): string {
  if (!Number.isFinite(value)) return NONE;
  return `${value < 0 ? '−' : '+'}${Math.abs(value).toFixed(4)}`;
}

/** A parameter count in three significant digits: `1.23M`; 0 = none. */
export function formatParameters(count: number): string {
  if (!Number.isFinite(count) || count <= 0) return NONE;
  // Rounded before the unit is chosen, so that 999,999 reads 1M and not 1000k.
  const rounded = Number(count.toPrecision(3));
  const magnitude = magnitudes.find(([size]) => rounded >= size);
  return magnitude === undefined
    ? String(rounded)
    : `${Number((rounded / magnitude[0]).toPrecision(3))}${magnitude[1]}`;
}

/** A latency in three significant digits: `312 µs`, `4.21 ms`; 0 = not measured. */
export function formatLatency(milliseconds: number): string {
  if (!Number.isFinite(milliseconds) || milliseconds <= 0) return NONE;
  const rounded = Number(milliseconds.toPrecision(3));
  if (rounded >= 1000) return `${Number((rounded / 1000).toPrecision(3))} s`;
  return rounded >= 1 ? `${rounded} ms` : `${Number((rounded * 1000).toPrecision(3))} µs`;
}

/** A duration: `0.42 s`, `12.3 s`, `4 min 12 s`, `2 h 05 min`. */
export function formatDuration(seconds: number): string {
  if (!Number.isFinite(seconds) || seconds < 0) return NONE;
  if (seconds < 10) return `${seconds.toFixed(2)} s`;
  if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, '0')} s`;
  const minutes = Math.round(seconds / 60);
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, '0')} min`;
}

/** Any number: whole ones with thousands separators, others in four significant digits. */
export function formatNumber(value: number): string {
  if (!Number.isFinite(value)) return NONE;
  if (Number.isInteger(value)) return String(value).replace(/\B(?=(\d{3})+$)/g, ',');
  return String(Number(value.toPrecision(4)));
}

/** `droppedUsers` → `dropped users`. */
export function formatKey(key: string): string {
  return key
    .replace(/([\p{Ll}\d])(\p{Lu})/gu, '$1 $2')
    .replaceAll('_', ' ')
    .toLowerCase();
}
