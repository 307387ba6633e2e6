import { LimbeckError } from '../errors.js';

/** 2^500: far from the largest double, so that sums of many weights stay finite. */
const MAX_HALF_LIVES = 500;

/**
 * Exponential decay of many sums at once, without touching them as time goes by: what happens at time t weighs
 * 2^((t − landmark) / halfLife), and a sum is divided by 2^((now − landmark) / halfLife) only when it is read. Sums keep
 * their order between two updates.
 *
 * @see Cormode, Shkapenyuk, Srivastava, Xu 2009, Forward decay: a practical time decay model for streaming systems
 */
export class ForwardDecay {
  #landmark: number;

  /**
   * @param halfLifeMs time in which a weight halves, ms, > 0
   * @param landmark ms since epoch; @defaultValue the first time that is seen
   */
  constructor(
    readonly halfLifeMs: number,
    landmark = Number.NaN,
  ) {
    if (!(halfLifeMs > 0 && Number.isFinite(halfLifeMs))) {
      throw new LimbeckError('ERR_INVALID_ARGUMENT', `halfLifeMs: expected a positive number, got ${halfLifeMs}`);
    }
    // NaN is that of a decay that nothing was weighed by.
    if (typeof landmark !== 'number' || Math.abs(landmark) === Number.POSITIVE_INFINITY) {
      throw new LimbeckError(
        'ERR_INVALID_ARGUMENT',
        `landmark: expected milliseconds since the epoch, got ${landmark}`,
      );
    }
    this.#landmark = landmark;
  }

  /** ms since epoch; NaN before anything was weighed. */
  get landmark(): number {
    return this.#landmark;
  }

  /**
   * Weight of something that happened at `time`.
   *
   * @param rescale called with a factor in [0, 1) that every sum must be multiplied by first: once in 500 half-lives
   */
  weightAt(time: number, rescale: (factor: number) => void): number {
    if (!Number.isFinite(time)) {
      throw new LimbeckError('ERR_INVALID_ARGUMENT', `time: expected milliseconds since the epoch, got ${time}`);
    }
    if (Number.isNaN(this.#landmark)) this.#landmark = time;
    const halfLives = (time - this.#landmark) / this.halfLifeMs;
    if (halfLives <= MAX_HALF_LIVES) return 2 ** halfLives;
    this.#landmark = time;
    rescale(2 ** -halfLives);
    return 1;
  }

  /**
   * What a sum is multiplied by to get its value at `now`: at most 1, because a clock that is far behind what was weighed
   * would else make it infinite.
   *
   * @throws LimbeckError ERR_INVALID_ARGUMENT
   */
  factorAt(now: number): number {
    if (!Number.isFinite(now)) {
      throw new LimbeckError('ERR_INVALID_ARGUMENT', `now: expected milliseconds since the epoch, got ${now}`);
    }
    return Number.isNaN(this.#landmark) ? 1 : 2 ** Math.min(0, (this.#landmark - now) / this.halfLifeMs);
  }
}

/**
 * How sums that were saved go on. With another half-life, those of an old landmark would outweigh all that comes, or
 * vanish: they are brought to what they are worth now, and later weights are relative to that.
 *
 * @param saved half-life and landmark of the sums; null = there are none
 * @returns the landmark to go on from, and what every sum is multiplied by
 * @throws LimbeckError ERR_INVALID_ARGUMENT
 */
export function resumeDecay(
  saved: { readonly halfLifeMs: number; readonly time: number | null },
  halfLifeMs: number,
  now: number,
): { landmark: number | undefined; factor: number } {
  if (saved.time === null || halfLifeMs === saved.halfLifeMs) return { landmark: saved.time ?? undefined, factor: 1 };
  const landmark = Math.max(now, saved.time);
  return { landmark, factor: new ForwardDecay(saved.halfLifeMs, saved.time).factorAt(landmark) };
}
