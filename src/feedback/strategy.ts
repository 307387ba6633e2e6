/**
 * Which way of ranking to answer a request with, learned from what users did with earlier answers: Thompson sampling
 * over strategies, in each context, with a prior that the contexts share.
 *
 * A strategy's mean reward in a context is Beta distributed: Beta(κ·m + S, κ·(1 − m) + F), where S is the sum of its
 * rewards there, F the number of its trials there less S, and m its mean over the other contexts, itself sampled from
 * Beta(1 + S', 1 + F') of those. So a new context begins with what the others know, worth κ trials, and soon goes by
 * itself. The strategy whose sampled mean is highest is chosen. All counts halve every half-life, so that a strategy that
 * has stopped being the best is tried again.
 *
 * @see Chapelle and Li 2011, An empirical evaluation of Thompson sampling, algorithm 2
 * @see Agrawal and Goyal 2013, Further optimal regret bounds for Thompson sampling (regret O(√(N·T·ln T)))
 * @see Hong et al. 2022, Hierarchical Bayesian bandits (the shared prior)
 * @see Raj and Kalyani 2017, Taming non-stationary bandits: a Bayesian approach (the forgetting)
 */
import { z } from 'zod';
import { checkObject, described } from '../arguments.js';
import { LimbeckError } from '../errors.js';
import { checkedJson } from '../formats/checked-json.js';
import { parseOptions } from '../prepare/parse-options.js';
import { hashSeed, randomNumbers } from '../teacher/batches.js';
import { sampleBeta } from './beta.js';
import { ForwardDecay, resumeDecay } from './decay.js';

const DAY_MS = 86_400_000;
const MAX_STRATEGIES = 64;

const strategySchema = z.strictObject({
  name: z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/, 'expected 1 to 64 letters, digits, dots, dashes'),
  /** As in `recommend()`: 0 to 1. */
  diversity: z.number().min(0).max(1),
  /** As in `recommend()`: weight of −log popularity, 0 or more. */
  novelty: z.number().min(0).max(100),
  /** As in `recommend()`: share of places given by sampling, 0 to 1. */
  explore: z.number().min(0).max(1),
});

/** A way of ranking: weights that `student.recommend()` takes. */
export type Strategy = Readonly<z.output<typeof strategySchema>>;

/**
 * Mild ones: what is tried first costs little (see docs/adaptation.md). Those with novelty need a student that knows how
 * popular its items are.
 */
export const DEFAULT_STRATEGIES: readonly Strategy[] = [
  { name: 'relevance', diversity: 0, novelty: 0, explore: 0 },
  { name: 'diverse', diversity: 0.5, novelty: 0, explore: 0 },
  { name: 'novel', diversity: 0, novelty: 0.3, explore: 0 },
  { name: 'broad', diversity: 0.5, novelty: 0.3, explore: 0 },
  { name: 'exploring', diversity: 0, novelty: 0, explore: 0.1 },
];

/** What is known of a request before it is answered. */
export interface StrategyContext {
  /** Items of the user's history; counts by its size: none, 1 to 4, 5 to 19, 20 or more. */
  readonly historyLength: number;
  /** Anything else that tells requests apart, e.g. the page or the device. @defaultValue none */
  readonly segment?: string;
}

const selectorOptionsSchema = z.strictObject({
  /** 1 to 64, of different names. */
  strategies: z
    .array(strategySchema)
    .min(1)
    .max(MAX_STRATEGIES)
    .default([...DEFAULT_STRATEGIES]),
  /** The same seed, options, calls and times give the same choices. */
  seed: z
    .int()
    .min(0)
    .max(2 ** 31 - 1)
    .default(0),
  /** Time in which what was learned counts half. */
  halfLifeMs: z
    .number()
    .gt(0)
    .default(30 * DAY_MS),
  /** κ: trials that the mean of the other contexts is worth in one. */
  priorTrials: z.number().gt(0).max(1e6).default(20),
  /** Different segments that are kept apart; those that come later share one. */
  maxSegments: z.int().min(0).max(10_000).default(64),
});

export type StrategySelectorOptions = z.input<typeof selectorOptionsSchema>;

/** Far above what 500 half-lives of trials come to, and so that their sum over all contexts is finite. */
const savedSum = z.number().min(0).max(1e300);
const stateSchema = z.strictObject({
  format: z.literal('limbeck-strategy-selector'),
  version: z.literal(1),
  strategies: z.array(strategySchema).min(1).max(MAX_STRATEGIES),
  /** Choices made so far: what the next one is seeded with. */
  numChoices: z.int().min(0),
  halfLifeMs: z.number().gt(0),
  /** ms since epoch that the sums are of; null = no reward yet. */
  time: z.number().nullable(),
  /** [context, [[rewards, trials] of each strategy]]. */
  contexts: z.array(z.tuple([z.string().max(256), z.array(z.tuple([savedSum, savedSum]))])).max(50_000),
});

