import { PassThrough } from 'node:stream';
import { describe, expect, it } from 'vitest';
import { renderBar, showProgress } from '../../../src/cli/progress.js';
import type { ProgressEvent } from '../../../src/prepare/hooks.js';

const event = { step: 'fineTune', name: 'student 1 of 3', done: 60, total: 100 } as const;

describe('renderBar', () => {
  it('shows step, name, bar, share, loss and time left', () => {
    expect(renderBar({ ...event, loss: 5.2139 }, 18_000, 120)).toBe(
      '6 fine-tune   student 1 of 3            [██████████████░░░░░░░░░░]   60 %  loss 5.214  0:12 left',
    );
  });

  it('shows the seconds that a finished part took, and a full bar', () => {
    const line = renderBar({ ...event, done: 100 }, 12_340, 120);
    expect(line).toMatch(/\[█{24}\] {2}100 % {2}12\.3 s$/);
  });

  it('does not claim 100 % or a full bar before the end', () => {
    const line = renderBar({ ...event, done: 9999, total: 10_000 }, 1000, 120);
    expect(line).toContain('99 %');
    expect(line).toContain('░');
  });

  it('says nothing about the time left before anything is done', () => {
    expect(renderBar({ ...event, done: 0 }, 5000, 120)).not.toContain('left');
  });

  it('does not count what a resumed run found done towards its speed', () => {
    // 10 of the 40 units that are left took 10 s.
    expect(renderBar(event, 10_000, 120, 50)).toContain('0:40 left');
  });

  it('shows hours', () => {
    expect(renderBar({ ...event, done: 1, total: 101 }, 39_000, 120)).toContain('1:05:00 left');
  });

  it('treats a part without units as done', () => {
    expect(renderBar({ ...event, done: 0, total: 0 }, 0, 120)).toContain('100 %');
  });

  it.each([0, 20, 60, 70, 79, 200])('is never wider than %i columns', (width) => {
    const line = renderBar({ ...event, name: 'distilled student 10 of 10', loss: 5.2 }, 1000, width);
    expect(line.length).toBeLessThanOrEqual(width);
  });

  it('leaves the bar out before it cuts numbers', () => {
    const line = renderBar({ ...event, loss: 5.2 }, 18_000, 70);
    expect(line).not.toContain('[');
    expect(line).toContain('0:12 left');
  });
});

describe('showProgress', () => {
  function show(stream: { isTTY?: boolean; columns?: number } = {}) {
    const stderr = Object.assign(new PassThrough(), stream);
    let time = 0;
    const display = showProgress({ stdout: new PassThrough(), stderr }, () => time);
    return {
      at(milliseconds: number, change: Partial<ProgressEvent>) {
        time = milliseconds;
        display.onProgress({ ...event, ...change });
      },
      close: () => display.close(),
      text: () => String(stderr.read() ?? ''),
    };
  }

  it('writes a line when a part begins, every ten seconds, and when it ends', () => {
    const { at, text } = show();
    at(0, { done: 0 });
    for (let second = 1; second < 25; second++) at(second * 1000, { done: second });
    at(25_000, { done: 100 });
    const shares = text().match(/\d+(?= %)/g);
    expect(shares).toEqual(['0', '10', '20', '100']);
  });

  it('writes one line for a part that is over with its first event', () => {
    const { at, text } = show();
    at(0, { done: 100 });
    at(1, { done: 100 });
    expect(text().split('\n')).toHaveLength(2);
  });

  it('uses no control characters where there is no terminal', () => {
    const { at, close, text } = show();
    at(0, { done: 0 });
    close();
    expect(text()).toMatch(/^[^\p{Cc}]*\n$/u);
  });

  it('redraws one line on a terminal, at most ten times a second', () => {
    const { at, text } = show({ isTTY: true, columns: 100 });
    for (let step = 0; step <= 50; step++) at(step * 10, { done: step });
    const drawn = text();
    expect(drawn).not.toContain('\n');
    expect(drawn.split('\r\x1b[K')).toHaveLength(1 + 6);
  });

  it('leaves the last column of a terminal free', () => {
    const { at, text } = show({ isTTY: true, columns: 90 });
    at(0, { done: 30, loss: 1 });
    expect(text().replace('\r\x1b[K', '').length).toBeLessThan(90);
  });

  it('takes 80 columns when a terminal reports none', () => {
    const { at, text } = show({ isTTY: true, columns: 0 });
    at(0, { done: 30 });
    expect(text()).toContain('30 %');
  });

  it('starts a new line for the next part and when it is closed', () => {
    const { at, close, text } = show({ isTTY: true, columns: 100 });
    at(0, { done: 10 });
    at(1000, { done: 0, name: 'student 2 of 3' });
    close();
    close();
    const lines = text().split('\n');
    expect(lines).toHaveLength(3);
    expect(lines[1]).toContain('student 2 of 3');
    expect(lines[2]).toBe('');
  });
});
