import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import fs from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest';
import { writeSafetensors } from '../../../src/formats/safetensors.js';
import { createEngine, type Engine, type Student } from '../../../src/index.js';
import { writeCategorisedStudent } from '../../support/categorised-student.js';
import { changeWeights } from '../../support/change-weights.js';

const fixture = join(import.meta.dirname, '../../fixtures/student');
const history = ['tt1583421', 'tt1483013', 'tt1980209'];
let engine: Engine;
let student: Student;
let folder: string;

beforeAll(async () => {
  engine = await createEngine({ threads: 1 });
});
afterAll(() => {
  engine.dispose();
});
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'limbeck-student-'));
  student = await engine.loadStudent(fixture);
});
afterEach(() => {
  rmSync(folder, { recursive: true });
});

describe('recommend', () => {
  test('gives k different items, best first, none of the history or the exclusions', () => {
    const first = student.recommend({ history, k: 5 }).items;
    expect(first).toHaveLength(5);
    expect(new Set(first.map(({ id }) => id)).size).toBe(5);
    expect(first.map(({ score }) => score)).toEqual(first.map(({ score }) => score).toSorted((a, b) => b - a));
    const exclude = first.slice(0, 2).map(({ id }) => id);
    const rest = student.recommend({ history, k: 3, exclude }).items;
    expect(rest).toEqual(first.slice(2));
    expect([...first, ...rest].some(({ id }) => history.includes(id))).toBe(false);
  });

  test('depends on the order of the history', () => {
    const forwards = student.recommend({ history, k: 10 }).items.map(({ score }) => score);
    const backwards = student.recommend({ history: history.toReversed(), k: 10 }).items.map(({ score }) => score);
    expect(forwards).not.toEqual(backwards);
  });

  test('gives fewer than k when the catalogue is exhausted', () => {
    const { items } = student.recommend({ history, k: student.numItems });
    expect(items).toHaveLength(student.numItems - history.length);
  });

  test('leaves unknown ids out and lists them', () => {
    const { items, unknownItems } = student.recommend({ history: ['nope', ...history], k: 3 });
    expect(unknownItems).toEqual(['nope']);
    expect(items).toEqual(student.recommend({ history, k: 3 }).items);
  });

  test('reads only the end of a history longer than the model, and excludes all of it', () => {
    const all = student.items.map(({ id }) => id);
    const long = [...all.slice(0, 30)];
    const { items } = student.recommend({ history: long, k: 6 });
    expect(items.every(({ id }) => all.slice(30).includes(id))).toBe(true);
  });

  test.each([
    ['k of 0', { history, k: 0 }],
    ['k larger than the catalogue', { history, k: 37 }],
    ['k that is not whole', { history, k: 2.5 }],
    ['a history that is no list', { history: 'tt1583421' }],
    ['a history of numbers', { history: [1] }],
    ['exclude that is no list', { history, exclude: 'x' }],
  ])('refuses %s', (_, request) => {
    expect(() => student.recommend(request as never)).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }),
    );
    expect(student.recommend({ history, k: 3 }).items).toHaveLength(3);
  });

  test('a history of unknown items, or of none, has an error of its own without a popularity prior', () => {
    expect(() => student.recommend({ history: ['a', 'b'] })).toThrow(
      expect.objectContaining({ code: 'ERR_UNKNOWN_ITEMS', message: expect.stringContaining("'a'") }),
    );
    expect(() => student.recommend({ history: [] })).toThrow(expect.objectContaining({ code: 'ERR_UNKNOWN_ITEMS' }));
  });

  test('a disposed student says so', () => {
    student.dispose();
    expect(() => student.recommend({ history })).toThrow(expect.objectContaining({ code: 'ERR_DISPOSED' }));
  });
});

