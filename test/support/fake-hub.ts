/** A local server that plays the hub for one model, and misbehaves on request. */
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { createServer, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { vi } from 'vitest';

export const COMMIT = '0123456789abcdef0123456789abcdef01234567';

export interface FakeHub {
  readonly url: string;
  /** `METHOD path range` of every request. */
  readonly requests: string[];
  /** What the next requests for a file get, one each; then it is served well. */
  readonly faults: Map<string, Fault[]>;
  /** Answers every request with this status. */
  status: number | undefined;
  /** What it says main is. */
  commit: string;
  /** Requests that carry another token are refused. */
  token: string | undefined;
  close(): Promise<void>;
}

/** A status; a connection that breaks, or waits, after so many bytes; one byte that is wrong. */
export type Fault = number | { readonly breakAfter: number } | { readonly stallAfter: number } | 'corrupt';

export function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

export function gitHash(bytes: Uint8Array): string {
  return createHash('sha1').update(`blob ${bytes.length}\0`).update(bytes).digest('hex');
}

/** Weights are large files (LFS), everything else is in git itself. */
export async function startFakeHub(files: Readonly<Record<string, Buffer>>, model = 'someone/small'): Promise<FakeHub> {
  const requests: string[] = [];
  const faults = new Map<string, Fault[]>();
  const server = createServer((request, response) => {
    const path = decodeURIComponent((request.url ?? '').split('?')[0] ?? '');
    requests.push([request.method, path, request.headers.range].filter(Boolean).join(' '));
    const json = (body: unknown) => {
      response.setHeader('Content-Type', 'application/json');
      response.end(JSON.stringify(body));
    };
    const refuse = (status: number) => {
      response.statusCode = status;
      json({ error: 'refused' });
    };
    if (hub.status !== undefined) return refuse(hub.status);
    if (hub.token !== undefined && request.headers.authorization !== `Bearer ${hub.token}`) return refuse(401);
    if (path === `/api/models/${model}/revision/main`) return json({ _id: '1', id: model, sha: hub.commit });
    if (path === `/api/models/${model}/tree/${COMMIT}`) return json(Object.entries(files).map(listEntry));
    const prefix = `/${model}/resolve/${COMMIT}/`;
    const file = path.startsWith(prefix) ? path.slice(prefix.length) : '';
    const bytes = files[file];
    if (bytes === undefined) return refuse(404);
    serve(response, bytes, request.headers.range, faults.get(file)?.shift(), refuse);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const hub: FakeHub = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    requests,
    faults,
    status: undefined,
    commit: COMMIT,
    token: undefined,
    async close() {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
  return hub;
}

function listEntry([path, bytes]: [string, Buffer]): object {
  const entry = { type: 'file', path, size: bytes.length };
  return path.endsWith('.safetensors')
    ? {
        ...entry,
        oid: gitHash(Buffer.from('pointer')),
        lfs: { oid: sha256(bytes), size: bytes.length, pointerSize: 130 },
      }
    : { ...entry, oid: gitHash(bytes) };
}

function serve(
  response: ServerResponse,
  whole: Buffer,
  range: string | undefined,
  fault: Fault | undefined,
  refuse: (status: number) => void,
): void {
  if (typeof fault === 'number') {
    refuse(fault);
    return;
  }
  const begin = Number(/^bytes=(\d+)-/.exec(range ?? '')?.[1] ?? 0);
  const bytes = Buffer.from(whole.subarray(begin));
  response.statusCode = range === undefined ? 200 : 206;
  response.setHeader('Content-Length', bytes.length);
  if (fault === 'corrupt') {
    bytes[bytes.length >> 1] = (bytes[bytes.length >> 1] as number) ^ 1;
  } else if (fault !== undefined) {
    const count = 'breakAfter' in fault ? fault.breakAfter : fault.stallAfter;
    response.write(bytes.subarray(0, count), () => {
      // Time for the bytes to arrive before the connection is torn down.
      if ('breakAfter' in fault) setTimeout(() => response.destroy(), 50);
    });
    return;
  }
  response.end(bytes);
}

/** Has this hub asked, and files kept under `root`, until vi.unstubAllEnvs(). */
export function askHub(hub: FakeHub, root: string): void {
  vi.stubEnv('HF_HOME', root);
  vi.stubEnv('HF_ENDPOINT', hub.url);
  for (const name of ['HF_HUB_CACHE', 'HF_TOKEN', 'HF_HUB_OFFLINE']) vi.stubEnv(name, '');
}
