/** Fastify with the service's guards: admission, keys, limits, timeouts, and errors that tell strangers nothing. */
import { randomBytes } from 'node:crypto';
import { createServer as createHttpServer } from 'node:http';
import type { Socket } from 'node:net';
import rateLimit from '@fastify/rate-limit';
import fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest, LogController } from 'fastify';
import { Admission } from './admission.js';
import type { ApiKeys, Caller } from './api-keys.js';
import { type Drain, leavingResponse } from './drain.js';
import { errorBody, HttpError, toHttpError } from './http-error.js';
import { parseJson, takeJsonAlone } from './json-body.js';
import type { Metrics } from './metrics.js';
import { isLoopback, type ServerSettings } from './options.js';
import { validatorOf } from './route.js';

/** Lines of JSON go there. @defaultValue stdout */
export interface LogDestination {
  write(line: string): void;
}

interface Guards {
  /** Absent on loopback without keys. */
  readonly keys: ApiKeys | undefined;
  readonly metrics: Metrics;
  readonly drain: Drain;
  /** See {@link Admission}. */
  readonly owedMs: () => number;
  /** Of the page's files. */
  readonly pagePaths: readonly string[];
  readonly log?: LogDestination;
}

const MAX_HEADER_BYTES = 16 * 1024;
/** How often connections are looked at that may have passed a timeout. */
const CONNECTIONS_CHECK_MS = 1000;
const RETRY_AFTER_SECONDS = 1;
/** Asked by those who must hear the truth most of all when much is going on. */
const SUPERVISION = ['/healthz', '/readyz', '/metrics'];

declare module 'fastify' {
  interface FastifyRequest {
    caller: Caller | undefined;
  }
}

export async function createHttpApp(settings: ServerSettings, guards: Guards): Promise<FastifyInstance> {
  const { limits, timeouts, logLevel } = settings;
  const admission = new Admission({
    maxQueueMs: limits.maxQueueMs,
    retryAfterSeconds: RETRY_AFTER_SECONDS,
    owedMs: guards.owedMs,
    alwaysAdmitted: new Set([...SUPERVISION, ...guards.pagePaths]),
    isDraining: () => guards.drain.isDraining,
    onShed: () => guards.metrics.countShed('queue'),
  });
  const app = fastify({
    logger: { level: logLevel, ...(guards.log && { stream: guards.log }) },
    logController: new LogController({ disableRequestLogging: true }),
    // A logger of its own for every request costs more than it tells: lines name the request themselves.
    childLoggerFactory: (logger) => logger,
    genReqId: requestIds(),
    bodyLimit: limits.bodyBytes,
    routerOptions: { maxParamLength: 1024 },
    forceCloseConnections: 'idle',
    return503OnClosing: false,
    clientErrorHandler: answerBrokenRequest,
    // Paths that Fastify refuses before it knows a route.
    frameworkErrors: answerError,
    serverFactory(listener) {
      const server = createHttpServer(
        {
          maxHeaderSize: MAX_HEADER_BYTES,
          // Node refuses a longer one than that of the whole request; 0 = none.
          headersTimeout: Math.min(timeouts.headersMs, timeouts.requestMs || Number.POSITIVE_INFINITY),
          requestTimeout: timeouts.requestMs,
          keepAliveTimeout: timeouts.keepAliveMs,
          connectionsCheckingInterval: CONNECTIONS_CHECK_MS,
          // It is missed below: Node's own answer has no code.
          requireHostHeader: false,
          ServerResponse: leavingResponse(guards.drain),
        },
        admission.guard(listener),
      );
      guards.drain.watch(server);
      server.maxConnections = limits.connections;
      server.timeout = timeouts.idleMs;
      // Of an expectation that it does not know, too; a server may as well answer.
      server.on('checkExpectation', (request, response) => server.emit('request', request, response));
      server.on('drop', () => guards.metrics.countShed('connections'));
      return server;
    },
  });
  app.setValidatorCompiler(validatorOf);
  takeJsonAlone(app, parseJson);
  app.decorateRequest('caller', undefined);
  guardRoutes(app, settings, guards);
  if (limits.requestsPerSecond > 0) await limitRates(app, limits.requestsPerSecond, guards);
  answerErrors(app, guards.metrics);
  return app;
}

/** `PREFIX-N`: the prefix tells processes apart, the number requests. */
function requestIds(): () => string {
  const prefix = randomBytes(6).toString('base64url');
  let count = 0;
  return () => `${prefix}-${(count++).toString(36)}`;
}

function guardRoutes(app: FastifyInstance, { host }: ServerSettings, { keys, metrics }: Guards): void {
  // Without keys, a page that a browser on this machine shows must not reach the service under a name of its own.
  const isOpen = keys === undefined && isLoopback(host);
  const isLocal = localHosts();
  const logsRequests = app.log.level === 'debug' || app.log.level === 'trace';
  app.addHook('onRoute', (route) => {
    const { scope = null } = route.config ?? {};
    const label = route.url;
    route.onResponse = (request, reply, done) => {
      metrics.observeRequest(label, reply.statusCode, reply.elapsedTime / 1000);
      if (logsRequests) logRequest(request, reply);
      done();
    };
    route.onRequest = (request: FastifyRequest, reply: FastifyReply, done: (error?: Error) => void) => {
      if (request.headers.host === undefined && request.raw.httpVersion !== '1.0') {
        done(new HttpError(400, 'ERR_MALFORMED_REQUEST', 'Expected a Host header.'));
      } else if (isOpen && !isLocal(request)) {
        done(new HttpError(403, 'ERR_FORBIDDEN', 'Without keys, the service answers at localhost alone.'));
      } else if (keys !== undefined && scope !== null) {
        done(refusalOf(keys, scope, request, reply));
      } else {
        done();
      }
    };
  });
}

