import { expect, test } from 'vitest';
import type { StoredEvent } from '../../../../src/feedback/event.js';
import { UserStates } from '../../../../src/feedback/user-states.js';
import { Person } from '../../../../src/server/console/person.js';

type Act = readonly [itemId: string, type: StoredEvent['event']['type'], value?: number];

test.each<[string, Act[]]>([
  [
    'what is dismissed leaves the history',
    [
      ['a', 'view'],
      ['b', 'click'],
      ['a', 'click'],
      ['b', 'click'],
      ['a', 'dismiss'],
    ],
  ],
  [
    'so does what is rated badly',
    [
      ['a', 'purchase'],
      ['a', 'rating', 2],
    ],
  ],
  [
    'a view brings nothing back',
    [
      ['a', 'dismiss'],
      ['a', 'view'],
    ],
  ],
  [
    'a click does',
    [
      ['a', 'dismiss'],
      ['a', 'click'],
    ],
  ],
  [
    'so does a good rating',
    [
      ['a', 'rating', 1],
      ['a', 'rating', 4],
    ],
  ],
  [
    'an item that follows itself is there once',
    [
      ['a', 'view'],
      ['a', 'click'],
      ['b', 'view'],
      ['a', 'view'],
    ],
  ],
])('a guest is as a user of the service: %s', async (_, acts) => {
  const guest = new Person({} as never);
  const states = new UserStates();
  for (const [offset, [itemId, type, value]] of acts.entries()) {
    await guest.record(itemId, type, { value });
    const event = { userId: 'u', itemId, type, time: offset, ...(value !== undefined && { value }) };
    states.apply({ offset: BigInt(offset), receivedAt: offset, event });
  }
  expect([guest.history, guest.hidden]).toEqual([states.history('u'), states.hidden('u')]);
});
