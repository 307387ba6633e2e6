import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createEngine, type Engine, type HistoryRequest, type Student } from '../../../src/index.js';
import { type FixtureItem, writeCategorisedStudent } from '../../support/categorised-student.js';

let engine: Engine;
let student: Student;
let items: FixtureItem[];
let folder: string;
const hiddenId = 'tt0816711';
const boostedId = 'tt1343092';
const history = ['tt1583421', 'tt1300854', 'tt1408101'];
const ids = (answer: { items: readonly { id: string }[] }) => answer.items.map(({ id }) => id);

beforeAll(async () => {
  engine = await createEngine({ threads: 1 });
  folder = mkdtempSync(join(tmpdir(), 'limbeck-options-'));
  items = await writeCategorisedStudent(join(folder, 's'), (item) => ({
    ...item,
    ...(item.id === hiddenId && { hidden: true }),
    ...(item.id === boostedId && { boost: 0.5 }),
  }));
  student = await engine.loadStudent(join(folder, 's'));
});
afterAll(() => {
  student.dispose();
  engine.dispose();
  rmSync(folder, { recursive: true });
});

/** Reproducible random requests. */
class Draw {
  #state: number;
  constructor(seed: number) {
    this.#state = seed >>> 0;
  }
  below(limit: number): number {
    this.#state = (Math.imul(this.#state, 1664525) + 1013904223) >>> 0;
    return Math.floor((this.#state / 2 ** 32) * limit);
  }
  some<T>(list: readonly T[], most: number): T[] {
    return Array.from({ length: this.below(most + 1) }, () => list[this.below(list.length)] as T);
  }
}

function randomRequest(seed: number): HistoryRequest & { k: number } {
  const draw = new Draw(seed);
  const known = items.map(({ id }) => id);
  const genres = [...new Set(items.flatMap(({ categories }) => categories)), 'no such genre'];
  const maybe = (share: number) => draw.below(100) < share * 100;
  return {
    history: [...draw.some(known, 6), ...draw.some(['unknown', 'x'], 2)],
    k: 1 + draw.below(items.length),
    ...(maybe(0.5) && { exclude: [...draw.some(known, 20), 'unknown'] }),
    ...(maybe(0.5) && {
      filter: {
        ...(maybe(0.5) && { any: draw.some(genres, 3) }),
        ...(maybe(0.3) && { all: draw.some(genres, 2) }),
        ...(maybe(0.3) && { none: draw.some(genres, 2) }),
      },
    }),
    ...(maybe(0.2) && { candidates: draw.some([...known, 'unknown'], 25) }),
    ...(maybe(0.4) && { diversity: draw.below(101) / 100 }),
    ...(maybe(0.3) && { novelty: draw.below(100) / 50 }),
    ...(maybe(0.4) && { explore: draw.below(101) / 100, seed }),
    ...(maybe(0.3) && { boosts: Object.fromEntries(draw.some(known, 5).map((id) => [id, draw.below(9) - 4])) }),
    ...(maybe(0.1) && { explain: true }),
  };
}

function eligible({ history: chosen, exclude = [], filter, candidates }: HistoryRequest): Set<string> {
  const isSet = (list: readonly string[] | undefined) => list !== undefined && list.length > 0;
  const left = items.filter(({ id, categories }) => {
    const has = (name: string) => categories.includes(name);
    return (
      id !== hiddenId &&
      !chosen.includes(id) &&
      !exclude.includes(id) &&
      (candidates === undefined || candidates.includes(id)) &&
      (!isSet(filter?.any) || filter?.any?.some(has)) &&
      (filter?.all ?? []).every(has) &&
      !(filter?.none ?? []).some(has)
    );
  });
  return new Set(left.map(({ id }) => id));
}

describe('any request', () => {
  test('gets different, eligible items, and k of them while so many are left', () => {
    for (let seed = 0; seed < 1500; seed++) {
      const request = randomRequest(seed);
      const allowed = eligible(request);
      const answer = student.recommend(request);
      const got = ids(answer);
      expect(new Set(got).size, `seed ${seed}`).toBe(got.length);
      expect(
        got.filter((id) => !allowed.has(id)),
        `seed ${seed}`,
      ).toEqual([]);
      expect(got.length, `seed ${seed}`).toBe(Math.min(request.k, allowed.size));
      expect(answer.items.every(({ score }) => Number.isFinite(score))).toBe(true);
    }
  });

  test('is answered the same again, and changes nothing for the next one', () => {
    const plain = student.recommend({ history, k: 10 });
    for (let seed = 0; seed < 100; seed++) {
      const request = randomRequest(seed);
      expect(student.recommend(request)).toEqual(student.recommend(request));
      expect(student.recommend({ history, k: 10 })).toEqual(plain);
    }
  });
});

describe('options of recommend', () => {
  test('boosts are added to the score, those of the catalogue and of the request', () => {
    const all = { history, k: 36 };
    const scoreOf = (request: HistoryRequest, id: string) =>
      student.recommend(request).items.find((item) => item.id === id)?.score ?? Number.NaN;
    const before = scoreOf(all, boostedId);
    expect(scoreOf({ ...all, boosts: { [boostedId]: 2, unknown: 9 } }, boostedId)).toBeCloseTo(before + 2, 4);
    expect(ids(student.recommend({ history, k: 1, boosts: { tt0770828: 1000 } }))).toEqual(['tt0770828']);
    expect(ids(student.recommend({ ...all, boosts: { tt0770828: -1000 } })).at(-1)).toBe('tt0770828');
  });

  test('novelty brings rare items up', () => {
    const meanPlace = (novelty: number) => {
      const places = ids(student.recommend({ history, k: 10, novelty })).map((id) => student.indexOf(id) ?? 0);
      return places.reduce((sum, place) => sum + place, 0) / places.length; // item i was chosen 100 / (i + 1) times
    };
    expect(meanPlace(5)).toBeGreaterThan(meanPlace(0) + 3);
  });

  test('diversity of 1 puts items unlike each other first, and keeps the best first', () => {
    const likeness = (diversity: number) => {
      const [first = '', second = ''] = ids(student.recommend({ history, k: 2, diversity }));
      return student.similar(first, { k: 36 }).find(({ id }) => id === second)?.score ?? Number.NaN;
    };
    expect(likeness(1)).toBeLessThan(likeness(0));
    expect(ids(student.recommend({ history, k: 1, diversity: 0.9 }))).toEqual(
      ids(student.recommend({ history, k: 1 })),
    );
  });

  test('explore gives its share of places to others, another each time unless there is a seed', () => {
    const plain = ids(student.recommend({ history, k: 10 }));
    const kept = ids(student.recommend({ history, k: 10, explore: 0.3, seed: 5 })).filter((id) =>
      plain.slice(0, 7).includes(id),
    );
    expect(kept).toEqual(plain.slice(0, 7));
    const answers = Array.from({ length: 20 }, () => ids(student.recommend({ history, k: 10, explore: 1 })).join());
    expect(new Set(answers).size).toBeGreaterThan(1);
  });

  test('an empty or unknown history is answered by popularity, with all other options', () => {
    const popular = student.recommend({ history: [], k: 4 }).items;
    expect(popular.map(({ id }) => id)).toEqual([items[0]?.id, boostedId, items[2]?.id, items[3]?.id]);
    expect(ids(student.recommend({ history: ['unknown'], k: 2 }))).toEqual([items[0]?.id, boostedId]);
    expect(student.recommend({ history: ['unknown'], k: 2 }).unknownItems).toEqual(['unknown']);
    const [comedy] = ids(student.recommend({ history: [], k: 1, filter: { any: ['Comedy'] } }));
    expect(items.find(({ id }) => id === comedy)?.categories).toContain('Comedy');
  });

  test('explain names entries of the history by what the score loses without them', () => {
    const { items: explained } = student.recommend({ history, k: 3, explain: true });
    expect(explained.map(({ id, score }) => ({ id, score }))).toEqual(student.recommend({ history, k: 3 }).items);
    for (const { because = [], interests = [] } of explained) {
      expect(because.length).toBeGreaterThan(0);
      expect(because.map(({ weight }) => weight)).toEqual(
        because.map(({ weight }) => weight).toSorted((a, b) => b - a),
      );
      expect(because.every(({ item, weight }) => history.includes(item) && weight > 0)).toBe(true);
      const told = because.reduce((sum, { weight }) => sum + weight, 0);
      expect(interests.reduce((sum, { weight }) => sum + weight, 0)).toBeCloseTo(told, 4);
    }
    const withText = student.recommend({ history: [{ text: 'Alien. 1979. Horror' }], k: 1, explain: true }).items[0];
    expect(withText?.because?.[0]?.item).toBe('Alien. 1979. Horror');
  });

  test.each([
    ['filter that is a list', { filter: ['Comedy'] }],
    ['filter.any of numbers', { filter: { any: [1] } }],
    ['filter.all that is a text', { filter: { all: 'Comedy' } }],
    ['filter of null', { filter: null }],
    ['candidates that are no list', { candidates: 'tt0770828' }],
    ['diversity above 1', { diversity: 1.01 }],
    ['diversity of NaN', { diversity: Number.NaN }],
    ['negative novelty', { novelty: -1 }],
    ['explore as text', { explore: '0.1' }],
    ['a seed that is not whole', { seed: 0.5 }],
    ['a seed above 32 bits', { seed: 2 ** 32 }],
    ['boosts that are a list', { boosts: [1] }],
    ['boosts that are a Map, which would go without effect', { boosts: new Map([['tt0770828', 1]]) }],
    ['a boost of infinity', { boosts: { tt0770828: Number.POSITIVE_INFINITY } }],
    ['a boost that fp32 cannot hold', { boosts: { tt0770828: 1e39 } }],
    ['exclude of null', { exclude: null }],
    ['exclude of numbers', { exclude: [7] }],
    ['candidates of numbers', { candidates: [7] }],
  ])('refuses %s and stays usable', (_, options) => {
    const request = { history, k: 3, ...options } as never;
    expect(() => student.recommend(request)).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }));
    expect(student.recommend({ history, k: 3 }).items).toHaveLength(3);
  });

