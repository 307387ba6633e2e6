import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ItemChanges } from '../../../src/server/item-changes.js';

type Item = { id: string; text: string };

class FakeStudent {
  readonly known = new Map<string, Item>([['old', { id: 'old', text: 'Old' }]]);
  readonly encoder = {};
  constructor(private readonly refuses?: string) {}
  indexOf(id: string) {
    return this.known.has(id) ? this.ids.indexOf(id) : undefined;
  }
  addItems(items: Item[]) {
    for (const item of items) {
      if (this.known.has(item.id)) throw new Error(`known ${item.id}`);
      if (item.id === this.refuses) throw new Error('refused');
      this.known.set(item.id, item);
    }
  }
  removeItems(ids: string[]) {
    if (ids.length === this.numItems) throw new Error('a catalogue needs at least one item');
    for (const id of ids) if (!this.known.delete(id)) throw new Error(`unknown ${id}`);
  }
  get numItems() {
    return this.known.size;
  }
  get items() {
    return [...this.known.values()];
  }
  get ids() {
    return [...this.known.keys()];
  }
}

let folder: string;
let path: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'limbeck-items-'));
  path = join(folder, 'item-changes.json');
});
afterEach(() => rmSync(folder, { recursive: true }));

const add = (changes: ItemChanges, students: FakeStudent[], ...ids: string[]) =>
  changes.add(
    students as never,
    ids.map((id) => ({ id, text: id })),
  );