describe('items by their text', () => {
  const text = 'Gravity Two. 2014. Sci-Fi, Thriller';

  test('in a history count like the same item in the catalogue', () => {
    const known = new Set(student.items.map(({ id }) => id));
    const before = student.recommend({ history: [...history, { text }], k: 10 }).items;
    student.addItems([{ id: 'new', text }]);
    const after = student.recommend({ history: [...history, 'new'], k: 10 }).items;
    expect(after.map(({ id }) => id)).toEqual(before.map(({ id }) => id));
    for (const [i, { score }] of after.entries()) expect(score).toBeCloseTo(before[i]?.score ?? 0, 4);
    expect(before.every(({ id }) => known.has(id))).toBe(true);
  });

  test('can be recommended once added, and stay after save and load', async () => {
    student.addItems([
      { id: 'one', text },
      { id: 'two', text: 'Silent Western. 1950. Western' },
    ]);
    const all = student.recommend({ history, k: student.numItems }).items;
    expect(all.map(({ id }) => id)).toEqual(expect.arrayContaining(['one', 'two']));
    await student.save(join(folder, 'saved'));
    const again = await engine.loadStudent(join(folder, 'saved'));
    expect(again.numItems).toBe(38);
    const reloaded = again.recommend({ history, k: again.numItems }).items;
    expect(reloaded.map(({ id }) => id)).toEqual(all.map(({ id }) => id));
    for (const [i, { score }] of reloaded.entries()) expect(score).toBeCloseTo(all[i]?.score ?? 0, 5);
  });

  test('alone make interests, which name the texts that belong to them', () => {
    const of = (id: string) => ({ text: student.items.find((item) => item.id === id)?.text ?? '' });
    const byId = student.interests(history, { k: 9 });
    const byText = student.interests(history.map(of), { k: 9 });
    expect(byText.map(({ name }) => name)).toEqual(byId.map(({ name }) => name));
    expect(byText.reduce((sum, { weight }) => sum + weight, 0)).toBeCloseTo(1, 5);
    byText.forEach(({ weight, items }, i) => {
      expect(weight).toBeCloseTo(byId[i]?.weight ?? 0, 1);
      expect(items).toEqual(byId[i]?.items.map((id) => of(id).text));
    });
    expect(byText.flatMap(({ items }) => items)).toHaveLength(history.length);
    // Ids and texts mixed: newest first in each.
    const mixed = [history[0] ?? '', { text }, history[1] ?? ''];
    expect(
      student
        .interests(mixed, { k: 9 })
        .flatMap(({ items }) => items)
        .toSorted(),
    ).toEqual([history[0], history[1], text].toSorted());
    // An explanation knows the interests of texts, too.
    const explained = student.recommend({ history: history.map(of), k: 20, explain: true }).items;
    const total = (weights: readonly { weight: number }[] = []) => weights.reduce((sum, { weight }) => sum + weight, 0);
    expect(explained.some(({ because = [] }) => because.length > 0)).toBe(true);
    for (const { because, interests } of explained) expect(total(interests)).toBeCloseTo(total(because), 5);
  });

  test('may have categories, be hidden and boosted from the start', () => {
    student.addItems([
      { id: 'western', text: 'Silent. 1950. Western', categories: ['Western', 'Silent'], boost: 100 },
      { id: 'secret', text: 'Secret. 1950. Western', categories: ['Western'], hidden: true },
    ]);
    const filter = { any: ['Western'] };
    expect(student.recommend({ history, k: 5, filter }).items.map(({ id }) => id)).toEqual(['western']);
    expect(student.recommend({ history, k: 1 }).items[0]?.id).toBe('western');
    expect(student.recommend({ history: ['secret'], k: 3 }).unknownItems).toEqual([]);
  });

  test('are all refused when one is malformed, and none is added', () => {
    for (const wrong of [
      { id: 'b' },
      { id: '', text },
      { id: 'a', text },
      { id: 'b', text: '' },
      { id: 'b', text: 5 },
      { id: 'b', text, categories: 'Western' },
      { id: 'b', text, categories: [1] },
      { id: 'b', text, categories: new Array(1) },
      { id: 'b', text, hidden: 1 },
      { id: 'b', text, boost: Number.NaN },
      { id: 'b', text, boost: null },
      { id: 'b', text, boost: '5' },
      { id: 'b', text, publishedAt: 'today' },
      null,
    ]) {
      expect(() => student.addItems([{ id: 'a', text }, wrong] as never)).toThrow(
        expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }),
      );
      expect(student.numItems).toBe(36);
    }
    student.addItems([{ id: 'a', text }]);
    expect(student.indexOf('a')).toBe(36);
  });

  test('are refused when they have half a surrogate pair, which no file could hold', () => {
    const half = '\u{1f600}'.slice(0, 1);
    for (const [wrong, place] of [
      [{ id: `b${half}`, text }, 'id of "b\\ud83d"'],
      [{ id: 'b', text: `Cut ${half}` }, 'text of "b"'],
      [{ id: 'b', text, categories: ['whole', half] }, 'categories of "b"'],
    ] as const) {
      expect(() => student.addItems([{ id: 'a', text }, wrong])).toThrow(
        expect.objectContaining({
          code: 'ERR_INVALID_ARGUMENT',
          message: expect.stringContaining(`items: ${place}: expected well-formed text`),
        }),
      );
    }
    expect(student.numItems).toBe(36);
    student.addItems([{ id: '\u{1f600}', text: '\u{1f600}' }]);
    expect(student.numItems).toBe(37);
  });

  test('that are removed are gone from answers, histories and lists, and may come back', () => {
    const [best] = student.recommend({ history, k: 1 }).items;
    const id = best?.id ?? '';
    student.addItems([{ id: 'new', text }]);
    expect(student.removeItems([id, 'new', 'unknown', id])).toBe(2);
    expect(student.numItems).toBe(35);
    expect(student.items.map((item) => item.id)).not.toContain(id);
    student.items.forEach((item, i) => {
      expect(student.indexOf(item.id)).toBe(i);
    });
    expect(student.recommend({ history, k: 35 }).items.map((item) => item.id)).not.toContain(id);
    expect(student.recommend({ history: [id, ...history], k: 3, explain: true }).unknownItems).toEqual([id]);
    expect(() => student.similar(id)).toThrow(expect.objectContaining({ code: 'ERR_UNKNOWN_ITEMS' }));
    student.addItems([{ id, text }]);
    expect(student.recommend({ history, k: 36 }).items.filter((item) => item.id === id)).toHaveLength(1);
    const last = student.indexOf(id) ?? -1;
    expect(last).toBe(35);
    const { itemIndices } = student.recommendBatch({
      histories: Int32Array.of(last),
      offsets: Int32Array.of(0, 1),
      k: 34,
    });
    const alone = student.recommend({ history: [id], k: 34 }).items;
    expect(Array.from(itemIndices, (i) => student.items[i]?.id)).toEqual(alone.map((item) => item.id));
    // There are more slots than items, and none of them is an item by its number.
    for (const index of [-1, 36, 37]) {
      const request = { histories: Int32Array.of(index), offsets: Int32Array.of(0, 1), k: 3 };
      expect(() => student.recommendBatch(request)).toThrow(
        expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT', message: expect.stringContaining(`item ${index},`) }),
      );
    }
  });

  test('and texts are told in lists', () => {
    for (const call of [() => student.removeItems('tt0770828' as never), () => student.embed('a text' as never)]) {
      expect(call).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }));
    }
    expect(student.numItems).toBe(36);
  });

  test('are not known by a symbol', () => {
    expect(() => student.similar(Symbol('id') as never)).toThrow(
      expect.objectContaining({ code: 'ERR_UNKNOWN_ITEMS' }),
    );
  });

  test('cannot all be removed', () => {
    expect(() => student.removeItems(student.items.map(({ id }) => id))).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }),
    );
    expect(student.numItems).toBe(36);
  });

  test('refuses an id that is there, one that comes twice, and an empty text, and says which', () => {
    const refuses = (items: { id: string; text: string }[], message: RegExp) => {
      const add = () => student.addItems(items);
      expect(add).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }));
      expect(add).toThrow(message);
      expect(student.numItems).toBe(36);
    };
    refuses([{ id: 'tt1583421', text }], /'tt1583421' already/);
    refuses(
      ['a', 'b', 'a'].map((id) => ({ id, text })),
      /'a' comes twice/,
    );
    refuses(
      ['a', 'b'].map((id) => ({ id, text: id === 'a' ? text : ' ' })),
      /text 1 of 2/,
    );
    expect(() => student.recommend({ history: [{ text: '' }] })).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }),
    );
  });

  test('a student without a text encoder knows its catalogue only', async () => {
    cpSync(fixture, join(folder, 's'), { recursive: true });
    rmSync(join(folder, 's/text_encoder'), { recursive: true });
    const plain = await engine.loadStudent(join(folder, 's'));
    expect(plain.recommend({ history, k: 3 })).toEqual(student.recommend({ history, k: 3 }));
    expect(() => plain.recommend({ history: [{ text }] })).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT', message: expect.stringContaining('text encoder') }),
    );
  });
});

