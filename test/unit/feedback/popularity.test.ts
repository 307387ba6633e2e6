import { describe, expect, test } from 'vitest';
import { freshness, Popularity } from '../../../src/feedback/popularity.js';

const HOUR = 3_600_000;
const START = 1_700_000_000_000;

describe('popularity', () => {
  test('halves with every half-life, whatever was added in between', () => {
    const popularity = new Popularity({ halfLifeMs: HOUR });
    popularity.add('a', START, 8);
    popularity.add('b', START + HOUR, 1);
    expect(popularity.score('a', START)).toBeCloseTo(8, 12);
    expect(popularity.score('a', START + 3 * HOUR)).toBeCloseTo(1, 12);
    popularity.add('a', START + 3 * HOUR, 2);
    expect(popularity.score('a', START + 3 * HOUR)).toBeCloseTo(3, 12);
    expect(popularity.score('b', START + 3 * HOUR)).toBeCloseTo(0.25, 12);
    expect(popularity.score('nothing', START)).toBe(0);
  });

  test('what comes late counts as if it had come in time', () => {
    const inTime = new Popularity({ halfLifeMs: HOUR });
    const late = new Popularity({ halfLifeMs: HOUR });
    const events: [string, number][] = [
      ['a', START],
      ['b', START + HOUR],
      ['a', START + 5 * HOUR],
    ];
    for (const [id, time] of events) inTime.add(id, time);
    for (const [id, time] of events.toReversed()) late.add(id, time);
    for (const id of ['a', 'b']) {
      expect(late.score(id, START + 6 * HOUR)).toBeCloseTo(inTime.score(id, START + 6 * HOUR), 12);
    }
  });

  test('agrees with the definition after thousands of half-lives and thousands of updates', () => {
    const popularity = new Popularity({ halfLifeMs: HOUR });
    const added: [string, number][] = [];
    for (let i = 0; i < 5000; i++) {
      const event: [string, number] = [`item ${i % 7}`, START + i * 0.7 * HOUR];
      added.push(event);
      popularity.add(...event);
    }
    const now = START + 3501 * HOUR;
    for (let item = 0; item < 7; item++) {
      const id = `item ${item}`;
      const expected = added.reduce((sum, [other, time]) => sum + (other === id ? 2 ** ((time - now) / HOUR) : 0), 0);
      expect(popularity.score(id, now) / expected).toBeCloseTo(1, 9);
    }
  });

  test('top gives the best k in order, equal ones by id, and all when k is larger', () => {
    const popularity = new Popularity({ halfLifeMs: HOUR });
    for (let i = 0; i < 1000; i++) popularity.add(`i${(i * 37) % 1000}`, START, 1 + ((i * 37) % 1000));
    popularity.add('tie', START, 1000);
    const ids = popularity.top(4, START).map(({ id }) => id);
    expect(ids).toEqual(['i999', 'tie', 'i998', 'i997']);
    expect(popularity.top(1, START + HOUR)[0]?.score).toBeCloseTo(500, 9);
    const all = popularity.top(5000, START);
    expect(all).toHaveLength(1001);
    expect(all.map(({ score }) => score)).toEqual(all.map(({ score }) => score).toSorted((a, b) => b - a));
  });

  test('top stays right while items are added, rescaled and forgotten', () => {
    let state = 3;
    const below = (n: number) => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return Math.floor((state / 2 ** 32) * n);
    };
    const popularity = new Popularity({ halfLifeMs: HOUR, maxItems: 120 });
    let time = START;
    for (let i = 0; i < 4000; i++) {
      time += below(400) === 0 ? 501 * HOUR : below(HOUR / 100);
      popularity.add(`i${below(100) < 70 ? below(30) : below(200)}`, time - below(2) * below(HOUR), 1 + below(3));
      if (below(3) > 0) continue;
      const { items } = Popularity.restore(popularity.state()).state();
      const sorted = items.toSorted(([a, x], [b, y]) => y - x || (a < b ? -1 : 1));
      const k = below(50) === 0 ? 1500 : 1 + below(i < 2000 ? 9 : 40);
      expect(popularity.top(k, time).map(({ id }) => id)).toEqual(sorted.slice(0, k).map(([id]) => id));
    }
  });

  test('a new hit overtakes an old favourite', () => {
    const popularity = new Popularity({ halfLifeMs: HOUR });
    for (let i = 0; i < 100; i++) popularity.add('old', START);
    for (let i = 0; i < 10; i++) popularity.add('new', START + 6 * HOUR);
    expect(popularity.top(2, START + 6 * HOUR).map(({ id }) => id)).toEqual(['new', 'old']);
  });

  test('forgets the least popular when there is no room, and stays within it', () => {
    const popularity = new Popularity({ halfLifeMs: HOUR, maxItems: 100 });
    for (let i = 0; i < 10; i++) popularity.add(`favourite ${i}`, START, 50);
    for (let i = 0; i < 10_000; i++) {
      popularity.add(`stranger ${i}`, START);
      expect(popularity.size).toBeLessThanOrEqual(100);
    }
    expect(popularity.top(10, START).every(({ id }) => id.startsWith('favourite'))).toBe(true);
  });

  test('comes back from JSON with the same scores, and goes on', () => {
    const popularity = new Popularity({ halfLifeMs: HOUR });
    popularity.add('a', START, 3);
    popularity.add('__proto__', START + HOUR, 2);
    const again = Popularity.restore(JSON.parse(JSON.stringify(popularity.state())));
    for (const one of [popularity, again]) one.add('a', START + 2 * HOUR);
    expect(again.top(5, START + 9 * HOUR)).toEqual(popularity.top(5, START + 9 * HOUR));
    expect(again.state()).toEqual(popularity.state());
    const empty = Popularity.restore(JSON.parse(JSON.stringify(new Popularity().state())));
    expect(empty.top(3, START)).toEqual([]);
  });

  test.each([
    ['nothing', null],
    ['another version', { ...new Popularity().state(), version: 2 }],
    ['a negative score', { ...new Popularity().state(), items: [['a', -1]] }],
    ['a score that is no number', { ...new Popularity().state(), items: [['a', 'x']] }],
  ])('refuses a state of %s', (_, state) => {
    expect(() => Popularity.restore(state)).toThrow(expect.objectContaining({ code: 'ERR_FILE_FORMAT' }));
  });

  test.each([
    ['no id', '', START, 1],
    ['an endless id', 'x'.repeat(2000), START, 1],
    ['no time', 'a', Number.NaN, 1],
    ['a weight of 0', 'a', START, 0],
    ['an infinite weight', 'a', START, Number.POSITIVE_INFINITY],
  ])('refuses %s', (_, id, time, weight) => {
    const popularity = new Popularity();
    expect(() => popularity.add(id, time, weight)).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }));
    expect(popularity.size).toBe(0);
  });

  test('refuses a time that is none, to read by', () => {
    const popularity = new Popularity();
    popularity.add('a', START);
    const refusal = expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' });
    expect(() => popularity.top(1, Number.NaN)).toThrow(refusal);
    expect(() => popularity.score('a', Number.POSITIVE_INFINITY)).toThrow(refusal);
  });

  test('is finite by a clock that is far behind', () => {
    const popularity = new Popularity({ halfLifeMs: HOUR });
    popularity.add('a', START, 3);
    expect(popularity.top(1, 0)).toEqual([{ id: 'a', score: 3 }]);
    expect(popularity.score('stranger', 0)).toBe(0);
  });

  test.each([HOUR / 2, 10 * HOUR])('goes on with a half-life of %i ms from what it is worth now', (halfLifeMs) => {
    const popularity = new Popularity({ halfLifeMs: HOUR });
    for (let hour = 0; hour <= 300; hour++) popularity.add('steady', START + hour * HOUR);
    popularity.add('vanished', START - 900 * HOUR);
    const now = START + 300 * HOUR;
    const again = Popularity.restore(popularity.state(), { halfLifeMs }, now);
    expect(again.score('steady', now)).toBeCloseTo(2, 9);
    expect(again.score('steady', now + halfLifeMs)).toBeCloseTo(1, 9);
    again.add('new', now, 3);
    expect(again.top(2, now).map(({ id }) => id)).toEqual(['new', 'steady']);
    expect(again.size).toBe(2);
  });

  test('keeps the saved half-life where options leave it undefined', () => {
    const popularity = new Popularity({ halfLifeMs: HOUR });
    popularity.add('a', START);
    expect(Popularity.restore(popularity.state(), { halfLifeMs: undefined }).state()).toEqual(popularity.state());
  });

  test('survives JSON whatever was added to it', () => {
    const popularity = new Popularity({ halfLifeMs: HOUR });
    for (const time of [START, START + 400 * HOUR]) popularity.add('a', time, Number.MAX_VALUE);
    const again = Popularity.restore(JSON.parse(JSON.stringify(popularity.state())));
    expect(again.state()).toEqual(popularity.state());
  });

  test('refuses a half-life of 0, a landmark that is no time, and unknown options', () => {
    const refusal = expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' });
    expect(() => new Popularity({ halfLifeMs: 0 })).toThrow(refusal);
    expect(() => new Popularity({}, '2026-11-28' as never)).toThrow(refusal);
    expect(() => new Popularity({}, Number.NEGATIVE_INFINITY)).toThrow(refusal);
    expect(() => new Popularity({ halfLife: 3 } as never)).toThrow(
      expect.objectContaining({ code: 'ERR_UNKNOWN_OPTION' }),
    );
  });
});

test('freshness is 1 until an item comes out, and halves with every half-life', () => {
  expect(freshness(START, START - HOUR, HOUR)).toBe(1);
  expect(freshness(START, START, HOUR)).toBe(1);
  expect(freshness(START, START + 2 * HOUR, HOUR)).toBe(0.25);
});

test.each([
  [Number.NaN, START, HOUR],
  [undefined, START, HOUR],
  [START, START, 0],
  [START, START + HOUR, -HOUR],
])('there is no freshness of %s at %s with a half-life of %s', (publishedAt, now, halfLifeMs) => {
  expect(() => freshness(publishedAt as number, now, halfLifeMs)).toThrow(
    expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }),
  );
});
