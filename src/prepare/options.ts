import { z } from 'zod';

/**
 * How a file is laid out. `.gz` after any text format is allowed; Parquet compresses by itself. `sequences`: one user a
 * line, the id and then the items in time order; its columns are `user` and `item`.
 */
export type TableFormat = 'csv' | 'tsv' | 'jsonl' | 'parquet' | 'sequences';

/** One file of rows, and how to read it. */
export interface TableSource {
  /** A local file. */
  readonly path: string;
  /**
   * @defaultValue guessed from the name: `.csv`, `.tsv`, `.jsonl`, `.ndjson`, `.parquet`, each text format with or
   * without `.gz`
   */
  readonly format?: TableFormat | undefined;
  /**
   * What separates columns, 1 to 4 bytes (`::` for MovieLens files). CSV, TSV and sequences only.
   * @defaultValue `,` for CSV, tab for TSV, any white space for sequences
   */
  readonly delimiter?: string | undefined;
  /**
   * The character around values that hold delimiters; `''` for none. CSV and TSV only.
   * @defaultValue `"` for CSV, none for TSV
   */
  readonly quote?: string | undefined;
  /** Whether the first line names the columns. CSV and TSV only. @defaultValue true, or false when `names` are given */
  readonly header?: boolean | undefined;
  /** Column names of a file without a header, or to use in place of it. CSV and TSV only. */
  readonly names?: readonly string[] | undefined;
}

export interface InteractionSource extends TableSource {
  /** Which column holds what. */
  readonly columns: {
    readonly user: string;
    readonly item: string;
    /** A finite number. */
    readonly rating?: string | undefined;
    /** The kind of interaction, e.g. `view` or `purchase`. */
    readonly event?: string | undefined;
    /**
     * A number of any unit, or an ISO 8601 date (read as UTC unless it has an offset). Without it, file order is time
     * order.
     */
    readonly time?: string | undefined;
  };
}

export interface ItemSource extends TableSource {
  readonly columns: {
    readonly id: string;
    /** Joined with `. ` into one text an item, after cleaning. */
    readonly text: readonly string[];
    /** What a student can filter by, several in one value. */
    readonly categories?: string | undefined;
  };
  /** What stands between the categories of an item. @defaultValue `,` */
  readonly categorySeparator?: string | undefined;
  /**
   * What to do with an interaction whose item is not in this file: keep it (the id stands in for the text) or drop it.
   * @defaultValue keep
   */
  readonly missing?: 'keep' | 'drop' | undefined;
}

export interface DenoiseOptions {
  /** Rows rated below this are dropped; the rest count as positive. @defaultValue all ratings count */
  readonly minRating?: number | undefined;
  /** Kinds of interaction that count. @defaultValue all */
  readonly events?: readonly string[] | undefined;
  /** Users with fewer interactions are dropped (k-core, repeated until stable). ≥ 1. @defaultValue 5 */
  readonly minUserInteractions?: number | undefined;
  /** Items with fewer interactions are dropped (k-core, repeated until stable). ≥ 1. @defaultValue 5 */
  readonly minItemInteractions?: number | undefined;
  /**
   * Users with more interactions (after duplicates are dropped) look like bots and are dropped.
   * @defaultValue no limit
   */
  readonly maxUserInteractions?: number | undefined;
  /** Which of the interactions of one user with one item to keep, in time order. @defaultValue first */
  readonly duplicates?: 'first' | 'last' | 'all' | undefined;
}

export interface SplitOptions {
  /**
   * `leaveOneOut`: a user's last item is the test target, the second last the validation target, the rest is for
   * training.
   * `globalTime`: one moment for everybody; nothing after it is for training.
   * @defaultValue leaveOneOut
   */
  readonly strategy?: 'leaveOneOut' | 'globalTime' | undefined;
  /** Share of the interactions between the two cuts. In (0, 1); globalTime only. @defaultValue 0.1 */
  readonly validationFraction?: number | undefined;
  /** Share of the interactions after the last cut. In (0, 1); globalTime only. @defaultValue 0.1 */
  readonly testFraction?: number | undefined;
}

/** What `prepareDataset` takes. */
export interface PrepareOptions {
  readonly interactions: InteractionSource;
  /** Without it, an item's text is its id. */
  readonly items?: ItemSource | undefined;
  readonly denoise?: DenoiseOptions | undefined;
  readonly split?: SplitOptions | undefined;
  /** Threads of the embedded database. ≥ 1. @defaultValue 2 */
  readonly threads?: number | undefined;
}

const columnName = z.string().min(1);
const tableSource = {
  path: z.string().min(1),
  format: z.enum(['csv', 'tsv', 'jsonl', 'parquet', 'sequences']).optional(),
  delimiter: z
    .string()
    .refine((text) => text.length > 0 && Buffer.byteLength(text) <= 4, 'expected 1 to 4 bytes')
    .refine((text) => !/[\r\n"]/.test(text), 'expected neither a line break nor a quote')
    .optional(),
  quote: z
    .string()
    .regex(/^[ -~]?$/, 'expected one ASCII character, or none')
    .optional(),
  header: z.boolean().optional(),
  names: z.array(columnName).min(1).optional(),
};
const fraction = z.number().gt(0).lt(1).default(0.1);
const interactionCount = z.int().min(1);

/** Rejects unknown keys; fills in the defaults. */
export const prepareOptionsSchema = z
  .strictObject({
    interactions: z.strictObject({
      ...tableSource,
      columns: z.strictObject({
        user: columnName,
        item: columnName,
        rating: columnName.optional(),
        event: columnName.optional(),
        time: columnName.optional(),
      }),
    }),
    items: z
      .strictObject({
        ...tableSource,
        columns: z.strictObject({
          id: columnName,
          text: z.array(columnName).min(1),
          categories: columnName.optional(),
        }),
        categorySeparator: z.string().min(1).default(','),
        missing: z.enum(['keep', 'drop']).default('keep'),
      })
      .optional(),
    denoise: z
      .strictObject({
        minRating: z.number().optional(),
        events: z.array(z.string()).min(1).optional(),
        minUserInteractions: interactionCount.default(5),
        minItemInteractions: interactionCount.default(5),
        maxUserInteractions: interactionCount.optional(),
        duplicates: z.enum(['first', 'last', 'all']).default('first'),
      })
      .prefault({}),
    split: z
      .strictObject({
        strategy: z.enum(['leaveOneOut', 'globalTime']).default('leaveOneOut'),
        validationFraction: fraction,
        testFraction: fraction,
      })
      .refine(
        (split) => split.validationFraction + split.testFraction < 1,
        'the two fractions must leave some training data',
      )
      .prefault({}),
    threads: z.int().min(1).max(256).default(2),
  })
  .superRefine(({ interactions, denoise, split }, context) => {
    const needs = (wanted: boolean, column: 'rating' | 'event' | 'time', option: string) => {
      if (!wanted || interactions.columns[column] !== undefined) return;
      const message = `${option} needs interactions.columns.${column}`;
      context.addIssue({ code: 'custom', path: ['interactions', 'columns', column], message, input: undefined });
    };
    needs(denoise.minRating !== undefined, 'rating', 'denoise.minRating');
    needs(denoise.events !== undefined, 'event', 'denoise.events');
    needs(split.strategy === 'globalTime', 'time', 'split.strategy globalTime');
  });

/** The options with every default filled in. */
export type ResolvedPrepareOptions = z.output<typeof prepareOptionsSchema>;
export type ResolvedTableSource = ResolvedPrepareOptions['interactions'] | NonNullable<ResolvedPrepareOptions['items']>;
