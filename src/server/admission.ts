/**
 * Back-pressure. What waits for the event loop is what the operating system hands over in one turn of it; what was let in
 * waits for its answer. Once the two have taken `maxQueueMs`, or will, what comes is answered 503 at once, at a fraction of
 * the price of an answer: no request waits much longer, however many come. A burst may take the whole time; while much is
 * refused, a part of it is allowed, so that what is let in is answered soon and there is time to refuse the rest. New
 * connections are accepted one a turn, so this is about those that are kept; what others wait is bounded by the operating
 * system's queue of them.
 */
import type { IncomingMessage, RequestListener } from 'node:http';
import { EarlyRefusal } from './early-refusal.js';

export interface AdmissionOptions {
  /** How long a request may wait behind others, ms. */
  readonly maxQueueMs: number;
  readonly retryAfterSeconds: number;
  /** What the requests will take that were let in and not answered, ms. */
  readonly owedMs: () => number;
  /** Paths of supervision, and of the page, which is dead when one of its files does not come. */
  readonly alwaysAdmitted: ReadonlySet<string>;
  /** Whether the service is closing. */
  readonly isDraining: () => boolean;
  readonly onShed: () => void;
}

/** Much is refused: more than this share of some hundreds of the last requests. */
const MUCH_REFUSED = 0.25;
const NEW_SHARE = 0.002;

/** Of `maxQueueMs`, while much is refused, for this long after a request would have waited longer than all of it, ms. */
const OVERLOADED_SHARE = 1 / 3;
const OVERLOADED_MS = 1000;

/**
 * A turn answers as many whatever it takes: one slow request or a pause of the machine is no overload, and neither is one
 * browser, which has six connections.
 */
const MIN_ANSWERED = 8;
/** The same under overload. */
const MIN_ANSWERED_OVERLOADED = 1;

export class Admission {
  readonly #options: AdmissionOptions;
  readonly #body: string;
  /** Names and values. */
  readonly #headers: string[];
  readonly #early: EarlyRefusal;
  /** Of the last requests, those that were refused. */
  #refusedShare = 0;
  /** When the first request of this turn came, ms; 0 = none came yet. */
  #turnStart = 0;
  /** Requests of this turn. */
  #count = 0;
  /** When a request would have waited longer than `maxQueueMs` last, ms. */
  #lastOverdue = Number.NEGATIVE_INFINITY;
  readonly #endTurn = () => {
    this.#turnStart = 0;
  };

  constructor(options: AdmissionOptions) {
    this.#options = options;
    const message = 'More requests came than can be answered in time. Try again later.';
    this.#body = JSON.stringify({ error: { code: 'ERR_OVERLOADED', message, requestId: '' } });
    const headers = Object.entries({
      'content-type': 'application/json; charset=utf-8',
      'content-length': String(this.#body.length),
      'retry-after': String(options.retryAfterSeconds),
    });
    this.#headers = headers.flat();
    const lines = ['HTTP/1.1 503 Service Unavailable', ...headers.map((header) => header.join(': ')), '', this.#body];
    const refuses = () => {
      const isRefused = this.#isOverdue();
      if (isRefused) options.onShed();
      return isRefused;
    };
    this.#early = new EarlyRefusal(Buffer.from(lines.join('\r\n')), refuses, options.isDraining);
  }

  /** Puts the gate before a request listener. */
  guard(listener: RequestListener): RequestListener {
    return (request, response) => {
      this.#early.note(request, response);
      if (this.#early.isLetIn || !this.#isOverdue() || this.#options.alwaysAdmitted.has(pathOf(request))) {
        listener(request, response);
        return;
      }
      this.#options.onShed();
      if (this.#refusedShare > MUCH_REFUSED) this.#early.watch(request, response);
      response.writeHead(503, this.#headers);
      response.end(request.method === 'HEAD' ? undefined : this.#body, 'latin1');
    };
  }

  /** Decides about the next request. */
  #isOverdue(): boolean {
    const isOverdue = this.#isBehind();
    this.#refusedShare += NEW_SHARE * (Number(isOverdue) - this.#refusedShare);
    return isOverdue;
  }

  #isBehind(): boolean {
    const now = performance.now();
    if (this.#turnStart === 0) {
      this.#turnStart = now;
      this.#count = 0;
      setImmediate(this.#endTurn);
    }
    const isOverloaded = this.#refusedShare > MUCH_REFUSED && now - this.#lastOverdue < OVERLOADED_MS;
    if (++this.#count <= (isOverloaded ? MIN_ANSWERED_OVERLOADED : MIN_ANSWERED)) return false;
    const { maxQueueMs, owedMs } = this.#options;
    const expectedMs = now - this.#turnStart + owedMs();
    if (expectedMs > maxQueueMs) {
      this.#lastOverdue = now;
      return true;
    }
    return isOverloaded && expectedMs > OVERLOADED_SHARE * maxQueueMs;
  }
}

function pathOf({ url = '' }: IncomingMessage): string {
  const end = url.indexOf('?');
  return end < 0 ? url : url.slice(0, end);
}
