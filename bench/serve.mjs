/**
 * The service against its bars: `node bench/serve.mjs [throughput] [swap] [overload] [soak]`, all four when none is
 * named. Client and server are processes of their own on the same cores, over loopback; the student has 10,000 items,
 * 2 layers of width 64, and histories of 20. Results are merged into bench/results/serve-DATE.json.
 */
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { openEventStore } from '../dist/feedback/open-event-store.js';
import { createEngine } from '../dist/index.js';
import { closedLoop, openLoop, post } from './http-load.mjs';
import { Random } from './workloads.mjs';
import { aboutThisRun } from './write-result.mjs';

const NUM_ITEMS = 10_000;
const HISTORY = 20;
const K = 10;
const SEED = 7;
const ROUNDS = 5;
const ROUND_SECONDS = 3;
const CONNECTIONS = 32;
const PHASES = ['throughput', 'swap', 'overload', 'soak'];
const SOAK_REQUESTS = Number(process.env.SOAK_REQUESTS ?? 1_000_000);
const OVERLOAD_SECONDS = Number(process.env.OVERLOAD_SECONDS ?? 60);

const root = resolve(import.meta.dirname, '..');
const folder = mkdtempSync(join(tmpdir(), 'limbeck-bench-'));
const random = new Random(SEED);
const histories = Array.from({ length: 1000 }, () =>
  Array.from({ length: HISTORY }, () => `i${random.integer(NUM_ITEMS)}`),
);
const requests = histories.map((history) => post('/v1/recommend', { history, k: K }));
const next = (i) => requests[i % requests.length];
const userRequests = histories.map((_, i) => post('/v1/recommend', { userId: `u${i}`, k: K }));
const nextUser = (i) => userRequests[i % userRequests.length];

function median(values) {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
}

/** Two versions of a student in a registry; one of them answers in this process, too. */
async function prepare() {
  const engine = await createEngine({ threads: 1 });
  const architecture = { hiddenSize: 64, numHiddenLayers: 2, numAttentionHeads: 2, maxHistory: 50, dropout: 0 };
  const items = Array.from({ length: NUM_ITEMS }, (_, i) => ({ id: `i${i}`, text: `Title ${i}. Drama` }));
  const registry = await engine.openModelRegistry(join(folder, 'models'));
  const makeStudent = () =>
    engine.createStudent(engine.createSequenceModel(architecture, { numItems: NUM_ITEMS, seed: SEED }), items);
  const student = makeStudent();
  await registry.add('one', makeStudent());
  await registry.add('two', student);
  await registry.promote('one');
  let asked = 0;
  const time = () => {
    const start = performance.now();
    student.recommend({ history: histories[asked++ % histories.length], k: K });
    return performance.now() - start;
  };
  /** The median of what a request takes in this process, one after the other, ms. */
  const engineInLoopMs = () => {
    const durations = Array.from({ length: 3000 }, time);
    return median(durations.slice(1000));
  };
  /** The same, each after an answer over HTTP was waited for: caches are as cold as they are for a service. */
  const engineMs = async (port) => {
    const durations = [];
    const onAnswer = () => durations.push(time());
    await closedLoop({ port, connections: 1, requests: 2000, next, onAnswer });
    return median(durations.slice(500));
  };
  return {
    engineInLoopMs,
    engineMs,
    answer: student.recommend({ history: histories[0], k: K }),
    dispose: () => engine.dispose(),
  };
}

/** @returns {Promise<{ port: number, url: string, stop: () => Promise<number> }>} */
function start(...argv) {
  const child = spawn(process.execPath, argv, { stdio: ['ignore', 'pipe', 'inherit'] });
  const exited = new Promise((done) => child.once('exit', done));
  return new Promise((started, failed) => {
    let text = '';
    child.stdout.on('data', (bytes) => {
      text += bytes;
      const line = text.split('\n').find((one) => one.includes('"listening"'));
      if (line === undefined) return;
      const { url } = JSON.parse(line);
      started({
        url,
        port: Number(new URL(url).port),
        stop() {
          child.kill('SIGTERM');
          return exited;
        },
      });
    });
    exited.then((code) => failed(new Error(`${argv.join(' ')} ended with ${code}`)));
  });
}

function serve(data, ...flags) {
  const main = join(root, 'dist/cli/main.js');
  const common = ['--data', join(folder, data), '--port', '0', '--drain-delay', '50', '--no-console'];
  return start(main, 'serve', join(folder, 'models'), ...common, ...flags);
}

/** Makes the histories those of users. */
async function tellHistories({ url }) {
  const events = histories.flatMap((history, i) =>
    history.map((itemId) => ({ userId: `u${i}`, itemId, type: 'click' })),
  );
  for (let begin = 0; begin < events.length; begin += 1000) {
    const response = await fetch(`${url}/v1/events`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ events: events.slice(begin, begin + 1000) }),
    });
    if (!response.ok) throw new Error(`events: ${response.status} ${await response.text()}`);
  }
}

