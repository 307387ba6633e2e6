import { describe, expect, test } from 'vitest';
import { sampleBeta } from '../../../src/feedback/beta.js';
import { DEFAULT_STRATEGIES, type Strategy, StrategySelector } from '../../../src/feedback/strategy.js';
import { randomNumbers } from '../../../src/teacher/batches.js';

const START = 1_700_000_000_000;
const DAY = 86_400_000;
const strategy = (name: string): Strategy => ({ name, diversity: 0, novelty: 0, explore: 0 });
const strategies = ['a', 'b', 'c', 'd'].map(strategy);
const SHORT = { historyLength: 2 };
const LONG = { historyLength: 50 };

/**
 * Plays a selector against Bernoulli rewards.
 *
 * @returns expected reward lost to the best strategy, summed up to each quarter of the rounds
 */
function play(
  selector: StrategySelector,
  meanOf: (name: string, round: number) => number,
  { rounds, seed, context = SHORT }: { rounds: number; seed: number; context?: { historyLength: number } },
): number[] {
  const random = randomNumbers(seed);
  let regret = 0;
  const quarters: number[] = [];
  for (let round = 0; round < rounds; round++) {
    const { name } = selector.choose(context, START);
    const best = Math.max(...selector.strategies.map((one) => meanOf(one.name, round)));
    regret += best - meanOf(name, round);
    selector.reward(name, context, Number(random() < meanOf(name, round)), START);
    if ((round + 1) % (rounds / 4) === 0) quarters.push(regret);
  }
  return quarters;
}

const MEANS: Record<string, number> = { a: 0.1, b: 0.15, c: 0.3, d: 0.05 };

describe('the regret of a selector', () => {
  test.each([1, 2, 3, 4, 5])('grows far slower than the rounds, seed %i', (seed) => {
    const selector = new StrategySelector({ strategies, seed });
    const rounds = 8000;
    const quarters = play(selector, (name) => MEANS[name] ?? 0, { rounds, seed: 100 + seed });
    const uniform = rounds * 0.15; // mean reward of the four: 0.15; the best has 0.3
    expect(quarters[3]).toBeLessThan(0.12 * uniform);
    // Linear regret would add as much in the last half as in the first.
    const [, firstHalf = 0, , all = 0] = quarters;
    expect(all - firstHalf).toBeLessThan(0.5 * firstHalf);
  });

  test('is small in every context, where the best strategy differs', () => {
    const selector = new StrategySelector({ strategies, seed: 3 });
    const inverse = (name: string) => 0.35 - (MEANS[name] ?? 0);
    play(selector, (name) => MEANS[name] ?? 0, { rounds: 4000, seed: 1, context: SHORT });
    play(selector, inverse, { rounds: 4000, seed: 2, context: LONG });
    const shares = (context: typeof SHORT) => {
      const names = Array.from({ length: 400 }, () => selector.choose(context, START).name);
      return (name: string) => names.filter((one) => one === name).length / 400;
    };
    expect(shares(SHORT)('c')).toBeGreaterThan(0.9);
    expect(shares(LONG)('d')).toBeGreaterThan(0.6);
    expect(shares(LONG)('c')).toBeLessThan(0.05);
  });

  test('in a new context starts low, by what the other contexts have learned', () => {
    const regretOfNew = (teach: boolean, seed: number) => {
      const selector = new StrategySelector({ strategies, seed });
      if (teach) play(selector, (name) => MEANS[name] ?? 0, { rounds: 4000, seed: 1, context: SHORT });
      return play(selector, (name) => MEANS[name] ?? 0, { rounds: 400, seed: 2, context: LONG })[3] ?? 0;
    };
    const sum = (teach: boolean) => [1, 2, 3, 4, 5].reduce((total, seed) => total + regretOfNew(teach, seed), 0);
    expect(sum(true)).toBeLessThan(0.5 * sum(false));
  });

  test('recovers when the best strategy changes, by forgetting', () => {
    const regretAfterChange = (halfLifeMs: number) => {
      const selector = new StrategySelector({ strategies, seed: 5, halfLifeMs });
      const random = randomNumbers(9);
      let regret = 0;
      for (let day = 0; day < 120; day++) {
        const mean = (name: string) => (day < 60 ? (MEANS[name] ?? 0) : 0.35 - (MEANS[name] ?? 0));
        for (let i = 0; i < 100; i++) {
          const { name } = selector.choose(SHORT, START + day * DAY);
          if (day >= 60) regret += 0.3 - mean(name);
          selector.reward(name, SHORT, Number(random() < mean(name)), START + day * DAY);
        }
      }
      return regret;
    };
    expect(regretAfterChange(7 * DAY)).toBeLessThan(0.6 * regretAfterChange(1e6 * DAY));
  });
});

