import { beforeEach, describe, expect, it } from 'vitest';
import { LimbeckError } from '../../../src/errors.js';
import { HttpError } from '../../../src/server/http-error.js';
import { ModelHost, type ModelSource } from '../../../src/server/model-host.js';

class FakeStudent {
  readonly items = [{ id: 'a', text: 'A' }];
  readonly numItems = 1;
  isDisposed = false;
  constructor(readonly score: number) {}
  indexOf() {
    return 0;
  }
  recommend() {
    return { items: [{ id: 'a', score: this.score }], unknownItems: [] };
  }
  interests() {
    return [];
  }
  dispose() {
    this.isDisposed = true;
  }
}

let opened: FakeStudent[];
let current: string[];
/** Loads anything; `broken` throws as a corrupt file does, `nan` answers with no numbers. */
const source: ModelSource = {
  list: async () => ['one', 'two', 'three', 'broken', 'nan', 'unpromotable', 'damaged'],
  current: async () => current.at(-1) as string,
  async load(name) {
    await new Promise(setImmediate);
    if (name === 'broken') throw new LimbeckError('ERR_SAFETENSORS', "'/secret/path' is broken");
    const student = new FakeStudent(name === 'nan' ? Number.NaN : 1);
    opened.push(student);
    return student as never;
  },
  async promote(name) {
    if (name === 'unpromotable') throw new LimbeckError('ERR_IO', 'disk');
    if (name === 'damaged') throw new LimbeckError('ERR_CHECKPOINT_MISMATCH', "'/secret/path' is not what was added");
    current.push(name);
  },
  async rollback() {
    if (current.length < 2) throw new HttpError(409, 'ERR_CONFLICT', 'none before');
    current.pop();
    return current.at(-1) as string;
  },
};
const turn = () => new Promise(setImmediate);
const open = (maxExtraModels = 1) => ModelHost.open(source, { maxExtraModels, prepare: async () => {} });

beforeEach(() => {
  opened = [];
  current = ['one'];
});

