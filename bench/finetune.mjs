/**
 * `node bench/finetune.mjs [--seeds N] [--json]`: what a student learns from later feedback, and what it forgets, with and
 * without some of the earlier data mixed in.
 *
 * A student is trained on the first three quarters of the MovieTweetings ratings, by time. Those that came later, of the
 * same and of new users, are the feedback, and `engine.finetune()` runs with its defaults. Ranks are of the last film of
 * each user, among the whole catalogue: of users with feedback, and of those who had stopped before.
 */
import { parseArgs } from 'node:util';
import { createEngine } from '../dist/index.js';
import { firstItems, movieTweetings, trainStudent } from './held-out-users.mjs';
import { writeResult } from './write-result.mjs';

const { values: options } = parseArgs({
  options: { seeds: { type: 'string', default: '3' }, json: { type: 'boolean', default: false } },
});

const engine = await createEngine();
const dataset = await movieTweetings(engine, { strategy: 'globalTime', validationFraction: 0.05, testFraction: 0.2 });
const { items, users, sequences, sequenceOffsets, split } = dataset;
const replay = firstItems(dataset, (user) => split.trainLength[user]);
const student = await trainStudent(engine, replay);
const events = users.flatMap((userId, user) => {
  const later = sequences.subarray(sequenceOffsets[user] + split.trainLength[user], sequenceOffsets[user + 1]);
  return Array.from(later, (item, time) => ({ userId, itemId: items[item].id, type: 'view', time }));
});

const runs = [];
for (let seed = 0; seed < Number(options.seeds); seed++) {
  for (const replayRatio of [0, 4]) {
    const start = performance.now();
    const settings = { replay, replayRatio, training: { seed } };
    const { student: made, report } = await engine.finetune(student, events, settings);
    const seconds = (performance.now() - start) / 1000;
    if (made !== student) made.dispose();
    const { cases, before, after, difference, promoted, counts } = report;
    const earlier = /** @type {import('../dist/engine/finetune.js').FinetuneComparison} */ (report.earlier);
    runs.push({ seed, replayRatio, seconds, counts, promoted, cases, before, after, difference, earlier });
    process.stderr.write(`seed ${seed}, replayRatio ${replayRatio}: ${report.reason}, ${seconds.toFixed(1)} s\n`);
  }
}
engine.dispose();

const [{ counts, cases, before, earlier }] = runs;
console.log(`${counts.events} events of ${counts.users} users; ${cases} of them and ${earlier.cases} others judge`);
console.log(
  `before: ndcg@10 ${before.ndcgAt10.toFixed(3)} of users with feedback, ${earlier.before.ndcgAt10.toFixed(3)} of the others`,
);
console.log(
  '\n| replayRatio | seed | ndcg@10, users with feedback | change (95 %) | ndcg@10, others | change (95 %) | promoted |',
);
console.log('|---|---|---|---|---|---|---|');
const change = ({ mean, interval }) => `${mean.toFixed(3)} (${interval.map((x) => x.toFixed(3)).join(' to ')})`;
for (const run of runs.toSorted((a, b) => a.replayRatio - b.replayRatio)) {
  const of = (one) => `${one.after.ndcgAt10.toFixed(3)} | ${change(one.difference)}`;
  console.log(
    `| ${run.replayRatio} | ${run.seed} | ${of(run)} | ${of(run.earlier)} | ${run.promoted ? 'yes' : 'no'} |`,
  );
}
if (options.json) writeResult('finetune', { runs });
