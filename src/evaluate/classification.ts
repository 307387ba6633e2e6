import { LimbeckError } from '../errors.js';
import { checkNotEmpty } from './checks.js';

export interface ClassScores {
  /** True positives / predicted; 0 when the class was never predicted. */
  readonly precision: number;
  /** True positives / labelled; 0 when the class has no label. */
  readonly recall: number;
  /** 2PR / (P + R); 0 when both are 0. */
  readonly f1: number;
}

export interface ClassificationMetrics<L> {
  /** Share of predictions that equal their label. */
  readonly accuracy: number;
  /** Unweighted mean over classes. */
  readonly macro: ClassScores;
  /** Every class found among labels or predictions, ascending; `support` counts its labels. */
  readonly classes: readonly (ClassScores & { readonly label: L; readonly support: number })[];
}

/**
 * Accuracy, and precision, recall and F1 by class and macro-averaged.
 *
 * @param labels - [N], the truth
 * @param predictions - [N]
 * @throws `ERR_EMPTY_DATA` for no labels, `ERR_INVALID_ARGUMENT` for different lengths
 * @see Sokolova and Lapalme 2009, A systematic analysis of performance measures for classification tasks, table 3
 */
export function classificationMetrics<L extends string | number>(
  labels: ArrayLike<L>,
  predictions: ArrayLike<L>,
): ClassificationMetrics<L> {
  checkNotEmpty('labels', labels);
  if (labels.length !== predictions.length) {
    const message = `labels and predictions must pair up, got ${labels.length} labels and ${predictions.length} predictions`;
    throw new LimbeckError('ERR_INVALID_ARGUMENT', message);
  }
  const tallies = new Map<L, { support: number; predicted: number; correct: number }>();
  const tallyOf = (label: L) => {
    const tally = tallies.get(label) ?? { support: 0, predicted: 0, correct: 0 };
    tallies.set(label, tally);
    return tally;
  };
  let correct = 0;
  for (const [index, label] of Array.from(labels).entries()) {
    const prediction = predictions[index] as L;
    tallyOf(label).support++;
    tallyOf(prediction).predicted++;
    if (label === prediction) {
      tallyOf(label).correct++;
      correct++;
    }
  }

  const ratio = (part: number, whole: number) => (whole === 0 ? 0 : part / whole);
  const classes = [...tallies]
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([label, tally]) => ({
      label,
      support: tally.support,
      precision: ratio(tally.correct, tally.predicted),
      recall: ratio(tally.correct, tally.support),
      // 2PR / (P + R) in counts: no division by zero to guard twice.
      f1: ratio(2 * tally.correct, tally.predicted + tally.support),
    }));
  const macroOf = (score: keyof ClassScores) => classes.reduce((sum, entry) => sum + entry[score], 0) / classes.length;
  return {
    accuracy: correct / labels.length,
    macro: { precision: macroOf('precision'), recall: macroOf('recall'), f1: macroOf('f1') },
    classes,
  };
}
