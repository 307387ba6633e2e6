/** Every route, over the fixture's student and a real event store. */
import { cpSync, mkdtempSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import type { CommandContext } from '../../../src/cli/output.js';
import { serveCommand } from '../../../src/cli/serve.js';
import type { ModelRegistry } from '../../../src/engine/model-registry.js';
import { createEngine, type Engine } from '../../../src/engine.js';
import { LimbeckError } from '../../../src/errors.js';
import { DEFAULT_STRATEGIES } from '../../../src/feedback/strategy.js';
import { writePopularity } from '../../../src/recommend/student-files.js';
import { createApiKey } from '../../../src/server/api-keys.js';
import { Feedback } from '../../../src/server/feedback.js';
import { FIXTURE_STUDENT, startService, type TestService } from '../../support/serve.js';

const catalogue: { id: string; text: string }[] = JSON.parse(readFileSync(join(FIXTURE_STUDENT, 'items.json'), 'utf8'));
const [a, b, c] = catalogue.map(({ id }) => id) as [string, string, string];
const recommended = ({ json }: { json: { items: { id: string }[] } }) => json.items.map(({ id }) => id);

let service: TestService;
beforeEach(async () => {
  service = await startService();
});
afterEach(() => service.end());

describe('POST /v1/recommend', () => {
  it('answers with the best items after a history', async () => {
    const { status, json } = await service.call('POST', '/v1/recommend', { history: [a, b], k: 5 });
    expect(status).toBe(200);
    expect(json).toEqual({
      requestId: expect.stringMatching(/^\S+-\w+$/),
      model: 'student',
      items: expect.any(Array),
      unknownItems: [],
      latencyMs: expect.any(Number),
    });
    expect(json.items).toHaveLength(5);
    expect(Object.keys(json.items[0])).toEqual(['id', 'score']);
    expect(json.latencyMs).toBeGreaterThan(0);
  });

  it('leaves out the history and what is excluded', async () => {
    const answer = await service.call('POST', '/v1/recommend', { history: [a, b], k: 1000, exclude: [c] });
    expect(recommended(answer)).toHaveLength(catalogue.length - 3);
    for (const id of [a, b, c]) expect(recommended(answer)).not.toContain(id);
  });

  it('gives texts and explanations to those who ask', async () => {
    const { json } = await service.call('POST', '/v1/recommend', { history: [a], k: 2, texts: true, explain: true });
    const [first] = json.items;
    expect(first.text).toBe(catalogue.find(({ id }) => id === first.id)?.text);
    expect(first.because).toEqual([{ item: a, weight: expect.any(Number) }]);
  });

  it('names the items that it does not know, and refuses a history without any that it does', async () => {
    const { json } = await service.call('POST', '/v1/recommend', { history: [a, 'nothing'] });
    expect(json.unknownItems).toEqual(['nothing']);
    const refused = await service.call('POST', '/v1/recommend', { history: ['nothing', 'at all'] });
    expect(refused.status).toBe(422);
    expect(refused.json.error).toMatchObject({ code: 'ERR_UNKNOWN_ITEMS', requestId: expect.any(String) });
  });

  it('gives requests that come together what each would get alone', async () => {
    await service.call('POST', '/v1/events', { events: [{ userId: 'u', itemId: a, type: 'click' }] });
    const kinds = [
      { history: [a, b], k: 5 },
      { history: [a, b], k: 5, texts: false },
      `  {"k": 4, "exclude": ["${c}"], "history": ["${b}", "nothing"]}`,
      { history: [c], texts: true, model: 'student' },
      { history: [{ text: 'Alien. 1979. Horror' }, b], diversity: 0.5 },
      { userId: 'u', diversity: 0 },
      { userId: 'stranger' },
      { history: ['nothing'] },
      { history: [a], k: 0 },
      { history: [a], model: 'absent' },
      '{"history":["',
      '{"history":["a"],"__proto__":{}}',
      '[]',
      undefined,
    ];
    const answerOf = async (body: unknown) => {
      const { status, headers, json } = await service.call('POST', '/v1/recommend', body);
      const { requestId, latencyMs, ...answer } = json;
      if (status === 200) expect(latencyMs).toBeGreaterThan(0);
      expect(requestId ?? json.error.requestId).toMatch(/^\S+-\w+$/);
      delete answer.error?.requestId;
      // Popularity fades while the test runs.
      if (answer.strategy === 'popular') answer.items = recommended({ json });
      return { status, type: headers['content-type'], keys: Object.keys(json), answer };
    };
    const alone = [];
    for (const body of kinds) alone.push(await answerOf(body));
    expect(alone.map(({ status }) => status)).toEqual([...Array(7).fill(200), 422, 400, 404, 400, 400, 400, 400]);
    expect(alone[1]).toEqual(alone[0]);
    for (const { type } of alone) expect(type).toBe('application/json; charset=utf-8');
    // Some turns are answered by this thread, others aside.
    for (const repeat of [1, 2, 5]) {
      const bodies = Array(repeat).fill(kinds).flat();
      expect(await Promise.all(bodies.map(answerOf))).toEqual(Array(repeat).fill(alone).flat());
    }
    expect(await Promise.all(kinds.slice(0, 3).map(answerOf))).toEqual(alone.slice(0, 3));
  });

  it('answers a body alike whether it stays text or is parsed', async () => {
    let state = 5;
    const below = (n: number) => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return Math.floor((state / 2 ** 32) * n);
    };
    const one = <T>(of: readonly T[]) => of[below(of.length)] as T;
    const ids = () => Array.from({ length: below(5) }, () => one([a, b, c, 'nothing', 'no "thing"', '\u00e9']));
    const parts = [
      () => `"history":${JSON.stringify(ids())}`,
      () => `"k":${one(['0', '1', '5', '64', '65', '1000', '1001', '1e1', '2.0', '01', '-1', '-0', '"3"', 'null'])}`,
      () => `"exclude":${JSON.stringify(ids())}`,
      () =>
        one([
          '"userId":"u","diversity":0.2',
          '"history":[7]',
          '"filter":{}',
          '"novelty":0',
          '"__proto__":{}',
          '"unknown":1',
        ]),
    ];
    const body = () => {
      const chosen = [`"history":${JSON.stringify([a, ...ids()])}`, ...parts.slice(below(3)).map((part) => part())];
      const members = chosen.slice(0, 1 + below(4)).join(one([',', ' , ']));
      const bytes = Buffer.from(`${one(['{', ' {\n', '\ufeff{'])}${members}}`);
      if (below(3) === 0) bytes[below(bytes.length)] = one([34, 44, 58, 92, 0, 127, 200, 123, 93]);
      return bytes.toString('latin1');
    };
    const answers = async (texts: readonly string[]) => {
      const sent = texts.map((text) => service.call('POST', '/v1/recommend', Buffer.from(text, 'latin1').toString()));
      return (await Promise.all(sent)).map(({ status, headers, text }) => ({
        status,
        type: headers['content-type'],
        text: text.replace(/"requestId":"[^"]*"/, '').replace(/"latencyMs":[^}]*/, ''),
      }));
    };
    const texts = Array.from({ length: 400 }, body);
    // A key with an escape is the same key, and is never read as text.
    const parsed = await answers(texts.map((text) => text.replaceAll('"history"', '"\\u0068istory"')));
    expect(await answers(texts)).toEqual(parsed);
    expect(new Set(parsed.map(({ status }) => status))).toEqual(new Set([200, 400, 422]));
  });

  it('sees an event in the next request of its user', async () => {
    await service.call('POST', '/v1/events', { events: [{ userId: 'u', itemId: a, type: 'click' }] });
    const { json } = await service.call('POST', '/v1/recommend', { userId: 'u', k: 3 });
    const { json: same } = await service.call('POST', '/v1/recommend', { history: [a], k: 1000 });
    expect(json.items.map(({ id }: { id: string }) => id)).not.toContain(a);
    expect(json.strategy).toMatch(/^(relevance|diverse|novel|broad|exploring)$/);
    expect(same.items.map(({ id }: { id: string }) => id)).toEqual(
      expect.arrayContaining(json.items.map(({ id }: { id: string }) => id)),
    );
  });

  it('leaves out what the user dismissed, whatever the history', async () => {
    const { json } = await service.call('POST', '/v1/recommend', { history: [a], k: 1 });
    const [{ id }] = json.items;
    await service.call('POST', '/v1/events', { events: [{ userId: 'u', itemId: id, type: 'dismiss' }] });
    const again = await service.call('POST', '/v1/recommend', { userId: 'u', history: [a], k: 1000 });
    expect(recommended(again)).not.toContain(id);
  });

  it('answers users that come together by their own histories, each ranked as its strategy says', async () => {
    const users = Array.from({ length: 40 }, (_, i) => `u${i}`);
    const historyOf = (i: number) => [0, 1, 2].map((j) => catalogue[(7 * i + 11 * j) % catalogue.length]?.id as string);
    const hiddenOf = (i: number) => catalogue[(7 * i + 5) % catalogue.length]?.id as string;
    const events = users.flatMap((userId, i) => [
      ...historyOf(i).map((itemId) => ({ userId, itemId, type: 'click' })),
      { userId, itemId: hiddenOf(i), type: 'dismiss' },
    ]);
    await service.call('POST', '/v1/events', { events });
    const strategies = Object.fromEntries(DEFAULT_STRATEGIES.map(({ name, ...weights }) => [name, weights]));
    const seen = new Set<string>();
    const answers = await Promise.all(
      users.map((userId) => service.call('POST', '/v1/recommend', { userId, k: 6, texts: userId === 'u3' })),
    );
    for (const [i, answer] of answers.entries()) {
      const { strategy, items, unknownItems } = answer.json;
      expect(Object.keys(answer.json)).toEqual([
        ...['requestId', 'model', 'strategy', 'items', 'unknownItems', 'latencyMs'],
      ]);
      expect(answer.headers['content-type']).toBe('application/json; charset=utf-8');
      expect(unknownItems).toEqual([]);
      expect(items).toHaveLength(6);
      for (const id of [...historyOf(i), hiddenOf(i)]) expect(recommended(answer)).not.toContain(id);
      if (i === 3) expect(items[0].text).toBe(catalogue.find(({ id }) => id === items[0].id)?.text);
      seen.add(strategy);
      if (strategy === 'exploring') continue; // by chance
      // The fixture does not know how popular its items are.
      const request = { history: historyOf(i), exclude: [hiddenOf(i)], k: 6, ...strategies[strategy], novelty: 0 };
      const alone = await service.call('POST', '/v1/recommend', { ...request, texts: i === 3 });
      expect(items).toEqual(alone.json.items);
    }
    expect(seen.size).toBe(DEFAULT_STRATEGIES.length);
  });

  it('gives a user of whom nothing is known what others chose', async () => {
    const events = [
      { userId: 'u', itemId: b, type: 'purchase' },
      { userId: 'u', itemId: a, type: 'view' },
      { userId: 'v', itemId: 'left the catalogue', type: 'purchase' },
    ];
    await service.call('POST', '/v1/events', { events });
    const answer = await service.call('POST', '/v1/recommend', { userId: 'stranger', k: 5 });
    expect(answer.status).toBe(200);
    expect(recommended(answer)).toEqual([b, a]);
    expect(answer.json.strategy).toBe('popular');
    const excluded = await service.call('POST', '/v1/recommend', { userId: 'stranger', exclude: [b] });
    expect(recommended(excluded)).toEqual([a]);
    const filter = { any: [], all: [], none: [] };
    const unfiltered = await service.call('POST', '/v1/recommend', { userId: 'stranger', k: 5, filter });
    expect(recommended(unfiltered)).toEqual([b, a]);
  });

  it('fills the list of such a user with what was popular in training', async () => {
    const student = join(service.data, 'student');
    cpSync(FIXTURE_STUDENT, student, { recursive: true });
    const counts = Float32Array.from(catalogue, (_, i) => (i < 4 ? 4 - i : 0));
    await writePopularity(student, counts);
    const popular = await startService({ student });
    await popular.call('POST', '/v1/events', { events: [{ userId: 'u', itemId: c, type: 'click' }] });
    const answer = await popular.call('POST', '/v1/recommend', { userId: 'stranger', k: 5, exclude: [b] });
    expect(answer.json.strategy).toBe('popular');
    expect(recommended(answer).slice(0, 3)).toEqual([c, a, catalogue[3]?.id]);
    expect(new Set(recommended(answer)).size).toBe(5);
    const all = await popular.call('POST', '/v1/recommend', { userId: 'stranger', k: 1000 });
    expect(recommended(all).sort()).toEqual(catalogue.map(({ id }) => id).sort());
    await popular.end();
  });

  it('ranks as the request says, and names a strategy only when it chose', async () => {
    await service.call('POST', '/v1/events', { events: [{ userId: 'u', itemId: a, type: 'click' }] });
    const own = await service.call('POST', '/v1/recommend', { userId: 'u', diversity: 0 });
    expect(own.json).not.toHaveProperty('strategy');
  });

  it('refuses what the model cannot do, and answers those who came with it', async () => {
    const bodies = [{ history: [a], novelty: 1 }, ...Array(3).fill({ history: [a], diversity: 0.1 })];
    const answers = await Promise.all(bodies.map((body) => service.call('POST', '/v1/recommend', body)));
    expect(answers.map(({ status }) => status)).toEqual([400, 200, 200, 200]);
    expect(answers[0]?.json.error).toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringMatching(/novelty/),
    });
  });

  it('wants a user or a history', async () => {
    const { status, json } = await service.call('POST', '/v1/recommend', { k: 3 });
    expect(status).toBe(400);
    expect(json.error.message).toBe('Give a userId or a history.');
  });
});

