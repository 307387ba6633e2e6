import { join } from 'node:path';
import { expect, it } from 'vitest';
import { createEngine } from '../../src/engine.js';
import { LimbeckError } from '../../src/errors.js';

it('what the native side refuses is an error of ours, whatever it was made of', async () => {
  const engine = await createEngine({ threads: 1 });
  const student = await engine.loadStudent(join(import.meta.dirname, '../fixtures/student'));
  student.dispose();
  expect(() => student.recommend({ history: [student.items[0]?.id ?? ''] })).toThrow(LimbeckError);
  engine.dispose();
});

it('other errors are not, even with a code', () => {
  expect(new LimbeckError('ERR_IO', 'no')).toBeInstanceOf(LimbeckError);
  for (const other of [new Error('no'), Object.assign(new Error('no'), { code: 'ERR_IO' }), 'no', null, undefined]) {
    expect(other).not.toBeInstanceOf(LimbeckError);
  }
});

it('a class that extends ours has its own instances alone', () => {
  class OwnError extends LimbeckError {}
  expect(new OwnError('ERR_IO', 'no')).toBeInstanceOf(LimbeckError);
  expect(new OwnError('ERR_IO', 'no')).toBeInstanceOf(OwnError);
  expect(new LimbeckError('ERR_IO', 'no')).not.toBeInstanceOf(OwnError);
});
