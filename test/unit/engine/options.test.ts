import { describe, expect, test } from 'vitest';
import { checkStudent, type DistillOptions, distillOptionsSchema } from '../../../src/engine/options.js';
import { parseOptions } from '../../../src/prepare/parse-options.js';

const base: DistillOptions = {
  output: 'out',
  data: { interactions: { path: 'a.csv', columns: { user: 'user', item: 'item' } } },
};
const settings = (changes: Partial<DistillOptions> = {}) => distillOptionsSchema.parse({ ...base, ...changes });

describe('what is left out of a distillation has its default', () => {
  const { student, sequenceTeacher } = settings();

  test('the student learns from clicks and soft labels in equal parts', () => {
    expect(student.training.losses).toMatchObject({ ce: 0.5, kd: 0.5, gate: 0.2 });
    expect(sequenceTeacher.architecture).toMatchObject({ hiddenSize: 128, numAttentionHeads: 4, dropout: 0.4 });
  });

  test.each<[string, Partial<DistillOptions>]>([
    ['training', { student: { training: { epochs: 14 } } }],
    ['losses', { student: { training: { losses: {} } } }],
    ['ce', { student: { training: { losses: { ce: 0.5 } } } }],
    ['gate', { student: { training: { losses: { gate: 0.2 } } } }],
    ['hiddenSize', { sequenceTeacher: { architecture: { hiddenSize: 128 } } }],
    [
      'no key of any part',
      { teacher: {}, corpus: {}, knowledge: {}, sequenceTeacher: {}, student: {}, evaluation: {} },
    ],
  ])('whatever is written beside it: %s', (_, changes) => {
    expect(settings(changes)).toEqual(settings());
  });
});

test.each<[string, string, Partial<DistillOptions>]>([
  [
    'attention maps',
    'training.losses.attention',
    { student: { training: { losses: { attention: { from: 0, to: 1 } } } } },
  ],
  [
    'soft labels over sampled negatives',
    'training.sampledNegatives',
    { student: { training: { sampledNegatives: 9 } } },
  ],
  ['other histories than the teacher', 'architecture.maxHistory', { student: { architecture: { maxHistory: 20 } } }],
  [
    'to go towards several models',
    'training.interpolation',
    { sequenceTeacher: { members: 2 }, student: { training: { interpolation: { alpha: 0.5 } } } },
  ],
])('a student may not want %s', (_, key, changes) => {
  const { sequenceTeacher, student } = settings(changes);
  expect(() => checkStudent(sequenceTeacher, student, 'distill.student')).toThrow(
    expect.objectContaining({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringContaining(`distill.student.${key}`),
    }),
  );
});

test.each<[string, Partial<DistillOptions>, string]>([
  ['equal seeds', { seeds: [0, 1, 0] }, 'distill.seeds: expected each value once, got [0, 1, 0]'],
  [
    'a layer twice',
    { knowledge: { hiddenStates: [0, 0] } },
    'distill.knowledge.hiddenStates: expected each value once, got [0, 0]',
  ],
  [
    'a vocabulary without every byte',
    { teacher: { static: { tokenizer: { vocabSize: 255 } } } },
    'distill.teacher.static.tokenizer.vocabSize: Too small: expected number to be >=256, got 255',
  ],
])('%s: refused', (_, changes, message) => {
  expect(() => parseOptions(distillOptionsSchema, { ...base, ...changes }, 'distill')).toThrow(
    expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT', message }),
  );
});
