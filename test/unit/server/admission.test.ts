import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { Admission } from '../../../src/server/admission.js';

let server: Server | undefined;
afterEach(() => void vi.restoreAllMocks());
afterEach(() => new Promise((done) => (server === undefined ? done(0) : server.close(done))));

/** A server whose every answer keeps the event loop busy, once its clients' connections are open. */
async function start(busyMs: number, maxQueueMs: number, owedMs = () => 0) {
  let isBusy = false;
  const shed: string[] = [];
  const admission = new Admission({
    maxQueueMs,
    retryAfterSeconds: 7,
    owedMs,
    alwaysAdmitted: new Set(['/healthz', '/main.js']),
    isDraining: () => false,
    onShed: () => shed.push('queue'),
  });
  const listener = admission.guard((_, response) => {
    const end = performance.now() + (isBusy ? busyMs : 0);
    while (performance.now() < end);
    response.end('answer');
  });
  const listening = createServer(listener);
  server = listening;
  await new Promise<void>((done) => listening.listen(0, '127.0.0.1', done));
  const url = `http://127.0.0.1:${(listening.address() as AddressInfo).port}`;
  // Node accepts one connection a turn: requests that come together come over connections that are there.
  await Promise.all(Array.from({ length: 40 }, async () => (await fetch(url)).text()));
  isBusy = true;
  shed.length = 0; // a machine that is busy with other things may have refused some of these
  return { url, shed };
}

describe('Admission', () => {
  it('answers requests one after the other whatever they take', async () => {
    const { url, shed } = await start(30, 10);
    for (let i = 0; i < 3; i++) expect((await fetch(url)).status).toBe(200);
    expect(shed).toEqual([]);
  });

  it('answers 503 and when to come again to what is behind too much', async () => {
    const { url, shed } = await start(30, 10);
    const answers = await Promise.all(Array.from({ length: 40 }, () => fetch(url, { method: 'POST', body: '{}' })));
    const refused = answers.filter(({ status }) => status === 503);
    expect(refused.length).toBeGreaterThan(0);
    expect(shed.length).toBe(refused.length);
    expect(refused[0]?.headers.get('retry-after')).toBe('7');
    expect(await refused[0]?.json()).toMatchObject({ error: { code: 'ERR_OVERLOADED' } });
    expect(answers.filter(({ status }) => status === 200).length).toBeGreaterThan(0);
    expect((await fetch(url)).status).toBe(200);
  });

  it('counts what the requests let in will take when the turn ends', async () => {
    const { url } = await start(5, 1000, () => 2000);
    const answers = await Promise.all(Array.from({ length: 40 }, () => fetch(url)));
    const refused = answers.filter(({ status }) => status === 503);
    expect(refused.length).toBeGreaterThan(0);
    expect(refused.length).toBeLessThan(33);
  });

  it('holds turns to a part of the time while many requests are refused', async () => {
    let owedMs = 2000;
    const { url, shed } = await start(0, 1000, () => owedMs);
    let now = performance.now();
    vi.spyOn(performance, 'now').mockImplementation(() => now);
    const burst = () => Promise.all(Array.from({ length: 40 }, () => fetch(url)));
    await burst();
    expect(shed.length).toBeGreaterThan(0);
    owedMs = 400; // less than the whole, more than the part
    shed.length = 0;
    await burst();
    expect(shed).toEqual([]);
    owedMs = 2000;
    for (let i = 0; i < 20; i++) await burst();
    owedMs = 400;
    shed.length = 0;
    await burst();
    expect(shed.length).toBeGreaterThan(0);
    // What is refused now does not keep the part in force.
    now += 1100;
    shed.length = 0;
    await burst();
    expect(shed).toEqual([]);
  });

  it('is not alarmed by slow requests of one browser', async () => {
    const { url, shed } = await start(30, 10);
    const answers = await Promise.all(Array.from({ length: 6 }, () => fetch(url)));
    expect(answers.map(({ status }) => status)).toEqual(Array(6).fill(200));
    expect(shed).toEqual([]);
  });

  it('always lets supervisors and the page in', async () => {
    const { url, shed } = await start(20, 5);
    const busy = Promise.all(Array.from({ length: 30 }, () => fetch(url)));
    const wanted = await Promise.all(['/healthz', '/main.js', '/main.js?user=ann'].map((path) => fetch(url + path)));
    expect(wanted.map(({ status }) => status)).toEqual([200, 200, 200]);
    await busy;
    expect(shed.length).toBeGreaterThan(0);
  });
});
