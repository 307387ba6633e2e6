/** What strangers send: each is refused with a clear answer, and the service goes on. */
import { readFileSync } from 'node:fs';
import { type AddressInfo, connect } from 'node:net';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { FIXTURE_STUDENT, startService, type TestService } from '../../support/serve.js';

const [{ id: known }] = JSON.parse(readFileSync(join(FIXTURE_STUDENT, 'items.json'), 'utf8'));
let service: TestService;
beforeAll(async () => {
  service = await startService({ limits: { bodyBytes: 64 * 1024 } });
});
afterAll(() => service.end());

const recommend = (body: unknown) => service.call('POST', '/v1/recommend', body);

describe('a body', () => {
  it.each([
    ['broken', '{"history":["a"', 400, 'ERR_MALFORMED_REQUEST'],
    ['empty', '', 400, 'ERR_MALFORMED_REQUEST'],
    ['no JSON', 'history=a', 400, 'ERR_MALFORMED_REQUEST'],
    ['no object', '[]', 400, 'ERR_INVALID_ARGUMENT'],
    ['null', 'null', 400, 'ERR_INVALID_ARGUMENT'],
    ['too large', `{"history":["${'x'.repeat(70_000)}"]}`, 413, 'ERR_BODY_TOO_LARGE'],
    ['nested 65 levels', `{"history":${'['.repeat(64)}${']'.repeat(64)}}`, 400, 'ERR_MALFORMED_REQUEST'],
    ['nested a million levels', '['.repeat(60_000), 400, 'ERR_MALFORMED_REQUEST'],
    ['with __proto__', '{"history":["a"],"__proto__":{"isAdmin":true}}', 400, 'ERR_MALFORMED_REQUEST'],
    ['with an escaped __proto__', '{"boosts":{"__proto\\u005f_":{"x":1}}}', 400, 'ERR_MALFORMED_REQUEST'],
    ['with constructor.prototype', '{"constructor":{"prototype":{"x":1}}}', 400, 'ERR_MALFORMED_REQUEST'],
    ['with a key twice', '{"k":1,"k":"x","history":["a"]}', 400, 'ERR_INVALID_ARGUMENT'],
  ])('%s is refused', async (_, body, status, code) => {
    const answer = await recommend(body);
    expect([answer.status, answer.json.error.code]).toEqual([status, code]);
    expect(Object.keys(answer.json.error)).toEqual(['code', 'message', 'requestId']);
    expect(({} as Record<string, unknown>)['isAdmin']).toBeUndefined();
  });

  it.each(['text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data'])(
    'of type %s is refused: a page of another origin could send it',
    async (type) => {
      const answer = await service.call('POST', '/v1/recommend', '{"history":["a"]}', { 'content-type': type });
      expect([answer.status, answer.json.error.code]).toEqual([415, 'ERR_UNSUPPORTED_MEDIA_TYPE']);
    },
  );

  it.each([
    ['recommend', 'a list', '{"history":["KNOWN"],"exclude":["caf\xe9"]}'],
    ['recommend', 'a user', '{"userId":"caf\xe9"}'],
    ['similar', 'half a surrogate pair', '{"item":"KNOWN","exclude":["\xed\xa0\x80"]}'],
    ['events', 'a user', '{"events":[{"userId":"caf\xe9","itemId":"KNOWN","type":"click"}]}'],
    ['recommend', 'half a character at the end', '{"history":["KNOWN"]}\xc3'],
  ])('of %s that is not UTF-8 is refused: %s', async (route, _, text) => {
    const payload = Buffer.from(text.replace('KNOWN', known), 'latin1');
    const headers = { host: 'localhost', 'content-type': 'application/json' };
    const answer = await service.app.inject({ method: 'POST', url: `/v1/${route}`, payload, headers });
    expect([answer.statusCode, answer.json().error]).toEqual([
      400,
      expect.objectContaining({ code: 'ERR_MALFORMED_REQUEST', message: 'The body is not valid UTF-8.' }),
    ]);
    expect((await service.call('GET', `/v1/users/${encodeURIComponent('caf\ufffd')}`)).json.history).toEqual([]);
  });

  it.each([
    ['application/json; charset=iso-8859-1', 415],
    ['application/json;charset="utf-16"', 415],
    ['application/json; charset=', 415],
    ['application/json; charset=UTF-8', 200],
    ['application/json;charset="utf8"; x=y', 200],
    ['application/json; x=y', 200],
  ])('of type %s is answered %i', async (type, status) => {
    for (const [url, body] of [
      ['/v1/recommend', { history: [known] }],
      ['/v1/similar', { item: known }],
    ] as const) {
      const answer = await service.call('POST', url, body, { 'content-type': type });
      expect(answer.status).toBe(status);
      if (status === 415) expect(answer.json.error.code).toBe('ERR_UNSUPPORTED_MEDIA_TYPE');
    }
  });
});

