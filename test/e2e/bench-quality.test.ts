import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { QualityReport, QualityRow } from '../../src/index.js';

const command = join(import.meta.dirname, '../../dist/cli/main.js');
const example = join(import.meta.dirname, '../../examples/movietweetings');
let folder: string;
let config: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'limbeck-bench-'));
  config = join(folder, 'bench.json');
  const architecture = { hiddenSize: 32, numHiddenLayers: 1, numAttentionHeads: 2, maxHistory: 20, dropout: 0.2 };
  writeFileSync(
    config,
    JSON.stringify({
      title: 'A cut of MovieTweetings',
      seeds: [0, 1],
      data: {
        interactions: {
          path: join(example, 'interactions.csv.gz'),
          columns: { user: 'user', item: 'item', time: 'time' },
        },
        items: { path: join(example, 'items.csv.gz'), columns: { id: 'id', text: ['title', 'year', 'genres'] } },
        // The well-known films and those who watch many of them: a hundred items, and a few hundred users.
        denoise: { minUserInteractions: 12, minItemInteractions: 60 },
      },
      published: [{ name: 'a paper', source: 'its table 2', recallAt10: 0.2, ndcgAt10: 0.1 }],
      teacher: {
        architecture: { hiddenSize: 16, numHiddenLayers: 1, numAttentionHeads: 2, maxPositionEmbeddings: 64 },
        tokenizer: { vocabSize: 400 },
        training: { epochs: 1, batchTokens: 1024 },
      },
      corpus: { maxHistory: 3, heldOut: 0.1 },
      knowledge: { components: 16 },
      sequenceTeacher: { architecture, training: { epochs: 4, learningRate: 0.005, batchTokens: 1024 } },
      student: {
        architecture,
        training: { epochs: 8, learningRate: 0.005, batchTokens: 1024, losses: { ce: 0.7, kd: 0.3, gate: 1 } },
      },
    }),
  );
});
afterAll(() => {
  rmSync(folder, { recursive: true });
});

/** Makes a program kill itself when it says on stderr that a part begins: its killer might be too late. */
const killedAt = (part: string) => {
  const program = `const { stderr } = process;
    const { write } = stderr;
    stderr.write = (text, ...rest) => {
      if (String(text).includes(${JSON.stringify(part)})) process.kill(process.pid, 'SIGKILL');
      return write.call(stderr, text, ...rest);
    };`;
  return ['--import', `data:text/javascript,${encodeURIComponent(program)}`];
};

/** Runs the command, which is killed when it says on stderr that a part begins. */
function bench(
  flags: readonly string[],
  killAt?: string,
): Promise<{ code: number | null; stdout: string; stderr: string }> {
  const args = [command, 'bench', 'quality', '--data', config, '--threads', '1', ...flags];
  const setup = killAt === undefined ? [] : killedAt(killAt);
  const child = spawn(process.execPath, [...setup, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  let stdout = '';
  let stderr = '';
  child.stdout.on('data', (text) => {
    stdout += text;
  });
  child.stderr.on('data', (text) => {
    stderr += text;
  });
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) => resolve({ code, stdout, stderr }));
  });
}

const reportOf = (output: string): QualityReport => JSON.parse(readFileSync(join(output, 'quality.json'), 'utf8'));

/** Everything but what a clock says. */
function withoutTimes({ rows, seeds, data, curves }: QualityReport) {
  const timeless = rows.map((row) =>
    Object.fromEntries(Object.entries(row).filter(([name]) => !/Latency|secondsPerEpoch/.test(name))),
  );
  return { rows: timeless, seeds, data, curves };
}

function ranksOf(output: string): Map<string, string> {
  // A kill may leave temporary names behind.
  const runs = readdirSync(join(output, 'runs')).filter((name) => /-[0-9a-f]{8}$/.test(name));
  return new Map(
    runs.map((run) => [run, readFileSync(join(output, 'runs', run, 'ranks.safetensors')).toString('base64')]),
  );
}

