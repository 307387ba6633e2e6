import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { readConfig } from '../../../src/cli/config.js';

const directory = mkdtempSync(join(tmpdir(), 'limbeck-cli-'));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

function write(name: string, content: string | Uint8Array): string {
  const path = join(directory, name);
  writeFileSync(path, content);
  return path;
}

describe('readConfig', () => {
  it('counts data and teacher paths from the file, output from the current directory', async () => {
    const path = write(
      'paths.yaml',
      `output: out/films
data:
  interactions: { path: ratings.csv, columns: { user: u, item: i } }
  items: { path: ../items.csv }
teacher: { directory: models/gpt2 }
`,
    );
    expect(await readConfig(path)).toEqual({
      output: 'out/films',
      data: {
        interactions: { path: join(directory, 'ratings.csv'), columns: { user: 'u', item: 'i' } },
        items: { path: join(directory, '../items.csv') },
      },
      teacher: { directory: join(directory, 'models/gpt2') },
    });
  });

  it('counts the paths of a static teacher and of rankings from the file too', async () => {
    const path = write(
      'more-paths.yaml',
      'teacher: { static: { directory: model2vec, lexicalComponents: 8 } }\nrankings: { path: made/r.safetensors }\n',
    );
    expect(await readConfig(path)).toEqual({
      teacher: { static: { directory: join(directory, 'model2vec'), lexicalComponents: 8 } },
      rankings: { path: join(directory, 'made/r.safetensors') },
    });
  });

  it('keeps the name of a model on the hub', async () => {
    const path = write('hub.yaml', 'teacher: { directory: hf://someone/small@v1 }');
    expect(await readConfig(path)).toEqual({ teacher: { directory: 'hf://someone/small@v1' } });
  });

  it('keeps absolute paths', async () => {
    const path = write('absolute.yaml', 'data: { interactions: { path: /data/ratings.csv } }');
    expect(await readConfig(path)).toEqual({ data: { interactions: { path: '/data/ratings.csv' } } });
  });

  it('reads the same from JSON as from YAML', async () => {
    const config = { title: 'x', seeds: [0, 1], data: { interactions: { path: 'a.csv' } } };
    const fromJson = await readConfig(write('same.JSON', JSON.stringify(config)));
    expect(fromJson).toEqual(
      await readConfig(write('same.yml', 'title: x\nseeds: [0, 1]\ndata: {interactions: {path: a.csv}}')),
    );
  });

  it('leaves values of a wrong type to whoever checks them', async () => {
    const path = write('types.yaml', 'data: 5\nteacher: [a]\n');
    expect(await readConfig(path)).toEqual({ data: 5, teacher: ['a'] });
  });

  it.each([
    ['a key twice', 'title: a\nseeds: [0]\ntitle: b\n', /line 3/],
    ['an open bracket', 'title: a\nseeds: [0,\n', /line \d/],
    ['two documents', 'title: a\n---\ntitle: b\n', /line 2/],
    ['an alias without an anchor', 'title: *name\n', /alias/],
    ['a list at the top', '- title\n', /keys and values/],
    ['only a comment', '# nothing\n', /keys and values/],
  ])('refuses YAML with %s', async (_, content, message) => {
    const path = write('broken.yaml', content);
    await expect(readConfig(path)).rejects.toMatchObject({
      code: 'ERR_FILE_FORMAT',
      message: expect.stringMatching(message),
    });
    await expect(readConfig(path)).rejects.toThrow(/^[^\n]*broken\.yaml[^\n]*$/);
  });

  // Each of these would end the process by a stack overflow inside V8.
  it.each([
    ['lists in brackets', '['],
    ['maps in brackets', '{a: '],
    ['lists', '- '],
    ['keys', '? '],
  ])('refuses %s nested without end', async (_, opening) => {
    const path = write('deep.yaml', `title: x\ndata:\n  ${opening.repeat(100_000)}`);
    await expect(readConfig(path)).rejects.toMatchObject({
      code: 'ERR_FILE_FORMAT',
      message: expect.stringContaining('line 3'),
    });
  });

  it('refuses indented maps nested without end', async () => {
    const lines = Array.from({ length: 300 }, (_, depth) => `${' '.repeat(depth)}a:`);
    await expect(readConfig(write('deep.yaml', lines.join('\n')))).rejects.toMatchObject({ code: 'ERR_FILE_FORMAT' });
  });

  it('allows three times the nesting that the options have', async () => {
    const path = write(
      'nested.yaml',
      `${Array.from({ length: 15 }, (_, depth) => `${' '.repeat(depth)}a:`).join('\n')} 1`,
    );
    await expect(readConfig(path)).resolves.toHaveProperty('a.a.a.a.a');
  });

  it('refuses a data file in place of a config before it parses it', async () => {
    const path = write('large.yaml', 'a: 1\n'.repeat(2 ** 18));
    await expect(readConfig(path)).rejects.toMatchObject({
      code: 'ERR_FILE_FORMAT',
      message: expect.stringContaining('characters'),
    });
  });

  it('refuses aliases that unfold into gigabytes', async () => {
    const levels = Array.from(
      { length: 11 },
      (_, i) => `a${i + 1}: &a${i + 1} [${Array(9).fill(`*a${i}`).join(', ')}]`,
    );
    const path = write('bomb.yaml', ['a0: &a0 [x, x, x]', ...levels].join('\n'));
    await expect(readConfig(path)).rejects.toMatchObject({ code: 'ERR_FILE_FORMAT' });
  });

  it.each([
    ['a key twice', '{"title": "a", "title": "b"}'],
    ['no end', '{"title": '],
  ])('refuses JSON with %s and names the file', async (_, content) => {
    await expect(readConfig(write('broken.json', content))).rejects.toMatchObject({
      code: 'ERR_FILE_FORMAT',
      message: expect.stringContaining('broken.json'),
    });
  });

  it('refuses a file that is not UTF-8', async () => {
    const path = write('latin1.yaml', Buffer.from('title: Am\xe9lie', 'latin1'));
    await expect(readConfig(path)).rejects.toMatchObject({
      code: 'ERR_FILE_FORMAT',
      message: expect.stringContaining('latin1.yaml'),
    });
  });

  it('says that a file is not there', async () => {
    await expect(readConfig(join(directory, 'none.yaml'))).rejects.toMatchObject({ code: 'ERR_FILE_NOT_FOUND' });
  });
});
