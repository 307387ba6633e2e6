/** Arguments that TypeScript would refuse: each is told in words, with a code, and none is a TypeError from within. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import * as limbeck from '../../src/index.js';

// biome-ignore lint/suspicious/noExplicitAny: what callers without types may do
type Anything = any;

let engine: Anything;
let student: Anything;
let model: Anything;
let registry: Anything;
let directory: string;
const library: Anything = limbeck;

beforeAll(async () => {
  engine = await limbeck.createEngine({ threads: 1, device: 'cpu' });
  student = await engine.loadStudent('test/fixtures/student');
  model = await engine.fitStaticEncoder(['one text', 'another text'], { lexicalComponents: 2 });
  directory = await mkdtemp(join(tmpdir(), 'limbeck-arguments-'));
  registry = await engine.openModelRegistry(directory);
});
afterAll(async () => {
  await rm(directory, { recursive: true, force: true });
  model.dispose();
  student.dispose();
  engine.dispose();
});

const promise = Promise.resolve({});
const cases = {
  sequences: Int32Array.of(0),
  sequenceOffsets: Int32Array.of(0, 1),
  targets: Int32Array.of(1),
  excludeIds: new Int32Array(0),
  excludeOffsets: new Int32Array(2),
};
const data = { train: cases, validation: cases };
const dataset = { items: [], sequences: new Int32Array(0), sequenceOffsets: new Int32Array(1), split: {} };
const corpus = { train: ['a b'], validation: ['a b'] };

function askUsers(users: unknown): unknown {
  student.users = users;
  try {
    return student.recommend({ userId: 'u' });
  } finally {
    student.users = undefined;
  }
}

/** What is called, and what its message says. */
const CALLS: readonly (readonly [string, () => unknown, RegExp])[] = [
  ['measureImportance', () => engine.measureImportance(promise, []), /model: .* LanguageModel.* Promise .*await/],
  ['adapt', () => engine.adapt({}, corpus), /model: expected a LanguageModel, got an object/],
  ['extract', () => engine.extract(undefined, [], { directory: 'x' }), /model: .*got undefined/],
  ['extractPart', () => engine.extractPart({}, [], { directory: 'x' }, null), /part: .*got null/],
  ['fisherWeights', () => engine.fisherWeights(student, student, {}, {}), /student: .*got a Student/],
  ['fitClassifier', () => engine.fitClassifier('gpt2', [], []), /model: .*got a string/],
  ['pretrain', () => engine.pretrain(['a b']), /corpus: expected \{ train, validation \}, got a list/],
  ['distillLanguageModel', () => engine.distillLanguageModel({}, promise), /corpus: .*await/],
  ['itemFeatures', () => engine.itemFeatures(promise, {}), /knowledge: .*await/],
  ['fuseLayers', () => engine.fuseLayers('layers', { rows: 1, columns: 1 }), /expected layers of 1 × 1/],
  ['fuseLayers, size', () => engine.fuseLayers([], null), /size: .*got null/],
  ['reduceDimension', () => engine.reduceDimension(new Float32Array(2)), /options: .*got undefined/],
  ['createSequenceModel', () => engine.createSequenceModel({}, { numItems: 3 }), /options: .*without 'seed'/],
  ['createSequenceEnsemble', () => engine.createSequenceEnsemble([student]), /members\[0\]: .*got a Student/],
  ['createSequenceEnsemble, none', () => engine.createSequenceEnsemble(student.model), /members: expected a list/],
  ['fineTune', () => engine.fineTune(student, {}), /model: expected a SequenceModel, got a Student/],
  ['fineTune, data', () => engine.fineTune(student.model, {}), /data: .*without 'train'/],
  ['embed, hooks', () => model.embed(['a b'], {}, null), /hooks: .*got null/],
  ['embed, options', () => model.embed(['a b'], null), /embed: .*got null/],
  ['embed, pooling', () => model.embed(['a b'], { pool: 'last' }), /embed has no option "pool"\. .*pooling/],
  ['embed, layer', () => model.embed(['a b'], { layer: 0.5 }), /embed\.layer: .*got 0\.5/],
  ['forward, hooks', () => model.forward(['a b'], {}, { abort: 1 }), /hooks has no option "abort"/],
  ['loss, hooks', () => model.loss(['a b'], promise), /hooks: .*await/],
  ['generate, hooks', () => model.generate('a', { maxNewTokens: 1 }, null), /hooks: .*got null/],
  ['addAdapter', () => model.addAdapter(null), /lora: .*got null/],
  ['addAdapter, hooks', () => model.addAdapter({}, null), /hooks: .*got null/],
  ['loadAdapter, hooks', () => model.loadAdapter('x', { signals: 1 }), /hooks has no option "signals".*"signal"/],
  ['rank, hooks', () => student.model.rank(cases, cases, null), /hooks: .*got null/],
  ['tokenize', () => model.tokenize(['a b'], null), /maxLength: expected at least 2 tokens, got null/],
  ['tokenize, 0', () => model.tokenize(['a b'], 0), /maxLength: .*got 0/],
  ['fitClassifier, labels', () => engine.fitClassifier(model, ['a'], promise), /labels: .*await/],
  ['appendItems', () => student.model.appendItems(undefined), /features: .*got undefined/],
  ['appendItems, part', () => student.model.appendItems(new Float32Array(1)), /features: .*got 1 numbers/],
  ['createStudent', () => engine.createStudent(student, []), /model: expected a SequenceModel, got a Student/],
  ['createStudent, details', () => engine.createStudent(student.model, student.items, null), /details: .*got null/],
  ['fineTune, teacher', () => engine.fineTune(student.model, data, {}, { teacher: promise }), /teacher: .*await/],
  ['fineTune, rankings', () => engine.fineTune(student.model, data, {}, { rankings: promise }), /rankings: .*await/],
  ['fineTune, train', () => engine.fineTune(student.model, { ...data, train: promise }), /data\.train: .*await/],
  ['fineTune, options', () => engine.fineTune(student.model, data, promise), /fineTune: .*await/],
  ['details', () => engine.createStudent(student.model, student.items, promise), /details: .*await/],
  ['details, a list', () => engine.createStudent(student.model, student.items, []), /details: .*got a list/],
  ['createEngine', () => library.createEngine(promise), /createEngine: expected an object, got a Promise .*await/],
  ['finetune', () => engine.finetune(student.model, []), /student: expected a Student/],
  ['finetune, events', () => engine.finetune(student, Promise.resolve([])), /events: .*await/],
  ['finetune, options', () => engine.finetune(student, [], null), /options: .*got null/],
  ['finetune, replay', () => engine.finetune(student, [], { replay: promise }), /dataset: .*await/],
  ['signal', () => engine.prepare({ path: 'x' }, { signal: new AbortController() }), /hooks\.signal: .*AbortSignal/],
  [
    'signal of a model',
    () => student.model.rank(cases, cases, { signal: new AbortController() }),
    /signal: .*AbortSignal/,
  ],
  ['rank', () => student.model.rank(promise, cases), /cases: .*await/],
  ['rank, options', () => student.model.rank(cases), /options: .*got undefined/],
  ['onProgress', () => engine.prepare({ path: 'x' }, { onProgress: 5 }), /hooks\.onProgress: expected a function/],
  ['hooks', () => engine.distill({ output: 'x' }, null), /hooks: .*got null/],
  [
    'context',
    () => engine.fineTune(student.model, {}, {}, { teachers: [] }),
    /hooks has no option "teachers".*"teacher"/,
  ],
  ['users', () => askUsers({}), /student\.users: .*without 'history'/],
  ['fromHandle', () => limbeck.Student.fromHandle({ ...student.share(), encoder: null }), /expected what share\(\)/],
  ['evaluationSet', () => library.evaluationSet(promise, 'test'), /dataset: .*prepareDataset\(\).*await/],
  [
    'evaluationSet, lists',
    () => library.evaluationSet({ ...dataset, sequences: [0] }, 'test'),
    /an Int32Array, got a list/,
  ],
  [
    'seenItems, offsets',
    () => library.seenItems({ ...dataset, sequenceOffsets: {} }, 0),
    /sequenceOffsets: .*an object/,
  ],
  ['historySentences, items', () => library.historySentences({ ...dataset, items: 'x' }), /dataset\.items: .*a string/],
  ['trainSequences', () => library.trainSequences({}), /dataset: .*without 'items'/],
  ['seenItems', () => library.seenItems(null, 0), /dataset: .*got null/],
  ['historySentences', () => library.historySentences([], {}), /dataset: .*got a list/],
  ['itemSentence', () => library.itemSentence('text'), /item: .*got a string/],
  ['itemSentence, text', () => library.itemSentence({ text: 5 }), /item\.text: expected a text, got 5/],
  ['rankingSignal', () => library.rankingSignal(promise), /rankings: .*await/],
  ['saveRankings', () => library.saveRankings('x', {}), /rankings: .*without 'catalogue'/],
  ['loadRankings', () => library.loadRankings('x', undefined), /dataset: .*got undefined/],
  ['registry.add', () => registry.add('x', student.model), /source: expected a Student/],
  ['mergeKnowledge', () => library.mergeKnowledge('x', 'y'), /others: expected a list/],
  [
    'cacheSequenceTeacher, layers',
    () => library.cacheSequenceTeacher(engine.createSequenceEnsemble([student.model]), cases, { layers: 1 }),
    /options\.layers: .*got 1/,
  ],
  [
    'cacheSequenceTeacher, layer',
    () => library.cacheSequenceTeacher(engine.createSequenceEnsemble([student.model]), cases, { layer: [1] }),
    /options has no option "layer".*"layers"/,
  ],
  [
    'cacheSequenceTeacher',
    () => library.cacheSequenceTeacher(student.model, {}),
    /teacher: expected a SequenceEnsemble/,
  ],
  ['initialiseStudent', () => library.initialiseStudent(student.model.native, {}), /options: .*without 'method'/],
  ['projectTeacher', () => library.projectTeacher(student, {}, {}), /student: expected the `native` of a model/],
  [
    'interpolateParameters',
    () => library.interpolateParameters(student.model.native, {}, 0.5),
    /teacher: .*'parameters'/,
  ],
  [
    'interpolateParameters, model',
    () => library.interpolateParameters(student.model.native, student.model.native, 1),
    /parameters: .*got a function/,
  ],
  [
    'interpolateParameters, weights',
    () => library.interpolateParameters(student.model.native, { parameters: [] }, 1, promise),
    /weights: .*Map.*await/,
  ],
  [
    'initialiseStudent, student',
    () => library.initialiseStudent(promise, { method: 'random', studentLayers: 1 }),
    /student: .*await/,
  ],
  ['prepareDataset', () => library.prepareDataset({}, { signal: new AbortController() }), /hooks\.signal: /],
  ['StrategyTrials', () => new library.StrategyTrials(null), /selector: expected a StrategySelector, got null/],
  ['selectByMass', () => library.selectByMass({}, {}), /sums: .*without 'residual'/],
  ['saveImportance', () => library.saveImportance('x', promise), /importance: .*await/],
  ['loadImportance', () => library.loadImportance(undefined), /path: expected a path/],
  ['renderReport', () => library.renderReport({ title: 'x' }), /report: .*without 'rows'/],
  ['renderQualityReport', () => library.renderQualityReport(undefined), /report: .*got undefined/],
  ['followUserStates', () => library.followUserStates({}, {}), /store: .*without 'follow'/],
  ['checkpointUserStates', () => library.checkpointUserStates({}, {}, {}), /states: expected a UserStates/],
  ['UserStates', () => new library.UserStates().history(5), /userId: expected a text, got 5/],
  ['UserStates.apply', () => new library.UserStates().apply({}), /stored: .*without 'offset'/],
  ['StrategySelector', () => new library.StrategySelector().choose(undefined), /context: .*got undefined/],
];

