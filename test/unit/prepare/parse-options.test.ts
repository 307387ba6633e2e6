import { describe, expect, test } from 'vitest';
import { distillOptionsSchema } from '../../../src/engine/options.js';
import { qualitySettings } from '../../../src/engine/quality-options.js';
import { parseOptions } from '../../../src/prepare/parse-options.js';

const base = { output: 'out', data: { interactions: { path: 'a.csv', columns: { user: 'user', item: 'item' } } } };
const parse = (changes: object) => parseOptions(distillOptionsSchema, { ...base, ...changes }, 'distill');

describe('where one of several kinds of value may stand', () => {
  test.each([
    [{ teacher: { directry: 'x' } }, 'distill.teacher has no option "directry". Did you mean "directory"?'],
    [{ teacher: { objectiv: 'causal' } }, 'distill.teacher has no option "objectiv". Did you mean "objective"?'],
    [
      { teacher: { magic: true } },
      'distill.teacher has no option "magic". The options here are directory, adapt, static, objective, architecture, ' +
        'tokenizer, training.',
    ],
    [
      { teacher: { static: { lexicalComponent: 3 } } },
      'distill.teacher.static has no option "lexicalComponent". Did you mean "lexicalComponents"?',
    ],
    [
      { teacher: { directory: 'x', adapt: { lora: { rnk: 4 } } } },
      'distill.teacher.adapt.lora has no option "rnk". Did you mean "rank"?',
    ],
    [
      { teacher: { training: { learningrate: 1 } } },
      'distill.teacher.training has no option "learningrate". Did you mean "learningRate"?',
    ],
    [
      { teacher: { directory: 'x', objective: 'causal' } },
      'distill.teacher has no option "objective". The options here are directory, adapt.',
    ],
    [
      { student: { training: { losses: { kd: { from: 1, too: 0 } } } } },
      'distill.student.training.losses.kd has no option "too". Did you mean "to"?',
    ],
  ])('the unknown key is named, with those that are known: %j', (changes, message) => {
    expect(() => parse(changes)).toThrow(expect.objectContaining({ code: 'ERR_UNKNOWN_OPTION', message }));
  });

  test.each([
    [{ teacher: 'gpt2' }, 'distill.teacher: Invalid input: expected object, received string, got "gpt2"'],
    [
      { teacher: { directory: 'x', adapt: { epochs: 0 } } },
      'distill.teacher.adapt.epochs: Too small: expected number to be >=1, got 0',
    ],
    [
      { student: { training: { losses: { kd: 'much' } } } },
      'distill.student.training.losses.kd: Invalid input: expected number, received string, got "much"',
    ],
    [
      { student: { training: { losses: { kd: { from: 0, to: -1 } } } } },
      'distill.student.training.losses.kd: expected a weight of 0 or more, got an object',
    ],
  ])('what is wrong is told of the kind that was meant: %j', (changes, message) => {
    expect(() => parse(changes)).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT', message }));
  });
});

test("keys are named in lists and under names of one's own, too", () => {
  const published = [{ name: 'a', source: 'b', recallAt10: 0, ndcg: 0 }];
  const students = { wide: { name: 'wide', itemFeature: true } };
  expect(() => qualitySettings({ ...base, published } as never)).toThrow(/published\.0 has no option "ndcg".*ndcgAt10/);
  expect(() => qualitySettings({ ...base, students } as never)).toThrow(
    /students\.wide .*"itemFeature".*"itemFeatures"/,
  );
});
