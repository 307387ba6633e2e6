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

  /** What a sum is multiplied by to get its value at `now`. @throws LimbeckError ERR_INVALID_ARGUMENT */
  factorAt(now: number): number {
    if (!Number.isFinite(now)) {
      throw new LimbeckError('ERR_INVALID_ARGUMENT', `now: expected milliseconds since the epoch, got ${now}`);
    }
    return Number.isNaN(this.#landmark) ? 1 : 2 ** ((this.#landmark - now) / this.halfLifeMs);
  }
}
