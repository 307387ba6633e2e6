import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { z } from 'zod';
import { nearestName } from '../prepare/nearest.js';
import { keysAt } from '../prepare/parse-options.js';
import type { Scope } from './api-keys.js';
import { HttpError } from './http-error.js';
import { takeJsonAlone } from './json-body.js';
import type { WaitingLimit } from './waiting-limit.js';

/** One route: what Fastify and OpenAPI are told of it. */
export interface Route {
  readonly method: 'GET' | 'POST' | 'DELETE';
  /** As Fastify writes parameters: `/v1/users/:id`. */
  readonly url: string;
  readonly summary: string;
  /** What a caller's key must allow; null = everybody may ask. */
  readonly scope: Scope | null;
  readonly body?: z.ZodType;
  /** The handler is given the body as it came, in bytes, and checks it itself. */
  readonly takesBytes?: boolean;
  readonly query?: z.ZodType;
  readonly params?: z.ZodType;
  readonly answer: z.ZodType;
  /** Statuses besides 200 and those that every route has. */
  readonly errors?: readonly number[];
  /** Whether the answer waits for a disk or for another change: how many may is limited. */
  readonly waits?: boolean;
  readonly handler: (request: FastifyRequest, reply: FastifyReply) => unknown;
}

type Output<Schema> = Schema extends z.ZodType ? z.output<Schema> : undefined;

/** What a handler is given, checked. */
export interface RouteInput<Body, Query, Params> {
  readonly body: Output<Body>;
  readonly query: Output<Query>;
  readonly params: Output<Params>;
  readonly request: FastifyRequest;
  readonly reply: FastifyReply;
}

/** A route whose handler knows the types of its schemas. */
export function defineRoute<
  Answer extends z.ZodType,
  Body extends z.ZodType | undefined = undefined,
  Query extends z.ZodType | undefined = undefined,
  Params extends z.ZodType | undefined = undefined,
>(
  route: Omit<Route, 'handler' | 'body' | 'query' | 'params'> & {
    readonly answer: Answer;
    readonly body?: Body;
    readonly query?: Query;
    readonly params?: Params;
  },
  handler: (input: RouteInput<Body, Query, Params>) => z.input<Answer> | Promise<z.input<Answer>>,
): Route {
  const call = (request: FastifyRequest, reply: FastifyReply) => {
    const { body, query, params } = request as unknown as RouteInput<Body, Query, Params>;
    return handler({ body, query, params, request, reply });
  };
  return { ...route, handler: call } as Route;
}

declare module 'fastify' {
  interface FastifyContextConfig {
    /** What a caller's key must allow; null or absent = everybody may ask. */
    readonly scope?: Scope | null;
  }
}

/** The answer's schema is for descriptions alone: handlers answer as it says, which {@link defineRoute} asks of their types. */
export function registerRoute(app: FastifyInstance, route: Route, waiting: WaitingLimit): void {
  const { method, url, scope, body, takesBytes = false, query, params, waits = false, handler } = route;
  const add = (parent: FastifyInstance) => {
    parent.route({
      method,
      url,
      config: { scope },
      schema: {
        ...(body && !takesBytes && { body }),
        ...(query && { querystring: query }),
        ...(params && { params }),
      },
      handler: waits ? waiting.guard(handler) : handler,
    });
  };
  if (!takesBytes) {
    add(app);
    return;
  }
  app.register(async (own) => {
    takeJsonAlone(own, (bytes) => bytes);
    add(own);
  });
}

/** Fastify's validator of a zod schema. Names the first wrong field. */
export function validatorOf({ schema }: { schema: unknown }) {
  return (data: unknown) => {
    try {
      return { value: checked(schema as z.ZodType, data) };
    } catch (error) {
      return { error: error as HttpError };
    }
  };
}

/** @throws HttpError 400, with the first wrong field */
export function checked<Schema extends z.ZodType>(schema: Schema, data: unknown): z.output<Schema> {
  const parsed = schema.safeParse(data);
  if (parsed.success) return parsed.data;
  throw validationError(schema, parsed.error, data);
}

function validationError(schema: z.ZodType, { issues }: z.ZodError, data: unknown): HttpError {
  if (data === null || data === undefined) {
    return new HttpError(400, 'ERR_INVALID_ARGUMENT', 'Expected a JSON object as the body; it is missing.');
  }
  // A key that is missing was perhaps misspelt: then the misspelling says more.
  const issue = issues.find(({ code }) => code === 'unrecognized_keys') ?? issues[0];
  const path = issue?.path.join('.') ?? '';
  const place = path === '' ? 'the request' : path.length <= 200 ? path : `${path.slice(0, 200)}…`;
  if (issue?.code === 'unrecognized_keys') {
    const known = keysAt(schema, issue.path);
    const keys = issue.keys.slice(0, 5).map((key) => {
      const written = key.slice(0, 64);
      const nearest = nearestName(written, known);
      return nearest === undefined ? `'${written}'` : `'${written}' (did you mean '${nearest}'?)`;
    });
    return new HttpError(400, 'ERR_UNKNOWN_OPTION', `${place} has no key ${keys.join(', ')}.`);
  }
  const message = issue?.message ?? 'Invalid input';
  return new HttpError(400, 'ERR_INVALID_ARGUMENT', `${place}: ${message.slice(0, 300)}`);
}

export function jsonSchemaOf(schema: z.ZodType, io: 'input' | 'output'): Record<string, unknown> {
  const { $schema: _, ...json } = z.toJSONSchema(schema, { io });
  return json;
}
