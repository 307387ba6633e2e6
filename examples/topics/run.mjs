/**
 * `node examples/topics/run.mjs [DIRECTORY]`: topics of the posts of a forum. DIRECTORY holds Posts.xml of a Stack Exchange
 * data dump; without it there is nothing to run, and it says so. MODEL2VEC names a model2vec directory to use as well.
 */
import { existsSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { createEngine } from '../../dist/index.js';

const CLASSES = 10;
const FOLDS = 5;

const directory = resolve(process.argv[2] ?? join(process.env.LIMBECK_DATA ?? '.', 'beer-stackexchange'));
const path = join(directory, 'Posts.xml');
if (existsSync(path)) await compare(questionsOf(readFileSync(path, 'utf8')));
else console.log(`Skipped: '${directory}' has no Posts.xml. Name the directory that has it.`);

/** Questions as { text, tag }: title and body, and the first tag that is among the most frequent ones. */
function questionsOf(xml) {
  const rows = xml.matchAll(/<row [^>]*PostTypeId="1"[^>]*>/g);
  const all = Array.from(rows, ([row]) => ({
    text: plain(`${attribute(row, 'Title')}. ${plain(attribute(row, 'Body')).replace(/<[^>]*>/g, ' ')}`),
    tags: Array.from(attribute(row, 'Tags').matchAll(/&lt;(.*?)&gt;/g), ([, tag]) => tag),
  }));
  const counts = new Map();
  for (const tag of all.flatMap(({ tags }) => tags)) counts.set(tag, (counts.get(tag) ?? 0) + 1);
  const frequent = [...counts].sort((a, b) => b[1] - a[1]).slice(0, CLASSES);
  const names = new Set(frequent.map(([tag]) => tag));
  return all.flatMap(({ text, tags }) => {
    const tag = tags.find((one) => names.has(one));
    return tag === undefined ? [] : [{ text, tag }];
  });
}

function attribute(row, name) {
  return new RegExp(` ${name}="([^"]*)"`).exec(row)?.[1] ?? '';
}

function plain(text) {
  const entities = { lt: '<', gt: '>', quot: '"', apos: "'", amp: '&', '#xA': ' ', '#xD': ' ', '#x9': ' ' };
  return text.replace(/&(#?\w+);/g, (whole, name) => entities[name] ?? whole);
}

/** Every question is a test question in one of the folds; encoder and classifier see the other folds alone. */
async function compare(questions) {
  const engine = await createEngine();
  const encoders = { 'latent semantic analysis': {} };
  const { MODEL2VEC: model2vec } = process.env;
  if (model2vec) {
    encoders.model2vec = { directory: model2vec, lexicalComponents: 0 };
    encoders['model2vec and latent semantic analysis'] = { directory: model2vec };
  }
  console.log(`${questions.length} questions, ${CLASSES} tags, ${FOLDS} folds`);
  console.log('| encoder | accuracy | macro F1 |\n|---|---|---|');
  const most = Math.max(...counted(questions.map(({ tag }) => tag)).values());
  console.log(`| none: the most frequent tag | ${(most / questions.length).toFixed(3)} | |`);
  for (const [name, options] of Object.entries(encoders)) {
    const scores = [];
    for (let fold = 0; fold < FOLDS; fold++) {
      const train = questions.filter((_, i) => i % FOLDS !== fold);
      const test = questions.filter((_, i) => i % FOLDS === fold);
      const texts = train.map(({ text }) => text);
      const encoder = await engine.fitStaticEncoder(texts, options);
      const tags = train.map(({ tag }) => tag);
      const { classifier } = await engine.fitClassifier(encoder, texts, tags, { layer: 0, seed: fold });
      const { accuracy, macro } = await classifier.evaluate(
        test.map(({ text }) => text),
        test.map(({ tag }) => tag),
      );
      scores.push({ accuracy, f1: macro.f1 });
      encoder.dispose();
    }
    const [accuracy, f1] = ['accuracy', 'f1'].map((key) => scores.map((score) => score[key]));
    console.log(`| ${name} | ${meanAndRange(accuracy)} | ${meanAndRange(f1)} |`);
  }
  engine.dispose();
}

function counted(values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return counts;
}

function meanAndRange(values) {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  return `${mean.toFixed(3)} (${Math.min(...values).toFixed(3)} … ${Math.max(...values).toFixed(3)})`;
}
