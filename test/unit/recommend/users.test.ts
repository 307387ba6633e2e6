import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { createEngine, type Engine, type FeedbackEvent, type Student, UserStates } from '../../../src/index.js';

const fixture = join(import.meta.dirname, '../../fixtures/student');
const history = ['tt1583421', 'tt1483013', 'tt1980209'];
let engine: Engine;
let student: Student;
let users: UserStates;
let dismissed: string;

beforeAll(async () => {
  engine = await createEngine({ threads: 1 });
});
afterAll(() => {
  engine.dispose();
});
beforeEach(async () => {
  student = await engine.loadStudent(fixture);
  users = new UserStates();
  student.users = users;
  dismissed = student.recommend({ history, k: 1 }).items[0]?.id ?? '';
  const events: Pick<FeedbackEvent, 'itemId' | 'type'>[] = [
    ...history.map((itemId) => ({ itemId, type: 'click' as const })),
    { itemId: dismissed, type: 'dismiss' },
  ];
  events.forEach((event, i) => {
    users.apply({ offset: BigInt(i), receivedAt: i, event: { id: `e${i}`, userId: 'ann', time: i, ...event } });
  });
});

describe('requests by userId', () => {
  test('have the history of the user, and nothing that they dismissed', () => {
    const answer = student.recommend({ userId: 'ann', k: 5 });
    expect(answer).toEqual(student.recommend({ history, exclude: [dismissed], k: 5 }));
    expect(answer.items.map(({ id }) => id)).not.toContain(dismissed);
  });

  test('take all other options, and exclude more', () => {
    const second = student.recommend({ userId: 'ann', k: 1 }).items[0]?.id ?? '';
    const options = { k: 4, exclude: [second], diversity: 0.5, explain: true };
    const answer = student.recommend({ userId: 'ann', ...options });
    expect(answer).toEqual(student.recommend({ history, ...options, exclude: [second, dismissed] }));
    expect(answer.items[0]).toHaveProperty('because');
  });

  test('see an event at once', () => {
    const before = student.recommend({ userId: 'ann', k: 3 }).items;
    const itemId = before[0]?.id ?? '';
    users.apply({ offset: 4n, receivedAt: 4, event: { id: 'e4', userId: 'ann', itemId, type: 'click', time: 4 } });
    expect(student.recommend({ userId: 'ann', k: 3 })).toEqual(
      student.recommend({ history: [...history, itemId], exclude: [dismissed], k: 3 }),
    );
  });

  test('of a stranger are those of an empty history', () => {
    const empty = 'The history is empty, and this student does not know how popular its items are';
    expect(() => student.recommend({ userId: 'nobody', k: 5 })).toThrow(empty);
  });

  test('are answered together with others, and say what is wrong with them one by one', async () => {
    const requests = [
      { userId: 'ann', k: 3 },
      { history, k: 3 },
      { userId: '', k: 3 },
    ];
    const expected = [student.recommend({ userId: 'ann', k: 3 }), student.recommend({ history, k: 3 })];
    for (const answers of [student.recommendAll(requests), await student.recommendAllAside(requests)]) {
      expect(answers.slice(0, 2)).toEqual(expected);
      expect(answers[2]).toMatchObject({ code: 'ERR_INVALID_ARGUMENT', message: expect.stringContaining('userId') });
    }
    const texts = await student.answerAllAside(requests);
    expect(JSON.parse(`{${texts[0]}}`)).toEqual(JSON.parse(JSON.stringify(expected[0])));
    expect(texts[2]).toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
  });

  test.each([
    ['no id', { userId: 7 }, /userId: expected the id of a user, got/],
    ['an empty id', { userId: '' }, /userId: expected the id of a user, got/],
    ['a history beside it', { userId: 'ann', history }, /userId: expected a userId or a history, got both/],
    ['an exclusion that is no list', { userId: 'ann', exclude: 'x' }, /exclude: expected a list of item ids/],
  ])('refuse %s', (_, request, message) => {
    expect(() => student.recommend(request as never)).toThrow(message);
    expect(student.recommendAll([request as never])[0]).toMatchObject({ message: expect.stringMatching(message) });
  });

  test.each([
    ['a promise', async () => [], /student\.users\.hidden\(\): expected a list of item ids, got a Promise/],
    ['nothing', () => null, /student\.users\.hidden\(\): expected a list of item ids, got null/],
  ])('refuse users whose hidden items are %s', (_, hidden, message) => {
    student.users = { history: () => history, hidden: hidden as never };
    const refusal = { code: 'ERR_INVALID_ARGUMENT', message: expect.stringMatching(message) };
    expect(() => student.recommend({ userId: 'ann' })).toThrow(expect.objectContaining(refusal));
    expect(student.recommendAll([{ userId: 'ann' }])[0]).toMatchObject(refusal);
  });

  test('need users', () => {
    student.users = undefined;
    expect(() => student.recommend({ userId: 'ann' })).toThrow(/Set student\.users/);
  });
});
