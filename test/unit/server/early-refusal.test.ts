import { createServer, type Server } from 'node:http';
import { type AddressInfo, connect, type Socket } from 'node:net';
import { afterEach, describe, expect, it } from 'vitest';
import { Admission } from '../../../src/server/admission.js';
import { isPlainPost } from '../../../src/server/early-refusal.js';

const POST = 'POST /v1/recommend HTTP/1.1\r\nhost: localhost\r\n';
const post = (body: string, headers = '') => `${POST}${headers}content-length: ${body.length}\r\n\r\n${body}`;

describe('isPlainPost', () => {
  const isPlain = (text: string) => isPlainPost(Buffer.from(text, 'latin1'));

  it('takes one whole request with a body of a stated length', () => {
    expect(isPlain(post('{"k":1}'))).toBe(true);
    expect(isPlain(post(''))).toBe(true);
    expect(isPlain(post('{}', 'Connection: keep-alive\r\nAuthorization: Bearer x\r\n'))).toBe(true);
    expect(isPlain(`${POST}Content-Length:2\r\naccept: */*\r\n\r\n{}`)).toBe(true);
  });

  it.each([
    ['a part of a head', POST],
    ['a part of a body', post('{"k":1}').slice(0, -1)],
    ['more than one request', post('{}') + post('{}')],
    ['an empty line before it', `\r\n${post('{}')}`],
    ['another method', `GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n`],
    ['HTTP/1.0', post('{}').replace('1.1', '1.0')],
    ['no length', `${POST}\r\n`],
    ['two lengths', post('{}', 'content-length: 2\r\n')],
    ['a length that is no number', `${POST}content-length: +2\r\n\r\n{}`],
    ['a length in two lines', `${POST}content-length:\r\n 2\r\n\r\n{}`],
    ['a length with a space before its colon', `${POST}content-length : 2\r\n\r\n{}`],
    ['a body in chunks', post('2\r\n{}\r\n0\r\n\r\n', 'transfer-encoding: chunked\r\n')],
    ['a connection that is to be closed', post('{}', 'connection: close\r\n')],
    ['a connection that is to be closed, or not', post('{}', 'connection: keep-alive, close\r\n')],
    ['a body to be asked for', post('{}', 'Expect: 100-continue\r\n')],
    ['another protocol', post('{}', 'Upgrade: h2c\r\n')],
    ['a line without a carriage return', post('{}', 'x: y\ntransfer-encoding: chunked\r\n')],
    ['a line without a line feed', post('{}', 'x: y\rtransfer-encoding: chunked\r\n')],
    ['a head of many bytes', post('{}', `x: ${'y'.repeat(5000)}\r\n`)],
  ])('leaves %s to the parser', (_, text) => {
    expect(isPlain(text)).toBe(false);
  });
});

let server: Server | undefined;
const sockets: Socket[] = [];
afterEach(async () => {
  for (const socket of sockets.splice(0)) socket.destroy();
  await new Promise((done) => (server === undefined ? done(0) : server.close(done)));
});

/** A connection over which text goes and answers come, in order. */
class Client {
  readonly socket: Socket;
  isClosed = false;
  #text = '';
  #wake: () => void = () => {};

  constructor(port: number) {
    this.socket = connect(port, '127.0.0.1');
    sockets.push(this.socket);
    this.socket.setNoDelay(true);
    this.socket.on('data', (bytes) => {
      this.#text += bytes.toString('latin1');
      this.#wake();
    });
    this.socket.on('close', () => {
      this.isClosed = true;
      this.#wake();
    });
    this.socket.on('error', () => {});
  }

  async #until(isThere: () => boolean): Promise<void> {
    while (!isThere() && !this.isClosed) {
      await new Promise<void>((done) => {
        this.#wake = done;
      });
    }
  }

  /** The next answer, and its head. */
  async answer(): Promise<{ status: number; head: string; body: string }> {
    await this.#until(() => this.#text.includes('\r\n\r\n'));
    const end = this.#text.indexOf('\r\n\r\n');
    const head = this.#text.slice(0, end);
    const length = Number(/content-length: (\d+)/i.exec(head)?.[1] ?? 0);
    await this.#until(() => this.#text.length >= end + 4 + length);
    const body = this.#text.slice(end + 4, end + 4 + length);
    this.#text = this.#text.slice(end + 4 + length);
    return { status: Number(head.slice(9, 12)), head, body };
  }

  async closed(): Promise<void> {
    await this.#until(() => false);
  }

  send(text: string): void {
    this.socket.write(text, 'latin1');
  }

  ask(text: string): ReturnType<Client['answer']> {
    this.send(text);
    return this.answer();
  }
}

