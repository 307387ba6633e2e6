import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { run } from '../../src/cli/main.js';
import { createEngine, type DistillOptions, type Engine } from '../../src/index.js';
import { tinyOptions } from '../support/tiny.js';

let folder: string;
let engine: Engine;
let config: string;
let options: DistillOptions;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'limbeck-import-'));
  engine = await createEngine({ threads: 1 });
  const { languageStudent: _none, ...rest } = tinyOptions(folder);
  options = rest;
  config = join(folder, 'config.json');
  writeFileSync(config, JSON.stringify({ data: options.data }));
  // Every user of the tiny data walks the catalogue; the rankings go on where the training history ends, by title.
  const rows = Array.from({ length: 60 }, (_, user) => {
    const next = [10, 11, 12, 13].map((step) => `Film number ${(user * 7 + step) % 40}`);
    return `u${user}\t${next.join('|')}`;
  });
  writeFileSync(join(folder, 'rankings.tsv'), `who\tfilms\n${rows.join('\n')}\n`);
});
afterAll(() => {
  engine.dispose();
  rmSync(folder, { recursive: true });
});

async function limbeck(...argv: string[]) {
  const stdout = new PassThrough();
  const stderr = new PassThrough();
  const exitCode = await run(argv, { stdout, stderr });
  return { exitCode, stdout: String(stdout.read() ?? ''), stderr: String(stderr.read() ?? '') };
}

const columns = ['--user', 'who', '--items', 'films', '--separator', '|', '--item-column', 'title'];

describe('limbeck knowledge import', () => {
  test('writes rankings that a distilled student learns from, and the plain one does not', async () => {
    const path = join(folder, 'made/rankings.safetensors');
    const source = join(folder, 'rankings.tsv');
    const imported = await limbeck(
      'knowledge',
      'import',
      source,
      '--data',
      config,
      '--output',
      path,
      ...columns,
      '--json',
    );
    expect(imported.stderr).toBe('');
    expect(imported.exitCode).toBe(0);
    expect(JSON.parse(imported.stdout)).toMatchObject({ rowsRead: 60, rankings: 60, unknownItems: 0, meanLength: 4 });

    const train = (output: string, rankings?: DistillOptions['rankings']) =>
      engine.distill({ ...options, output: join(folder, output), ...(rankings && { rankings }) });
    const without = await train('without');
    const taught = await train('taught', { path, weight: 5 });
    const ndcg = ({ report }: typeof taught, name: string) =>
      report.rows.find((row) => row.name === name)?.ndcgAt10 ?? 0;
    expect(ndcg(taught, 'student without distillation')).toBe(ndcg(without, 'student without distillation'));
    // What the student learns is measured where a teacher that disagrees with the clicks can be seen: ranking-signal.test.ts.
    expect(ndcg(taught, 'distilled student')).not.toBe(ndcg(without, 'distilled student'));
    expect(JSON.parse(readFileSync(join(folder, 'taught/distill.json'), 'utf8')).rankings).toMatchObject({ weight: 5 });
    for (const { student, teacher } of [without, taught]) {
      student.dispose();
      teacher.dispose();
    }
  });

  test.each([
    [['--item-column', 'name'], 3, 'no column "name"'],
    [['--where', 'films'], 2, '--where: expected COLUMN=VALUE'],
    [['--items', 'movies'], 3, 'no column "movies"'],
    [['--format', 'xml'], 2, 'rankings.format'],
  ])('refuses %j', async (flags, exitCode, message) => {
    const output = join(folder, 'refused.safetensors');
    const result = await limbeck(
      ...[
        'knowledge',
        'import',
        join(folder, 'rankings.tsv'),
        '--data',
        config,
        '--output',
        output,
        ...columns,
        ...flags,
      ],
    );
    expect(result.stderr).toContain(message);
    expect(result.exitCode).toBe(exitCode);
  });
});
