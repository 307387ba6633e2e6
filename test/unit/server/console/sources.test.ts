import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';

const folder = join(import.meta.dirname, '../../../../src/server/console');
const files = readdirSync(folder).map((name) => ({ name, text: readFileSync(join(folder, name), 'utf8') }));

/** The files of a kind, of which there are some. */
function named(ending: string) {
  const found = files.filter(({ name }) => name.endsWith(ending));
  expect(found, ending).not.toEqual([]);
  return found;
}

describe("the console's files", () => {
  test('write nothing as HTML or as code', () => {
    const sinks = /\b(innerHTML|outerHTML|insertAdjacentHTML|setHTMLUnsafe|document\.write|eval|Function|srcdoc)\b/;
    for (const { name, text } of named('.js')) expect(sinks.exec(text)?.[0], name).toBeUndefined();
  });

  test('load nothing from elsewhere', () => {
    for (const { name, text } of files) {
      const addresses = [...text.matchAll(/(?:https?:)?\/\/[\w.-]+\.\w+[^\s"')]*/g)].map(([address]) => address);
      expect(
        addresses.filter((address) => !/^http:\/\/www\.w3\.org\/2000\/svg$/.test(address)),
        name,
      ).toEqual([]);
    }
  });

  test('have no style and no script inside the page', () => {
    for (const { name, text } of named('.html')) {
      expect(/<style|style=|<script(?![^>]*src=)|\son\w+=/.exec(text)?.[0], name).toBeUndefined();
    }
  });

  test('name only files that are there', () => {
    let count = 0;
    for (const { name, text } of [...named('.html'), ...named('.js')]) {
      const references = [...text.matchAll(/(?:src|href)="([\w.-]+)"|from '\.\/([\w.-]+)'/g)].map(
        (match) => match[1] ?? match[2],
      );
      count += references.length;
      for (const reference of references)
        expect(
          files.map((file) => file.name),
          name,
        ).toContain(reference);
    }
    expect(count).toBeGreaterThan(0);
  });

  test('keep the key nowhere but in the session', () => {
    const places = named('.js').filter(({ text }) => /localStorage|indexedDB|document\.cookie/.test(text));
    expect(places.map(({ name }) => name)).toEqual(['theme.js']);
  });
});
