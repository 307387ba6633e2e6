import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createEngine, type Engine, type Recommendation, type RecommendRequest, Student } from '../../../src/index.js';
import { parseJson } from '../../../src/server/json-body.js';
import { checked } from '../../../src/server/route.js';
import { recommendRequest } from '../../../src/server/schemas.js';

let engine: Engine;
let student: Student;
beforeAll(async () => {
  engine = await createEngine({ threads: 1 });
  student = await engine.loadStudent(join(import.meta.dirname, '../../fixtures/student'));
});
afterAll(() => engine.dispose());

let state = 11;
function below(n: number): number {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return Math.floor((state / 2 ** 32) * n);
}

/** What the general path makes of a body. */
function reference(text: string, of: Student): Recommendation {
  const { history, k, exclude } = checked(recommendRequest, parseJson(Buffer.from(text)));
  const [answer] = of.recommendAll([{ history, k: Math.min(k, of.numItems), exclude } as RecommendRequest]);
  if (answer === undefined || answer instanceof Error) throw answer;
  return answer;
}

function bytesOf(texts: readonly string[]): Buffer[] {
  return texts.map((text) => Buffer.from(text));
}

/** Answers of the bodies that are plain, those of the others undefined. */
function answersOf(texts: readonly string[], of = student): (string | undefined)[] {
  const rows = new Int32Array(texts.length).fill(77);
  const answers = of.answerTexts(bytesOf(texts), rows);
  expect(answers).toHaveLength(rows.filter((row) => row >= 0).length);
  return Array.from(rows, (row) => answers[row]);
}

function jsonOf({ items, unknownItems }: Recommendation): string {
  return JSON.stringify({ items, unknownItems }).slice(1, -1);
}

function randomIds(count: number): string[] {
  return Array.from({ length: count }, () =>
    below(8) === 0 ? `unknown ${below(100)}` : (student.items[below(student.numItems)]?.id ?? ''),
  );
}

function randomBody(): { history: string[]; k?: number; exclude?: string[] } {
  const known = student.items[below(student.numItems)]?.id ?? '';
  const body: { history: string[]; k?: number; exclude?: string[] } = { history: [...randomIds(below(20)), known] };
  if (below(2) === 0) body.k = 1 + below(Math.min(64, student.numItems));
  if (below(3) === 0) body.exclude = randomIds(below(12));
  return body;
}

