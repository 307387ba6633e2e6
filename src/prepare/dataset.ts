import { checkInstance, checkList, checkObject } from '../arguments.js';
import { LimbeckError } from '../errors.js';
import type { Item } from './items.js';
import type { PrepareReport } from './report.js';
import type { Split } from './split.js';

/**
 * Clean interactions, ready for training and evaluation. Users and items are numbered by first appearance in the file.
 */
export interface Dataset {
  /** The catalogue; the place of an item is its index. */
  readonly items: readonly Item[];
  readonly users: readonly string[];
  /** Item indices, one user after the other, in time order (file order where times are equal). */
  readonly sequences: Int32Array; // [interactions]
  readonly sequenceOffsets: Int32Array; // [users + 1]
  readonly split: Split;
  readonly report: PrepareReport;
}

/** @throws LimbeckError ERR_INVALID_ARGUMENT for what is none */
export function checkDataset(dataset: Dataset): void {
  const keys = ['items', 'sequences', 'sequenceOffsets', 'split'] as const;
  checkObject(dataset, 'dataset', 'a dataset, as prepareDataset() gives', keys);
  checkList(dataset.items, 'dataset.items', 'a list of items');
  checkInstance(dataset.sequences, Int32Array, 'dataset.sequences');
  checkInstance(dataset.sequenceOffsets, Int32Array, 'dataset.sequenceOffsets');
}

/** Sequences of item indices laid end to end. */
export interface PackedSequences {
  readonly sequences: Int32Array; // [N]
  readonly sequenceOffsets: Int32Array; // [S + 1]
  /** User index of each sequence. */
  readonly users: Int32Array; // [S]
}

/** Histories, and the item that came next in each. No history is empty. */
export interface EvaluationCases extends PackedSequences {
  readonly targets: Int32Array; // [S]
}

/** The training part of every user who has one. A sequence of one item has nothing to predict. */
export function trainSequences(dataset: Dataset): PackedSequences {
  checkDataset(dataset);
  return packPrefixes(dataset, dataset.split.trainLength);
}

/** The validation targets, with all that each user did before. */
export function validationCases(dataset: Dataset): EvaluationCases {
  checkDataset(dataset);
  return casesAt(dataset, dataset.split.validationPosition);
}

/** The test targets, with all that each user did before: for leave-one-out, the validation item too. */
export function testCases(dataset: Dataset): EvaluationCases {
  checkDataset(dataset);
  return casesAt(dataset, dataset.split.testPosition);
}

/**
 * The different items among the first `length` items of a user, ascending: what a recommendation leaves out.
 *
 * @param user index of the user
 * @param length @defaultValue the whole sequence
 * @throws ERR_INVALID_ARGUMENT
 */
export function seenItems(dataset: Dataset, user: number, length?: number): Int32Array {
  checkDataset(dataset);
  const start = dataset.sequenceOffsets[user];
  const end = dataset.sequenceOffsets[user + 1];
  if (start === undefined || end === undefined) {
    const expected = `expected a user index from 0 to ${dataset.users.length - 1}`;
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `${expected}, got ${user}`);
  }
  const taken = length ?? end - start;
  if (!Number.isInteger(taken) || taken < 0 || taken > end - start) {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `expected a length from 0 to ${end - start}, got ${taken}`);
  }
  const items = dataset.sequences.slice(start, start + taken).sort();
  return items.subarray(0, dropRepetitions(items));
}

/** Moves the first of each run of equal numbers to the front. @returns how many there are */
export function dropRepetitions(ascending: Int32Array): number {
  let different = 0;
  for (let i = 0; i < ascending.length; i++) {
    const value = ascending[i] as number;
    if (i === 0 || value !== ascending[different - 1]) ascending[different++] = value;
  }
  return different;
}

function casesAt(dataset: Dataset, positions: Int32Array): EvaluationCases {
  const packed = packPrefixes(dataset, positions);
  const targets = packed.users.map((user) => {
    const position = (dataset.sequenceOffsets[user] ?? 0) + (positions[user] ?? 0);
    return dataset.sequences[position] ?? 0;
  });
  return { ...packed, targets };
}

/** The first lengths[user] items of each user; users without any are left out. */
function packPrefixes(dataset: Dataset, lengths: Int32Array): PackedSequences {
  let numUsers = 0;
  let numItems = 0;
  for (const length of lengths) {
    if (length <= 0) continue;
    numUsers++;
    numItems += length;
  }
  const users = new Int32Array(numUsers);
  const sequenceOffsets = new Int32Array(numUsers + 1);
  const sequences = new Int32Array(numItems);
  let index = 0;
  let end = 0;
  for (let user = 0; user < lengths.length; user++) {
    const length = lengths[user] ?? 0;
    if (length <= 0) continue;
    const start = dataset.sequenceOffsets[user] ?? 0;
    // Most are too short for a copy by subarray() and set() to pay.
    for (let i = 0; i < length; i++) sequences[end + i] = dataset.sequences[start + i] as number;
    end += length;
    users[index] = user;
    sequenceOffsets[++index] = end;
  }
  return { sequences, sequenceOffsets, users };
}
