/** One trial of one workload by onnxruntime-node: `node onnx_trial.mjs WORKLOAD DIRECTORY THREADS`, as ../trial.mjs. */
import { join } from 'node:path';
import { resourceUsage } from 'node:process';
import { InferenceSession, Tensor } from 'onnxruntime-node';
import { Random, sequenceInputs, WORKLOADS } from '../workloads.mjs';

const [name, directory, threads] = process.argv.slice(2);
const workload = WORKLOADS[name];
const MIN_SECONDS = 2;
const session = await InferenceSession.create(join(directory, 'model.onnx'), {
  intraOpNumThreads: Number(threads),
  interOpNumThreads: 1,
  graphOptimizationLevel: 'all',
  logSeverityLevel: 3,
});
const tensor = (ids, rows) => new Tensor('int64', BigInt64Array.from(ids, BigInt), [rows, ids.length / rows]);

async function forward() {
  const { inputIds } = sequenceInputs(workload);
  const feeds = { ids: tensor(inputIds, workload.sequences) };
  const first = await session.run(feeds);
  const last = first[session.outputNames.at(-1)].data;
  const seconds = [];
  const begin = performance.now();
  while (seconds.length < 3 || performance.now() - begin < MIN_SECONDS * 1000) {
    const start = performance.now();
    await session.run(feeds);
    seconds.push((performance.now() - start) / 1000);
  }
  seconds.sort((a, b) => a - b);
  return {
    check: [...last.subarray(last.length - 8)],
    value: inputIds.length / seconds[Math.floor(seconds.length / 2)],
  };
}

async function request() {
  const random = new Random(1);
  const histories = Array.from({ length: 50 }, () =>
    tensor(
      Array.from({ length: workload.length }, () => random.integer(workload.model.vocabSize)),
      1,
    ),
  );
  const first = await session.run({ ids: histories[0] });
  const durations = [];
  const begin = performance.now();
  for (let i = -100; i < 3000 && performance.now() - begin < 3 * MIN_SECONDS * 1000; i++) {
    const start = performance.now();
    await session.run({ ids: histories[(i + 100) % histories.length] });
    if (i >= 0) durations.push(performance.now() - start);
  }
  durations.sort((a, b) => a - b);
  return {
    check: [...first[session.outputNames[0]].data].map(Number),
    value: durations[Math.floor(durations.length / 2)],
    p99: durations[Math.floor(durations.length * 0.99)],
  };
}

const result = workload.task === 'request' ? await request() : await forward();
console.log(JSON.stringify({ ...result, peakBytes: resourceUsage().maxRSS * 1024 }));
