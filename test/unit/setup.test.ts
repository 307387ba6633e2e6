import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { explainFailure, findHeaders } from '../../scripts/build-native.mjs';
import { dependenciesAreInstalled } from '../../scripts/setup.mjs';
import { hashFiles, listFiles, runOnChange } from '../../scripts/stamps.mjs';
import { loadAddon } from '../../src/binding.js';
import { runProgram } from '../support/run-program.js';

const repository = join(import.meta.dirname, '../..');
let root: string;

function write(path: string, text: string): string {
  const file = join(root, path);
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, text);
  return file;
}

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'limbeck-setup-'));
});

afterEach(() => {
  rmSync(root, { recursive: true });
});

describe('content hash', () => {
  test('changes with a content, a name, and a missing file, and not with the folder', () => {
    const hash = () => hashFiles(root, [...listFiles(join(root, 'src')), join(root, 'binding.gyp')]);
    write('src/a.ts', 'one');
    const first = hash();
    write('src/a.ts', 'two');
    expect(hash()).not.toBe(first);
    write('src/a.ts', 'one');
    expect(hash()).toBe(first);
    write('src/deep/b.ts', '');
    expect(hash()).not.toBe(first);
    rmSync(join(root, 'src/deep'), { recursive: true });
    write('binding.gyp', '');
    expect(hash()).not.toBe(first);

    write('copy/src/a.ts', 'one');
    const copy = join(root, 'copy');
    expect(hashFiles(copy, [...listFiles(join(copy, 'src')), join(copy, 'binding.gyp')])).toBe(first);
  });
});

describe('runOnChange', () => {
  test('runs again when the key changes, the output is gone, or the last run failed', () => {
    const output = join(root, 'output');
    const ran: string[] = [];
    const run = (key: string, action = () => writeFileSync(output, key)) =>
      runOnChange({
        stampFile: join(root, 'stamps/step'),
        key,
        output,
        action: (previous) => {
          ran.push(`${previous} → ${key}`);
          action();
        },
      });

    expect(run('one')).toBe(true);
    expect(run('one')).toBe(false);
    expect(run('two')).toBe(true);
    rmSync(output);
    expect(run('two')).toBe(true);
    const fail = () => {
      throw new Error('disk full');
    };
    expect(() => run('three', fail)).toThrow('disk full');
    expect(run('three')).toBe(true);
    expect(ran).toEqual(['undefined → one', 'one → two', 'two → two', 'two → three', 'undefined → three']);
  });
});

describe('dependenciesAreInstalled', () => {
  const lock = (packages: object) => JSON.stringify({ lockfileVersion: 3, packages });
  const zod = { version: '4.0.0', integrity: 'sha512-a' };

  test('is false without node_modules', () => {
    write('package-lock.json', lock({ '': {}, 'node_modules/zod': zod }));
    expect(dependenciesAreInstalled(root)).toBe(false);
  });

  test.each([
    ['all packages of the lockfile', { 'node_modules/zod': zod }, true],
    ['one more than the lockfile', { 'node_modules/zod': zod, 'node_modules/extra': zod }, true],
    ['an older version', { 'node_modules/zod': { ...zod, version: '3.0.0' } }, false],
    ['other bytes', { 'node_modules/zod': { ...zod, integrity: 'sha512-b' } }, false],
    ['nothing', {}, false],
  ])('tells whether node_modules holds %s', (_, installed, expected) => {
    const foreign = { version: '1.0.0', integrity: 'sha512-c', optional: true };
    write('package-lock.json', lock({ '': {}, 'node_modules/zod': zod, 'node_modules/foreign': foreign }));
    write('node_modules/.package-lock.json', lock(installed));
    expect(dependenciesAreInstalled(root)).toBe(expected);
  });
});

describe('build-native', () => {
  test('takes the headers beside Node, unless npm is told of others', () => {
    write('usr/include/node/node_api.h', '');
    write('other/include/node/node_api.h', '');
    const execPath = join(root, 'usr/bin/node');
    expect(findHeaders({}, execPath)).toBe(join(root, 'usr'));
    expect(findHeaders({ npm_config_nodedir: join(root, 'other') }, execPath)).toBe(join(root, 'other'));
    expect(findHeaders({ npm_config_nodedir: join(root, 'gone') }, execPath)).toBe(join(root, 'usr'));
    expect(findHeaders({}, join(root, 'elsewhere/bin/node'))).toBeUndefined();
  });

  test('names the headers when their download failed, and the line when a source does not compile', () => {
    const download = 'gyp ERR! stack FetchError: request to https://nodejs.org/download/ failed, reason: ENOTFOUND';
    expect(explainFailure(download, undefined)).toContain('npm_config_nodedir');
    const compiler =
      'make: Entering directory\n../native/a.cc:3:5: error: x was not declared\n  3 | x\nmake: *** [a.o]';
    expect(explainFailure(compiler, '/usr')).toContain('native/a.cc:3:5: error: x was not declared');
    expect(explainFailure(compiler, '/usr')).not.toContain('Entering directory');
  });
});