describe('answerTexts', () => {
  test('answers plain requests with the JSON of what recommendAll answers', () => {
    const texts = Array.from({ length: 300 }, (_, i) => JSON.stringify(randomBody(), null, i % 3));
    expect(answersOf(texts)).toEqual(texts.map((text) => jsonOf(reference(text, student))));
  });

  test('takes the keys in any order, and space where JSON allows it', () => {
    const [a, b] = student.items.map(({ id }) => id) as [string, string];
    const plain = jsonOf(reference(JSON.stringify({ history: [a, b], k: 3, exclude: [] }), student));
    const texts = [
      `{"k":3,"history":["${a}","${b}"]}`,
      ` { "exclude" : [ ] ,\n"history"\t:[ "${a}" , "${b}" ]\r\n, "k" : 3 } \n`,
    ];
    expect(answersOf(texts)).toEqual([plain, plain]);
  });

  test.each([
    ['nothing', ''],
    ['no object', '["a"]'],
    ['no history', '{"k":3}'],
    ['an empty history', '{"history":[]}'],
    ['a user', '{"history":["A"],"userId":"u"}'],
    ['another key', '{"history":["A"],"novelty":0}'],
    ['a key twice', '{"history":["A"],"history":["A"]}'],
    ['a forbidden key', '{"history":["A"],"__proto__":{}}'],
    ['a text', '{"history":[{"text":"Alien"}]}'],
    ['an escape', '{"history":["\\u0041","A"]}'],
    ['a letter beyond ASCII', '{"history":["A","ä"]}'],
    ['an empty id', '{"history":["A",""]}'],
    ['a long id', `{"history":["A","${'x'.repeat(257)}"]}`],
    ['too many', `{"history":[${Array(1001).fill('"A"').join()}]}`],
    ['k of 0', '{"history":["A"],"k":0}'],
    ['k of 65', '{"history":["A"],"k":65}'],
    ['a fraction', '{"history":["A"],"k":3.0}'],
    ['an exponent', '{"history":["A"],"k":1e1}'],
    ['a leading zero', '{"history":["A"],"k":03}'],
    ['a huge k', '{"history":["A"],"k":4294967299}'],
    ['k as text', '{"history":["A"],"k":"3"}'],
    ['nothing that is known', '{"history":["unknown"]}'],
    ['a comma too many', '{"history":["A",]}'],
    ['more behind it', '{"history":["A"]}}'],
    ['no end', '{"history":["A"]'],
    ['a byte order mark', '\ufeff{"history":["A"]}'],
  ])('leaves others to those who say why: %s', (_, text) => {
    const known = student.items[0]?.id ?? '';
    expect(answersOf([text.replaceAll('"A"', JSON.stringify(known))])).toEqual([undefined]);
  });

  test('takes no body that the general path would refuse or answer otherwise', () => {
    let numTaken = 0;
    for (let round = 0; round < 60; round++) {
      const texts = Array.from({ length: 100 }, () => {
        const bytes = Buffer.from(JSON.stringify(randomBody(), null, below(2)));
        for (let i = below(3); i >= 0; i--) bytes[below(bytes.length)] = below(4) === 0 ? below(256) : 32 + below(95);
        return bytes.toString('latin1');
      });
      const bodies = texts.map((text) => Buffer.from(text, 'latin1'));
      const rows = new Int32Array(bodies.length);
      const answers = student.answerTexts(bodies, rows);
      bodies.forEach((body, i) => {
        const answer = answers[rows[i] as number];
        if (answer === undefined) return;
        numTaken++;
        expect(answer).toBe(jsonOf(reference(body.toString(), student)));
      });
    }
    expect(numTaken).toBeGreaterThan(300);
  });

  test('follows the catalogue, and so do handles', async () => {
    const changed = await engine.loadStudent(join(import.meta.dirname, '../../fixtures/student'));
    const texts = Array.from({ length: 20 }, () => JSON.stringify(randomBody()));
    texts.push('{"history":["added \\"1\\""]}', '{"history":["added"]}', '{"history":["tt0770828"]}');
    const check = (of: Student, plain: number) => {
      const answers = answersOf(texts, of);
      expect(answers.filter((answer) => answer !== undefined)).toHaveLength(plain);
      answers.forEach((answer, i) => {
        if (answer !== undefined) expect(answer).toBe(jsonOf(reference(texts[i] as string, of)));
      });
    };
    check(changed, 21); // 'added' is not yet known
    changed.addItems([
      { id: 'added', text: 'Dune. 2021. Sci-Fi' },
      { id: 'added "1"', text: 'Dune. 1984. Sci-Fi' },
    ]);
    check(changed, 22);
    const before = Student.fromHandle(changed.share());
    changed.removeItems(['added', 'added "1"']);
    check(changed, 21);
    check(before, 22);
    changed.addItems([{ id: 'added', text: 'Solaris. 1972. Sci-Fi' }]);
    check(changed, 22);
    const opened = Student.fromHandle(changed.share());
    changed.dispose();
    check(opened, 22);
    opened.dispose();
    before.dispose();
  });

  test('answers, and what was shared before may still be opened', async () => {
    const shared = await engine.loadStudent(join(import.meta.dirname, '../../fixtures/student'));
    shared.removeItems(['tt1300854']);
    const handle = shared.share();
    const texts = ['{"history":["tt0770828"]}', '{"history":["tt0770828"],"k":3}'];
    const answers = answersOf(texts, shared); // names the items
    for (const other of [Student.fromHandle(handle), Student.fromHandle(shared.share())]) {
      expect(answersOf(texts, other)).toEqual(answers);
      other.dispose();
    }
    for (const wrong of [undefined, null, {}, { ...handle, items: 'a' }, { ...handle, removed: [] }]) {
      expect(() => Student.fromHandle(wrong as never)).toThrow(
        expect.objectContaining({ name: 'LimbeckError', code: 'ERR_INVALID_ARGUMENT' }),
      );
    }
    shared.removeItems(['tt0770828']);
    expect(() => Student.fromHandle(handle)).toThrow(expect.objectContaining({ code: 'ERR_DISPOSED' }));
    shared.dispose();
  });

  test('aside, answers the same, from the catalogue as it was', async () => {
    const changed = await engine.loadStudent(join(import.meta.dirname, '../../fixtures/student'));
    changed.removeItems(['tt1300854']); // before its items are named
    const texts = Array.from({ length: 100 }, () => JSON.stringify(randomBody()));
    texts.push('{"history":["tt1300854"]}');
    const before = answersOf(texts, changed);
    expect(before.at(-1)).toBeUndefined();
    const rows = new Int32Array(texts.length);
    const bodies = bytesOf(texts);
    const answering = changed.answerTextsAside(bodies, rows);
    const told = rows.slice();
    for (const body of bodies) body.fill(0); // they are read already
    changed.removeItems(['tt0770828']);
    changed.dispose();
    const answers = await answering;
    expect(Array.from(told, (row) => answers[row])).toEqual(before);
    await expect(changed.answerTextsAside(bodies, rows)).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
    expect(() => changed.answerTexts(bodies, rows)).toThrow(expect.objectContaining({ code: 'ERR_DISPOSED' }));
  });

  test('refuses what is not a list of bytes, and rows that do not fit', () => {
    const invalid = expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' });
    expect(() => student.answerTexts(['{}'] as never, new Int32Array(1))).toThrow(invalid);
    expect(() => student.answerTexts('{}' as never, new Int32Array(1))).toThrow(invalid);
    expect(() => student.answerTexts([Buffer.from('{}')], new Int32Array(2))).toThrow(
      expect.objectContaining({ code: 'ERR_SHAPE_MISMATCH' }),
    );
    expect(student.answerTexts([], new Int32Array(0))).toEqual([]);
  });
});
