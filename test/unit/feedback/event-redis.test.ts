import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { LimbeckError } from '../../../src/errors.js';
import type { FeedbackEvent, StoredEvent } from '../../../src/feedback/event.js';
import { openRedisEvents, type RedisEventOptions, type RedisEvents } from '../../../src/feedback/event-redis.js';
import { loadRedis, RedisConnection } from '../../../src/feedback/event-redis-client.js';
import { followUserStates } from '../../../src/feedback/follow-user-states.js';
import { NO_REDIS, RedisServer } from './redis-server.js';

it('says what to install when the package is missing', async () => {
  const missing = loadRedis(() => import('@redis/no-such-client' as never));
  await expect(missing).rejects.toMatchObject({ code: 'ERR_MISSING_DEPENDENCY' });
  await expect(missing).rejects.toThrow(/npm install @redis\/client@6\.3\.1/);
});

it.each([
  [{ redis: 'redis://127.0.0.1:1' }, 'ERR_IO'],
  [{ redis: 'no url' }, 'ERR_INVALID_ARGUMENT'],
  [{ redis: 'redis://127.0.0.1', stream: 'a{b}' }, 'ERR_INVALID_ARGUMENT'],
  [{ redis: 'redis://127.0.0.1', group: 'a' } as RedisEventOptions, 'ERR_UNKNOWN_OPTION'],
])('%j is refused', async (options, code) => {
  await expect(openRedisEvents(options)).rejects.toMatchObject({ code });
});

