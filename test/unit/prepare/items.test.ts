import { describe, expect, it } from 'vitest';
import { readItemNames } from '../../../src/prepare/items.js';
import { writeTemporary } from './temporary-files.js';

describe('readItemNames', () => {
  it.each([
    ['names.csv', 'id,title\n1,Alien\n2,\n3, \n,Dune\n4,Alien\n5,Solaris\n'],
    [
      'names.jsonl',
      '{"id":1,"title":"Alien"}\n{"id":2,"title":null}\n{"title":"Dune"}\n{"id":4,"title":"Alien"}\n{"id":5,"title":"Solaris"}\n',
    ],
  ])(
    'reads names of %s: the first row of a name wins, and rows without a name or an id are left out',
    async (name, content) => {
      const source = { path: writeTemporary(name, content), columns: { id: 'id', text: ['title'] } };
      expect({ ...(await readItemNames(source, 'title')) }).toEqual({ Alien: '1', Solaris: '5' });
    },
  );
});
