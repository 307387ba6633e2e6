import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import fs, { type FileHandle } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { LimbeckError, type LimbeckErrorCode } from '../../../src/errors.js';
import type { FeedbackEvent, StoredEvent } from '../../../src/feedback/event.js';
import { type EventLog, type EventLogOptions, openEventLog } from '../../../src/feedback/event-log.js';
import { runProgram } from '../../support/run-program.js';

const product = fileURLToPath(new URL('../../../dist/feedback/open-event-store.js', import.meta.url));
let directory: string;
const open = new Set<EventLog>();

beforeEach(async () => {
  directory = await fs.mkdtemp(join(tmpdir(), 'limbeck-log-'));
});
afterEach(async () => {
  vi.restoreAllMocks();
  for (const log of open) await log.close();
  open.clear();
  await fs.rm(directory, { recursive: true });
});

async function openLog(options: Partial<EventLogOptions> = {}): Promise<EventLog> {
  const log = await openEventLog({ path: join(directory, 'events'), ...options });
  open.add(log);
  return log;
}

async function reopen(log: EventLog, options: Partial<EventLogOptions> = {}): Promise<EventLog> {
  await log.close();
  return openLog(options);
}

function view(n: number, more: Partial<FeedbackEvent> = {}): FeedbackEvent {
  return { id: `e${n}`, userId: `u${n % 7}`, itemId: `i${n}`, type: 'view', time: 1000 + n, ...more };
}

async function readAll(log: EventLog, from?: bigint): Promise<StoredEvent[]> {
  const events: StoredEvent[] = [];
  for await (const event of log.read(from)) events.push(event);
  return events;
}

async function idsOf(log: EventLog, from?: bigint): Promise<(string | undefined)[]> {
  return (await readAll(log, from)).map(({ event }) => event.id);
}

async function codeOf(promise: Promise<unknown>): Promise<LimbeckErrorCode | undefined> {
  return promise.then(
    () => undefined,
    (error: unknown) => {
      expect(error).toBeInstanceOf(LimbeckError);
      return (error as LimbeckError).code;
    },
  );
}

function segmentNames(): string[] {
  return readdirSync(join(directory, 'events')).filter((name) => name.endsWith('.log'));
}

function lastSegment(): string {
  return join(directory, 'events', segmentNames().at(-1) ?? '');
}

/** The class of file handles, whose methods a test makes fail. */
async function fileHandles(): Promise<FileHandle> {
  const file = await fs.open(directory);
  await file.close();
  return Object.getPrototypeOf(file);
}

function systemError(code: string, syscall: string): Error {
  return Object.assign(new Error(`${code}: injected, ${syscall}`), { code, syscall });
}

function range(from: number, to: number): number[] {
  return Array.from({ length: to - from }, (_, i) => from + i);
}