  test.each<[string, string, string, (student: Student, key: object) => unknown]>([
    ['recommend', 'exlude', 'Did you mean "exclude"?', (s, key) => s.recommend({ history, ...key })],
    ['recommend', 'userid', 'Did you mean "userId"?', (s, key) => s.recommend({ history, ...key })],
    ['recommend', 'limit', 'The options here are history, ', (s, key) => s.recommend({ history, ...key })],
    ['filter', 'nonne', 'Did you mean "none"?', (s, key) => s.recommend({ history, filter: key })],
    ['similar', 'history', 'The options here are k, ', (s, key) => s.similar('tt0770828', key)],
    ['search', 'kk', 'Did you mean "k"?', (s, key) => s.search('a comedy', key)],
    ['interests', 'n', 'Did you mean "k"?', (s, key) => s.interests(history, key)],
    [
      'recommendBatch',
      'offset',
      'Did you mean "offsets"?',
      (s, key) => s.recommendBatch({ histories: Int32Array.of(0), offsets: Int32Array.of(0, 1), ...key }),
    ],
  ])('%s refuses the key %s, which would go without effect', (name, key, hint, call) => {
    expect(() => call(student, { [key]: 1 })).toThrow(
      expect.objectContaining({
        code: 'ERR_UNKNOWN_OPTION',
        message: expect.stringContaining(`${name} has no option "${key}". ${hint}`),
      }),
    );
  });

