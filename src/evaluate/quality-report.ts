/** The page of the quality bench: the table, the intervals as a plot, training curves, and how it was run. */
import { checkObject } from '../arguments.js';
import { intervalChart, lineChart } from './chart.js';
import {
  formatDifference,
  formatDuration,
  formatLatency,
  formatMetric,
  formatNumber,
  formatParameters,
} from './format.js';
import { escapeHtml, renderPage } from './html.js';
import { describeShare } from './quality-row.js';
import { COLD_BELOW, type QualityReport, type QualityRow, type SubsetMetric } from './quality-types.js';
import type { Interval } from './report-types.js';

/** What no report is without. */
const REPORT_KEYS = ['title', 'machine', 'seeds', 'data', 'rows', 'published', 'curves'] as const;

/**
 * @returns UTF-8 HTML that needs nothing else, to be written to a file as it is
 * @throws LimbeckError ERR_INVALID_ARGUMENT for what is no report
 */
export function renderQualityReport(report: QualityReport): string {
  checkObject(report, 'report', 'the report of a quality bench', REPORT_KEYS);
  const sections = [
    renderHeader(report),
    renderTable(report),
    renderPlots(report),
    renderCurves(report),
    renderMachine(report),
  ];
  return renderPage(report.title, sections);
}

function renderHeader({ title, data, seeds, createdAt }: QualityReport): string {
  const { users, items, interactions, testCases, repeatedTargets } = data;
  const counts = [users, items, interactions, testCases].map(formatNumber);
  const repeated = repeatedTargets
    ? ` (${formatNumber(repeatedTargets)} others asked for an item of their history)`
    : '';
  return `<header>
<h1>${escapeHtml(title)}</h1>
<p class="lead">${counts[0]} users, ${counts[1]} items, ${counts[2]} interactions; tested on ${counts[3]} users${repeated}, students with ${seeds.length === 1 ? 'one seed' : `${seeds.length} seeds`}. <time datetime="${escapeHtml(createdAt)}">${escapeHtml(createdAt.slice(0, 16).replace('T', ', '))} UTC</time></p>
</header>`;
}

function renderTable({ rows, published }: QualityReport): string {
  const [first] = rows;
  const cold = first?.recallOnColdItems?.cases ?? 0;
  const unseen = first?.recallOnUnseenItems?.cases ?? 0;
  const ours = rows.map((row) => {
    const mark = row.key === 'distilled' ? ' class="distilled"' : '';
    const seeds = row.seeds.length > 1 ? `<small>${row.seeds.length} seeds</small>` : '';
    const cells = [
      withInterval(row.recallAt10, row.intervals.recallAt10),
      withInterval(row.ndcgAt10, row.intervals.ndcgAt10),
      differenceCell(row),
      ...(cold === 0 ? [] : [subsetCell(row.recallOnColdItems), subsetCell(row.recallOnUnseenItems)]),
      formatParameters(row.parameters),
      row.secondsPerEpoch === undefined ? '' : formatDuration(row.secondsPerEpoch),
      formatLatency(row.p50LatencyMs),
    ];
    const data = cells.map((cell) => `<td class="number">${cell}</td>`).join('');
    return `<tr${mark}><th scope="row">${escapeHtml(row.name)} ${seeds}</th>${data}</tr>`;
  });
  const theirs = published.map(
    ({ name, source, recallAt10, ndcgAt10 }) =>
      `<tr><th scope="row">${escapeHtml(name)} <small>${escapeHtml(source)}</small></th><td class="number">${formatMetric(recallAt10)}</td><td class="number">${formatMetric(ndcgAt10)}</td>${'<td></td>'.repeat(cold === 0 ? 4 : 6)}</tr>`,
  );
  const share = describeShare(rows);
  const names = [
    'system',
    'recall@10',
    'ndcg@10',
    'ndcg@10 − plain student',
    ...(cold === 0 ? [] : ['cold items, recall@10', 'unseen items, recall@10']),
    'parameters',
    'an epoch',
    'latency p50',
  ];
  const coldNote =
    cold === 0
      ? ''
      : ` Cold: the next item has fewer than ${COLD_BELOW} training interactions (${formatNumber(cold)} users); unseen: it has none (${formatNumber(unseen)} users).`;
  return `<section>
<h2>Results</h2>
<p class="note" id="results-note">Full ranking over the catalogue, seen items masked, ties counted against the system. In brackets: 95 % bootstrap interval over users; differences are paired by user, and have a second interval over users and training seeds.${coldNote}</p>
<div class="scroll"><table aria-describedby="results-note">
<thead><tr>${names.map((name) => `<th scope="col">${name}</th>`).join('')}</tr></thead>
<tbody>
${ours.join('\n')}
</tbody>
${theirs.length === 0 ? '' : `<tbody class="group">\n${theirs.join('\n')}\n</tbody>`}
</table></div>
${share === undefined ? '' : `<p class="sentence">${escapeHtml(share)}</p>`}
</section>`;
}

