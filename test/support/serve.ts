/** A service over the fixture's student, in this process. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createServer, type LimbeckServer, type ServerOptions } from '../../src/server/server.js';

export const FIXTURE_STUDENT = join(import.meta.dirname, '../fixtures/student');

export interface TestService extends LimbeckServer {
  readonly data: string;
  /** Lines of the log so far. */
  readonly log: string[];
  /** Sends a request without a network. */
  call(
    method: 'GET' | 'POST' | 'DELETE',
    url: string,
    body?: unknown,
    headers?: Record<string, string>,
  ): Promise<Answer>;
  /** Ends at once, and removes the data. */
  end(): Promise<void>;
}

export interface Answer {
  readonly status: number;
  readonly headers: Record<string, unknown>;
  // biome-ignore lint/suspicious/noExplicitAny: tests look into it
  readonly json: any;
  readonly text: string;
}

export async function startService(options: Partial<ServerOptions> = {}): Promise<TestService> {
  const data = options.data ?? mkdtempSync(join(tmpdir(), 'limbeck-serve-'));
  const log: string[] = [];
  const server = await createServer(
    {
      student: FIXTURE_STUDENT,
      data,
      port: 0,
      console: false,
      ...options,
      // A test machine that is busy with other things is no overload.
      limits: { maxQueueMs: 10_000, ...options.limits },
      timeouts: { drainDelayMs: 0, drainMs: 5000, ...options.timeouts },
    },
    { log: { write: (line) => log.push(line) } },
  );
  return {
    ...server,
    data,
    log,
    async call(method, url, body, headers = {}) {
      const isText = typeof body === 'string';
      const response = await server.app.inject({
        method,
        url,
        headers: { host: 'localhost', ...(body !== undefined && { 'content-type': 'application/json' }), ...headers },
        ...(body !== undefined && { payload: isText ? body : JSON.stringify(body) }),
      });
      const isJson = String(response.headers['content-type']).startsWith('application/json');
      return {
        status: response.statusCode,
        headers: response.headers,
        text: response.body,
        json: isJson && response.body !== '' ? response.json() : undefined,
      };
    },
    async end() {
      await server.close();
      if (options.data === undefined) rmSync(data, { recursive: true });
    },
  };
}