  test.each([undefined, null, 7, 'tt0770828'])('refuses %s as a request', (request) => {
    expect(() => student.recommend(request as never)).toThrow(
      expect.objectContaining({
        code: 'ERR_INVALID_ARGUMENT',
        message: expect.stringContaining('recommend: expected'),
      }),
    );
  });

  test('novelty and empty histories need a student that knows popularity', async () => {
    const old = await engine.loadStudent(join(import.meta.dirname, '../../fixtures/student'));
    expect(() => old.recommend({ history, novelty: 1 })).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT', message: expect.stringContaining('popularity') }),
    );
    expect(() => old.recommend({ history: [] })).toThrow(expect.objectContaining({ code: 'ERR_UNKNOWN_ITEMS' }));
    expect(old.recommend({ history, k: 5, diversity: 0.5, filter: { none: ['Drama'] } }).items).toHaveLength(5);
  });
});

describe('recommendBatch', () => {
  test('answers as recommend does, history by history', () => {
    const lists = [history, [...history].reverse(), ['tt0770828']];
    const flat = Int32Array.from(lists.flat(), (id) => student.indexOf(id) ?? -1);
    const offsets = Int32Array.of(0, 3, 6, 7);
    const options = { k: 5, filter: { none: ['Horror'] }, diversity: 0.3, explore: 0.2 };
    const { itemIndices, scores } = student.recommendBatch({ histories: flat, offsets, ...options, seed: 4 });
    lists.forEach((list, s) => {
      const alone = student.recommend({ history: list, ...options, seed: 4 + s }).items;
      expect(Array.from(itemIndices.subarray(5 * s, 5 * s + 5), (i) => student.items[i]?.id)).toEqual(
        alone.map(({ id }) => id),
      );
      expect(Array.from(scores.subarray(5 * s, 5 * s + 5))).toEqual(alone.map(({ score }) => score));
    });
  });

  test('fills up rows, writes where it is told, and refuses what does not fit', () => {
    const request = { histories: Int32Array.of(0), offsets: Int32Array.of(0, 1), k: 4, candidates: ['tt1300854'] };
    const itemIndices = new Int32Array(6).fill(9);
    const answer = student.recommendBatch({ ...request, itemIndices });
    expect(answer.itemIndices).toBe(itemIndices);
    expect([...itemIndices]).toEqual([student.indexOf('tt1300854'), -1, -1, -1, 9, 9]);
    expect(answer.scores[1]).toBe(Number.NEGATIVE_INFINITY);
    for (const wrong of [
      { histories: Int32Array.of(99) },
      { histories: Int32Array.of(-1) },
      { histories: [0] },
      { offsets: Int32Array.of(0, 2) },
      { offsets: Int32Array.of(0) },
      { offsets: Int32Array.of(1, 1) },
    ]) {
      expect(() => student.recommendBatch({ ...request, ...wrong } as never)).toThrow(
        expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }),
      );
    }
    expect(() => student.recommendBatch({ ...request, scores: new Float32Array(3) })).toThrow(
      expect.objectContaining({ code: 'ERR_SHAPE_MISMATCH' }),
    );
  });
});

