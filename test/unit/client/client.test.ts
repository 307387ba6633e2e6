import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { LimbeckClient, LimbeckClientError } from '../../../src/client/client.js';
import { FIXTURE_STUDENT, startService, type TestService } from '../../support/serve.js';

const catalogue: { id: string; text: string }[] = JSON.parse(readFileSync(join(FIXTURE_STUDENT, 'items.json'), 'utf8'));
const [a, b] = catalogue.map(({ id }) => id) as [string, string];

describe('LimbeckClient and the service', () => {
  let service: TestService;
  let client: LimbeckClient;
  beforeAll(async () => {
    service = await startService();
    client = new LimbeckClient(`${await service.listen()}/`);
  });
  afterAll(() => service.end());

  it('understand each other', async () => {
    const events = [{ userId: 'u/1', itemId: a, type: 'click' as const }];
    expect(await client.sendEvents(events)).toEqual({ accepted: 1, duplicates: 0 });
    expect(await client.user('u/1')).toEqual({ userId: 'u/1', history: [a], hidden: [] });
    const { items, model } = await client.recommend({ userId: 'u/1', k: 3 });
    expect(items).toHaveLength(3);
    expect((await client.recommend({ history: [a, b], model })).items).toHaveLength(10);
    expect((await client.similar({ item: a, k: 2 })).items).toHaveLength(2);
    expect((await client.search({ text: 'drama', k: 2 })).items).toHaveLength(2);
    expect((await client.interests({ history: [a] })).interests).toBeInstanceOf(Array);
    expect((await client.listItems({ query: a, limit: 1 })).items[0]?.id).toBe(a);
    expect(await client.addItems([{ id: 'new', text: 'A new drama' }])).toEqual({ added: 1 });
    expect(await client.removeItems(['new'])).toEqual({ removed: 1 });
    expect((await client.models()).current).toBe(model);
    expect(await client.promoteModel(model)).toEqual({ current: model });
  });

  it('lists items by their ids, whatever is in them', async () => {
    const items = ['x,y', 'x', '&ids=y', 'a b+c%'].map((id) => ({ id, text: 'A new drama' }));
    await client.addItems(items);
    const idsOf = async (...ids: string[]) => (await client.listItems({ ids })).items.map(({ id }) => id);
    expect(await idsOf('x,y')).toEqual(['x,y']);
    expect(await idsOf('x,z')).toEqual([]);
    expect(await idsOf('a b+c%', 'x,y', 'none', '&ids=y', 'x,y', a)).toEqual(['a b+c%', 'x,y', '&ids=y', a]);
    expect(await idsOf()).toEqual([]);
    await client.removeItems(items.map(({ id }) => id));
  });

  it('tells what was refused', async () => {
    const error = await client.recommend({ k: 1 }).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(LimbeckClientError);
    expect(error).toMatchObject({ status: 400, code: 'ERR_INVALID_ARGUMENT', requestId: expect.any(String) });
    await expect(client.rollbackModel()).rejects.toMatchObject({ status: 409 });
    await expect(client.loadModel('none')).rejects.toMatchObject({ status: 404 });
  });
});

