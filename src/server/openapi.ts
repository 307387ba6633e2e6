import { jsonSchemaOf, type Route } from './route.js';
import { errorAnswer } from './schemas.js';

const STATUS_TEXTS: Record<number, string> = {
  400: 'The request is malformed',
  401: 'No valid key',
  403: 'The key does not allow it',
  404: 'There is no such thing',
  409: 'Conflicts with what is there',
  408: 'The request did not come in time',
  413: 'The body is too large',
  414: 'A part of the path is too long',
  415: 'The body is not application/json in UTF-8',
  422: 'Cannot be done with these items or this model',
  429: 'The caller asks too often; Retry-After says when to come again',
  431: 'The headers are too large',
  500: 'Something failed inside the service; its log says what',
  503: 'Overloaded, or not ready; Retry-After says when to come again',
  507: 'The disk is full: nothing was stored',
};

/** The OpenAPI 3.1 description of the routes, made from the schemas that check their requests. */
export function openApiOf(routes: readonly Route[], version: string): object {
  const paths: Record<string, Record<string, object>> = {};
  for (const route of routes) {
    const path = route.url.replace(/:(\w+)/g, '{$1}');
    paths[path] = { ...paths[path], [route.method.toLowerCase()]: operation(route) };
  }
  return {
    openapi: '3.1.0',
    info: {
      title: 'Limbeck',
      version,
      description: 'Recommendations from a distilled student.',
      license: { name: 'MIT' },
    },
    servers: [{ url: '/' }],
    paths,
    components: {
      schemas: { Error: jsonSchemaOf(errorAnswer, 'output') },
      securitySchemes: { key: { type: 'http', scheme: 'bearer', description: 'Made by `limbeck create-key`.' } },
    },
  };
}

function operation({ url, method, summary, scope, body, query, params, answer, errors = [] }: Route): object {
  const statuses = [...(body || query || params ? [400] : []), ...(scope ? [401, 403, 429] : []), ...errors];
  if (body) statuses.push(413, 415);
  if (params) statuses.push(414);
  statuses.push(408, 431, 500, 503);
  return {
    operationId: operationId(method, url),
    summary,
    ...(scope && { security: [{ key: [scope] }] }),
    ...((query || params) && {
      parameters: [...parametersOf('query', query), ...parametersOf('path', params)],
    }),
    ...(body && { requestBody: { required: true, content: jsonContent(jsonSchemaOf(body, 'input')) } }),
    responses: {
      200: { description: 'Done', content: jsonContent(jsonSchemaOf(answer, 'output')) },
      ...Object.fromEntries(statuses.map((status) => [status, errorResponse(status)])),
    },
  };
}

/** `POST /v1/models/load` → `modelsLoad`; `GET /v1/users/:id` → `getUsers`. */
function operationId(method: string, url: string): string {
  const words = url.split('/').filter((part) => part !== '' && part !== 'v1' && !part.startsWith(':'));
  const name = words.map((word, i) => (i === 0 ? word : `${word[0]?.toUpperCase()}${word.slice(1)}`)).join('');
  const isVerb = method === 'POST' && !['items', 'events'].includes(name);
  return isVerb ? name : `${method.toLowerCase()}${name[0]?.toUpperCase()}${name.slice(1)}`;
}

function parametersOf(place: 'query' | 'path', schema: Route['query']): object[] {
  if (schema === undefined) return [];
  const { properties = {}, required = [] } = jsonSchemaOf(schema, 'input') as {
    properties?: Record<string, { description?: string }>;
    required?: string[];
  };
  return Object.entries(properties).map(([name, { description, ...property }]) => ({
    name,
    in: place,
    required: place === 'path' || required.includes(name),
    ...(description && { description }),
    schema: property,
  }));
}

function errorResponse(status: number): object {
  const retry = { 'Retry-After': { description: 'Seconds', schema: { type: 'integer' } } };
  return {
    description: STATUS_TEXTS[status] ?? 'Failed',
    ...([429, 503, 507].includes(status) && { headers: retry }),
    content: jsonContent({ $ref: '#/components/schemas/Error' }),
  };
}

function jsonContent(schema: object): object {
  return { 'application/json': { schema } };
}
