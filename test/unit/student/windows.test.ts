import { describe, expect, test } from 'vitest';
import { trainingWindows } from '../../../src/student/windows.js';

function packed(...histories: number[][]) {
  const offsets = [0];
  for (const history of histories) offsets.push((offsets.at(-1) ?? 0) + history.length);
  return {
    sequences: Int32Array.from(histories.flat()),
    sequenceOffsets: Int32Array.from(offsets),
    users: Int32Array.from(histories.keys()),
  };
}

describe('training windows', () => {
  test('pair each item with the one that came next', () => {
    const { inputIds, labels, offsets } = trainingWindows(packed([4, 5, 6], [7, 8]), 10);
    expect([...inputIds]).toEqual([4, 5, 7]);
    expect([...labels]).toEqual([5, 6, 8]);
    expect([...offsets]).toEqual([0, 2, 3]);
  });

  test('of a long history are cut from the end, in time order, every label once', () => {
    const history = Array.from({ length: 24 }, (_, i) => i);
    const { inputIds, labels, offsets } = trainingWindows(packed(history), 10);
    expect([...offsets]).toEqual([0, 3, 13, 23]);
    expect([...inputIds]).toEqual(history.slice(0, 23));
    expect([...labels]).toEqual(history.slice(1));
  });

  test('leave out histories with nothing to predict', () => {
    expect(trainingWindows(packed([3], [], [1, 2]), 5).offsets).toEqual(Int32Array.of(0, 1));
    expect(trainingWindows(packed([3]), 5).inputIds).toHaveLength(0);
  });
});