describe('POST /v1/similar, /v1/search, /v1/interests', () => {
  it('finds items like one, with their texts', async () => {
    const { status, json } = await service.call('POST', '/v1/similar', { item: a, k: 4 });
    expect(status).toBe(200);
    expect(json.items).toHaveLength(4);
    expect(json.items[0]).toEqual({ id: expect.any(String), score: expect.any(Number), text: expect.any(String) });
    expect(recommended({ json })).not.toContain(a);
  });

  it('says that there is no such item', async () => {
    const { status, json } = await service.call('POST', '/v1/similar', { item: 'nothing' });
    expect([status, json.error.code]).toEqual([404, 'ERR_NOT_FOUND']);
  });

  it('finds items by a text', async () => {
    const { status, json } = await service.call('POST', '/v1/search', { text: catalogue[2]?.text, k: 3 });
    expect(status).toBe(200);
    expect(json.items[0].id).toBe(c);
    const tasted = await service.call('POST', '/v1/search', { text: 'drama', k: 3, history: [a] });
    expect(tasted.json.items).toHaveLength(3);
  });

  it('tells the interests of a history; none of an unknown user', async () => {
    const { status, json } = await service.call('POST', '/v1/interests', { history: [a, b], k: 2 });
    expect(status).toBe(200);
    expect(json.interests.length).toBeLessThanOrEqual(2);
    expect((await service.call('POST', '/v1/interests', { userId: 'stranger' })).json).toEqual({ interests: [] });
  });
});