describe('setup', () => {
  /** Stands for `npm ci`: links the packages that the two compilers need, from this checkout. */
  const NPM = `
    import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
    mkdirSync('node_modules', { recursive: true });
    for (const name of ['typescript', 'node-gyp']) {
      symlinkSync(${JSON.stringify(join(repository, 'node_modules'))} + '/' + name, 'node_modules/' + name);
    }
    writeFileSync('node_modules/.package-lock.json', JSON.stringify({ packages: {} }));`;
  const ADDON = `
    #include <node_api.h>
    static napi_value init(napi_env, napi_value exports) { return exports; }
    NAPI_MODULE(limbeck, init)`;
  const GYP = `{'targets': [{'target_name': 'limbeck', 'sources': ['native/addon.cc']}]}`;
  const TSCONFIG = { compilerOptions: { rootDir: 'src', outDir: 'dist', types: [] }, include: ['src'] };

  function setup(env: NodeJS.ProcessEnv = {}) {
    const { npm_config_nodedir, ...inherited } = process.env;
    const { status, stderr } = runProgram(process.execPath, [join(root, 'scripts/setup.mjs')], {
      env: { ...inherited, npm_execpath: join(root, 'npm-cli.js'), ...env },
    });
    return { status, stderr, steps: [...stderr.matchAll(/\((npm ci|node-gyp|tsc)\)/g)].map(([, name]) => name) };
  }

  beforeEach(() => {
    for (const name of ['setup', 'build-native', 'stamps']) {
      cpSync(join(repository, `scripts/${name}.mjs`), join(root, `scripts/${name}.mjs`));
    }
    write('package.json', '{ "type": "module" }');
    write('package-lock.json', JSON.stringify({ packages: { '': {} } }));
    write('npm-cli.js', NPM);
    write('native/addon.cc', ADDON);
    write('binding.gyp', GYP);
    write('tsconfig.json', JSON.stringify(TSCONFIG));
    write('src/index.ts', 'export const one: number = 1;');
  });

  test('does each step once, without a home folder, and then only those whose inputs changed', () => {
    const first = setup({ HOME: '' });
    expect(first).toMatchObject({ status: 0, steps: ['npm ci', 'node-gyp', 'tsc'] });
    expect(loadAddon([join(root, 'build/Release/limbeck.node')])).toEqual({});

    expect(setup()).toEqual({ status: 0, stderr: '', steps: [] });

    write('src/index.ts', 'export const two: number = 2;');
    expect(setup()).toMatchObject({ status: 0, steps: ['tsc'] });
    expect(readFileSync(join(root, 'dist/index.js'), 'utf8')).toContain('two');

    const { mtimeMs } = statSync(join(root, 'build/Release/limbeck.node'));
    write('native/addon.cc', `${ADDON}\nint unused_but_new = 1;`);
    expect(setup()).toMatchObject({ status: 0, steps: ['node-gyp'] });
    expect(statSync(join(root, 'build/Release/limbeck.node')).mtimeMs).toBeGreaterThan(mtimeMs);
  });

  test('shows what does not compile, fails, and tries again', () => {
    write('src/index.ts', "export const one: number = 'one';");
    write('native/addon.cc', 'int broken(');
    const native = setup();
    expect(native.status).toBe(1);
    expect(native.stderr).toContain('native/addon.cc');
    expect(native.stderr).toContain('does not compile');
    write('native/addon.cc', ADDON);
    const types = setup();
    expect(types.status).toBe(1);
    expect(types.stderr).toContain('src/index.ts(1,14): error TS2322');
    expect(setup().steps).toEqual(['tsc']);
  });

  test('names the tools to install when there are none', () => {
    const { status, stderr } = setup({ PATH: join(root, 'empty') });
    expect(status).toBe(1);
    expect(stderr).toContain('not found: a C++ compiler (g++), make, Python (python3). Install it');
    expect(existsSync(join(root, 'dist'))).toBe(false);
  });
});

describe('loadAddon', () => {
  test('says where it looked and how to compile, when there is no addon', () => {
    const missing = join(root, 'limbeck.node');
    expect(() => loadAddon([missing])).toThrow(
      expect.objectContaining({ code: 'ERR_NATIVE_ADDON', message: expect.stringContaining(missing) }),
    );
    expect(() => loadAddon([missing])).toThrow('build-native.mjs');
  });

  test('keeps what the loader said, when the addon does not fit', () => {
    const file = write('limbeck.node', 'no shared library');
    expect(() => loadAddon([join(root, 'gone.node'), file])).toThrow(
      expect.objectContaining({ code: 'ERR_NATIVE_ADDON', cause: expect.any(Error) }),
    );
  });
});