describe('student directory', () => {
  test('saved and loaded again recommends the same, score for score', async () => {
    await student.save(join(folder, 'saved'));
    const again = await engine.loadStudent(join(folder, 'saved'));
    expect(again.recommend({ history, k: 10 })).toEqual(student.recommend({ history, k: 10 }));
    for (const name of ['model.safetensors', 'item_features.safetensors', 'text_encoder/model.safetensors']) {
      expect(readFileSync(join(folder, 'saved', name)).equals(readFileSync(join(fixture, name))), name).toBe(true);
    }
  });

  test('holds the catalogue of the moment it was saved, whatever is added and removed meanwhile', async () => {
    const before = student.recommend({ history, k: 10 });
    const saving = student.save(join(folder, 'saved'));
    for (let i = 0; i < 20; i++) {
      student.addItems([{ id: `new ${i}`, text: `Silent Western ${i}. 1950. Western` }]);
      if (i === 5) student.removeItems([before.items[0]?.id ?? '', 'new 2']);
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    await saving;
    const again = await engine.loadStudent(join(folder, 'saved'));
    expect(again.numItems).toBe(36);
    expect(again.recommend({ history, k: 10 })).toEqual(before);
    await student.save(join(folder, 'later'));
    expect((await engine.loadStudent(join(folder, 'later'))).numItems).toBe(54);
  });

  test('keeps what was added and removed, popularity, topics and what is known of items', async () => {
    await writeCategorisedStudent(join(folder, 's'));
    const first = await engine.loadStudent(join(folder, 's'));
    first.addItems([
      { id: 'one', text: 'Silent Western. 1950. Western', categories: ['Western'], hidden: true },
      { id: 'two', text: 'Gravity Two. 2014', boost: 0.25, publishedAt: 1_700_000_000_000 },
    ]);
    first.removeItems(['tt0770828', 'tt1300854']);
    await first.save(join(folder, 'saved'));
    const again = await engine.loadStudent(join(folder, 'saved'));
    expect(again.items).toEqual(first.items);
    expect(again.model.numItems).toBe(36);
    const request = { history: ['two', 'tt1583421'], k: 20, filter: { none: ['Horror'] } };
    const [before, after] = [first.recommend(request).items, again.recommend(request).items];
    expect(after.map(({ id }) => id)).toEqual(before.map(({ id }) => id));
    after.forEach(({ score }, i) => {
      expect(score).toBeCloseTo(before[i]?.score ?? Number.NaN, 3);
    });
    expect(again.recommend({ history: [], k: 1 }).items[0]?.id).toBe(
      first.recommend({ history: [], k: 1 }).items[0]?.id,
    );
    const names = (one: Student) => one.interests(history, { k: 9 }).map(({ name }) => name);
    expect(names(again).toSorted()).toEqual(names(first).toSorted());
    await again.save(join(folder, 'saved')); // over the directory that it was loaded from
    expect((await engine.loadStudent(join(folder, 'saved'))).items).toEqual(first.items);
  });

  test('opens whole when another student is saved over it meanwhile', async () => {
    await writeCategorisedStudent(join(folder, 'other'));
    const other = await engine.loadStudent(join(folder, 'other'));
    const path = join(folder, 'saved');
    await student.save(path);
    const { open } = fs;
    let isReplaced = false;
    onTestFinished(() => void vi.restoreAllMocks());
    vi.spyOn(fs, 'open').mockImplementation(async (...args) => {
      if (!isReplaced && args[0] === join(path, 'config.json')) {
        isReplaced = true;
        await other.save(path);
      }
      return open(...args);
    });
    const loaded = await engine.loadStudent(path);
    expect(isReplaced).toBe(true);
    expect(loaded.hasPopularity).toBe(true);
    expect(loaded.items).toEqual(other.items);
  });

  test('of before categories, topics and popularity opens as it is', async () => {
    expect(student.hasPopularity).toBe(false);
    expect(student.recommend({ history, k: 3, filter: { none: ['Drama'] } }).items).toHaveLength(3);
    expect(student.recommend({ history, k: 3, filter: { any: ['Drama'] } }).items).toEqual([]);
    expect(student.interests(history, { k: 1 })[0]?.name).toMatch(/\w/);
  });

  const items = () => JSON.parse(readFileSync(join(fixture, 'items.json'), 'utf8')) as { id: string; text: string }[];
  test.each([
    ['a catalogue that is too short', 'items.json', () => JSON.stringify(items().slice(1)), 'ERR_CHECKPOINT_MISMATCH'],
    [
      'a repeated id',
      'items.json',
      () => JSON.stringify(items().map((item) => ({ ...item, id: 'same' }))),
      'ERR_CHECKPOINT_MISMATCH',
    ],
    ['a truncated catalogue', 'items.json', () => JSON.stringify(items()).slice(0, 99), 'ERR_FILE_FORMAT'],
    ['items without text', 'items.json', () => JSON.stringify([{ id: 'x' }]), 'ERR_FILE_FORMAT'],
    [
      'categories that are no list',
      'items.json',
      () => JSON.stringify(items().map((item) => ({ ...item, categories: 'x' }))),
      'ERR_FILE_FORMAT',
    ],
    ['topics without centroids', 'topics.json', () => '["a"]', 'ERR_FILE_NOT_FOUND'],
    ['topics that are no names', 'topics.json', () => '[1]', 'ERR_FILE_FORMAT'],
    ['truncated popularity', 'popularity.safetensors', () => 'short', 'ERR_SAFETENSORS'],
    ['truncated features', 'item_features.safetensors', () => 'short', 'ERR_SAFETENSORS'],
    ['a broken text encoder', 'text_encoder/text_encoder.json', () => '{"format":"?"}', 'ERR_FILE_FORMAT'],
  ])('refuses %s', async (_, name, content, code) => {
    cpSync(fixture, join(folder, 's'), { recursive: true });
    writeFileSync(join(folder, 's', name), content());
    await expect(engine.loadStudent(join(folder, 's'))).rejects.toMatchObject({ code });
  });

  test.each([
    'item_features.safetensors',
    'text_encoder/text_encoder.safetensors',
    'model.safetensors',
    'text_encoder/model.safetensors',
    'popularity.safetensors',
    'topics.safetensors',
  ])('refuses %s with NaN or infinity', async (name) => {
    await writeCategorisedStudent(join(folder, 's'));
    await (await engine.loadStudent(join(folder, 's'))).save(join(folder, 's')); // with topics
    const path = join(folder, 's', name);
    const bytes = readFileSync(path);
    for (const value of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
      bytes.writeFloatLE(value, bytes.length - 4);
      writeFileSync(path, bytes);
      await expect(engine.loadStudent(join(folder, 's'))).rejects.toMatchObject({
        code: 'ERR_NOT_FINITE',
        message: expect.stringMatching(`^'${path}': tensor '[^']+' is NaN or infinite at index \\d+`),
      });
    }
  });

  test('refuses popularity of other items, and topics of another width', async () => {
    const [floats, wrong] = [Float32Array.of(1, 2), { code: 'ERR_CHECKPOINT_MISMATCH' }];
    await writeCategorisedStudent(join(folder, 's'));
    await writeSafetensors(join(folder, 's/popularity.safetensors'), [['counts', { shape: [2], data: floats }]]);
    await expect(engine.loadStudent(join(folder, 's'))).rejects.toMatchObject(wrong);
    await writeCategorisedStudent(join(folder, 't'));
    writeFileSync(join(folder, 't/topics.json'), '["a"]');
    await writeSafetensors(join(folder, 't/topics.safetensors'), [['centroids', { shape: [1, 2], data: floats }]]);
    await expect(engine.loadStudent(join(folder, 't'))).rejects.toMatchObject(wrong);
  });

  test.each([
    [-3, '-3'],
    [2 ** 31, '2147483648'],
  ])('says which count of its popularity is %d', async (count, got) => {
    await writeCategorisedStudent(join(folder, 's'));
    const data = new Float32Array(36).with(7, count);
    await writeSafetensors(join(folder, 's/popularity.safetensors'), [['counts', { shape: [36], data }]]);
    await expect(engine.loadStudent(join(folder, 's'))).rejects.toMatchObject({
      code: 'ERR_CHECKPOINT_MISMATCH',
      message: `popularity[7]: expected a count of at least 0 and below 2^31, got ${got}`,
    });
  });

  test('says which of its two models does not fit its config', async () => {
    for (const name of ['', 'text_encoder']) {
      const broken = join(folder, `s-${name}`);
      cpSync(fixture, broken, { recursive: true });
      await writeSafetensors(join(broken, name, 'model.safetensors'), []);
      await expect(engine.loadStudent(broken)).rejects.toMatchObject({
        code: 'ERR_CHECKPOINT_MISMATCH',
        message: expect.stringContaining(`The checkpoint '${join(broken, name)}' does not fit its config.json`),
      });
    }
  });

  /** The fixture with tensors changed. @returns its directory */
  async function withWeights(path: string, changes: Record<string, (value: number, index: number) => number>) {
    const directory = join(folder, 's');
    cpSync(fixture, directory, { recursive: true });
    await changeWeights(directory, path, changes);
    return directory;
  }

  const notFinite = expect.objectContaining({ code: 'ERR_NOT_FINITE', message: expect.stringMatching(/damaged/) });

  test('says so when its states overflow, instead of items in no order', async () => {
    const scaled = { 'transformer.h.0.ln_1.weight': (value: number) => value * 1e30 };
    const huge = await engine.loadStudent(await withWeights('model.safetensors', scaled));
    const batch = { histories: Int32Array.of(1, 2), offsets: Int32Array.of(0, 1, 2), k: 3 };
    expect(() => huge.recommend({ history })).toThrow(notFinite);
    expect(() => huge.recommend({ history, diversity: 0.5 })).toThrow(notFinite);
    expect(() => huge.recommend({ history, filter: { any: ['x'] } })).toThrow(notFinite);
    expect(() => huge.recommendBatch(batch)).toThrow(notFinite);
    expect(() => huge.interests(history)).toThrow(notFinite);
    expect(() => huge.search('a comedy', { history })).toThrow(notFinite);
    expect(huge.search('a comedy').every(({ score }) => Number.isFinite(score))).toBe(true);
    huge.dispose();
  });

  test('says so when its scores overflow', async () => {
    const scaled = {
      'transformer.wte.weight': (value: number) => value * 1e18,
      'transformer.ln_f.weight': (value: number) => value * 1e22,
    };
    const huge = await engine.loadStudent(await withWeights('model.safetensors', scaled));
    expect(() => huge.recommend({ history })).toThrow(notFinite);
    expect(() => huge.recommend({ history, diversity: 0.5 })).toThrow(notFinite);
    expect(() => huge.interests(history)).toThrow(notFinite);
    expect(() => huge.search('a comedy', { history })).toThrow(notFinite);
    huge.dispose();
    const items = { 'transformer.wte.weight': (value: number) => value * 1e30 };
    const larger = await engine.loadStudent(await withWeights('model.safetensors', items));
    expect(() => larger.similar(history[0] as string)).toThrow(notFinite);
    larger.dispose();
    const row = student.items.findIndex(({ id }) => id === history[0]);
    const mean = {
      'transformer.wte.weight': (value: number, i: number) => (Math.floor(i / 16) === row ? 3e38 * (-1) ** i : value),
      'transformer.ln_f.weight': (value: number) => value * 1e3,
    };
    const around = await engine.loadStudent(await withWeights('model.safetensors', mean));
    const request = { history: history.slice(1), exclude: [history[0] as string] };
    expect(around.recommend(request).items).toHaveLength(10);
    expect(() => around.recommend({ ...request, explain: true })).toThrow(notFinite);
    around.dispose();
  });

  test('says so of a text that its encoder makes no numbers of', async () => {
    const scaled = { 'transformer.h.0.ln_1.weight': (value: number) => value * 1e30 };
    const huge = await engine.loadStudent(await withWeights('text_encoder/model.safetensors', scaled));
    expect(() => huge.search('a comedy')).toThrow(notFinite);
    expect(() => huge.embed(['a comedy'])).toThrow(notFinite);
    expect(huge.recommend({ history })).toEqual(student.recommend({ history }));
    huge.dispose();
  });

  test('answers the other requests of a call when one of them overflows', async () => {
    const width = 16;
    const row = student.items.findIndex(({ id }) => id === history[0]);
    const one = (value: number, index: number) => (Math.floor(index / width) === row ? 3e38 * (-1) ** index : value);
    const directory = await withWeights('model.safetensors', { 'transformer.wte.weight': one });
    const mixed = await engine.loadStudent(directory);
    const [bad, good] = [{ history }, { history: history.slice(1), exclude: [history[0] as string] }];
    const right = mixed.recommend(good);
    expect(mixed.recommendAll([bad, good, good])).toEqual([notFinite, right, right]);
    expect(await mixed.recommendAllAside([bad, good, good])).toEqual([notFinite, right, right]);
    expect(await mixed.answerAllAside([bad, good, good])).toEqual([notFinite, right, right]);
    const rows = new Int32Array(2);
    const bodies = [bad, good].map((request) => Buffer.from(JSON.stringify(request)));
    expect(mixed.answerTexts(bodies, rows)).toEqual([]);
    expect(rows).toEqual(Int32Array.of(-1, -1));
    mixed.dispose();
  });

  test.each([[null], [new URL('file:///tmp')], [5]])('is named by a path, not %s', async (directory) => {
    await expect(engine.loadStudent(directory as never)).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
  });

  test('refuses features of another shape, and a directory that is not there', async () => {
    cpSync(fixture, join(folder, 's'), { recursive: true });
    cpSync(join(fixture, 'text_encoder/text_encoder.safetensors'), join(folder, 's/item_features.safetensors'));
    await expect(engine.loadStudent(join(folder, 's'))).rejects.toMatchObject({ code: 'ERR_CHECKPOINT_MISMATCH' });
    await expect(engine.loadStudent(join(folder, 'none'))).rejects.toMatchObject({ code: 'ERR_FILE_NOT_FOUND' });
  });
});
