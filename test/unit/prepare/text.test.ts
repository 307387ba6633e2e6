import { describe, expect, it } from 'vitest';
import { cleanText, joinTexts } from '../../../src/prepare/text.js';
import { cpuTimeMs } from '../../support/cpu-time.js';

describe('cleanText', () => {
  it.each([
    ['<p>One</p><p>two</p>', 'One two'],
    ['H<sub>2</sub>O and <b>bo</b>ld', 'H2O and bold'],
    ['a<br/>b<BR>c', 'a b c'],
    ['before<!-- a > b -->after', 'before after'],
    ['a <script>if (1 < 2) alert("x")</script> b <STYLE>p{}</STYLE >c', 'a b c'],
    ['<a href="x" title="y">link</a>', 'link'],
    ['1 < 2 and 3 > 2', '1 < 2 and 3 > 2'],
    ['I <3 you', 'I <3 you'],
    ['a <b', 'a <b'],
    ['Tom &amp; Jerry &lt;3 &quot;x&quot; &apos;y&apos;', 'Tom & Jerry <3 "x" \'y\''],
    ['&#233;&#xE9;&#x1F600;', 'éé😀'],
    ['it&#146;s', 'it’s'],
    ['&amp;lt;b&amp;gt;', '&lt;b&gt;'],
    ['&lt;b&gt;', '<b>'],
    ['&unknown; & &;', '&unknown; & &;'],
    ['&#0;&#xD800;&#x110000;&#99999999;', '\ufffd\ufffd\ufffd\ufffd'],
    ['  a\t\n\u0000\u007f b\u00a0c&nbsp;d\u2003e ', 'a b c d e'],
    ['\ufeffa\u200bb\u202ec\u00ad', 'abc'],
    ['e\u0301', 'é'],
    ['a\ud800b', 'a\ufffdb'],
    ['\u200d👩\u200d🚀', '\u200d👩\u200d🚀'],
    ['', ''],
  ])('turns %j into %j', (raw, clean) => {
    expect(cleanText(raw)).toBe(clean);
  });

  it.each(['<', '<!--', '<a', '<script>', '&', '&#', '<a>', '</script'])(
    'takes linear time on a long run of %j',
    async (piece) => {
      expect(await cpuTimeMs(() => cleanText(piece.repeat(200_000)))).toBeLessThan(1000);
    },
  );
});

describe('joinTexts', () => {
  it('joins what is left after cleaning, with one full stop between', () => {
    expect(joinTexts(['Up', ' ', '2009', '<br>', 'Comedy'])).toBe('Up. 2009. Comedy');
    expect(joinTexts(['What?', 'E.T.', '(He said "no.")', 'end'])).toBe('What? E.T. (He said "no.") end');
    expect(joinTexts([])).toBe('');
  });
});
