/**
 * Rewards come late: a list is shown now, and the click, or the lack of one, is known minutes afterwards. A trial is one
 * answer that waits for its reward. It ends when its window is over, so that answers that nothing came of count too:
 * learning from those that were clicked alone would favour whatever is shown most.
 */
import { z } from 'zod';
import { checkInstance, checkObject, described } from '../arguments.js';
import { LimbeckError } from '../errors.js';
import { parseOptions } from '../prepare/parse-options.js';
import type { FeedbackEvent } from './event.js';
import { rewardOf, rewardsSchema } from './rewards.js';
import { checkContext, type StrategyContext, StrategySelector } from './strategy.js';

const MINUTE_MS = 60_000;

const trialsOptionsSchema = z.strictObject({
  /** How long an answer waits for events. */
  windowMs: z
    .number()
    .gt(0)
    .default(30 * MINUTE_MS),
  /** Answers that wait at a time; beyond it, the oldest ends with what it has. About 200 bytes each. */
  maxPending: z.int().min(1).max(10_000_000).default(100_000),
  rewards: rewardsSchema.prefault({}),
});

export type StrategyTrialsOptions = z.input<typeof trialsOptionsSchema>;

interface Trial {
  readonly requestId: string;
  readonly strategy: string;
  readonly context: StrategyContext;
  /** When it was shown, ms since epoch. */
  time: number;
  /** Largest and lowest reward so far; at least 0 and at most 0. */
  best: number;
  worst: number;
}

/**
 * Joins events with the answers that they belong to, and tells the selector what each answer earned.
 *
 * @example
 * const trials = new StrategyTrials(selector);
 * trials.begin(requestId, strategy.name, context); // with every answer
 * trials.apply(event);                             // with every event
 */
export class StrategyTrials {
  readonly #selector: StrategySelector;
  readonly #settings: z.output<typeof trialsOptionsSchema>;
  readonly #pending = new Map<string, Trial>();
  /** In the order of their beginning, from `#oldest` on. A Map would look for its first entry among all that are gone. */
  #inOrder: (Trial | undefined)[] = [];
  #oldest = 0;
  #unmatched = 0;

  /** @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION */
  constructor(selector: StrategySelector, options: StrategyTrialsOptions = {}) {
    checkInstance(selector, StrategySelector, 'selector');
    this.#selector = selector;
    this.#settings = parseOptions(trialsOptionsSchema, options, 'trials');
  }

  /** Answers that wait for events. */
  get pending(): number {
    return this.#pending.size;
  }

  /** Events that belong to no answer that waits: of another process, too late, or made up. They change nothing. */
  get unmatched(): number {
    return this.#unmatched;
  }

  /**
   * An answer was given. Ends what has waited long enough.
   *
   * @param now ms since epoch
   * @throws LimbeckError ERR_INVALID_ARGUMENT for a strategy that the selector does not have, a repeated request id, or a
   * context or time that is none
   */
  begin(requestId: string, strategy: string, context: StrategyContext, now = Date.now()): void {
    if (typeof requestId !== 'string') {
      throw new LimbeckError('ERR_INVALID_ARGUMENT', `requestId: expected a text, got ${described(requestId)}`);
    }
    // Here, and not from the call that happens to end this trial.
    checkContext(context);
    if (this.#pending.has(requestId)) {
      throw new LimbeckError('ERR_INVALID_ARGUMENT', `requestId: '${requestId}' is in use; give every answer its own`);
    }
    if (!this.#selector.strategies.some(({ name }) => name === strategy)) {
      throw new LimbeckError('ERR_INVALID_ARGUMENT', `strategy: the selector has none that is called '${strategy}'`);
    }
    this.settle(now);
    if (this.#pending.size >= this.#settings.maxPending) this.#endOldest();
    const trial = { requestId, strategy, context: { ...context }, time: now, best: 0, worst: 0 };
    this.#pending.set(requestId, trial);
    this.#inOrder.push(trial);
  }

  /**
   * Counts an event for the answer that it names by `requestId`, if that one waits and the strategy, where the event
   * names one, is that of the answer.
   *
   * @returns whether it counted
   * @throws LimbeckError ERR_INVALID_ARGUMENT for an event or a time that is none
   */
  apply(event: Pick<FeedbackEvent, 'type' | 'value' | 'strategy' | 'requestId'>, now = Date.now()): boolean {
    checkObject(event, 'event', 'a feedback event', ['type']);
    this.settle(now);
    if (event.requestId === undefined) return false;
    const trial = this.#pending.get(event.requestId);
    if (trial === undefined || (event.strategy !== undefined && event.strategy !== trial.strategy)) {
      this.#unmatched++;
      return false;
    }
    const reward = rewardOf(event, this.#settings.rewards);
    trial.best = Math.max(trial.best, reward);
    trial.worst = Math.min(trial.worst, reward);
    return true;
  }

  /**
   * Ends the trials whose window is over. `begin` and `apply` do so too: wanted only when neither comes for long.
   *
   * @throws LimbeckError ERR_INVALID_ARGUMENT for a time that is none
   */
  settle(now = Date.now()): void {
    if (!Number.isFinite(now)) {
      throw new LimbeckError(
        'ERR_INVALID_ARGUMENT',
        `now: expected milliseconds since the epoch, got ${described(now)}`,
      );
    }
    const end = now - this.#settings.windowMs;
    while ((this.#inOrder[this.#oldest]?.time ?? Number.POSITIVE_INFINITY) <= end) this.#endOldest();
    if ((this.#inOrder[this.#oldest]?.time ?? now) > now) this.#setBack(now);
  }

  /** Ends all of them now, with what they have: before the selector's state is saved for good. */
  settleAll(): void {
    while (this.#pending.size > 0) this.#endOldest();
  }

  /** The clock was set back: what it began later would wait until it is there again, and all behind that. */
  #setBack(now: number): void {
    for (const trial of this.#pending.values()) trial.time = Math.min(trial.time, now);
  }

  #endOldest(): void {
    const { requestId, strategy, context, time, best, worst } = this.#inOrder[this.#oldest] as Trial;
    this.#inOrder[this.#oldest++] = undefined;
    if (2 * this.#oldest > this.#inOrder.length) {
      this.#inOrder = this.#inOrder.slice(this.#oldest);
      this.#oldest = 0;
    }
    this.#pending.delete(requestId);
    this.#selector.reward(strategy, context, Math.min(1, Math.max(0, best + worst)), time);
  }
}
