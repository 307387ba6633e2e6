import { expect, test } from 'vitest';
import { makeCorpus } from '../../../src/engine/stages.js';
import type { Dataset } from '../../../src/prepare/dataset.js';

/** Users with one history each, all of it training. */
function datasetOf(texts: readonly string[], histories: readonly (readonly number[])[]): Dataset {
  let end = 0;
  return {
    items: texts.map((text, i) => ({ id: `i${i}`, text })),
    sequences: Int32Array.from(histories.flat()),
    sequenceOffsets: Int32Array.from([
      0,
      ...histories.map(({ length }) => {
        end += length;
        return end;
      }),
    ]),
    split: { trainLength: Int32Array.from(histories, ({ length }) => length) },
  } as unknown as Dataset;
}

const TITLES = Array.from({ length: 40 }, (_, i) => `Title ${i}`);

test.each([
  ['items alone', 0, TITLES, []],
  ['items of which some read the same', 0, [...TITLES, ...TITLES], []],
  ['histories of one item', 1, TITLES, TITLES.map((_, i) => [i])],
  ['histories that many have', 3, TITLES, [...TITLES, ...TITLES].map((_, i) => [i % 5, (i + 1) % 5, i % 7])],
] as const)('%s: no text that is held out is trained on', async (_, maxHistory, titles, histories) => {
  const {
    train,
    validation,
    test: tested,
  } = await makeCorpus(datasetOf(titles, histories), { maxHistory, heldOut: 0.1 });
  const [trainedOn, validatedWith, testedWith] = [train, validation, tested].map((texts) => new Set(texts as string[]));
  for (const text of validatedWith ?? []) expect([trainedOn?.has(text), testedWith?.has(text)]).toEqual([false, false]);
  for (const text of testedWith ?? []) expect(trainedOn?.has(text)).toBe(false);
  expect(validatedWith?.size).toBeGreaterThan(0);
  const all = new Set([...(train as string[]), ...(validation as string[]), ...tested]);
  for (const title of titles) expect(all).toContain(`${title}.`);
});

test('different histories are told and held out as they come, and all items are trained on', async () => {
  const histories = TITLES.map((_, i) => [i, (i + 1) % 40]);
  const {
    train,
    validation,
    test: tested,
  } = await makeCorpus(datasetOf(TITLES, histories), { maxHistory: 2, heldOut: 0.1 });
  expect(validation).toEqual([0, 10, 20, 30].map((i) => `Title ${i}; Title ${i + 1}.`));
  expect(tested).toEqual([1, 11, 21, 31].map((i) => `Title ${i}; Title ${i + 1}.`));
  expect(train).toHaveLength(40 + 32);
});

test.each([0.05, 0.45])('%f of few texts leaves some of each kind, or says that there are too few', async (heldOut) => {
  const {
    train,
    validation,
    test: tested,
  } = await makeCorpus(datasetOf(['a', 'b', 'c'], []), { maxHistory: 0, heldOut });
  expect([train, validation, tested]).toEqual([['c.'], ['a.'], ['b.']]);
  await expect(makeCorpus(datasetOf(['a', 'b', 'b'], []), { maxHistory: 0, heldOut })).rejects.toThrow(
    expect.objectContaining({ code: 'ERR_EMPTY_DATA', message: expect.stringContaining('2 different') }),
  );
});

test('too little data is told by its users, items and histories, with what to do', async () => {
  const small = makeCorpus(
    datasetOf(
      ['a', 'b', 'c'],
      [
        [0, 1],
        [0, 1],
      ],
    ),
    { maxHistory: 8, heldOut: 0.05 },
  );
  const error = await small.catch(({ code, message }) => ({ code, message }));
  expect(error).toEqual({
    code: 'ERR_EMPTY_DATA',
    message: expect.stringMatching(
      /at least 3 different histories.* 8 items at most, got 1 .* 2 users and 3 items\. .*data\.denoise.*corpus\.maxHistory higher/,
    ),
  });
});