describe('events and users', () => {
  it('count an event once however often it comes', async () => {
    const event = { id: 'e1', userId: 'u', itemId: a, type: 'click' };
    const first = await service.call('POST', '/v1/events', { events: [event, event] });
    expect(first.json).toEqual({ accepted: 1, duplicates: 1 });
    expect((await service.call('POST', '/v1/events', { events: [event] })).json).toEqual({
      accepted: 0,
      duplicates: 1,
    });
    expect((await service.call('GET', '/v1/users/u')).json).toEqual({ userId: 'u', history: [a], hidden: [] });
  });

  it('are known after a restart', async () => {
    await service.call('POST', '/v1/events', { events: [{ userId: 'ü/1', itemId: a, type: 'purchase' }] });
    await service.close();
    const again = await startService({ data: service.data });
    const { json } = await again.call('GET', `/v1/users/${encodeURIComponent('ü/1')}`);
    expect(json).toEqual({ userId: 'ü/1', history: [a], hidden: [] });
    expect(recommended(await again.call('POST', '/v1/recommend', { userId: 'stranger' }))).toEqual([a]);
    await again.end();
  });

  it('take ids as long as the store does, which come back in every request', async () => {
    for (const long of ['x'.repeat(512), 'é'.repeat(256)]) {
      expect((await service.call('POST', '/v1/items', { items: [{ id: long, text: 'A new drama' }] })).status).toBe(
        200,
      );
      const event = { id: long, userId: long, itemId: long, type: 'click', strategy: long, requestId: long };
      const sent = await service.call('POST', '/v1/events', { events: [event] });
      expect(sent.json).toEqual({ accepted: 1, duplicates: 0 });
      const user = await service.call('GET', `/v1/users/${encodeURIComponent(long)}`);
      expect(user.json).toEqual({ userId: long, history: [long], hidden: [] });
      for (const body of [{ history: [long] }, { userId: long, exclude: [long], boosts: { [long]: 1 } }]) {
        expect((await service.call('POST', '/v1/recommend', body)).status).toBe(200);
      }
      expect((await service.call('POST', '/v1/similar', { item: long })).status).toBe(200);
      expect((await service.call('GET', `/v1/items?ids=${encodeURIComponent(long)}`)).json.items).toHaveLength(1);
      expect((await service.call('DELETE', '/v1/items', { ids: [long] })).json).toEqual({ removed: 1 });
    }
  });

  it('teach the strategy that showed the item', async () => {
    await service.call('POST', '/v1/events', { events: [{ userId: 'u', itemId: a, type: 'click' }] });
    const { json } = await service.call('POST', '/v1/recommend', { userId: 'u', k: 1 });
    const { requestId, strategy } = json;
    const events = [{ userId: 'u', itemId: json.items[0].id, type: 'purchase', requestId, strategy }];
    await service.call('POST', '/v1/events', { events });
    await service.close();
    const learned = JSON.parse(readFileSync(join(service.data, 'learned.json'), 'utf8'));
    const index = learned.strategies.strategies.findIndex(({ name }: { name: string }) => name === strategy);
    const [[, counts]] = learned.strategies.contexts;
    expect(counts[index]).toEqual([expect.closeTo(1, 2), expect.closeTo(1, 2)]);
  });

  it('are refused without a data directory, and recommendations are not', async () => {
    const { createServer } = await import('../../../src/server/server.js');
    const bare = await createServer(
      { student: FIXTURE_STUDENT, console: false, timeouts: { drainDelayMs: 0 } },
      { log: { write() {} } },
    );
    const inject = (url: string, payload: object) =>
      bare.app.inject({ method: 'POST', url, payload, headers: { host: 'localhost' } });
    expect((await inject('/v1/events', { events: [{ userId: 'u', itemId: a, type: 'view' }] })).statusCode).toBe(503);
    expect((await inject('/v1/recommend', { history: [a] })).statusCode).toBe(200);
    await bare.close();
  });
});

