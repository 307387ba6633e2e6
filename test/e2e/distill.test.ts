import { createHash } from 'node:crypto';
import { appendFileSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { createEngine, type DistillResult, type Engine, evaluationSet, type ProgressEvent } from '../../src/index.js';
import { tinyOptions } from '../support/tiny.js';

let engine: Engine;
beforeAll(async () => {
  engine = await createEngine({ threads: 2 });
});
afterAll(() => {
  engine.dispose();
});

/** Name and content hash of every file under a folder. */
function snapshot(folder: string): string[] {
  return readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .filter((name) => statSync(join(folder, name)).isFile() && !name.includes('.unfinished'))
    .sort()
    .map(
      (name) =>
        `${name} ${createHash('sha256')
          .update(readFileSync(join(folder, name)))
          .digest('hex')}`,
    );
}

describe('a distillation', () => {
  let folder: string;
  let result: DistillResult;
  const events: ProgressEvent[] = [];
  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), 'limbeck-distill-'));
    const options = { ...tinyOptions(folder), evaluation: { ks: [1, 3, 10], examples: 4 } };
    result = await engine.distill(options, { onProgress: (event) => events.push(event) });
  });
  afterAll(() => {
    rmSync(folder, { recursive: true });
  });

  test('compares popularity, the plain student, the teacher and the distilled student', () => {
    const { rows } = result.report;
    expect(rows.map(({ name }) => name)).toEqual([
      'popularity',
      'student without distillation',
      'teacher',
      'distilled student',
    ]);
    for (const row of rows) {
      for (const metric of ['recallAt10', 'ndcgAt10', 'f1At10', 'mrr'] as const) {
        expect(row[metric]).toBeGreaterThan(0);
        expect(row.intervals[metric][0]).toBeLessThanOrEqual(row[metric]);
        expect(row.intervals[metric][1]).toBeGreaterThanOrEqual(row[metric]);
      }
      expect(row.parameters).toBeGreaterThan(0);
      expect(row.p50LatencyMs).toBeGreaterThan(0);
    }
  });

  test('learns the walk through the catalogue better than popularity does', () => {
    const [popularity, , teacher, distilled] = result.report.rows;
    expect(teacher?.ndcgAt10).toBeGreaterThan(popularity?.ndcgAt10 ?? 1);
    expect(distilled?.ndcgAt10).toBeGreaterThan(popularity?.ndcgAt10 ?? 1);
  });

  test('reports all eight steps, and every part of them to its end', () => {
    expect(result.report.steps.map(({ step }) => step)).toEqual(
      expect.arrayContaining([
        'prepare',
        'teacher',
        'extract',
        'initialise',
        'transfer',
        'fineTune',
        'recommend',
        'evaluate',
      ]),
    );
    expect(new Set(events.map(({ step }) => step)).size).toBe(8);
    const last = new Map(events.map((event) => [`${event.step} ${event.name}`, event]));
    expect(last.size).toBeGreaterThan(8);
    for (const [name, { done, total }] of last) expect(done, name).toBe(total);
  });

  test('the language student gets better on texts that it never saw', () => {
    const losses = result.report.lm?.testLossByEpoch ?? [];
    expect(losses).toHaveLength(2);
    expect(losses[1]).toBeLessThan(losses[0] ?? 0);
  });

  test('writes a page that loads nothing from elsewhere', () => {
    const page = readFileSync(result.reportPath, 'utf8');
    expect(page).toContain('<svg');
    expect(page).toContain('distilled student');
    expect(page).not.toMatch(/(src|href)\s*=\s*["']?(https?:)?\/\//);
  });

  test('leaves a student that a server opens, and models that load', async () => {
    const history = ['i1', 'i2', 'i3'];
    const student = await engine.loadStudent(join(folder, 'out/student'));
    expect(student.recommend({ history, k: 5 })).toEqual(result.student.recommend({ history, k: 5 }));
    expect(student.items[0]?.categories).toHaveLength(1);
    const [western] = student.recommend({ history: [], k: 1, filter: { any: ['western'] } }).items;
    expect(student.items[student.indexOf(western?.id ?? '') ?? -1]?.categories).toEqual(['western']);
    expect(student.interests(history)).toEqual(result.student.interests(history));
    const teacher = await engine.loadLanguageModel(join(folder, 'out/teacher'));
    expect(teacher.numParameters).toBe(result.teacher.numParameters);
    expect((await engine.loadLanguageModel(join(folder, 'out/language-student'))).numHiddenLayers).toBe(1);
    expect(readdirSync(join(folder, 'out'))).not.toContain('.unfinished');
  });

  test('is evaluated again to the same figures', async () => {
    const { rows } = await engine.evaluate(join(folder, 'out'));
    const [popularity, , , distilled] = result.report.rows;
    for (const figures of ['ndcgAt10', 'mrr', 'metrics', 'intervals'] as const) {
      expect(rows.map((row) => row[figures])).toEqual([popularity?.[figures], distilled?.[figures]]);
    }
    expect(Object.keys(rows[1]?.metrics.recallAtK ?? {})).toEqual(['1', '3', '10']);
  });

  test('gives the same student again, on another number of threads', async () => {
    const other = await createEngine({ threads: 1 });
    await other.distill(tinyOptions(folder, join(folder, 'again')));
    other.dispose();
    const model = (run: string) => readFileSync(join(folder, run, 'student/model.safetensors'));
    expect(model('again').equals(model('out'))).toBe(true);
  });

  test.each(['prepare', 'teacher', 'extract', 'fineTune', 'recommend', 'evaluate'] as const)(
    'stopped in step %s says so and leaves the earlier results as they were',
    async (step) => {
      const before = snapshot(join(folder, 'out'));
      const controller = new AbortController();
      const options = { ...tinyOptions(folder), title: `Stopped in ${step}` };
      const run = engine.distill(options, {
        signal: controller.signal,
        onProgress: (event) => {
          if (event.step === step) controller.abort();
        },
      });
      await expect(run).rejects.toMatchObject({ code: 'ERR_ABORTED' });
      expect(snapshot(join(folder, 'out'))).toEqual(before);
    },
  );
});

