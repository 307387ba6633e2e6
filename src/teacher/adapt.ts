/** Step 2 for a teacher that exists: trained further as a whole, or under a low-rank adapter. */
import { checkInstance } from '../arguments.js';
import type { NativeEngine } from '../binding.js';
import { parseOptions } from '../prepare/parse-options.js';
import type { FitResult } from './fit-model.js';
import { LanguageModel } from './language-model.js';
import { type LanguageModelAdaptation, languageModelAdaptationSchema } from './options.js';
import { checkCorpus, type TextCorpus, type TrainLanguageModelContext, trainLanguageModel } from './pretrain.js';

/**
 * Trains a model further on texts. With `lora`, or where the model has an adapter already, the adapter alone: the model's
 * own weights stay as they are, without gradients and optimiser state. It stays on the model, which computes with it; see
 * LanguageModel.mergeAdapter.
 *
 * @throws LimbeckError as trainLanguageModel; ERR_INVALID_ARGUMENT for a layer that the model does not have, a model
 * with an adapter of another shape, and on a GPU
 */
export async function adaptLanguageModel(
  engine: NativeEngine,
  model: LanguageModel,
  corpus: TextCorpus,
  options: LanguageModelAdaptation = {},
  context: TrainLanguageModelContext = {},
): Promise<FitResult> {
  checkInstance(model, LanguageModel, 'model');
  checkCorpus(corpus);
  const { lora, ...training } = parseOptions(languageModelAdaptationSchema, options, 'training');
  if (lora) await model.addAdapter({ ...lora, seed: training.seed }, { signal: context.signal });
  const { checkpoint } = context;
  if (model.adapter === undefined || checkpoint === undefined) {
    return trainLanguageModel(engine, model, corpus, training, context);
  }
  // The state holds the adapter alone, so that it must say what it belongs to.
  const { rank, alpha, dropout, targets, base } = model.adapter;
  const fingerprint = [checkpoint.fingerprint, base, JSON.stringify([rank, alpha, dropout, targets])].join(' ');
  return trainLanguageModel(engine, model, corpus, training, {
    ...context,
    checkpoint: { ...checkpoint, fingerprint },
  });
}
