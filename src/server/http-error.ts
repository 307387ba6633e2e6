import { LimbeckError, type LimbeckErrorCode } from '../errors.js';

/** Codes of answers that no library call gives. */
export type HttpErrorCode =
  | 'ERR_MALFORMED_REQUEST'
  | 'ERR_UNAUTHORIZED'
  | 'ERR_FORBIDDEN'
  | 'ERR_NOT_FOUND'
  | 'ERR_METHOD_NOT_ALLOWED'
  | 'ERR_TIMEOUT'
  | 'ERR_CONFLICT'
  | 'ERR_BODY_TOO_LARGE'
  | 'ERR_UNSUPPORTED_MEDIA_TYPE'
  | 'ERR_RATE_LIMITED'
  | 'ERR_OVERLOADED'
  | 'ERR_MODEL_REFUSED'
  | 'ERR_UNAVAILABLE';

/** An answer that is no success; the message is for whoever asked, so it names no path and nothing internal. */
export class HttpError extends Error {
  override readonly name = 'HttpError';

  /** @param retryAfterSeconds becomes the header Retry-After */
  constructor(
    readonly statusCode: number,
    readonly code: HttpErrorCode | LimbeckErrorCode,
    message: string,
    readonly retryAfterSeconds?: number,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** Errors of the library whose message speaks of the request alone. */
const OF_THE_REQUEST: Partial<Record<LimbeckErrorCode, number>> = {
  ERR_INVALID_ARGUMENT: 400,
  ERR_UNKNOWN_OPTION: 400,
  ERR_UNKNOWN_ITEMS: 422,
};

/** Errors of the library whose message may name files: the answer says what they mean. */
const OF_THE_SERVICE: Record<string, readonly [number, string, number?]> = {
  ERR_NO_SPACE: [507, 'The disk is full: nothing was stored. Send it again later.', 30],
  ERR_OVERLOADED: [503, 'Too much waits to be stored. Send it again later.', 1],
  ERR_BUSY: [409, 'Another change is at work. Try again when it is done.'],
  ERR_IO: [503, 'The storage of the service failed: nothing was stored.', 30],
  ERR_DISPOSED: [503, 'The service is closing.', 1],
  ERR_OUT_OF_MEMORY: [503, 'The service is short of memory.', 30],
};

/** Errors of Fastify and of the HTTP parser. */
const OF_HTTP: Record<string, readonly [number, HttpErrorCode, string]> = {
  FST_ERR_CTP_BODY_TOO_LARGE: [413, 'ERR_BODY_TOO_LARGE', 'The body is larger than the service takes.'],
  FST_ERR_CTP_INVALID_MEDIA_TYPE: [415, 'ERR_UNSUPPORTED_MEDIA_TYPE', 'Send the body as application/json.'],
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: [400, 'ERR_MALFORMED_REQUEST', 'Content-Length does not match the body.'],
  FST_ERR_CTP_EMPTY_JSON_BODY: [400, 'ERR_MALFORMED_REQUEST', 'Expected a JSON body; it is empty.'],
  FST_ERR_BAD_URL: [400, 'ERR_MALFORMED_REQUEST', 'The path is not valid percent-encoded UTF-8.'],
  FST_ERR_MAX_PARAM_LENGTH: [414, 'ERR_MALFORMED_REQUEST', 'A part of the path is too long.'],
  ECONNRESET: [400, 'ERR_MALFORMED_REQUEST', 'The connection ended before the request did.'],
};

/** What is answered for an error; undefined message of anything unforeseen stays in the log. */
export function toHttpError(error: unknown): HttpError {
  if (error instanceof HttpError) return error;
  const { code, message } = error as { code?: unknown; message?: string };
  if (error instanceof LimbeckError) {
    const status = OF_THE_REQUEST[error.code];
    if (status !== undefined) return new HttpError(status, error.code, error.message, undefined, { cause: error });
    const known = OF_THE_SERVICE[error.code];
    if (known !== undefined) {
      const [statusCode, text, retryAfter] = known;
      return new HttpError(statusCode, error.code, text, retryAfter, { cause: error });
    }
  } else if (typeof code === 'string' && OF_HTTP[code] !== undefined) {
    const [statusCode, name, text] = OF_HTTP[code];
    return new HttpError(statusCode, name, text, undefined, { cause: error });
  }
  return new HttpError(500, 'ERR_INTERNAL', 'Something failed inside the service; its log says what.', undefined, {
    cause: error ?? message,
  });
}

export function errorBody(error: HttpError, requestId: string) {
  return { error: { code: error.code, message: error.message, requestId } };
}