describe('append', () => {
  it('keeps events in the order in which they came, with dense offsets, over a restart', async () => {
    const log = await openLog();
    expect(await log.append([view(0), view(1, { type: 'rating', value: 4.5 })])).toEqual({
      accepted: 2,
      duplicates: 0,
    });
    await log.append([view(2, { strategy: 'novel', requestId: 'r1' })]);
    const before = await readAll(log);
    expect(before.map(({ offset }) => offset)).toEqual([0n, 1n, 2n]);
    expect(before.map(({ event }) => event)).toEqual([
      view(0),
      view(1, { type: 'rating', value: 4.5 }),
      view(2, { strategy: 'novel', requestId: 'r1' }),
    ]);
    const again = await reopen(log);
    expect(await readAll(again)).toEqual(before);
    expect(await idsOf(again, 1n)).toEqual(['e1', 'e2']);
    expect([again.firstOffset, again.nextOffset, again.truncatedBytes]).toEqual([0n, 3n, 0]);
  });

  it('resolves only after the fdatasync that covers it', async () => {
    const log = await openLog();
    const prototype = await fileHandles();
    const { datasync } = prototype;
    let release = (): void => {};
    const gate = new Promise<void>((resolve) => {
      release = resolve;
    });
    let synced = false;
    vi.spyOn(prototype, 'datasync').mockImplementation(async function (this: FileHandle) {
      await gate;
      await datasync.call(this);
      synced = true;
    });
    let acknowledged = false;
    const append = log.append([view(0)]).then(() => {
      acknowledged = true;
      expect(synced).toBe(true);
    });
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect([acknowledged, log.nextOffset, await readAll(log)]).toEqual([false, 0n, []]);
    release();
    await append;
    expect(log.nextOffset).toBe(1n);
  });

  it('shares one fdatasync among the appends that wait', async () => {
    const log = await openLog();
    const datasync = vi.spyOn(await fileHandles(), 'datasync');
    await Promise.all(range(0, 1000).map((n) => log.append([view(n)])));
    expect(datasync.mock.calls.length).toBeLessThanOrEqual(3);
    expect(await idsOf(log)).toEqual(range(0, 1000).map((n) => `e${n}`));
  });

  it('stores nothing of a batch in which one event is malformed', async () => {
    const log = await openLog();
    await expect(log.append([view(0), view(1, { userId: '' })])).rejects.toThrow(/events\[1\]\.userId/);
    expect(log.nextOffset).toBe(0n);
  });

  it('refuses more bytes than may wait, and takes them later', async () => {
    const log = await openLog({ maxPendingBytes: 1000 });
    const results = await Promise.all(range(0, 20).map((n) => codeOf(log.append([view(n)]))));
    expect(results.slice(0, 8)).toEqual(Array(8).fill(undefined));
    expect(results.at(-1)).toBe('ERR_OVERLOADED');
    expect(log.nextOffset).toBe(BigInt(results.filter((code) => code === undefined).length));
    expect(await codeOf(log.append(range(20, 60).map((n) => view(n))))).toBeUndefined(); // alone, of any size
  });

  it('refuses after close, which finishes what waits', async () => {
    const log = await openLog();
    const appends = range(0, 10).map((n) => log.append([view(n)]));
    await Promise.all([log.close(), ...appends]);
    expect(await codeOf(log.append([view(10)]))).toBe('ERR_DISPOSED');
    expect(await codeOf(readAll(log))).toBe('ERR_DISPOSED');
    expect(await idsOf(await openLog())).toHaveLength(10);
  });
});

describe('an event that comes again', () => {
  it('is not stored twice: in one batch, waiting, stored, and after a restart', async () => {
    const log = await openLog();
    const [first, second] = await Promise.all([
      log.append([view(0), view(0), view(1)]),
      log.append([view(1), view(2)]),
    ]);
    expect(first).toEqual({ accepted: 2, duplicates: 1 });
    expect(second).toEqual({ accepted: 1, duplicates: 1 });
    expect(await log.append([view(2)])).toEqual({ accepted: 0, duplicates: 1 });
    const again = await reopen(log);
    expect(await again.append([view(0), view(3)])).toEqual({ accepted: 1, duplicates: 1 });
    expect(await idsOf(again)).toEqual(['e0', 'e1', 'e2', 'e3']);
  });

  it('is acknowledged as a duplicate only when the first is durable, and rejected with it', async () => {
    const log = await openLog();
    vi.spyOn(await fileHandles(), 'write').mockRejectedValueOnce(systemError('ENOSPC', 'write'));
    const codes = await Promise.all([codeOf(log.append([view(0)])), codeOf(log.append([view(0)]))]);
    expect(codes).toEqual(['ERR_NO_SPACE', 'ERR_NO_SPACE']);
    expect(await log.append([view(0)])).toEqual({ accepted: 1, duplicates: 0 });
  });

  it('is stored again when it has no id, or its id has left the window', async () => {
    const log = await openLog({ idWindow: 16 });
    const anonymous = { userId: 'u', itemId: 'i', type: 'view' } as const;
    expect(await log.append([anonymous, anonymous])).toEqual({ accepted: 2, duplicates: 0 });
    await log.append(range(0, 40).map((n) => view(n)));
    expect(await log.append([view(24), view(39)])).toEqual({ accepted: 0, duplicates: 2 });
    expect(await log.append([view(0)])).toEqual({ accepted: 1, duplicates: 0 });
  });
});