/** Tells requests to a name of this machine alone. Nearly all name the host that the last one did. */
function localHosts(): (request: FastifyRequest) => boolean {
  let last = 'localhost';
  return (request) => {
    const { host } = request.headers;
    if (host === last) return true;
    if (!isLoopback(request.hostname.replace(/^\[(.*)\]$/, '$1'))) return false;
    if (host !== undefined) last = host;
    return true;
  };
}

function logRequest(
  { id, method, url, ip, caller }: FastifyRequest,
  { statusCode, elapsedTime, log }: FastifyReply,
): void {
  log.debug({ requestId: id, method, url, ip, key: caller?.id, statusCode, latencyMs: elapsedTime }, 'request');
}

function refusalOf(
  keys: ApiKeys,
  scope: 'read' | 'write',
  request: FastifyRequest,
  reply: FastifyReply,
): HttpError | undefined {
  request.caller = keys.caller(request.headers.authorization);
  if (request.caller === undefined) {
    reply.header('www-authenticate', 'Bearer');
    return new HttpError(401, 'ERR_UNAUTHORIZED', 'Send a valid key as Authorization: Bearer KEY.');
  }
  if (request.caller.scopes.includes(scope)) return undefined;
  return new HttpError(403, 'ERR_FORBIDDEN', `This key does not allow to ${scope}.`);
}

/** After the keys, so that one caller cannot use up another's share. */
async function limitRates(app: FastifyInstance, max: number, { metrics }: Guards): Promise<void> {
  await app.register(rateLimit, {
    max,
    timeWindow: 1000,
    hook: 'preParsing',
    keyGenerator: (request) => request.caller?.id ?? request.ip,
    allowList: (request) => request.url === '/healthz' || request.url === '/readyz',
    errorResponseBuilder: () => {
      metrics.countShed('rate');
      return new HttpError(429, 'ERR_RATE_LIMITED', `At most ${max} requests a second.`, 1);
    },
  });
}

function answerError(error: unknown, request: FastifyRequest, reply: FastifyReply): void {
  const answer = toHttpError(error);
  const { statusCode, retryAfterSeconds } = answer;
  if (statusCode >= 500) request.log.error({ requestId: request.id, err: answer.cause ?? answer }, 'request failed');
  else request.log.debug({ requestId: request.id, code: answer.code, message: answer.message }, 'request refused');
  if (retryAfterSeconds !== undefined) reply.header('retry-after', String(retryAfterSeconds));
  // What is left of the body is read, as long as a body may take, and dropped: a client that still sends when its
  // connection is closed never sees the answer.
  if (statusCode === 413) reply.removeHeader('connection');
  // As text: the body needs no schema.
  reply
    .code(statusCode)
    .type('application/json; charset=utf-8')
    .send(JSON.stringify(errorBody(answer, request.id)));
}

function answerErrors(app: FastifyInstance, metrics: Metrics): void {
  const routes: { readonly url: string; readonly method: string | string[] }[] = [];
  app.addHook('onRoute', (route) => {
    routes.push(route);
  });
  app.setErrorHandler(answerError);
  app.setNotFoundHandler((request, reply) => {
    const methods = routes.filter(({ url }) => isAt(url, request.url)).flatMap(({ method }) => method);
    const error =
      methods.length === 0
        ? new HttpError(404, 'ERR_NOT_FOUND', 'There is no such route; /openapi.json lists them.')
        : new HttpError(405, 'ERR_METHOD_NOT_ALLOWED', `This route takes ${methods.join(' and ')}.`);
    metrics.observeRequest('unknown', error.statusCode, reply.elapsedTime / 1000);
    if (methods.length > 0) reply.header('allow', methods.join(', '));
    reply
      .code(error.statusCode)
      .type('application/json; charset=utf-8')
      .send(JSON.stringify(errorBody(error, request.id)));
  });
}

/** Whether what a request asks for is at a route's `/v1/users/:id`. */
function isAt(route: string, asked: string): boolean {
  const parts = (asked.split('?', 1)[0] ?? '').split('/');
  const wanted = route.split('/');
  return parts.length === wanted.length && wanted.every((part, i) => part.startsWith(':') || part === parts[i]);
}

/** What the HTTP parser gave up on never becomes a request. */
function answerBrokenRequest(error: Error & { code?: string }, socket: Socket): void {
  if (socket.writable && error.code !== 'ECONNRESET') {
    const isLarge = error.code === 'HPE_HEADER_OVERFLOW';
    const isSlow = error.code === 'ERR_HTTP_REQUEST_TIMEOUT';
    const status = isLarge ? '431 Request Header Fields Too Large' : isSlow ? '408 Request Timeout' : '400 Bad Request';
    const code = isSlow ? 'ERR_TIMEOUT' : 'ERR_MALFORMED_REQUEST';
    const body = JSON.stringify({ error: { code, message: status.slice(4), requestId: '' } });
    socket.write(
      `HTTP/1.1 ${status}\r\ncontent-type: application/json; charset=utf-8\r\n` +
        `content-length: ${body.length}\r\nconnection: close\r\n\r\n${body}`,
    );
  }
  socket.destroySoon();
}
