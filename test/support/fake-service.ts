/** The service's HTTP interface over a catalogue in memory: for what the real one shows only when something is wrong. */
import { readFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { extname, join } from 'node:path';

const CONSOLE = join(import.meta.dirname, '../../src/server/console');
const TYPES: Record<string, string> = {
  '.html': 'text/html; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.svg': 'image/svg+xml',
};
const CSP =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; " +
  "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";
const BUCKETS = [0.0001, 0.00025, 0.0005, 0.001, 0.01, 0.1];

export interface FakeItem {
  id: string;
  text: string;
}
export interface Failure {
  status: number;
  code: string;
  message?: string;
  retryAfter?: number;
}
type Json = Record<string, unknown>;
interface FakeEvent {
  userId: string;
  itemId: string;
  type: string;
  value?: number;
  requestId?: string;
  strategy?: string;
}

export class FakeService {
  items: FakeItem[];
  readonly users = new Map<string, { history: string[]; hidden: string[] }>();
  models = [
    { name: 'student-1', loaded: true, latencyMs: 0.184 },
    { name: 'student-2', loaded: false, latencyMs: 0.171 },
    { name: 'teacher', loaded: true, latencyMs: 17.6 },
  ];
  current = 'student-1';
  /** Path → what is answered instead. */
  readonly failures = new Map<string, Failure>();
  key: string | undefined;
  interestName = 'Interest in';
  readonly events: FakeEvent[] = [];
  /** Answers to /v1/recommend wait for it. */
  hold: Promise<void> = Promise.resolve();
  readonly #counts = new Map<string, number>();
  #numRequests = 0;
  readonly #server = createServer((request, response) => void this.#answer(request, response));

  constructor(items: FakeItem[]) {
    this.items = items;
  }

  /** @returns its URL */
  async start(): Promise<string> {
    await new Promise<void>((resolve) => this.#server.listen(0, '127.0.0.1', resolve));
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async stop(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  async #answer(request: IncomingMessage, response: ServerResponse) {
    const url = new URL(request.url ?? '/', 'http://fake');
    const path = url.pathname;
    if (request.method === 'GET' && !path.startsWith('/v1') && path !== '/metrics') return sendFile(response, path);
    const requestId = `fake-${this.#numRequests++}`;
    const failure = this.#failureOf(path, request.headers.authorization);
    if (failure !== undefined) {
      const { status, code, message = `Message of ${code}`, retryAfter } = failure;
      if (retryAfter !== undefined) response.setHeader('retry-after', retryAfter);
      this.#count(path, status);
      return sendJson(response, status, { error: { code, message, requestId } });
    }
    if (path === '/metrics') return response.setHeader('content-type', 'text/plain').end(this.#metrics());
    let body = '';
    for await (const chunk of request) body += chunk;
    if (path === '/v1/recommend') await this.hold;
    const answer = this.#route(`${request.method} ${path}`, body === '' ? {} : JSON.parse(body), url, requestId);
    this.#count(path, answer === undefined ? 404 : 200);
    if (answer !== undefined) return sendJson(response, 200, answer);
    return sendJson(response, 404, { error: { code: 'ERR_NOT_FOUND', message: 'Nothing there.', requestId } });
  }

  #failureOf(path: string, authorization: string | undefined): Failure | undefined {
    if (this.key !== undefined && authorization !== `Bearer ${this.key}`)
      return { status: 401, code: 'ERR_UNAUTHORIZED' };
    return this.failures.get(path);
  }

  #route(route: string, body: Json, url: URL, requestId: string): Json | undefined {
    if (route.startsWith('GET /v1/users/')) {
      const userId = decodeURIComponent(url.pathname.slice('/v1/users/'.length));
      return { userId, ...(this.users.get(userId) ?? { history: [], hidden: [] }) };
    }
    switch (route) {
      case 'GET /v1/items': {
        const query = (url.searchParams.get('query') ?? '').toLowerCase();
        return {
          items: this.items.filter(({ id, text }) => `${id} ${text}`.toLowerCase().includes(query)).slice(0, 20),
        };
      }
      case 'GET /v1/models':
        return {
          current: this.current,
          models: this.models.map(({ name, loaded }) => ({ name, loaded, numItems: 36 })),
        };
      case 'POST /v1/models/load':
        for (const model of this.models) if (model.name === body['name']) model.loaded = true;
        return { name: body['name'], numItems: 36 };
      case 'POST /v1/models/promote':
        this.current = String(body['name']);
        return { current: this.current };
      case 'POST /v1/models/rollback':
        this.current = 'student-1';
        return { current: this.current };
      case 'POST /v1/recommend':
        return this.#recommend(body, requestId);
      case 'POST /v1/search': {
        const words = String(body['text']).toLowerCase().split(/\W+/);
        const score = ({ text }: FakeItem) => words.filter((word) => text.toLowerCase().includes(word)).length;
        return { items: this.#rank(score, 10).filter(({ score }) => score >= 0.5) };
      }
      case 'POST /v1/similar': {
        const liked = this.items.find(({ id }) => id === body['item']);
        return { items: this.#rank((item) => (item === liked ? -9 : overlap(item, liked)), 10) };
      }
      case 'POST /v1/interests':
        return { interests: this.#interests(this.#historyOf(body)) };
      case 'POST /v1/events':
        for (const event of body['events'] as FakeEvent[]) this.#apply(event);
        return { accepted: (body['events'] as FakeEvent[]).length, duplicates: 0 };
      default:
        return undefined;
    }
  }

  #historyOf(body: Json): string[] {
    return (body['history'] as string[] | undefined) ?? this.users.get(String(body['userId']))?.history ?? [];
  }

  #recommend(body: Json, requestId: string): Json | undefined {
    const model = this.models.find(({ name }) => name === (body['model'] ?? this.current));
    if (model?.loaded !== true) return undefined;
    const history = this.#historyOf(body);
    const hidden = this.users.get(String(body['userId']))?.hidden ?? [];
    const out = new Set([...history, ...hidden, ...((body['exclude'] as string[] | undefined) ?? [])]);
    const liked = history.map((id) => this.items.find((item) => item.id === id));
    const taste = model.name === 'teacher' ? 0.6 : 0.8;
    const items = this.#rank(
      (item) => liked.reduce((sum, one, index) => sum + overlap(item, one) * taste ** (history.length - index), 0),
      Number(body['k'] ?? 10),
      out,
    ).map((item) => ({
      ...item,
      because: history.slice(-3).map((id, index) => ({ item: id, weight: 0.61 - 0.23 * index })),
      interests: this.#interests(history)
        .slice(0, 2)
        .map(({ name, weight }) => ({ name, weight })),
    }));
    const strategy = history.length === 0 ? 'popular' : body['userId'] === undefined ? undefined : 'balanced';
    return { requestId, model: model.name, strategy, items, unknownItems: [], latencyMs: model.latencyMs };
  }

  #rank(score: (item: FakeItem) => number, k: number, out = new Set<string>()) {
    return this.items
      .map((item, index) => ({ ...item, score: score(item) + (index % 7) / 40 - index / 400 }))
      .filter(({ id }) => !out.has(id))
      .sort((a, b) => b.score - a.score)
      .slice(0, k);
  }

  #interests(history: string[]) {
    const counts = new Map<string, number>();
    for (const id of history) {
      for (const genre of genresOf(this.items.find((item) => item.id === id)))
        counts.set(genre, (counts.get(genre) ?? 0) + 1);
    }
    return [...counts]
      .sort(([, a], [, b]) => b - a)
      .map(([genre, count]) => ({ name: `${this.interestName} ${genre}`, weight: count / history.length, items: [] }));
  }

  #apply(event: FakeEvent) {
    this.events.push(event);
    const user = this.users.get(event.userId) ?? { history: [], hidden: [] };
    const isDisliked = event.type === 'dismiss' || (event.value ?? 5) < 3;
    user[isDisliked ? 'hidden' : 'history'].push(event.itemId);
    this.users.set(event.userId, user);
  }

  #count(path: string, status: number) {
    const key = `route="${path}",code="${status}"`;
    this.#counts.set(key, (this.#counts.get(key) ?? 0) + 1);
  }

  /** As many counts as there were requests, each of them of 0.2 ms. */
  #metrics(): string {
    const name = 'limbeck_http_request_duration_seconds';
    const lines = ['# TYPE limbeck_ready gauge', 'limbeck_ready 1', `limbeck_items ${this.items.length}`];
    lines.push(`limbeck_users ${this.users.size}`, `limbeck_events_total{result="accepted"} ${this.events.length}`);
    for (const [labels, count] of this.#counts) {
      for (const bound of BUCKETS) lines.push(`${name}_bucket{le="${bound}",${labels}} ${bound < 0.0002 ? 0 : count}`);
      lines.push(`${name}_bucket{le="+Inf",${labels}} ${count}`, `${name}_count{${labels}} ${count}`);
    }
    return `${lines.join('\n')}\n`;
  }
}

function sendFile(response: ServerResponse, path: string) {
  const name = path === '/' ? 'index.html' : path.slice(1);
  const type = TYPES[extname(name)];
  if (type === undefined || name.includes('/')) return response.writeHead(404).end();
  return response
    .writeHead(200, { 'content-type': type, 'content-security-policy': CSP })
    .end(readFileSync(join(CONSOLE, name)));
}

function sendJson(response: ServerResponse, status: number, body: Json) {
  return response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
}

/** `Title. Year. Genre, Genre` */
function genresOf(item: FakeItem | undefined): string[] {
  return item?.text.split('. ').at(-1)?.split(', ') ?? [];
}

function overlap(a: FakeItem, b: FakeItem | undefined): number {
  const wanted = genresOf(b);
  return genresOf(a).filter((genre) => wanted.includes(genre)).length / 4;
}
