import { describe, expect, test } from 'vitest';
import { renderBar, showProgress } from '../../../src/cli/progress.js';

describe('progress bar', () => {
  test('shows the share, the loss and the time left', () => {
    const line = renderBar({ step: 'fineTune', name: 'student 1 of 3', done: 25, total: 100, loss: 5.21 }, 10_000);
    expect(line).toContain('6 fine-tune');
    expect(line).toContain('student 1 of 3');
    expect(line).toContain(`${'█'.repeat(6)}${'░'.repeat(18)}`);
    expect(line).toContain('25 %');
    expect(line).toContain('loss 5.210');
    expect(line).toContain('0:30 left');
  });

  test('shows the seconds taken when the part is done', () => {
    expect(renderBar({ step: 'extract', name: 'x', done: 4, total: 4 }, 2_500)).toContain('2.5 s');
  });

  function collect(isTTY: boolean): { lines: string[]; show: ReturnType<typeof showProgress> } {
    const lines: string[] = [];
    const stderr = { isTTY, columns: 200, write: (text: string) => lines.push(text) > 0 };
    const streams = { stdout: stderr, stderr } as unknown as Parameters<typeof showProgress>[0];
    return { lines, show: showProgress(streams) };
  }

  test('writes one line a finished part where there is no terminal, without escape sequences', () => {
    const { lines, show } = collect(false);
    for (let done = 1; done <= 5; done++) show({ step: 'teacher', name: 'pretrain', done, total: 5 });
    show({ step: 'extract', name: 'hidden states', done: 1, total: 1 });
    expect(lines).toHaveLength(2);
    expect(lines.join('')).not.toContain('\x1b');
  });

  test('redraws one line on a terminal and ends it with a line break', () => {
    const { lines, show } = collect(true);
    show({ step: 'teacher', name: 'pretrain', done: 1, total: 2 });
    show({ step: 'teacher', name: 'pretrain', done: 2, total: 2 });
    expect(lines.every((line) => line.startsWith('\r\x1b[K'))).toBe(true);
    expect(lines.at(-1)?.endsWith('\n')).toBe(true);
  });
});
