/** The service from outside: what only a process of its own, a socket or a disk can show. */
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { Agent, request } from 'node:http';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { LimbeckClient } from '../../src/client/client.js';
import { createEngine } from '../../src/engine.js';
import { FIXTURE_STUDENT, startService } from '../support/serve.js';
import { type ServeProcess, spawnServe } from '../support/serve-process.js';

const [a, b] = JSON.parse(readFileSync(join(FIXTURE_STUDENT, 'items.json'), 'utf8')).map(
  ({ id }: { id: string }) => id,
);
let folder: string;
let services: ServeProcess[];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'limbeck-serve-'));
  services = [];
});
afterEach(() => {
  for (const { child } of services) child.kill('SIGKILL');
  rmSync(folder, { recursive: true });
});

async function serve(student: string, ...args: string[]): Promise<ServeProcess> {
  const service = await spawnServe(student, '--data', join(folder, 'data'), ...args);
  services.push(service);
  return service;
}

/** A registry of two versions of the fixture's student, of which `one` is current; `broken` lost bytes since. */
async function makeRegistry(): Promise<string> {
  const directory = join(folder, 'models');
  const engine = await createEngine({ threads: 1 });
  const registry = await engine.openModelRegistry(directory);
  for (const name of ['one', 'two', 'broken']) await registry.add(name, FIXTURE_STUDENT);
  await registry.promote('one');
  engine.dispose();
  const weights = join(directory, 'versions/broken/model.safetensors');
  writeFileSync(weights, readFileSync(weights).subarray(0, 5000));
  return directory;
}

/** Sends requests over `connections` kept connections, one after the other on each, until stopped or asked to leave. */
function load({ port }: ServeProcess, connections: number) {
  const statuses: (number | string)[] = [];
  const models = new Set<string>();
  let isStopped = false;
  const payload = JSON.stringify({ history: [a, b], k: 5 });
  const headers = { 'content-type': 'application/json', 'content-length': payload.length };
  async function loop() {
    const agent = new Agent({ keepAlive: true, maxSockets: 1 });
    while (!isStopped) {
      try {
        const sent = request({ port, host: '127.0.0.1', path: '/v1/recommend', method: 'POST', agent, headers });
        sent.end(payload);
        const [response] = await once(sent, 'response');
        const body = await response.toArray();
        statuses.push(response.statusCode);
        // As a load balancer does: asked to leave, it sends nothing more.
        if (response.headers.connection === 'close') break;
        if (response.statusCode === 200) models.add(JSON.parse(Buffer.concat(body).toString()).model);
      } catch (error) {
        statuses.push(String((error as NodeJS.ErrnoException).code));
      }
    }
    agent.destroy();
  }
  const loops = Array.from({ length: connections }, loop);
  return {
    statuses,
    models,
    async stop() {
      isStopped = true;
      await Promise.all(loops);
    },
  };
}

/** Everything that a raw socket receives until it is closed, and after how many ms that was. */
async function exchange(port: number, pieces: readonly string[], everyMs = 0) {
  const socket = connect(port, '127.0.0.1');
  let received = '';
  socket.setEncoding('utf8').on('data', (text) => {
    received += text;
  });
  socket.on('error', () => undefined);
  const start = performance.now();
  const closed = once(socket, 'close');
  for (const piece of pieces) {
    if (socket.closed) break;
    socket.write(piece);
    if (everyMs > 0) await sleep(everyMs);
  }
  await closed;
  return { received, afterMs: performance.now() - start };
}

