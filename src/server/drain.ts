import { setTimeout as sleep } from 'node:timers/promises';
import type { FastifyInstance } from 'fastify';

export interface DrainOptions {
  readonly drainDelayMs: number;
  readonly drainMs: number;
}

/** The orderly end of a service. */
export class Drain {
  readonly #options: DrainOptions;
  isDraining = false;

  constructor(options: DrainOptions) {
    this.#options = options;
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
    try {
      await app.close();
    } finally {
      clearTimeout(deadline);
    }
    return isFinished;
  }
}
