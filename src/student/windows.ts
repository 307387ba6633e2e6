import type { PackedSequences } from '../prepare/dataset.js';

/** Training windows end to end: inputs, and the item that came next at each place. */
export interface TrainingWindows {
  readonly inputIds: Int32Array; // [N]
  readonly labels: Int32Array; // [N]
  readonly offsets: Int32Array; // [S + 1]
}

/**
 * Cuts histories into windows of at most `maxHistory` inputs, from the end, so that the latest one is full. Every item
 * but the first of a history is a label exactly once. Histories of one item have nothing to predict and are left out.
 */
export function trainingWindows({ sequences, sequenceOffsets }: PackedSequences, maxHistory: number): TrainingWindows {
  const numSequences = sequenceOffsets.length - 1;
  /** Places of a history that have a next item: all but the last. */
  const inputsOf = (s: number) => Math.max(0, (sequenceOffsets[s + 1] ?? 0) - (sequenceOffsets[s] ?? 0) - 1);
  let tokens = 0;
  let numWindows = 0;
  for (let s = 0; s < numSequences; s++) {
    tokens += inputsOf(s);
    numWindows += Math.ceil(inputsOf(s) / maxHistory);
  }
  const offsets = new Int32Array(numWindows + 1);
  const inputIds = new Int32Array(tokens);
  const labels = new Int32Array(tokens);
  let window = 0;
  let token = 0;
  for (let s = 0; s < numSequences; s++) {
    const begin = sequenceOffsets[s] ?? 0;
    const count = inputsOf(s);
    for (let i = 0; i < count; i++) {
      inputIds[token] = sequences[begin + i] as number;
      labels[token++] = sequences[begin + i + 1] as number;
      if ((count - 1 - i) % maxHistory === 0) offsets[++window] = token;
    }
  }
  return { inputIds, labels, offsets };
}
