import { readFileSync, writeFileSync } from 'node:fs';
import fs from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { loadBinding } from '../../../src/binding.js';
import type { FeedbackEvent } from '../../../src/feedback/event.js';
import { type EventLog, openEventLog } from '../../../src/feedback/event-log.js';
import { checkpointUserStates, followUserStates } from '../../../src/feedback/follow-user-states.js';
import { UserStates } from '../../../src/feedback/user-states.js';

let directory: string;
let snapshot: string;
let log: EventLog;
const onError = (error: unknown): void => expect.fail(String(error));

beforeEach(async () => {
  directory = await fs.mkdtemp(join(tmpdir(), 'limbeck-states-'));
  snapshot = join(directory, 'users.snapshot');
  log = await openLog();
});
afterEach(async () => {
  await log.close();
  await fs.rm(directory, { recursive: true });
});

function openLog(): Promise<EventLog> {
  return openEventLog({ path: join(directory, 'events'), segmentBytes: 4096, idWindow: 16 });
}

function event(n: number): FeedbackEvent {
  const types = ['view', 'click', 'purchase', 'dismiss', 'rating'] as const;
  const type = types[n % 5] ?? 'view';
  const rating = type === 'rating' ? { value: 1 + (n % 4) } : {};
  return { userId: `user ${(n * 7) % 50}`, itemId: `item ${(n * 13) % 40}`, type, time: (n * 31) % 1000, ...rating };
}

async function append(from: number, to: number): Promise<void> {
  for (let n = from; n < to; n++) await log.append([event(n)]);
}

function contentOf(states: UserStates): unknown[] {
  return Array.from({ length: 51 }, (_, n) => `user ${n}`).map((user) => [
    user,
    states.history(user),
    states.hidden(user),
    states.purchases(user),
    states.ratings(user),
  ]);
}

describe('followUserStates', () => {
  it('has what was stored before, and each event as soon as its append resolves', async () => {
    await append(0, 30);
    const states = await followUserStates(log, { onError });
    expect(states.nextOffset).toBe(30n);
    await log.append([{ userId: 'ann', itemId: 'x', type: 'view' }]);
    expect(states.history('ann')).toEqual(['x']);
    await log.append([{ userId: 'ann', itemId: 'x', type: 'dismiss' }]);
    expect([states.history('ann'), states.hidden('ann')]).toEqual([[], ['x']]);
  });

  it('comes back from a snapshot and the rest of the log as it was, with old events gone', async () => {
    const states = await followUserStates(log, { onError });
    await append(0, 200);
    await checkpointUserStates(states, log, { path: snapshot, maxBytes: 1 });
    expect(log.firstOffset).toBeGreaterThan(100n);
    await append(200, 260);
    const expected = contentOf(states);
    await log.close();
    log = await openLog();
    const again = await followUserStates(log, { snapshot, onError });
    expect(contentOf(again)).toEqual(expected);
    expect(again.nextOffset).toBe(260n);
    await append(260, 270);
    expect(again.nextOffset).toBe(270n);

    await expect(followUserStates(log, { onError })).rejects.toMatchObject({ code: 'ERR_CORRUPT_LOG' });
    const partial = await followUserStates(log, { allowMissing: true, onError });
    expect(partial.nextOffset).toBe(270n);
  });

  // With equal times an event that is applied again shows: it counts as one that came later.
  it('is exact when events come while the snapshot is written', async () => {
    const states = await followUserStates(log, { onError });
    await append(0, 100);
    let appended = 100;
    const saving = states.save(snapshot);
    let saved = false;
    const finished = saving.then((from) => {
      saved = true;
      return from;
    });
    while (!saved) {
      states.apply({ offset: BigInt(appended), receivedAt: 0, event: { ...event(appended), time: 2000 } });
      appended++;
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect(await finished).toBe(100n);
    expect(appended).toBeGreaterThan(110);
    const again = await UserStates.load(snapshot);
    expect(again.nextOffset).toBeGreaterThanOrEqual(100n);
    for (let n = Number(again.nextOffset); n < appended; n++) {
      again.apply({ offset: BigInt(n), receivedAt: 0, event: { ...event(n), time: 2000 } });
    }
    expect(contentOf(again)).toEqual(contentOf(states));
  });

  it('keeps the order in which users are forgotten, and the limit of the one who loads', async () => {
    const states = new UserStates();
    for (let n = 0; n < 5000; n++) {
      states.apply({
        offset: BigInt(n),
        receivedAt: 0,
        event: { userId: `u${n}`, itemId: `i${n}`, type: 'view', time: n },
      });
    }
    await states.save(snapshot);
    const again = await UserStates.load(snapshot, { maxUsers: 256 });
    expect(again.size).toBeLessThanOrEqual(256);
    expect(again.numItems).toBe(again.size);
    expect(again.history('u4999')).toEqual(['i4999']);
  });
});

describe('a snapshot', () => {
  it('that is no whole one is refused: cut anywhere, with any byte changed, or longer', async () => {
    const states = await followUserStates(log, { onError });
    await append(0, 20);
    await states.save(snapshot);
    const whole = readFileSync(snapshot);
    const damages: Buffer[] = [Buffer.concat([whole, Buffer.alloc(1)])];
    for (let size = 0; size < whole.length; size += 499) damages.push(whole.subarray(0, size));
    for (let position = 0; position < whole.length; position += 101) {
      const changed = Buffer.from(whole);
      changed[position] = (changed[position] ?? 0) ^ 0x20;
      damages.push(changed);
    }
    for (const bytes of damages) {
      writeFileSync(snapshot, bytes);
      await expect(UserStates.load(snapshot)).rejects.toMatchObject({ code: 'ERR_FILE_FORMAT' });
    }
    writeFileSync(snapshot, whole);
    expect(contentOf(await UserStates.load(snapshot))).toEqual(contentOf(states));
  });

  it.runIf(process.platform === 'linux')('that the system cannot read is ERR_IO', async () => {
    // A regular file, whose first page no process has.
    await expect(UserStates.load('/proc/self/mem')).rejects.toMatchObject({ code: 'ERR_IO' });
  });

  it('with a right checksum over wrong content is refused too', async () => {
    const states = new UserStates();
    await states.save(snapshot);
    const whole = readFileSync(snapshot);
    let random = 7;
    for (let round = 0; round < 200; round++) {
      const body = Buffer.alloc(round % 60).map(() => {
        random = (random * 48_271) % 0x7fffffff;
        return random % 3 === 0 ? random % 256 : 0;
      });
      const head = Buffer.alloc(8);
      head.writeUInt32LE(body.length, 0);
      head.writeUInt32LE(loadBinding().crc32c(body), 4);
      writeFileSync(snapshot, Buffer.concat([whole.subarray(0, 16), head, body, whole.subarray(16 + 8 + 16)]));
      const isEmpty = body.length === 16 && body.subarray(8).every((byte) => byte === 0);
      if (isEmpty) continue;
      await expect(UserStates.load(snapshot)).rejects.toMatchObject({ code: 'ERR_FILE_FORMAT' });
    }
  });
});