describe('segments', () => {
  it('are begun when one is full, and read as one log', async () => {
    let log = await openLog({ segmentBytes: 4096 });
    for (const n of range(0, 200)) await log.append([view(n)]);
    expect(segmentNames().length).toBeGreaterThan(4);
    const ids = range(0, 200).map((n) => `e${n}`);
    expect(await idsOf(log)).toEqual(ids);
    log = await reopen(log, { segmentBytes: 4096 });
    expect(await idsOf(log)).toEqual(ids);
    expect(await idsOf(log, 150n)).toEqual(ids.slice(150));
    expect(await log.append([view(0), view(199), view(200)])).toEqual({ accepted: 1, duplicates: 2 });
  });

  it('are dropped from the front, whole, down to a limit and not past what is needed', async () => {
    const options = { segmentBytes: 4096, idWindow: 50 };
    const log = await openLog(options);
    for (const n of range(0, 200)) await log.append([view(n)]);
    expect(await log.retain({ keepFrom: 200n })).toBe(0n);
    expect(await log.retain({ keepFrom: 200n, maxAgeMs: 60_000, maxEvents: 200, maxBytes: 2 ** 20 })).toBe(0n);
    const byBytes = await log.retain({ keepFrom: 100n, maxBytes: 12_000 });
    expect(byBytes).toBeGreaterThan(0n);
    expect(byBytes).toBeLessThanOrEqual(100n);
    const byAge = await log.retain({ keepFrom: 200n, maxAgeMs: -1 });
    expect(byAge).toBeGreaterThan(byBytes);
    expect(byAge).toBeLessThanOrEqual(150n); // the window of ids
    expect((await idsOf(log))[0]).toBe(`e${byAge}`);
    const again = await reopen(log, options);
    expect(again.firstOffset).toBe(byAge);
    expect(await again.append([view(199)])).toEqual({ accepted: 0, duplicates: 1 });
    expect(
      await codeOf(
        again.follow(
          0n,
          () => {},
          () => {},
        ),
      ),
    ).toBe('ERR_CORRUPT_LOG');
  });

  it('are not dropped without a keepFrom, nor for limits that are none', async () => {
    const log = await openLog({ segmentBytes: 4096, idWindow: 1 });
    for (const n of range(0, 200)) await log.append([view(n)]);
    const wrong = [
      { maxEvents: 1 },
      { keepFrom: undefined, maxEvents: 1 },
      { keepFrom: Number.NaN, maxEvents: 1 },
      { keepFrom: 200, maxEvents: 1 },
      { keepFrom: 200n, maxEvents: Number.NaN },
      { keepFrom: 200n, maxBytes: '1' },
      null,
    ];
    for (const options of wrong) expect(await codeOf(log.retain(options as never))).toBe('ERR_INVALID_ARGUMENT');
    expect(await codeOf(log.retain({ keepFrom: 200n, maxEvent: 1 } as never))).toBe('ERR_UNKNOWN_OPTION');
    const none = Number.POSITIVE_INFINITY;
    expect(await log.retain({ keepFrom: 200n, maxAgeMs: none, maxBytes: none, maxEvents: none })).toBe(0n);
    expect(log.firstOffset).toBe(0n);
  });

  it('are read and followed from offsets alone', async () => {
    const log = await openLog();
    await log.append([view(0), view(1)]);
    for (const offset of [0.5, Number.NaN, 0, '0', null, -1n, 2n ** 70n]) {
      expect(await codeOf(readAll(log, offset as never))).toBe('ERR_INVALID_ARGUMENT');
      const followed = log.follow(
        offset as never,
        () => {},
        () => {},
      );
      expect(await codeOf(followed)).toBe('ERR_INVALID_ARGUMENT');
    }
  });

  it('are followed by functions alone, for events and for errors', async () => {
    const log = await openLog();
    const nothing = () => {};
    for (const [onEvent, onError] of [
      [nothing, undefined],
      [undefined, nothing],
      [nothing, 'error'],
    ]) {
      expect(await codeOf(log.follow(0n, onEvent as never, onError as never))).toBe('ERR_INVALID_ARGUMENT');
    }
  });

  it('are dropped once, however many ask at the same time', async () => {
    const options = { segmentBytes: 4096, idWindow: 50 };
    const log = await openLog(options);
    for (const n of range(0, 200)) await log.append([view(n)]);
    const first = await Promise.all(range(0, 8).map(() => log.retain({ keepFrom: 200n, maxAgeMs: -1 })));
    expect(first).toEqual(Array(8).fill(log.firstOffset));
    expect(log.firstOffset).toBeLessThanOrEqual(150n);
    expect(await log.append([view(199), view(200)])).toEqual({ accepted: 1, duplicates: 1 });
    expect((await idsOf(await reopen(log, options)))[0]).toBe(`e${first[0]}`);
  });

  it('are dropped again when one could not be, and leave no gap', async () => {
    const options = { segmentBytes: 4096, idWindow: 50 };
    const log = await openLog(options);
    for (const n of range(0, 200)) await log.append([view(n)]);
    vi.spyOn(fs, 'rm').mockRejectedValueOnce(systemError('EACCES', 'rm'));
    await expect(log.retain({ keepFrom: 200n, maxAgeMs: -1 })).rejects.toMatchObject({ code: 'ERR_IO' });
    const first = await log.retain({ keepFrom: 200n, maxAgeMs: -1 });
    expect((await idsOf(await reopen(log, options)))[0]).toBe(`e${first}`);
  });

  it('are dropped under a reader, who goes on with what is left', async () => {
    const log = await openLog({ segmentBytes: 4096, idWindow: 50 });
    for (const n of range(0, 200)) await log.append([view(n)]);
    const seen: bigint[] = [];
    for await (const { offset } of log.read()) {
      seen.push(offset);
      if (offset === 0n) await log.retain({ keepFrom: 200n, maxAgeMs: -1 });
    }
    const rest = range(Number(log.firstOffset), 200).map(BigInt);
    expect(rest[0]).toBeGreaterThan(BigInt(seen.length - rest.length)); // behind the segment that was being read
    expect(seen.slice(-rest.length)).toEqual(rest);
  });

  it('are dropped while a reader opens them, who goes on with what is left', async () => {
    const log = await openLog({ segmentBytes: 4096, idWindow: 50 });
    for (const n of range(0, 200)) await log.append([view(n)]);
    const { open: openFile } = fs;
    vi.spyOn(fs, 'open').mockImplementationOnce(async (...args) => {
      await log.retain({ keepFrom: 200n, maxAgeMs: -1 });
      return openFile(...args);
    });
    expect(await readAll(log)).toHaveLength(200 - Number(log.firstOffset));
    expect(log.firstOffset).toBeGreaterThan(0n);
  });

  it('are filled and followed by others under a reader, who reads on to the end', async () => {
    const log = await openLog({ segmentBytes: 4096 });
    await log.append([view(0)]);
    const seen: (string | undefined)[] = [];
    for await (const { event } of log.read()) {
      seen.push(event.id);
      if (seen.length === 1) for (const n of range(1, 100)) await log.append([view(n)]);
    }
    expect(seen).toEqual(range(0, 100).map((n) => `e${n}`));
  });

  it('that are missing or damaged are an error, not a loss', async () => {
    const log = await openLog({ segmentBytes: 4096 });
    for (const n of range(0, 100)) await log.append([view(n)]);
    await log.close();
    const [first, second] = segmentNames().map((name) => join(directory, 'events', name)) as [string, string];
    const bytes = readFileSync(second);

    rmSync(second);
    await expect(openLog()).rejects.toThrow(/events \d+ to \d+ \(exclusive\) are missing/);

    writeFileSync(second, bytes.subarray(0, -1));
    await expect(openLog()).rejects.toMatchObject({ code: 'ERR_CORRUPT_LOG' });

    const flipped = Buffer.from(bytes);
    flipped[2000] = (flipped[2000] ?? 0) ^ 1;
    writeFileSync(second, flipped);
    await expect(openLog()).rejects.toThrow(new RegExp(`${second}' is damaged at byte (18|19|20)\\d\\d:`));
    writeFileSync(second, bytes);

    writeFileSync(first, Buffer.alloc(4096));
    await expect(openLog()).rejects.toThrow(/damaged at byte 0: the header/);
  });
});