describe('a selector', () => {
  test('gives the same choices under the same seed, others under another', () => {
    const names = (seed: number) => {
      const selector = new StrategySelector({ seed });
      return Array.from({ length: 50 }, () => selector.choose(SHORT, START).name);
    };
    expect(names(1)).toEqual(names(1));
    expect(names(1)).not.toEqual(names(2));
    expect(new Set(names(1)).size).toBe(DEFAULT_STRATEGIES.length);
  });

  test('comes back from JSON and goes on with the same choices', () => {
    const selector = new StrategySelector({ strategies, seed: 4 });
    play(selector, (name) => MEANS[name] ?? 0, { rounds: 200, seed: 1 });
    selector.reward('a', { historyLength: 3, segment: '__proto__' }, 0.5, START);
    const state = JSON.parse(JSON.stringify(selector.state()));
    const again = StrategySelector.restore(state, { strategies, seed: 4 });
    const next = (one: StrategySelector) => Array.from({ length: 50 }, () => one.choose(SHORT, START).name);
    expect(next(again)).toEqual(next(selector));
    expect(again.state()).toEqual(selector.state());
    expect(again.summary(START)).toEqual(selector.summary(START));
  });

  test('keeps what it knows of strategies that are still there, and begins anew with changed ones', () => {
    const selector = new StrategySelector({ strategies });
    for (const { name } of strategies) selector.reward(name, SHORT, 1, START);
    const changed = [{ ...strategy('b'), novelty: 1 }, strategy('a'), strategy('new')];
    const again = StrategySelector.restore(selector.state(), { strategies: changed });
    expect(again.summary(START).map(({ strategy: { name }, trials }) => [name, trials])).toEqual([
      ['b', 0],
      ['a', 1],
      ['new', 0],
    ]);
  });

  test('sums up what was earned, decayed', () => {
    const selector = new StrategySelector({ strategies, halfLifeMs: DAY });
    selector.reward('a', SHORT, 1, START);
    selector.reward('a', LONG, 0, START);
    const [a, b] = selector.summary(START + DAY);
    expect(a).toMatchObject({ trials: 1, meanReward: 0.5 });
    expect(b).toMatchObject({ trials: 0, meanReward: 0 });
  });

  test('stays exact over thousands of half-lives', () => {
    const selector = new StrategySelector({ strategies, halfLifeMs: DAY });
    for (let day = 0; day <= 3000; day++) selector.reward('a', SHORT, 1, START + day * DAY);
    expect(selector.summary(START + 3000 * DAY)[0]?.trials).toBeCloseTo(2, 9);
    expect(strategies.map(({ name }) => name)).toContain(selector.choose(SHORT, START + 3000 * DAY).name);
  });

  test('knows nothing any more after a long silence', () => {
    const selector = new StrategySelector({ strategies, halfLifeMs: DAY });
    for (let i = 0; i < 500; i++) selector.reward('a', SHORT, 1, START);
    for (const name of ['b', 'c', 'd']) for (let i = 0; i < 500; i++) selector.reward(name, SHORT, 0, START);
    const shareOfA = (now: number) =>
      Array.from({ length: 400 }, () => selector.choose(SHORT, now)).filter(({ name }) => name === 'a').length / 400;
    expect(shareOfA(START)).toBe(1);
    expect(shareOfA(START + 30 * DAY)).toBeLessThan(0.4);
  });

  test('chooses by a clock that is far behind', () => {
    const selector = new StrategySelector({ strategies, halfLifeMs: DAY });
    selector.reward('a', SHORT, 1, START);
    expect(strategies.map(({ name }) => name)).toContain(selector.choose(SHORT, START / 1000).name);
    expect(selector.summary(0)[0]?.trials).toBe(1);
  });

  test('goes on with another half-life from what is known now', () => {
    const selector = new StrategySelector({ strategies, halfLifeMs: DAY });
    for (let day = 0; day <= 300; day++) selector.reward('a', SHORT, 1, START + day * DAY);
    const now = START + 300 * DAY;
    const again = StrategySelector.restore(selector.state(), { halfLifeMs: 10 * DAY }, now);
    expect(again.summary(now)[0]).toMatchObject({ trials: expect.closeTo(2, 9), meanReward: expect.closeTo(1, 9) });
    expect(again.summary(now + 10 * DAY)[0]?.trials).toBeCloseTo(1, 9);
    again.reward('b', SHORT, 1, now);
    expect(again.summary(now)[1]?.trials).toBeCloseTo(1, 9);
  });

  test('keeps what was saved where options leave it undefined', () => {
    const selector = new StrategySelector({ strategies, halfLifeMs: DAY });
    selector.reward('a', SHORT, 1, START);
    const again = StrategySelector.restore(selector.state(), { strategies: undefined, halfLifeMs: undefined });
    expect(again.state()).toEqual(selector.state());
  });

  test('keeps no more segments than it has room for', () => {
    const selector = new StrategySelector({ strategies, maxSegments: 3 });
    for (let i = 0; i < 1000; i++) selector.reward('a', { historyLength: 0, segment: `s${i}` }, 1, START);
    expect(selector.state().contexts).toHaveLength(4);
    expect(selector.summary(START)[0]?.trials).toBe(1000);
    const again = StrategySelector.restore(selector.state(), { strategies, maxSegments: 3 });
    for (let i = 0; i < 1000; i++) again.reward('a', { historyLength: 0, segment: `t${i}` }, 1, START);
    expect(again.state().contexts).toHaveLength(4);
  });

  test.each([
    ['a reward above 1', 'a', SHORT, 1.5],
    ['a reward that is no number', 'a', SHORT, Number.NaN],
    ['an unknown strategy', 'z', SHORT, 1],
    ['a name of the prototype', 'constructor', SHORT, 1],
    ['a negative history', 'a', { historyLength: -1 }, 1],
    ['no history', 'a', {} as never, 1],
    ['a history as text', 'a', { historyLength: '7' } as never, 1],
    ['an endless segment', 'a', { historyLength: 1, segment: 'x'.repeat(100) }, 1],
  ])('refuses %s and stays as it was', (_, name, context, reward) => {
    const selector = new StrategySelector({ strategies });
    const before = selector.state();
    expect(() => selector.reward(name, context, reward, START)).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }),
    );
    expect(selector.state()).toEqual(before);
  });

  test.each([
    ['no strategies', { strategies: [] }, 'ERR_INVALID_ARGUMENT'],
    ['two of one name', { strategies: [strategy('a'), strategy('a')] }, 'ERR_INVALID_ARGUMENT'],
    ['a diversity of 2', { strategies: [{ ...strategy('a'), diversity: 2 }] }, 'ERR_INVALID_ARGUMENT'],
    ['a name with a slash', { strategies: [strategy('a/b')] }, 'ERR_INVALID_ARGUMENT'],
    ['an unknown option', { halfLife: 3 }, 'ERR_UNKNOWN_OPTION'],
  ])('is not made of %s', (_, options, code) => {
    expect(() => new StrategySelector(options as never)).toThrow(expect.objectContaining({ code }));
  });

  test.each([
    ['nothing', null],
    ['another format', { ...new StrategySelector().state(), format: 'x' }],
    ['another version', { ...new StrategySelector().state(), version: 2 }],
    ['negative counts', { ...new StrategySelector().state(), contexts: [['short:', [[-1, 3]]]] }],
    ['counts whose sum would be infinite', { ...new StrategySelector().state(), contexts: [['short:', [[0, 1e308]]]] }],
    ['an extra key', { ...new StrategySelector().state(), extra: 1 }],
  ])('refuses a state of %s', (_, state) => {
    expect(() => StrategySelector.restore(state)).toThrow(expect.objectContaining({ code: 'ERR_FILE_FORMAT' }));
  });
});

