/** Names for clusters of items: the categories, or else the words, that set their items apart from the others. */
import type { CatalogueItem } from './item-index.js';

/** Clusters of a catalogue. */
export interface StudentTopics {
  readonly names: readonly string[];
  readonly centroids: Float32Array; // [topics, width]
}

/** A second label joins the name when it sets the topic apart at least this much as well as the first. */
const SECOND_LABEL = 0.6;
const MIN_WORD_LENGTH = 3;
/** Of a larger catalogue, about so many items, as many of each topic; of those with fewer, all. */
const MAX_NAMED_ITEMS = 100_000;

/** About √(items / 2) topics, 2 to 64. */
export function numTopicsFor(numItems: number): number {
  return Math.min(numItems, Math.max(2, Math.min(64, Math.round(Math.sqrt(numItems / 2)))));
}

/**
 * A different name for each topic.
 *
 * @param items undefined where an item was removed
 * @param itemTopics topic of each item
 */
export function nameTopics(
  items: readonly (CatalogueItem | undefined)[],
  itemTopics: Int32Array,
  numTopics: number,
): string[] {
  const categories = rankLabels(items, itemTopics, numTopics, ({ categories: own = [] }) => new Set(own));
  const words = rankLabels(items, itemTopics, numTopics, ({ text }) => wordsOf(text));
  const taken = new Set<string>();
  return Array.from({ length: numTopics }, (_, topic) => {
    const labels = categories[topic]?.length ? (categories[topic] ?? []) : (words[topic] ?? []);
    const [first, second] = labels;
    const joined =
      first && second && second.score >= SECOND_LABEL * first.score ? `${first.label}, ${second.label}` : '';
    const base = joined || (first?.label ?? `Topic ${topic + 1}`);
    const details = (words[topic] ?? []).map(({ label }) => label).filter((word) => !base.toLowerCase().includes(word));
    const names = [base, ...details.map((word) => `${base}: ${word}`)];
    let name = names.find((candidate) => !taken.has(candidate));
    for (let i = 2; name === undefined; i++) if (!taken.has(`${base} ${i}`)) name = `${base} ${i}`;
    taken.add(name);
    return name;
  });
}

interface Label {
  readonly label: string;
  readonly score: number;
}

/**
 * Labels of each topic, best first: those that many of its items have, and few of the others, by
 * p(label | topic)·log(p(label | topic) / p(label)). Only labels that a topic has more often than the catalogue.
 */
function rankLabels(
  items: readonly (CatalogueItem | undefined)[],
  itemTopics: Int32Array,
  numTopics: number,
  labelsOf: (item: CatalogueItem) => Iterable<string>,
): Label[][] {
  const inAll = new Map<string, number>();
  const inTopic = Array.from({ length: numTopics }, () => new Map<string, number>());
  const sizes = new Int32Array(numTopics);
  let size = 0;
  const shares = sharesRead(items, itemTopics, numTopics);
  items.forEach((item, i) => {
    const topic = itemTopics[i] ?? 0;
    const counts = inTopic[topic];
    const share = shares[topic];
    if (item === undefined || counts === undefined || share === undefined) return;
    // Multiples of the golden ratio: no period of the catalogue is missed, as every tenth item might.
    if (Math.imul(i, 0x9e3779b1) >>> 0 >= share * 2 ** 32) return;
    size += 1 / share; // it stands for those that are not read
    sizes[topic] = (sizes[topic] ?? 0) + 1;
    for (const label of labelsOf(item)) {
      inAll.set(label, (inAll.get(label) ?? 0) + 1 / share);
      counts.set(label, (counts.get(label) ?? 0) + 1);
    }
  });
  return inTopic.map((counts, topic) => {
    const labels: Label[] = [];
    for (const [label, count] of counts) {
      const share = count / (sizes[topic] ?? 1);
      const score = share * Math.log(share / ((inAll.get(label) ?? count) / size));
      if (score > 0 && (count > 1 || sizes[topic] === 1)) labels.push({ label, score });
    }
    return labels.sort((a, b) => b.score - a.score || (a.label < b.label ? -1 : 1)).slice(0, 5);
  });
}

/** What part of each topic's items is read. */
function sharesRead(
  items: readonly (CatalogueItem | undefined)[],
  itemTopics: Int32Array,
  numTopics: number,
): Float64Array {
  const shares = new Float64Array(numTopics).fill(1);
  if (items.length <= MAX_NAMED_ITEMS) return shares;
  const sizes = new Int32Array(numTopics);
  for (const topic of itemTopics) sizes[topic] = (sizes[topic] ?? 0) + 1;
  return shares.map((_, topic) => Math.min(1, MAX_NAMED_ITEMS / numTopics / (sizes[topic] ?? 1)));
}

function wordsOf(text: string): Set<string> {
  const words = text.toLowerCase().match(/\p{L}+/gu) ?? [];
  return new Set(words.filter((word) => word.length >= MIN_WORD_LENGTH));
}
