import type { ProgressEvent } from '../teacher/hooks.js';
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
const BAR_WIDTH = 24;
const REDRAW_MS = 100;
/** Between two lines where no bar can be redrawn. */
const LINE_MS = 10_000;

/** One line: step, what is at work, bar, share, loss, time left. */
export function renderBar(event: ProgressEvent, elapsedMs: number): string {
  const share = event.total > 0 ? Math.min(1, event.done / event.total) : 1;
  const full = Math.round(share * BAR_WIDTH);
  const bar = `${'█'.repeat(full)}${'░'.repeat(BAR_WIDTH - full)}`;
  const parts = [
    STEP_NAMES[event.step].padEnd(13),
    event.name.padEnd(24),
    bar,
    `${String(Math.floor(share * 100)).padStart(3)} %`,
  ];
  if (event.loss !== undefined) parts.push(`loss ${event.loss.toFixed(3)}`);
  if (share === 1) parts.push(`${(elapsedMs / 1000).toFixed(1)} s`);
  else if (share > 0) parts.push(`${formatDuration((elapsedMs * (1 - share)) / share)} left`);
  return parts.join('  ');
}

function formatDuration(durationMs: number): string {
  const seconds = Math.ceil(durationMs / 1000);
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, '0')}`;
}

/** Shows progress on stderr: a bar for each part of the work on a terminal, now and then a line elsewhere. */
export function showProgress({ stderr }: Streams): (event: ProgressEvent) => void {
  const isTerminal = stderr.isTTY === true;
  let part = '';
  let start = 0;
  let shown = 0;
  let isFinished = false;
  return (event) => {
    const now = performance.now();
    const name = `${event.step} ${event.name}`;
    const isNew = name !== part;
    if (isNew) {
      if (isTerminal && part !== '' && !isFinished) stderr.write('\n');
      part = name;
      start = now;
      isFinished = false;
    }
    if (isFinished) return;
    isFinished = event.done >= event.total;
    if (!isNew && !isFinished && now - shown < (isTerminal ? REDRAW_MS : LINE_MS)) return;
    shown = now;
    const line = renderBar(event, now - start);
    if (isTerminal) {
      const width = (stderr.columns ?? 80) - 1;
      stderr.write(`\r\x1b[K${line.slice(0, width)}${isFinished ? '\n' : ''}`);
    } else if (!isNew || isFinished) {
      stderr.write(`${line}\n`);
    }
  };
}
