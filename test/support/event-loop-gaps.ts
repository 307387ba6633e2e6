import { existsSync, readFileSync } from 'node:fs';

/** Of the first thread: what it ran and what it waited for a processor, in ns. */
const SCHEDULING = `/proc/self/task/${process.pid}/schedstat`;
const waitedMs = existsSync(SCHEDULING)
  ? () => Number(readFileSync(SCHEDULING, 'latin1').split(' ')[1]) / 1e6
  : () => 0;

/**
 * Watches whether the event loop is kept busy, or waits for other threads of this process. What it waits for a processor
 * that other programs have is not counted, where Linux tells.
 *
 * @param periodMs of the timer that ticks
 * @returns what ends it, and returns the ms between two ticks, ascending
 */
export function watchEventLoop(periodMs: number): () => number[] {
  const now = () => performance.now() - waitedMs();
  const gaps: number[] = [];
  let last = now();
  const timer = setInterval(() => {
    const tick = now();
    gaps.push(tick - last);
    last = tick;
  }, periodMs);
  return () => {
    clearInterval(timer);
    return gaps.sort((a, b) => a - b);
  };
}
