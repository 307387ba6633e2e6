/** The items of a student, their native ids and the ids of their categories. */
import { described } from '../arguments.js';
import { LimbeckError } from '../errors.js';

/** An item as a student knows it. */
export interface CatalogueItem {
  readonly id: string;
  readonly text: string;
  /** What `filter` chooses by. */
  readonly categories?: readonly string[] | undefined;
  /** Never recommended, but known in histories. @defaultValue false */
  readonly hidden?: boolean | undefined;
  /** Added to the item's score. @defaultValue 0 */
  readonly boost?: number | undefined;
  /** Milliseconds since 1970; kept for those who rank by freshness. */
  readonly publishedAt?: number | undefined;
}

/** How the native side is told of items. */
export interface ItemDescriptions {
  readonly categories: Int32Array; // lists end to end
  readonly categoryOffsets: Int32Array; // [n + 1]
  readonly boosts: Float32Array; // [n]
  readonly hidden: Int32Array; // [n]
}

/**
 * A slot is an item's native id: it never changes. Slots of removed items stay empty, so that adding and removing cost
 * nothing that grows with the catalogue; `items` and positions, which have no gaps, are made when they are asked for.
 */
export class ItemIndex {
  readonly #slots: CatalogueItem[] = [];
  readonly #slotOf = new Map<string, number>();
  readonly #categoryOf = new Map<string, number>();
  #numRemoved = 0;
  #live: { readonly items: CatalogueItem[]; readonly slots: Int32Array; readonly positions: Int32Array } | undefined;

  /** An index of items that another one had, those of `removed` slots included. */
  static of(items: readonly CatalogueItem[], removed: Iterable<number>): ItemIndex {
    const index = new ItemIndex();
    index.describe(items);
    index.add(items, new Set(removed));
    return index;
  }

  /** Items that are not removed. */
  get size(): number {
    return this.#slotOf.size;
  }

  get numSlots(): number {
    return this.#slots.length;
  }

  get numRemoved(): number {
    return this.#numRemoved;
  }

  /** Items that are not removed, in the order they were added. */
  get items(): readonly CatalogueItem[] {
    return this.#numRemoved === 0 ? this.#slots : this.#withoutGaps().items;
  }

  /** Slot of each of `items`. */
  get liveSlots(): Int32Array {
    return this.#withoutGaps().slots;
  }

  /** All slots, those of removed items too. */
  get slots(): readonly CatalogueItem[] {
    return this.#slots;
  }

  slotOf(id: string): number | undefined {
    return this.#slotOf.get(id);
  }

  idAt(slot: number): string {
    return this.#slots[slot]?.id ?? '';
  }

