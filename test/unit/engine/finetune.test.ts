import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createEngine, type Engine, type FeedbackEvent, type ProgressEvent, type Student } from '../../../src/index.js';
import { randomNumbers } from '../../../src/teacher/batches.js';
import { startCpuTime } from '../../support/cpu-time.js';
import { watchEventLoop } from '../../support/event-loop-gaps.js';
import { temporaryDirectory } from '../formats/temporary-directory.js';

const ITEMS = 40;
const LENGTH = 8;
const items = Array.from({ length: ITEMS }, (_, i) => ({ id: `i${i}`, text: `item ${i}` }));
const training = { epochs: 40, learningRate: 0.01, batchTokens: 256, patience: 0, seed: 1 };
const temporary = temporaryDirectory();
let engine: Engine;
beforeAll(async () => {
  process.env['TMPDIR'] = temporary;
  engine = await createEngine({ threads: 2 });
});
afterAll(() => {
  engine.dispose();
});

/** Users walk from an item to the one `step` further. */
function walk(users: number, step: (item: number, random: () => number) => number, name = 'u'): FeedbackEvent[] {
  const random = randomNumbers(3);
  return Array.from({ length: users }, (_, user) => {
    let item = (user * 13) % ITEMS;
    return Array.from({ length: LENGTH }, (_, i): FeedbackEvent => {
      const itemId = `i${item}`;
      item = step(item, random);
      return { userId: `${name}${user}`, itemId, type: 'click', time: 1000 + i };
    });
  }).flat();
}
const forwards = (item: number) => (item + 7) % ITEMS;
/** Another order of the same items. */
const elsewhere = (item: number) => (item * 3 + 1) % ITEMS;

function untrained(): Student {
  const shape = { hiddenSize: 16, numHiddenLayers: 1, numAttentionHeads: 2, maxHistory: LENGTH, dropout: 0.1 };
  return engine.createStudent(engine.createSequenceModel(shape, { numItems: ITEMS, seed: 2 }), items);
}

/** A dataset of users who walk forwards, and a student that learned it. */
async function trained() {
  const events = walk(120, forwards, 'old');
  const users = [...new Set(events.map(({ userId }) => userId))];
  const sequences = Int32Array.from(events, ({ itemId }) => Number(itemId.slice(1)));
  const sequenceOffsets = Int32Array.from({ length: users.length + 1 }, (_, i) => i * LENGTH);
  const at = (position: number) => new Int32Array(users.length).fill(position);
  const dataset = {
    items,
    users,
    sequences,
    sequenceOffsets,
    split: {
      strategy: 'leaveOneOut' as const,
      trainLength: at(LENGTH - 2),
      validationPosition: at(LENGTH - 2),
      testPosition: at(LENGTH - 1),
    },
    report: {} as never,
  };
  const first = await engine.finetune(untrained(), events, { training });
  return { dataset, student: first.student };
}