describe('recommendAll', () => {
  const alone = (request: HistoryRequest, of = student) => {
    try {
      return of.recommend(request);
    } catch (error) {
      return error;
    }
  };

  test('answers each request as recommend does, whatever the others ask', () => {
    const requests: HistoryRequest[] = [
      { history },
      { history: ['tt0770828'], k: 3 },
      { history: ['tt0770828', 'nothing'], k: 40, exclude: ['tt1300854', 'nothing'] },
      { history, filter: { none: ['Horror'] } },
      { history, diversity: 0.4 },
      { history, diversity: 0, novelty: 0, explore: 0, k: 1 },
      { history: [{ text: 'Alien. 1979. Horror' }, ...history] },
      { history: [...history].reverse(), explain: true, k: 2 },
      { history: [], k: 5 },
      { history: ['nothing at all'] },
      { history, k: student.numItems },
      { history, k: 0 },
      { history, k: 2.5 },
      { history, exclude: 'tt0770828' } as never,
      { history, exclude: [7] } as never,
      { history: 'tt0770828' } as never,
      { history: [7] } as never,
    ];
    expect(student.recommendAll(requests)).toEqual(requests.map((one) => alone(one)));
    expect(student.recommendAll(requests.slice(0, 1))).toEqual([alone({ history })]);
    expect(student.recommendAll([])).toEqual([]);
  });

  test('refuses what is no list of requests', async () => {
    const refusal = expect.objectContaining({ name: 'LimbeckError', code: 'ERR_INVALID_ARGUMENT' });
    for (const wrong of [undefined, null, { history }, 'tt0770828']) {
      expect(() => student.recommendAll(wrong as never)).toThrow(refusal);
      await expect(student.recommendAllAside(wrong as never)).rejects.toEqual(refusal);
      await expect(student.answerAllAside(wrong as never)).rejects.toEqual(refusal);
    }
  });

  test('answers as many as come, after items were removed and added', async () => {
    const changed = await engine.loadStudent(join(import.meta.dirname, '../../fixtures/student'));
    changed.addItems([{ id: 'added', text: 'Dune. 2021. Sci-Fi' }]);
    changed.removeItems(['tt1300854']);
    const ids = changed.items.map(({ id }) => id);
    const requests = Array.from({ length: 200 }, (_, i) => ({
      history: [ids[i % ids.length] ?? '', ids[(7 * i + 3) % ids.length] ?? ''],
      k: 1 + (i % 12),
      exclude: [ids[(5 * i) % ids.length] ?? '', 'tt1300854'],
    }));
    expect(changed.recommendAll(requests)).toEqual(requests.map((one) => alone(one, changed)));
    changed.dispose();
  });

  test('answers the same aside', async () => {
    const requests: HistoryRequest[] = [
      { history },
      { history: [], k: 5 },
      { history, diversity: 0.5, k: 7 },
      { history: ['tt0770828'], novelty: 0.3, diversity: 0.5 },
      { history, explore: 0.5, seed: 2 ** 32 - 1, exclude: ['tt1300854'] },
      { history, explore: 0.5, seed: -1 },
      { history, diversity: 1.5 },
      { history, novelty: Number.NaN },
      { history: ['tt0770828', 'nothing'], k: 4, exclude: ['tt1300854', 'nothing'] },
      { history, filter: { none: ['Horror'] } },
      { history: ['nothing at all'] },
      { history: [...history].reverse(), k: 1 },
      { history: [...history, { text: 'Alien. 1979. Horror' }] },
    ];
    expect(await student.recommendAllAside(requests)).toEqual(requests.map((one) => alone(one)));
    expect(await student.recommendAllAside(requests.slice(0, 1))).toEqual([alone({ history })]);
    expect(await student.recommendAllAside([{ history: ['nothing at all'] }])).toEqual([
      alone({ history: ['nothing at all'] }),
    ]);
    expect(await student.recommendAllAside([])).toEqual([]);
    expect(student.recommendAll(requests)).toEqual(requests.map((one) => alone(one)));
  });

  test('aside, tells what searched together as JSON to those who want it', async () => {
    const requests: HistoryRequest[] = [
      { history, k: 3 },
      { history, diversity: 0.5, k: 7 },
      { history: ['tt0770828', 'nothing "at" all', '\u{1f984}', '\ud800'], novelty: 0.3 },
      { history: ['tt0770828'], explore: 0.5, seed: 3, exclude: ['tt1300854'] },
      { history: ['tt0770828'], explain: true },
      { history, k: 0 },
      { history: [], k: 5 },
      { history, exlude: ['tt1300854'] } as HistoryRequest,
      null as never,
    ];
    const answers = await student.answerAllAside(requests);
    const expected = requests.map((one) => alone(one));
    expect(answers.slice(0, 4)).toEqual(expected.slice(0, 4).map((answer) => JSON.stringify(answer).slice(1, -1)));
    expect(answers.slice(4)).toEqual(expected.slice(4));
    expect(await student.answerAllAside([])).toEqual([]);
  });

  test('leaves novelty without popularity to the one who says why', async () => {
    const model = engine.createSequenceModel(
      { hiddenSize: 8, numHiddenLayers: 1, numAttentionHeads: 1, maxHistory: 4, dropout: 0 },
      { numItems: 3, seed: 1 },
    );
    const bare = engine.createStudent(
      model,
      ['a', 'b', 'c'].map((id) => ({ id, text: id })),
    );
    const requests = [
      { history: ['a'], k: 1, novelty: 0.3 },
      { history: ['b'], k: 2 },
    ];
    const expected = requests.map((one) => alone(one, bare));
    expect(expected[0]).toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
    expect(bare.recommendAll(requests)).toEqual(expected);
    expect(await bare.recommendAllAside(requests)).toEqual(expected);
    bare.dispose();
  });

  test('aside, reads the catalogue as it was, and outlives the student', async () => {
    const changed = await engine.loadStudent(join(import.meta.dirname, '../../fixtures/student'));
    changed.addItems([{ id: 'added', text: 'Dune. 2021. Sci-Fi' }]);
    const requests = Array.from({ length: 300 }, (_, i) => ({
      history: [changed.items[i % changed.numItems]?.id ?? ''],
      k: 1 + (i % 9),
    }));
    const before = requests.map((one) => alone(one, changed));
    const first = [changed.recommendAllAside(requests), changed.recommendAllAside(requests)];
    changed.removeItems(['added', 'tt0770828']);
    const after = requests.map((one) => alone(one, changed));
    const last = changed.recommendAllAside(requests);
    changed.dispose();
    expect(await Promise.all(first)).toEqual([before, before]);
    expect(await last).toEqual(after);
    expect(after).not.toEqual(before);
    await expect(changed.recommendAllAside(requests)).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
  });
});

