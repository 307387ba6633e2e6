import { describe, expect, it } from 'vitest';
import { prepareDataset } from '../../../src/prepare/prepare.js';
import { historySentences, itemSentence } from '../../../src/prepare/verbalize.js';
import { writeTemporary } from './temporary-files.js';

async function dataset(items: string, strategy: 'leaveOneOut' | 'globalTime' = 'leaveOneOut') {
  const lines = [...items].flatMap((item, time) => [`u,${item},${time}`, ...(time < 2 ? [`v,${item},${time}`] : [])]);
  const path = writeTemporary('verbalize.csv', `user,item,time\n${lines.join('\n')}\n`);
  return prepareDataset({
    interactions: { path, columns: { user: 'user', item: 'item', time: 'time' } },
    denoise: { minUserInteractions: 1, minItemInteractions: 1 },
    split: { strategy, validationFraction: 0.2, testFraction: 0.2 },
  });
}

describe('historySentences', () => {
  it.each(['leaveOneOut', 'globalTime'] as const)('tells the training part of %s alone', async (strategy) => {
    const prepared = await dataset('abcdefgh', strategy);
    const sentences = historySentences(prepared);
    expect(sentences).toEqual(strategy === 'leaveOneOut' ? ['a; b; c; d; e; f.', 'a; b.'] : ['a; b; c; d.', 'a; b.']);
    expect(historySentences(prepared)).toEqual(sentences);
  });

  it('tells the end of a long history', async () => {
    expect(historySentences(await dataset('abcdefgh'), { maxHistory: 2 })).toEqual(['e; f.', 'a; b.']);
  });

  it.each([0, -1, 1.5, Number.NaN])('refuses maxHistory %d', async (maxHistory) => {
    const prepared = await dataset('abc');
    expect(() => historySentences(prepared, { maxHistory })).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }),
    );
  });
});

describe('sentences', () => {
  it('ends an item with one full stop', () => {
    expect(itemSentence({ id: '1', text: 'Up. 2009' })).toBe('Up. 2009.');
    expect(itemSentence({ id: '1', text: 'What?' })).toBe('What?');
  });

  it('joins a history with semicolons', async () => {
    const prepared = await dataset('abcde');
    const told = (...texts: string[]) =>
      historySentences({ ...prepared, items: prepared.items.map((item, i) => ({ ...item, text: texts[i] ?? '' })) });
    expect(told('E.T.', 'What?', 'Up')).toEqual(['E.T; What?; Up.', 'E.T; What?']);
    expect(told('Hm...', 'Up', 'What?')).toEqual(['Hm..; Up; What?', 'Hm..; Up.']);
  });
});
