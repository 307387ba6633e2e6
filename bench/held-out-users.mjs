/** MovieTweetings, parts of it, and a student trained on one. */
import { join, resolve } from 'node:path';
import { evaluationSet, trainSequences } from '../dist/index.js';

const data = join(resolve(import.meta.dirname, '..'), 'examples/movietweetings');

/** User indices that are a multiple of it are held out. */
export const HELD_OUT = 4;

export function movieTweetings(engine, split = { strategy: 'leaveOneOut' }) {
  return engine.prepare({
    split,
    interactions: {
      path: join(data, 'interactions.csv.gz'),
      columns: { user: 'user', item: 'item', rating: 'rating', time: 'time' },
    },
    items: { path: join(data, 'items.csv.gz'), columns: { id: 'id', text: ['title', 'year', 'genres'] } },
  });
}

/** The data of the users that are not held out. */
export function trainedUsers(dataset) {
  return firstItems(dataset, (user, length) => (user % HELD_OUT === 0 ? 0 : length));
}

/** The first `lengthOf(user, length)` items of every user, the last two of them for validation and test. */
export function firstItems(dataset, lengthOf) {
  const { users, sequences, sequenceOffsets } = dataset;
  const kept = [];
  users.forEach((id, user) => {
    const begin = sequenceOffsets[user];
    const length = lengthOf(user, sequenceOffsets[user + 1] - begin);
    if (length > 0) kept.push({ id, items: sequences.subarray(begin, begin + length) });
  });
  const offsets = new Int32Array(kept.length + 1);
  kept.forEach(({ items }, user) => {
    offsets[user + 1] = offsets[user] + items.length;
  });
  const all = new Int32Array(offsets[kept.length]);
  kept.forEach(({ items }, user) => {
    all.set(items, offsets[user]);
  });
  const position = (fromEnd, otherwise) =>
    Int32Array.from(kept, ({ items: { length } }) => (length < 3 ? (otherwise ?? length) : length - fromEnd));
  const split = { trainLength: position(2), validationPosition: position(2, -1), testPosition: position(1, -1) };
  return {
    ...dataset,
    users: kept.map(({ id }) => id),
    sequences: all,
    sequenceOffsets: offsets,
    split: { strategy: 'leaveOneOut', ...split },
  };
}

/** A sequence student of width 64, trained by cross-entropy alone, otherwise as it is by default. */
export async function trainStudent(engine, dataset) {
  const model = engine.createSequenceModel({ hiddenSize: 64 }, { numItems: dataset.items.length, seed: 0 });
  const train = trainSequences(dataset);
  const onProgress = ({ done, total }) => process.stderr.write(`\rtraining ${done} of ${total}`);
  await engine.fineTune(
    model,
    { train, validation: evaluationSet(dataset, 'validation') },
    { seed: 0 },
    { onProgress },
  );
  process.stderr.write('\n');
  const popularity = new Int32Array(dataset.items.length);
  for (const item of train.sequences) popularity[item]++;
  return engine.createStudent(model, dataset.items, { popularity });
}
