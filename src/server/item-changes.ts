/**
 * Changes of the catalogue at run time. They are kept in a file, so that they outlive a restart and hold for every model
 * that is loaded afterwards.
 */
import { isDeepStrictEqual } from 'node:util';
import { z } from 'zod';
import { LimbeckError } from '../errors.js';
import { checkedJson } from '../formats/checked-json.js';
import { pathExists, readJsonFile, writeFileAtomic } from '../formats/files.js';
import type { CatalogueItem } from '../recommend/item-index.js';
import type { Student } from '../recommend/student.js';
import { HttpError } from './http-error.js';

/** Of each kind. Distil or fine-tune a model again before there are more. */
const MAX_CHANGES = 100_000;
/** Items encoded before the event loop gets a turn: a text takes up to a millisecond. */
const ITEMS_A_TURN = 4;
/** Of the file, written at a time: less than a millisecond's work. */
const VALUES_A_PART = 500;

const fileSchema = z.strictObject({
  format: z.literal('limbeck-item-changes'),
  version: z.literal(1),
  added: z.array(z.looseObject({ id: z.string().min(1), text: z.string() })),
  removed: z.array(z.string()),
});

export class ItemChanges {
  readonly #path: string | undefined;
  readonly #added = new Map<string, CatalogueItem>();
  /** Also those that were added anew since: a model may still know them as they were. */
  readonly #removed = new Set<string>();

  /**
   * @param path absent: changes last until the process ends
   * @throws LimbeckError ERR_FILE_FORMAT, ERR_IO
   */
  static async open(path: string | undefined): Promise<ItemChanges> {
    const changes = new ItemChanges(path);
    if (path === undefined || !(await pathExists(path))) return changes;
    const { added, removed } = checkedJson(fileSchema, await readJsonFile(path), `'${path}'`);
    for (const item of added) changes.#added.set(item.id, item as CatalogueItem);
    for (const id of removed) changes.#removed.add(id);
    return changes;
  }

  private constructor(path: string | undefined) {
    this.#path = path;
  }

  /**
   * Brings a student that was just loaded up to date.
   *
   * @throws LimbeckError ERR_CHECKPOINT_MISMATCH when it cannot know what was added by its text
   */
  async applyTo(student: Student): Promise<void> {
    const added: CatalogueItem[] = [];
    const replaced: CatalogueItem[] = [];
    for (const item of this.#added.values()) {
      const known = student.items[student.indexOf(item.id) ?? -1];
      if (known === undefined) added.push(item);
      else if (this.#removed.has(item.id) && !isDeepStrictEqual(known, item)) replaced.push(item);
    }
    const numTexts = added.length + replaced.length;
    if (numTexts > 0 && student.encoder === undefined) {
      throw new LimbeckError(
        'ERR_CHECKPOINT_MISMATCH',
        `${numTexts} items were added by their texts, and this student has no text encoder to know them by. ` +
          `Serve one that has, or take the items out (DELETE /v1/items, or remove '${this.#path ?? 'them'}').`,
      );
    }
    await addInTurns(student, added);
    // One after the other: a catalogue of which every item was replaced is never without one.
    for (const item of replaced) {
      student.removeItems([item.id]);
      await addInTurns(student, [item]);
    }
    removeKnown(
      student,
      [...this.#removed].filter((id) => !this.#added.has(id)),
    );
  }

  /**
   * Adds items to every student given; all of them, or none when one is refused.
   *
   * @throws HttpError 409 for an id that is there; LimbeckError as `addItems`, ERR_NO_SPACE, ERR_IO
   */
  async add(students: readonly Student[], items: readonly CatalogueItem[]): Promise<void> {
    const ids = new Set(items.map(({ id }) => id));
    const known = items.find(({ id }) => students.some((student) => student.indexOf(id) !== undefined));
    if (known !== undefined || ids.size < items.length) {
      const name =
        known === undefined ? 'The same id comes twice.' : `The catalogue has an item '${known.id}' already.`;
      throw new HttpError(409, 'ERR_CONFLICT', name);
    }
    if (this.#added.size + items.length > MAX_CHANGES) {
      throw new HttpError(409, 'ERR_CONFLICT', `${MAX_CHANGES} items were added already: make a new model of them.`);
    }
    for (const student of students) {
      try {
        await addInTurns(student, items);
      } catch (error) {
        for (const other of students) removeKnown(other, ids);
        throw error;
      }
    }
    await this.#change(ids, () => {
      for (const item of items) this.#added.set(item.id, item);
    }).catch((error: unknown) => {
      for (const student of students) removeKnown(student, ids);
      throw error;
    });
  }

  /** Takes items out of every student given. @returns how many were there */
  async remove(students: readonly Student[], ids: readonly string[]): Promise<number> {
    const known = new Set(ids.filter((id) => students.some((student) => student.indexOf(id) !== undefined)));
    if (
      students.some(
        (student) => [...known].filter((id) => student.indexOf(id) !== undefined).length === student.numItems,
      )
    ) {
      throw new HttpError(409, 'ERR_CONFLICT', 'A catalogue needs at least one item.');
    }
    const numRemoved = this.#removed.size + [...known].filter((id) => !this.#removed.has(id)).length;
    if (numRemoved > MAX_CHANGES) {
      const message = `At most ${MAX_CHANGES} items may be taken out: make a new model without them.`;
      throw new HttpError(409, 'ERR_CONFLICT', message);
    }
    await this.#change(known, () => {
      for (const id of known) {
        this.#added.delete(id);
        this.#removed.add(id);
      }
    });
    for (const student of students) removeKnown(student, known);
    return known.size;
  }

  /** Changes what is kept of some items and writes it all; as it was when that fails. */
  async #change(ids: Iterable<string>, change: () => void): Promise<void> {
    const before = Array.from(ids, (id) => ({ id, item: this.#added.get(id), isRemoved: this.#removed.has(id) }));
    change();
    if (this.#path === undefined) return;
    try {
      await writeFileAtomic(this.#path, this.#content());
    } catch (error) {
      for (const { id, item, isRemoved } of before) {
        if (item === undefined) this.#added.delete(id);
        else this.#added.set(id, item);
        if (isRemoved) this.#removed.add(id);
        else this.#removed.delete(id);
      }
      throw error;
    }
  }

  /** The file, in parts that are written in turns of their own: all of it at once may take a quarter of a second. */
  async *#content(): AsyncIterable<Buffer> {
    yield Buffer.from('{"format":"limbeck-item-changes","version":1,"added":[');
    yield* listParts(this.#added.values());
    yield Buffer.from('],"removed":[');
    yield* listParts(this.#removed);
    yield Buffer.from(']}');
  }
}

/** JSON of the values, separated by commas. */
function* listParts(values: Iterable<unknown>): Iterable<Buffer> {
  let texts: string[] = [];
  let separator = '';
  for (const value of values) {
    texts.push(JSON.stringify(value));
    if (texts.length < VALUES_A_PART) continue;
    yield Buffer.from(separator + texts.join());
    separator = ',';
    texts = [];
  }
  if (texts.length > 0) yield Buffer.from(separator + texts.join());
}

async function addInTurns(student: Student, items: readonly CatalogueItem[]): Promise<void> {
  for (let i = 0; i < items.length; i += ITEMS_A_TURN) {
    student.addItems(items.slice(i, i + ITEMS_A_TURN));
    await new Promise(setImmediate);
  }
}

function removeKnown(student: Student, ids: Iterable<string>): void {
  const known = [...ids].filter((id) => student.indexOf(id) !== undefined);
  if (known.length > 0) student.removeItems(known);
}