function differenceCell({ differenceToPlain }: QualityRow): string {
  if (differenceToPlain === undefined) return '';
  const [low, high] = differenceToPlain.interval;
  const text = formatDifference(differenceToPlain.difference);
  const isSure = low > 0 || high < 0;
  const bounds = ([from, to]: Interval) => `[${formatDifference(from)},\u00a0${formatDifference(to)}]`;
  const { interval, intervalOverSeeds } = differenceToPlain;
  const overSeeds = intervalOverSeeds === undefined ? '' : `<small>${bounds(intervalOverSeeds)} with seeds</small>`;
  return `${isSure ? `<b>${text}</b>` : text}<small>${bounds(interval)}</small>${overSeeds}`;
}

function subsetCell(subset: SubsetMetric | undefined): string {
  return subset === undefined ? '' : withInterval(subset.mean, subset.interval);
}

function withInterval(value: number, [low, high]: Interval): string {
  return `${formatMetric(value)}<small>[${formatMetric(low)},\u00a0${formatMetric(high)}]</small>`;
}

function renderPlots({ rows, published }: QualityReport): string {
  const overall = intervalChart({
    id: 'ndcg',
    title: 'ndcg@10 by system',
    xLabel: 'ndcg@10 (open: published)',
    entries: [
      ...rows.map(({ name, ndcgAt10, intervals }) => ({ name, value: ndcgAt10, interval: intervals.ndcgAt10 })),
      ...published.map(({ name, ndcgAt10 }) => ({ name, value: ndcgAt10 })),
    ],
  });
  const gains = rows.flatMap(({ name, differenceToPlain }) =>
    differenceToPlain === undefined
      ? []
      : [{ name, value: differenceToPlain.difference, interval: differenceToPlain.interval }],
  );
  const cold = rows.flatMap(({ name, recallOnColdItems }) =>
    recallOnColdItems === undefined
      ? []
      : [{ name, value: recallOnColdItems.mean, interval: recallOnColdItems.interval }],
  );
  const figures = [
    figure('ndcg@10', overall),
    gains.length === 0
      ? ''
      : figure(
          'Gain over the plain student',
          intervalChart({
            id: 'gain',
            title: 'Difference in ndcg@10 to the plain student',
            xLabel: 'difference in ndcg@10',
            entries: gains,
            reference: 0,
          }),
        ),
    cold.length === 0
      ? ''
      : figure(
          'Cold items',
          intervalChart({
            id: 'cold',
            title: 'recall@10 on cold items',
            xLabel: 'recall@10 on cold items',
            entries: cold,
          }),
        ),
  ];
  return `<section>\n<h2>Intervals</h2>\n<div class="charts">\n${figures.filter((one) => one !== '').join('\n')}\n</div>\n</section>`;
}

function renderCurves({ curves }: QualityReport): string {
  if (curves.length === 0) return '';
  const series = curves.map(({ name, points }) => ({ name: name.split(', validation')[0] ?? name, points }));
  const chart = lineChart({
    id: 'validation',
    title: 'Validation ndcg@10 by epoch',
    xLabel: 'epoch',
    yLabel: 'ndcg@10',
    series,
  });
  return `<section>\n<h2>Training</h2>\n<p class="note">Validation ndcg@10 of the first seed; the best epoch is kept.</p>\n<figure class="wide">${chart}</figure>\n</section>`;
}

function renderMachine({ machine, version, commit, settings }: QualityReport): string {
  const facts = Object.entries({
    processor: machine.processor,
    kernels: machine.isa,
    features: machine.features.join(', '),
    threads: String(machine.threads),
    precision: machine.precision,
    ...(machine.gpu === undefined ? {} : { GPU: machine.gpu }),
    version: `limbeck ${version ?? ''}${commit === undefined ? '' : `, commit ${commit}`}`,
    node: `${machine.node}, ${machine.platform}`,
  });
  const rows = facts.map(
    ([name, value]) => `<tr><th scope="row">${name}</th><td class="text">${escapeHtml(value)}</td></tr>`,
  );
  return `<section>
<h2>How it was run</h2>
<div class="scroll"><table><tbody>
${rows.join('\n')}
</tbody></table></div>
<details><summary>All settings as JSON</summary><pre>${escapeHtml(JSON.stringify(settings, null, 2))}</pre></details>
</section>`;
}

function figure(caption: string, chart: string): string {
  return `<figure><figcaption>${escapeHtml(caption)}</figcaption>${chart}</figure>`;
}
