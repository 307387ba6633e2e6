import type { StepSummary } from '../evaluate/report-types.js';
import { type Hooks, throwIfAborted } from '../prepare/hooks.js';

type StepName = StepSummary['step'];
type Facts = Record<string, string | number>;

/** Seconds and key numbers of the eight steps, in the order in which they first ran. */
export class StepLog {
  readonly #steps = new Map<StepName, { seconds: number; facts: Facts }>();

  constructor(private readonly hooks: Hooks) {}

  /**
   * Runs a part of a step; the seconds of its parts add up.
   *
   * @param name of the part, for work that reports no progress of its own
   */
  async run<T>(step: StepName, name: string | undefined, work: () => Promise<T> | T): Promise<T> {
    throwIfAborted(this.hooks.signal);
    if (name !== undefined) this.hooks.onProgress?.({ step, name, done: 0, total: 1 });
    const start = performance.now();
    const result = await work();
    this.#entry(step).seconds += (performance.now() - start) / 1000;
    if (name !== undefined) this.hooks.onProgress?.({ step, name, done: 1, total: 1 });
    return result;
  }

  /** Key numbers of a step. */
  note(step: StepName, facts: Facts): void {
    Object.assign(this.#entry(step).facts, facts);
  }

  summaries(): StepSummary[] {
    return [...this.#steps].map(([step, { seconds, facts }]) => ({ step, seconds, facts }));
  }

  #entry(step: StepName): { seconds: number; facts: Facts } {
    let entry = this.#steps.get(step);
    if (entry === undefined) {
      entry = { seconds: 0, facts: {} };
      this.#steps.set(step, entry);
    }
    return entry;
  }
}
