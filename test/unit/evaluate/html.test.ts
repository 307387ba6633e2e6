import { describe, expect, it } from 'vitest';
import { escapeHtml, shorten } from '../../../src/evaluate/html.js';

describe('escapeHtml', () => {
  it('escapes everything that could leave text or an attribute', () => {
    expect(escapeHtml(`<a b="c" d='e'>&amp;`)).toBe('&lt;a b=&quot;c&quot; d=&#39;e&#39;&gt;&amp;amp;');
  });

  it('replaces control characters and lone surrogates, and keeps line breaks, tabs and emoji', () => {
    expect(escapeHtml('a\0b\u001bc\u0085d\ud83de')).toBe('a\uFFFDb\uFFFDc\uFFFDd\uFFFDe');
    expect(escapeHtml('a\n\tb 🎬 ü')).toBe('a\n\tb 🎬 ü');
  });
});

describe('shorten', () => {
  it('cuts by characters, never through a surrogate pair', () => {
    expect(shorten('abcdef', 6)).toBe('abcdef');
    expect(shorten('abcdefg', 6)).toBe('abcde…');
    expect(shorten('🎬🎬🎬🎬', 3)).toBe('🎬🎬…');
  });
});