/** Methods that take hooks, and after how many arguments. */
const WITH_HOOKS: readonly (readonly [string, number])[] = [
  ['distill', 1],
  ['prepare', 1],
  ['loadLanguageModel', 1],
  ['pretrain', 2],
  ['fitStaticEncoder', 2],
  ['adapt', 3],
  ['extract', 3],
  ['extractPart', 4],
  ['measureImportance', 2],
  ['importRankings', 2],
  ['fineTune', 3],
  ['distillLanguageModel', 3],
  ['fitClassifier', 4],
  ['finetune', 3],
  ['evaluate', 1],
  ['benchQuality', 1],
];

describe('hooks', () => {
  it.each(WITH_HOOKS)('of %s are checked before anything is done', async (method, position) => {
    const call = (hooks: unknown) => engine[method](...Array(position).fill(undefined), hooks);
    const message = expect.stringMatching(/^hooks\.signal: expected an AbortSignal, got an AbortController$/);
    await expect(call({ signal: new AbortController() })).rejects.toMatchObject({ message });
    await expect(call({ singal: undefined })).rejects.toMatchObject({ code: 'ERR_UNKNOWN_OPTION' });
  });
});

describe('arguments that are no such thing', () => {
  it.each(CALLS)('%s', async (_, call, message) => {
    const error = await Promise.resolve()
      .then(call)
      .catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(limbeck.LimbeckError);
    expect((error as limbeck.LimbeckError).code).toMatch(/^ERR_(INVALID_ARGUMENT|UNKNOWN_OPTION|SHAPE_MISMATCH)$/);
    expect((error as Error).message).toMatch(message);
  });
});
