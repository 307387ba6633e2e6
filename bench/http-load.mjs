/**
 * A load client for one route of one HTTP/1.1 server: kept connections, requests that are bytes beforehand, and no more
 * parsing than it takes to find where an answer ends. What it costs is taken from the same two cores that the server has.
 */
import { connect } from 'node:net';

/**
 * @typedef {{ rps: number, p50: number, p99: number, max: number, count: number, statuses: Record<string, number> }} Result
 * Latencies in ms; `rps`, `p50` and `p99` are of answers with status 200.
 */

class Connection {
  /** @param {number} port */
  constructor(port) {
    this.socket = connect(port, '127.0.0.1');
    this.socket.setNoDelay(true);
    this.socket.on('data', (bytes) => this.#read(bytes));
    this.socket.on('error', () => this.#end('error'));
    this.socket.on('close', () => this.#end('closed'));
    this.pending = '';
    this.isOpen = true;
    /** @type {((status: string, body: string) => void) | undefined} */
    this.done = undefined;
  }

  /**
   * @param {Buffer | string} bytes
   * @param {(status: string, body: string) => void} done
   */
  send(bytes, done) {
    this.done = done;
    this.socket.write(bytes);
  }

  #read(bytes) {
    this.pending += bytes.toString('latin1');
    const head = this.pending.indexOf('\r\n\r\n');
    if (head < 0) return;
    const length = Number(/content-length: *(\d+)/i.exec(this.pending.slice(0, head))?.[1] ?? 0);
    if (this.pending.length < head + 4 + length) return;
    const status = this.pending.slice(9, 12);
    const body = this.pending.slice(head + 4, head + 4 + length);
    this.pending = this.pending.slice(head + 4 + length);
    const { done } = this;
    this.done = undefined;
    done?.(status, body);
  }

  #end(reason) {
    this.isOpen = false;
    const { done } = this;
    this.done = undefined;
    done?.(reason, '');
  }
}

/** @param {string} path @param {unknown} body */
export function post(path, body) {
  const text = JSON.stringify(body);
  const head = `POST ${path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: `;
  return Buffer.from(`${head}${Buffer.byteLength(text)}\r\n\r\n${text}`);
}

/**
 * @param {number} port
 * @param {number} count
 */
async function open(port, count) {
  const connections = Array.from({ length: count }, () => new Connection(port));
  await Promise.all(connections.map(({ socket }) => new Promise((done) => socket.once('connect', done))));
  return connections;
}

/** @param {number[]} latencies of status 200 */
function summary(latencies, statuses, seconds) {
  const sorted = Float64Array.from(latencies).sort();
  const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? Number.NaN;
  const count = Object.values(statuses).reduce((sum, n) => sum + n, 0);
  return { rps: sorted.length / seconds, p50: at(0.5), p99: at(0.99), max: at(1), count, statuses };
}

/**
 * Every connection sends its next request when the last one is answered.
 *
 * @param {{ port: number, connections: number, seconds?: number, requests?: number, next: (i: number) => Buffer,
 *   onAnswer?: (i: number, status: string, body: string) => void }} options until `seconds` are over or `requests` sent
 * @returns {Promise<Result>}
 */
export async function closedLoop({
  port,
  connections: count,
  seconds = Infinity,
  requests = Infinity,
  next,
  onAnswer,
}) {
  const connections = await open(port, count);
  const latencies = [];
  const statuses = {};
  let sent = 0;
  const start = performance.now();
  const end = start + seconds * 1000;
  await Promise.all(
    connections.map(
      (connection) =>
        new Promise((resolve) => {
          const go = () => {
            if (sent >= requests || performance.now() >= end || !connection.isOpen) return resolve(undefined);
            const i = sent++;
            const begin = performance.now();
            connection.send(next(i), (status, body) => {
              statuses[status] = (statuses[status] ?? 0) + 1;
              if (status === '200') latencies.push(performance.now() - begin);
              onAnswer?.(i, status, body);
              go();
            });
          };
          go();
        }),
    ),
  );
  const elapsed = (performance.now() - start) / 1000;
  for (const { socket } of connections) socket.destroy();
  return summary(latencies, statuses, elapsed);
}

/**
 * Requests become due at a fixed rate, whatever the server does; one that finds every connection taken waits, and its
 * latency counts from when it was due.
 *
 * @param {{ port: number, connections: number, seconds: number, rate: number, next: (i: number) => Buffer }} options
 * @returns {Promise<Result>}
 */
export async function openLoop({ port, connections: count, seconds, rate, next }) {
  const idle = await open(port, count);
  const all = [...idle];
  const latencies = [];
  const statuses = {};
  let due = 0; // requests so far
  let sent = 0; // of them; the others wait for a connection
  let answered = 0;
  const start = performance.now();
  const dispatch = () => {
    while (sent < due && idle.length > 0) {
      const connection = idle.pop();
      if (!connection?.isOpen) continue;
      const i = sent++;
      const at = start + (i / rate) * 1000;
      connection.send(next(i), (status) => {
        statuses[status] = (statuses[status] ?? 0) + 1;
        if (status === '200') latencies.push(performance.now() - at);
        answered++;
        idle.push(connection);
        dispatch();
      });
    }
  };
  const total = Math.floor(rate * seconds);
  await new Promise((resolve) => {
    const tick = () => {
      const now = performance.now() - start;
      due = Math.min(total, Math.floor((now / 1000) * rate) + 1);
      dispatch();
      if (answered >= total || now > seconds * 1000 + 10_000) resolve(undefined);
      else setTimeout(tick, 1);
    };
    tick();
  });
  for (const { socket } of all) socket.destroy();
  const unanswered = total - answered;
  if (unanswered > 0) statuses.unanswered = unanswered;
  return summary(latencies, statuses, seconds);
}
