import { expect, it } from 'vitest';
import { RecentIds } from '../../../src/feedback/event-ids.js';

it('remembers the ids of the latest events: at least a window of them, at most two', () => {
  const ids = new RecentIds(100);
  for (let n = 0; n < 1000; n++) {
    ids.add(n % 2 === 0 ? `id ${n}` : undefined);
    for (const age of [0, 1, 50, 98, 99]) {
      const earlier = n - age;
      expect(ids.has(`id ${earlier}`)).toBe(earlier >= 0 && earlier % 2 === 0);
    }
    if (n >= 200) expect(ids.has(`id ${n - 200 - (n % 2)}`)).toBe(false);
  }
});
