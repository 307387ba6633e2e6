import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { readReport } from '../../../src/cli/read-report.js';
import { formatTable } from '../../../src/evaluate/table.js';
import { sampleReport } from '../evaluate/sample-report.js';

const directory = mkdtempSync(join(tmpdir(), 'limbeck-cli-'));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

function write(report: unknown): string {
  const path = join(directory, 'report.json');
  writeFileSync(path, JSON.stringify(report));
  return path;
}

describe('readReport', () => {
  it('gives back the table of a saved report', async () => {
    const { title, rows } = await readReport(write(sampleReport));
    expect(title).toBe(sampleReport.title);
    expect(formatTable(rows)).toBe(formatTable(sampleReport.rows));
  });

  it('reads a latency that was not measured', async () => {
    const row = { ...sampleReport.rows[0], p50LatencyMs: Number.NaN };
    const { rows } = await readReport(write({ ...sampleReport, rows: [row] }));
    expect(rows[0]?.p50LatencyMs).toBeNaN();
  });

  it.each([
    ['rows', { ...sampleReport, rows: 'none' }],
    ['rows.0.mrr', { ...sampleReport, rows: [{ ...sampleReport.rows[0], mrr: 'high' }] }],
    ['title', {}],
  ])('names what is wrong: %s', async (key, report) => {
    await expect(readReport(write(report))).rejects.toMatchObject({
      code: 'ERR_FILE_FORMAT',
      message: expect.stringContaining(`: ${key}: `),
    });
  });
});