test.each([
  ['interactions', (text: string) => text.replaceAll(/,i(\d+),/g, (_, item) => `,i${(Number(item) * 3) % 40},`)],
  ['items', (text: string) => text.replaceAll('Film number', 'Opera')],
] as const)('a run that goes on over other %s begins anew', async (file, change) => {
  const folder = mkdtempSync(join(tmpdir(), 'limbeck-changed-'));
  try {
    const { languageStudent: _without, ...options } = tinyOptions(folder);
    const controller = new AbortController();
    const stopped = engine.distill(options, {
      signal: controller.signal,
      onProgress: ({ name }) => name.startsWith('distilled') && controller.abort(),
    });
    await expect(stopped).rejects.toMatchObject({ code: 'ERR_ABORTED' });
    const path = join(folder, `${file}.csv`);
    writeFileSync(path, change(readFileSync(path, 'utf8')));
    await engine.distill(options);
    await engine.distill({ ...options, output: join(folder, 'fresh') });
    const model = (run: string) => readFileSync(join(folder, run, 'student/model.safetensors'));
    expect(model('out').equals(model('fresh'))).toBe(true);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test('where users choose items again, what is measured is what the student recommends', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'limbeck-repeats-'));
  try {
    const { languageStudent: _without, ...options } = tinyOptions(folder);
    // The first item once more is the test target of every third user, and the validation target of the next one.
    const again = (user: number) => `u${user},i${(user * 7) % 40},8,9000\n`;
    for (let user = 0; user < 60; user += 3) {
      appendFileSync(options.data.interactions.path, again(user));
      appendFileSync(
        options.data.interactions.path,
        `${again(user + 1)}u${user + 1},i${(user * 7 + 25) % 40},8,9001\n`,
      );
    }
    const data = { ...options.data, denoise: { duplicates: 'all' } } as const;
    const { student, teacher, report } = await engine.distill({ ...options, data });
    const facts = { testCases: 40, repeatedTargets: 20, repeatedValidationTargets: 20 };
    expect(report.steps.find(({ step }) => step === 'prepare')?.facts).toMatchObject(facts);
    expect(report.rows.map(({ metrics }) => metrics.numUsers)).toEqual([40, 40, 40, 40]);

    const { sequences, sequenceOffsets, targets } = evaluationSet(await engine.prepare(data), 'test');
    const hits = targets.filter((target, s) => {
      const items = sequences.slice(sequenceOffsets[s], sequenceOffsets[s + 1]);
      const history = Array.from(items, (item) => student.items[item]?.id ?? '');
      return student.recommend({ history, k: 10 }).items.some(({ id }) => student.indexOf(id) === target);
    });
    expect(report.rows[3]?.metrics.recallAtK[10]).toBeCloseTo(hits.length / targets.length, 12);
    for (const model of [student, teacher]) model.dispose();
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test('a distillation from a static encoder makes a student that knows new items by their text', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'limbeck-static-'));
  try {
    const { languageStudent: _without, ...options } = tinyOptions(folder);
    const { student, teacher, report } = await engine.distill({
      ...options,
      teacher: { static: { lexicalComponents: 6, tokenizer: { vocabSize: 300 } } },
      knowledge: {},
    });
    expect(report.rows).toHaveLength(4);
    // Of 48 components, as many as there are directions.
    expect(student.model.config.itemFeatureSize).toBe(6);
    expect(teacher.config.hiddenSize).toBe(6);
    student.addItems([{ id: 'new', text: 'Film number 40. comedy' }]);
    const history = ['i1', 'i2'];
    const answer = student.recommend({ history: [...history, { text: 'Film number 3. comedy' }], k: 39 });
    expect(answer.items.map(({ id }) => id)).toContain('new');

    const again = await engine.loadStudent(join(folder, 'out/student'));
    const same = again.recommend({ history, k: 5 }).items;
    expect(same).toEqual(
      student
        .recommend({ history, k: 6 })
        .items.filter(({ id }) => id !== 'new')
        .slice(0, 5),
    );
    for (const one of [again, student, teacher]) one.dispose();
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test('an ensemble teaches: its members are kept, and counted together', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'limbeck-members-'));
  try {
    const { languageStudent: _without, ...options } = tinyOptions(folder);
    const sequenceTeacher = { ...options.sequenceTeacher, members: 2, itemFeatures: false };
    const started = { ...options.student, initialise: 'width' } as const;
    const { student, teacher, report } = await engine.distill({ ...options, sequenceTeacher, student: started });
    const plain = report.rows.find(({ name }) => name === 'student without distillation');
    const row = report.rows.find(({ name }) => name === 'teacher');
    expect(row?.parameters).toBe(2 * (plain?.parameters ?? 0));
    const [one, two] = ['member-1', 'member-2'].map((name) =>
      readFileSync(join(folder, 'out/sequence-teacher', name, 'model.safetensors')),
    );
    expect(one).not.toEqual(two);
    for (const model of [student, teacher]) model.dispose();
  } finally {
    rmSync(folder, { recursive: true });
  }
});

