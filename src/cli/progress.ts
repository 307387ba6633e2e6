import type { ProgressEvent } from '../prepare/hooks.js';
import type { Streams } from './output.js';

const STEP_NAMES: Record<ProgressEvent['step'], string> = {
  prepare: '1 prepare',
  teacher: '2 teacher',
  extract: '3 extract',
  initialise: '4 initialise',
  transfer: '5 transfer',
  fineTune: '6 fine-tune',
  recommend: '7 recommend',
  evaluate: '8 evaluate',
};
/** The longest step; names of parts are shorter than theirs as a rule. Both only align columns. */
const STEP_WIDTH = 12;
const NAME_WIDTH = 24;
/** Longest and shortest bar, in characters; what has no room for the shortest goes without. */
const MAX_BAR = 24;
const MIN_BAR = 4;
const REDRAW_MS = 100;
/** Between two lines where no bar can be redrawn. */
const LINE_MS = 10_000;
const DEFAULT_COLUMNS = 80;

/**
 * One line: step, what is at work, bar, share, loss, and the time left or, at the end, the time taken.
 *
 * @param elapsedMs since the part's first event
 * @param width most characters of the line
 * @param firstDone units that the first event found done, which a resumed run did not spend this time on
 */
export function renderBar(event: ProgressEvent, elapsedMs: number, width: number, firstDone = 0): string {
  const { step, name, done, total, loss } = event;
  const share = total > 0 ? Math.min(1, done / total) : 1;
  const left = `${STEP_NAMES[step].padEnd(STEP_WIDTH)}  ${name.padEnd(NAME_WIDTH)}`;
  const facts = [`${String(Math.floor(share * 100)).padStart(3)} %`];
  if (loss !== undefined) facts.push(`loss ${loss.toFixed(3)}`);
  if (share === 1) facts.push(`${(elapsedMs / 1000).toFixed(1)} s`);
  else if (done > firstDone && elapsedMs > 0) {
    facts.push(`${formatClock((elapsedMs * (total - done)) / (done - firstDone))} left`);
  }
  const right = facts.join('  ');
  // Two gaps of two, and the brackets.
  const room = Math.min(MAX_BAR, width - left.length - right.length - 6);
  const filled = Math.floor(share * room);
  const bar = room < MIN_BAR ? [] : [`[${'█'.repeat(filled)}${'░'.repeat(room - filled)}]`];
  return [left, ...bar, right].join('  ').slice(0, width);
}

/** `0:12`, `1:05:00`. */
function formatClock(durationMs: number): string {
  const seconds = Math.ceil(durationMs / 1000);
  const twoDigits = (value: number) => String(value % 60).padStart(2, '0');
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes}:${twoDigits(seconds)}`;
  return `${Math.floor(minutes / 60)}:${twoDigits(minutes)}:${twoDigits(seconds)}`;
}

export interface ProgressDisplay {
  readonly onProgress: (event: ProgressEvent) => void;
  /** Ends the line of a part that was stopped; call it before anything else is written. */
  close(): void;
}

/**
 * Shows progress on stderr, part by part: on a terminal a bar that is redrawn, elsewhere a line when a part begins, one
 * every ten seconds, and one when it ends.
 *
 * @param now milliseconds of a clock that never goes back
 */
export function showProgress({ stderr }: Streams, now: () => number = () => performance.now()): ProgressDisplay {
  const isTerminal = stderr.isTTY === true;
  let part = '';
  let start = 0;
  let firstDone = 0;
  let shown = 0;
  /** A bar is on the terminal's last line, without a line break after it. */
  let isOpen = false;
  let isFinished = false;
  const close = () => {
    if (isOpen) stderr.write('\n');
    isOpen = false;
  };
  const onProgress = (event: ProgressEvent) => {
    const time = now();
    const name = `${event.step} ${event.name}`;
    const isNew = name !== part;
    if (isNew) {
      close();
      part = name;
      start = time;
      firstDone = event.done;
      isFinished = false;
    }
    if (isFinished) return;
    isFinished = event.done >= event.total;
    if (!isNew && !isFinished && time - shown < (isTerminal ? REDRAW_MS : LINE_MS)) return;
    shown = time;
    // The last column stays free: some terminals break the line when it is written. Some report 0 columns.
    const width = isTerminal ? (stderr.columns || DEFAULT_COLUMNS) - 1 : Number.POSITIVE_INFINITY;
    const line = renderBar(event, time - start, width, firstDone);
    stderr.write(isTerminal ? `\r\x1b[K${line}` : `${line}\n`);
    isOpen = isTerminal;
    if (isFinished) close();
  };
  return { onProgress, close };
}
