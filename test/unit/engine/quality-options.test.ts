import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { readConfig } from '../../../src/cli/config.js';
import { type QualityOptions, qualitySettings } from '../../../src/engine/quality-options.js';
import { QUALITY_RECIPES } from '../../../src/engine/quality-recipes.js';

const base: QualityOptions = {
  output: 'out',
  data: { interactions: { path: 'a.csv', columns: { user: 'user', item: 'item' } } },
};
const settings = (changes: Partial<QualityOptions> = {}) => qualitySettings({ ...base, ...changes });
const student = (key: string, changes: Partial<QualityOptions> = {}) => {
  const found = settings(changes).students.find((plan) => plan.key === key);
  if (found === undefined) throw new Error(`no ${key}`);
  return found;
};

describe('rows', () => {
  it('are by default the baselines, the plain student, the teacher, each signal alone, and all', () => {
    expect(settings().rows).toEqual([
      'popularity',
      'item-knn',
      'plain',
      'teacher',
      'vectors',
      'soft-labels',
      'hidden-states',
      'initialisation',
      'interpolation',
      'rare-items',
      'vectors-rare-items',
      'distilled',
    ]);
  });

  it('gain imported rankings where there are some', () => {
    const { rows } = settings({ rankings: { path: 'r.safetensors' } });
    expect(rows).toContain('rankings');
    expect(student('distilled', { rankings: { path: 'r.safetensors' } }).rankings).toBe(true);
    expect(student('plain', { rankings: { path: 'r.safetensors' } }).rankings).toBe(false);
  });

  it('leave rare items alone where `student` does', () => {
    const { rows, students } = settings({ student: { rareItems: { below: 0 } } });
    expect(rows).not.toContain('rare-items');
    expect(students.every(({ rareItems }) => rareItems === undefined)).toBe(true);
    expect(student('distilled').rareItems).toMatchObject({ below: 5 });
    expect(student('plain').rareItems).toBeUndefined();
  });

  it('do not interpolate towards a teacher of several models', () => {
    const sequenceTeacher = { members: 2 };
    const { rows } = settings({ sequenceTeacher });
    expect(rows).toContain('initialisation');
    expect(rows).not.toContain('interpolation');
    expect(() => settings({ sequenceTeacher, student: { training: { interpolation: { alpha: 0.5 } } } })).toThrowError(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT', message: expect.stringContaining('members asks for 2') }),
    );
  });

  it('learn no soft labels over sampled negatives', () => {
    const training = { sampledNegatives: 64, losses: { kd: 0 } };
    expect(settings({ student: { training } }).rows).not.toContain('soft-labels');
    expect(settings({ student: { training } }).rows).toContain('distilled');
    expect(() => settings({ student: { training: { sampledNegatives: 64 } } })).toThrow(/distilled.*sampledNegatives/);
  });

  it('are run in the order of the table, whatever order they are asked for in', () => {
    expect(settings({ rows: ['plain', 'popularity'] }).rows).toEqual(['popularity', 'plain']);
  });

  it('are refused when they do not exist, bear the name of a baseline, or want rankings that are not there', () => {
    const refused: Partial<QualityOptions>[] = [
      { rows: ['plain', 'magic'] },
      { students: { teacher: { name: 'x' } } },
      { students: { 'Not a Key': { name: 'x' } } },
      { students: { plain: { name: 'x', rankings: true } } },
      { students: { plain: { name: 'x', training: { epochs: 0 } } } },
      { students: { kd: { name: 'x', architecture: { maxHistory: 20 }, training: { losses: { kd: 1 } } } } },
    ];
    for (const changes of refused) {
      expect(() => settings(changes)).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }));
    }
    expect(() => settings({ students: { plain: { name: 'x', training: { epoch: 1 } } } })).toThrow(
      expect.objectContaining({ code: 'ERR_UNKNOWN_OPTION', message: expect.stringContaining('bench.students.plain') }),
    );
  });
});

describe('a student', () => {
  it('differs from the plain one in its own signal alone', () => {
    const { key: _key, name: _name, training, ...plain } = student('plain');
    expect(training.losses).toMatchObject({ ce: 1, kd: 0, hidden: 0, attention: 0 });
    expect(plain.needsTeacher).toBe(false);
    for (const [key, changed] of Object.entries({
      vectors: { itemFeatures: true },
      'soft-labels': { needsTeacher: true },
      'hidden-states': { needsTeacher: true },
      initialisation: { initialise: 'width', needsTeacher: true },
    })) {
      const { key: _k, name: _n, training: own, ...rest } = student(key);
      expect(rest).toEqual({ ...plain, ...changed });
      expect({ ...own, losses: training.losses }).toEqual(training);
    }
    expect(student('soft-labels').training.losses).toMatchObject({ ce: 0.5, kd: 0.5, hidden: 0 });
    expect(student('hidden-states').training.losses).toMatchObject({ ce: 1, kd: 0, hidden: 1 });
  });

  it('takes changes over those of `student`, losses key by key', () => {
    const plan = student('wide', {
      student: { architecture: { hiddenSize: 32, intermediateSize: 64 }, training: { epochs: 7, losses: { kd: 0.9 } } },
      students: {
        wide: {
          name: 'wide',
          architecture: { hiddenSize: 128 },
          training: { learningRate: 0.5, losses: { hidden: 2 } },
        },
      },
    });
    // The width between two layers of 32 says nothing about one of 128.
    expect(plan.architecture).toMatchObject({ hiddenSize: 128, numHiddenLayers: 2 });
    expect(plan.architecture.intermediateSize).toBeUndefined();
    expect(plan.training).toMatchObject({ epochs: 7, learningRate: 0.5, losses: { ce: 1, kd: 0, hidden: 2 } });
  });
});

it('takes the config of a distillation as it is', async () => {
  const path = join(import.meta.dirname, '../../../examples/movietweetings/distill.yaml');
  const { rows, student: shape } = qualitySettings((await readConfig(path)) as QualityOptions);
  expect(rows).toContain('distilled');
  expect(shape.training).toMatchObject({ learningRate: 0.002, losses: { ce: 0.5, kd: 0.5, gate: 0.2 } });
});

describe('built-in sets', () => {
  it.each(Object.entries(QUALITY_RECIPES))('%s has settings that are accepted, and published figures', (_, recipe) => {
    const {
      rows,
      published,
      expected,
      student: shape,
    } = qualitySettings({ ...recipe.options('/data'), output: 'out' });
    expect(rows).toContain('distilled');
    expect(published.length).toBeGreaterThan(0);
    expect(expected?.users).toBeGreaterThan(0);
    expect(shape.architecture.numHiddenLayers).toBeLessThanOrEqual(2);
    expect(shape.architecture.hiddenSize).toBeLessThanOrEqual(256);
  });
});