describe('items', () => {
  it('are listed by a part of their ids or texts', async () => {
    const { json } = await service.call('GET', `/v1/items?query=${encodeURIComponent('IRON man')}&limit=5`);
    expect(json.items.map(({ text }: { text: string }) => text)).toEqual([expect.stringContaining('Iron Man')]);
    expect((await service.call('GET', `/v1/items?query=${a}`)).json.items[0].id).toBe(a);
    expect((await service.call('GET', '/v1/items?limit=3')).json.items).toHaveLength(3);
    expect((await service.call('GET', '/v1/items?query=no-such-thing')).json.items).toEqual([]);
  });

  it('are listed by their ids, in the order asked for', async () => {
    const { json } = await service.call('GET', `/v1/items?ids=${c},nothing,${a}`);
    expect(json.items).toEqual([catalogue[2], catalogue[0]]);
    for (const query of [`ids=${c}&ids=nothing&ids=${a}&ids=${c}`, `ids=${c}&ids=${a}&limit=2`]) {
      expect((await service.call('GET', `/v1/items?${query}`)).json.items).toEqual([catalogue[2], catalogue[0]]);
    }
    expect((await service.call('GET', `/v1/items?ids=${c}&ids=${a}&limit=1`)).json.items).toEqual([catalogue[2]]);
    expect((await service.call('GET', `/v1/items?ids=${c},${a}&ids=${b}`)).json.items).toEqual([catalogue[1]]);
    expect((await service.call('GET', `/v1/items?ids=${a}&query=x`)).status).toBe(400);
  });

  it('are added by their texts, recommended at once, and still there after a restart', async () => {
    const items = [{ id: 'new', text: 'Iron Man 4. 2030. Action, Sci-Fi', categories: ['film'] }];
    expect((await service.call('POST', '/v1/items', { items })).json).toEqual({ added: 1 });
    expect(recommended(await service.call('POST', '/v1/recommend', { history: [a], k: 1000 }))).toContain('new');
    expect((await service.call('POST', '/v1/items', { items })).status).toBe(409);
    await service.close();
    const again = await startService({ data: service.data });
    expect(recommended(await again.call('POST', '/v1/recommend', { history: ['new'], k: 1000 }))).toHaveLength(
      catalogue.length,
    );
    await again.end();
  });

  it('with half a surrogate pair are refused, and the service starts again', async () => {
    for (const item of [
      { id: 'b\ud83d', text: 'whole' },
      { id: 'b', text: 'cut \ud83d' },
    ]) {
      const { status, json } = await service.call('POST', '/v1/items', { items: [{ id: 'a', text: 'a' }, item] });
      expect([status, json.error.code]).toEqual([400, 'ERR_INVALID_ARGUMENT']);
    }
    expect((await service.call('GET', '/v1/items?ids=a,b')).json.items).toEqual([]);
    await service.close();
    await (await startService({ data: service.data })).end();
  });

  it('are taken out, for good', async () => {
    expect((await service.call('DELETE', '/v1/items', { ids: [c, 'nothing'] })).json).toEqual({ removed: 1 });
    expect(recommended(await service.call('POST', '/v1/recommend', { history: [a], k: 1000 }))).not.toContain(c);
    expect((await service.call('GET', `/v1/items?query=${c}`)).json.items).toEqual([]);
    await service.call('POST', '/v1/models/promote', { name: 'student' });
    expect(recommended(await service.call('POST', '/v1/recommend', { history: [a], k: 1000 }))).not.toContain(c);
  });
});