describe('a full disk', () => {
  it.each(['ENOSPC', 'EDQUOT', 'EFBIG'])(
    '%s rejects all that wait; the log stays whole and goes on later',
    async (code) => {
      let log = await openLog();
      await log.append([view(0)]);
      const prototype = await fileHandles();
      const { write } = prototype;
      vi.spyOn(prototype, 'write').mockImplementationOnce(async function (this: FileHandle, ...args: unknown[]) {
        // Half of it fits.
        await (write as (...args: unknown[]) => Promise<unknown>).call(this, args[0], args[1], 40, args[3]);
        throw systemError(code, 'write');
      } as FileHandle['write']);
      const codes = await Promise.all([1, 2, 3].map((n) => codeOf(log.append([view(n)]))));
      expect(codes).toEqual(Array(3).fill('ERR_NO_SPACE'));
      expect(await idsOf(log)).toEqual(['e0']);
      expect(await log.append([view(2), view(4)])).toEqual({ accepted: 2, duplicates: 0 });
      log = await reopen(log);
      expect(await idsOf(log)).toEqual(['e0', 'e2', 'e4']);
      expect(log.truncatedBytes).toBe(0);
    },
  );

  it('that shows at fdatasync is no different', async () => {
    let log = await openLog();
    vi.spyOn(await fileHandles(), 'datasync').mockRejectedValueOnce(systemError('ENOSPC', 'fdatasync'));
    expect(await codeOf(log.append([view(0)]))).toBe('ERR_NO_SPACE');
    expect(await log.append([view(0)])).toEqual({ accepted: 1, duplicates: 0 });
    log = await reopen(log);
    expect(await idsOf(log)).toEqual(['e0']);
  });

  it('met while a segment is begun leaves the log whole', async () => {
    let log = await openLog({ segmentBytes: 4096 });
    for (const n of range(0, 40)) await log.append([view(n, { requestId: 'r'.repeat(60) })]);
    const count = log.nextOffset;
    // Whatever write comes next fails, three times: the header of a new segment, or the record.
    const fail = vi.spyOn(await fileHandles(), 'write');
    for (const n of range(40, 80)) {
      fail.mockRejectedValueOnce(systemError('ENOSPC', 'write'));
      expect(await codeOf(log.append([view(n)]))).toBe('ERR_NO_SPACE');
      expect(await codeOf(log.append([view(n)]))).toBeUndefined();
    }
    log = await reopen(log);
    expect(log.nextOffset).toBe(count + 40n);
    expect(await idsOf(log)).toEqual(range(0, 80).map((n) => `e${n}`));
  });

  it('of real bytes: every event that was acknowledged is there, and space that comes back is used', async ({
    skip,
  }) => {
    const disk = join(directory, 'disk');
    await fs.mkdir(disk);
    const mount = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', disk], { encoding: 'utf8' });
    if (mount.status !== 0) skip(`a small file system cannot be mounted here: ${mount.stderr ?? mount.error?.message}`);
    try {
      const path = join(disk, 'events');
      writeFileSync(join(disk, 'ballast'), Buffer.alloc(100_000));
      let log = await openEventLog({ path, segmentBytes: 65_536 });
      const acknowledged: string[] = [];
      let n = 0;
      let code: string | undefined;
      while (code === undefined) {
        const batch = range(n, n + 50).map((i) => view(i));
        code = await codeOf(log.append(batch));
        if (code === undefined) acknowledged.push(...batch.map(({ id }) => String(id)));
        n += 50;
      }
      expect(code).toBe('ERR_NO_SPACE');
      expect(acknowledged.length).toBeGreaterThan(400);
      expect(await codeOf(log.append([view(n)]))).toBe('ERR_NO_SPACE');
      expect(await idsOf(log)).toEqual(acknowledged);

      rmSync(join(disk, 'ballast'));
      expect(await log.append([view(n), view(0)])).toEqual({ accepted: 1, duplicates: 1 });
      await log.close();
      log = await openEventLog({ path });
      expect(await idsOf(log)).toEqual([...acknowledged, `e${n}`]);
      await log.close();
    } finally {
      spawnSync('umount', [disk]);
    }
  });

  it('of a largest file size begins another file', () => {
    const program = `
      const { openEventStore } = await import(${JSON.stringify(product)});
      const store = await openEventStore({ path: process.argv[1] });
      const codes = [];
      for (let n = 0; n < 60; n++) {
        const events = Array.from({ length: 100 }, (_, i) => ({ id: n + '-' + i, userId: 'u', itemId: 'i', type: 'view' }));
        for (let tries = 0; tries < 2; tries++) {
          try { await store.append(events); break; } catch (error) { codes.push(error.code); }
        }
      }
      await store.close();
      const again = await openEventStore({ path: process.argv[1] });
      let count = 0;
      for await (const { event } of again.read()) count += event.id === Math.floor(count / 100) + '-' + count % 100;
      await again.close();
      console.log(JSON.stringify({ count, codes: [...new Set(codes)], failures: codes.length }));`;
    const script = 'ulimit -f 256; exec "$0" --input-type=module -e "$1" "$2"';
    const path = join(directory, 'events');
    const { stdout, stderr } = runProgram('bash', ['-c', script, process.execPath, program, path]);
    const { count, codes, failures } = JSON.parse(stdout || stderr);
    expect({ count, codes }).toEqual({ count: 6000, codes: ['ERR_NO_SPACE'] });
    expect(failures).toBeGreaterThan(1);
    expect(segmentNames()).toHaveLength(failures + 1);
  });
});