describe('similar, search, interests and embed', () => {
  test('similar gives other items, best first, within a filter', () => {
    const found = student.similar('tt1300854', { k: 6, filter: { any: ['Sci-Fi'] }, exclude: ['tt0770828'] });
    expect(found).toHaveLength(6);
    expect(found.map(({ id }) => id)).not.toContain('tt1300854');
    expect(found.map(({ id }) => id)).not.toContain('tt0770828');
    expect(found.map(({ id }) => id)).not.toContain(hiddenId);
    expect(found.map(({ score }) => score)).toEqual(found.map(({ score }) => score).toSorted((a, b) => b - a));
    expect(found.every(({ score }) => score <= 1.0001 && score >= -1.0001)).toBe(true);
    expect(() => student.similar('unknown')).toThrow(expect.objectContaining({ code: 'ERR_UNKNOWN_ITEMS' }));
  });

  test('search finds an item by its own text, though it is in the history', () => {
    for (const { id, text } of items.filter((item) => item.id !== hiddenId).slice(0, 10)) {
      expect(student.search(text, { k: 1 })[0]?.id).toBe(id);
      expect(student.search(text, { k: 3, history: [id] }).map((item) => item.id)).toContain(id);
    }
    const query = 'a love story';
    expect(student.search(query, { k: 9, history })).not.toEqual(student.search(query, { k: 9 }));
    expect(() => student.search(' ')).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }));
  });

  test('interests have different names, weights that sum to 1, and the history that belongs to them', () => {
    const all = student.interests(history, { k: 100 });
    expect(new Set(all.map(({ name }) => name)).size).toBe(all.length);
    expect(all.reduce((sum, { weight }) => sum + weight, 0)).toBeCloseTo(1, 4);
    expect(all.flatMap(({ items: of }) => of).toSorted()).toEqual(history.toSorted());
    expect(student.interests(history, { k: 2 })).toEqual(all.slice(0, 2));
    expect(student.interests([], { k: 1 })).toHaveLength(1);
    expect(() => student.interests(history, { k: 0 })).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }),
    );
  });

  test('embed gives the features of each text, however many there are', () => {
    const texts = items.map(({ text }) => text);
    const all = student.embed([...texts, ...texts]);
    expect(all).toHaveLength(72);
    const [alone] = student.embed([texts[40 % 36] ?? '']);
    const gaps: string[] = [];
    gaps[1] = 'Alien. 1979. Horror';
    expect(() => student.embed(gaps)).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }));
    expect(all[40]).toHaveLength(8);
    all[40]?.forEach((value, i) => {
      expect(value).toBeCloseTo(alone?.[i] ?? Number.NaN, 4);
    });
    expect(student.embed([])).toEqual([]);
  });
});