describe('ItemChanges', () => {
  it('hold for every student, and for those that are loaded after a restart', async () => {
    const changes = await ItemChanges.open(path);
    const [a, b] = [new FakeStudent(), new FakeStudent()];
    await add(changes, [a, b], 'x', 'y', 'z');
    expect(await changes.remove([a, b] as never, ['old', 'z', 'nobody'])).toBe(2);
    expect(a.ids).toEqual(['x', 'y']);
    expect(b.ids).toEqual(['x', 'y']);
    const later = new FakeStudent();
    await (await ItemChanges.open(path)).applyTo(later as never);
    expect(later.ids).toEqual(['x', 'y']);
  });

  it('are refused by a student that cannot know texts', async () => {
    const changes = await ItemChanges.open(path);
    await add(changes, [new FakeStudent()], 'x');
    const plain = new FakeStudent();
    Object.assign(plain, { encoder: undefined });
    await expect(changes.applyTo(plain as never)).rejects.toMatchObject({
      code: 'ERR_CHECKPOINT_MISMATCH',
      message: expect.stringContaining('text encoder'),
    });
    await (await ItemChanges.open(undefined)).applyTo(plain as never);
    expect(plain.ids).toEqual(['old']);
  });

  it('leave out what a new model knows by itself', async () => {
    const changes = await ItemChanges.open(path);
    await add(changes, [new FakeStudent()], 'x');
    const retrained = new FakeStudent();
    retrained.known.set('x', { id: 'x', text: 'from training' });
    await changes.applyTo(retrained as never);
    expect(retrained.known.get('x')?.text).toBe('from training');
  });

  it('replace an item that was taken out and added anew, also when nothing else is left of a model', async () => {
    const base = () => {
      const student = new FakeStudent();
      student.addItems([{ id: 'second', text: 'Second' }]);
      return student;
    };
    const running = base();
    const changes = await ItemChanges.open(path);
    for (const id of ['old', 'second']) {
      await changes.remove([running] as never, [id]);
      await add(changes, [running], id);
    }
    const later = base();
    await (await ItemChanges.open(path)).applyTo(later as never);
    expect(later.items).toEqual(running.items);
    expect(later.known.get('old')?.text).toBe('old');
    await changes.remove([running] as never, ['old']);
    const last = base();
    await (await ItemChanges.open(path)).applyTo(last as never);
    expect(last.items).toEqual([{ id: 'second', text: 'second' }]);
  });

  it('leave alone what was added anew and a new model knows as it is now', async () => {
    const student = new FakeStudent();
    const changes = await ItemChanges.open(path);
    await add(changes, [student], 'x');
    await changes.remove([student] as never, ['old']);
    await add(changes, [student], 'old');
    const retrained = new FakeStudent();
    Object.assign(retrained, { encoder: undefined });
    retrained.known.set('x', { id: 'x', text: 'x' }).set('old', { id: 'old', text: 'old' });
    await changes.applyTo(retrained as never);
    expect(retrained.ids).toEqual(['old', 'x']);
  });

  it('take out no more than can be kept', async () => {
    const student = new FakeStudent();
    for (let i = 0; i <= 100_000; i++) student.known.set(`i${i}`, { id: `i${i}`, text: '' });
    student.indexOf = (id) => (student.known.has(id) ? 0 : undefined); // the place takes too long to find
    const changes = await ItemChanges.open(undefined);
    const ids = Array.from({ length: 100_000 }, (_, i) => `i${i}`);
    expect(await changes.remove([student] as never, ids)).toBe(100_000);
    await expect(changes.remove([student] as never, ['old'])).rejects.toMatchObject({ statusCode: 409 });
    await add(changes, [student], 'i0');
    expect(await changes.remove([student] as never, ['i0'])).toBe(1);
    expect(student.numItems).toBe(2);
  });

  it.each([
    ['an item that is there', ['new', 'old']],
    ['the same id twice', ['new', 'new']],
  ])('refuse %s as a whole', async (_, ids) => {
    const student = new FakeStudent();
    await expect(add(await ItemChanges.open(path), [student], ...ids)).rejects.toMatchObject({ statusCode: 409 });
    expect(student.ids).toEqual(['old']);
    expect(existsSync(path)).toBe(false);
  });

  it('are taken back everywhere when one student refuses them', async () => {
    const [a, b] = [new FakeStudent(), new FakeStudent('n7')];
    const ids = Array.from({ length: 10 }, (_, i) => `n${i}`);
    await expect(add(await ItemChanges.open(path), [a, b], ...ids)).rejects.toThrow('refused');
    expect([a.ids, b.ids]).toEqual([['old'], ['old']]);
  });

  it('are taken back when they cannot be written', async () => {
    const student = new FakeStudent();
    student.addItems([{ id: 'second', text: '' }]);
    const changes = await ItemChanges.open(join(folder, 'none', 'item-changes.json'));
    await expect(add(changes, [student], 'x')).rejects.toMatchObject({ code: 'ERR_IO' });
    await expect(changes.remove([student] as never, ['old'])).rejects.toMatchObject({ code: 'ERR_IO' });
    expect(student.ids).toEqual(['old', 'second']);
  });

  it('leave at least one item', async () => {
    const student = new FakeStudent();
    const changes = await ItemChanges.open(path);
    await expect(changes.remove([student] as never, ['old'])).rejects.toMatchObject({ statusCode: 409 });
    expect([student.ids, existsSync(path)]).toEqual([['old'], false]);
  });

  it('are read as they were written, however many', async () => {
    const changes = await ItemChanges.open(path);
    const ids = Array.from({ length: 1203 }, (_, i) => `"item" ${i}`);
    const student = new FakeStudent();
    for (let i = 0; i < ids.length; i += 401) await add(changes, [student], ...ids.slice(i, i + 401));
    await changes.remove([student] as never, ['old', ...ids.slice(0, 600)]);
    const later = new FakeStudent();
    await (await ItemChanges.open(path)).applyTo(later as never);
    expect(later.ids).toEqual(ids.slice(600));
    await changes.remove([student] as never, ids.slice(601));
    const last = new FakeStudent();
    await (await ItemChanges.open(path)).applyTo(last as never);
    expect(last.ids).toEqual(ids.slice(600, 601));
  });

  it('refuse a file that is something else', async () => {
    writeFileSync(path, '{"added":[]}');
    await expect(ItemChanges.open(path)).rejects.toMatchObject({ code: 'ERR_FILE_FORMAT' });
  });
});
