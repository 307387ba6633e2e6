import { expect, test } from 'vitest';
import { LimbeckError } from '../../../src/errors.js';
import { finish } from '../../../src/server/recommend-task.js';

/** A student of which nothing is asked but popular items. */
function served(name: string, isDisposed: boolean) {
  const recommend = () => {
    if (isDisposed) throw new LimbeckError('ERR_DISPOSED', 'This recommender was disposed of.');
    return { items: [{ id: `of ${name}`, score: 1 }], unknownItems: [] };
  };
  return { name, student: { recommend } };
}

test('a model that is gone since it was asked leaves what is popular to the current one', () => {
  const [gone, current] = [served('gone', true), served('current', false)];
  const models = { current, loaded: [current] };
  const told: unknown[] = [];
  const tell = (what: unknown) => told.push(what);
  const received = { requestId: 'r', start: 0, resolve: tell, reject: tell };
  const task = { received, body: { userId: 'u', k: 1 }, model: gone, request: { history: ['a'], k: 1 } };
  finish({ models } as never, task as never, new LimbeckError('ERR_UNKNOWN_ITEMS', 'Nothing is known.'));
  expect(told).toEqual([expect.objectContaining({ strategy: 'popular', items: [{ id: 'of current', score: 1 }] })]);
});
