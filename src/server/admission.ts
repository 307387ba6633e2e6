/**
 * Back-pressure. What waits for the event loop is what the operating system hands over in one turn of it; what was let in
 * waits for its answer. Once the two have taken `maxQueueMs`, or will, what comes is answered 503 at once, at a fraction of
 * the price of an answer: no request waits much longer, however many come. A burst may take the whole time; after it, for a
 * while, a part of it is allowed, so that what is let in is answered soon and there is time to refuse the rest. New
 * connections are accepted one a turn, so this is about those that are kept; what others wait is bounded by the operating
 * system's queue of them.
 */
import type { IncomingMessage, RequestListener, ServerResponse } from 'node:http';

export type ShedReason = 'queue' | 'draining';

export interface AdmissionOptions {
  /** How long a request may wait behind others, ms. */
  readonly maxQueueMs: number;
  readonly retryAfterSeconds: number;
  /** What the requests will take that were let in and not answered, ms. */
  readonly owedMs: () => number;
  /** Paths of supervision, and of the page, which is dead when one of its files does not come. */
  readonly alwaysAdmitted: ReadonlySet<string>;
  readonly onShed: (reason: ShedReason) => void;
}

/** Of `maxQueueMs`, for this long after a request would have waited longer than all of it, ms. */
const OVERLOADED_SHARE = 0.25;
const OVERLOADED_MS = 1000;

/**
 * A turn answers as many whatever it takes: one slow request or a pause of the machine is no overload, and neither is one
 * browser, which has six connections.
 */
const MIN_ANSWERED = 8;
/** The same while requests are refused. */
const MIN_ANSWERED_OVERLOADED = 4;

export class Admission {
  readonly #options: AdmissionOptions;
  readonly #body: string;
  /** Names and values. */
  readonly #headers: string[];
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
    this.#headers = Object.entries({
      'content-type': 'application/json; charset=utf-8',
      'content-length': String(this.#body.length),
      'retry-after': String(options.retryAfterSeconds),
    }).flat();
  }

  /** Puts the gate before a request listener. */
  guard(listener: RequestListener): RequestListener {
    return (request, response) => {
      if (this.#isOverdue() && !this.#options.alwaysAdmitted.has(pathOf(request))) this.#shed(request, response);
      else listener(request, response);
    };
  }

  #isOverdue(): boolean {
    const now = performance.now();
    if (this.#turnStart === 0) {
      this.#turnStart = now;
      this.#count = 0;
      setImmediate(this.#endTurn);
    }
    const isOverloaded = now - this.#lastOverdue < OVERLOADED_MS;
    if (++this.#count <= (isOverloaded ? MIN_ANSWERED_OVERLOADED : MIN_ANSWERED)) return false;
    const { maxQueueMs, owedMs } = this.#options;
    const expectedMs = now - this.#turnStart + owedMs();
    if (expectedMs > maxQueueMs) {
      this.#lastOverdue = now;
      return true;
    }
    return isOverloaded && expectedMs > OVERLOADED_SHARE * maxQueueMs;
  }

  #shed(request: IncomingMessage, response: ServerResponse): void {
    this.#options.onShed('queue');
    response.writeHead(503, this.#headers);
    response.end(request.method === 'HEAD' ? undefined : this.#body, 'latin1');
  }
}

function pathOf({ url = '' }: IncomingMessage): string {
  const end = url.indexOf('?');
  return end < 0 ? url : url.slice(0, end);
}
