import { describe, expect, test } from 'vitest';
import { type FeedbackSource, feedbackData } from '../../../src/engine/feedback-data.js';
import type { FinetuneOptions } from '../../../src/engine/finetune.js';
import { finetuneOptionsSchema } from '../../../src/engine/finetune-options.js';
import type { FeedbackEvent, StoredEvent } from '../../../src/feedback/event.js';
import { UserStates } from '../../../src/feedback/user-states.js';
import type { Dataset, PackedSequences } from '../../../src/prepare/dataset.js';

const ITEMS = ['a', 'b', 'c', 'd', 'e', 'f'];
const names = ({ sequences, sequenceOffsets }: PackedSequences) =>
  Array.from({ length: sequenceOffsets.length - 1 }, (_, s) =>
    Array.from(sequences.subarray(sequenceOffsets[s], sequenceOffsets[s + 1]), (item) => ITEMS[item]).join(''),
  );

/** `ada: a b! c` = ada viewed a, dismissed b, viewed c; `c2` = rated c with 2. Times go up by one. */
function told(...lines: string[]): FeedbackEvent[] {
  let time = 1000;
  return lines.flatMap((line) => {
    const [userId = '', rest = ''] = line.split(': ');
    return rest.split(' ').map((word): FeedbackEvent => {
      const event = { userId, itemId: word.charAt(0), time: time++ };
      if (word.endsWith('!')) return { ...event, type: 'dismiss' };
      return word.length > 1 ? { ...event, type: 'rating', value: Number(word.slice(1)) } : { ...event, type: 'view' };
    });
  });
}

async function build(events: FeedbackSource, options: FinetuneOptions = {}) {
  const { replay, ...rest } = options;
  const settings = finetuneOptionsSchema.parse({ minCases: 1, ...rest });
  const {
    train,
    validation,
    test: held,
    earlier,
    popularity,
    counts,
  } = await feedbackData(events, ITEMS, { ...settings, replay });
  const cases = (set: PackedSequences & { targets: Int32Array }) =>
    names(set).map((history, i) => `${history}>${ITEMS[set.targets[i] ?? 0]}`);
  return {
    train: names(train),
    validation: cases(validation),
    test: cases(held),
    earlier: earlier && cases(earlier),
    popularity: Array.from(popularity),
    counts,
  };
}

describe('feedback', () => {
  test.each([
    ['nothing', null, 'events[1]'],
    ['a text', 'ada', 'events[1]'],
    ['an unknown type', { userId: 'u', itemId: 'a', type: 'like' }, 'events[1].type'],
    ['a rating of nothing', { userId: 'u', itemId: 'a', type: 'rating' }, 'events[1].value'],
    ['a rating of NaN', { userId: 'u', itemId: 'a', type: 'rating', value: Number.NaN }, 'events[1].value'],
    ['a user that is a number', { userId: 7, itemId: 'a', type: 'click' }, 'events[1].userId'],
    ['a time that is none, from a store', { event: { userId: 'u', itemId: 'a', type: 'view', time: -1 } }, 'time'],
  ])('that is %s is refused', async (_, event, name) => {
    const events = [...told('ada: a'), event] as FeedbackEvent[];
    await expect(build(events)).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringContaining(name),
    });
  });

  test('becomes sequences whose last two choices are held out, in the order of their times', async () => {
    const events = told('ada: a b c d', 'bob: d c b a').reverse();
    expect(await build(events)).toMatchObject({
      train: ['dc', 'ab'],
      validation: ['dc>b', 'ab>c'],
      test: ['dcb>a', 'abc>d'],
    });
  });

  test('a user with too few choices is trained on and not judged by', async () => {
    expect(await build(told('ada: a b c', 'bob: d e'))).toMatchObject({ train: ['a', 'de'], test: ['ab>c'] });
  });

  test('what was dismissed or rated low leaves the sequence; what the user changed their mind about comes back', async () => {
    const { train, test: held, counts } = await build(told('ada: a b c d e b! d2', 'bob: a b! b5 c d'));
    expect([...train, ...held]).toEqual(['a', 'ab', 'ac>e', 'abc>d']);
    expect(counts).toMatchObject({ events: 12, negative: 3, positive: 9, unknownItems: 0, users: 2, heldOut: 2 });
  });

  test.each(['click', 'purchase'] as const)(
    'a %s brings back what was dismissed before it, as in user states',
    async (type) => {
      const events = told('ada: a b! c b d');
      const states = new UserStates();
      const seen = events.map((event, i) => ({ ...event, type: i === 3 ? type : event.type }) as StoredEvent['event']);
      for (const [i, event] of seen.entries()) states.apply({ offset: BigInt(i), receivedAt: 0, event });
      expect(states.history('ada')).toEqual(['a', 'c', 'b', 'd']);
      expect((await build(seen)).test).toEqual(['acb>d']);
      // In whatever order they come.
      expect((await build(seen.toReversed())).test).toEqual(['acb>d']);
      // A look does not.
      expect((await build(events)).test).toEqual(['ac>d']);
    },
  );

  test('an item counts once, at its first choice', async () => {
    const { test: held, popularity } = await build(told('ada: a a b a c', 'bob: c'));
    expect(held).toEqual(['ab>c']);
    expect(popularity).toEqual([1, 1, 2, 0, 0, 0]);
  });

  test('unknown items are counted and left out', async () => {
    const { test: held, counts } = await build(told('ada: a x b z c'));
    expect(held).toEqual(['ab>c']);
    expect(counts.unknownItems).toBe(2);
  });

  test('only the types and ratings asked for count', async () => {
    const events = told('ada: a b3 c d5 e4 f');
    expect((await build(events, { types: ['rating'] })).test).toEqual(['bd>e']);
    expect((await build(events, { minRating: 5, types: ['view', 'rating'] })).test).toEqual(['acd>f']);
  });

  test('no user counts for more than the latest choices', async () => {
    expect((await build(told('ada: a b c d e f'), { maxEventsPerUser: 4 })).test).toEqual(['cde>f']);
  });

  test('comes from a store’s records too, and asynchronously', async () => {
    async function* read() {
      for (const [i, event] of told('ada: a b c').entries()) yield { offset: BigInt(i), event };
    }
    expect((await build(read())).test).toEqual(['ab>c']);
  });

  test('too little is refused with what there was', async () => {
    await expect(build(told('ada: a b c', 'bob: a x! b1'), { minCases: 2 })).rejects.toMatchObject({
      code: 'ERR_EMPTY_DATA',
      message: expect.stringMatching(
        /at least 2 users.*got 1 \(6 events: 4 choices of 2 users, 1 .*1 of unknown items/,
      ),
    });
  });

  test('at most so many users are judged by, spread evenly', async () => {
    const events = told(...Array.from({ length: 10 }, (_, i) => `u${i}: a b ${ITEMS[2 + (i % 4)]}`));
    const { test: held, train } = await build(events, { maxCases: 5 });
    expect(held).toEqual(['ab>c', 'ab>e', 'ab>c', 'ab>e', 'ab>c']);
    expect(train).toHaveLength(10);
  });

  test('stops when it is told to', async () => {
    const settings = finetuneOptionsSchema.parse({});
    const signal = AbortSignal.abort();
    await expect(feedbackData(told('ada: a b c'), ITEMS, settings, signal)).rejects.toMatchObject({
      code: 'ERR_ABORTED',
    });
  });
});

