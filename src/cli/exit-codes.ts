import type { LimbeckErrorCode } from '../errors.js';

/** Exit codes of the command; printed by `limbeck --help`. */
export const EXIT = {
  ok: 0,
  internal: 1,
  usage: 2,
  file: 3,
  resources: 4,
  installation: 5,
  /** 128 + SIGINT, as shells count. */
  aborted: 130,
} as const;

const BY_CODE: Record<LimbeckErrorCode, number> = {
  ERR_INVALID_ARGUMENT: EXIT.usage,
  ERR_UNKNOWN_OPTION: EXIT.usage,
  ERR_FILE_NOT_FOUND: EXIT.file,
  ERR_FILE_FORMAT: EXIT.file,
  ERR_EMPTY_DATA: EXIT.file,
  ERR_COLUMN_NOT_FOUND: EXIT.file,
  ERR_SAFETENSORS: EXIT.file,
  ERR_CHECKPOINT_MISMATCH: EXIT.file,
  ERR_UNSUPPORTED_MODEL: EXIT.file,
  ERR_TOKENIZER: EXIT.file,
  ERR_UNSUPPORTED_TOKENIZER: EXIT.file,
  ERR_UNKNOWN_ITEMS: EXIT.file,
  ERR_NOT_FINITE: EXIT.file,
  ERR_CORRUPT_LOG: EXIT.file,
  ERR_OUT_OF_MEMORY: EXIT.resources,
  ERR_NO_SPACE: EXIT.resources,
  ERR_NETWORK: EXIT.resources,
  ERR_ACCESS_DENIED: EXIT.resources,
  ERR_HASH_MISMATCH: EXIT.resources,
  ERR_IO: EXIT.resources,
  ERR_LOCKED: EXIT.resources,
  ERR_OVERLOADED: EXIT.resources,
  ERR_CUDA: EXIT.resources,
  ERR_DEVICE_LOST: EXIT.resources,
  ERR_NATIVE_ADDON: EXIT.installation,
  ERR_CUDA_UNAVAILABLE: EXIT.installation,
  ERR_MISSING_DEPENDENCY: EXIT.installation,
  ERR_ABORTED: EXIT.aborted,
  // Nothing that a person types or stores leads to these; they are ours.
  ERR_SHAPE_MISMATCH: EXIT.internal,
  ERR_DISPOSED: EXIT.internal,
  ERR_BUSY: EXIT.internal,
  ERR_INTERNAL: EXIT.internal,
};

/** The `code` of an error, where it has one of ours. */
export function codeOf(error: unknown): LimbeckErrorCode | undefined {
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  return typeof code === 'string' && Object.hasOwn(BY_CODE, code) ? (code as LimbeckErrorCode) : undefined;
}

/** An error without a code of ours is an internal one. */
export function exitCodeOf(error: unknown): number {
  const code = codeOf(error);
  return code === undefined ? EXIT.internal : BY_CODE[code];
}

export const EXIT_CODE_HELP = `
Exit codes: 0 success, 1 internal error, 2 wrong usage or option, 3 a file or its content,
4 memory, disk, GPU or input/output, 5 installation, 130 stopped with Ctrl-C.
With --json, an error is the last line of stdout: {"error":{"code","message"}}. LIMBECK_DEBUG=1 prints stacks.`;
