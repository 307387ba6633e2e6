import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import fs from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { loadBinding } from '../../../src/binding.js';
import { LimbeckError } from '../../../src/errors.js';
import {
  createFileExclusive,
  isTemporaryName,
  MAX_TEXT_FILE_BYTES,
  makeDirectory,
  pathExists,
  readDirectory,
  readJsonFile,
  readTextFile,
  readWholeDirectory,
  writeDirectoryAtomic,
  writeFileAtomic,
} from '../../../src/formats/files.js';
import { temporaryDirectory } from './temporary-directory.js';

const root = temporaryDirectory();
let count = 0;

function freshDirectory(): string {
  const directory = join(root, `case-${count++}`);
  mkdirSync(directory);
  return directory;
}

function systemError(code: string): Error {
  return Object.assign(new Error(`${code}: broken on purpose`), { code, syscall: 'write' });
}

/** The next file that is opened for writing fails in `method`. */
function failNextWrite(method: 'write' | 'sync', code: string): void {
  const open = fs.open;
  vi.spyOn(fs, 'open').mockImplementationOnce(async (...args) => {
    const file = await open(...args);
    vi.spyOn(file, method).mockRejectedValueOnce(systemError(code));
    return file;
  });
}

afterEach(() => {
  vi.restoreAllMocks();
});

describe('readTextFile', () => {
  test('reads UTF-8 and drops a byte order mark', async () => {
    const path = join(freshDirectory(), 'text');
    writeFileSync(path, '\ufeffcafé 🎉\n');
    expect(await readTextFile(path)).toBe('café 🎉\n');
  });

  test('names a missing file', async () => {
    const path = join(freshDirectory(), 'absent.txt');
    await expect(readTextFile(path)).rejects.toMatchObject({
      code: 'ERR_FILE_NOT_FOUND',
      message: expect.stringContaining(path),
    });
    writeFileSync(path, 'a file, not a folder');
    await expect(readTextFile(join(path, 'below'))).rejects.toMatchObject({ code: 'ERR_FILE_NOT_FOUND' });
  });

  test.each([
    ['an empty file', new Uint8Array(0)],
    ['Latin-1', Uint8Array.of(0x63, 0x61, 0x66, 0xe9)],
    ['a truncated sequence', Uint8Array.of(0xf0, 0x9f, 0x8e)],
    ['an encoded surrogate', Uint8Array.of(0xed, 0xa0, 0x80)],
  ])('refuses %s', async (_, bytes) => {
    const path = join(freshDirectory(), 'text');
    writeFileSync(path, bytes);
    await expect(readTextFile(path)).rejects.toMatchObject({ code: 'ERR_FILE_FORMAT' });
  });

  test('refuses a folder, and a pipe without waiting for a writer', async () => {
    const directory = freshDirectory();
    await expect(readTextFile(directory)).rejects.toMatchObject({ code: 'ERR_FILE_FORMAT' });
    execFileSync('mkfifo', [join(directory, 'pipe')]);
    await expect(readTextFile(join(directory, 'pipe'))).rejects.toMatchObject({ code: 'ERR_FILE_FORMAT' });
  });

  test('refuses a file over the limit before reading it', async () => {
    const path = join(freshDirectory(), 'sparse');
    writeFileSync(path, '');
    await fs.truncate(path, MAX_TEXT_FILE_BYTES + 1);
    await expect(readTextFile(path)).rejects.toMatchObject({ code: 'ERR_FILE_FORMAT' });
  });
});

test('readJsonFile names the file of broken JSON', async () => {
  const path = join(freshDirectory(), 'config.json');
  writeFileSync(path, '{"a": 1, "a": 2}');
  await expect(readJsonFile(path)).rejects.toMatchObject({
    code: 'ERR_FILE_FORMAT',
    message: expect.stringContaining(path),
  });
});

