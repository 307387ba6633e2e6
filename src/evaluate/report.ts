import { checkObject } from '../arguments.js';
import { histogramChart, lineChart } from './chart.js';
import { formatDuration, formatKey, formatLatency, formatNumber } from './format.js';
import { escapeHtml, renderPage, shorten } from './html.js';
import { renderHeadline, renderResults } from './report-results.js';
import type { DistillationReport, ExampleUser, LossCurve, ReportItem, StepSummary } from './report-types.js';

const stepNames: Readonly<Record<StepSummary['step'], string>> = {
  prepare: 'Prepare the data',
  teacher: 'Pretrain the teacher',
  extract: 'Extract knowledge',
  initialise: 'Initialise the student',
  transfer: 'Transfer knowledge',
  fineTune: 'Fine-tune the student',
  recommend: 'Recommend',
  evaluate: 'Evaluate',
};

/** An item's text may be a whole description; a list entry shows its beginning. */
const MAX_ITEM_TEXT = 120;
/** Longest history that is shown in full; of a longer one the latest items. */
const MAX_HISTORY = 10;

/** What no report is without. */
const REPORT_KEYS = ['title', 'rows', 'comparison', 'curves', 'latency', 'preparation', 'steps', 'examples'] as const;

/**
 * The report as one HTML page that needs nothing else: no script, no font, no image, no network. All text from the data
 * is escaped, and a content security policy in the page forbids loading anything even if it were not.
 *
 * @returns UTF-8 HTML, to be written to a file as it is
 * @throws LimbeckError ERR_INVALID_ARGUMENT for what is no report
 */
export function renderReport(report: DistillationReport): string {
  checkObject(report, 'report', 'the report of a distillation', REPORT_KEYS);
  const sections = [
    renderHeadline(report),
    renderResults(report),
    renderSteps(report.steps),
    renderCurves(report),
    renderLatency(report),
    renderPreparation(report.preparation),
    renderExamples(report.examples),
    renderSettings(report.settings),
  ];
  return renderPage(report.title, sections);
}

function renderSteps(steps: readonly StepSummary[]): string {
  if (steps.length === 0) return '';
  const total = steps.reduce((sum, step) => sum + step.seconds, 0);
  const entries = steps.map(({ step, seconds, facts }) => {
    const pairs = Object.entries(facts).map(([key, value]) => {
      const text = typeof value === 'number' ? formatNumber(value) : value;
      return `<div><dt>${escapeHtml(formatKey(key))}</dt><dd>${escapeHtml(text)}</dd></div>`;
    });
    const name = `<div class="name">${stepNames[step]} <span class="time">${formatDuration(seconds)}</span></div>`;
    return `<li>${name}<dl class="facts">${pairs.join('')}</dl></li>`;
  });
  return `<section>
<h2>The steps</h2>
<p class="lead">${formatDuration(total)} from data to report.</p>
<ol class="steps">
${entries.join('\n')}
</ol>
</section>`;
}

function renderCurves({ curves, lm }: DistillationReport): string {
  const groups = new Map<string, { title: string; xLabel: string; curves: LossCurve[] }>();
  for (const curve of [...curves, ...languageModelCurves(lm)]) {
    const title = curve.name.split(': ')[0] ?? curve.name;
    const key = JSON.stringify([title, curve.xLabel]);
    const group = groups.get(key) ?? { title, xLabel: curve.xLabel, curves: [] };
    group.curves.push(curve);
    groups.set(key, group);
  }
  if (groups.size === 0) return '';
  const figures = [...groups.values()].map(({ title, xLabel, curves }, index) => {
    // Within a chart the shared beginning of the names is its title already.
    const series = curves.map(({ name, points }) => ({ name: name.slice(title.length + 2) || name, points }));
    const chart = lineChart({ id: `curve-${index}`, title, xLabel, yLabel: 'loss', series });
    return `<figure><figcaption>${escapeHtml(title)}</figcaption>${chart}</figure>`;
  });
  return `<section>\n<h2>Loss</h2>\n<div class="charts">\n${figures.join('\n')}\n</div>\n</section>`;
}

function languageModelCurves(lm: DistillationReport['lm']): LossCurve[] {
  if (lm === undefined) return [];
  const points = lm.testLossByEpoch.map((y, epoch) => ({ x: epoch + 1, y }));
  const teacher = points.map(({ x }) => ({ x, y: lm.teacherTestLoss }));
  return [
    { name: 'language model, test loss (nats a token): student', xLabel: 'epoch', points },
    { name: 'language model, test loss (nats a token): teacher', xLabel: 'epoch', points: teacher },
  ];
}

