/** The top of the report: what was distilled, the results table, and the comparison with the plain student. */
import { formatDifference, formatLatency, formatMetric, formatNumber, formatParameters } from './format.js';
import { escapeHtml } from './html.js';
import type { ByCutOff } from './metrics.js';
import type { Comparison, DistillationReport, Interval, LanguageModelResults, ResultRow } from './report-types.js';

const qualityColumns = [
  ['recallAt10', 'recall@10'],
  ['ndcgAt10', 'ndcg@10'],
  ['f1At10', 'f1@10'],
  ['mrr', 'mrr'],
] as const;

const cutOffColumns = [
  ['recallAtK', 'recall'],
  ['precisionAtK', 'precision'],
  ['f1AtK', 'f1'],
  ['ndcgAtK', 'ndcg'],
  ['mrrAtK', 'mrr'],
  ['coverageAtK', 'coverage'],
] as const;

/** Title, date, and the few numbers that a reader came for. */
export function renderHeadline(report: DistillationReport): string {
  const { title, rows, lm, compressionRatio, comparison } = report;
  const student = rows.at(-1);
  const figures: [name: string, value: string, note: string][] = [];
  if (student !== undefined) {
    figures.push(['ndcg@10', formatMetric(student.ndcgAt10), formatInterval(student.intervals.ndcgAt10)]);
  }
  for (const { name, difference, interval } of comparison.slice(0, 1)) {
    figures.push(['gain in ndcg@10', formatDifference(difference), `${name} ${formatInterval(interval)}`]);
  }
  if (lm !== undefined) {
    const note = `teacher ${formatNumber(Math.exp(lm.teacherTestLoss))}`;
    figures.push(['test perplexity', formatNumber(lm.perplexityByEpoch.at(-1) ?? Number.NaN), note]);
  }
  const sizes = sizesOf(report);
  figures.push(['smaller than the teacher', `${formatNumber(Number(compressionRatio.toPrecision(3)))} ×`, sizes]);
  if (report.latency.p50Ms > 0) {
    figures.push(['median latency', formatLatency(report.latency.p50Ms), `p99 ${formatLatency(report.latency.p99Ms)}`]);
  }
  const tiles = figures.map(
    ([name, value, note]) =>
      `<div><dt>${name}</dt><dd>${escapeHtml(value)}<small>${escapeHtml(note)}</small></dd></div>`,
  );
  return `<header>
<h1>${escapeHtml(title)}</h1>
<p class="lead">${escapeHtml(whatWasDistilled(report))} ${renderDate(report.createdAt)}</p>
<dl class="figures">${tiles.join('')}</dl>
</header>`;
}

/** Results with intervals, the paired comparison, the language model's results, and every cut-off. */
export function renderResults({ rows, comparison, lm }: DistillationReport): string {
  const parts = [
    rows.length > 0 ? renderTable(rows) : '',
    ...comparison.map(renderComparison),
    lm === undefined ? '' : renderLanguageModel(lm),
    rows.length > 0 ? renderCutOffs(rows) : '',
  ].filter((part) => part !== '');
  return parts.length === 0 ? '' : `<section>\n<h2>Results</h2>\n${parts.join('\n')}\n</section>`;
}

function whatWasDistilled({ rows, lm }: DistillationReport): string {
  const subjects = [rows.length > 0 ? 'a recommender' : '', lm === undefined ? '' : 'a smaller language model'];
  const into = subjects.filter((subject) => subject !== '').join(' and ');
  const users = rows.at(-1)?.metrics.numUsers;
  const tested = users === undefined ? '' : ` and tested on ${formatNumber(users)} users`;
  return into === '' ? 'A language model, distilled.' : `A language model, distilled into ${into}${tested}.`;
}

function renderDate(createdAt: string): string {
  const date = new Date(createdAt);
  if (Number.isNaN(date.getTime())) return escapeHtml(createdAt);
  const iso = date.toISOString();
  return `<time datetime="${iso}">${iso.slice(0, 10)}, ${iso.slice(11, 16)} UTC</time>`;
}

function sizesOf({ rows, lm }: DistillationReport): string {
  const teacher = lm?.teacherParameters ?? rows.find((row) => row.name === 'teacher')?.parameters ?? 0;
  const student = lm?.studentParameters ?? rows.at(-1)?.parameters ?? 0;
  return teacher > 0 && student > 0 ? `${formatParameters(teacher)} → ${formatParameters(student)} parameters` : '';
}

function formatInterval([low, high]: Interval): string {
  // A no-break space: an interval is never split over two lines.
  return `[${formatMetric(low)},\u00a0${formatMetric(high)}]`;
}

