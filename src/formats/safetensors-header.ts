/** The header of a safetensors file, and every check that it must pass before a tensor is read. */
import { LimbeckError } from '../errors.js';
import { isJsonObject, type JsonObject, type JsonValue, parseStrictJson } from './strict-json.js';

/** The reference reader's own limit. */
export const MAX_HEADER_BYTES = 100_000_000;
/** Longest tensor name, in characters; real names stay under 100. */
export const MAX_TENSOR_NAME_LENGTH = 512;
/** A model of 1,024 layers has about 10,000. */
export const MAX_TENSORS = 100_000;
/** { name: { shape: [ … ] } } has 3 levels. */
const MAX_HEADER_DEPTH = 8;
const LENGTH_BYTES = 8;

/** Bytes of one value. */
export const DTYPE_BYTES = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  I64: 8,
  U64: 8,
  I32: 4,
  U32: 4,
  I16: 2,
  U16: 2,
  I8: 1,
  U8: 1,
  BOOL: 1,
} as const;

export type TensorDtype = keyof typeof DTYPE_BYTES;

export interface TensorInfo {
  readonly dtype: TensorDtype;
  readonly shape: readonly number[];
  /** Byte range in the data section. */
  readonly begin: number;
  readonly end: number;
}

export interface SafetensorsHeader {
  /** In the order of their bytes. */
  readonly tensors: Map<string, TensorInfo>;
  readonly metadata: Readonly<Record<string, string>>;
  /** Where the data section starts in the file, in bytes. */
  readonly dataOffset: number;
}

/**
 * Reads and checks a header. `read(position, length)` returns exactly that many bytes of the file.
 *
 * @throws LimbeckError ERR_SAFETENSORS with the file, what was expected, and what was found
 */
export async function parseSafetensorsHeader(
  path: string,
  fileBytes: number,
  read: (position: number, length: number) => Promise<Uint8Array>,
): Promise<SafetensorsHeader> {
  if (fileBytes < LENGTH_BYTES) fail(path, `at least ${LENGTH_BYTES} bytes`, `${fileBytes} bytes`);
  const lengthBytes = await read(0, LENGTH_BYTES);
  const declared = new DataView(lengthBytes.buffer, lengthBytes.byteOffset).getBigUint64(0, true);
  const largest = Math.min(MAX_HEADER_BYTES, fileBytes - LENGTH_BYTES);
  if (declared > BigInt(largest)) fail(path, `a header of at most ${largest} bytes`, `a header length of ${declared}`);
  const headerBytes = Number(declared);
  const header = parseHeaderJson(path, await read(LENGTH_BYTES, headerBytes));

  const metadata = parseMetadata(path, header['__metadata__']);
  const entries = Object.entries(header).filter(([name]) => name !== '__metadata__');
  if (entries.length > MAX_TENSORS) fail(path, `at most ${MAX_TENSORS} tensors`, `${entries.length}`);
  const tensors = entries.map(([name, entry]): [string, TensorInfo] => [name, parseTensor(path, name, entry)]);
  tensors.sort(([, a], [, b]) => a.begin - b.begin || a.end - b.end);

  const dataOffset = LENGTH_BYTES + headerBytes;
  let end = 0;
  for (const [name, info] of tensors) {
    if (info.begin !== end) fail(path, `tensor '${name}' to begin at offset ${end}`, `offset ${info.begin}`);
    end = info.end;
  }
  if (dataOffset + end !== fileBytes) {
    fail(path, `a file of ${dataOffset + end} bytes (as its header says)`, `${fileBytes} bytes`);
  }
  return { tensors: new Map(tensors), metadata, dataOffset };
}

function parseHeaderJson(path: string, bytes: Uint8Array): JsonObject {
  if (bytes[0] !== 0x7b)
    fail(path, "a header that begins with '{'", bytes.length === 0 ? 'no header' : `byte ${bytes[0]}`);
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (error) {
    throw new LimbeckError('ERR_SAFETENSORS', `'${path}': expected a UTF-8 header, found other bytes`, {
      cause: error,
    });
  }
  return parseStrictJson(text, {
    file: path,
    maxDepth: MAX_HEADER_DEPTH,
    numbers: 'unsignedIntegers',
    code: 'ERR_SAFETENSORS',
  }) as JsonObject;
}

function parseMetadata(path: string, value: JsonValue | undefined): Record<string, string> {
  if (value === undefined) return Object.create(null);
  if (!isJsonObject(value)) return fail(path, '__metadata__ to be an object', show(value));
  for (const [key, text] of Object.entries(value)) {
    if (typeof text !== 'string') fail(path, `__metadata__ '${key}' to be a string`, show(text));
  }
  return value as Record<string, string>;
}

function parseTensor(path: string, name: string, entry: JsonValue): TensorInfo {
  if (name.length > MAX_TENSOR_NAME_LENGTH) {
    fail(path, `tensor names of at most ${MAX_TENSOR_NAME_LENGTH} characters`, `one of ${name.length}`);
  }
  if (!isJsonObject(entry)) return fail(path, `an object for tensor '${name}'`, show(entry));
  const { dtype, shape, data_offsets: offsets, ...rest } = entry;
  const [unknownKey] = Object.keys(rest);
  if (unknownKey !== undefined) fail(path, `dtype, shape and data_offsets for tensor '${name}'`, `key '${unknownKey}'`);
  if (typeof dtype !== 'string' || !Object.hasOwn(DTYPE_BYTES, dtype)) {
    return fail(path, `tensor '${name}' to have a dtype of ${Object.keys(DTYPE_BYTES).join(', ')}`, show(dtype));
  }
  if (!isIntegerArray(shape)) return fail(path, `an integer shape for tensor '${name}'`, show(shape));
  if (!isIntegerArray(offsets) || offsets.length !== 2) {
    return fail(path, `two integer data_offsets for tensor '${name}'`, show(offsets));
  }
  const [begin, end] = offsets as [number, number];
  const sizeBytes = product(path, name, shape) * DTYPE_BYTES[dtype as TensorDtype];
  if (end - begin !== sizeBytes) {
    fail(path, `${sizeBytes} bytes for tensor '${name}' (${dtype} [${shape.join(', ')}])`, `${end - begin} bytes`);
  }
  return { dtype: dtype as TensorDtype, shape, begin, end };
}

function product(path: string, name: string, shape: readonly number[]): number {
  let result = 1;
  for (const dimension of shape) {
    result *= dimension;
    // 8 bytes a value at most: the byte count must be exact too.
    if (!Number.isSafeInteger(result * 8)) fail(path, `a smaller shape for tensor '${name}'`, `[${shape.join(', ')}]`);
  }
  return result;
}

/** Numbers of the header are unsigned safe integers already. */
function isIntegerArray(value: JsonValue | undefined): value is number[] {
  return Array.isArray(value) && value.every((element) => typeof element === 'number');
}

function show(value: JsonValue | undefined): string {
  return value === undefined ? 'nothing' : JSON.stringify(value);
}

function fail(path: string, expected: string, found: string): never {
  const shown = found.length <= 200 ? found : `${found.slice(0, 200)}…`;
  throw new LimbeckError(
    'ERR_SAFETENSORS',
    `'${path}': expected ${expected}, found ${shown}; the file is damaged or not safetensors`,
  );
}
