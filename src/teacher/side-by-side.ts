/** One matrix of matrices that have as many rows each: [rows, sum of their widths]. */
export function sideBySide(parts: readonly Float32Array[], rows: number): Float32Array {
  const width = parts.reduce((sum, { length }) => sum + length / rows, 0);
  const whole = new Float32Array(rows * width);
  let column = 0;
  for (const part of parts) {
    const own = part.length / rows;
    for (let row = 0; row < rows; row++) {
      whole.set(part.subarray(row * own, (row + 1) * own), row * width + column);
    }
    column += own;
  }
  return whole;
}
