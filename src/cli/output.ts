/** Where a command writes: results to stdout, everything else to stderr. */
export interface Streams {
  readonly stdout: NodeJS.WritableStream & { readonly isTTY?: boolean };
  readonly stderr: NodeJS.WritableStream & { readonly isTTY?: boolean; readonly columns?: number };
}

/** What every command is given. */
export interface CommandContext {
  readonly streams: Streams;
}

/** What a command is given that takes long; Ctrl-C aborts the signal. */
export interface LongCommandContext extends CommandContext {
  readonly signal: AbortSignal;
}

/** With `--json`, stdout holds one line: the object. */
export function print(streams: Streams, json: boolean, object: unknown, text: () => string): void {
  streams.stdout.write(`${json ? JSON.stringify(object) : printable(text())}\n`);
}

/** Text for a terminal: what a file smuggled in to command it (escape sequences, line returns) is shown as spaces. */
export function printable(text: string): string {
  return text.replace(/[^\P{Cc}\n]/gu, ' ');
}
