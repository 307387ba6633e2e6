/** Numbers as the page shows them. */

/** @param {number} ms */
export function formatMs(ms) {
  if (ms >= 100) return `${Math.round(ms)} ms`;
  if (ms >= 10) return `${ms.toFixed(1)} ms`;
  if (ms >= 0.1) return `${ms.toFixed(2)} ms`;
  return `${Math.round(ms * 1000)} µs`;
}

/** @param {number} value per second */
export function formatRate(value) {
  return value >= 100 || value === 0 ? formatCount(Math.round(value)) : value.toFixed(1);
}

/** @param {number} count */
export function formatCount(count) {
  return count.toLocaleString('en');
}

/**
 * @param {number} count
 * @param {string} one
 * @param {string} [many]
 */
export function countOf(count, one, many = `${one}s`) {
  return `${formatCount(count)} ${count === 1 ? one : many}`;
}