describe('a value', () => {
  it.each([
    [{ history: [known], k: 0 }, 'k'],
    [{ history: [known], k: -1 }, 'k'],
    [{ history: [known], k: 1.5 }, 'k'],
    [{ history: [known], k: '10' }, 'k'],
    [{ history: [known], k: 1e9 }, 'k'],
    [{ history: [known], k: 2 ** 31 }, 'k'],
    [{ history: [known], k: null }, 'k'],
    [{ history: [known], k: [] }, 'k'],
    [{ history: known }, 'history'],
    [{ history: [1] }, 'history.0'],
    [{ history: [null, { text: 'a' }] }, 'history.0'],
    [{ history: [{ text: 5 }] }, 'history.0'],
    [{ history: [''] }, 'history.0'],
    [{ history: ['x'.repeat(513)] }, 'history.0'],
    [{ history: [known], exclude: ['é'.repeat(257)] }, 'exclude.0: Invalid id: expected 1 to 512 bytes'],
    [{ history: ['\ud800'] }, 'history.0'],
    [{ history: Array(1001).fill(known) }, 'history'],
    [{ history: [{ text: 'x'.repeat(10_001) }] }, 'history.0.text'],
    [
      { history: [known, { text: 'x'.repeat(5000) }, { text: 'y'.repeat(5001) }] },
      'at most 100 texts, of at most 10000',
    ],
    [{ history: Array(101).fill({ text: 'x' }) }, 'at most 100 texts'],
    [{ history: [known], exclude: {} }, 'exclude'],
    [{ history: [known], diversity: 2 }, 'diversity'],
    [{ history: [known], novelty: -1 }, 'novelty'],
    [{ history: [known], explore: true }, 'explore'],
    [{ history: [known], boosts: { [known]: 'much' } }, 'boosts'],
    [{ history: [known], filter: { any: 'film' } }, 'filter.any'],
    [{ userId: '' }, 'userId'],
    [{ userId: { toString: 'u' } }, 'userId'],
  ])('%j is refused by the name of its field', async (body, field) => {
    const { status, json } = await recommend(body);
    expect(status).toBe(400);
    expect(json.error.code).toBe('ERR_INVALID_ARGUMENT');
    expect(json.error.message).toContain(field);
  });

  it('that is no number is refused', async () => {
    expect((await recommend(`{"history":["${known}"],"novelty":1e400}`)).status).toBe(400);
  });

  it('under a key that there is not is refused by its name', async () => {
    const { status, json } = await recommend({ history: [known], topK: 3 });
    expect(status).toBe(400);
    expect(json.error).toMatchObject({ code: 'ERR_UNKNOWN_OPTION', message: expect.stringContaining("'topK'") });
    for (const nested of [{ history: [known], filter: { some: [] } }, { history: [{ text: 'a', id: 'b' }] }]) {
      expect((await recommend(nested)).json.error.code).toBe('ERR_UNKNOWN_OPTION');
    }
  });

  it('under a key that was misspelt is refused with the key that was probably meant', async () => {
    const messageOf = async (url: string, body: unknown) =>
      (await service.call('POST', url, body)).json.error.message as string;
    expect(await messageOf('/v1/recommend', { history: [known], exlude: [], topK: 3 })).toBe(
      "the request has no key 'exlude' (did you mean 'exclude'?), 'topK'.",
    );
    expect(await messageOf('/v1/recommend', { history: [known], filter: { nnoe: [] } })).toContain("'none'");
    expect(await messageOf('/v1/recommend', { history: [{ text: 'a', txt: 'b' }] })).toContain("mean 'text'");
    expect(await messageOf('/v1/events', { events: [{ userID: 'u' }] })).toContain("mean 'userId'");
    expect((await service.call('GET', '/v1/items?idz=a')).json.error.message).toContain("mean 'ids'");
  });

  it.each([
    [{ events: [] }],
    [{ events: [{ userId: 'u', itemId: known, type: 'like' }] }],
    [{ events: [{ userId: 'u', itemId: known, type: 'click', value: 3 }] }],
    [{ events: [{ userId: 'u', itemId: known, type: 'rating' }] }],
    [{ events: [{ userId: 'u', itemId: known, type: 'rating', value: 6 }] }],
    [{ events: [{ userId: 'u', itemId: known, type: 'click', time: -1 }] }],
    [{ events: [{ userId: '\ud800', itemId: known, type: 'click' }] }],
  ])('in events %j is refused, and nothing is stored', async (body) => {
    const { status, json } = await service.call('POST', '/v1/events', body);
    expect([status, json.error.code]).toEqual([400, 'ERR_INVALID_ARGUMENT']);
    expect((await service.call('GET', '/v1/users/u')).json.history).toEqual([]);
  });

  it.each(['limit=0', 'limit=x', 'limit=1e9', 'limit=1&limit=2', 'offset=3', 'query=a&query=b', 'ids=', 'ids=a&ids='])(
    'in the query %s is refused',
    async (query) => {
      expect((await service.call('GET', `/v1/items?${query}`)).status).toBe(400);
    },
  );
});