  /** Index in `items`. */
  positionOf(id: string): number | undefined {
    const slot = this.#slotOf.get(id);
    if (slot === undefined || this.#numRemoved === 0) return slot;
    return this.#withoutGaps().positions[slot];
  }

  /** Index in `items` of each slot; −1 for removed ones. */
  get positions(): Int32Array {
    return this.#withoutGaps().positions;
  }

  /** −1 for a category that no item ever had. */
  categoryId(name: string): number {
    return this.#categoryOf.get(name) ?? -1;
  }

  /** @throws LimbeckError ERR_INVALID_ARGUMENT when an item cannot be added; then none is */
  check(items: readonly CatalogueItem[]): void {
    checkItems(items);
    const ids = new Set<string>();
    for (const { id } of items) {
      if (ids.has(id)) throw new LimbeckError('ERR_INVALID_ARGUMENT', `items: '${id}' comes twice`);
      if (this.#slotOf.has(id)) {
        throw new LimbeckError('ERR_INVALID_ARGUMENT', `items: the catalogue has an item '${id}' already`);
      }
      ids.add(id);
    }
  }

  /** Adds items that {@link check} let through; those of `removed` slots only take their slot. */
  add(items: readonly CatalogueItem[], removed: ReadonlySet<number> = new Set()): void {
    for (const item of items) {
      if (removed.has(this.#slots.length)) this.#numRemoved++;
      else this.#slotOf.set(item.id, this.#slots.length);
      this.#slots.push(plainItem(item));
    }
    this.#live = undefined;
  }

  removedSlots(): Int32Array {
    if (this.#numRemoved === 0) return new Int32Array(0);
    const { positions } = this.#withoutGaps();
    return Int32Array.from(positions.keys()).filter((slot) => positions[slot] === -1);
  }

  /** Unknown ids have no effect. */
  remove(ids: Iterable<string>): void {
    for (const id of ids) if (this.#slotOf.delete(id)) this.#numRemoved++;
    this.#live = undefined;
  }

  /** Numbers the categories that are new. */
  describe(items: readonly CatalogueItem[]): ItemDescriptions {
    const categories: number[] = [];
    const categoryOffsets = new Int32Array(items.length + 1);
    const boosts = new Float32Array(items.length);
    const hidden = new Int32Array(items.length);
    items.forEach((item, i) => {
      for (const name of item.categories ?? []) {
        let category = this.#categoryOf.get(name);
        if (category === undefined) {
          category = this.#categoryOf.size;
          this.#categoryOf.set(name, category);
        }
        categories.push(category);
      }
      categoryOffsets[i + 1] = categories.length;
      boosts[i] = item.boost ?? 0;
      hidden[i] = item.hidden === true ? 1 : 0;
    });
    return { categories: Int32Array.from(categories), categoryOffsets, boosts, hidden };
  }

  #withoutGaps() {
    if (this.#live === undefined) {
      const positions = new Int32Array(this.#slots.length).fill(-1);
      const slots = new Int32Array(this.#slotOf.size);
      const items: CatalogueItem[] = [];
      this.#slots.forEach((item, slot) => {
        if (this.#slotOf.get(item.id) !== slot) return;
        positions[slot] = items.length;
        slots[items.length] = slot;
        items.push(item);
      });
      this.#live = { items, slots, positions };
    }
    return this.#live;
  }
}

/** Without keys that are not ours, and without those that say nothing. */
function plainItem({ id, text, categories, hidden, boost, publishedAt }: CatalogueItem): CatalogueItem {
  const item: { -readonly [Key in keyof CatalogueItem]: CatalogueItem[Key] } = { id, text };
  if (categories !== undefined && categories.length > 0) item.categories = [...categories];
  if (hidden === true) item.hidden = hidden;
  if (boost !== undefined && boost !== 0) item.boost = boost;
  if (publishedAt !== undefined) item.publishedAt = publishedAt;
  return item;
}

/** @throws LimbeckError ERR_INVALID_ARGUMENT for what is no list of items; whether an id is repeated is not looked at */
export function checkItems(items: readonly CatalogueItem[]): void {
  if (!Array.isArray(items)) throw invalid('', 'expected a list of items', items);
  for (const item of items) {
    if (typeof item !== 'object' || item === null) throw invalid('', 'expected { id, text }', item);
    const { id, text, categories, hidden, boost, publishedAt } = item;
    if (typeof id !== 'string' || id === '') throw invalid('id', 'expected a text that is not empty', id);
    checkWellFormed(id, 'id', id);
    if (typeof text !== 'string') throw invalid('text', 'expected a text', text);
    checkWellFormed(id, 'text', text);
    if (categories !== undefined && !isTextList(categories)) {
      throw invalid('categories', 'expected a list of texts', categories);
    }
    for (const category of categories ?? []) checkWellFormed(id, 'categories', category);
    if (hidden !== undefined && typeof hidden !== 'boolean') throw invalid('hidden', 'expected true or false', hidden);
    if (boost !== undefined && (typeof boost !== 'number' || !Number.isFinite(Math.fround(boost)))) {
      throw invalid('boost', 'expected a finite number', boost);
    }
    if (publishedAt !== undefined && !Number.isFinite(publishedAt)) {
      throw invalid('publishedAt', 'expected a number of milliseconds', publishedAt);
    }
  }
}

function isTextList(value: unknown): value is readonly string[] {
  // Unlike every(), it sees gaps.
  return Array.isArray(value) && value.findIndex((entry) => typeof entry !== 'string') < 0;
}

/** Files are UTF-8, which has no form for half a surrogate pair: what holds one could be saved, but not opened again. */
function checkWellFormed(id: string, key: string, text: string): void {
  if (text.isWellFormed()) return;
  throw new LimbeckError(
    'ERR_INVALID_ARGUMENT',
    `items: ${key} of ${JSON.stringify(id)}: expected well-formed text, got half a surrogate pair, as slice() leaves of ` +
      'an emoji. Cut texts between characters, or repair them with toWellFormed().',
  );
}

function invalid(key: string, expected: string, value: unknown): LimbeckError {
  const name = key === '' ? 'items' : `items: ${key}`;
  return new LimbeckError('ERR_INVALID_ARGUMENT', `${name}: ${expected}, got ${described(value)}`);
}