describe.skipIf(NO_REDIS)(`a Redis server${NO_REDIS === undefined ? '' : ` (${NO_REDIS})`}`, () => {
  const server = new RedisServer();
  const open = new Set<RedisEvents>();
  let admin: RedisConnection;
  const noError = (error: unknown): void => expect.fail(String(error));

  beforeAll(async () => {
    await server.start();
  });
  afterAll(() => server.remove());
  beforeEach(async () => {
    admin = await RedisConnection.open(server.url);
    await admin.command('FLUSHALL');
  });
  afterEach(async () => {
    vi.restoreAllMocks();
    for (const store of open) await store.close();
    open.clear();
    admin.close();
  });

  async function openStore(options: Partial<RedisEventOptions> = {}): Promise<RedisEvents> {
    const store = await openRedisEvents({ redis: server.url, stream: 'events', ...options });
    open.add(store);
    return store;
  }

  function view(n: number, more: Partial<FeedbackEvent> = {}): FeedbackEvent {
    return { id: `e${n}`, userId: `u${n % 7}`, itemId: `i${n}`, type: 'view', time: 1000 + n, ...more };
  }

  async function readAll(store: RedisEvents, from?: bigint): Promise<StoredEvent[]> {
    const events: StoredEvent[] = [];
    for await (const event of store.read(from)) events.push(event);
    return events;
  }

  const idsOf = async (store: RedisEvents) => (await readAll(store)).map(({ event }) => event.id);
  const range = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => from + i);

  it('keeps events in order, with dense offsets, as another store of the same stream reads them', async () => {
    const store = await openStore();
    const rating = view(1, { type: 'rating', value: 4.5, strategy: 'novel', requestId: 'ü\u0000' });
    expect(await store.append([view(0), rating])).toEqual({ accepted: 2, duplicates: 0 });
    expect([store.firstOffset, store.nextOffset]).toEqual([0n, 2n]);
    const other = await openStore();
    expect(other.nextOffset).toBe(2n);
    const events = await readAll(other);
    expect(events.map(({ offset, event }) => [offset, event])).toEqual([
      [0n, view(0)],
      [1n, rating],
    ]);
    expect(Math.abs(Date.now() - Number(events[0]?.receivedAt))).toBeLessThan(60_000);
    expect(await readAll(other, 1n)).toHaveLength(1);
    await expect(other.append([view(1, { userId: '' })])).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
  });

  it('stores an event that comes again once, from any server', async () => {
    const [one, other] = [await openStore(), await openStore()];
    const results = await Promise.all([
      one.append([view(0), view(0), view(1)]),
      one.append([view(1)]),
      other.append([view(0), view(1), view(2)]),
    ]);
    expect(results.reduce((sum, { accepted }) => sum + accepted, 0)).toBe(3);
    expect(results.reduce((sum, { duplicates }) => sum + duplicates, 0)).toBe(4);
    expect((await idsOf(one)).sort()).toEqual(['e0', 'e1', 'e2']);
    const anonymous = { userId: 'u', itemId: 'i', type: 'view' } as const;
    expect(await one.append([anonymous, anonymous])).toEqual({ accepted: 2, duplicates: 0 });
  });

  it('remembers an id for as long as was asked', async () => {
    const store = await openStore({ idTtlSeconds: 1 });
    await store.append([view(0)]);
    await sleep(1200);
    expect(await store.append([view(0)])).toEqual({ accepted: 1, duplicates: 0 });
  });

  it('brings every event to the user states of every server, and to its own before it is acknowledged', async () => {
    const [one, other] = [await openStore(), await openStore()];
    await one.append(range(0, 1200).map((n) => view(n)));
    const own = await followUserStates(one, { onError: noError });
    const far = await followUserStates(other, { onError: noError });
    expect([own.nextOffset, far.nextOffset]).toEqual([1200n, 1200n]);
    for (let n = 0; n < 50; n++) {
      await one.append([{ userId: 'ann', itemId: `i${n}`, type: 'view', time: n }]);
      expect(own.history('ann').at(-1)).toBe(`i${n}`);
    }
    await expect.poll(() => far.nextOffset).toBe(1250n);
    expect(far.history('ann')).toEqual(own.history('ann'));
  });

  it('loses and doubles nothing when connections break, or the server is killed and comes back', async () => {
    const [one, other] = [await openStore(), await openStore()];
    const seen: (string | undefined)[] = [];
    await other.follow(0n, ({ event }) => seen.push(event.id), noError);
    const acknowledged: string[] = [];
    let accepted = 0;
    let isOver = false;
    const write = async (store: RedisEvents, base: number) => {
      for (let n = base; !isOver; n++) {
        const result = await store.append([view(n)]);
        acknowledged.push(`e${n}`);
        accepted += result.accepted;
      }
    };
    const writers = [write(one, 0), write(one, 1_000_000), write(other, 2_000_000)];
    const moreEvents = async () => {
      const before = acknowledged.length;
      await expect.poll(() => acknowledged.length).toBeGreaterThan(before + 20);
    };
    for (let round = 0; round < 6; round++) {
      await sleep(100);
      await moreEvents();
      if (round % 3 < 2) {
        await admin.command('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes');
      } else {
        await server.kill();
        await server.start();
        await expect.poll(() => admin.command('PING').catch(() => undefined)).toBe('PONG');
      }
    }
    await moreEvents();
    isOver = true;
    await Promise.all(writers);
    expect(accepted).toBe(acknowledged.length);
    expect((await idsOf(one)).sort()).toEqual([...acknowledged].sort());
    await expect.poll(() => seen.length).toBe(acknowledged.length);
    expect([...seen].sort()).toEqual([...acknowledged].sort());
  });

  it('rejects when the server stays away, and goes on when it is back', async () => {
    const store = await openStore({ retryMs: 200 });
    await server.kill();
    await expect(store.append([view(0)])).rejects.toMatchObject({ code: 'ERR_IO' });
    await server.start();
    // What was rejected may have been stored all the same.
    await expect
      .poll(async () => Object.values(await store.append([view(0)]).catch(() => ({}))).toSorted())
      .toEqual([0, 1]);
    expect(await idsOf(store)).toEqual(['e0']);
  });

  it('refuses more bytes than may wait while the server hangs', async () => {
    const store = await openStore({ maxPendingBytes: 1000 });
    server.signal('SIGSTOP');
    const appends = Promise.allSettled(range(0, 40).map((n) => store.append([view(n)])));
    await sleep(50);
    server.signal('SIGCONT');
    const codes = (await appends).map((result) => (result.status === 'rejected' ? result.reason.code : 'stored'));
    expect(codes[0]).toBe('stored');
    expect(codes.at(-1)).toBe('ERR_OVERLOADED');
    expect(await idsOf(store)).toHaveLength(codes.filter((code) => code === 'stored').length);
  });

  it('a server that is out of memory refuses, and stores the same events later', async () => {
    const store = await openStore();
    await store.append([view(0)]);
    await admin.command('CONFIG', 'SET', 'maxmemory', 1);
    await expect(store.append([view(1), view(2)])).rejects.toMatchObject({ code: 'ERR_NO_SPACE' });
    await admin.command('CONFIG', 'SET', 'maxmemory', 0);
    expect(await store.append([view(1), view(2)])).toEqual({ accepted: 2, duplicates: 0 });
  });

  it('drops old events by number and by age, but none that is needed', async () => {
    const store = await openStore();
    const time = vi.spyOn(Date, 'now').mockReturnValue(1_700_000_000_000);
    await store.append(range(0, 100).map((n) => view(n)));
    time.mockReturnValue(1_700_000_000_060);
    await store.append(range(100, 150).map((n) => view(n)));
    await expect(store.retain({ keepFrom: 150n, maxBytes: 1 })).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
    expect(await store.retain({ keepFrom: 150n, maxEvents: 200, maxAgeMs: 60_000 })).toBe(0n);
    expect(await store.retain({ keepFrom: 150n, maxEvents: 120 })).toBe(30n);
    expect(await store.retain({ keepFrom: 70n, maxAgeMs: 30 })).toBe(70n);
    expect(await store.retain({ keepFrom: 150n, maxAgeMs: 30 })).toBe(100n);
    expect((await readAll(store))[0]?.offset).toBe(100n);
    await expect(followUserStates(store, { onError: noError })).rejects.toMatchObject({ code: 'ERR_CORRUPT_LOG' });
    expect((await followUserStates(store, { allowMissing: true, onError: noError })).nextOffset).toBe(150n);
    expect(await store.retain({ keepFrom: 150n, maxEvents: 0 })).toBe(150n);
    expect(await store.append([view(150)])).toEqual({ accepted: 1, duplicates: 0 });
    expect((await readAll(store))[0]?.offset).toBe(150n);
  });

  it('tells followers of entries that are no events, and of events that the server lost', async () => {
    const store = await openStore();
    await store.append([view(0)]);
    const seen: bigint[] = [];
    const errors: string[] = [];
    await store.follow(
      0n,
      ({ offset }) => seen.push(offset),
      (error) => {
        expect(error).toMatchObject({ code: 'ERR_CORRUPT_LOG' });
        errors.push((error as LimbeckError).message);
      },
    );
    await admin.command('XADD', 'events', '0-*', 'event', '{"userId":1}', 'received', 5);
    await store.append([view(1)]);
    expect([seen, errors.length]).toEqual([[0n, 2n], 1]);
    expect(errors[0]).toContain('Entry 0-2');
    await expect(readAll(store)).rejects.toMatchObject({ code: 'ERR_CORRUPT_LOG' });

    await admin.command('FLUSHALL');
    await expect.poll(() => errors.length).toBe(2);
    expect(errors[1]).toContain('events 0 to 3 (exclusive) are gone');
    await store.append([view(2)]);
    expect(seen).toEqual([0n, 2n, 0n]);
    expect(store.nextOffset).toBe(1n); // and not what was lost
  });

  it("tells followers of another program's entry once, and goes on when it is gone", async () => {
    const store = await openStore();
    await store.append([view(0)]);
    const seen: bigint[] = [];
    const errors: unknown[] = [];
    await store.follow(
      0n,
      ({ offset }) => seen.push(offset),
      (error) => errors.push(error),
    );
    await admin.command('XADD', 'events', '1700-0', 'a', 'b');
    await expect.poll(() => errors).toHaveLength(1);
    expect(errors[0]).toMatchObject({
      code: 'ERR_CORRUPT_LOG',
      message: expect.stringMatching(/^Entry 1700-0 of the Redis stream 'events' .* XDEL, .* XSETID/),
    });
    await expect(readAll(store)).rejects.toMatchObject({ code: 'ERR_CORRUPT_LOG' });
    await Promise.all([admin.command('XDEL', 'events', '1700-0'), admin.command('XSETID', 'events', '0-1')]);
    expect(await store.append([view(1)])).toEqual({ accepted: 1, duplicates: 0 });
    expect([seen, errors.length]).toEqual([[0n, 1n], 1]);
  });

  it('says what its configuration weakens', async () => {
    expect((await openStore()).warnings).toEqual([]);
    await admin.command('CONFIG', 'SET', 'appendfsync', 'everysec', 'maxmemory-policy', 'allkeys-lru');
    expect((await openStore()).warnings).toEqual([
      expect.stringContaining('appendfsync is everysec'),
      expect.stringContaining('allkeys-lru'),
    ]);
    await admin.command('CONFIG', 'SET', 'appendfsync', 'always', 'maxmemory-policy', 'noeviction');
  });

  it('rejects what too few replicas confirmed; sent again, it is a duplicate and confirmed like new', async () => {
    const store = await openStore({ waitReplicas: 1, waitTimeoutMs: 50 });
    await expect(store.append([view(0)])).rejects.toMatchObject({ code: 'ERR_IO' });
    await expect(store.append([view(0)])).rejects.toThrow(/0 of 1 replicas/);
    const replica = new RedisServer(['--replicaof', '127.0.0.1', String(server.port)]);
    await replica.start();
    try {
      // 50 ms are little on a machine that is busy with other things.
      const patient = await openStore({ waitReplicas: 1, waitTimeoutMs: 5000 });
      await expect.poll(() => patient.append([view(0)]).catch(() => undefined)).toEqual({ accepted: 0, duplicates: 1 });
      expect(await patient.append([view(1)])).toEqual({ accepted: 1, duplicates: 0 });
      const copy = await openRedisEvents({ redis: replica.url, stream: 'events' });
      expect(await idsOf(copy)).toEqual(['e0', 'e1']);
      await copy.close();
    } finally {
      await replica.remove();
    }
  });

  it("refuses another program's stream", async () => {
    await admin.command('XADD', 'events', '*', 'a', 'b');
    await expect(openStore()).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
  });

  it('takes as many events at once as a log, each once and in their order', async () => {
    const store = await openStore();
    const events = range(0, 60_000).map((n) => view(n));
    expect(await store.append(events)).toEqual({ accepted: 60_000, duplicates: 0 });
    expect(await store.append([...events.slice(-3), view(60_000)])).toEqual({ accepted: 1, duplicates: 3 });
    expect(await idsOf(store)).toEqual([...events, view(60_000)].map(({ id }) => id));
  });

  it('refuses after close, which finishes what waits', async () => {
    const store = await openStore();
    await store.follow(0n, () => {}, noError);
    const appends = range(0, 10).map((n) => store.append([view(n)]));
    await Promise.all([store.close(), ...appends]);
    await expect(store.append([view(10)])).rejects.toBeInstanceOf(LimbeckError);
    await expect(store.append([view(10)])).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
    expect(await idsOf(await openStore())).toHaveLength(10);
  });

  it('is closed for whoever reads, and at once', async () => {
    const store = await openStore();
    await store.append(range(0, 600).map((n) => view(n)));
    const events = store.read();
    for (let n = 0; n < 500; n++) await events.next();
    await store.close();
    const start = performance.now();
    await expect(events.next()).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
    expect(performance.now() - start).toBeLessThan(1000);
  });

  it('that is closed while somebody begins to follow keeps no connection', async () => {
    const connections = async () => Number(/connected_clients:(\d+)/.exec(String(await admin.command('INFO')))?.[1]);
    const before = await connections();
    const store = await openStore();
    const openConnection = RedisConnection.open;
    vi.spyOn(RedisConnection, 'open').mockImplementation(async (url) => {
      const connection = await openConnection.call(RedisConnection, url);
      await store.close();
      return connection;
    });
    await expect(store.follow(0n, () => {}, noError)).rejects.toMatchObject({ code: 'ERR_DISPOSED' });
    await vi.waitFor(async () => expect(await connections()).toBe(before), { timeout: 20_000 });
  });

  it.each([-1n, 2n ** 70n, 0.5])('has no offset %s', async (offset) => {
    const store = await openStore();
    const refusal = expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' });
    await expect(store.read(offset as bigint).next()).rejects.toEqual(refusal);
    await expect(store.follow(offset as bigint, () => {}, noError)).rejects.toEqual(refusal);
  });
});
