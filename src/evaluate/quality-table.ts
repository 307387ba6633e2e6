import { checkNotEmpty } from './checks.js';
import {
  formatDifference,
  formatDuration,
  formatLatency,
  formatMetric,
  formatParameters,
  formatWithInterval,
} from './format.js';
import { describeShare } from './quality-row.js';
import { COLD_BELOW, type QualityReport, type QualityRow, type SubsetMetric } from './quality-types.js';

const headers = [
  'system',
  'recall@10',
  'ndcg@10',
  'ndcg − plain',
  'cold recall@10',
  'unseen recall@10',
  'parameters',
  'an epoch',
  'p50 latency',
];

/** Places in `headers` of what is left out where no test case is cold. */
const COLD_COLUMNS = [4, 5];

/**
 * The table as aligned plain text, one line a system, then the published rows; ± is half the width of the 95 % interval.
 *
 * @throws `ERR_EMPTY_DATA` for no rows
 */
export function formatQualityTable({
  rows,
  published,
  seeds,
}: Pick<QualityReport, 'rows' | 'published' | 'seeds'>): string {
  checkNotEmpty('rows', rows);
  const hasCold = rows.some(({ recallOnColdItems }) => recallOnColdItems !== undefined);
  const columns = headers.flatMap((_, column) => (hasCold || !COLD_COLUMNS.includes(column) ? [column] : []));
  const pick = (cells: readonly string[]) => columns.map((column) => cells[column] ?? '');
  const header = pick(headers);
  const ours = rows.map((row) => pick(cellsOf(row)));
  const theirs = published.map(({ name, recallAt10, ndcgAt10 }) => [
    printable(name),
    formatMetric(recallAt10),
    formatMetric(ndcgAt10),
    ...header.slice(3).map(() => ''),
  ]);
  const cells = [header, ...ours, ...theirs];
  const widths = header.map((_, column) => Math.max(...cells.map((row) => row[column]?.length ?? 0)));
  const rule = '─'.repeat(widths.reduce((sum, width) => sum + width + 2, -2));
  const line = (row: readonly string[]) =>
    row
      .map((cell, column) => (column === 0 ? cell.padEnd(widths[0] ?? 0) : cell.padStart(widths[column] ?? 0)))
      .join('  ')
      .trimEnd();
  const { numUsers } = (rows[0] as QualityRow).metrics;
  const notes = [
    `${numUsers} users, full ranking, seen items masked, ties counted against the system; ${seedNote(seeds.length)}` +
      '± half the 95 % bootstrap interval over users',
    ...coldNotes(rows),
    ...[describeShare(rows) ?? []].flat(),
    ...published.map(({ name, source }) => `${printable(name)}: ${printable(source)}`),
  ];
  return [
    line(header),
    rule,
    ...ours.map(line),
    ...(theirs.length > 0 ? [rule, ...theirs.map(line)] : []),
    rule,
    ...notes,
  ].join('\n');
}

function seedNote(numSeeds: number): string {
  return numSeeds > 1 ? `students: mean of ${numSeeds} seeds; ` : 'one seed; ';
}

function coldNotes(rows: readonly QualityRow[]): string[] {
  const [first] = rows;
  const cold = first?.recallOnColdItems?.cases ?? 0;
  const unseen = first?.recallOnUnseenItems?.cases ?? 0;
  if (cold === 0) return [];
  return [
    `cold: the next item has fewer than ${COLD_BELOW} training interactions (${cold} users); ` +
      `unseen: it has none (${unseen} users)`,
  ];
}

function cellsOf(row: QualityRow): string[] {
  const difference = row.differenceToPlain;
  return [
    printable(row.name),
    formatWithInterval(row.recallAt10, row.intervals.recallAt10),
    formatWithInterval(row.ndcgAt10, row.intervals.ndcgAt10),
    difference === undefined
      ? ''
      : `${formatDifference(difference.difference)} [${difference.interval.map(formatDifference).join(', ')}]`,
    subsetCell(row.recallOnColdItems),
    subsetCell(row.recallOnUnseenItems),
    formatParameters(row.parameters),
    row.secondsPerEpoch === undefined ? '' : formatDuration(row.secondsPerEpoch),
    formatLatency(row.p50LatencyMs),
  ];
}

function subsetCell(subset: SubsetMetric | undefined): string {
  return subset === undefined ? '' : formatWithInterval(subset.mean, subset.interval);
}

/** Anything a terminal would act on (line breaks, escape sequences) is shown as a space. */
function printable(text: string): string {
  return text.replace(/\p{Cc}/gu, ' ');
}