describe('the end', () => {
  test('loses no accepted request, and exits with 0', async () => {
    const service = await serve(FIXTURE_STUDENT, '--drain-delay', '2000');
    const { statuses, stop } = load(service, 8);
    await sleep(300);
    const exit = service.stop();
    await sleep(100);
    const ready = await fetch(`${service.url}/readyz`);
    expect([ready.status, ready.headers.get('connection')]).toEqual([503, 'close']);
    expect((await fetch(`${service.url}/healthz`)).status).toBe(200);
    expect(await exit).toBe(0);
    await stop();
    expect(statuses.length).toBeGreaterThan(8);
    expect(new Set(statuses)).toEqual(new Set([200]));
  });

  test('waits for slow bodies, closes idle connections, and gives up after the deadline', async () => {
    const service = await serve(FIXTURE_STUDENT, '--drain-timeout', '4000');
    const body = JSON.stringify({ history: [a] });
    const head = `POST /v1/recommend HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n`;
    const slow = exchange(service.port, [head + body.slice(0, 5), body.slice(5)], 600);
    const idle = exchange(service.port, ['GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n']);
    const never = exchange(service.port, [head]);
    // Connections are accepted in order: when one more is answered, these are open.
    expect((await fetch(`${service.url}/healthz`)).status).toBe(200);
    expect(await service.stop()).not.toBe(0);
    expect((await slow).received).toContain('200 OK');
    expect((await idle).received).toContain('200 OK');
    expect((await never).received).toBe('');
    expect((await idle).afterMs).toBeLessThan((await never).afterMs - 1000);
  });
});

describe('slow clients', () => {
  test('are answered 408 and let go, while others are served', async () => {
    const service = await startService({ timeouts: { headersMs: 500, requestMs: 1000 } });
    const port = Number(new URL(await service.listen()).port);
    const dribble = Array.from('GET /healthz HTTP/1.1\r\nhost: localhost\r\n'.repeat(3));
    const slowHeaders = exchange(port, dribble, 100);
    const slowBody = exchange(port, [
      'POST /v1/recommend HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{',
    ]);
    const client = new LimbeckClient(`http://127.0.0.1:${port}`);
    for (let i = 0; i < 20; i++) expect((await client.recommend({ history: [a], k: 2 })).items).toHaveLength(2);
    const body = await slowBody;
    expect(body.received).toContain('408 Request Timeout');
    expect(body.received).toContain('"code":"ERR_TIMEOUT"');
    expect(body.afterMs).toBeLessThan(20_000);
    const headers = await slowHeaders;
    expect(headers.received).toContain('408');
    await service.end();
  });

  test('that break the protocol are told so and let go', async () => {
    const service = await startService();
    const port = Number(new URL(await service.listen()).port);
    const broken = [
      'NONSENSE\r\n\r\n',
      'GET /healthz HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n',
      'POST /v1/recommend HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n',
      'GET /healthz HTTP/1.1\r\n\r\n',
    ];
    for (const text of broken) expect((await exchange(port, [text])).received).toMatch(/^HTTP\/1.1 400/);
    const large = `GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: ${'y'.repeat(20_000)}\r\n\r\n`;
    expect((await exchange(port, [large])).received).toMatch(/^HTTP\/1.1 431/);
    expect((await fetch(`http://127.0.0.1:${port}/healthz`)).status).toBe(200);
    await service.end();
  });
});

describe('models', () => {
  test('are swapped under load without a failed request; a corrupt one is refused, and the old one keeps serving', async () => {
    const service = await serve(await makeRegistry());
    const client = new LimbeckClient(service.url);
    expect((await client.models()).current).toBe('one');
    const { statuses, models, stop } = load(service, 4);
    for (let i = 0; i < 3; i++) {
      await client.promoteModel('two');
      await sleep(100);
      await expect(client.promoteModel('broken')).rejects.toMatchObject({ status: 422, code: 'ERR_MODEL_REFUSED' });
      expect((await client.models()).current).toBe('two');
      expect(await client.rollbackModel()).toEqual({ current: 'one' });
      await sleep(100);
    }
    await stop();
    expect(new Set(statuses)).toEqual(new Set([200]));
    expect(models).toEqual(new Set(['one', 'two']));
    await client.loadModel('two');
    expect((await client.recommend({ history: [a], model: 'two' })).model).toBe('two');
    await client.promoteModel('two');
    expect(await service.stop()).toBe(0);
    const again = await serve(join(folder, 'models'));
    expect((await new LimbeckClient(again.url).models()).current).toBe('two');
    const refusals = service.log.filter(({ msg }) => msg === 'model refused');
    expect(refusals).toHaveLength(3);
  });
});