describe('models of one student directory', () => {
  it('are that student alone', async () => {
    const models = [{ name: 'student', loaded: true, numItems: catalogue.length }];
    const one = { current: 'student', promoted: 'student', models };
    expect((await service.call('GET', '/v1/models')).json).toEqual(one);
    expect((await service.call('POST', '/v1/models/load', { name: 'other' })).status).toBe(404);
    expect((await service.call('POST', '/v1/models/rollback', {})).status).toBe(409);
    expect((await service.call('POST', '/v1/recommend', { history: [a], model: 'other' })).status).toBe(404);
  });
});

describe('models of a registry', () => {
  let engine: Engine;
  let registry: ModelRegistry;
  beforeEach(async () => {
    engine = await createEngine({ threads: 1 });
    registry = await engine.openModelRegistry(join(service.data, 'models'));
    for (const name of ['one', 'two', 'three']) await registry.add(name, FIXTURE_STUDENT);
    await registry.promote('one');
    await registry.promote('two');
  });
  afterEach(() => engine.dispose());

  it('that another process promotes are served soon', async () => {
    const following = await startService({ student: registry.directory, timeouts: { refreshModelsEveryMs: 10 } });
    await registry.promote('three');
    const served = async () => (await following.call('POST', '/v1/recommend', { history: [a] })).json.model;
    await expect.poll(served).toBe('three');
    expect((await following.call('POST', '/v1/models/rollback', {})).json).toEqual({ current: 'two' });
    expect(await registry.current()).toBe('two');
    await registry.rollback();
    await expect.poll(served).toBe('one');
    expect(following.log.map((line) => JSON.parse(line).msg)).toContain('model of another process');
    await following.end();
  });

  it('stay while the registry cannot be read, which is no refusal of one', async () => {
    const following = await startService({ student: registry.directory, timeouts: { refreshModelsEveryMs: 10 } });
    const away = `${registry.directory}-away`;
    renameSync(registry.directory, away);
    const messages = () => following.log.map((line) => JSON.parse(line).msg);
    await expect.poll(messages).toContain('registry not read: the model stays');
    renameSync(away, registry.directory);
    expect((await following.call('POST', '/v1/recommend', { history: [a] })).json.model).toBe('two');
    expect((await following.call('GET', '/metrics')).text).not.toMatch(/model_changes_total\{result="refused"\} [1-9]/);
    await registry.promote('three');
    await expect.poll(messages).toContain('model of another process');
    await following.end();
  });

  it('that cannot be served are not gone back from: what was before them was never served', async () => {
    const late = await startService({ student: registry.directory, timeouts: { refreshModelsEveryMs: 3_600_000 } });
    await registry.promote('three');
    const { json } = await late.call('GET', '/v1/models');
    expect([json.current, json.promoted]).toEqual(['two', 'three']);
    const refused = await late.call('POST', '/v1/models/rollback', {});
    expect([refused.status, refused.json.error.code]).toEqual([409, 'ERR_CONFLICT']);
    expect(refused.json.error.message).toMatch(/'three'.*'two'.*promote/);
    expect(await registry.current()).toBe('three');
    expect((await late.call('POST', '/v1/models/promote', { name: 'three' })).json).toEqual({ current: 'three' });
    expect((await late.call('POST', '/v1/models/rollback', {})).json).toEqual({ current: 'two' });
    await late.end();
  });
});