describe('limbeck bench quality', () => {
  let whole: string;
  let stdout: string;
  let rows: Map<string, QualityRow>;
  beforeAll(async () => {
    whole = join(folder, 'whole');
    const result = await bench(['--output', whole]);
    expect(result.stderr).not.toContain('error');
    expect(result.code).toBe(0);
    stdout = result.stdout;
    rows = new Map(reportOf(whole).rows.map((row) => [row.key, row]));
  });

  test('has a row for each baseline, the teacher, each signal alone and all together', () => {
    expect([...rows.keys()]).toEqual([
      'popularity',
      'item-knn',
      'plain',
      'teacher',
      'vectors',
      'soft-labels',
      'hidden-states',
      'initialisation',
      'interpolation',
      'rare-items',
      'vectors-rare-items',
      'distilled',
    ]);
    for (const { name } of rows.values()) expect(stdout).toContain(name);
    expect(stdout).toContain('a paper');
    expect(stdout).toContain('its table 2');
  });

  test('gives every mean within its interval, students of two seeds, and who is paired with whom', () => {
    for (const row of rows.values()) {
      for (const metric of ['recallAt10', 'ndcgAt10'] as const) {
        const [low, high] = row.intervals[metric];
        expect(row[metric]).toBeGreaterThan(0);
        expect(low).toBeLessThan(row[metric]);
        expect(high).toBeGreaterThan(row[metric]);
        // 2·1.96·√(p(1 − p)/n), for p = 1/2, is the width of the widest interval that n users can give; a tenth more for
        // the noise of resampling.
        expect(high - low).toBeLessThan(1.1 * 3.92 * Math.sqrt(0.25 / row.metrics.numUsers));
      }
      expect(row.p50LatencyMs).toBeGreaterThan(0);
      expect(row.parameters).toBeGreaterThan(0);
      const difference = row.differenceToPlain;
      if (row.key === 'plain') expect(difference).toBeUndefined();
      else expect(difference?.difference).toBeCloseTo(row.ndcgAt10 - (rows.get('plain')?.ndcgAt10 ?? 0), 10);
      const mean = row.bySeed.reduce((sum, { ndcgAt10 }) => sum + ndcgAt10, 0) / row.bySeed.length;
      expect(mean).toBeCloseTo(row.ndcgAt10, 10);
    }
    expect(rows.get('plain')?.seeds).toEqual([0, 1]);
    expect(rows.get('distilled')?.bySeed).toHaveLength(2);
    expect(rows.get('popularity')?.seeds).toEqual([]);
  });

  test('learns: trained systems beat popularity, and no student is larger than the plain one', () => {
    const plain = rows.get('plain');
    expect(plain?.ndcgAt10).toBeGreaterThan(rows.get('popularity')?.ndcgAt10 ?? 1);
    for (const key of ['vectors', 'soft-labels', 'distilled']) {
      expect(rows.get(key)?.parameters).toBe(plain?.parameters);
    }
  });

  test('makes students with raised rare items from those that were trained, without another training', () => {
    const runs = readdirSync(join(whole, 'runs')).filter((name) => name.startsWith('rare-items-0-'));
    expect(runs).toHaveLength(1);
    const plain = rows.get('plain');
    expect(rows.get('rare-items')?.bestEpochs).toEqual(plain?.bestEpochs);
    expect(rows.get('rare-items')?.rareItemsWeights).toHaveLength(2);
    expect(plain?.rareItemsWeights).toBeUndefined();
    expect(existsSync(join(whole, 'runs', runs[0] ?? '', 'model/model.safetensors'))).toBe(true);
  });

  test('says what ran it, and draws the page without anything from outside', () => {
    const { machine, commit, version, settings } = reportOf(whole);
    expect(machine.threads).toBe(1);
    expect(machine.features.length).toBeGreaterThan(0);
    expect(version).toMatch(/^\d/);
    if (commit !== undefined) expect(commit).toMatch(/^[0-9a-f]{40}(-dirty)?$/);
    expect(settings).toMatchObject({ seeds: [0, 1] });
    const page = readFileSync(join(whole, 'quality.html'), 'utf8');
    expect(page).toContain('distilled student');
    expect(page.match(/<svg /g)?.length).toBeGreaterThanOrEqual(3);
    expect(page).not.toMatch(/(src|href)=/);
  });

  test('killed in the teacher and in a student, it ends with the same ranks and figures', async () => {
    const broken = join(folder, 'broken');
    expect((await bench(['--output', broken], 'sequence teacher')).code).toBeNull();
    expect((await bench(['--output', broken], 'hidden-states, seed 1')).code).toBeNull();
    const finished = readdirSync(join(broken, 'runs'));
    expect(finished.some((name) => name.startsWith('plain-0-'))).toBe(true);
    expect(existsSync(join(broken, 'quality.json'))).toBe(false);
    const last = await bench(['--output', broken]);
    expect(last.code).toBe(0);
    expect(last.stderr).not.toContain('plain, seed 0'); // finished before, not run again
    expect(ranksOf(broken)).toEqual(ranksOf(whole));
    expect(withoutTimes(reportOf(broken))).toEqual(withoutTimes(reportOf(whole)));
  });

  test("leaves a distillation's teacher in the same output as it is", async () => {
    const output = join(folder, 'distilled');
    const published = join(output, 'teacher', 'model.safetensors');
    mkdirSync(join(output, 'teacher'), { recursive: true });
    writeFileSync(published, 'trained for days');
    expect((await bench(['--output', output, '--rows', 'teacher'])).code).toBe(0);
    expect(readFileSync(published, 'utf8')).toBe('trained for days');
    expect(readdirSync(join(output, 'quality-teacher'))).toContain('run.json');
  });

  test('runs the rows and seeds that are asked for, and keeps what was run before', async () => {
    const before = ranksOf(whole);
    const {
      code,
      stdout: text,
      stderr,
    } = await bench(['--output', whole, '--rows', 'popularity,plain', '--seeds', '0,1,2', '--json']);
    expect(code).toBe(0);
    expect(stderr).toContain('plain, seed 2');
    expect(stderr).not.toContain('plain, seed 1');
    const summary = JSON.parse(text.trim().split('\n').at(-1) ?? '') as { rows: QualityRow[] };
    expect(summary.rows.map(({ key }) => key)).toEqual(['popularity', 'plain']);
    expect(summary.rows[1]?.seeds).toEqual([0, 1, 2]);
    const after = ranksOf(whole);
    for (const [run, ranks] of before) expect(after.get(run)).toBe(ranks);
  });

  test.each([
    [['--rows', 'plain,magic'], 2, 'there is no row "magic"'],
    [['--data', 'beauty'], 2, 'LIMBECK_DATA'],
    [['--data', 'beauty', '--path', '/nowhere'], 3, 'sequences.txt'],
    [['--path', '/nowhere'], 2, '--path'],
  ])('refuses %j', async (flags, expected, message) => {
    const { code, stderr } = await bench(['--output', join(folder, 'refused'), ...flags]);
    expect(stderr).toContain(message);
    expect(code).toBe(expected);
  });
});

