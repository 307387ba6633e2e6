import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { startService, type TestService } from '../../support/serve.js';

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
    expect(document.paths['/v1/events'].post.responses).toHaveProperty('507');
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
});
