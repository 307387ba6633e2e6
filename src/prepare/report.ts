/** A row that could not be used, and why. */
export interface BrokenRow {
  /**
   * Line of the file, counted from 1 (row, for Parquet). For a CSV value that does not parse, blank lines before it are
   * not counted.
   */
  readonly line: number;
  readonly reason: string;
}

/** What was found in one file. rowsRead = brokenRows + the rows that were used. */
export interface FileReport {
  readonly path: string;
  /** Rows under the header, without blank lines. A row that a missing quote swallowed counts by its lines. */
  readonly rowsRead: number;
  readonly brokenRows: number;
  /** The first of them, at most five. */
  readonly brokenExamples: readonly BrokenRow[];
}

/**
 * Where every row went:
 * interactions.rowsRead = interactions.brokenRows + the sum of `dropped` + final.interactions.
 */
export interface PrepareReport {
  readonly interactions: FileReport & {
    /** Rows whose rating is NaN (among the broken rows). */
    readonly nanRatings: number;
    /** Usable rows with an earlier time than the row before them of the same user; time order puts them right. */
    readonly rowsBackwardsInTime: number;
    /**
     * Rows, after the event and rating filters, whose item is not in the item file; dropped only if `items.missing`
     * says so.
     */
    readonly rowsWithoutItem: number;
  };
  /** The item file, when there is one. */
  readonly items?: FileReport & {
    /** Rows that repeat an id; the first one is used. */
    readonly duplicateIds: number;
    /** Items of the catalogue whose id stands in for a missing or empty text. */
    readonly itemsWithoutText: number;
  };
  /** Interactions dropped, in the order of the filters. */
  readonly dropped: {
    readonly otherEvents: number;
    readonly belowMinRating: number;
    readonly withoutItem: number;
    readonly duplicates: number;
    readonly botUsers: number;
    readonly kCore: number;
  };
  /** Users above `maxUserInteractions`. */
  readonly botUsers: number;
  readonly kCore: {
    /** Passes over the data until nothing more was dropped; 0 = nothing was. */
    readonly rounds: number;
    readonly usersDropped: number;
    readonly itemsDropped: number;
  };
  readonly final: {
    readonly users: number;
    readonly items: number;
    readonly interactions: number;
    /** interactions / (users · items). */
    readonly density: number;
    /** Users with one interaction: they have nothing to predict. */
    readonly singleInteractionUsers: number;
    readonly trainInteractions: number;
    /** Those of the split; evaluation leaves out what `evaluationSet` does. */
    readonly validationCases: number;
    readonly testCases: number;
  };
}
