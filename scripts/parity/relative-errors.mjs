/** How far the product is from the reference, group by group. */
import { LayoutError } from './golden-case.mjs';

const FORWARD_TOLERANCE = 1e-5;
const GRADIENT_TOLERANCE = 1e-4;

/** @type {Readonly<Record<string, number>>} */
const TOLERANCES = {
  hiddenStates: FORWARD_TOLERANCE,
  attentions: FORWARD_TOLERANCE,
  logits: FORWARD_TOLERANCE,
  loss: FORWARD_TOLERANCE,
  lossTerms: FORWARD_TOLERANCE,
  gradients: GRADIENT_TOLERANCE,
  adamw: GRADIENT_TOLERANCE,
};

// A gradient that is zero in exact arithmetic (a key bias under softmax) is rounding noise in any reference: a tensor
// whose norm is below this share of its group's is measured against the group.
const NOISE = 1e-7;

/** Worst relative error ‖out − reference‖/‖reference‖ of each group. */
export class RelativeErrors {
  /** @type {Record<string, number>} */
  #groups = {};

  /**
   * @param {string} group
   * @param {ArrayLike<number>} out
   * @param {ArrayLike<number>} reference
   * @param {number} [groupNorm] Norm of all tensors that this one stands beside.
   */
  compare(group, out, reference, groupNorm = 0) {
    if (out.length !== reference.length) {
      const counts = `${reference.length} values, the model gives ${out.length}`;
      throw new LayoutError('ERR_SHAPE_MISMATCH', `${group}: expected.safetensors has ${counts}`);
    }
    let difference = 0;
    for (let i = 0; i < reference.length; i++) difference += (Number(out[i]) - Number(reference[i])) ** 2;
    const norm = normOf([reference]);
    const scale = norm > NOISE * groupNorm ? norm : groupNorm;
    const error = scale === 0 ? Math.sqrt(difference) : Math.sqrt(difference) / scale;
    const worst = this.#groups[group] ?? 0;
    this.#groups[group] = Number.isNaN(error) ? Number.POSITIVE_INFINITY : Math.max(error, worst);
  }

  /**
   * Runs one part of a comparison. Training refuses to go on after NaN or infinity: then the group could not be farther
   * from the reference.
   *
   * @param {string} group
   * @param {() => Promise<void>} compareGroup
   */
  async measure(group, compareGroup) {
    try {
      await compareGroup();
    } catch (error) {
      if (/** @type {{ code?: string }} */ (error).code !== 'ERR_NOT_FINITE') throw error;
      this.#groups[group] = Number.POSITIVE_INFINITY;
    }
  }

  /** @returns What is printed: the groups (JSON has no infinity: `'NaN'`), their tolerances, and whether all hold. */
  report() {
    const groups = Object.entries(this.#groups);
    return {
      groups: Object.fromEntries(groups.map(([name, error]) => [name, Number.isFinite(error) ? error : 'NaN'])),
      tolerances: Object.fromEntries(groups.map(([name]) => [name, TOLERANCES[name]])),
      passed: groups.every(([name, error]) => error <= Number(TOLERANCES[name])),
    };
  }
}

/**
 * @param {Iterable<ArrayLike<number>>} tensors
 * @returns {number} Euclidean norm of all values together.
 */
export function normOf(tensors) {
  let sum = 0;
  for (const values of tensors) for (let i = 0; i < values.length; i++) sum += Number(values[i]) ** 2;
  return Math.sqrt(sum);
}