describe('LimbeckClient', () => {
  /** A network that gives these answers, one after the other. */
  function network(...answers: (Response | Error)[]) {
    const sent: { url: string; init: RequestInit }[] = [];
    const send = async (url: unknown, init: unknown) => {
      sent.push({ url: String(url), init: init as RequestInit });
      const answer = answers[Math.min(sent.length, answers.length) - 1];
      if (answer instanceof Error) throw answer;
      return (answer as Response).clone();
    };
    return { sent, fetch: send as typeof fetch };
  }
  const ok = () => Response.json({ items: [] });
  const busy = (retryAfter: string) =>
    Response.json(
      { error: { code: 'ERR_OVERLOADED', message: 'busy', requestId: '' } },
      {
        status: 503,
        headers: { 'retry-after': retryAfter },
      },
    );

  it('comes again when the service says, and not before', async () => {
    const { sent, fetch } = network(busy('0.2'), ok());
    const start = performance.now();
    await new LimbeckClient('http://service', { fetch }).similar({ item: 'x' });
    expect(sent).toHaveLength(2);
    expect(performance.now() - start).toBeGreaterThanOrEqual(195);
  });

  it('reads dates', async () => {
    const { sent, fetch } = network(busy(new Date(Date.now() - 1000).toUTCString()), ok());
    await new LimbeckClient('http://service', { fetch }).similar({ item: 'x' });
    expect(sent).toHaveLength(2);
  });

  it('gives up after as many times as it may', async () => {
    const { sent, fetch } = network(busy('0'));
    const client = new LimbeckClient('http://service', { fetch, retries: 2 });
    await expect(client.similar({ item: 'x' })).rejects.toMatchObject({ status: 503, code: 'ERR_OVERLOADED' });
    expect(sent).toHaveLength(3);
  });

  it('does not repeat what was refused', async () => {
    const { sent, fetch } = network(
      Response.json({ error: { code: 'X', message: 'no', requestId: 'r' } }, { status: 422 }),
    );
    await expect(new LimbeckClient('http://service', { fetch }).similar({ item: 'x' })).rejects.toMatchObject({
      status: 422,
    });
    expect(sent).toHaveLength(1);
  });

  it('gives an event whose id is undefined one too', async () => {
    const { sent, fetch } = network(ok());
    const event = { userId: 'u', itemId: 'x', type: 'view' as const };
    await new LimbeckClient('http://service', { fetch }).sendEvents([
      { ...event, id: undefined },
      { ...event, id: 'e' },
    ]);
    expect(JSON.parse(String(sent[0]?.init.body)).events.map(({ id }: { id?: string }) => id)).toEqual([
      expect.stringMatching(/^[0-9a-f]{32}$/),
      'e',
    ]);
  });

  it('repeats events under the same ids when no answer came', async () => {
    const { sent, fetch } = network(new TypeError('reset'), ok());
    await new LimbeckClient('http://service', { fetch }).sendEvents([{ userId: 'u', itemId: 'x', type: 'view' }]);
    expect(sent).toHaveLength(2);
    expect(sent[0]?.init.body).toBe(sent[1]?.init.body);
    expect(JSON.parse(String(sent[0]?.init.body)).events[0].id).toMatch(/^[0-9a-f]{32}$/);
  });

  it('does not repeat what must not happen twice when no answer came', async () => {
    const { sent, fetch } = network(new TypeError('reset'), ok());
    await expect(new LimbeckClient('http://service', { fetch }).rollbackModel()).rejects.toThrow('reset');
    expect(sent).toHaveLength(1);
  });

  it('stops waiting when its caller does, or when the time is over', async () => {
    const { fetch } = network(busy('5'));
    const controller = new AbortController();
    const stopped = new LimbeckClient('http://service', { fetch }).models({ signal: controller.signal });
    setTimeout(() => controller.abort(), 20);
    await expect(stopped).rejects.toMatchObject({ name: 'AbortError' });
    const hanging = (_: unknown, { signal }: RequestInit) =>
      new Promise<Response>((_, reject) => signal?.addEventListener('abort', () => reject(signal.reason)));
    const late = new LimbeckClient('http://service', { fetch: hanging as never, timeoutMs: 30 }).models();
    await expect(late).rejects.toMatchObject({ name: 'TimeoutError' });
  });

  it.each(['60', '99999999999'])(
    'tells at once what it may not come again for in time, after %s s',
    async (seconds) => {
      const { sent, fetch } = network(busy(seconds));
      const client = new LimbeckClient('http://service', { fetch });
      await expect(client.models()).rejects.toMatchObject({ status: 503, code: 'ERR_OVERLOADED', message: 'busy' });
      expect(sent).toHaveLength(1);
    },
  );

  it('comes again when an answer breaks off', async () => {
    const torn = () =>
      new Response(
        new ReadableStream({
          start(stream) {
            stream.enqueue(new TextEncoder().encode('{"items":['));
            stream.error(new TypeError('terminated'));
          },
        }),
      );
    const answers = [torn(), ok()];
    const fetch = async () => answers.shift() as Response;
    const client = new LimbeckClient('http://service', { fetch: fetch as never });
    expect(await client.similar({ item: 'x' })).toEqual({ items: [] });
  });

  it('refuses a page that a proxy gives in place of the answer', async () => {
    const { fetch } = network(new Response('<html>Please log in</html>', { status: 200 }));
    await expect(new LimbeckClient('http://service', { fetch }).models()).rejects.toMatchObject({
      name: 'LimbeckClientError',
      status: 200,
      code: 'ERR_HTTP',
    });
  });

  it('gives ids to events on pages of plain HTTP, where browsers have no randomUUID', async () => {
    vi.stubGlobal('crypto', { getRandomValues: crypto.getRandomValues.bind(crypto) });
    const { sent, fetch } = network(ok());
    await new LimbeckClient('http://10.0.0.5', { fetch }).sendEvents([{ userId: 'u', itemId: 'x', type: 'view' }]);
    vi.unstubAllGlobals();
    expect(JSON.parse(String(sent[0]?.init.body)).events[0].id).toMatch(/^[0-9a-f]{32}$/);
  });

  it('sends its key, and copes with answers of a proxy', async () => {
    const { sent, fetch } = network(new Response('<html>', { status: 502 }));
    const client = new LimbeckClient('http://service/', { fetch, key: 'lmb_x' });
    await expect(client.models()).rejects.toMatchObject({ status: 502, code: 'ERR_HTTP' });
    expect(sent[0]).toMatchObject({
      url: 'http://service/v1/models',
      init: { headers: { authorization: 'Bearer lmb_x' } },
    });
  });
});
