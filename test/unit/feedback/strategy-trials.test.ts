import { describe, expect, test } from 'vitest';
import type { FeedbackEvent } from '../../../src/feedback/event.js';
import { StrategySelector } from '../../../src/feedback/strategy.js';
import { StrategyTrials } from '../../../src/feedback/strategy-trials.js';

const START = 1_700_000_000_000;
const CONTEXT = { historyLength: 3 };
const strategies = ['a', 'b'].map((name) => ({ name, diversity: 0, novelty: 0, explore: 0 }));
const event = (type: FeedbackEvent['type'], requestId: string, more: Partial<FeedbackEvent> = {}): FeedbackEvent => ({
  userId: 'u',
  itemId: 'i',
  type,
  requestId,
  ...more,
});

function make(options = {}) {
  const selector = new StrategySelector({ strategies });
  const trials = new StrategyTrials(selector, { windowMs: 1000, ...options });
  const earned = (name: string) => selector.summary(START).find(({ strategy }) => strategy.name === name);
  return { trials, earned };
}

describe('trials', () => {
  test('an answer that nothing came of counts as 0, once its window is over', () => {
    const { trials, earned } = make();
    trials.begin('r1', 'a', CONTEXT, START);
    trials.settle(START + 999);
    expect(earned('a')?.trials).toBe(0);
    trials.settle(START + 1000);
    expect(earned('a')).toMatchObject({ trials: 1, meanReward: 0 });
    expect(trials.pending).toBe(0);
  });

  test('the oldest answers end first, however many come', () => {
    const { trials, earned } = make({ maxPending: 100 });
    for (let i = 0; i < 5000; i++) trials.begin(`r${i}`, i % 2 === 0 ? 'a' : 'b', CONTEXT, START);
    expect(trials.pending).toBe(100);
    for (const ended of ['r0', 'r4898', 'r4899']) expect(trials.apply(event('purchase', ended), START)).toBe(false);
    for (const waiting of ['r4900', 'r4999']) expect(trials.apply(event('purchase', waiting), START)).toBe(true);
    expect(earned('a')?.trials).toBeCloseTo(2450, 6);
    trials.settle(START + 1000);
    expect(trials.pending).toBe(0);
    expect(earned('a')?.meanReward).toBeCloseTo(1 / 2500, 12);
    trials.begin('r0', 'a', CONTEXT, START + 1001);
    expect(trials.pending).toBe(1);
  });

  test('a clock that was set back holds up nothing', () => {
    const { trials, earned } = make();
    trials.begin('ahead', 'a', CONTEXT, START + 1e9);
    trials.begin('r1', 'b', CONTEXT, START);
    trials.begin('r2', 'b', CONTEXT, START + 500);
    trials.settle(START + 1000);
    expect(earned('a')?.trials).toBeCloseTo(1, 6);
    expect(earned('b')?.trials).toBeCloseTo(1, 6);
    expect(trials.pending).toBe(1);
  });

  test('a context that changes afterwards changes no trial', () => {
    const selector = new StrategySelector({ strategies });
    const trials = new StrategyTrials(selector, { windowMs: 1000 });
    const context = { historyLength: 3 };
    trials.begin('r1', 'a', context, START);
    context.historyLength = 100;
    trials.settle(START + 1000);
    expect(selector.state().contexts.map(([key]) => key)).toEqual(['short:']);
  });

  test.each([
    ['no request id', undefined, CONTEXT, START],
    ['no context', 'r1', undefined, START],
    ['a negative history', 'r1', { historyLength: -1 }, START],
    ['a time that is none', 'r1', CONTEXT, Number.NaN],
  ])('%s is refused when the trial begins, and leaves none', (_, requestId, context, now) => {
    const { trials } = make();
    expect(() => trials.begin(requestId as never, 'a', context as never, now)).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }),
    );
    expect(trials.pending).toBe(0);
  });

  test('what is no event is refused', () => {
    const { trials } = make();
    expect(() => trials.apply(null as never)).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }));
    expect(() => trials.apply(event('view', 'r1'), Number.NaN)).toThrow(/now/);
  });

  test('late events count for the strategy and the answer that they belong to', () => {
    const { trials, earned } = make();
    trials.begin('r1', 'a', CONTEXT, START);
    trials.begin('r2', 'b', CONTEXT, START + 1);
    expect(trials.apply(event('purchase', 'r1'), START + 500)).toBe(true);
    trials.settle(START + 5000);
    expect(earned('a')?.trials).toBeCloseTo(1, 6);
    expect(earned('a')?.meanReward).toBe(1);
    expect(earned('b')?.meanReward).toBe(0);
  });

  test.each<[string, [FeedbackEvent['type'], number?][], number]>([
    ['a view', [['view']], 0.2],
    ['a click and a purchase: the purchase', [['click'], ['purchase']], 1],
    ['ten clicks: one', Array.from({ length: 10 }, () => ['click'] as [FeedbackEvent['type']]), 0.5],
    ['a purchase and a dismissal', [['purchase'], ['dismiss']], 0.5],
    ['a dismissal alone: not below 0', [['dismiss']], 0],
    ['a rating of 5', [['rating', 5]], 1],
    ['a rating of 3', [['rating', 3]], 0.25],
    ['a rating without a value', [['rating']], 0],
  ])('the reward of %s', (_, events, expected) => {
    const { trials, earned } = make();
    trials.begin('r', 'a', CONTEXT, START);
    for (const [type, value] of events) trials.apply(event(type, 'r', value === undefined ? {} : { value }), START);
    trials.settleAll();
    expect(earned('a')?.meanReward).toBeCloseTo(expected, 12);
    expect(earned('a')?.trials).toBe(1);
  });

  test('what events are worth can be set', () => {
    const { trials, earned } = make({ rewards: { view: 0.7 } });
    trials.begin('r', 'a', CONTEXT, START);
    trials.apply(event('view', 'r'), START);
    trials.settleAll();
    expect(earned('a')?.meanReward).toBeCloseTo(0.7, 12);
  });

  test.each([
    ['too late', event('click', 'r'), START + 1000],
    ['of another answer', event('click', 'other'), START],
    ['of another strategy', event('click', 'r', { strategy: 'b' }), START],
  ])('an event that is %s changes nothing and is counted', (_, late, now) => {
    const { trials, earned } = make();
    trials.begin('r', 'a', CONTEXT, START);
    expect(trials.apply(late, now)).toBe(false);
    trials.settleAll();
    expect(earned('a')).toMatchObject({ trials: 1, meanReward: 0 });
    expect(trials.unmatched).toBe(1);
  });

  test('an event without a request id is no trial’s', () => {
    const { trials } = make();
    expect(trials.apply({ type: 'click' }, START)).toBe(false);
    expect(trials.unmatched).toBe(0);
  });

  test('no more wait than there is room for: the oldest ends with what it has', () => {
    const { trials, earned } = make({ maxPending: 10 });
    for (let i = 0; i < 100; i++) {
      trials.begin(`r${i}`, 'a', CONTEXT, START);
      trials.apply(event('purchase', `r${i}`), START);
      expect(trials.pending).toBeLessThanOrEqual(10);
    }
    expect(earned('a')).toMatchObject({ trials: 90, meanReward: 1 });
  });

  test('refuses a request id in use, an unknown strategy and wrong options', () => {
    const { trials } = make();
    trials.begin('r', 'a', CONTEXT, START);
    expect(() => trials.begin('r', 'a', CONTEXT, START)).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }),
    );
    expect(() => trials.begin('s', 'z', CONTEXT, START)).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }),
    );
    expect(() => make({ rewards: { click: 2 } })).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }));
    expect(() => make({ window: 2 })).toThrow(expect.objectContaining({ code: 'ERR_UNKNOWN_OPTION' }));
    expect(trials.pending).toBe(1);
  });
});
