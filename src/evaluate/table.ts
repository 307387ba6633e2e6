import { checkNotEmpty } from './checks.js';
import { formatLatency, formatParameters, formatWithInterval } from './format.js';
import type { ResultRow } from './report-types.js';

const header = ['system', 'recall@10', 'ndcg@10', 'f1@10', 'mrr', 'parameters', 'p50 latency'];

/**
 * The results as aligned plain text, one line a system in the order given; ± is half the width of the 95 % interval.
 *
 * @throws `ERR_EMPTY_DATA` for no rows
 */
export function formatTable(rows: readonly ResultRow[]): string {
  checkNotEmpty('rows', rows);
  const cells = [header, ...rows.map(cellsOf)];
  const widths = header.map((_, column) => Math.max(...cells.map((row) => row[column]?.length ?? 0)));
  const lines = cells.map((row) =>
    row
      .map((cell, column) => (column === 0 ? cell.padEnd(widths[0] ?? 0) : cell.padStart(widths[column] ?? 0)))
      .join('  ')
      .trimEnd(),
  );
  lines.splice(1, 0, '─'.repeat(widths.reduce((sum, width) => sum + width + 2, -2)));
  const numSeeds = Math.max(...rows.map((row) => row.seeds.length));
  const mean = numSeeds > 1 ? `mean of ${numSeeds} seeds; ` : '';
  lines.push(`${mean}± half the 95 % bootstrap interval over users`);
  return lines.join('\n');
}

function cellsOf(row: ResultRow): string[] {
  const { intervals } = row;
  return [
    // Anything a terminal would act on (line breaks, escape sequences) is shown as a space.
    row.name.replace(/\p{Cc}/gu, ' '),
    formatWithInterval(row.recallAt10, intervals.recallAt10),
    formatWithInterval(row.ndcgAt10, intervals.ndcgAt10),
    formatWithInterval(row.f1At10, intervals.f1At10),
    formatWithInterval(row.mrr, intervals.mrr),
    formatParameters(row.parameters),
    formatLatency(row.p50LatencyMs),
  ];
}