describe('a failed disk', () => {
  it.each([
    ['write', 'EIO'],
    ['datasync', 'EIO'],
    ['datasync', 'EROFS'],
  ] as const)('%s with %s is final: nothing is acknowledged after it', async (method, code) => {
    let log = await openLog();
    await log.append([view(0)]);
    const failing = vi.spyOn(await fileHandles(), method).mockRejectedValueOnce(systemError(code, method) as never);
    const codes = await Promise.all([1, 2].map((n) => codeOf(log.append([view(n)]))));
    expect(codes).toEqual(['ERR_IO', 'ERR_IO']);
    const calls = failing.mock.calls.length;
    expect(await codeOf(log.append([view(3)]))).toBe('ERR_IO');
    expect(failing.mock.calls.length).toBe(calls); // not tried again
    log = await reopen(log);
    expect((await idsOf(log))[0]).toBe('e0');
    expect(await log.append([view(3)])).toEqual({ accepted: 1, duplicates: 0 });
  });

  it('is final too when a full disk cannot be undone', async () => {
    const log = await openLog();
    const prototype = await fileHandles();
    vi.spyOn(prototype, 'write').mockRejectedValueOnce(systemError('ENOSPC', 'write'));
    vi.spyOn(prototype, 'truncate').mockRejectedValueOnce(systemError('EIO', 'ftruncate'));
    expect(await codeOf(log.append([view(0)]))).toBe('ERR_IO');
    expect(await codeOf(log.append([view(1)]))).toBe('ERR_IO');
  });
});