describe('ModelHost', () => {
  it('swaps the current model, and disposes of the old one afterwards', async () => {
    const host = await open();
    await host.promote('two');
    expect(host.current.name).toBe('two');
    await turn();
    expect(opened.map(({ isDisposed }) => isDisposed)).toEqual([true, false]);
  });

  it.each(['broken', 'nan'])('keeps the current model when the new one is %s', async (name) => {
    const host = await open();
    const error = await host.promote(name).catch((reason: unknown) => reason);
    expect(error).toMatchObject({ statusCode: 422, code: 'ERR_MODEL_REFUSED' });
    expect((error as Error).message).not.toContain('/secret');
    expect(host.current.name).toBe('one');
    expect(current).toEqual(['one']);
    await turn();
    expect(opened.map(({ isDisposed }) => isDisposed)).toEqual(name === 'nan' ? [false, true] : [false]);
  });

  it('keeps the current model when the new one cannot be made the one to start with', async () => {
    const host = await open();
    await expect(host.promote('unpromotable')).rejects.toMatchObject({ code: 'ERR_IO' });
    expect(host.current.name).toBe('one');
    await turn();
    expect(opened[1]?.isDisposed).toBe(true);
  });

  it('refuses one that was damaged since it was loaded, and one that there is not', async () => {
    const host = await open();
    await host.load('damaged');
    await expect(host.promote('damaged')).rejects.toMatchObject({ statusCode: 422, code: 'ERR_MODEL_REFUSED' });
    await expect(host.promote('nothing')).rejects.toMatchObject({ statusCode: 404, code: 'ERR_NOT_FOUND' });
    expect(host.current.name).toBe('one');
    expect(host.get('damaged').name).toBe('damaged');
  });

  it('answers with loaded models by name, and with the current one without', async () => {
    const host = await open();
    await host.load('two');
    expect(host.get(undefined).name).toBe('one');
    expect(host.get('one').name).toBe('one');
    expect(host.get('two').name).toBe('two');
    expect(() => host.get('three')).toThrow(expect.objectContaining({ statusCode: 404 }));
    expect((await host.list()).slice(0, 3)).toEqual([
      { name: 'one', loaded: true, numItems: 1 },
      { name: 'two', loaded: true, numItems: 1 },
      { name: 'three', loaded: false },
    ]);
  });

  it('promotes what is loaded without loading it again', async () => {
    const host = await open();
    await host.load('two');
    await host.promote('two');
    expect(opened).toHaveLength(2);
    expect(host.loaded.map(({ name }) => name)).toEqual(['two']);
  });

  it('keeps no more models than it may', async () => {
    const host = await open(1);
    await host.load('two');
    await host.load('three');
    expect(host.loaded.map(({ name }) => name)).toEqual(['one', 'three']);
    await turn();
    expect(opened[1]?.isDisposed).toBe(true);
  });

  it('goes back to the model before', async () => {
    const host = await open();
    await host.promote('two');
    expect((await host.rollback()).name).toBe('one');
    await expect(host.rollback()).rejects.toMatchObject({ statusCode: 409 });
    expect(host.current.name).toBe('one');
  });

  it('answers with what another process made current, and refuses to go back from what it does not answer with', async () => {
    const host = await open();
    expect(await host.refresh()).toBeUndefined();
    current.push('two', 'three');
    await expect(host.rollback()).rejects.toMatchObject({
      statusCode: 409,
      code: 'ERR_CONFLICT',
      message: expect.stringMatching(/'three'.*'one'.*promote/),
    });
    expect(current).toEqual(['one', 'two', 'three']);
    expect((await host.refresh())?.name).toBe('three');
    expect([host.current.name, await host.promoted()]).toEqual(['three', 'three']);
    expect((await host.rollback()).name).toBe('two');
    await turn();
    expect(opened.filter(({ isDisposed }) => !isDisposed)).toHaveLength(1);
  });

  it('takes what it has loaded when another process makes it current', async () => {
    const host = await open();
    await host.load('two');
    current.push('two');
    await host.refresh();
    expect(host.loaded.map(({ name }) => name)).toEqual(['two']);
    expect(opened).toHaveLength(2);
  });

  it('says once that it cannot serve what another process made current, and keeps its own', async () => {
    const host = await open();
    current.push('nan');
    await expect(host.refresh()).rejects.toMatchObject({ statusCode: 422, code: 'ERR_MODEL_REFUSED' });
    expect(await host.refresh()).toBeUndefined();
    expect(opened).toHaveLength(2);
    expect([host.current.name, await host.promoted()]).toEqual(['one', 'nan']);
    current.push('two');
    expect((await host.refresh())?.name).toBe('two');
    current.push('nan');
    await expect(host.refresh()).rejects.toMatchObject({ statusCode: 422 });
  });

  it('does not look for what another process did behind changes of its own', async () => {
    const host = await open();
    current.push('three');
    const own = host.promote('two');
    expect(await host.refresh()).toBeUndefined();
    await own;
    expect(host.current.name).toBe('two');
  });

  it('makes changes one after the other; the last one stands, and every other model is gone', async () => {
    const host = await open();
    await Promise.all(['two', 'three', 'two', 'three'].map((name) => host.promote(name)));
    expect(host.current.name).toBe('three');
    await turn();
    expect(opened.filter(({ isDisposed }) => !isDisposed)).toHaveLength(1);
  });

  it('refuses changes beyond those that may wait', async () => {
    const host = await open();
    const results = await Promise.allSettled(Array.from({ length: 50 }, () => host.promote('two')));
    const refused = results.filter((result) => result.status === 'rejected');
    expect(refused).toHaveLength(50 - 32);
    expect(refused[0]).toMatchObject({ reason: { statusCode: 409 } });
  });

  it('disposes of all models at the end', async () => {
    const host = await open();
    await host.load('two');
    await host.close();
    expect(opened.every(({ isDisposed }) => isDisposed)).toBe(true);
  });
});
