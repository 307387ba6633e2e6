import type { FastifyReply, FastifyRequest } from 'fastify';
import { HttpError } from './http-error.js';

type Handler = (request: FastifyRequest, reply: FastifyReply) => unknown;

/** Bounds how many requests wait for the disk, or for a change, at a time: a slow disk must not fill the memory. */
export class WaitingLimit {
  #waiting = 0;

  constructor(
    private readonly most: number,
    private readonly onRefused: () => void,
  ) {}

  guard(handler: Handler): Handler {
    return async (request, reply) => {
      if (this.#waiting >= this.most) {
        this.onRefused();
        throw new HttpError(503, 'ERR_OVERLOADED', 'Too many requests wait for the disk. Try again later.', 1);
      }
      this.#waiting++;
      try {
        return await handler(request, reply);
      } finally {
        this.#waiting--;
      }
    };
  }
}
