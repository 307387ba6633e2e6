import { type IncomingMessage, type Server, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import type { FastifyInstance } from 'fastify';

export interface DrainOptions {
  readonly drainDelayMs: number;
  readonly drainMs: number;
}

/** How often connections are looked at over which nothing ever came, ms. */
const UNUSED_CHECK_MS = 50;

/** The orderly end of a service. */
export class Drain {
  readonly #options: DrainOptions;
  readonly #sockets = new Set<Socket>();
  isDraining = false;

  constructor(options: DrainOptions) {
    this.#options = options;
  }

  /** Takes note of the connections of the server that is to end. */
  watch(server: Server): void {
    server.on('connection', (socket) => {
      this.#sockets.add(socket);
      socket.once('close', () => this.#sockets.delete(socket));
    });
  }

  /**
   * First `/readyz` says no and every answer asks its client to leave, while all are still answered; then nothing new is
   * accepted, idle connections are closed and requests at work finished. @returns whether they were, before the deadline
   */
  async run(app: FastifyInstance): Promise<boolean> {
    this.isDraining = true;
    if (app.server.listening) {
      app.log.info(this.#options, 'draining');
      await sleep(this.#options.drainDelayMs);
    }
    let isFinished = true;
    const deadline = setTimeout(() => {
      isFinished = false;
      app.log.warn('requests are still at work after the deadline: their connections are cut');
      app.server.closeAllConnections();
    }, this.#options.drainMs);
    // Of connections whose answer began before the end: Node leaves them open when they have it.
    app.server.keepAliveTimeout = 1;
    // Node counts a connection over which nothing ever came as a request at work.
    const unused = setInterval(() => {
      for (const socket of this.#sockets) if (socket.bytesRead === 0) socket.destroy();
    }, UNUSED_CHECK_MS);
    try {
      await app.close();
    } finally {
      clearTimeout(deadline);
      clearInterval(unused);
    }
    return isFinished;
  }
}

/** A response that asks its client to leave while the service ends, whenever the request came and whoever answers it. */
export function leavingResponse(drain: Drain): typeof ServerResponse {
  return class<Request extends IncomingMessage> extends ServerResponse<Request> {
    override writeHead(statusCode: number, ...others: unknown[]): this {
      if (drain.isDraining) this.shouldKeepAlive = false;
      return super.writeHead(statusCode, ...(others as []));
    }
  };
}
