/**
 * `node bench/strategy-simulation.mjs [--seeds N] [--json]`: what the choice of strategies costs while it learns, on
 * users that the student was not trained on.
 *
 * A student is trained on three quarters of the MovieTweetings users. Every other user is replayed: after each film that
 * they rated, the student is asked for ten, and what they rated next tells which of those they would have wanted. A click
 * model decides what they click (position-based, Craswell et al. 2008): place p is looked at with probability 1 / p; a
 * film among the user's next ten is clicked with probability 0.8 when it is looked at, any other with 0.02. The reward is
 * 1 if anything was clicked, so the expected reward of every list is known exactly, and regret is counted in it.
 *
 * Two kinds of users: `as logged` want what they rated, whatever it is; `bored by hits` are made up: they want of it what
 * is not among the 100 films that are rated most.
 *
 * The selector and its delayed rewards are those of the product, with their defaults: requests come every 10 s, so an
 * answer's reward is known 180 requests later.
 */
import { parseArgs } from 'node:util';
import { createEngine, StrategySelector, StrategyTrials } from '../dist/index.js';
import { randomNumbers, shuffled } from '../dist/teacher/batches.js';
import { HELD_OUT, movieTweetings, trainedUsers, trainStudent } from './held-out-users.mjs';
import { writeResult } from './write-result.mjs';

const { values: options } = parseArgs({
  options: { seeds: { type: 'string', default: '10' }, json: { type: 'boolean', default: false } },
});
const numSeeds = Number(options.seeds);

/** Further apart than the product's own, so that there is something to lose. */
const STRATEGIES = [
  { name: 'relevance', diversity: 0, novelty: 0, explore: 0 },
  { name: 'diverse', diversity: 0.6, novelty: 0, explore: 0 },
  { name: 'very-diverse', diversity: 0.9, novelty: 0, explore: 0 },
  { name: 'novel', diversity: 0, novelty: 0.5, explore: 0 },
  { name: 'very-novel', diversity: 0, novelty: 1, explore: 0 },
  { name: 'exploring', diversity: 0, novelty: 0, explore: 0.3 },
];

const K = 10;
const NEXT = 10;
const HITS = 100;
const CLICK = 0.8;
const NOISE = 0.02;
const REQUEST_MS = 10_000;
const START = Date.UTC(2026, 0, 1);

const USERS = {
  'as logged': () => true,
  'bored by hits': (id, hits) => !hits.has(id),
};

/** Probability that anything of a list is clicked. */
function clickProbability(list, wanted) {
  let none = 1;
  list.forEach((id, place) => {
    none *= 1 - (wanted.has(id) ? CLICK : NOISE) / (place + 1);
  });
  return 1 - none;
}

/** Every request of the held-out users, with the expected reward of each strategy's answer for both kinds of users. */
function replay(student, hits, { items, users, sequences, sequenceOffsets }) {
  const requests = [];
  for (let user = 0; user < users.length; user += HELD_OUT) {
    const films = Array.from(sequences.subarray(sequenceOffsets[user], sequenceOffsets[user + 1]), (i) => items[i].id);
    for (let length = 1; length < films.length; length++) {
      const history = films.slice(0, length);
      const next = films.slice(length, length + NEXT);
      const lists = STRATEGIES.map(({ name: _, ...weights }) =>
        student.recommend({ history, k: K, seed: requests.length, ...weights }).items.map(({ id }) => id),
      );
      const expected = {};
      for (const [name, wants] of Object.entries(USERS)) {
        const wanted = new Set(next.filter((id) => wants(id, hits)));
        expected[name] = lists.map((list) => clickProbability(list, wanted));
      }
      requests.push({ historyLength: length, expected });
    }
  }
  return requests;
}