function renderLatency({ latency }: DistillationReport): string {
  if (latency.histogram.counts.length === 0) return '';
  const { p50Ms, p95Ms, p99Ms, meanMs } = latency;
  const calls = latency.histogram.counts.reduce((sum, count) => sum + count, 0);
  // No-break spaces keep a number and its unit on one line.
  const time = (milliseconds: number) => formatLatency(milliseconds).replace(' ', '\u00a0');
  const chart = histogramChart({ id: 'latency', title: 'Latency of one recommendation', latency });
  return `<section>
<h2>Latency</h2>
<p>Half of ${formatNumber(calls)} calls took less than ${time(p50Ms)}, 95 % less than ${time(p95Ms)} and 99 % less than ${time(p99Ms)}; the mean is ${time(meanMs)}.</p>
<figure class="wide">${chart}</figure>
</section>`;
}

function renderPreparation(preparation: DistillationReport['preparation']): string {
  const rows = preparationRows(preparation, 0);
  if (rows.length === 0) return '';
  return `<section>
<h2>Data preparation</h2>
<p class="note">What was read, what was dropped and why, and what was kept.</p>
<div class="scroll"><table>
<thead><tr><th scope="col">count</th><th scope="col">value</th></tr></thead>
<tbody>
${rows.join('\n')}
</tbody>
</table></div>
</section>`;
}

function preparationRows(record: object, depth: number): string[] {
  return Object.entries(record).flatMap(([key, value]: [string, unknown]) => {
    const name = Array.isArray(record) ? `${Number(key) + 1}` : escapeHtml(formatKey(key));
    const indent = depth > 0 ? ` style="padding-left:${0.9 + 1.4 * depth}rem"` : '';
    if (typeof value === 'object' && value !== null) {
      return [`<tr><th scope="rowgroup" colspan="2"${indent}>${name}</th></tr>`, ...preparationRows(value, depth + 1)];
    }
    const text = typeof value === 'number' ? formatNumber(value) : escapeHtml(String(value ?? '–'));
    return [`<tr><th scope="row"${indent}>${name}</th><td>${text}</td></tr>`];
  });
}

function renderExamples(examples: readonly ExampleUser[]): string {
  if (examples.length === 0) return '';
  const users = examples.map(({ user, history, recommendations, next }) => {
    const shown = history.slice(-MAX_HISTORY);
    const earlier = history.length - shown.length;
    const heading = earlier > 0 ? `History, latest ${shown.length} of ${history.length}` : 'History';
    const liked = shown.map((item) => `<li>${renderItem(item)}</li>`).join('');
    const advised = recommendations.map((item) => {
      const hit = item.id === next?.id ? ' class="hit"' : '';
      return `<li><span${hit}>${renderItem(item)}</span> <span class="score">${formatNumber(item.score)}</span></li>`;
    });
    const place = recommendations.findIndex((item) => item.id === next?.id) + 1;
    const verdict = place > 0 ? `recommended at place ${place}` : `not among the first ${recommendations.length}`;
    const outcome = next
      ? `<p class="next">Came next: ${renderItem(next)} <span class="muted">– ${verdict}</span></p>`
      : '';
    return `<article class="example">
<h3><bdi>${escapeHtml(user)}</bdi></h3>
<div class="columns">
<div><h4>${heading}</h4><ol start="${earlier + 1}">${liked}</ol></div>
<div><h4>Recommendations</h4><ol>${advised.join('')}</ol></div>
</div>
${outcome}</article>`;
  });
  return `<section>
<h2>Example users</h2>
<p class="lead">Users of the test split; their last interaction was held out.</p>
<div class="examples">
${users.join('\n')}
</div>
</section>`;
}

/** bdi keeps right-to-left titles from reordering the text around them. */
function renderItem({ id, text }: ReportItem): string {
  const name = `<bdi>${escapeHtml(shorten(text || id, MAX_ITEM_TEXT))}</bdi>`;
  return text === '' || text === id ? name : `${name} <span class="id">${escapeHtml(id)}</span>`;
}

function renderSettings(settings: unknown): string {
  const json = JSON.stringify(settings, null, 2) ?? 'null';
  return `<section>
<h2>Settings</h2>
<details><summary>All settings as JSON</summary><pre>${escapeHtml(json)}</pre></details>
</section>`;
}
