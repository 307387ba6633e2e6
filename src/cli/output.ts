/** Where a command writes: results to stdout, everything else to stderr. */
export interface Streams {
  readonly stdout: NodeJS.WritableStream;
  readonly stderr: NodeJS.WritableStream & { readonly isTTY?: boolean; readonly columns?: number };
}

/** What every command is given. */
export interface CommandContext {
  readonly streams: Streams;
  readonly signal: AbortSignal;
}

/** With `--json`, stdout holds one line: the object. */
export function print(streams: Streams, json: boolean, object: unknown, text: () => string): void {
  streams.stdout.write(`${json ? JSON.stringify(object) : text()}\n`);
}
