import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import * as schemas from '../../../src/server/schemas.js';
import { FIXTURE_STUDENT, startService, type TestService } from '../../support/serve.js';

let service: TestService;
// biome-ignore lint/suspicious/noExplicitAny: a document
let document: any;
beforeAll(async () => {
  service = await startService();
  document = (await service.call('GET', '/openapi.json')).json;
});
afterAll(() => service.end());

describe('/openapi.json', () => {
  it('describes every route of the contract', () => {
    const routes = Object.entries(document.paths as Record<string, object>).flatMap(([path, methods]) =>
      Object.keys(methods).map((method) => `${method.toUpperCase()} ${path}`),
    );
    expect(document.openapi).toBe('3.1.0');
    expect(routes.sort()).toEqual([
      'DELETE /v1/items',
      'GET /healthz',
      'GET /metrics',
      'GET /readyz',
      'GET /v1/items',
      'GET /v1/models',
      'GET /v1/users/{id}',
      'POST /v1/events',
      'POST /v1/interests',
      'POST /v1/items',
      'POST /v1/models/load',
      'POST /v1/models/promote',
      'POST /v1/models/rollback',
      'POST /v1/recommend',
      'POST /v1/search',
      'POST /v1/similar',
    ]);
  });

  it('says of requests what the checks ask of them', () => {
    const { post } = document.paths['/v1/recommend'];
    const schema = post.requestBody.content['application/json'].schema;
    expect(schema.additionalProperties).toBe(false);
    expect(schema.required ?? []).toEqual([]);
    expect(schema.properties.k).toMatchObject({ type: 'integer', minimum: 1, maximum: 1000, default: 10 });
    expect(schema.properties.diversity).toMatchObject({ minimum: 0, maximum: 1 });
    expect(post.security).toEqual([{ key: ['read'] }]);
    expect(document.paths['/v1/users/{id}'].get.parameters).toEqual([
      expect.objectContaining({ name: 'id', in: 'path', required: true }),
    ]);
    const [, ids] = document.paths['/v1/items'].get.parameters;
    expect(ids).toMatchObject({ name: 'ids', in: 'query', required: false });
    expect(ids.schema.anyOf.map(({ type }: { type: string }) => type)).toEqual(['string', 'array']);
    const statusesOf = (url: string, method: string) => Object.keys(document.paths[url][method].responses).map(Number);
    expect(statusesOf('/v1/events', 'post')).toEqual([...[200, 400, 401, 403, 408, 413, 415, 429, 431, 500, 503, 507]]);
    expect(statusesOf('/v1/users/{id}', 'get')).toEqual([200, 400, 401, 403, 408, 414, 429, 431, 500, 503]);
    expect(statusesOf('/healthz', 'get')).toEqual([200, 408, 431, 500, 503]);
  });

  it('gives every operation a name of its own, and every answer and error a schema', () => {
    // biome-ignore lint/suspicious/noExplicitAny: a document
    const operations = Object.values(document.paths).flatMap((methods) => Object.values(methods as object)) as any[];
    expect(new Set(operations.map(({ operationId }) => operationId)).size).toBe(operations.length);
    for (const { responses } of operations) {
      for (const response of Object.values<{ content: Record<string, { schema: object }> }>(responses)) {
        expect(response.content['application/json']?.schema).toBeTypeOf('object');
      }
    }
  });

  it('tells all that answers hold', async () => {
    const items: { id: string }[] = JSON.parse(readFileSync(join(FIXTURE_STUDENT, 'items.json'), 'utf8'));
    const [a, b] = items.map(({ id }) => id) as [string, string];
    const event = { userId: 'u', itemId: a, type: 'click' };
    const added = { id: 'new', text: 'A new drama', categories: ['drama'] };
    const requests = [
      ['POST', '/v1/events', { events: [event] }, schemas.eventsAnswer],
      ['GET', '/v1/users/u', undefined, schemas.userAnswer],
      ['POST', '/v1/recommend', { userId: 'u' }, schemas.recommendAnswer],
      ['POST', '/v1/recommend', { userId: 'stranger' }, schemas.recommendAnswer],
      ['POST', '/v1/recommend', { history: [a, 'x', b], explain: true, texts: true }, schemas.recommendAnswer],
      ['POST', '/v1/similar', { item: a }, schemas.itemsAnswer],
      ['POST', '/v1/search', { text: 'drama', history: [a] }, schemas.itemsAnswer],
      ['POST', '/v1/interests', { history: [a, b] }, schemas.interestsAnswer],
      ['POST', '/v1/items', { items: [added] }, schemas.addItemsAnswer],
      ['GET', '/v1/items?ids=new', undefined, schemas.listItemsAnswer],
      ['GET', '/v1/items?query=a', undefined, schemas.listItemsAnswer],
      ['DELETE', '/v1/items', { ids: ['new'] }, schemas.removeItemsAnswer],
      ['GET', '/v1/models', undefined, schemas.modelsAnswer],
      ['GET', '/healthz', undefined, schemas.healthAnswer],
      ['GET', '/readyz', undefined, schemas.healthAnswer],
    ] as const;
    for (const [method, url, body, schema] of requests) {
      const { status, json } = await service.call(method, url, body);
      expect([url, status]).toEqual([url, 200]);
      // What a schema does not name, it leaves out.
      expect(schema.parse(json)).toEqual(json);
    }
  });
});