const beauty = join(import.meta.dirname, '../../../shared/data/amazon-beauty');
const hasBeauty = existsSync(join(beauty, 'sequences.txt'));
test.skipIf(!hasBeauty)(
  `--data beauty reads the published files in place${hasBeauty ? '' : ` (skipped: no ${beauty})`}`,
  async () => {
    const output = join(folder, 'beauty');
    const { code } = await bench([
      '--data',
      'beauty',
      '--path',
      beauty,
      '--rows',
      'popularity,item-knn',
      '--output',
      output,
    ]);
    expect(code).toBe(0);
    const { rows, data, published } = reportOf(output);
    expect(data).toEqual({ users: 22_363, items: 12_101, interactions: 198_502, testCases: 22_363 });
    expect(published[0]).toMatchObject({ recallAt10: 0.0921, ndcgAt10: 0.0531 });
    const [popularity, neighbors] = rows;
    // What an independent float64 computation gives.
    expect(neighbors?.recallAt10).toBeCloseTo(0.06502, 4);
    expect(neighbors?.ndcgAt10).toBeCloseTo(0.03954, 4);
    expect(neighbors?.ndcgAt10).toBeGreaterThan(popularity?.ndcgAt10 ?? 1);
    expect(popularity?.recallOnColdItems?.mean).toBe(0);
    expect(neighbors?.recallOnUnseenItems?.mean).toBe(0);
    expect(neighbors?.recallOnColdItems?.cases).toBe(4732);
    expect(neighbors?.recallOnUnseenItems?.cases).toBe(138);
  },
  120_000,
);