describe('operation', () => {
  it('is alive and ready', async () => {
    expect((await service.call('GET', '/healthz')).json).toEqual({ status: 'ok' });
    expect((await service.call('GET', '/readyz')).json).toEqual({ status: 'ok' });
  });

  it('counts what it does for Prometheus', async () => {
    await service.call('POST', '/v1/recommend', { history: [a] });
    await service.call('GET', '/nothing/here');
    const { text, headers } = await service.call('GET', '/metrics');
    expect(headers['content-type']).toContain('text/plain');
    expect(text).toContain('limbeck_http_request_duration_seconds_count{route="/v1/recommend",code="200"} 1');
    expect(text).toContain('limbeck_http_request_duration_seconds_count{route="unknown",code="404"} 1');
    expect(text).toContain('limbeck_recommend_duration_seconds_count 1');
    expect(text).toContain(`limbeck_items ${catalogue.length}`);
    expect(text).toContain('limbeck_model_info{model="student"} 1');
    expect(text).toContain('process_resident_memory_bytes');
  });

  it('writes one line of JSON for a failure, with the id that the answer has', async () => {
    const { json } = await service.call('POST', '/v1/models/promote', { name: 'other' });
    expect(json.error.code).toBe('ERR_NOT_FOUND');
    const lines = service.log.map((line) => JSON.parse(line));
    expect(lines.at(-1)).toMatchObject({ msg: 'model refused', model: 'other' });
  });
});

