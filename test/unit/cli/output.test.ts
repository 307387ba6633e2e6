import { PassThrough } from 'node:stream';
import { describe, expect, it } from 'vitest';
import { print, printable } from '../../../src/cli/output.js';

function printed(json: boolean, object: unknown, text: string): string {
  const stdout = new PassThrough();
  print({ stdout, stderr: new PassThrough() }, json, object, () => text);
  return String(stdout.read());
}

describe('print', () => {
  it('writes text for people', () => {
    expect(printed(false, { a: 1 }, 'one\ntwo')).toBe('one\ntwo\n');
  });

  it('writes one line of JSON for programs, whatever the values hold', () => {
    expect(printed(true, { a: 'x\ny', b: Number.NaN }, 'unused')).toBe('{"a":"x\\ny","b":null}\n');
  });

  it('keeps a title from commanding the terminal', () => {
    expect(printed(false, {}, 'Alien\x1b]0;owned\x07\r\x9b2J')).toBe('Alien ]0;owned   2J\n');
  });
});

describe('printable', () => {
  it('keeps letters of every script and line breaks', () => {
    expect(printable('Amélie 天使\n— ½')).toBe('Amélie 天使\n— ½');
  });
});