describe('two openers', () => {
  it('of one process: the second is refused until the first closes', async () => {
    const log = await openLog();
    await expect(openLog()).rejects.toMatchObject({ code: 'ERR_LOCKED' });
    await log.append([view(0)]);
    expect(await idsOf(await reopen(log))).toEqual(['e0']);
  });

  it('of one process: the second is let in although the file of the first could not be closed', async () => {
    const opening = vi.spyOn(fs, 'open');
    const log = await openLog();
    const files = await Promise.all(opening.mock.results.map(({ value }) => value as Promise<FileHandle>));
    const segment = files[opening.mock.calls.findIndex(([path]) => path === lastSegment())] as FileHandle;
    const { close } = segment;
    vi.spyOn(segment, 'close').mockImplementation(async () => {
      await close();
      throw systemError('EIO', 'close');
    });
    open.delete(log);
    await expect(log.close()).rejects.toThrow('EIO');
    expect(await (await openLog()).append([view(0)])).toEqual({ accepted: 1, duplicates: 0 });
  });

  it('of two processes: the second is refused until the first is killed', async () => {
    const program = `
      const { openEventStore } = await import(${JSON.stringify(product)});
      await openEventStore({ path: process.argv[1] });
      process.send('open');
      setInterval(() => {}, 1000);`;
    const child = spawn(process.execPath, ['--input-type=module', '-e', program, join(directory, 'events')], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    });
    await once(child, 'message');
    await expect(openLog()).rejects.toMatchObject({ code: 'ERR_LOCKED' });
    child.kill('SIGKILL');
    await once(child, 'exit');
    expect(await (await openLog()).append([view(0)])).toEqual({ accepted: 1, duplicates: 0 });
  });
});

