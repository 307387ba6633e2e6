import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import fs from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, describe, expect, test, vi } from 'vitest';
import { Workspace } from '../../../src/engine/workspace.js';

const folder = mkdtempSync(join(tmpdir(), 'limbeck-workspace-'));
afterEach(() => {
  vi.restoreAllMocks();
});
afterAll(() => {
  rmSync(folder, { recursive: true });
});

/** A run of two stages, in an output of its own. */
async function begun(name: string, settings: unknown = { epochs: 1 }): Promise<Workspace> {
  const workspace = await Workspace.open(join(folder, name), settings);
  await workspace.saveJson('first', 1);
  mkdirSync(workspace.path('student'));
  writeFileSync(workspace.path('student', 'model.safetensors'), 'weights');
  return workspace;
}

describe('a workspace', () => {
  test('keeps its stages for a run of the same settings, and none for one of others', async () => {
    const workspace = await begun('same');
    const { output, directory } = workspace;
    await workspace.close();
    await (await Workspace.open(output, { epochs: 1 })).close();
    expect(readdirSync(directory)).toEqual(['first.json', 'run.json', 'student']);
    await (await Workspace.open(output, { epochs: 2 })).close();
    expect(readdirSync(directory)).toEqual(['run.json']);
  });

  test('is of one run at a time, whatever its settings, and the next may begin when that is over', async () => {
    const workspace = await begun('locked');
    const { output, directory } = workspace;
    for (const epochs of [1, 2]) {
      await expect(Workspace.open(output, { epochs })).rejects.toMatchObject({
        code: 'ERR_LOCKED',
        message: expect.stringContaining(output),
      });
    }
    expect(readdirSync(directory)).toEqual(['first.json', 'run.json', 'student']);
    await workspace.close();
    await (await Workspace.open(output, { epochs: 1 })).close();
  });

  test('is gone when it is finished', async () => {
    const workspace = await begun('finished');
    await workspace.finish();
    await workspace.close();
    expect(readdirSync(workspace.output)).toEqual([]);
  });

  test('takes no directory that holds something else, and leaves it as it is', async () => {
    const output = join(folder, 'taken');
    const model = join(output, 'teacher', 'model.safetensors');
    mkdirSync(join(output, 'teacher'), { recursive: true });
    writeFileSync(model, 'precious');
    const refused = { code: 'ERR_INVALID_ARGUMENT', message: expect.stringContaining('found model.safetensors') };
    await expect(Workspace.open(output, {}, 'teacher')).rejects.toMatchObject(refused);
    writeFileSync(join(output, 'teacher', 'run.json'), '{"parameters": 3}');
    await expect(Workspace.open(output, {}, 'teacher')).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
    expect(readFileSync(model, 'utf8')).toBe('precious');
  });

  test('takes a directory that was killed before its run file had its name', async () => {
    const output = join(folder, 'early');
    mkdirSync(join(output, '.unfinished'), { recursive: true });
    writeFileSync(join(output, '.unfinished', '.run.json.7.0123456789ab.tmp'), '{');
    const workspace = await Workspace.open(output, {});
    expect(readdirSync(workspace.directory)).toEqual(['run.json']);
    await workspace.close();
  });

  test('killed while its stages are removed, it can be opened and has none of them for anyone', async () => {
    const killed = await begun('killed');
    const { output, directory } = killed;
    await killed.close();
    const rm = fs.rm;
    vi.spyOn(fs, 'rm').mockImplementation(async (path, options) => {
      if (String(path).endsWith('student')) throw Object.assign(new Error('killed'), { code: 'EIO', syscall: 'rm' });
      return rm(path, options);
    });
    await expect(Workspace.open(output, { epochs: 2 })).rejects.toMatchObject({ code: 'ERR_IO' });
    vi.restoreAllMocks();
    expect(existsSync(join(directory, 'student'))).toBe(true);
    await (await Workspace.open(output, { epochs: 1 })).close();
    expect(readdirSync(directory)).toEqual(['run.json']);
  });
});
