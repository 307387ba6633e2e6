/**
 * Refuses requests by their bytes, before Node's HTTP server makes an IncomingMessage and a ServerResponse of them: under
 * twice the load that can be answered, those were most of the work. Only what is one whole request beyond doubt is looked
 * at, on a connection that waits for nothing; anything else is the parser's, for good: it alone knows where the next one
 * begins.
 */
import type { IncomingMessage, ServerResponse } from 'node:http';

interface Exchange {
  request: IncomingMessage;
  response: ServerResponse;
}

type Socket = IncomingMessage['socket'];

export class EarlyRefusal {
  readonly #answer: Buffer;
  readonly #refuses: () => boolean;
  readonly #isDraining: () => boolean;
  /** What was asked for last over each connection that is watched, or was. */
  readonly #last = new WeakMap<Socket, Exchange>();
  #isLetIn = false;

  /**
   * @param answer the bytes of a refusal
   * @param refuses decides about the next request, and counts it
   * @param isDraining whether answers ask their clients to leave: this one does not, so that it is the parser's turn
   */
  constructor(answer: Buffer, refuses: () => boolean, isDraining: () => boolean) {
    this.#answer = answer;
    this.#refuses = refuses;
    this.#isDraining = isDraining;
  }

  /** Whether the request that Node reads now was decided about, and let in. */
  get isLetIn(): boolean {
    return this.#isLetIn;
  }

  /** Takes note of a request that Node made. */
  note(request: IncomingMessage, response: ServerResponse): void {
    const last = this.#last.get(request.socket);
    if (last === undefined) return;
    last.request = request;
    last.response = response;
  }

  /**
   * From now on, requests over this connection are decided about by their bytes. Node reads such a connection like any
   * stream, which costs it 10 µs more for each request that is let in: this is for those that are mostly refused.
   */
  watch(request: IncomingMessage, response: ServerResponse): void {
    const { socket } = request;
    if (this.#last.has(socket)) return;
    const last = { request, response };
    this.#last.set(socket, last);
    // Not while Node reads from it.
    setImmediate(() => {
      const [parse, ...others] = socket.listeners('data') as ((bytes: Buffer) => void)[];
      if (parse === undefined || others.length > 0 || socket.destroyed) return;
      const take = (bytes: Buffer) => {
        const isIdle = last.request.complete && last.response.writableFinished && socket.writableLength === 0;
        if (!isIdle || this.#isDraining() || !isPlainPost(bytes)) {
          socket.off('data', take);
          socket.on('data', parse);
          parse(bytes);
        } else if (this.#refuses()) {
          socket.write(this.#answer);
        } else {
          this.#isLetIn = true;
          try {
            parse(bytes);
          } finally {
            this.#isLetIn = false;
          }
        }
      };
      socket.off('data', parse);
      socket.on('data', take);
    });
  }
}

const HEAD_END = Buffer.from('\r\n\r\n');
const MAX_HEAD_BYTES = 4096;
const FIRST_LINE = /^POST \/[!-~]* HTTP\/1\.1\r\n/;
const CONTENT_LENGTH = /\r\ncontent-length: ?(\d{1,9})\r\n/i;
/** Headers that make a request end elsewhere, or its connection; lines that go on, or end otherwise. */
const OTHER_FRAMING =
  /\r\n(?:transfer-encoding|expect|upgrade|trailer|connection(?!: ?keep-alive\r\n)|[ \t])|[^\r]\n|\r[^\n]/i;
const LENGTH_NAME = /content-length/gi;

/** Whether bytes are one POST with a body of a stated length, all of it and nothing else. */
export function isPlainPost(bytes: Buffer): boolean {
  const end = bytes.indexOf(HEAD_END);
  if (end < 0 || end > MAX_HEAD_BYTES) return false;
  const head = bytes.toString('latin1', 0, end + 2);
  if (!FIRST_LINE.test(head) || OTHER_FRAMING.test(head)) return false;
  const length = CONTENT_LENGTH.exec(head)?.[1];
  if (length === undefined || head.match(LENGTH_NAME)?.length !== 1) return false;
  return end + HEAD_END.length + Number(length) === bytes.length;
}