/** Survives JSON. */
export type StrategyState = z.output<typeof stateSchema>;

/** What a strategy has earned, decayed to now. */
export interface StrategySummary {
  readonly strategy: Strategy;
  /** Trials in all contexts. */
  readonly trials: number;
  /** Mean reward over them; 0 without any. */
  readonly meanReward: number;
}

/** Sums at the decay's landmark, by strategy. */
interface Counts {
  readonly rewards: Float64Array;
  readonly trials: Float64Array;
}

/**
 * @example
 * const selector = new StrategySelector({ seed: 7 });
 * const context = { historyLength: 12 };
 * const { name, ...weights } = selector.choose(context);
 * student.recommend({ history, ...weights });
 * selector.reward(name, context, 1); // the user bought something of it
 */
export class StrategySelector {
  readonly strategies: readonly Strategy[];
  readonly #indices: ReadonlyMap<string, number>;
  readonly #contexts = new Map<string, Counts>();
  readonly #segments = new Set<string>();
  readonly #all: Counts;
  readonly #decay: ForwardDecay;
  readonly #settings: z.output<typeof selectorOptionsSchema>;
  #numChoices = 0;

  /** @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION */
  constructor(options: StrategySelectorOptions = {}, landmark?: number) {
    this.#settings = parseOptions(selectorOptionsSchema, options, 'strategies');
    this.strategies = this.#settings.strategies;
    this.#indices = new Map(this.strategies.map(({ name }, index) => [name, index]));
    if (this.#indices.size !== this.strategies.length) {
      throw new LimbeckError('ERR_INVALID_ARGUMENT', 'strategies: expected different names; one is repeated');
    }
    this.#decay = new ForwardDecay(this.#settings.halfLifeMs, landmark);
    this.#all = noCounts(this.strategies.length);
  }

