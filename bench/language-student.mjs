/**
 * `node bench/language-student.mjs [--seeds 0,1,2] [--also cut,long,width] [--work DIR] [--json]`: what a language student of
 * half its teacher's layers keeps.
 *
 * The teacher, a GPT-2 of four layers, is pretrained on the texts of the demo (item descriptions and histories of
 * MovieTweetings). The distilled student starts from its first and its last block and learns by cross-entropy and the
 * teacher's logits. The plain student has the same shape, starts from random weights, and is trained at least as long in
 * processor time. `cut` adds one that starts as the distilled student does and has no teacher afterwards, `long` a plain
 * one that is trained for as many epochs as the teacher. `width` adds students of all four layers and half the width: a
 * plain one, and two distilled ones that start from some of the teacher's channels or from its principal axes. Students
 * choose their learning rate among the same ones, with the first seed. Validation texts choose it and the best epoch; test
 * texts are read at the end. What a model keeps is its share of the teacher's gain in test loss over a unigram model.
 *
 * Models are kept in `--work`: a run that was killed goes on from them.
 */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { makeCorpus } from '../dist/engine/stages.js';
import { createEngine } from '../dist/index.js';
import { movieTweetings } from './held-out-users.mjs';
import { writeResult } from './write-result.mjs';

const { values: options } = parseArgs({
  options: {
    seeds: { type: 'string', default: '0,1,2' },
    also: { type: 'string', default: '' },
    work: { type: 'string' },
    json: { type: 'boolean', default: false },
  },
});
const seeds = options.seeds.split(',').map(Number);
const work = resolve(options.work ?? mkdtempSync(join(tmpdir(), 'language-student-')));
mkdirSync(work, { recursive: true });

const SHAPE = { hiddenSize: 96, numAttentionHeads: 4, dropout: 0.1 };
const TEACHER_LAYERS = 4;
const NARROW = { ...SHAPE, hiddenSize: SHAPE.hiddenSize / 2, numAttentionHeads: SHAPE.numAttentionHeads / 2 };
const TEACHER_TRAINING = { learningRate: 0.004, batchTokens: 2048, epochs: 14 };
const DISTILLED_EPOCHS = 3;
const LEARNING_RATES = [0.002, 0.004, 0.008];
const LOSSES = { ce: 0.5, kd: 0.5, temperature: 1 };

/** Mean nats a token under the frequencies of the training tokens, each counted once more. */
function unigramLoss(train, test, vocabSize) {
  const counts = new Float64Array(vocabSize).fill(1);
  let total = vocabSize;
  const visit = ({ ids, offsets }, each) => {
    for (let s = 0; s + 1 < offsets.length; s++) {
      for (let i = offsets[s] + 1; i < offsets[s + 1]; i++) each(ids[i]);
    }
  };
  visit(train, (id) => {
    counts[id]++;
    total++;
  });
  let loss = 0;
  let tokens = 0;
  visit(test, (id) => {
    loss -= Math.log(counts[id] / total);
    tokens++;
  });
  return loss / tokens;
}

const engine = await createEngine({ threads: 1, device: 'cpu' });
const corpus = await makeCorpus(await movieTweetings(engine), { maxHistory: 5, heldOut: 0.05 });

/** A model with what its training took: from the work directory where it was trained before. */
async function trained(name, train) {
  const directory = join(work, name);
  const notes = join(work, `${name}.json`);
  if (!existsSync(notes)) {
    const before = process.cpuUsage();
    const { model, epochs, bestEpoch } = await train();
    const { user, system } = process.cpuUsage(before);
    await model.save(directory);
    model.dispose();
    const validation = epochs.map(({ validationLoss }) => validationLoss);
    writeFileSync(
      notes,
      JSON.stringify({ epochs: epochs.length, bestEpoch, cpuSeconds: (user + system) / 1e6, validation }),
    );
    console.error(
      `${name}: validation loss ${Math.min(...validation).toFixed(4)}, ${((user + system) / 1e6).toFixed(0)} s`,
    );
  }
  return { model: await engine.loadLanguageModel(directory), ...JSON.parse(readFileSync(notes, 'utf8')) };
}