describe('earlier data', () => {
  /** Items in another order than the student's, and one that it lost. */
  const dataset = (histories: Record<string, string>): Dataset => {
    const items = ['gone', ...ITEMS.toReversed()].map((id) => ({ id, text: id }));
    const users = Object.keys(histories);
    const lists = Object.values(histories).map((history) =>
      [...history].map((id) => items.findIndex((item) => item.id === (id === '-' ? 'gone' : id))),
    );
    const sequenceOffsets = new Int32Array(lists.length + 1);
    lists.forEach((list, s) => {
      sequenceOffsets[s + 1] = (sequenceOffsets[s] ?? 0) + list.length;
    });
    const fromEnd = (n: number) => Int32Array.from(lists, (list) => list.length - n);
    return {
      items,
      users,
      sequences: Int32Array.from(lists.flat()),
      sequenceOffsets,
      split: {
        strategy: 'leaveOneOut',
        trainLength: fromEnd(2),
        validationPosition: fromEnd(2),
        testPosition: fromEnd(1),
      },
      report: {} as Dataset['report'],
    };
  };

  test('is trained on again without what it held out, and judged by that', async () => {
    const replay = dataset({ eve: 'abcd', fay: 'f-edc' });
    const { train, earlier, test: held, counts } = await build(told('ada: a b c'), { replay, replayRatio: 100 });
    expect(train.slice(1).sort()).toEqual(['ab', 'fe']);
    expect(earlier).toEqual(['abc>d', 'fed>c']);
    expect(held).toEqual(['ab>c']);
    expect(counts).toMatchObject({ replayed: 2, heldOut: 1 });
  });

  test('goes before the feedback of the same user, who then is no case of it', async () => {
    const replay = dataset({ ada: 'abc', eve: 'abcd' });
    const { test: held, validation, earlier } = await build(told('ada: b d e'), { replay });
    expect(held).toEqual(['abcd>e']);
    expect(validation).toEqual(['abc>d']);
    expect(earlier).toEqual(['abc>d']);
  });

  test('is mixed in by the ratio asked for', async () => {
    const replay = dataset(Object.fromEntries(Array.from({ length: 50 }, (_, i) => [`eve${i}`, 'abcdef'])));
    const events = told('ada: a b c d', 'bob: a b c d'); // trains on 4 items
    expect((await build(events, { replay, replayRatio: 5 })).counts.replayed).toBe(5);
    expect((await build(events, { replay, replayRatio: 0 })).counts.replayed).toBe(0);
  });

  test('a case whose target is in its history is left out', async () => {
    const { earlier } = await build(told('ada: a b c'), { replay: dataset({ eve: 'abca', fay: 'abcd', gus: 'aabc' }) });
    expect(earlier).toEqual(['abc>d', 'aab>c']);
  });

  test('a case whose target the student lost is left out', async () => {
    const { earlier } = await build(told('ada: a b c'), { replay: dataset({ eve: 'abc-', fay: 'abcd' }) });
    expect(earlier).toEqual(['abc>d']);
  });
});
