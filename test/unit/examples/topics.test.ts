import { join } from 'node:path';
import { expect, test } from 'vitest';
import { readPosts } from '../../../examples/topics/posts.mjs';
import { runProgram } from '../../support/run-program.js';

const root = join(import.meta.dirname, '../../..');
const row = (id: number, type: number, attributes: string) => `<row Id="${id}" PostTypeId="${type}" ${attributes} />`;
const LONG = 'It depends on the yeast, on the temperature, and on how long you are ready to wait for it.';
const XML = [
  row(
    1,
    1,
    'Title="Which &quot;hops&quot;?" Body="&lt;p&gt;Citra &amp;amp; more&#xA; hops&lt;/p&gt;" Tags="&lt;hops&gt;&lt;ipa&gt;"',
  ),
  row(2, 2, `ParentId="1" Body="&lt;p&gt;${LONG}&lt;/p&gt;"`),
  row(3, 2, 'ParentId="1" Body="&lt;p&gt;Yes.&lt;/p&gt;"'),
  row(4, 1, 'Title="Where?" Body="&lt;p&gt;In Gdansk&lt;/p&gt;" Tags="&lt;poland&gt;"'),
  row(5, 2, 'ParentId="4" Body="&lt;p&gt;Here.&lt;/p&gt;"'),
  row(6, 1, 'Title="How cold?" Body="&lt;p&gt;In a cellar&lt;/p&gt;" Tags="&lt;ipa&gt;&lt;storage&gt;"'),
  row(7, 1, 'Title="More hops?" Body="" Tags="&lt;hops&gt;"'),
  row(8, 4, 'Body="Questions about Polish beers."'),
  row(9, 5, 'Body=""'),
  row(10, 7, 'Body="Moved elsewhere."'),
].join('\n');

test('questions have the first tag that is frequent and their long answers; other posts are none of theirs', () => {
  const { questions, others } = readPosts(`<posts>${XML}</posts>`, 2);
  expect(questions).toEqual([
    { text: 'Which "hops"?. Citra & more hops', tag: 'hops', answers: [LONG] },
    { text: 'How cold?. In a cellar', tag: 'ipa', answers: [] },
    { text: 'More hops?. ', tag: 'hops', answers: [] },
  ]);
  expect(others).toEqual(['Where?. In Gdansk', 'Here.', 'Questions about Polish beers.']);
});

test.each(['topics', 'next-skill'])('examples/%s says where its data should be when they are not there', (name) => {
  const { status, stdout } = runProgram(process.execPath, [join(root, 'examples', name, 'run.mjs'), '/nowhere']);
  expect(status).toBe(0);
  expect(stdout).toContain("Skipped: '/nowhere'");
});
