/**
 * What aligning two vocabularies keeps: node bench/alignment.mjs TEXTS STUDENT TEACHER
 *
 * TEXTS has one text a line; STUDENT and TEACHER are directories of tokenizers. Prints one JSON object: how many of the
 * student's labels follow a token that ends where one of the teacher's does, how many classes the vocabularies share, and
 * for the teacher's tokens of the texts which share of them is in a class, and the entropy (nats) of tokens and classes.
 */
import { readFileSync } from 'node:fs';
import { loadTokenizer } from '../dist/formats/tokenizer.js';
import { alignCorpus } from '../dist/student/aligned-teacher.js';

const [path, ...directories] = process.argv.slice(2);
if (path === undefined || directories.length !== 2) {
  throw new Error('Usage: node bench/alignment.mjs TEXTS STUDENT TEACHER');
}
const texts = readFileSync(path, 'utf8')
  .split('\n')
  .filter((line) => line.trim() !== '');
const [student, teacher] = await Promise.all(
  directories.map(async (directory) => {
    const tokenizer = await loadTokenizer(directory);
    return { tokenizer, vocabSize: tokenizer.vocabSize, maxLength: 1024 };
  }),
);
const begin = performance.now();
const aligned = await alignCorpus(texts, student, teacher);
const seconds = (performance.now() - begin) / 1000;

const tokens = new Map();
const classes = new Map();
let [all, inClass] = [0, 0];
for (const text of texts) {
  for (const id of teacher.tokenizer.encode(text, { addSpecialTokens: false })) {
    const one = aligned.teacherClasses[id];
    all++;
    if (one !== -1) inClass++;
    tokens.set(id, (tokens.get(id) ?? 0) + 1);
    classes.set(one, (classes.get(one) ?? 0) + 1);
  }
}
const entropyOf = (counts) => [...counts.values()].reduce((sum, n) => sum - (n / all) * Math.log(n / all), 0);

console.log(
  JSON.stringify({
    texts: texts.length,
    characters: texts.reduce((sum, text) => sum + text.length, 0),
    labels: aligned.numLabels,
    shared: aligned.numShared / aligned.numLabels,
    classes: aligned.numClasses,
    inClass: inClass / all,
    tokenEntropy: entropyOf(tokens),
    classEntropy: entropyOf(classes),
    seconds,
  }),
);