describe('with keys', () => {
  let guarded: TestService;
  let reader: Record<string, string>;
  let writer: Record<string, string>;
  let keys: string;
  beforeAll(async () => {
    keys = join(mkdtempSync(join(tmpdir(), 'limbeck-keys-')), 'keys.json');
    reader = { authorization: `Bearer ${(await createApiKey(keys, ['read'])).key}` };
    writer = { authorization: `Bearer ${(await createApiKey(keys, ['write'])).key}` };
    guarded = await startService({ keys, timeouts: { refreshKeysEveryMs: 10 } });
  });
  afterAll(async () => {
    await guarded.end();
    rmSync(dirname(keys), { recursive: true });
  });

  it.each([
    ['POST', '/v1/recommend', 'read'],
    ['POST', '/v1/similar', 'read'],
    ['POST', '/v1/search', 'read'],
    ['POST', '/v1/interests', 'read'],
    ['GET', '/v1/items', 'read'],
    ['GET', '/v1/models', 'read'],
    ['GET', '/v1/users/u', 'read'],
    ['GET', '/metrics', 'read'],
    ['POST', '/v1/events', 'write'],
    ['POST', '/v1/items', 'write'],
    ['DELETE', '/v1/items', 'write'],
    ['POST', '/v1/models/load', 'write'],
    ['POST', '/v1/models/promote', 'write'],
    ['POST', '/v1/models/rollback', 'write'],
  ] as const)('%s %s wants %s', async (method, url, scope) => {
    const status = async (headers: Record<string, string>) =>
      (await guarded.call(method, url, method === 'GET' ? undefined : {}, headers)).status;
    expect(await status({})).toBe(401);
    expect(await status({ authorization: 'Bearer lmb_0_0' })).toBe(401);
    expect(await status(scope === 'read' ? writer : reader)).toBe(403);
    expect([200, 400, 409]).toContain(await status(scope === 'read' ? reader : writer));
  });

  it('takes a key that is made while it runs', async () => {
    const { key } = await createApiKey(keys, ['read']);
    const authorization = `Bearer ${key}`;
    await expect
      .poll(async () => (await guarded.call('GET', '/v1/models', undefined, { authorization })).status)
      .toBe(200);
    expect(guarded.log.map((line) => JSON.parse(line).msg)).toContain('keys changed');
  });

  it('says how to ask', async () => {
    const { headers, json } = await guarded.call('POST', '/v1/recommend', {});
    expect(headers['www-authenticate']).toBe('Bearer');
    expect(json.error.code).toBe('ERR_UNAUTHORIZED');
  });

  it('lets supervisors and readers of the description in', async () => {
    for (const url of ['/healthz', '/readyz', '/openapi.json'])
      expect((await guarded.call('GET', url)).status).toBe(200);
  });

  it('never logs a key', () => {
    expect(guarded.log.join('')).not.toContain('lmb_');
  });
});

