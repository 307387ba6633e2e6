import { join } from 'node:path';
import { createEngine } from '../engine.js';
import { LimbeckError } from '../errors.js';
import { formatTable } from '../evaluate/table.js';
import { pathExists } from '../formats/files.js';
import type { Student } from '../recommend/student.js';
import { type CommandContext, type LongCommandContext, print } from './output.js';
import { showProgress } from './progress.js';

export interface RecommendFlags {
  readonly json?: boolean;
  readonly history?: readonly string[];
  readonly text?: readonly string[];
  readonly exclude?: readonly string[];
  readonly k: number;
}

/** `limbeck recommend DIR --history ID… --k 10` */
export async function recommendCommand(
  directory: string,
  flags: RecommendFlags,
  { streams }: CommandContext,
): Promise<void> {
  const engine = await createEngine({ device: 'cpu', threads: 1 });
  try {
    const student = await engine.loadStudent(await studentDirectory(directory));
    const texts = (flags.text ?? []).map((text) => ({ text }));
    const history = [...namedItems(student, flags.history), ...texts];
    if (history.length === 0) {
      throw new LimbeckError('ERR_INVALID_ARGUMENT', 'Give what the user chose: --history ID… or --text TEXT…');
    }
    const exclude = namedItems(student, flags.exclude);
    const { items, unknownItems } = student.recommend({ history, k: flags.k, exclude });
    const named = items.map(({ id, score }) => ({
      id,
      text: student.items[student.indexOf(id) ?? 0]?.text ?? '',
      score,
    }));
    print(streams, flags.json ?? false, { items: named, unknownItems }, () => {
      const lines = named.map(
        ({ id, text, score }, i) => `${String(i + 1).padStart(3)}. ${id}  ${text}  (${score.toFixed(3)})`,
      );
      if (unknownItems.length > 0) lines.push(`Not in the catalogue: ${unknownItems.join(', ')}`);
      return lines.join('\n');
    });
    student.dispose();
  } finally {
    engine.dispose();
  }
}

/** Ids separated by commas; an argument that is an id as a whole, with commas in it, is that one. */
function namedItems(student: Student, args: readonly string[] = []): string[] {
  return args.flatMap((arg) => {
    if (student.indexOf(arg) !== undefined) return [arg];
    return arg
      .split(',')
      .map((id) => id.trim())
      .filter((id) => id !== '');
  });
}

/** `limbeck evaluate DIR` */
export async function evaluateCommand(
  directory: string,
  flags: { readonly json?: boolean },
  { streams, signal }: LongCommandContext,
): Promise<void> {
  const engine = await createEngine({ device: 'cpu' });
  const progress = showProgress(streams);
  try {
    const { rows } = await engine.evaluate(directory, { signal, onProgress: progress.onProgress });
    print(streams, flags.json ?? false, { rows }, () => formatTable(rows));
  } finally {
    progress.close();
    engine.dispose();
  }
}

/** An output directory's student, or the directory itself. */
async function studentDirectory(directory: string): Promise<string> {
  const inside = join(directory, 'student');
  return (await pathExists(inside)) ? inside : directory;
}
