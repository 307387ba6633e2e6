/**
 * `node examples/topics/run.mjs [DIRECTORY] [--seeds N] [--json]`: topics of the posts of a forum. DIRECTORY holds Posts.xml of
 * a Stack Exchange data dump; without it there is nothing to run, and it says so. MODEL2VEC names a model2vec directory to use
 * as well.
 */
import { existsSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { bootstrapDifference, bootstrapMeanOverSeeds } from '../../dist/evaluate/bootstrap.js';
import { classificationMetrics } from '../../dist/evaluate/classification.js';
import { summarizeLatency } from '../../dist/evaluate/latency.js';
import { createEngine } from '../../dist/index.js';
import { readPosts } from './posts.mjs';

const CLASSES = 10;
const FOLDS = 5;
const SHAPE = { hiddenSize: 64, numAttentionHeads: 4, maxPositionEmbeddings: 256 };
const TEACHER_LAYERS = 4;
const STUDENT_LAYERS = 2;
const TRAINING = { learningRate: 0.002, batchTokens: 512 };
const TEACHER_EPOCHS = 6;
const DISTILLED_EPOCHS = 3;
/** Takes as long as the distilled student's, for which the teacher reads along. */
const PLAIN_EPOCHS = 5;

const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: { seeds: { type: 'string', default: '3' }, json: { type: 'boolean', default: false } },
});
const directory = resolve(positionals[0] ?? join(process.env.LIMBECK_DATA ?? '.', 'beer-stackexchange'));
const path = join(directory, 'Posts.xml');
if (existsSync(path)) await main(readPosts(readFileSync(path, 'utf8'), CLASSES));
else console.log(`Skipped: '${directory}' has no Posts.xml. Name the directory that has it.`);

async function main({ questions, others }) {
  const engine = await createEngine();
  const labels = questions.map(({ tag }) => tag);
  const most = Math.max(...counted(labels).values());
  console.log(`${questions.length} questions of ${CLASSES} tags; ${others.length} other posts`);
  console.log(`the most frequent tag: accuracy ${(most / questions.length).toFixed(3)}`);
  const systems = new Map();
  const add = async (name, model, options, measured) => {
    const runs = systems.get(name) ?? [];
    systems.set(name, [...runs, { ...measured, ...(await crossValidate(engine, model, questions, options)) }]);
    process.stderr.write(`${name}: accuracy ${systems.get(name).at(-1).accuracy.toFixed(3)}\n`);
  };

  for (let seed = 0; seed < Number(flags.seeds); seed++) {
    for (const [name, options] of Object.entries(staticEncoders())) {
      const { model, cpuSeconds } = await timed(async () => ({
        model: await engine.fitStaticEncoder(others, options, { seed }),
      }));
      await add(name, model, { layer: 0, seed }, { cpuSeconds });
      model.dispose();
    }
    const corpus = {
      train: others.filter((_, i) => i % 20 !== 0),
      validation: others.filter((_, i) => i % 20 === 0),
    };
    const teacher = await timed(() =>
      engine.pretrain(corpus, {
        architecture: { ...SHAPE, numHiddenLayers: TEACHER_LAYERS },
        training: { ...TRAINING, epochs: TEACHER_EPOCHS, seed },
      }),
    );
    const student = (options, epochs) =>
      timed(() =>
        engine.distillLanguageModel(teacher.model, corpus, {
          architecture: { ...SHAPE, numHiddenLayers: STUDENT_LAYERS },
          training: { ...TRAINING, epochs, seed },
          ...options,
        }),
      );
    const plain = await student({ losses: { ce: 1, kd: 0 } }, PLAIN_EPOCHS);
    const distilled = await student({ initialise: 'layers', losses: { ce: 0.5, kd: 0.5 } }, DISTILLED_EPOCHS);
    for (const [name, { model, cpuSeconds }] of Object.entries({
      teacher,
      'student without a teacher': plain,
      'distilled student': distilled,
    })) {
      const { loss } = await model.loss(corpus.validation);
      await add(name, model, { seed }, { cpuSeconds, loss });
      model.dispose();
    }
  }
  engine.dispose();
  await print(systems, labels);
}

