import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { checkLayers } from '../../scripts/check-layers.mjs';

let root: string;

function write(path: string, text: string): void {
  mkdirSync(dirname(join(root, path)), { recursive: true });
  writeFileSync(join(root, path), text);
}

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'limbeck-layers-'));
});

afterEach(() => {
  rmSync(root, { recursive: true });
});

describe('TypeScript', () => {
  test.each([
    ['src/cli/main.ts', '../server/server.js'],
    ['src/server/server.ts', '../index.js'],
    ['src/index.ts', './engine.js'],
    ['src/engine.ts', './evaluate/report.js'],
    ['src/evaluate/report.ts', '../feedback/event.js'],
    ['src/feedback/event.ts', '../recommend/recommender.js'],
    ['src/recommend/recommender.ts', '../student/student.js'],
    ['src/student/student.ts', '../prepare/prepare.js'],
    ['src/student/student.ts', './losses.js'],
    ['src/formats/checkpoint.ts', '../binding.js'],
    ['src/binding.ts', './errors.js'],
  ])('%s may import %s', (file, target) => {
    write(file, `import type { Thing } from '${target}';\nexport const thing = {} as Thing;\n`);
    expect(checkLayers(root)).toEqual([]);
  });

  test.each([
    ['src/server/server.ts', '../cli/main.js'],
    ['src/index.ts', './cli/main.js'],
    ['src/prepare/prepare.ts', '../engine.js'],
    ['src/student/student.ts', '../recommend/recommender.js'],
    ['src/recommend/recommender.ts', '../feedback/event.js'],
    ['src/feedback/event.ts', '../evaluate/report.js'],
    ['src/teacher/teacher.ts', '../knowledge/knowledge.js'],
    ['src/formats/checkpoint.ts', '../prepare/prepare.js'],
    ['src/binding.ts', './formats/checkpoint.js'],
    ['src/errors.ts', './binding.js'],
    ['src/helpers/misc.ts', '../errors.js'],
  ])('%s may not import %s', (file, target) => {
    write(file, `// import '../nothing.js'\n\nimport { thing } from '${target}';\nexport { thing };\n`);
    expect(checkLayers(root)).toEqual([
      expect.objectContaining({ file, line: 3, message: expect.stringContaining('allowed') }),
    ]);
  });

  test.each([
    ["import type { A } from '../server/schemas.js';", true],
    ["export type { A } from '../server/schemas.js';", true],
    ["import { a } from './other.js';", true],
    ["import { a } from '../server/schemas.js';", false],
    ["import type { A } from '../server/server.js';", false],
    ["import { z } from 'zod';", false],
    ["import type { A } from '../index.js';", false],
  ])('the client may say %s: %s', (statement, isAllowed) => {
    write('src/client/client.ts', `import type { B } from '../server/schemas.js';\n${statement}\n`);
    expect(checkLayers(root)).toHaveLength(isAllowed ? 0 : 1);
  });

  test.each([["export { a } from '../engine.js';"], ["await import('../engine.js');"], ["import '../engine.js';"]])(
    'the statement %s counts',
    (statement) => {
      write('src/prepare/prepare.ts', statement);
      expect(checkLayers(root).map(({ message }) => message)).toEqual([
        "prepare imports '../engine.js' (engine); allowed: formats, binding, arguments, errors",
      ]);
    },
  );

  test('a circle of imports is reported once', () => {
    write('src/student/a.ts', "import './b.js';");
    write('src/student/b.ts', "import './c.js';");
    write('src/student/c.ts', "import './a.js';");
    expect(checkLayers(root).map(({ message }) => message)).toEqual([
      'imports itself in a circle: src/student/a.ts → src/student/b.ts → src/student/c.ts → src/student/a.ts; ' +
        'allowed: none',
    ]);
  });

  test('two ways to one file are no circle', () => {
    write('src/student/a.ts', "import './b.js';\nimport './c.js';");
    write('src/student/b.ts', "import './d.js';");
    write('src/student/c.ts', "import './d.js';");
    write('src/student/d.ts', 'export {};');
    expect(checkLayers(root)).toEqual([]);
  });

  test('only binding.ts loads the addon', () => {
    const load = "import { createRequire } from 'node:module';\ncreateRequire(import.meta.url)('./limbeck.node');\n";
    write('src/binding.ts', load);
    expect(checkLayers(root)).toEqual([]);
    write('src/engine.ts', load);
    expect(checkLayers(root)).toEqual([expect.objectContaining({ file: 'src/engine.ts', line: 2 })]);
  });
});

describe('C++', () => {
  beforeEach(() => {
    for (const part of ['core', 'cpu', 'cuda', 'ops', 'model', 'train', 'retrieve', 'accelerator', 'napi']) {
      write(`native/${part}/x.h`, '#pragma once\n');
    }
    write('native/cuda/api.h', '#pragma once\n');
  });

  test.each([
    ['napi', '"train/x.h"'],
    ['napi', '<napi.h>'],
    ['train', '"model/x.h"'],
    ['retrieve', '"ops/x.h"'],
    ['model', '"core/x.h"'],
    ['ops', '"cpu/x.h"'],
    ['napi', '"accelerator/x.h"'],
    ['accelerator', '"cuda/api.h"'],
    ['accelerator', '"train/x.h"'],
    ['cuda', '"model/x.h"'],
    ['cpu', '<immintrin.h>'],
    ['cuda', '<cuda_runtime.h>'],
    ['cpu', '"x.h"'],
  ])('%s may include %s', (part, header) => {
    write(`native/${part}/y.cc`, `#include ${header}\n`);
    expect(checkLayers(root)).toEqual([]);
  });

  test.each([
    ['core', '"cpu/x.h"'],
    ['cpu', '"ops/x.h"'],
    ['cpu', '"cuda/x.h"'],
    ['cuda', '"cpu/x.h"'],
    ['ops', '"cuda/x.h"'],
    ['ops', '"cuda/api.h"'],
    ['accelerator', '"cuda/x.h"'],
    ['accelerator', '"retrieve/x.h"'],
    ['train', '"accelerator/x.h"'],
    ['napi', '"cuda/api.h"'],
    ['ops', '"model/x.h"'],
    ['model', '"train/x.h"'],
    ['model', '"retrieve/x.h"'],
    ['train', '"retrieve/x.h"'],
    ['train', '"napi/x.h"'],
    ['model', '<napi.h>'],
    ['ops', '<node_api.h>'],
    ['cpu', '<cuda_runtime.h>'],
    ['ops', '<cublasLt.h>'],
    ['misc', '"core/x.h"'],
  ])('%s may not include %s', (part, header) => {
    write(`native/${part}/y.cc`, `#pragma once\n\n  #  include ${header}\n`);
    expect(checkLayers(root)).toEqual([
      expect.objectContaining({ file: `native/${part}/y.cc`, line: 3, message: expect.stringContaining('allowed') }),
    ]);
  });
});
