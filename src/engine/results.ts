/** Step 8: from trained models to the rows, examples and timings of the report. */
import type { NativeEngine } from '../binding.js';
import { bootstrapDifference } from '../evaluate/bootstrap.js';
import { type LatencySummary, measureLatency } from '../evaluate/latency.js';
import { userContributions } from '../evaluate/metrics.js';
import { mostPopular, rankByPopularity } from '../evaluate/popularity.js';
import type { EvaluationSet, SystemResult } from '../evaluate/recommendation.js';
import type { Comparison, ExampleUser } from '../evaluate/report-types.js';
import type { Dataset } from '../prepare/dataset.js';
import type { Hooks } from '../prepare/hooks.js';
import { Student } from '../recommend/student.js';
import type { SequenceEnsemble } from '../student/sequence-ensemble.js';
import type { SequenceModel } from '../student/sequence-model.js';

/** Lists this long are asked for, so that coverage is known up to k = 20. */
export const LIST_LENGTH = 20;
export const LATENCY = { warmup: 200, iterations: 2000 };
/** Different histories that latency is measured with. */
export const LATENCY_USERS = 500;
const RECOMMENDED_IN_EXAMPLES = 10;
const HISTORY_IN_EXAMPLES = 10;

/** The popularity baseline; `parameters` is one count an item. */
export async function popularityResult(trainCounts: Int32Array, test: EvaluationSet): Promise<SystemResult> {
  const { ranks, topK } = await rankByPopularity(trainCounts, test, LIST_LENGTH);
  const byCount = Int32Array.from(trainCounts.keys()).sort(
    (a, b) => (trainCounts[b] ?? 0) - (trainCounts[a] ?? 0) || a - b,
  );
  const histories = historiesOf(test, (item) => item, LATENCY_USERS);
  const latency = await measureLatency((i) => {
    mostPopular(byCount, new Set(histories[i % histories.length]), 10);
  }, LATENCY);
  return { name: 'popularity', seeds: [], ranks: [ranks], topK, parameters: trainCounts.length, latency };
}

/** One trained system: the models of its seeds, each ranked over the whole catalogue. */
export async function modelResult(
  name: string,
  models: readonly { readonly seed: number; readonly model: SequenceModel | SequenceEnsemble }[],
  test: EvaluationSet,
  latency: LatencySummary,
  hooks: Hooks,
): Promise<SystemResult> {
  const ranks: Int32Array[] = [];
  let topK: Int32Array | undefined;
  for (const { model } of models) {
    const ranking = await model.rank(test, { ...test, topK: LIST_LENGTH }, hooks);
    ranks.push(ranking.ranks);
    topK ??= ranking.topK;
  }
  return {
    name,
    seeds: models.map(({ seed }) => seed),
    ranks,
    ...(topK === undefined ? {} : { topK }),
    parameters: models[0]?.model.numParameters ?? 0,
    latency,
  };
}

/** Ten recommendations for one user at a time, histories of the test users in turn; of an ensemble, by each member. */
export async function studentLatency(students: readonly Student[], test: EvaluationSet): Promise<LatencySummary> {
  const [{ items, numItems }] = students as readonly [Student];
  const histories = historiesOf(test, (item) => items[item]?.id ?? '', LATENCY_USERS);
  return measureLatency((i) => {
    const request = { history: histories[i % histories.length] ?? [], k: Math.min(10, numItems) };
    for (const student of students) student.recommend(request);
  }, LATENCY);
}

/** The same of trained models, which stay as they are. */
export async function modelLatency(
  engine: NativeEngine,
  models: readonly SequenceModel[],
  { items }: Dataset,
  test: EvaluationSet,
): Promise<LatencySummary> {
  const students: Student[] = [];
  try {
    for (const model of models) students.push(new Student(engine, model, items));
    return await studentLatency(students, test);
  } finally {
    for (const student of students) student.disposeRecommender();
  }
}

/** Paired difference in ndcg@10 over the same users. */
export async function compareSystems(ours: SystemResult, other: SystemResult, seed: number): Promise<Comparison> {
  const ndcg = ({ ranks }: SystemResult) => ranks.map((one) => userContributions(one, 'ndcg', 10));
  const { mean, interval } = await bootstrapDifference(ndcg(ours), ndcg(other), { seed });
  return { name: `${ours.name} − ${other.name}`, metric: 'ndcgAt10', difference: mean, interval };
}

/** Users spread evenly over the test set, with what the student would recommend to each. */
export function exampleUsers(dataset: Dataset, student: Student, test: EvaluationSet, count: number): ExampleUser[] {
  const numCases = test.targets.length;
  const wanted = Math.min(count, numCases);
  const item = (index: number) => ({ id: student.items[index]?.id ?? '', text: student.items[index]?.text ?? '' });
  return Array.from({ length: wanted }, (_, i) => {
    const s = Math.floor(((2 * i + 1) * numCases) / (2 * wanted));
    const history = historyOf(test, s, (index) => student.items[index]?.id ?? '');
    const { items } = student.recommend({ history, k: Math.min(RECOMMENDED_IN_EXAMPLES, student.numItems) });
    return {
      user: dataset.users[test.users[s] ?? 0] ?? '',
      history: history.slice(-HISTORY_IN_EXAMPLES).map((id) => item(student.indexOf(id) ?? 0)),
      recommendations: items.map(({ id, score }) => ({ ...item(student.indexOf(id) ?? 0), score })),
      next: item(test.targets[s] ?? 0),
    };
  });
}

/** The first `most` histories of the test cases. */
export function historiesOf<T>(test: EvaluationSet, name: (item: number) => T, most: number): T[][] {
  return Array.from({ length: Math.min(most, test.targets.length) }, (_, s) => historyOf(test, s, name));
}

function historyOf<T>(test: EvaluationSet, s: number, name: (item: number) => T): T[] {
  return Array.from(test.sequences.subarray(test.sequenceOffsets[s], test.sequenceOffsets[s + 1]), name);
}
