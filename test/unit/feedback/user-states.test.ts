import { describe, expect, it } from 'vitest';
import type { EventType } from '../../../src/feedback/event.js';
import { type UserStateOptions, UserStates } from '../../../src/feedback/user-states.js';

let offset: bigint;

function statesOf(events: readonly [EventType, string, number, number?][], options?: UserStateOptions): UserStates {
  const states = new UserStates(options);
  offset = 0n;
  for (const event of events) apply(states, 'ann', ...event);
  return states;
}

function apply(
  states: UserStates,
  userId: string,
  type: EventType,
  itemId: string,
  time: number,
  value?: number,
): void {
  const event = { userId, itemId, type, time, ...(value !== undefined && { value }) };
  states.apply({ offset: offset++, receivedAt: time, event });
}

describe('history', () => {
  it('is empty for an unknown user', () => {
    const states = statesOf([]);
    expect([states.history('bob'), states.hidden('bob'), states.purchases('bob'), states.ratings('bob')]).toEqual([
      [],
      [],
      [],
      [],
    ]);
    expect(states.size).toBe(0);
  });

  it('is ordered by time, and equal times by arrival', () => {
    const states = statesOf([
      ['view', 'c', 30],
      ['click', 'a', 10],
      ['view', 'd', 30],
      ['purchase', 'b', 20],
      ['rating', 'e', 40, 3],
    ]);
    expect(states.history('ann')).toEqual(['a', 'b', 'c', 'd', 'e']);
    expect(states.nextOffset).toBe(5n);
  });

  it('has an item that follows itself once, at the later time, and an item that comes back twice', () => {
    const states = statesOf([
      ['view', 'a', 10],
      ['click', 'a', 20],
      ['purchase', 'a', 30],
      ['view', 'b', 40],
      ['view', 'a', 50],
      ['view', 'c', 25],
    ]);
    expect(states.history('ann')).toEqual(['c', 'a', 'b', 'a']);
  });

  it('keeps the latest items', () => {
    const events = Array.from({ length: 10 }, (_, i) => ['view', `i${i}`, i] as ['view', string, number]);
    expect(statesOf(events, { maxHistory: 3 }).history('ann')).toEqual(['i7', 'i8', 'i9']);
    expect(statesOf(events.reverse(), { maxHistory: 3 }).history('ann')).toEqual(['i7', 'i8', 'i9']);
  });
});

describe('a dismissal', () => {
  it('hides an item and takes it out of the history; what then follows itself is there once', () => {
    const states = statesOf([
      ['view', 'a', 10],
      ['view', 'b', 20],
      ['view', 'a', 30],
      ['dismiss', 'b', 40],
    ]);
    expect([states.history('ann'), states.hidden('ann')]).toEqual([['a'], ['b']]);
  });

  it.each<[string, [EventType, string, number, number?][], string[], string[]]>([
    [
      'a later view does not bring it back',
      [
        ['dismiss', 'a', 10],
        ['view', 'a', 20],
      ],
      [],
      ['a'],
    ],
    [
      'a later click does',
      [
        ['dismiss', 'a', 10],
        ['click', 'a', 20],
      ],
      ['a'],
      [],
    ],
    [
      'a later good rating does',
      [
        ['dismiss', 'a', 10],
        ['rating', 'a', 20, 3],
      ],
      ['a'],
      [],
    ],
    [
      'an earlier click that comes late does not',
      [
        ['dismiss', 'a', 20],
        ['click', 'a', 10],
      ],
      [],
      ['a'],
    ],
    [
      'coming late, it gives way to a later purchase',
      [
        ['purchase', 'a', 20],
        ['dismiss', 'a', 10],
      ],
      ['a'],
      [],
    ],
    [
      'coming late, it stands against a later view',
      [
        ['view', 'a', 20],
        ['dismiss', 'a', 10],
      ],
      [],
      ['a'],
    ],
    [
      'a rating below 3 is one',
      [
        ['click', 'a', 10],
        ['rating', 'a', 20, 2.9],
      ],
      [],
      ['a'],
    ],
  ])('%s', (_, events, history, hidden) => {
    const states = statesOf(events);
    expect([states.history('ann'), states.hidden('ann')]).toEqual([history, hidden]);
  });

  it('is kept for the latest items', () => {
    const states = statesOf(
      [1, 2, 3, 4].map((n) => ['dismiss', `i${n}`, n]),
      { maxItems: 2 },
    );
    expect(states.hidden('ann')).toEqual(['i3', 'i4']);
  });
});

