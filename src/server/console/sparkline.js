import { svgElement } from './dom.js';

const WIDTH = 160;
const HEIGHT = 36;
const MARGIN = 2;

/**
 * A line of the latest values, from zero up. Gaps where a value is undefined.
 *
 * @param {readonly (number | undefined)[]} values
 * @param {number} capacity Values that fill the whole width.
 */
export function sparkline(values, capacity) {
  const known = values.filter((value) => value !== undefined);
  const top = Math.max(...known, Number.MIN_VALUE);
  const x = (/** @type {number} */ index) =>
    WIDTH - MARGIN - ((values.length - 1 - index) * (WIDTH - 2 * MARGIN)) / (capacity - 1);
  const y = (/** @type {number} */ value) => HEIGHT - MARGIN - (value / top) * (HEIGHT - 2 * MARGIN);
  let path = '';
  let isDrawing = false;
  for (const [index, value] of values.entries()) {
    if (value !== undefined) {
      path += `${isDrawing ? 'L' : 'M'}${x(index).toFixed(1)} ${y(value).toFixed(1)}`;
      // A value between two gaps is a dot.
      if (!isDrawing && values[index + 1] === undefined) path += 'h.01';
    }
    isDrawing = value !== undefined;
  }
  return svgElement(
    'svg',
    { class: 'sparkline', viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', 'aria-hidden': 'true' },
    svgElement('path', { class: 'floor', d: `M0 ${HEIGHT - MARGIN}H${WIDTH}` }),
    path !== '' && svgElement('path', { class: 'line', d: path }),
  );
}
