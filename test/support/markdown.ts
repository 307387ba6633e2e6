/** What tests read of the documents in `docs/`. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

export interface Table {
  /** The line before it, without the empty one between; '' when there is none. */
  readonly lead: string;
  /** Cells of each row, the header and its line left out. */
  readonly rows: readonly (readonly string[])[];
}

export function readDocument(name: string): string {
  return readFileSync(join(import.meta.dirname, '../../docs', name), 'utf8');
}

export function tablesOf(markdown: string): Table[] {
  const blocks = markdown.split(/\n{2,}/);
  return blocks.flatMap((block, i) => {
    const lines = block.trimEnd().split('\n');
    if (!lines.every((line) => line.startsWith('|'))) return [];
    const rows = lines.slice(2).map((line) =>
      line
        .slice(1, -1)
        .split(' | ')
        .map((cell) => cell.trim()),
    );
    return [{ lead: blocks[i - 1]?.split('\n').at(-1) ?? '', rows }];
  });
}

/** What stands in backticks. */
export function codesIn(text: string): string[] {
  return [...text.matchAll(/`([^`]+)`/g)].map(([, code = '']) => code);
}