describe('with a rate limit', () => {
  afterEach(() => void vi.restoreAllMocks());

  it('answers 429, and when to come again, to those who ask too often', async () => {
    const limited = await startService({ limits: { requestsPerSecond: 3 } });
    vi.spyOn(Date, 'now').mockReturnValue(Date.now()); // all within one second, whatever they take
    const answers = [];
    for (let i = 0; i < 5; i++) answers.push(await limited.call('POST', '/v1/recommend', { history: [a] }));
    expect(answers.map(({ status }) => status)).toEqual([200, 200, 200, 429, 429]);
    expect(answers[4]).toMatchObject({
      json: { error: { code: 'ERR_RATE_LIMITED' } },
      headers: { 'retry-after': '1' },
    });
    expect((await limited.call('GET', '/healthz')).status).toBe(200);
    await limited.end();
  });
});

describe('a service that cannot start', () => {
  const full = new LimbeckError('ERR_NO_SPACE', 'full');
  beforeEach(() => {
    const { close } = Feedback.prototype;
    vi.spyOn(Feedback.prototype, 'close').mockImplementation(async function (this: Feedback) {
      await close.call(this);
      throw full;
    });
  });
  afterEach(() => void vi.restoreAllMocks());

  it('says why, also when it cannot close what it had opened', async () => {
    const warn = vi.spyOn(process, 'emitWarning').mockImplementation(() => {});
    const data = join(service.data, 'own');
    await expect(startService({ data, student: join(service.data, 'none') })).rejects.toMatchObject({
      code: 'ERR_FILE_NOT_FOUND',
    });
    expect(warn).toHaveBeenCalledWith(full);
  });

  it('says why on the command line too', async () => {
    const { port } = new URL(await service.listen());
    const lines: string[] = [];
    const streams = { stdout: { write: (line: string) => lines.push(line) } } as never;
    const flags = { data: join(service.data, 'own'), console: false, port: Number(port) };
    await expect(serveCommand(FIXTURE_STUDENT, flags, { streams } as CommandContext)).rejects.toThrow(`port ${port}`);
    expect(JSON.parse(lines.at(-1) ?? '')).toMatchObject({ msg: 'closing failed', err: { code: 'ERR_NO_SPACE' } });
  });
});

describe('the address', () => {
  it('that another program has, or no program can have, is told as such', async () => {
    const { port } = new URL(await service.listen());
    const second = await startService({ port: Number(port) });
    await expect(second.listen()).rejects.toMatchObject({
      code: 'ERR_IO',
      message: expect.stringContaining(`port ${port}`),
    });
    await second.end();
    const keys = join(service.data, 'keys.json');
    await createApiKey(keys, ['read']);
    const elsewhere = await startService({ host: '192.0.2.1', keys });
    await expect(elsewhere.listen()).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringContaining("'192.0.2.1' is no address of this machine"),
    });
    await elsewhere.end();
  });

  it('answers clients that send far too much, while they send', async () => {
    const small = await startService({ limits: { bodyBytes: 1024 }, timeouts: { requestMs: 5000 } });
    const url = await small.listen();
    const headers = { 'content-type': 'application/json' };
    const answer = await fetch(`${url}/v1/recommend`, { method: 'POST', headers, body: 'x'.repeat(2e7) });
    expect(answer.status).toBe(413);
    expect(await answer.json()).toMatchObject({ error: { code: 'ERR_BODY_TOO_LARGE' } });
    await small.end();
  });
});

describe('static files', () => {
  it('come with a policy that lets nothing else in', async () => {
    const page = await startService({ console: join(FIXTURE_STUDENT, 'text_encoder') });
    const { status, headers } = await page.call('GET', '/tokenizer.json');
    expect(status).toBe(200);
    expect(headers['content-security-policy']).toContain("default-src 'none'");
    expect(headers['x-content-type-options']).toBe('nosniff');
    const again = await page.call('GET', '/tokenizer.json', undefined, { 'if-none-match': String(headers.etag) });
    expect(again.status).toBe(304);
    expect((await page.call('GET', '/model.safetensors')).status).toBe(404);
    for (const url of ['/../config.json', '/%2e%2e/config.json', '/..%2fconfig.json']) {
      expect((await page.call('GET', url)).text).not.toContain('model_type":"gpt2"');
    }
    await page.end();
  });
});
