/** Reads Prometheus text, and what two readings of it tell about the time between them. */

/** @typedef {{ name: string, labels: Record<string, string>, value: number }} Sample */

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?[ \t]+(\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;

/**
 * @param {string} text Prometheus exposition format 0.0.4.
 * @returns {Sample[]} Lines that are no samples are left out.
 */
export function parseMetrics(text) {
  /** @type {Sample[]} */
  const samples = [];
  for (const line of text.split('\n')) {
    if (line === '' || line.startsWith('#')) continue;
    const match = SAMPLE.exec(line);
    if (match === null) continue;
    /** @type {Record<string, string>} */
    const labels = Object.create(null);
    for (const [, name, value] of (match[2] ?? '').matchAll(LABEL)) labels[String(name)] = unescapeLabel(String(value));
    samples.push({ name: String(match[1]), labels, value: readNumber(String(match[3])) });
  }
  return samples;
}

/**
 * @param {readonly Sample[]} samples
 * @param {string} name
 * @param {(labels: Record<string, string>) => boolean} [accepts]
 * @returns {number} Sum of the samples; 0 when there is none.
 */
export function sumOf(samples, name, accepts = () => true) {
  let sum = 0;
  for (const sample of samples) if (sample.name === name && accepts(sample.labels)) sum += sample.value;
  return sum;
}

/**
 * @param {readonly Sample[]} samples
 * @param {string} name of a histogram, without `_bucket`
 * @param {(labels: Record<string, string>) => boolean} [accepts]
 * @returns {Map<number, number>} Upper bound → observations up to it, over all the series accepted, rising.
 */
export function bucketsOf(samples, name, accepts = () => true) {
  /** @type {Map<number, number>} */
  const buckets = new Map();
  for (const { name: found, labels, value } of samples) {
    if (found !== `${name}_bucket` || !accepts(labels)) continue;
    const bound = readNumber(labels['le'] ?? '');
    buckets.set(bound, (buckets.get(bound) ?? 0) + value);
  }
  return new Map([...buckets].sort(([a], [b]) => a - b));
}

/**
 * A quantile of what was observed between two readings, interpolated within its bucket as Prometheus does.
 *
 * @param {Map<number, number>} before
 * @param {Map<number, number>} after
 * @param {number} q 0..1
 * @returns {number | undefined} undefined when nothing was observed; the last finite bound when it is beyond.
 */
export function quantileBetween(before, after, q) {
  const rising = [...after].map(([bound, count]) => ({ bound, count: count - (before.get(bound) ?? 0) }));
  const total = rising.at(-1)?.count ?? 0;
  if (!(total > 0)) return undefined;
  const wanted = q * total;
  let lower = 0;
  let below = 0;
  for (const { bound, count } of rising) {
    if (count >= wanted) {
      if (!Number.isFinite(bound)) return lower;
      return count === below ? bound : lower + ((bound - lower) * (wanted - below)) / (count - below);
    }
    if (Number.isFinite(bound)) lower = bound;
    below = count;
  }
  return lower;
}

/** @param {string} text */
function readNumber(text) {
  if (text === '+Inf') return Number.POSITIVE_INFINITY;
  if (text === '-Inf') return Number.NEGATIVE_INFINITY;
  return Number(text);
}

/** @param {string} text */
function unescapeLabel(text) {
  return text.replace(/\\(.)/g, (_, character) => (character === 'n' ? '\n' : character));
}