describe('follow', () => {
  it('delivers what is stored, then what comes, each once, in order, before it is acknowledged', async () => {
    const log = await openLog({ segmentBytes: 4096 });
    for (const n of range(0, 100)) await log.append([view(n)]);
    const seen: (string | undefined)[] = [];
    const appends = range(100, 200).map((n) => log.append([view(n)])); // while it catches up
    const follower = await log.follow(
      10n,
      ({ event }) => seen.push(event.id),
      (error) => expect.fail(String(error)),
    );
    await Promise.all(appends);
    await log.append([view(200)]);
    expect(seen).toEqual(range(10, 201).map((n) => `e${n}`));
    await follower.stop();
    await log.append([view(201)]);
    expect(seen).toHaveLength(191);
  });

  it('goes on after a follower threw, and says so', async () => {
    const log = await openLog();
    const errors: unknown[] = [];
    const seen: bigint[] = [];
    await log.follow(
      0n,
      ({ offset }) => {
        seen.push(offset);
        if (offset === 0n) throw new Error('mine');
      },
      (error) => errors.push((error as Error).message),
    );
    expect(await log.append([view(0), view(1)])).toEqual({ accepted: 2, duplicates: 0 });
    expect([seen, errors]).toEqual([[0n, 1n], ['mine']]);
  });

  it('refuses an offset that the log does not reach', async () => {
    const log = await openLog();
    expect(
      await codeOf(
        log.follow(
          1n,
          () => {},
          () => {},
        ),
      ),
    ).toBe('ERR_CORRUPT_LOG');
  });
});

describe('options', () => {
  it.each([
    [{ path: '' }, 'ERR_INVALID_ARGUMENT'],
    [{ segmentBytes: 0 }, 'ERR_INVALID_ARGUMENT'],
    [{ idWindow: 1.5 }, 'ERR_INVALID_ARGUMENT'],
    [{ maxPending: 1 } as object, 'ERR_UNKNOWN_OPTION'],
  ])('%j is refused', async (options, code) => {
    await expect(openLog(options)).rejects.toMatchObject({ code });
  });

  it('a path that is a file is refused', async () => {
    writeFileSync(join(directory, 'events'), '');
    await expect(openLog()).rejects.toMatchObject({ code: 'ERR_IO' });
    expect(statSync(join(directory, 'events')).size).toBe(0);
  });
});

describe('the end of the last segment', () => {
  it('is cut off wherever a crash tore the last commit, and nothing else is', async () => {
    let log = await openLog();
    await log.append([view(0)]);
    await log.append([view(1)]);
    const durable = statSync(lastSegment()).size;
    await log.append([view(2, { requestId: 'ü'.repeat(20) })]);
    await log.close();
    const whole = readFileSync(lastSegment());
    for (let size = durable; size <= whole.length; size++) {
      writeFileSync(lastSegment(), whole.subarray(0, size));
      log = await openLog();
      const isWhole = size === whole.length;
      expect(await idsOf(log), `cut at ${size}`).toEqual(isWhole ? ['e0', 'e1', 'e2'] : ['e0', 'e1']);
      expect(log.truncatedBytes).toBe(isWhole ? 0 : size - durable);
      expect(log.warnings).toHaveLength(log.truncatedBytes > 0 ? 1 : 0);
      expect(await log.append([view(2), view(3)])).toEqual({ accepted: isWhole ? 1 : 2, duplicates: isWhole ? 1 : 0 });
      expect(await idsOf(await reopen(log))).toEqual(['e0', 'e1', 'e2', 'e3']);
      await Promise.all([...open].map((each) => each.close()));
    }
  });

  it('without a whole header is begun again', async () => {
    let log = await openLog();
    await log.close();
    const whole = readFileSync(lastSegment());
    for (const bytes of [whole.subarray(0, 0), whole.subarray(0, 11), Buffer.alloc(24)]) {
      writeFileSync(lastSegment(), bytes);
      log = await openLog();
      expect(log.nextOffset).toBe(0n);
      await log.close();
      expect(readFileSync(lastSegment())).toEqual(whole);
    }
  });

  it('is an error when an event that was acknowledged is damaged before a later commit', async () => {
    const log = await openLog();
    const sizes: number[] = [];
    for (const n of [0, 1, 2]) {
      sizes.push(statSync(lastSegment()).size);
      await log.append([view(n)]);
    }
    await log.close();
    const whole = readFileSync(lastSegment());
    const [, begin, end] = sizes as [number, number, number];
    for (let position = begin; position < end; position++) {
      const damaged = Buffer.from(whole);
      damaged[position] = (damaged[position] ?? 0) ^ 0x40;
      writeFileSync(lastSegment(), damaged);
      await expect(openLog()).rejects.toThrow(`damaged at byte ${begin}: event 1 was stored there`);
      expect(readFileSync(lastSegment())).toEqual(damaged);
    }
  });
});
