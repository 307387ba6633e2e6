import { describe, expect, it } from 'vitest';
import { renderReport } from '../../../src/evaluate/report.js';
import type { DistillationReport } from '../../../src/evaluate/report-types.js';
import { sampleReport } from './sample-report.js';

const page = renderReport(sampleReport);

/** Opening and closing tags in order; throws on a pair that does not match. */
function openTags(html: string): string[] {
  const open: string[] = [];
  for (const [, slash, name = '', selfClosing] of html.matchAll(/<(\/?)([a-z][a-z0-9]*)\b[^>]*?(\/?)>/gi)) {
    if (selfClosing || ['meta', '!doctype'].includes(name)) continue;
    if (slash && open.pop() !== name) throw new Error(`</${name}> closes nothing`);
    if (!slash) open.push(name);
  }
  return open;
}

describe('renderReport', () => {
  it('shows every part in order', () => {
    const order = [
      '<h1>',
      '<time',
      '>Results<',
      '>The steps<',
      '>Loss<',
      '>Latency<',
      '>Data preparation<',
      '>Example users<',
      '<pre>',
    ];
    const positions = order.map((part) => page.indexOf(part));
    expect(positions).toEqual([...positions].sort((a, b) => a - b));
    expect(positions[0]).toBeGreaterThan(0);
  });

  it('is well formed, with unique ids', () => {
    expect(openTags(page)).toEqual([]);
    const ids = [...page.matchAll(/ id="([^"]*)"/g)].map((match) => match[1]);
    expect(new Set(ids).size).toBe(ids.length);
  });

  it('loads nothing and runs nothing', () => {
    expect(page).not.toMatch(/<(script|link|img|iframe|object|embed)\b|\bsrc=|\bhref=|url\(|@import|https?:|\son\w+=/i);
    expect(page).toContain(`content="default-src 'none'; style-src 'unsafe-inline'"`);
  });

  it('escapes text wherever it comes from', () => {
    const evil = '<script>alert("x")</script>';
    const item = { id: evil, text: evil };
    const hostile: DistillationReport = {
      ...sampleReport,
      title: evil,
      createdAt: evil,
      rows: sampleReport.rows.map((row) => ({ ...row, name: evil })),
      comparison: [{ name: evil, metric: 'ndcgAt10', difference: 0, interval: [0, 0] }],
      curves: [
        { name: evil, xLabel: evil, points: [{ x: 0, y: 0 }] },
        { name: `a: ${evil}`, xLabel: 'x', points: [] },
      ],
      preparation: { [evil]: evil, nested: { [evil]: [evil] } },
      steps: [{ step: 'prepare', seconds: 1, facts: { [evil]: evil } }],
      examples: [{ user: evil, history: [item], recommendations: [{ ...item, score: 1 }], next: item }],
      settings: { [evil]: evil },
    };
    const html = renderReport(hostile);
    expect(html).not.toContain('<script');
    expect(html).toContain('&lt;script&gt;');
    expect(openTags(html)).toEqual([]);
  });

  it('prints the best value of each quality column in bold, and no other', () => {
    const table = page.slice(page.indexOf('<table'), page.indexOf('</table>'));
    const rows = table.split('<tr').slice(2);
    expect(rows.map((row) => (row.match(/<b>/g) ?? []).length)).toEqual([0, 0, 4, 0]);
    expect(table).toContain(`<b>${sampleReport.rows[2]?.ndcgAt10.toFixed(4)}</b>`);
    expect(table).toContain('<th scope="row">teacher');
    expect(table).toContain('<th scope="col">ndcg@10</th>');
  });

  it('says whether the difference may be chance', () => {
    expect(page).toContain('leaves out zero');
    const even = {
      name: 'distilled minus plain',
      metric: 'ndcgAt10',
      difference: 0.001,
      interval: [-0.002, 0.004],
    } as const;
    expect(renderReport({ ...sampleReport, comparison: [even] })).toContain('contains zero');
  });

  it('puts curves with a common name into one chart', () => {
    expect(page.match(/id="curve-\d+-title"/g)).toHaveLength(2);
    expect(page).toMatch(/class="key"[^>]*><text[^>]*>soft labels</);
  });

  it('marks a recommendation that came next, and says so', () => {
    expect(page).toContain('recommended at place 2');
    expect(page).toContain('not among the first 5');
    expect(page.match(/class="hit"/g)).toHaveLength(4);
    expect(page).toContain('History, latest 10 of 22');
  });

  it('prints nested counts of the preparation', () => {
    expect(page).toMatch(/<th scope="rowgroup" colspan="2">dropped<.*\n.*duplicates<\/th><td>12</);
    expect(page).toContain('<td>198,502</td>');
  });

  it('renders a language model without a recommender', () => {
    const lm = {
      testLossByEpoch: [4.2, 3.9],
      perplexityByEpoch: [66.7, 49.4],
      teacherTestLoss: 3.4,
      teacherParameters: 124e6,
      studentParameters: 82e6,
    };
    const html = renderReport({ ...sampleReport, rows: [], comparison: [], examples: [], curves: [], lm });
    expect(html).toContain('distilled into a smaller language model');
    expect(html).toContain('124M → 82M parameters');
    expect(html).toContain('<td>49.4</td>');
    expect(html).toContain('test loss (nats a token)');
    expect(html).not.toContain('Example users');
    expect(openTags(html)).toEqual([]);
  });
});
