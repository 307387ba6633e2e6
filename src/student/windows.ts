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
  const bounds: [number, number][] = [];
  let tokens = 0;
  for (let s = 0; s + 1 < sequenceOffsets.length; s++) {
    const begin = sequenceOffsets[s] ?? 0;
    const end = (sequenceOffsets[s + 1] ?? 0) - 1; // the last item is a label only
    const first = bounds.length;
    for (let stop = end; stop > begin; stop -= maxHistory) bounds.push([Math.max(begin, stop - maxHistory), stop]);
    bounds.splice(first, bounds.length - first, ...bounds.slice(first).reverse());
    tokens += Math.max(0, end - begin);
  }
  const offsets = new Int32Array(bounds.length + 1);
  const inputIds = new Int32Array(tokens);
  const labels = new Int32Array(tokens);
  bounds.forEach(([begin, end], i) => {
    const offset = offsets[i] ?? 0;
    inputIds.set(sequences.subarray(begin, end), offset);
    labels.set(sequences.subarray(begin + 1, end + 1), offset);
    offsets[i + 1] = offset + end - begin;
  });
  return { inputIds, labels, offsets };
}
