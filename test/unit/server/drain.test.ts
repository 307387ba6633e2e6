/** The end of a service, over connections that their clients would keep. */
import { once } from 'node:events';
import { type AddressInfo, connect, type Socket } from 'node:net';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { startService, type TestService } from '../../support/serve.js';

/** Nothing below is to wait for it. */
const DEADLINE_MS = 20_000;

let service: TestService;
let port: number;
let go: () => void;
let going: Promise<void>;
let atWork: number;
beforeEach(async () => {
  service = await startService({ timeouts: { drainMs: DEADLINE_MS, idleMs: 0 } });
  atWork = 0;
  going = new Promise((done) => {
    go = done;
  });
  const work = async () => {
    atWork++;
    await going;
  };
  service.app.get('/slow', async () => {
    await work();
    return { done: true };
  });
  service.app.get('/fails', async () => {
    await work();
    throw new Error('fails');
  });
  service.app.get('/begun', async (_, reply) => {
    reply.hijack();
    reply.raw.writeHead(200, { 'content-length': 4 });
    reply.raw.write('be');
    await work();
    reply.raw.end('en');
  });
  await service.listen();
  port = (service.app.server.address() as AddressInfo).port;
});
afterEach(() => service.end());

/** A client that keeps its connection. */
function ask(text: string): { readonly socket: Socket; readonly received: Promise<string> } {
  const socket = connect(port, '127.0.0.1').setEncoding('latin1');
  let all = '';
  socket.on('data', (piece) => {
    all += piece;
  });
  socket.write(text);
  return { socket, received: once(socket, 'close').then(() => all) };
}

const get = (path: string) => ask(`GET ${path} HTTP/1.1\r\nhost: localhost\r\n\r\n`).received;

describe('the end', () => {
  it('asks the clients of requests at work to leave, and waits for no connection that they would keep', async () => {
    const asked = [get('/slow'), get('/fails')];
    await expect.poll(() => atWork).toBe(2);
    const ended = service.close();
    await expect.poll(() => service.app.server.listening).toBe(false);
    go();
    const [slow, fails] = await Promise.all(asked);
    expect(slow).toMatch(/^HTTP\/1\.1 200 /);
    expect(fails).toMatch(/^HTTP\/1\.1 500 /);
    for (const answer of [slow, fails]) expect(answer).toMatch(/\r\nconnection: close\r\n/i);
    expect(await ended).toBe(true);
  });

  it('waits for no connection whose answer began before', async () => {
    const answer = get('/begun');
    await expect.poll(() => atWork).toBe(1);
    const ended = service.close();
    await expect.poll(() => service.app.server.listening).toBe(false);
    go();
    expect(await answer).toMatch(/keep-alive.*\r\n\r\nbeen$/s);
    expect(await ended).toBe(true);
  });

  it('waits for no connection over which nothing came', async () => {
    const { socket, received } = ask('');
    await once(socket, 'connect');
    // Connections are accepted in order.
    expect((await fetch(`http://127.0.0.1:${port}/healthz`)).status).toBe(200);
    expect(await service.close()).toBe(true);
    expect(await received).toBe('');
  });

  it('asks whoever is refused meanwhile to leave, too', async () => {
    await service.end();
    service = await startService({ timeouts: { drainDelayMs: 500 } });
    await service.listen();
    port = (service.app.server.address() as AddressInfo).port;
    const ended = service.close();
    const answers = await Promise.all([
      ...['/nothing', '/v1/users/%', '/readyz'].map(get),
      ask(
        'POST /v1/similar HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{]',
      ).received,
    ]);
    expect(answers.map((answer) => Number(answer.slice(9, 12)))).toEqual([404, 400, 503, 400]);
    for (const answer of answers) expect(answer).toMatch(/\r\nconnection: close\r\n/i);
    expect(await ended).toBe(true);
  });
});