describe('samples of the Beta distribution', () => {
  test.each([
    [1, 1],
    [2, 5],
    [0.3, 0.7],
    [400, 20],
  ])('have its mean and variance: Beta(%d, %d)', (a, b) => {
    const random = randomNumbers(11);
    const samples = Array.from({ length: 40_000 }, () => sampleBeta(a, b, random));
    const mean = samples.reduce((sum, x) => sum + x, 0) / samples.length;
    const variance = samples.reduce((sum, x) => sum + (x - mean) ** 2, 0) / samples.length;
    const expected = (a * b) / ((a + b) ** 2 * (a + b + 1));
    expect(Math.abs(mean - a / (a + b))).toBeLessThan(5 * Math.sqrt(expected / samples.length));
    expect(variance / expected).toBeGreaterThan(0.95);
    expect(variance / expected).toBeLessThan(1.05);
    expect(samples.every((x) => x >= 0 && x <= 1)).toBe(true);
  });

  test('of tiny parameters are 0 or 1, never undefined', () => {
    const random = randomNumbers(1);
    const samples = Array.from({ length: 1000 }, () => sampleBeta(1e-300, 1e-300, random));
    expect(samples.every((x) => x === 0 || x === 1)).toBe(true);
    expect(samples).toContain(0);
    expect(samples).toContain(1);
  });
});
