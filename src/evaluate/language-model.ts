import { LimbeckError } from '../errors.js';
import { checkInteger } from './checks.js';

/**
 * exp of the mean cross-entropy (nats) a token; 1 = perfect, V = guessing among V words.
 *
 * @param lossSum - cross-entropy summed over the labelled tokens, at least 0; infinity gives infinity
 * @param numTokens - labelled tokens, at least 1
 * @throws `ERR_EMPTY_DATA` for no tokens, `ERR_INVALID_ARGUMENT` for a loss that is negative or not a number
 * @see Jelinek et al. 1977, Perplexity: a measure of the difficulty of speech recognition tasks
 */
export function perplexity(lossSum: number, numTokens: number): number {
  if (numTokens === 0) {
    throw new LimbeckError(
      'ERR_EMPTY_DATA',
      'perplexity needs at least one labelled token, got none: check the test split',
    );
  }
  checkInteger('numTokens', numTokens, 1);
  if (!(lossSum >= 0)) throw new LimbeckError('ERR_INVALID_ARGUMENT', `lossSum must be at least 0, got ${lossSum}`);
  return Math.exp(lossSum / numTokens);
}

/**
 * How many times smaller the student is: teacher parameters / student parameters.
 *
 * @throws `ERR_INVALID_ARGUMENT` unless both are integers of at least 1
 */
export function compression(teacherParameters: number, studentParameters: number): number {
  checkInteger('teacherParameters', teacherParameters, 1);
  checkInteger('studentParameters', studentParameters, 1);
  return teacherParameters / studentParameters;
}
