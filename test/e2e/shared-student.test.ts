/** One copy of a student's weights in several worker threads. */
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { createEngine, type Engine, Student } from '../../src/index.js';
import { writeCategorisedStudent } from '../support/categorised-student.js';

const library = new URL('../../dist/index.js', import.meta.url).href;
const history = ['tt1583421', 'tt1300854', 'tt1408101'];
let engine: Engine;
let student: Student;
let folder: string;
let workers: Worker[];

/** Opens the handle it is sent, and evaluates what it is sent afterwards with `student` in scope. */
const SCRIPT = `
  const { parentPort } = require('node:worker_threads');
  import(${JSON.stringify(library)}).then(({ Student }) => {
    let student;
    parentPort.on('message', ({ handle, run }) => {
      try {
        if (handle) student = Student.fromHandle(handle);
        parentPort.postMessage({ value: new Function('student', run ?? 'return student.numItems')(student) });
      } catch (error) {
        parentPort.postMessage({ code: error.code ?? error.message });
      }
    });
    parentPort.postMessage({ value: 'ready' });
  });`;

async function startWorker(): Promise<Worker> {
  const worker = new Worker(SCRIPT, { eval: true });
  workers.push(worker);
  await answer(worker);
  return worker;
}

async function answer(worker: Worker): Promise<{ value?: unknown; code?: string }> {
  const [message] = await once(worker, 'message');
  return message;
}

function ask(worker: Worker, message: object): Promise<{ value?: unknown; code?: string }> {
  const promise = answer(worker);
  worker.postMessage(message);
  return promise;
}

beforeAll(async () => {
  engine = await createEngine({ threads: 1 });
});
afterAll(() => engine.dispose());
beforeEach(async () => {
  workers = [];
  folder = mkdtempSync(join(tmpdir(), 'limbeck-shared-'));
  await writeCategorisedStudent(join(folder, 's'));
  student = await engine.loadStudent(join(folder, 's'));
});
afterEach(async () => {
  await Promise.all(workers.map((worker) => worker.terminate()));
  student.dispose();
  rmSync(folder, { recursive: true });
});

const RECOMMEND = `return student.recommend({ history: ${JSON.stringify(history)}, k: 8, explain: true })`;

describe('a student in worker threads', () => {
  test('answers everything as the one that shared it', async () => {
    student.addItems([{ id: 'added', text: 'Gravity Two. 2014. Sci-Fi', categories: ['Sci-Fi'] }]);
    student.removeItems(['tt0770828']);
    const worker = await startWorker();
    expect(await ask(worker, { handle: student.share() })).toEqual({ value: 36 });
    const runs: [string, unknown][] = [
      [RECOMMEND, student.recommend({ history, k: 8, explain: true })],
      [
        'return student.recommend({ history: ["added"], k: 5, novelty: 1, filter: { any: ["Sci-Fi"] } })',
        student.recommend({ history: ['added'], k: 5, novelty: 1, filter: { any: ['Sci-Fi'] } }),
      ],
      ['return student.recommend({ history: [], k: 3 })', student.recommend({ history: [], k: 3 })],
      ['return student.similar("added", { k: 4 })', student.similar('added', { k: 4 })],
      ['return student.search("a space film", { k: 4 })', student.search('a space film', { k: 4 })],
      [`return student.interests(${JSON.stringify(history)})`, student.interests(history)],
      ['return student.embed(["x"])', student.embed(['x'])],
      ['return student.items.map(({ id }) => id)', student.items.map(({ id }) => id)],
      ['return student.numParameters', student.numParameters],
    ];
    for (const [run, expected] of runs) expect(await ask(worker, { run })).toEqual({ value: expected });
    const { code } = await ask(worker, { run: 'return student.model' });
    expect(code).toBe('ERR_INVALID_ARGUMENT');
  });

  test('changes its own catalogue only, while others serve', async () => {
    const handle = student.share();
    const [one, two] = [await startWorker(), await startWorker()];
    await Promise.all([ask(one, { handle }), ask(two, { handle })]);
    const before = await ask(two, { run: RECOMMEND });
    const serving = ask(two, { run: `for (let i = 0; i < 40; i++) ${RECOMMEND.slice(7)}; ${RECOMMEND}` });
    const change = `
      student.addItems(Array.from({ length: 70 }, (_, i) => ({ id: 'n' + i, text: 'New film ' + i })));
      student.removeItems(['tt0770828', 'n3']);
      return student.numItems;`;
    expect(await ask(one, { run: change })).toEqual({ value: 104 });
    expect(await serving).toEqual(before);
    expect(student.numItems).toBe(36);
    student.removeItems(['tt0816711']);
    expect(await ask(two, { run: 'return student.numItems' })).toEqual({ value: 36 });
  });

  test('keeps the weights when the one that shared it is disposed of, and hands them on', async () => {
    const expected = student.recommend({ history, k: 8, explain: true });
    const handle = student.share();
    const one = await startWorker();
    await ask(one, { handle });
    student.dispose();
    expect(await ask(one, { run: RECOMMEND })).toEqual({ value: expected });
    const two = await startWorker();
    expect(await ask(two, { handle })).toEqual({ value: 36 });
    await one.terminate();
    expect(await ask(two, { run: RECOMMEND })).toEqual({ value: expected });
    await ask(two, { run: 'student.dispose()' });
    expect((await ask(await startWorker(), { handle })).code).toBe('ERR_DISPOSED');
  });

  test('may be terminated in the middle of a request, again and again', async () => {
    const expected = student.recommend({ history, k: 8 });
    const handle = student.share();
    for (let i = 0; i < 6; i++) {
      const worker = await startWorker();
      await ask(worker, { handle });
      worker.postMessage({ run: `for (;;) ${RECOMMEND.slice(7)}` });
      await new Promise((resolve) => setTimeout(resolve, 10));
      await worker.terminate();
    }
    expect(student.recommend({ history, k: 8 })).toEqual(expected);
    expect(Student.fromHandle(handle).recommend({ history, k: 8 })).toEqual(expected);
  });

  test('is refused a handle that is forged', () => {
    const handle = student.share();
    expect(() => Student.fromHandle({ ...handle, key: 'x' })).toThrow(
      expect.objectContaining({ code: 'ERR_DISPOSED' }),
    );
    expect(() => Student.fromHandle({ ...handle, key: handle.encoder?.key ?? '' })).toThrow(
      expect.objectContaining({ code: 'ERR_DISPOSED' }),
    );
    expect(() => Student.fromHandle({ ...handle, items: handle.items.slice(1) })).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }),
    );
  });
});
