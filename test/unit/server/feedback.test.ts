/** The service's feedback when its store refuses events. */
import { mkdtempSync, rmSync } from 'node:fs';
import fs, { type FileHandle } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { Feedback, type FeedbackOptions } from '../../../src/server/feedback.js';
import { startService } from '../../support/serve.js';
import { NO_REDIS, RedisServer } from '../feedback/redis-server.js';

const view = (n: number) => ({ id: `e${n}`, userId: 'u', itemId: `i${n}`, type: 'view' as const });

let directory: string;
const open = new Set<Feedback>();
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'limbeck-feedback-'));
});
afterEach(async () => {
  vi.restoreAllMocks();
  for (const feedback of open) await feedback.close();
  open.clear();
  rmSync(directory, { recursive: true });
});

async function openFeedback(options: Partial<FeedbackOptions> = {}): Promise<Feedback> {
  const feedback = await Feedback.open({ directory, onError: (error) => expect.fail(String(error)), ...options });
  open.add(feedback);
  return feedback;
}

async function failNextWrite(code: string): Promise<void> {
  const file = await fs.open(directory);
  await file.close();
  const error = Object.assign(new Error(code), { code, syscall: 'write' });
  vi.spyOn(Object.getPrototypeOf(file) as FileHandle, 'write').mockRejectedValueOnce(error);
}

describe('a log', () => {
  it('lets events go that are over a limit and saved; users and popularity keep what they were told', async () => {
    const options = {
      store: { path: join(directory, 'events'), segmentBytes: 4096, idWindow: 50 },
      retention: { maxEvents: 60 },
    };
    const numFiles = async () => (await fs.readdir(options.store.path)).filter((name) => name.endsWith('.log')).length;
    const feedback = await openFeedback(options);
    for (let n = 0; n < 200; n++) await feedback.append([view(n)]);
    const [before, popular] = [await numFiles(), feedback.popular(200).map(({ id }) => id)];
    await feedback.save();
    expect(await numFiles()).toBeLessThan(before);
    await feedback.close();
    open.clear();
    const again = await openFeedback(options);
    expect(again.history('u')).toHaveLength(64);
    expect(again.popular(200).map(({ id }) => id)).toEqual(popular);
  });

  it('that met a full disk is fit again with the next event', async () => {
    const feedback = await openFeedback();
    await failNextWrite('ENOSPC');
    await expect(feedback.append([view(0)])).rejects.toMatchObject({ code: 'ERR_NO_SPACE' });
    expect(feedback.failure).toEqual({ reason: 'events cannot be stored: the disk is full', isFinal: false });
    await feedback.append([view(0)]);
    expect(feedback.failure).toBeUndefined();
  });

  it('that failed stays so, and takes the service out of the balancer', async () => {
    const service = await startService();
    await failNextWrite('EIO');
    const send = () => service.call('POST', '/v1/events', { events: [view(0)] });
    expect([(await send()).status, (await send()).status]).toEqual([503, 503]);
    const { status, json } = await service.call('GET', '/readyz');
    expect([status, json]).toEqual([
      503,
      { status: 'unavailable', reason: expect.stringContaining('the disk failed; repair it') },
    ]);
    await expect(service.end()).rejects.toMatchObject({ code: 'ERR_IO' });
    rmSync(service.data, { recursive: true });
  });
});

describe.skipIf(NO_REDIS)(`a Redis server${NO_REDIS === undefined ? '' : ` (${NO_REDIS})`}`, () => {
  it('that is away refuses events alone; back again, it takes them and the reason is gone on every server', async () => {
    const server = new RedisServer();
    await server.start();
    try {
      const store = { redis: server.url, retryMs: 50 };
      const feedback = await openFeedback({ store });
      const other = await openFeedback({ directory: join(directory, 'other'), store });
      await server.kill();
      for (const each of [feedback, other]) {
        await expect(each.append([view(0)])).rejects.toMatchObject({ code: 'ERR_IO' });
        expect(each.failure).toEqual({ reason: expect.stringContaining('Redis cannot be reached'), isFinal: false });
      }
      await server.start();
      await expect.poll(() => feedback.append([view(1)]).catch(() => undefined)).toBeDefined();
      expect(feedback.failure).toBeUndefined();
      await expect.poll(() => other.failure).toBeUndefined();
      for (const each of open) await each.close();
      open.clear();
    } finally {
      await server.remove();
    }
  });
});
