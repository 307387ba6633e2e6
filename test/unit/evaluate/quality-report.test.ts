import { describe, expect, it } from 'vitest';
import { renderQualityReport } from '../../../src/evaluate/quality-report.js';
import { formatQualityTable } from '../../../src/evaluate/quality-table.js';
import { sampleQuality } from './sample-quality.js';

describe('the table', () => {
  it('aligns ours and the published rows, and says how they were measured', () => {
    const lines = formatQualityTable(sampleQuality).split('\n');
    const line = (name: string) => lines.find((one) => one.startsWith(name)) ?? '';
    expect(line('distilled student')).toContain('0.0631 ± 0.0063');
    expect(line('distilled student')).toContain('+0.0117 [+0.0094, +0.0140]');
    expect(line('plain student')).not.toContain('[');
    expect(
      line('SASRec & others')
        .trim()
        .split(/\s{2,}/),
    ).toEqual(['SASRec & others', '0.0921', '0.0531']);
    const end = (text: string, part: string) => text.indexOf(part) + part.length;
    expect(end(line('SASRec & others'), '0.0531')).toBe(end(lines[0] ?? '', 'ndcg@10'));
    expect(lines.join('\n')).toContain('fewer than 5 training interactions (3300 users)');
    expect(lines.at(-1)).toBe('SASRec & others: a paper, table 2');
  });

  it('lets no name command the terminal', () => {
    const published = [{ name: 'a\u001b[2J', source: 'b\u0007', recallAt10: 0.1, ndcgAt10: 0.1 }];
    expect(formatQualityTable({ ...sampleQuality, published })).not.toMatch(/[^\P{Cc}\n]/u);
  });

  it('has rows', () => {
    expect(() => formatQualityTable({ ...sampleQuality, rows: [] })).toThrow(
      expect.objectContaining({ code: 'ERR_EMPTY_DATA' }),
    );
  });
});

describe('the page', () => {
  const page = renderQualityReport(sampleQuality);

  it('shows rows, sources, the machine and plots', () => {
    for (const text of ['distilled student', '+0.0117', 'a paper, table 2', 'A processor', '0123456789abcdef']) {
      expect(page).toContain(text);
    }
    expect(page.match(/<svg /g)).toHaveLength(4);
    expect(page).toContain('<b>+0.0117</b>');
  });

  it('says how many cases asked for what is never recommended', () => {
    expect(page).not.toContain('of their history');
    const data = { ...sampleQuality.data, repeatedTargets: 1234 };
    expect(renderQualityReport({ ...sampleQuality, data })).toContain(
      '(1,234 others asked for an item of their history)',
    );
  });

  it('escapes what others wrote', () => {
    expect(page).toContain('Beauty &lt;5-core&gt;');
    expect(page).toContain('SASRec &amp; others');
    expect(page).not.toContain('<script>');
  });

  it('leaves out plots without values', () => {
    const rows = sampleQuality.rows.slice(0, 1).map(({ recallOnColdItems: _cold, ...row }) => row);
    const small = renderQualityReport({ ...sampleQuality, rows, published: [], curves: [] });
    expect(small.match(/<svg /g)).toHaveLength(1);
  });
});