describe('a distillation refuses', () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'limbeck-refuse-'));
  });
  afterEach(() => {
    rmSync(folder, { recursive: true });
  });

  test('an option that it does not have, naming the nearest', async () => {
    await expect(engine.distill({ ...tinyOptions(folder), seed: [1] } as never)).rejects.toMatchObject({
      code: 'ERR_UNKNOWN_OPTION',
      message: expect.stringContaining('"seeds"'),
    });
  });

  test('a column that the file does not have, naming the nearest', async () => {
    const options = tinyOptions(folder);
    const columns = { user: 'usr', item: 'item' };
    const data = { ...options.data, interactions: { ...options.data.interactions, columns } };
    await expect(engine.distill({ ...options, data })).rejects.toMatchObject({
      code: 'ERR_COLUMN_NOT_FOUND',
      message: expect.stringContaining('user'),
    });
  });

  test('a teacher directory that is not there', async () => {
    const options = { ...tinyOptions(folder), teacher: { directory: join(folder, 'none') } };
    await expect(engine.distill(options)).rejects.toMatchObject({ code: 'ERR_FILE_NOT_FOUND' });
  });

  test('interpolation towards a teacher that is several models', async () => {
    const options = tinyOptions(folder);
    const sequenceTeacher = { ...options.sequenceTeacher, members: 2 };
    const training = { ...options.student?.training, interpolation: { alpha: 0.5 } };
    const run = engine.distill({ ...options, sequenceTeacher, student: { ...options.student, training } });
    await expect(run).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringContaining('sequenceTeacher.members'),
    });
  });

  test('more components than the catalogue can fill, before a teacher is trained', async () => {
    const options = { ...tinyOptions(folder), knowledge: { components: 41 } };
    const steps = new Set<string>();
    const run = engine.distill(options, { onProgress: ({ name }) => steps.add(name ?? '') });
    await expect(run).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringContaining('the number of items, which is 40, got 41'),
    });
    expect(steps).not.toContain('pretrain');
  });
});