async function residentBytes({ url }) {
  const text = await (await fetch(`${url}/metrics`)).text();
  return Number(/^process_resident_memory_bytes (\S+)/m.exec(text)?.[1]);
}

/** What `load` gives, and the service's memory in each second of it. */
async function withMemory(service, load) {
  const bytes = [];
  const timer = setInterval(() => residentBytes(service).then((now) => bytes.push(now)), 1000);
  try {
    return { ...(await load()), memoryBytes: bytes };
  } finally {
    clearInterval(timer);
  }
}

const phases = {
  /** Alternating runs; each ratio is of neighbours. Users are named by id and have the same histories. */
  async throughput({ engineInLoopMs, engineMs, answer }) {
    const service = await serve('throughput');
    const response = await fetch(`${service.url}/v1/recommend`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ history: histories[0], k: K }),
    });
    const sample = /** @type {object} */ (await response.json());
    const body = { ...sample, items: answer.items };
    const bare = await start(join(root, 'bench/bare-server.mjs'), JSON.stringify(body));
    await tellHistories(service);
    const run = (port, connections, seconds, chosen = next) => closedLoop({ port, connections, seconds, next: chosen });
    for (const { port } of [bare, service]) await run(port, CONNECTIONS, 2);
    await run(service.port, CONNECTIONS, 2, nextUser);
    const rounds = [];
    for (let round = 0; round < ROUNDS; round++) {
      const [full, bareFull, users] = [
        await run(service.port, CONNECTIONS, ROUND_SECONDS),
        await run(bare.port, CONNECTIONS, ROUND_SECONDS),
        await run(service.port, CONNECTIONS, ROUND_SECONDS, nextUser),
      ];
      const [one, bareOne] = [await run(service.port, 1, 1), await run(bare.port, 1, 1)];
      const engine = { engineMs: await engineMs(bare.port), engineInLoopMs: engineInLoopMs() };
      rounds.push({
        rps: full.rps,
        bareRps: bareFull.rps,
        ratio: full.rps / bareFull.rps,
        usersRps: users.rps,
        usersRatio: users.rps / bareFull.rps,
        p50Ms: one.p50,
        bareP50Ms: bareOne.p50,
        ...engine,
        p99Ms: full.p99,
        refused: full.statuses['503'] ?? 0,
      });
    }
    await service.stop();
    await bare.stop();
    const of = (key) => median(rounds.map((round) => round[key]));
    const p50Bar = median(rounds.map((round) => round.bareP50Ms + 2 * round.engineMs));
    const p50BarInLoop = median(rounds.map((round) => round.bareP50Ms + 2 * round.engineInLoopMs));
    return {
      bodyBytes: JSON.stringify(body).length,
      engineMs: of('engineMs'),
      engineInLoopMs: of('engineInLoopMs'),
      p50Bar,
      p50BarInLoop,
      rps: of('rps'),
      bareRps: of('bareRps'),
      ratio: of('ratio'),
      usersRps: of('usersRps'),
      usersRatio: of('usersRatio'),
      p50Ms: of('p50Ms'),
      bareP50Ms: of('bareP50Ms'),
      rounds,
      bars: { 'ratio ≥ 0.6': of('ratio') >= 0.6, 'p50 ≤ bare + 2 × engine': of('p50Ms') <= p50Bar },
    };
  },

  /** Full load on 16 connections, without swaps and with one a second, alternating. */
  async swap() {
    // Without back-pressure: whatever is not answered failed.
    const service = await serve('swap', '--max-queue', '10000');
    const run = (seconds) => closedLoop({ port: service.port, connections: 16, seconds, next });
    await run(2);
    const rounds = [];
    for (let round = 0; round < 3; round++) {
      const steady = await run(5);
      let swaps = 0;
      let isOver = false;
      const swapping = (async () => {
        while (!isOver) {
          const name = swaps % 2 === 0 ? 'two' : 'one';
          const response = await fetch(`${service.url}/v1/models/promote`, {
            method: 'POST',
            headers: { 'content-type': 'application/json' },
            body: JSON.stringify({ name }),
          });
          if (!response.ok) throw new Error(`promote ${name}: ${response.status} ${await response.text()}`);
          await response.arrayBuffer();
          swaps++;
          await new Promise((done) => setTimeout(done, 1000));
        }
      })();
      const swapped = await run(5);
      isOver = true;
      await swapping;
      const failed = swapped.count - (swapped.statuses['200'] ?? 0);
      rounds.push({ steady, swapped, swaps, failed, ratio: swapped.p99 / steady.p99 });
    }
    await service.stop();
    const ratio = median(rounds.map((round) => round.ratio));
    const failed = rounds.reduce((sum, round) => sum + round.failed, 0);
    return { ratio, failed, rounds, bars: { 'no failed request': failed === 0, 'p99 ≤ 1.5 × steady': ratio <= 1.5 } };
  },

  /** Twice the rate that the service can answer, at a fixed rate. Steady is 0.7 of what it can. */
  async overload() {
    // What it can answer is what it answers when it refuses nothing.
    const willing = await serve('willing', '--max-queue', '10000');
    await closedLoop({ port: willing.port, connections: CONNECTIONS, seconds: 2, next });
    const { rps: capacity } = await closedLoop({ port: willing.port, connections: CONNECTIONS, seconds: 5, next });
    await willing.stop();
    const service = await serve('overload');
    const { port } = service;
    await closedLoop({ port, connections: CONNECTIONS, seconds: 4, next });
    const connections = 256;
    const load = (seconds, rate) => withMemory(service, () => openLoop({ port, connections, seconds, rate, next }));
    const steady = await load(10, 0.7 * capacity);
    const overload = await load(OVERLOAD_SECONDS, 2 * capacity);
    const recovered = await openLoop({ port, connections, seconds: 5, rate: 0.7 * capacity, next });
    await service.stop();
    const { 200: accepted = 0, 503: refused = 0 } = overload.statuses;
    const ratio = overload.p99 / steady.p99;
    // The level is the least of several samples, as below.
    const before = Math.min(...steady.memoryBytes.slice(-5));
    const after = Math.min(...overload.memoryBytes.slice(-5));
    return {
      capacity,
      steady,
      overload,
      recovered,
      ratio,
      memory: { beforeBytes: before, afterBytes: after, growth: after / before - 1 },
      bars: {
        'accepted p99 ≤ 3 × steady': ratio <= 3,
        'the rest get 503': accepted + refused === overload.count,
        'memory flat (< 10 %)': after < 1.1 * before,
      },
    };
  },

  /** Every 20th request brings an event with an id of its own; the others ask for 10,000 users. */
  async soak() {
    // Every request is to be answered: what is refused soaks nothing.
    const service = await serve('soak', '--max-queue', '10000');
    const users = 10_000;
    const isEvent = (i) => i % 20 === 0;
    const request = (i) => {
      const userId = `u${(Math.imul(i, 2654435761) >>> 8) % users}`;
      if (!isEvent(i)) return post('/v1/recommend', { userId, k: K });
      const event = { id: `e${i}`, userId, itemId: `i${(i / 20) % NUM_ITEMS}`, type: 'click' };
      return post('/v1/events', { events: [event] });
    };
    let accepted = 0;
    const memory = [];
    const statuses = {};
    const part = SOAK_REQUESTS / 20;
    for (let p = 0; p < 20; p++) {
      const result = await closedLoop({
        port: service.port,
        connections: CONNECTIONS,
        requests: part,
        next: (i) => request(p * part + i),
        onAnswer(i, status, body) {
          if (isEvent(i) && status === '200') accepted += JSON.parse(body).accepted;
        },
      });
      for (const [status, n] of Object.entries(result.statuses)) statuses[status] = (statuses[status] ?? 0) + n;
      memory.push(await residentBytes(service));
    }
    const exitCode = await service.stop();
    const store = await openEventStore({ path: join(folder, 'soak/events') });
    let stored = 0;
    for await (const _ of store.read()) stored++;
    await store.close();
    // The first half fills what is bounded: users' states, and answers that wait for their reward. Garbage is collected now
    // and then: the level is the least of five samples.
    const growth = Math.min(...memory.slice(15)) / Math.min(...memory.slice(10, 15)) - 1;
    // What a connection that broke had asked for may be stored, though nobody was told.
    const unanswered = (statuses.closed ?? 0) + (statuses.error ?? 0);
    const isWhole = stored >= accepted && stored <= accepted + unanswered;
    return {
      requests: SOAK_REQUESTS,
      statuses,
      acceptedEvents: accepted,
      storedEvents: stored,
      memory,
      growth,
      exitCode,
      bars: { 'memory growth < 5 %': growth < 0.05, 'no event lost or doubled': isWhole },
    };
  },
};

const named = process.argv.slice(2);
const chosen = PHASES.filter((phase) => named.length === 0 || named.includes(phase));
const prepared = await prepare();
try {
  const date = new Date().toISOString().slice(0, 10);
  const file = join(root, `bench/results/serve-${date}.json`);
  for (const phase of chosen) {
    const result = await phases[phase](prepared);
    console.log(`${phase}: ${JSON.stringify({ ...result, rounds: undefined })}`);
    const earlier = existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : {};
    const whole = { ...earlier, seed: SEED, [phase]: { ...aboutThisRun(), ...result } };
    writeFileSync(file, `${JSON.stringify(whole, null, 2)}\n`);
  }
} finally {
  prepared.dispose();
  rmSync(folder, { recursive: true });
}
