import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { openEventLog } from '../../src/feedback/event-log.js';

const product = join(import.meta.dirname, '../../dist/feedback/open-event-store.js');
const KILLS = 200;
/** Writers at a time, each with a log of its own. */
const LANES = 2;
const KILLS_PER_LOG = 20;
/** Small, so that many a kill meets the beginning of a file. */
const SEGMENT_BYTES = 16 * 1024;

/**
 * Appends numbered events, several appends at a time, from a number on. What is acknowledged goes to stdout at once: a
 * write to a pipe is not undone by a kill.
 */
const WRITER = `
  import { writeSync } from 'node:fs';
  import { openEventStore } from ${JSON.stringify(product)};
  const [path, first] = process.argv.slice(1);
  const store = await openEventStore({ path, segmentBytes: ${SEGMENT_BYTES} });
  let n = Number(first);
  const write = async () => {
    for (;;) {
      const numbers = Array.from({ length: 1 + n % 4 }, () => n++);
      const { accepted, duplicates } = await store.append(
        numbers.map((number) => ({ id: 'e' + number, userId: 'u' + number % 9, itemId: 'i' + number, type: 'view' })));
      if (accepted + duplicates !== numbers.length) writeSync(1, 'wrong\\n');
      writeSync(1, numbers.join(' ') + '\\n');
    }
  };
  writeSync(1, 'open\\n');
  await Promise.all([write(), write(), write(), write(), write()]);`;

let directory: string;
const children = new Set<ChildProcess>();
beforeAll(async () => {
  directory = await fs.mkdtemp(join(tmpdir(), 'limbeck-event-kill-'));
});
afterAll(async () => {
  for (const child of children) child.kill('SIGKILL');
  await fs.rm(directory, { recursive: true });
});

/** Runs a writer until it is killed, and returns the numbers that it said were acknowledged. */
async function killWriter(path: string, first: number, random: () => number): Promise<number[]> {
  const child = spawn(process.execPath, ['--input-type=module', '-e', WRITER, path, String(first)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  children.add(child);
  let output = '';
  const closed = once(child, 'close');
  // One in eight at any moment of its start, the others while it writes.
  const startMs = random() < 0.125 ? 200 * random() : undefined;
  const kill = (delayMs: number) => setTimeout(() => child.kill('SIGKILL'), delayMs);
  if (startMs !== undefined) kill(startMs);
  let isTimed = startMs !== undefined;
  child.stdout.on('data', (text: Buffer) => {
    output += text;
    if (!isTimed) kill(60 * random());
    isTimed = true;
  });
  await closed;
  children.delete(child);
  expect(child.signalCode).toBe('SIGKILL');
  expect(output).not.toContain('wrong');
  const lines = output.split('\n').slice(0, -1);
  return lines.filter((line) => line !== 'open').flatMap((line) => line.split(' ').map(Number));
}

async function checkLog(path: string, acknowledged: ReadonlySet<number>): Promise<number> {
  const log = await openEventLog({ path, segmentBytes: SEGMENT_BYTES });
  const stored = new Set<number>();
  let offset = 0n;
  for await (const found of log.read()) {
    const { id, userId, itemId } = found.event;
    const number = Number(id?.slice(1));
    expect(found.offset).toBe(offset++);
    expect(stored.has(number), `event ${number} doubled`).toBe(false);
    expect([userId, itemId]).toEqual([`u${number % 9}`, `i${number}`]);
    stored.add(number);
  }
  await log.close();
  for (const number of acknowledged) expect(stored.has(number), `event ${number} lost`).toBe(true);
  return stored.size;
}

test(`no acknowledged event is lost or doubled by ${KILLS} kills at random moments`, { timeout: 300_000 }, async () => {
  const seed = Date.now() % 1_000_000;
  console.log(`seed ${seed}`);
  let total = 0;
  let torn = 0;
  const lane = async (index: number) => {
    let state = seed + 7919 * index;
    const random = () => {
      state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
      return state / 2 ** 32;
    };
    for (let kill = 0; kill < KILLS / LANES; ) {
      const path = join(directory, `lane-${index}-${kill}`);
      const acknowledged = new Set<number>();
      for (let i = 0; i < KILLS_PER_LOG && kill < KILLS / LANES; i++, kill++) {
        // The first number that was not acknowledged: what was stored all the same is sent again.
        let first = 0;
        while (acknowledged.has(first)) first++;
        for (const number of await killWriter(path, first, random)) acknowledged.add(number);
        if (random() < 0.3) torn += (await checkLog(path, acknowledged)) - acknowledged.size;
      }
      await checkLog(path, acknowledged);
      total += acknowledged.size;
      await fs.rm(path, { recursive: true, force: true });
    }
  };
  await Promise.all(Array.from({ length: LANES }, (_, index) => lane(index)));
  console.log(`${total} acknowledged; ${torn} stored but killed before they were acknowledged`);
  expect(total).toBeGreaterThan(KILLS * 10);
});
