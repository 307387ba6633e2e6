import { describe, expect, test } from 'vitest';
import { type DistillOptions, distillOptionsSchema } from '../../../src/engine/options.js';

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
