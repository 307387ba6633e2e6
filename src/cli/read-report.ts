import { z } from 'zod';
import type { ResultRow } from '../evaluate/report-types.js';
import { checkedJson } from '../formats/checked-json.js';
import { readJsonFile } from '../formats/files.js';

/** JSON has no NaN: what was not measured is null in a file. */
const value = z
  .number()
  .nullable()
  .transform((number) => number ?? Number.NaN);
const interval = z.tuple([value, value]);

const savedReportSchema = z.looseObject({
  title: z.string(),
  createdAt: z.string(),
  rows: z.array(
    z.looseObject({
      name: z.string(),
      seeds: z.array(z.number()),
      recallAt10: value,
      ndcgAt10: value,
      f1At10: value,
      mrr: value,
      intervals: z.looseObject({ recallAt10: interval, ndcgAt10: interval, f1At10: interval, mrr: interval }),
      parameters: value,
      p50LatencyMs: value,
    }),
  ),
});

/** What the terminal shows of a `report.json`. */
export interface SavedReport {
  readonly title: string;
  /** ISO 8601. */
  readonly createdAt: string;
  /** The keys of the results table are checked; others are as the file has them. */
  readonly rows: readonly ResultRow[];
}

/** Reads the `report.json` of a distillation. @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT, ERR_IO */
export async function readReport(path: string): Promise<SavedReport> {
  const json = await readJsonFile(path);
  const { title, createdAt, rows } = checkedJson(
    savedReportSchema,
    json,
    `'${path}' is not the report of a distillation`,
  );
  return { title, createdAt, rows: rows as unknown as ResultRow[] };
}
