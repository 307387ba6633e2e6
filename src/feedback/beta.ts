/** Samples of the Beta distribution, from a source of uniform numbers in [0, 1). */

/**
 * One sample of Beta(a, b); its mean is a / (a + b).
 *
 * @param a > 0
 * @param b > 0
 */
export function sampleBeta(a: number, b: number, random: () => number): number {
  const x = sampleGamma(a, random);
  const y = sampleGamma(b, random);
  // Both underflow when a and b are tiny: the distribution then has all its weight at 0 and 1.
  return x + y > 0 ? x / (x + y) : Number(random() < a / (a + b));
}

/**
 * One sample of Gamma(shape, 1).
 *
 * @see Marsaglia and Tsang 2000, A simple method for generating gamma variables; shapes below 1 by its §6
 */
function sampleGamma(shape: number, random: () => number): number {
  if (shape < 1) return sampleGamma(shape + 1, random) * (1 - random()) ** (1 / shape);
  const d = shape - 1 / 3;
  const c = 1 / Math.sqrt(9 * d);
  for (;;) {
    const x = sampleNormal(random);
    const v = (1 + c * x) ** 3;
    if (v <= 0) continue;
    if (Math.log(1 - random()) < 0.5 * x * x + d - d * v + d * Math.log(v)) return d * v;
  }
}

/** @see Box and Muller 1958 */
function sampleNormal(random: () => number): number {
  return Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}