test('pathExists tells a file from nothing', async () => {
  const directory = freshDirectory();
  expect(await pathExists(directory)).toBe(true);
  expect(await pathExists(join(directory, 'absent'))).toBe(false);
});

describe('writeFileAtomic', () => {
  test('writes text, bytes and pieces, and leaves nothing else behind', async () => {
    const directory = freshDirectory();
    await writeFileAtomic(join(directory, 'a'), 'café');
    await writeFileAtomic(join(directory, 'b'), Uint8Array.of(1, 2));
    await writeFileAtomic(join(directory, 'b'), [Uint8Array.of(3), new Uint8Array(0), Uint8Array.of(4, 5)]);
    expect(readFileSync(join(directory, 'a'), 'utf8')).toBe('café');
    expect([...readFileSync(join(directory, 'b'))]).toEqual([3, 4, 5]);
    expect(readdirSync(directory).sort()).toEqual(['a', 'b']);
  });

  test.each([
    ['write', 'ENOSPC', 'ERR_NO_SPACE'],
    ['write', 'EDQUOT', 'ERR_NO_SPACE'],
    ['sync', 'ENOSPC', 'ERR_NO_SPACE'],
    ['sync', 'EIO', 'ERR_IO'],
  ] as const)('keeps the earlier file when %s fails with %s', async (method, systemCode, code) => {
    const directory = freshDirectory();
    const path = join(directory, 'model');
    await writeFileAtomic(path, 'earlier');
    failNextWrite(method, systemCode);
    await expect(writeFileAtomic(path, 'later')).rejects.toMatchObject({ code });
    expect(readFileSync(path, 'utf8')).toBe('earlier');
    expect(readdirSync(directory)).toEqual(['model']);
  });

  test('reports a missing folder', async () => {
    await expect(writeFileAtomic(join(freshDirectory(), 'no', 'file'), 'x')).rejects.toMatchObject({ code: 'ERR_IO' });
  });

  test('continues after a short write', async () => {
    const path = join(freshDirectory(), 'file');
    const open = fs.open;
    vi.spyOn(fs, 'open').mockImplementationOnce(async (...args) => {
      const file = await open(...args);
      const write = file.write.bind(file);
      vi.spyOn(file, 'write').mockImplementationOnce((async (bytes: Uint8Array, offset: number) =>
        write(bytes, offset, 2)) as unknown as typeof file.write);
      return file;
    });
    await writeFileAtomic(path, 'abcdef');
    expect(readFileSync(path, 'utf8')).toBe('abcdef');
  });
});