const architecture = { ...SHAPE, numHiddenLayers: TEACHER_LAYERS / 2 };
const distil = (teacher, seed, learningRate) =>
  trained(`distilled-${seed}-${learningRate}`, () =>
    engine.distillLanguageModel(teacher.model, corpus, {
      architecture,
      initialise: 'layers',
      losses: LOSSES,
      training: { batchTokens: 2048, epochs: DISTILLED_EPOCHS, learningRate, seed },
    }),
  );
/** Cross-entropy alone; with `layers`, from the blocks that the distilled student starts from. */
const trainAlone = (teacher, seed, learningRate, epochs, initialise = /** @type {'random' | 'layers'} */ ('random')) =>
  trained(`${initialise}-${seed}-${learningRate}-${epochs}`, () =>
    engine.distillLanguageModel(teacher.model, corpus, {
      architecture,
      initialise,
      losses: { ce: 1, kd: 0 },
      training: { batchTokens: 2048, epochs, learningRate, seed },
    }),
  );

/** Of half the width; `losses` and epochs of the distilled or of the plain student. */
const trainNarrow = (teacher, seed, learningRate, name, options) =>
  trained(`narrow-${name}-${seed}-${learningRate}-${options.epochs}`, () =>
    engine.distillLanguageModel(teacher.model, corpus, {
      architecture: { ...NARROW, numHiddenLayers: TEACHER_LAYERS },
      ...options.start,
      losses: options.losses,
      training: { batchTokens: 2048, epochs: options.epochs, learningRate, seed },
    }),
  );

/** The training of the lowest validation loss; the others are freed. */
async function best(learningRates, train) {
  const all = [];
  for (const learningRate of learningRates) all.push({ ...(await train(learningRate)), learningRate });
  all.sort((a, b) => Math.min(...a.validation) - Math.min(...b.validation));
  for (const { model } of all.slice(1)) model.dispose();
  return all[0];
}

/** @type {Record<string, any>[]} */
const models = [];
let rates;
for (const seed of seeds) {
  const teacher = await trained(`teacher-${seed}`, () =>
    engine.pretrain(corpus, {
      architecture: { ...SHAPE, numHiddenLayers: TEACHER_LAYERS, maxPositionEmbeddings: 128 },
      training: { ...TEACHER_TRAINING, seed },
    }),
  );
  const distilled = await best(rates?.distilled ?? LEARNING_RATES, (rate) => distil(teacher, seed, rate));
  const once = await trainAlone(teacher, seed, LEARNING_RATES[0], 1);
  once.model.dispose();
  const epochs = Math.ceil(distilled.cpuSeconds / once.cpuSeconds);
  const plain = await best(rates?.plain ?? LEARNING_RATES, (rate) => trainAlone(teacher, seed, rate, epochs));
  rates ??= { distilled: [distilled.learningRate], plain: [plain.learningRate] };
  models.push({ seed, epochs, teacher: { ...teacher, learningRate: TEACHER_TRAINING.learningRate }, plain, distilled });
}
const also = options.also.split(',');
for (const run of also.includes('cut') ? models : []) {
  const { learningRate } = run.distilled;
  run.cut = { ...(await trainAlone(run.teacher, run.seed, learningRate, run.epochs, 'layers')), learningRate };
}
for (const run of also.includes('long') ? models : []) {
  const { learningRate } = run.plain;
  const long = await trainAlone(run.teacher, run.seed, learningRate, TEACHER_TRAINING.epochs);
  run.plainLong = { ...long, learningRate };
}
/** @type {Record<string, number[]>} */
const narrowRates = {};
for (const run of also.includes('width') ? models : []) {
  const narrow = (name, options) =>
    best(narrowRates[name] ?? LEARNING_RATES, (rate) => trainNarrow(run.teacher, run.seed, rate, name, options));
  for (const width of ['selection', 'pca']) {
    const start = { initialise: 'width', width, importance: 'fisher' };
    run[width] = await narrow(width, { start, losses: LOSSES, epochs: DISTILLED_EPOCHS });
    narrowRates[width] ??= [run[width].learningRate];
  }
  const alone = { start: { initialise: 'random' }, losses: { ce: 1, kd: 0 } };
  const once = await trainNarrow(run.teacher, run.seed, LEARNING_RATES[0], 'plain', { ...alone, epochs: 1 });
  once.model.dispose();
  const epochs = Math.ceil(run.pca.cpuSeconds / once.cpuSeconds);
  run.plainNarrow = await narrow('plain', { ...alone, epochs });
  narrowRates.plain ??= [run.plainNarrow.learningRate];
}