  /**
   * The strategy to answer a request with. A few microseconds.
   *
   * @param now ms since epoch
   * @throws LimbeckError ERR_INVALID_ARGUMENT
   */
  choose(context: StrategyContext, now = Date.now()): Strategy {
    const counts = this.#contexts.get(this.#keyOf(context));
    const factor = this.#decay.factorAt(now);
    const random = randomNumbers(hashSeed(this.#settings.seed, this.#numChoices++));
    let best = 0;
    let highest = -1;
    for (let i = 0; i < this.strategies.length; i++) {
      const mean = this.#sampleMean(i, counts, factor, random);
      if (mean > highest) {
        highest = mean;
        best = i;
      }
    }
    return this.strategies[best] as Strategy;
  }

  /**
   * Tells what one answer earned. Call it once for every answer, with 0 for those that nothing came of; {@link
   * StrategyTrials} does so.
   *
   * @param reward 0 to 1
   * @param time ms since epoch; one that is late counts as much as if it had come in time
   * @throws LimbeckError ERR_INVALID_ARGUMENT, also for a strategy that is not one of these
   */
  reward(name: string, context: StrategyContext, reward: number, time = Date.now()): void {
    const index = this.#indices.get(name);
    if (index === undefined) {
      const known = [...this.#indices.keys()].join(', ');
      throw new LimbeckError('ERR_INVALID_ARGUMENT', `strategy: expected one of ${known}, got '${String(name)}'`);
    }
    if (!(reward >= 0 && reward <= 1)) {
      throw new LimbeckError('ERR_INVALID_ARGUMENT', `reward: expected a number from 0 to 1, got ${reward}`);
    }
    const key = this.#keyOf(context);
    const weight = this.#decay.weightAt(time, (factor) => this.#rescale(factor));
    let counts = this.#contexts.get(key);
    if (counts === undefined) {
      counts = noCounts(this.strategies.length);
      this.#contexts.set(key, counts);
    }
    for (const { rewards, trials } of [counts, this.#all]) {
      rewards[index] = (rewards[index] ?? 0) + weight * reward;
      trials[index] = (trials[index] ?? 0) + weight;
    }
  }

  /** What each strategy has earned, in all contexts. @throws LimbeckError ERR_INVALID_ARGUMENT for a time that is none */
  summary(now = Date.now()): StrategySummary[] {
    const factor = this.#decay.factorAt(now);
    return this.strategies.map((strategy, i) => {
      const trials = this.#all.trials[i] ?? 0;
      const meanReward = trials > 0 ? (this.#all.rewards[i] ?? 0) / trials : 0;
      return { strategy, trials: trials * factor, meanReward };
    });
  }

  /** What {@link StrategySelector.restore} reads. */
  state(): StrategyState {
    const { landmark, halfLifeMs } = this.#decay;
    return {
      format: 'limbeck-strategy-selector',
      version: 1,
      strategies: [...this.strategies],
      numChoices: this.#numChoices,
      halfLifeMs,
      time: Number.isNaN(landmark) ? null : landmark,
      contexts: Array.from(this.#contexts, ([key, { rewards, trials }]) => [
        key,
        this.strategies.map((_, i) => [rewards[i] ?? 0, trials[i] ?? 0]),
      ]),
    };
  }

  /**
   * The selector that {@link state} described, with the strategies and settings of `options`. What was learned of a
   * strategy is kept where one of the same name and weights is still there; a changed one begins anew. Another half-life
   * counts from `now` on.
   *
   * @param now ms since epoch
   * @throws LimbeckError ERR_FILE_FORMAT for what is no such state, or of another version; and as the constructor
   */
  static restore(state: unknown, options: StrategySelectorOptions = {}, now = Date.now()): StrategySelector {
    const saved = checkedJson(stateSchema, state, 'strategy state');
    const { strategies = saved.strategies, halfLifeMs = saved.halfLifeMs } = options;
    const { landmark, factor } = resumeDecay(saved, halfLifeMs, now);
    const selector = new StrategySelector({ ...options, strategies, halfLifeMs }, landmark);
    selector.#numChoices = saved.numChoices;
    const indices = selector.strategies.map((strategy) => saved.strategies.findIndex((one) => isSame(one, strategy)));
    for (const [key, sums] of saved.contexts) selector.#restoreContext(key, sums, indices);
    if (factor < 1) selector.#rescale(factor);
    return selector;
  }

  #restoreContext(key: string, saved: readonly (readonly [number, number])[], indices: readonly number[]): void {
    const segment = key.slice(key.indexOf(':') + 1);
    if (segment !== '' && segment !== OTHER) this.#segments.add(segment);
    const counts = noCounts(this.strategies.length);
    indices.forEach((from, to) => {
      const [rewards, trials] = saved[from] ?? [0, 0];
      counts.trials[to] = trials;
      counts.rewards[to] = Math.min(rewards, trials);
      this.#all.trials[to] = (this.#all.trials[to] ?? 0) + trials;
      this.#all.rewards[to] = (this.#all.rewards[to] ?? 0) + Math.min(rewards, trials);
    });
    this.#contexts.set(key, counts);
  }

  #sampleMean(i: number, counts: Counts | undefined, factor: number, random: () => number): number {
    const { priorTrials } = this.#settings;
    const here = posterior(counts, i, factor);
    const everywhere = posterior(this.#all, i, factor);
    const mean = sampleBeta(
      1 + Math.max(0, everywhere.successes - here.successes),
      1 + Math.max(0, everywhere.failures - here.failures),
      random,
    );
    return sampleBeta(
      Math.max(priorTrials * mean, Number.MIN_VALUE) + here.successes,
      Math.max(priorTrials * (1 - mean), Number.MIN_VALUE) + here.failures,
      random,
    );
  }

  #keyOf(context: StrategyContext): string {
    checkContext(context);
    const { historyLength, segment = '' } = context;
    const size = historyLength < 1 ? 'none' : historyLength < 5 ? 'short' : historyLength < 20 ? 'middle' : 'long';
    return `${size}:${this.#segmentOf(segment)}`;
  }

  /** The segment itself while there is room; strangers cannot fill the memory with new ones. */
  #segmentOf(segment: string): string {
    if (segment === '' || this.#segments.has(segment)) return segment;
    if (this.#segments.size >= this.#settings.maxSegments || segment === OTHER) return OTHER;
    this.#segments.add(segment);
    return segment;
  }

  #rescale(factor: number): void {
    for (const { rewards, trials } of [...this.#contexts.values(), this.#all]) {
      for (let i = 0; i < trials.length; i++) {
        rewards[i] = (rewards[i] ?? 0) * factor;
        trials[i] = (trials[i] ?? 0) * factor;
      }
    }
  }
}

const OTHER = '*';

/** @internal @throws LimbeckError ERR_INVALID_ARGUMENT */
export function checkContext(context: StrategyContext): void {
  checkObject(context, 'context', '{ historyLength, segment }');
  const { historyLength, segment = '' } = context;
  if (typeof historyLength !== 'number' || !(historyLength >= 0)) {
    const got = described(historyLength);
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `historyLength: expected a number of 0 or more, got ${got}`);
  }
  if (typeof segment !== 'string' || segment.length > 64) {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', 'segment: expected a text of at most 64 characters');
  }
}

function noCounts(numStrategies: number): Counts {
  return { rewards: new Float64Array(numStrategies), trials: new Float64Array(numStrategies) };
}

function posterior(counts: Counts | undefined, i: number, factor: number): { successes: number; failures: number } {
  const rewards = counts?.rewards[i] ?? 0;
  const trials = counts?.trials[i] ?? 0;
  return { successes: rewards * factor, failures: Math.max(0, trials - rewards) * factor };
}

function isSame(a: Strategy, b: Strategy): boolean {
  return a.name === b.name && a.diversity === b.diversity && a.novelty === b.novelty && a.explore === b.explore;
}