/** Bold marks the best value of a column, all of them on a tie; the comparison is of the printed digits. */
function boldIfBest(text: string, column: readonly string[]): string {
  const best = column.reduce((a, b) => (Number(b) > Number(a) || Number.isNaN(Number(a)) ? b : a), '–');
  return text === best && text !== '–' ? `<b>${text}</b>` : text;
}

function renderTable(rows: readonly ResultRow[]): string {
  const columns = qualityColumns.map(([key]) => rows.map((row) => formatMetric(row[key])));
  const body = rows.map((row, index) => {
    const quality = qualityColumns.map(([key], column) => {
      const value = boldIfBest(formatMetric(row[key]), columns[column] ?? []);
      return `<td class="number">${value}<small>${formatInterval(row.intervals[key])}</small></td>`;
    });
    const tail = [row.p95LatencyMs, row.p99LatencyMs].map(formatLatency).join(', ');
    const latency = `<td class="number">${formatLatency(row.p50LatencyMs)}<small>${tail === '–, –' ? '' : tail}</small></td>`;
    const seeds = row.seeds.length > 1 ? `<small>${row.seeds.length} seeds</small>` : '';
    const mark = index === rows.length - 1 ? ' class="distilled"' : '';
    return `<tr${mark}><th scope="row">${escapeHtml(row.name)} ${seeds}</th>${quality.join('')}<td class="number">${formatParameters(row.parameters)}</td>${latency}</tr>`;
  });
  const names = ['system', ...qualityColumns.map(([, name]) => name), 'parameters', 'latency p50 (p95, p99)'];
  return `<p class="note" id="results-note">Full ranking over the catalogue, seen items masked, ties counted against the system. In brackets: 95 % bootstrap interval over users. Bold: best.</p>
<div class="scroll"><table aria-describedby="results-note">
<thead><tr>${names.map((name) => `<th scope="col">${name}</th>`).join('')}</tr></thead>
<tbody>
${body.join('\n')}
</tbody>
</table></div>`;
}

function renderComparison({ name, difference, interval }: Comparison): string {
  const [low, high] = interval;
  const verdict =
    low > 0 || high < 0
      ? 'The interval leaves out zero: the choice of test users does not explain the difference.'
      : 'The interval contains zero: on these users the difference may be chance.';
  const bounds = `[${formatDifference(low)},\u00a0${formatDifference(high)}]`;
  return `<p class="sentence">${escapeHtml(name)}, ndcg@10, paired by user: <b>${formatDifference(difference)}</b> ${bounds}. ${verdict}</p>`;
}

function renderLanguageModel(lm: LanguageModelResults): string {
  const row = (name: string, loss: number, perplexity: number, parameters: number) =>
    `<th scope="row">${name}</th><td>${formatMetric(loss)}</td><td>${formatNumber(perplexity)}</td><td>${formatParameters(parameters)}</td>`;
  const loss = lm.testLossByEpoch.at(-1) ?? Number.NaN;
  const perplexity = lm.perplexityByEpoch.at(-1) ?? Number.NaN;
  const names = ['language model', 'test loss (nats a token)', 'perplexity', 'parameters'];
  return `<div class="scroll"><table>
<thead><tr>${names.map((name) => `<th scope="col">${name}</th>`).join('')}</tr></thead>
<tbody>
<tr>${row('teacher', lm.teacherTestLoss, Math.exp(lm.teacherTestLoss), lm.teacherParameters)}</tr>
<tr class="distilled">${row('distilled student', loss, perplexity, lm.studentParameters)}</tr>
</tbody>
</table></div>`;
}

function renderCutOffs(rows: readonly ResultRow[]): string {
  const groups = rows.map(({ name, metrics }) => {
    const ks = Object.keys(metrics.recallAtK).map(Number);
    const lines = ks.map((k, index) => {
      const first = index === 0 ? `<th scope="rowgroup" rowspan="${ks.length}">${escapeHtml(name)}</th>` : '';
      const cells = cutOffColumns.map(([key]) => {
        const values: ByCutOff = metrics[key] ?? {};
        return `<td>${formatMetric(values[k] ?? Number.NaN)}</td>`;
      });
      return `<tr>${first}<td>${k}</td>${cells.join('')}</tr>`;
    });
    return `<tbody class="group">${lines.join('')}</tbody>`;
  });
  const names = ['system', 'k', ...cutOffColumns.map(([, name]) => name)];
  return `<details><summary>Every cut-off</summary><div class="scroll"><table>
<thead><tr>${names.map((name) => `<th scope="col">${name}</th>`).join('')}</tr></thead>
${groups.join('\n')}
</table></div></details>`;
}