describe('events', () => {
  test('outlive kill -9 once they are acknowledged', async () => {
    const service = await serve(FIXTURE_STUDENT);
    const client = new LimbeckClient(service.url, { retries: 0 });
    const sent = Array.from({ length: 20 }, (_, i) =>
      client.sendEvents([{ userId: `u${i}`, itemId: a, type: 'click' }]).then(() => `u${i}`),
    );
    const [first] = await Promise.all(sent);
    service.child.kill('SIGKILL');
    await once(service.child, 'exit');
    expect(first).toBe('u0');
    const again = await serve(FIXTURE_STUDENT);
    for (let i = 0; i < 20; i++) {
      expect((await new LimbeckClient(again.url).user(`u${i}`)).history).toEqual([a]);
    }
  });

  test('are kept by one process at a time', async () => {
    const service = await serve(FIXTURE_STUDENT);
    await expect(serve(FIXTURE_STUDENT)).rejects.toThrow(/ERR_LOCKED/);
    expect((await fetch(`${service.url}/readyz`)).status).toBe(200);
  });

  test('are refused with 507 while the disk is full, recommendations are not, and later events are taken again', async (context) => {
    const disk = join(folder, 'disk');
    spawnSync('mkdir', [disk]);
    const mount = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=512k', 'tmpfs', disk], { encoding: 'utf8' });
    if (mount.status !== 0) return context.skip('tmpfs cannot be mounted here');
    try {
      const service = await spawnServe(FIXTURE_STUDENT, '--data', join(disk, 'data'));
      services.push(service);
      const client = new LimbeckClient(service.url, { retries: 0 });
      const event = { userId: 'u', itemId: a, type: 'click' as const };
      expect(await client.sendEvents([event])).toEqual({ accepted: 1, duplicates: 0 });
      spawnSync('dd', ['if=/dev/zero', `of=${join(disk, 'filler')}`, 'bs=1k', 'count=1000']);
      const batch = Array.from({ length: 500 }, (_, i) => ({ ...event, userId: `u${i}`.padEnd(200, 'x') }));
      let refused: unknown;
      for (let i = 0; i < 20 && refused === undefined; i++) {
        refused = await client.sendEvents(batch).then(
          () => undefined,
          (error: unknown) => error,
        );
      }
      expect(refused).toMatchObject({ status: 507, code: 'ERR_NO_SPACE' });
      expect((await client.recommend({ history: [a], k: 3 })).items).toHaveLength(3);
      const ready = await fetch(`${service.url}/readyz`);
      expect([ready.status, await ready.json()]).toEqual([
        200,
        { status: 'ok', reason: expect.stringContaining('full') },
      ]);
      rmSync(join(disk, 'filler'));
      expect((await client.sendEvents([{ ...event, userId: 'later' }])).accepted).toBe(1);
      expect(await (await fetch(`${service.url}/readyz`)).json()).toEqual({ status: 'ok' });
      expect((await client.user('u')).history).toEqual([a]);
      service.child.kill('SIGKILL');
      await once(service.child, 'exit');
    } finally {
      spawnSync('umount', ['-l', disk]);
    }
  });
});

describe('the start', () => {
  test('is refused to other machines without keys', async () => {
    await expect(serve(FIXTURE_STUDENT, '--host', '0.0.0.0')).rejects.toThrow(/ended with 2: .*no keys/);
  });

  test('is refused without a student', async () => {
    await expect(serve(join(folder, 'nothing'))).rejects.toThrow(/ended with 3: .*ERR_FILE_NOT_FOUND/);
  });

  test('is refused with a corrupt student, and leaves the data as it was', async () => {
    const student = join(folder, 'student');
    cpSync(FIXTURE_STUDENT, student, { recursive: true });
    writeFileSync(join(student, 'model.safetensors'), 'broken');
    await expect(serve(student)).rejects.toThrow(/ended with 3: .*ERR_SAFETENSORS/);
    const service = await serve(FIXTURE_STUDENT);
    expect((await fetch(`${service.url}/readyz`)).status).toBe(200);
  });
});