describe('writeDirectoryAtomic', () => {
  const write = (text: string) => async (temporaryPath: string) =>
    writeFileAtomic(join(temporaryPath, 'items.json'), text);

  test('makes a directory with its parents', async () => {
    const path = join(freshDirectory(), 'deep', 'student');
    await writeDirectoryAtomic(path, write('1'));
    expect(readFileSync(join(path, 'items.json'), 'utf8')).toBe('1');
  });

  test('replaces an earlier directory, which stays whole until the swap', async () => {
    const parent = freshDirectory();
    const path = join(parent, 'student');
    mkdirSync(path);
    writeFileSync(join(path, 'old.safetensors'), 'old');
    await writeDirectoryAtomic(path, async (temporaryPath) => {
      expect(readdirSync(path)).toEqual(['old.safetensors']);
      await write('2')(temporaryPath);
    });
    expect(readdirSync(path)).toEqual(['items.json']);
    expect(readdirSync(parent)).toEqual(['student']);
  });

  test("keeps the earlier directory, and the error's code, when the callback fails", async () => {
    const parent = freshDirectory();
    const path = join(parent, 'student');
    await writeDirectoryAtomic(path, write('earlier'));
    const failure = new LimbeckError('ERR_ABORTED', 'stopped');
    await expect(
      writeDirectoryAtomic(path, async (temporaryPath) => {
        await write('half')(temporaryPath);
        throw failure;
      }),
    ).rejects.toBe(failure);
    expect(readFileSync(join(path, 'items.json'), 'utf8')).toBe('earlier');
    expect(readdirSync(parent)).toEqual(['student']);
  });

  test('of several writers at once into a new directory, one is the last, and none fails', async () => {
    const parent = freshDirectory();
    const path = join(parent, 'student');
    await Promise.all(Array.from({ length: 8 }, (_, i) => writeDirectoryAtomic(path, write(String(i)))));
    expect(readFileSync(join(path, 'items.json'), 'utf8')).toMatch(/^[0-7]$/);
    expect(readdirSync(parent)).toEqual(['student']);
  });

  test('keeps the earlier directory when the swap fails', async () => {
    const parent = freshDirectory();
    const path = join(parent, 'student');
    await writeDirectoryAtomic(path, write('earlier'));
    vi.spyOn(loadBinding(), 'exchangeNames').mockImplementation(() => {
      throw new LimbeckError('ERR_IO', 'no');
    });
    await expect(writeDirectoryAtomic(path, write('later'))).rejects.toMatchObject({ code: 'ERR_IO' });
    expect(readFileSync(join(path, 'items.json'), 'utf8')).toBe('earlier');
    expect(readdirSync(parent)).toEqual(['student']);
  });

  test('replaces where the file system cannot exchange names, and brings the earlier directory back', async () => {
    const parent = freshDirectory();
    const path = join(parent, 'student');
    vi.spyOn(loadBinding(), 'exchangeNames').mockReturnValue(false);
    await writeDirectoryAtomic(path, write('first'));
    await writeDirectoryAtomic(path, write('earlier'));
    expect(readFileSync(join(path, 'items.json'), 'utf8')).toBe('earlier');
    expect(readdirSync(parent)).toEqual(['student']);
    const rename = fs.rename;
    vi.spyOn(fs, 'rename').mockImplementation(async (from, to) => {
      const isSwap = to === path && (await fs.readFile(join(String(from), 'items.json'), 'utf8')) === 'later';
      if (isSwap) throw systemError('EIO');
      return rename(from, to);
    });
    await expect(writeDirectoryAtomic(path, write('later'))).rejects.toMatchObject({ code: 'ERR_IO' });
    expect(readFileSync(join(path, 'items.json'), 'utf8')).toBe('earlier');
    expect(readdirSync(parent)).toEqual(['student']);
  });

  test('never lacks the directory while it is replaced', async () => {
    const path = join(freshDirectory(), 'student');
    await writeDirectoryAtomic(path, write('0'));
    const rename = vi.spyOn(fs, 'rename');
    await writeDirectoryAtomic(path, write('1'));
    expect(readFileSync(join(path, 'items.json'), 'utf8')).toBe('1');
    const moved = rename.mock.calls.flatMap(([from, to]) => [String(from), String(to)]);
    expect(moved).not.toContain(path);
  });

  test.each([
    ['other files', { 'photo.jpg': 'x', 'notes.txt': 'y' }],
    ['an application with a config.json', { 'config.json': '{}', 'package.json': '{}' }],
  ])('does not replace a folder of %s', async (_, files) => {
    const path = freshDirectory();
    for (const [name, text] of Object.entries(files)) writeFileSync(join(path, name), text);
    const config = async (temporaryPath: string) => {
      await write('later')(temporaryPath);
      await writeFileAtomic(join(temporaryPath, 'config.json'), '{"new":1}');
    };
    await expect(writeDirectoryAtomic(path, config)).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringContaining(Object.keys(files)[0] as string),
    });
    expect(readdirSync(path).sort()).toEqual(Object.keys(files).sort());
  });

  test.each(['.', 'deep/below'])('does not replace a folder that the process works in: %j', async (inside) => {
    const path = freshDirectory();
    writeFileSync(join(path, 'model.safetensors'), 'precious');
    vi.spyOn(process, 'cwd').mockReturnValue(join(path, inside));
    await expect(writeDirectoryAtomic(path, write('x'))).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringContaining('working directory'),
    });
    expect(readdirSync(path)).toEqual(['model.safetensors']);
  });

  test.each(['', 'a\0b', undefined, null, 7, Buffer.from('a')])('needs a path, not %j', async (path) => {
    const refusal = { name: 'LimbeckError', code: 'ERR_INVALID_ARGUMENT' };
    await expect(writeDirectoryAtomic(path as string, write('x'))).rejects.toMatchObject(refusal);
    await expect(writeFileAtomic(path as string, 'x')).rejects.toMatchObject(refusal);
    await expect(makeDirectory(path as string)).rejects.toMatchObject(refusal);
  });

  test('says so when the temporary name is too long, though the name itself is not', async () => {
    const path = join(freshDirectory(), 'x'.repeat(250));
    await expect(writeDirectoryAtomic(path, write('x'))).rejects.toMatchObject({ code: 'ERR_IO' });
    await expect(writeFileAtomic(path, 'x')).rejects.toMatchObject({ code: 'ERR_IO' });
  });

  test('does not replace a file', async () => {
    const path = join(freshDirectory(), 'student');
    writeFileSync(path, 'precious');
    await expect(writeDirectoryAtomic(path, write('x'))).rejects.toMatchObject({ code: 'ERR_IO' });
    expect(readFileSync(path, 'utf8')).toBe('precious');
  });
});

