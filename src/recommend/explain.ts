/** From leave-one-out weights to what is told of a recommendation. Letters: N items, H entries of the history. */

/** How much one entry of the history raised a score. */
export interface Reason {
  /** Id of the entry, or its text when it has none. */
  readonly item: string;
  /** By how much the score would fall, against the mean item of the catalogue, without the entry. > 0 */
  readonly weight: number;
}

/** How much the entries of one interest raised a score. */
export interface InterestReason {
  readonly name: string;
  /** Sum of the weights of its entries. > 0 */
  readonly weight: number;
}

export interface Explanation {
  /** At most 5, most important first; empty when nothing in the history raised the score. */
  readonly because: readonly Reason[];
  /** At most 3, most important first. */
  readonly interests: readonly InterestReason[];
}

const MOST_REASONS = 5;
const MOST_INTERESTS = 3;

/**
 * @param weights [N, H] what each entry adds to each score
 * @param entries [H] what the entries are called
 * @param interests [H] the interest that an entry belongs to, where it is known
 */
export function explanations(
  weights: Float32Array,
  entries: readonly string[],
  interests: readonly (string | undefined)[],
): Explanation[] {
  const numEntries = entries.length;
  return Array.from({ length: weights.length / numEntries }, (_, row) => {
    const because: Reason[] = [];
    const byInterest = new Map<string, number>();
    entries.forEach((item, entry) => {
      const weight = weights[row * numEntries + entry] ?? 0;
      if (weight <= 0) return;
      because.push({ item, weight });
      const name = interests[entry];
      if (name !== undefined) byInterest.set(name, (byInterest.get(name) ?? 0) + weight);
    });
    const named = Array.from(byInterest, ([name, weight]) => ({ name, weight }));
    return { because: largest(because, MOST_REASONS), interests: largest(named, MOST_INTERESTS) };
  });
}

function largest<T extends { readonly weight: number }>(entries: T[], most: number): T[] {
  return entries.sort((a, b) => b.weight - a.weight).slice(0, most);
}