/** A server that echoes bodies, under such a load that everything is refused that may be, by the bytes of its requests. */
async function startOverloaded() {
  const state = {
    owedMs: 1e9,
    made: 0,
    shed: 0,
    isDraining: false,
    holdBack: undefined as Promise<void> | undefined,
  };
  const admission = new Admission({
    maxQueueMs: 10_000,
    retryAfterSeconds: 7,
    owedMs: () => state.owedMs,
    alwaysAdmitted: new Set(['/healthz']),
    isDraining: () => state.isDraining,
    onShed: () => state.shed++,
  });
  const listener = admission.guard(async (request, response) => {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    await state.holdBack;
    response.end(`echo ${request.url} ${Buffer.concat(chunks)}`);
  });
  const listening = createServer({ requestTimeout: 300, connectionsCheckingInterval: 50 }, listener);
  listening.prependListener('request', () => state.made++);
  server = listening;
  await new Promise<void>((done) => listening.listen(0, '127.0.0.1', done));
  const { port } = listening.address() as AddressInfo;
  const clients = Array.from({ length: 24 }, () => new Client(port));
  // One of a turn is let in at least: the others stand behind it.
  const askAll = (text: string) => Promise.all(clients.map((client) => client.ask(text)));
  for (let round = 0; round < 40; round++) await askAll(post('{}'));
  state.made = 0;
  state.shed = 0;
  return { state, clients, askAll, client: clients[0] as Client };
}

describe('EarlyRefusal', () => {
  it('refuses without a request being made, as other requests are refused', async () => {
    const { state, askAll } = await startOverloaded();
    const answers = (await askAll(post('{"k":1}'))).filter(({ status }) => status === 503);
    expect(answers.length).toBeGreaterThan(8);
    expect(state.shed).toBe(answers.length);
    expect(state.made).toBe(24 - answers.length);
    for (const { head, body } of answers) {
      expect(head).toMatch(/^HTTP\/1\.1 503 Service Unavailable\r\n/);
      expect(head).toMatch(/\r\nretry-after: 7(\r\n|$)/);
      expect(head).toMatch(/\r\ncontent-type: application\/json; charset=utf-8\r\n/);
      expect(JSON.parse(body)).toMatchObject({ error: { code: 'ERR_OVERLOADED', requestId: '' } });
    }
  });

  it('lets requests in over the same connections once there is time', async () => {
    const { state, askAll } = await startOverloaded();
    state.owedMs = 0;
    for (const body of ['{"k":1}', '{"k":22}']) {
      for (const answer of await askAll(post(body))) {
        expect(answer).toMatchObject({ status: 200, body: `echo /v1/recommend ${body}` });
      }
    }
    expect(state).toMatchObject({ made: 48, shed: 0 });
  });

  it('counts a request once', async () => {
    const { clients } = await startOverloaded();
    // The first of a turn is let in; the second would not be.
    for (const client of clients) expect((await client.ask(post('{}'))).status).toBe(200);
  });

  it('leaves requests that come in parts, or together, to the parser, in their order', async () => {
    const { state, client } = await startOverloaded();
    state.owedMs = 0;
    const text = post('{"k":1}');
    client.send(text.slice(0, 70));
    await new Promise((done) => setTimeout(done, 20));
    expect(await client.ask(text.slice(70))).toMatchObject({ status: 200, body: 'echo /v1/recommend {"k":1}' });
    client.send(post('one') + post('two').slice(0, -1));
    expect(await client.answer()).toMatchObject({ status: 200, body: 'echo /v1/recommend one' });
    expect(await client.ask('o')).toMatchObject({ status: 200, body: 'echo /v1/recommend two' });
  });

  it('answers nothing before what was asked for earlier', async () => {
    const { state, clients } = await startOverloaded();
    let go = () => {};
    state.holdBack = new Promise((done) => {
      go = done;
    });
    state.owedMs = 0;
    for (const client of clients) client.send(post('one'));
    while (state.made < clients.length) await new Promise((done) => setTimeout(done, 5));
    state.owedMs = 1e9;
    for (const client of clients) client.send(post('two'));
    await new Promise((done) => setTimeout(done, 50));
    go();
    for (const client of clients) {
      expect(await client.answer()).toMatchObject({ status: 200, body: 'echo /v1/recommend one' });
      expect([200, 503]).toContain((await client.answer()).status);
    }
  });

  it('lets supervision in, and closes what is to be closed', async () => {
    const { askAll, clients } = await startOverloaded();
    for (const { status } of await askAll('GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n')) expect(status).toBe(200);
    const answers = await askAll(post('{}', 'connection: close\r\n'));
    expect(answers.filter(({ status }) => status === 503).length).toBeGreaterThan(8);
    await Promise.all(clients.map((client) => client.closed()));
  });

  it('keeps the time limit of a request', async () => {
    const { client } = await startOverloaded();
    expect((await client.ask(POST)).status).toBe(408);
    await client.closed();
  });

  it('leaves requests to the parser while the service ends, which asks their clients to leave', async () => {
    const { state, askAll } = await startOverloaded();
    state.isDraining = true;
    const refused = (await askAll(post('{}'))).filter(({ status }) => status === 503);
    expect(refused.length).toBeGreaterThan(8);
    expect(state).toMatchObject({ made: 24, shed: refused.length });
  });

  it('goes on when clients leave without their answers', async () => {
    const { clients, askAll } = await startOverloaded();
    for (const { socket } of clients.splice(1)) {
      socket.write(post('{}'));
      socket.resetAndDestroy();
    }
    await new Promise((done) => setTimeout(done, 20));
    expect(await askAll(post('{}'))).toHaveLength(1);
  });
});