/** Total regret of each policy against the best fixed strategy, at four moments. */
function simulate(requests, users, seed) {
  const order = shuffled(requests.length, seed, 1);
  const random = randomNumbers(seed + 1000);
  const selector = new StrategySelector({ strategies: STRATEGIES, seed });
  const trials = new StrategyTrials(selector, { rewards: { click: 1 } });
  const indexOf = new Map(STRATEGIES.map(({ name }, i) => [name, i]));
  const fixed = STRATEGIES.map(() => 0);
  const totals = { thompson: 0, uniform: 0 };
  const chosen = STRATEGIES.map(() => 0);
  const curve = [];
  order.forEach((index, round) => {
    const { historyLength } = requests[index];
    const expected = requests[index].expected[users];
    const now = START + round * REQUEST_MS;
    const context = { historyLength };
    const { name } = selector.choose(context, now);
    const arm = indexOf.get(name) ?? -1;
    const requestId = String(round);
    trials.begin(requestId, name, context, now);
    if (random() < expected[arm]) trials.apply({ type: 'click', requestId }, now);
    chosen[arm]++;
    totals.thompson += expected[arm];
    totals.uniform += expected.reduce((sum, x) => sum + x, 0) / expected.length;
    for (let i = 0; i < expected.length; i++) fixed[i] += expected[i];
    if ((round + 1) % Math.floor(order.length / 4) === 0) {
      const best = Math.max(...fixed);
      curve.push({
        requests: round + 1,
        thompson: best - totals.thompson,
        uniform: best - totals.uniform,
        worst: best - Math.min(...fixed),
      });
    }
  });
  return { curve, chosen: chosen.map((count) => count / order.length) };
}

const mean = (values) => values.reduce((sum, x) => sum + x, 0) / values.length;
function deviation(values) {
  const center = mean(values);
  return Math.sqrt(values.reduce((sum, x) => sum + (x - center) ** 2, 0) / Math.max(1, values.length - 1));
}

const engine = await createEngine();
const dataset = await movieTweetings(engine);
const student = await trainStudent(engine, trainedUsers(dataset));
const hits = new Set(student.recommend({ history: [], k: HITS }).items.map(({ id }) => id));
const requests = replay(student, hits, dataset);
engine.dispose();

const CONTEXTS = {
  all: () => true,
  'history 1 to 4': ({ historyLength }) => historyLength < 5,
  '5 to 19': ({ historyLength }) => historyLength >= 5 && historyLength < 20,
  '20 or more': ({ historyLength }) => historyLength >= 20,
};

/** Mean and deviation over seeds of every number of the table. */
function summarise(users) {
  const runs = Array.from({ length: numSeeds }, (_, seed) => simulate(requests, users, seed));
  const moments = runs[0].curve.map(({ requests: at }, i) => {
    const summary = (policy) => {
      const values = runs.map(({ curve }) => curve[i][policy]);
      return { mean: mean(values), deviation: deviation(values) };
    };
    return { requests: at, thompson: summary('thompson'), uniform: summary('uniform'), worst: summary('worst') };
  });
  const strategies = STRATEGIES.map((strategy, i) => {
    const rewards = Object.entries(CONTEXTS).map(([name, isIn]) => [
      name,
      mean(requests.filter(isIn).map(({ expected }) => expected[users][i])),
    ]);
    return { ...strategy, expectedReward: Object.fromEntries(rewards), chosen: mean(runs.map((run) => run.chosen[i])) };
  });
  return { strategies, moments };
}

function print(users, { strategies, moments }) {
  console.log(`\nUsers ${users}: expected reward of each strategy, and how often it was chosen\n`);
  console.log(`| strategy | diversity | novelty | explore | ${Object.keys(CONTEXTS).join(' | ')} | chosen |`);
  console.log('|---|---|---|---|---|---|---|---|---|');
  for (const { name, diversity, novelty, explore, expectedReward, chosen } of strategies) {
    const numbers = [...Object.values(expectedReward), chosen].map((x) => x.toFixed(3));
    console.log(`| ${[name, diversity, novelty, explore, ...numbers].join(' | ')} |`);
  }
  console.log(`\nUsers ${users}: cumulative regret against the best fixed strategy, in clicked answers\n`);
  console.log('| requests | Thompson sampling | uniform random | worst fixed |\n|---|---|---|---|');
  for (const { requests: at, thompson, uniform, worst } of moments) {
    const cell = (one) => `${one.mean.toFixed(3)} ± ${one.deviation.toFixed(3)}`;
    console.log(`| ${at} | ${cell(thompson)} | ${cell(uniform)} | ${cell(worst)} |`);
  }
}

console.log(`${requests.length} requests of held-out users; mean ± deviation of ${numSeeds} seeds`);
const results = {};
for (const users of Object.keys(USERS)) {
  results[users] = summarise(users);
  print(users, results[users]);
}
if (options.json) {
  const settings = { K, NEXT, HITS, HELD_OUT, CLICK, NOISE, REQUEST_MS, seeds: numSeeds };
  writeResult('strategy-simulation', { settings, requests: requests.length, results });
}