describe('ratings and purchases', () => {
  it('are the latest of each item by time', () => {
    const states = statesOf([
      ['rating', 'a', 10, 5],
      ['rating', 'b', 20, 1],
      ['rating', 'a', 30, 3.5],
      ['rating', 'b', 5, 4],
      ['purchase', 'a', 40],
      ['purchase', 'c', 35],
      ['purchase', 'a', 20],
    ]);
    expect(states.ratings('ann')).toEqual([
      { itemId: 'b', value: 1 },
      { itemId: 'a', value: 3.5 },
    ]);
    expect(states.purchases('ann')).toEqual(['c', 'a']);
  });
});

describe('many users', () => {
  it('are kept apart, whatever their names', () => {
    const states = statesOf([]);
    for (const userId of ['__proto__', 'constructor', 'ü', '\u0000', 'ann'])
      apply(states, userId, 'view', `of ${userId}`, 1);
    for (const userId of ['__proto__', 'constructor', 'ü', '\u0000', 'ann']) {
      expect(states.history(userId)).toEqual([`of ${userId}`]);
    }
    expect(states.size).toBe(5);
  });

  it('are forgotten above the limit, longest silent first, with the items that only they named', () => {
    const states = statesOf([], { maxUsers: 2560 });
    for (let n = 0; n < 20_000; n++) {
      apply(states, `u${n}`, 'view', `i${n}`, n);
      if (n % 10 === 0) apply(states, 'faithful', 'view', `i${n}`, n);
    }
    expect(states.size).toBeGreaterThan(2500);
    expect(states.size).toBeLessThanOrEqual(2560);
    expect(states.numItems).toBeLessThanOrEqual(states.size + 64);
    expect(states.history('u19999')).toEqual(['i19999']);
    expect(states.history('u0')).toEqual([]);
    expect(states.history('faithful')).toHaveLength(64);
  });

  it('share item names, which are let go with the last state that names them', () => {
    const states = statesOf([], { maxHistory: 2, maxItems: 2 });
    const types: EventType[] = ['view', 'click', 'purchase', 'dismiss', 'rating'];
    let random = 1;
    const next = (n: number) => {
      random = (random * 48_271) % 0x7fffffff;
      return random % n;
    };
    for (let n = 0; n < 20_000; n++) {
      const type = types[next(5)] as EventType;
      const value = type === 'rating' ? 1 + next(5) : undefined;
      apply(states, `u${next(9)}`, type, `i${next(200)}`, next(1000), value);
    }
    const named = new Set<string>();
    for (let n = 0; n < 9; n++) {
      const user = `u${n}`;
      for (const item of [states.history(user), states.hidden(user), states.purchases(user)].flat()) named.add(item);
      for (const { itemId } of states.ratings(user)) named.add(itemId);
    }
    expect(states.numItems).toBe(named.size);
  });
});

it('refuse what is no event of a store, and stay as they were', () => {
  const event = { userId: 'ann', itemId: 'a', type: 'view' as const, time: 1 };
  for (const stored of [
    { offset: 0, receivedAt: 1, event },
    { offset: 0n, receivedAt: 1, event: { ...event, itemId: undefined } },
    { offset: 0n, receivedAt: 1, event: { ...event, userId: 7 } },
  ]) {
    const states = new UserStates();
    expect(() => states.apply(stored as never)).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }));
    expect([states.size, states.nextOffset]).toEqual([0, 0n]);
  }
});

describe('options', () => {
  it.each([[{ maxHistory: 0 }], [{ maxUsers: 1.5 }], [{ maxItems: 70_000 }], [{ max: 1 } as object]])(
    '%j is refused',
    (options) => {
      expect(() => new UserStates(options)).toThrow(/userStates/);
    },
  );
});