function staticEncoders() {
  const { MODEL2VEC: model2vec } = process.env;
  const lexical = { 'latent semantic analysis': {} };
  if (!model2vec) return lexical;
  return {
    ...lexical,
    model2vec: { directory: model2vec, lexicalComponents: 0 },
    'model2vec and latent semantic analysis': { directory: model2vec },
  };
}

/** With the processor seconds that it took. */
async function timed(train) {
  const before = process.cpuUsage();
  const { model } = await train();
  const { user, system } = process.cpuUsage(before);
  return { model, cpuSeconds: (user + system) / 1e6 };
}

/**
 * The class that is found for each question by a classifier that has seen the questions of the other folds alone, and their
 * answers, which have the class of their question.
 */
async function crossValidate(engine, model, questions, options) {
  const found = new Array(questions.length);
  const durationsMs = [];
  for (let fold = 0; fold < FOLDS; fold++) {
    const train = questions.filter((_, i) => i % FOLDS !== fold);
    const examples = train.flatMap(({ text, tag, answers }) => [text, ...answers].map((one) => ({ text: one, tag })));
    const { classifier } = await engine.fitClassifier(
      model,
      examples.map(({ text }) => text),
      examples.map(({ tag }) => tag),
      options,
    );
    for (let i = fold; i < questions.length; i += FOLDS) {
      const start = performance.now();
      const [{ label }] = await classifier.classify([questions[i].text]);
      durationsMs.push(performance.now() - start);
      found[i] = label;
    }
    classifier.dispose();
  }
  const { accuracy } = classificationMetrics(
    questions.map(({ tag }) => tag),
    found,
  );
  const { p50Ms } = summarizeLatency(Float64Array.from(durationsMs));
  const { hiddenSize } = model.config;
  return { found, accuracy, p50Ms, parameters: model.numParameters + CLASSES * (hiddenSize + 1) };
}

async function print(systems, labels) {
  const hits = (runs) => runs.map(({ found }) => Float64Array.from(found, (label, i) => (label === labels[i] ? 1 : 0)));
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const metrics = (runs) => runs.map(({ found }) => classificationMetrics(labels, found));
  console.log(
    '| encoder | accuracy | macro F1 | loss | parameters | p50 latency | processor time |\n|---|---|---|---|---|---|---|',
  );
  const rows = [];
  for (const [name, runs] of systems) {
    const { mean: accuracy, interval } = await bootstrapMeanOverSeeds(hits(runs));
    const f1 = mean(metrics(runs).map(({ macro }) => macro.f1));
    const [p50Ms, cpuSeconds] = ['p50Ms', 'cpuSeconds'].map((key) => mean(runs.map((run) => run[key])));
    const { parameters } = runs[0];
    const loss = runs[0].loss === undefined ? undefined : mean(runs.map((run) => run.loss));
    rows.push({ name, accuracy, interval, f1, loss, parameters, p50Ms, cpuSeconds, seeds: runs.length });
    const half = (interval[1] - interval[0]) / 2;
    console.log(
      `| ${name} | ${accuracy.toFixed(3)} ± ${half.toFixed(3)} | ${f1.toFixed(3)} | ${loss?.toFixed(2) ?? ''} | ${parameters} | ${p50Ms.toFixed(2)} ms | ${cpuSeconds.toFixed(0)} s |`,
    );
  }
  const [distilled, plain] = ['distilled student', 'student without a teacher'].map((name) => systems.get(name));
  const { mean: gain, interval } = await bootstrapDifference(hits(distilled), hits(plain));
  const bounds = interval.map((bound) => bound.toFixed(3)).join(' to ');
  console.log(`\ndistilled − without a teacher: ${gain.toFixed(3)} accuracy, 95 % interval ${bounds}\n`);
  const byClass = metrics(distilled).map(({ classes }) => classes);
  console.log('| distilled student | questions | precision | recall | F1 |\n|---|---|---|---|---|');
  byClass[0].forEach(({ label, support }, k) => {
    const scores = ['precision', 'recall', 'f1'].map((key) =>
      mean(byClass.map((classes) => classes[k][key])).toFixed(2),
    );
    console.log(`| ${label} | ${support} | ${scores.join(' | ')} |`);
  });
  if (flags.json) console.log(JSON.stringify({ rows, gain: { accuracy: gain, interval }, classes: byClass }));
}

function counted(values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return counts;
}
