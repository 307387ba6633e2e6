/**
 * Every error that Limbeck raises on purpose carries one of these codes. A code never changes its meaning.
 */
export type LimbeckErrorCode =
  | 'ERR_INVALID_ARGUMENT' // an option or argument has the wrong type or range
  | 'ERR_UNKNOWN_OPTION' // a key that no option has
  | 'ERR_FILE_NOT_FOUND'
  | 'ERR_FILE_FORMAT' // a file is not what its name says: truncated, not UTF-8, broken JSON
  | 'ERR_EMPTY_DATA' // a file or a filter left no rows
  | 'ERR_COLUMN_NOT_FOUND'
  | 'ERR_SAFETENSORS' // header, offsets or duplicate keys of a safetensors file are invalid
  | 'ERR_CHECKPOINT_MISMATCH' // a tensor is missing, extra, or has the wrong shape or dtype
  | 'ERR_UNSUPPORTED_MODEL' // config.json names a family or setting that is not supported
  | 'ERR_TOKENIZER' // the tokenizer cannot be read, or disagrees with the model's vocabulary
  | 'ERR_UNSUPPORTED_TOKENIZER' // tokenizer.json or what stands for it has a part that is not supported
  | 'ERR_UNKNOWN_ITEMS' // no item to go by is known: of a history, also an empty one without popularity, or of similar()
  | 'ERR_SHAPE_MISMATCH' // an array's length does not match the shape
  | 'ERR_OUT_OF_MEMORY'
  | 'ERR_NO_SPACE' // the disk is full
  | 'ERR_IO'
  | 'ERR_ABORTED'
  | 'ERR_DISPOSED' // use after dispose()
  | 'ERR_BUSY' // a second mutating call on an object that is at work
  | 'ERR_OVERLOADED' // too much waits already; try again a little later
  | 'ERR_LOCKED' // another process has it open
  | 'ERR_CORRUPT_LOG' // an event log has a damaged or missing part
  | 'ERR_NOT_FINITE' // training produced NaN or infinity
  | 'ERR_NATIVE_ADDON' // the native addon cannot be loaded
  | 'ERR_CUDA_UNAVAILABLE' // no GPU can be used: no library, no driver, no device, or one that is too old
  | 'ERR_CUDA' // a call of the CUDA driver or of cuBLASLt failed
  | 'ERR_DEVICE_LOST' // the GPU failed in the middle of work; engines on it are of no use any more, all others are
  | 'ERR_MISSING_DEPENDENCY' // an optional dependency is not installed
  | 'ERR_NETWORK' // a server cannot be reached, or keeps failing
  | 'ERR_ACCESS_DENIED' // a server wants another token
  | 'ERR_HASH_MISMATCH' // what was downloaded is not what the server has
  | 'ERR_INTERNAL';

/** An error with a stable `code`; the message says what was expected, what came, and what to do. */
export class LimbeckError extends Error {
  override readonly name = 'LimbeckError';
  readonly code: LimbeckErrorCode;

  constructor(code: LimbeckErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }

  /** The native addon's errors are of no class of ours: they have the name and a code. */
  static override [Symbol.hasInstance](value: unknown): value is LimbeckError {
    // A class that extends this one inherits the method.
    // biome-ignore lint/complexity/noThisInStatic: it is the class that was asked
    if (this !== LimbeckError) return Function.prototype[Symbol.hasInstance].call(this, value);
    return value instanceof Error && value.name === 'LimbeckError' && 'code' in value;
  }
}