const runs = [];
for (const { seed, teacher, plain, plainLong, cut, distilled, plainNarrow, selection, pca } of models) {
  const [train, test] = [await teacher.model.tokenize(corpus.train), await teacher.model.tokenize(corpus.test)];
  const unigram = unigramLoss(train, test, teacher.model.config.vocabSize);
  const teacherLoss = (await teacher.model.loss(corpus.test)).loss;
  const row = async ({ model, learningRate, epochs, bestEpoch, cpuSeconds, validation }) => {
    const { loss } = await model.loss(corpus.test);
    return {
      parameters: model.numParameters,
      learningRate,
      epochs,
      bestEpoch,
      cpuSeconds: Number(cpuSeconds.toFixed(1)),
      validationLoss: Math.min(...validation),
      testLoss: loss,
      keeps: (unigram - loss) / (unigram - teacherLoss),
    };
  };
  runs.push({
    seed,
    unigram,
    teacher: await row(teacher),
    plain: await row(plain),
    ...(plainLong ? { plainLong: await row(plainLong) } : {}),
    ...(cut ? { cut: await row(cut) } : {}),
    distilled: await row(distilled),
    ...(plainNarrow ? { plainNarrow: await row(plainNarrow) } : {}),
    ...(selection ? { selection: await row(selection) } : {}),
    ...(pca ? { pca: await row(pca) } : {}),
  });
}
engine.dispose();

const SYSTEMS = {
  teacher: 'teacher',
  plain: 'plain student, as long',
  plainLong: "plain student, the teacher's epochs",
  cut: "the teacher's blocks, cross-entropy alone, as long",
  distilled: 'distilled student',
  plainNarrow: 'half the width: plain student, as long',
  selection: "half the width: distilled, from the teacher's channels",
  pca: "half the width: distilled, from the teacher's principal axes",
};
console.log('| seed | system | parameters | learning rate | epochs | processor seconds | test loss | of the gain |');
console.log('|---|---|---|---|---|---|---|---|');
for (const run of runs) {
  console.log(`| ${run.seed} | unigram | | | | | ${run.unigram.toFixed(4)} | 0 |`);
  for (const [name, title] of Object.entries(SYSTEMS)) {
    if (run[name] === undefined) continue;
    const { parameters, learningRate, epochs, cpuSeconds, testLoss, keeps } = run[name];
    console.log(
      `| ${run.seed} | ${title} | ${parameters} | ${learningRate} | ${epochs} | ${cpuSeconds.toFixed(0)} | ` +
        `${testLoss.toFixed(4)} | ${(100 * keeps).toFixed(1)} % |`,
    );
  }
}
if (options.json) {
  writeResult('language-student', {
    threads: 1,
    shape: SHAPE,
    narrow: NARROW,
    teacherLayers: TEACHER_LAYERS,
    losses: LOSSES,
    learningRates: LEARNING_RATES,
    runs,
  });
}