describe('finetune', () => {
  test('learns from feedback, shows both students on what was held out, and promotes the better one', async () => {
    const student = untrained();
    const answer = student.recommend({ history: ['i0', 'i7'], k: 5 });
    const progress: ProgressEvent[] = [];
    const result = await engine.finetune(
      student,
      walk(120, forwards),
      { training },
      { onProgress: (event) => progress.push(event) },
    );
    const { report } = result;
    expect(report).toMatchObject({ promoted: true, cases: 120 });
    expect(report.after.ndcgAt10).toBeGreaterThan(0.9);
    expect(report.before.ndcgAt10).toBeLessThan(0.5);
    expect(report.difference.mean).toBeCloseTo(report.after.ndcgAt10 - report.before.ndcgAt10, 6);
    expect(report.difference.interval[0]).toBeGreaterThan(0);
    expect(report.reason).toMatch(/^not worse: ndcg@10 changed on the feedback 0\.\d{4}/);
    expect(result.student.recommend({ history: ['i0', 'i7'], k: 1 }).items[0]?.id).toBe('i14');
    // The student that was given serves on, unchanged.
    expect(result.student).not.toBe(student);
    expect(student.recommend({ history: ['i0', 'i7'], k: 5 })).toEqual(answer);
    expect(progress.at(-1)).toMatchObject({ step: 'fineTune', name: 'student, from feedback' });
    expect(readdirSync(temporary)).toEqual([]);
    result.student.dispose();
    student.dispose();
  });

  test('a student that knows how popular its items are counts the feedback too', async () => {
    const shape = { hiddenSize: 16, numHiddenLayers: 1, numAttentionHeads: 2, maxHistory: LENGTH, dropout: 0.1 };
    const model = engine.createSequenceModel(shape, { numItems: ITEMS, seed: 2 });
    const student = engine.createStudent(model, items, { popularity: new Int32Array(ITEMS).fill(5) });
    const events = walk(60, forwards).map((event, i) => (i % LENGTH === 0 ? { ...event, itemId: 'i3' } : event));
    const { student: made } = await engine.finetune(student, events, { training });
    expect(made.recommend({ history: [], k: 1 }).items[0]?.id).toBe('i3');
    expect(made.interests(['i0'], { k: 1 })).toHaveLength(1);
  });

  test('what may be worse is not promoted, and the student that was given is handed back', async () => {
    const { student } = await trained();
    // Noise, learned by heart at a rate that ruins what was known; held out are the walks of the users of before.
    const noise = walk(60, (_, random) => Math.floor(random() * ITEMS), 'noise');
    const events = [...walk(60, forwards), ...noise.filter((_, i) => i % LENGTH < 2)];
    const destroy = { epochs: 1, learningRate: 0.5, seed: 1, patience: 0 };
    const { student: kept, report } = await engine.finetune(student, events, { training: destroy });
    expect(report.promoted).toBe(false);
    expect(report.after.ndcgAt10).toBeLessThan(report.before.ndcgAt10 - 0.1);
    expect(report.reason).toMatch(/^may be worse: ndcg@10 changed on the feedback -0\.\d{4}/);
    expect(kept).toBe(student);
    // Nor by any tolerance, when it is sure.
    const tolerant = await engine.finetune(student, events, { training: destroy, tolerance: 1 });
    expect(tolerant.report.promoted).toBe(false);
    student.dispose();
  });

  test('feedback that contradicts the earlier data is learned without it, and refused with it', async () => {
    const { dataset, student } = await trained();
    const events = walk(120, elsewhere);
    const alone = await engine.finetune(student, events, { training });
    expect(alone.report.promoted).toBe(true);
    expect(alone.report.earlier).toBeUndefined();
    const forgetful = await engine.finetune(student, events, { training, replay: dataset, replayRatio: 0 });
    expect(forgetful.report.earlier?.cases).toBe(120);
    expect(forgetful.report.earlier?.difference.mean).toBeLessThan(-0.3);
    expect(forgetful.report.difference.mean).toBeGreaterThan(0.3);
    expect(forgetful.report).toMatchObject({ promoted: false, reason: expect.stringContaining('earlier data') });
    const { report } = await engine.finetune(student, events, { training, replay: dataset });
    expect(report).toMatchObject({ promoted: true, counts: { replayed: 120 } });
    const loss = (one: typeof report) => one.earlier?.difference.mean ?? 0;
    expect(loss(report)).toBeGreaterThan(loss(forgetful.report) + 0.2);
    student.dispose();
  });

  test('gives the same bits under the same seed', async () => {
    const student = untrained();
    const run = async () => {
      const { student: made, report } = await engine.finetune(student, walk(60, forwards), { training });
      return { answer: made.recommend({ history: ['i3'], k: 20 }), report: { ...report, epochs: undefined } };
    };
    expect(await run()).toEqual(await run());
  });

  test('leaves the event loop free, and stops within 100 ms of an abort', async () => {
    const student = untrained();
    const controller = new AbortController();
    let sinceAbortMs = () => Number.POSITIVE_INFINITY;
    const stopWatching = watchEventLoop(1);
    const run = engine.finetune(
      student,
      walk(400, forwards),
      { training: { ...training, epochs: 400 } },
      {
        signal: controller.signal,
        onProgress: ({ done }) => {
          if (done < 30 || controller.signal.aborted) return;
          sinceAbortMs = startCpuTime();
          controller.abort();
        },
      },
    );
    await expect(run).rejects.toMatchObject({ code: 'ERR_ABORTED' });
    expect(sinceAbortMs()).toBeLessThan(100);
    const gaps = stopWatching();
    expect(gaps.length).toBeGreaterThan(20);
    expect(gaps[Math.floor(0.95 * gaps.length)]).toBeLessThan(50);
    expect(readdirSync(temporary)).toEqual([]);
    expect(student.recommend({ history: ['i0'], k: 1 }).items).toHaveLength(1);
  });

  test('too few events are refused, and leave nothing behind', async () => {
    await expect(engine.finetune(untrained(), walk(29, forwards))).rejects.toMatchObject({
      code: 'ERR_EMPTY_DATA',
      message: expect.stringContaining('at least 30 users with three or more choices, got 29'),
    });
    expect(readdirSync(temporary)).toEqual([]);
  });

  test.each([
    ['an unknown option', { epochs: 3 }, 'ERR_UNKNOWN_OPTION'],
    ['a tolerance below 0', { tolerance: -1 }, 'ERR_INVALID_ARGUMENT'],
    ['no types', { types: [] }, 'ERR_INVALID_ARGUMENT'],
  ])('refuses %s', async (_, options, code) => {
    await expect(engine.finetune(untrained(), [], options as never)).rejects.toMatchObject({ code });
  });
});

test('an item that was added by its text is learned', async () => {
  const fixture = join(import.meta.dirname, '../../fixtures/student');
  const student = await engine.loadStudent(fixture);
  student.addItems([{ id: 'new', text: 'Silent Western. 1950. Western' }]);
  const ids = student.items.map(({ id }) => id).filter((id) => id !== 'new');
  // After any two items, everyone chooses the new one, and then goes on.
  const events = Array.from({ length: 60 }, (_, user) => {
    const at = (i: number) => ids[(user * 7 + i * 5) % ids.length] ?? '';
    return [at(0), at(1), 'new', at(2), at(3)].map(
      (itemId, i): FeedbackEvent => ({ userId: `u${user}`, itemId, type: 'purchase', time: i }),
    );
  }).flat();
  const history = [ids[1] ?? '', ids[9] ?? ''];
  const rankOf = (one: Student) =>
    one.recommend({ history, k: one.numItems - 2 }).items.findIndex(({ id }) => id === 'new');
  const options = { training: { ...training, epochs: 15 }, tolerance: 1 };
  const { student: made, report } = await engine.finetune(student, events, options);
  expect(report.promoted).toBe(true);
  expect(made.numItems).toBe(student.numItems);
  expect(rankOf(student)).toBeGreaterThan(0);
  expect(rankOf(made)).toBe(0);
  made.addItems([{ id: 'newer', text: 'Dune. 2021. Sci-Fi' }]); // it still reads texts
  made.dispose();
  student.dispose();
});