describe('a name', () => {
  it.each([
    '../student',
    '..',
    '/etc',
    'a/b',
    'a\\b',
    '.hidden',
    'a\u0000',
    '',
    'x'.repeat(129),
    '%2e%2e',
    'C:',
    'a b',
  ])('of a model like %j is refused', async (name) => {
    for (const url of ['/v1/models/load', '/v1/models/promote']) {
      const { status, json } = await service.call('POST', url, { name });
      expect([status, json.error.code]).toEqual([400, 'ERR_INVALID_ARGUMENT']);
    }
    expect((await recommend({ history: [known], model: name })).status).toBe(400);
  });

  it.each(['../../x', '__proto__', 'constructor', '\u202e', 'x'.repeat(256)])(
    'of a user like %j is a name and no more',
    async (userId) => {
      const { status, json } = await service.call('GET', `/v1/users/${encodeURIComponent(userId)}`);
      expect([status, json]).toEqual([200, { userId, history: [], hidden: [] }]);
    },
  );

  it('of a user that is too long, or no UTF-8, is refused', async () => {
    for (const [user, status, code] of [
      ['x'.repeat(600), 400, 'ERR_INVALID_ARGUMENT'],
      ['x'.repeat(2000), 414, 'ERR_MALFORMED_REQUEST'],
      ['%ff', 400, 'ERR_MALFORMED_REQUEST'],
      ['%', 400, 'ERR_MALFORMED_REQUEST'],
    ] as const) {
      const answer = await service.call('GET', `/v1/users/${user}`);
      expect([answer.status, answer.json.error?.code], user.slice(0, 3)).toEqual([status, code]);
      expect(answer.json.error.requestId).toEqual(expect.any(String));
    }
  });
});

describe('a request', () => {
  it('for a route that there is not tells nothing', async () => {
    for (const [method, url] of [
      ['GET', '/v1/recommen'],
      ['GET', '/v1/users/a/b'],
      ['POST', '/v2/x'],
      ['GET', '/.env'],
    ] as const) {
      const { status, json } = await service.call(method, url);
      expect([status, json.error.code], url).toEqual([404, 'ERR_NOT_FOUND']);
    }
  });

  it('by a method that a route does not take is told which it takes', async () => {
    for (const [method, url, allow] of [
      ['GET', '/v1/recommend?k=3', 'POST'],
      ['POST', '/v1/users/somebody', 'GET, HEAD'],
      ['DELETE', '/openapi.json', 'GET, HEAD'],
    ] as const) {
      const { status, json, headers } = await service.call(method, url);
      expect([status, json.error.code], url).toEqual([405, 'ERR_METHOD_NOT_ALLOWED']);
      expect(new Set(String(headers['allow']).split(', '))).toEqual(new Set(allow.split(', ')));
    }
  });

  it('without a host, or with an expectation that nobody knows, is answered as others are', async () => {
    await service.listen();
    const { port } = service.app.server.address() as AddressInfo;
    const sent = async (head: string) => {
      const socket = connect(port, '127.0.0.1').setEncoding('utf8');
      socket.end(`${head}\r\nconnection: close\r\n\r\n`);
      let answer = '';
      for await (const text of socket) answer += text;
      return answer;
    };
    const nameless = await sent('GET /healthz HTTP/1.1');
    expect(nameless).toMatch(/^HTTP\/1\.1 400 /);
    expect(nameless).toContain('ERR_MALFORMED_REQUEST');
    expect(await sent('GET /healthz HTTP/1.1\r\nhost: localhost\r\nexpect: much')).toMatch(/^HTTP\/1\.1 200 /);
  });

  it('under another name than localhost is refused without keys: a page that was rebound could send it', async () => {
    for (const host of ['evil.example', '192.168.1.1:8080', '127.0.0.1.evil.example']) {
      const answer = await service.call('POST', '/v1/recommend', { history: [known] }, { host });
      expect([answer.status, answer.json.error.code]).toEqual([403, 'ERR_FORBIDDEN']);
    }
    for (const host of ['localhost:1', '127.0.0.1:8080', '[::1]:8080']) {
      expect((await service.call('POST', '/v1/recommend', { history: [known] }, { host })).status).toBe(200);
      // Whoever was let in before.
      expect((await service.call('GET', '/healthz', undefined, { host: 'evil.example' })).status).toBe(403);
    }
  });

  it('that fails inside tells neither a path nor a stack, and the log has them', async () => {
    const broken = await startService();
    broken.app.get('/broken', () => {
      throw new Error(`cannot read ${import.meta.dirname}/secret`);
    });
    const { status, json, text } = await broken.call('GET', '/broken');
    expect([status, json.error.code]).toEqual([500, 'ERR_INTERNAL']);
    expect(text).not.toMatch(/secret|\.ts|\.js|node_modules|at /);
    expect(broken.log.join('')).toContain('secret');
    expect(broken.log.join('')).toContain(json.error.requestId);
    await broken.end();
  });

  it('names no version of the service', async () => {
    const { headers } = await service.call('GET', '/healthz');
    expect(Object.keys(headers)).not.toContain('server');
    expect(Object.keys(headers)).not.toContain('x-powered-by');
  });
});

it('goes on after all that', async () => {
  expect((await recommend({ history: [known] })).status).toBe(200);
});
