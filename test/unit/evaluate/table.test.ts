import { describe, expect, it } from 'vitest';
import { formatTable } from '../../../src/evaluate/table.js';
import { sampleReport } from './sample-report.js';

describe('formatTable', () => {
  it('aligns one line a system under the header', () => {
    const [header = '', rule = '', ...lines] = formatTable(sampleReport.rows).split('\n');
    expect(header).toMatch(/^system +recall@10 +ndcg@10 +f1@10 +mrr +parameters +p50 latency$/);
    expect(rule).toBe('─'.repeat(header.length));
    expect(lines.slice(0, 4).map((line) => line.length)).toEqual(Array(4).fill(header.length));
    expect(lines.map((line) => line.split('  ')[0])).toEqual([
      'popularity',
      'student without distillation',
      'teacher',
      'distilled student',
      'mean of 3 seeds; ± half the 95 % bootstrap interval over users',
    ]);
  });

  it('prints values with half the interval, and dashes where nothing was measured', () => {
    const [row] = sampleReport.rows;
    if (row === undefined) throw new Error('the sample has no rows');
    const ndcg = { ...row, ndcgAt10: 0.0531, intervals: { ...row.intervals, ndcgAt10: [0.05, 0.056] as const } };
    const table = formatTable([ndcg]);
    expect(table).toContain('0.0531 ± 0.0030');
    expect(table.split('\n')[2]).toMatch(/– +–$/);
    expect(table).toMatch(/\n± half/);
  });

  it('prints no control characters of a name', () => {
    const rows = sampleReport.rows.map((row) => ({ ...row, name: 'a\n\u001b[31mb' }));
    expect(formatTable(rows).split('\n')).toHaveLength(rows.length + 3);
    expect(formatTable(rows)).not.toContain('\u001b');
  });

  it('refuses no rows', () => {
    expect(() => formatTable([])).toThrow(expect.objectContaining({ code: 'ERR_EMPTY_DATA' }));
  });
});