describe('makeDirectory', () => {
  test('makes a directory and those above it, and lets those be that are there', async () => {
    const directory = freshDirectory();
    const path = join(directory, 'a/b/c');
    await Promise.all([makeDirectory(path), makeDirectory(`${path}/`), makeDirectory(join(directory, 'a/d'))]);
    await makeDirectory(path);
    expect(readdirSync(join(directory, 'a'))).toEqual(['b', 'd']);
    expect(readdirSync(path)).toEqual([]);
  });

  test('refuses a path that is a file, or below one', async () => {
    const path = join(freshDirectory(), 'file');
    writeFileSync(path, 'precious');
    await expect(makeDirectory(path)).rejects.toMatchObject({ code: 'ERR_IO' });
    await expect(makeDirectory(join(path, 'a/b'))).rejects.toMatchObject({ code: 'ERR_IO' });
    expect(readFileSync(path, 'utf8')).toBe('precious');
  });

  test('says why a directory above cannot be made', async () => {
    const directory = freshDirectory();
    // As Node does on a read-only file system.
    vi.spyOn(fs, 'mkdir').mockImplementation(async (path, options) => {
      const isRecursive = typeof options === 'object' && options?.recursive === true;
      throw systemError(isRecursive || !existsSync(dirname(String(path))) ? 'ENOENT' : 'EROFS');
    });
    const path = join(directory, 'a/b/c');
    const error = { code: 'ERR_IO', message: expect.stringMatching(/a\/b\/c'?.*EROFS/) };
    await expect(makeDirectory(path)).rejects.toMatchObject(error);
    await expect(writeDirectoryAtomic(join(path, 'd'), async () => {})).rejects.toMatchObject(error);
    await makeDirectory(directory);
  });
});

describe('createFileExclusive', () => {
  test('makes a file where there is none, whole, once', async () => {
    const directory = freshDirectory();
    const path = join(directory, 'record');
    const tries = await Promise.all(['a', 'b', 'c'].map((text) => createFileExclusive(path, text.repeat(1000))));
    expect(tries.filter(Boolean)).toHaveLength(1);
    expect(readFileSync(path, 'utf8')).toBe('abc'.charAt(tries.indexOf(true)).repeat(1000));
    expect(readdirSync(directory)).toEqual(['record']);
  });

  test('says that the disk is full, and leaves nothing', async () => {
    const directory = freshDirectory();
    failNextWrite('write', 'ENOSPC');
    await expect(createFileExclusive(join(directory, 'record'), 'x')).rejects.toMatchObject({ code: 'ERR_NO_SPACE' });
    expect(readdirSync(directory)).toEqual([]);
  });
});

test('temporary names are told from others', async () => {
  const directory = freshDirectory();
  const seen: string[] = [];
  await writeDirectoryAtomic(join(directory, 'v1'), async () => {
    seen.push(...(await readDirectory(directory)).map(({ name }) => name));
  });
  expect(seen.map(isTemporaryName)).toEqual([true]);
  expect(['v1', '.v1', 'v1.tmp', '.v1.12.tmp'].some(isTemporaryName)).toBe(false);
});

test('a directory that must not be replaced stays', async () => {
  const path = join(freshDirectory(), 'v1');
  const write = (text: string) => async (temporaryPath: string) => writeFileSync(join(temporaryPath, 'x'), text);
  await writeDirectoryAtomic(path, write('first'), { replace: false });
  await expect(writeDirectoryAtomic(path, write('second'), { replace: false })).rejects.toMatchObject({
    code: 'ERR_INVALID_ARGUMENT',
  });
  expect(readFileSync(join(path, 'x'), 'utf8')).toBe('first');
});

describe('readWholeDirectory', () => {
  const save = (path: string, name: string) =>
    writeDirectoryAtomic(path, async (temporary) => writeFileSync(join(temporary, 'name'), name));
  /** What is in the file, after `meanwhile`; and whether it was disposed of. */
  const reader = (path: string, meanwhile: (read: number) => Promise<void>) => {
    const results: { name: string; isDisposed: boolean; dispose(): void }[] = [];
    const read = async () => {
      const name = readFileSync(join(path, 'name'), 'utf8');
      const result = {
        name,
        isDisposed: false,
        dispose() {
          this.isDisposed = true;
        },
      };
      results.push(result);
      await meanwhile(results.length);
      return result;
    };
    return { results, read };
  };

  test('reads again what was replaced meanwhile, and disposes of what was read in vain', async () => {
    const path = join(freshDirectory(), 'model');
    await save(path, 'first');
    const { results, read } = reader(path, async (count) => {
      if (count === 1) await save(path, 'second');
    });
    expect(await readWholeDirectory(path, read)).toMatchObject({ name: 'second', isDisposed: false });
    expect(results.map(({ isDisposed }) => isDisposed)).toEqual([true, false]);
  });

  test('reads again after an error of a mixture, and throws that of a whole directory', async () => {
    const path = join(freshDirectory(), 'model');
    await save(path, 'first');
    const broken = new LimbeckError('ERR_FILE_NOT_FOUND', 'a part is missing');
    const { results, read } = reader(path, async (count) => {
      if (count === 1) await save(path, 'second');
      throw broken;
    });
    await expect(readWholeDirectory(path, read)).rejects.toBe(broken);
    expect(results.map(({ name }) => name)).toEqual(['first', 'second']);
  });

  test('waits for a directory between the renames of a save', async () => {
    const path = join(freshDirectory(), 'model');
    await save(path, 'first');
    await fs.rename(path, `${path}.aside`);
    const { read } = reader(path, async () => {});
    const reading = readWholeDirectory(path, read);
    await new Promise((done) => setTimeout(done, 5));
    await fs.rename(`${path}.aside`, path);
    expect((await reading).name).toBe('first');
  });

  test('gives up a directory that is replaced all the time', async () => {
    const path = join(freshDirectory(), 'model');
    await save(path, '0');
    const { results, read } = reader(path, (count) => save(path, String(count)));
    await expect(readWholeDirectory(path, read)).rejects.toMatchObject({
      code: 'ERR_IO',
      message: expect.stringContaining(path),
    });
    expect(results.every(({ isDisposed }) => isDisposed)).toBe(true);
  });
});
