import { cpSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { createEngine, type Engine, type Student } from '../../../src/index.js';
import { RecommendTurn } from '../../../src/server/recommend-turn.js';
import { changeWeights } from '../../support/change-weights.js';

let engine: Engine;
let folder: string;
/** Its scores overflow after its first item alone. */
let student: Student;

beforeEach(async () => {
  engine = await createEngine({ threads: 1, device: 'cpu' });
  folder = mkdtempSync(join(tmpdir(), 'limbeck-turn-'));
  cpSync('test/fixtures/student', folder, { recursive: true });
  const width = 16;
  const huge = (value: number, index: number) => (index < width ? 3e38 * (-1) ** index : value);
  await changeWeights(folder, 'model.safetensors', { 'transformer.wte.weight': huge });
  student = await engine.loadStudent(folder);
});
afterEach(() => {
  student.dispose();
  engine.dispose();
  rmSync(folder, { recursive: true });
});

test.each([2, 12])('of %i requests that come together, one that overflows fails alone', async (count) => {
  const [huge = '', ...ids] = student.items.map(({ id }) => id);
  const requests = Array.from({ length: count }, (_, i) => ({ history: [ids[i] as string], exclude: [huge], k: 5 }));
  requests[1] = { history: [huge], exclude: [], k: 5 };
  const current = { name: 'm', student };
  const metrics = { observeRecommend: () => {} };
  const turn = new RecommendTurn({ models: { current, loaded: [current], get: () => current }, metrics } as never);
  const bodies = requests.map((request) => Buffer.from(JSON.stringify(request)));
  const answers = await Promise.allSettled(bodies.map((body, i) => turn.answer(body, `r${i}`)));
  for (const [i, answer] of answers.entries()) {
    if (i === 1) {
      expect(answer).toMatchObject({ status: 'rejected', reason: { code: 'ERR_NOT_FINITE' } });
      continue;
    }
    const { items } = student.recommend(requests[i] as (typeof requests)[number]);
    const { value } = answer as PromiseFulfilledResult<unknown>;
    expect(typeof value === 'string' ? JSON.parse(value) : value).toMatchObject({ requestId: `r${i}`, items });
  }
});
