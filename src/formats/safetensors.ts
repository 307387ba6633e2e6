/**
 * The safetensors format: 8 bytes little-endian header length, a JSON header, then the tensors end to end.
 * Everything in the header is checked before a byte is allocated for a tensor. Two checks are stricter than the reference
 * reader: duplicate keys, and the limits named below. Hosts are little-endian, as the format is.
 *
 * @see https://huggingface.co/docs/safetensors, section Format
 */
import type { FileHandle } from 'node:fs/promises';
import { LimbeckError } from '../errors.js';
import { createFileAtomic, openRegularFile, type UnfinishedFile, writeFileAtomic } from './files.js';
import { DTYPE_BYTES, parseSafetensorsHeader, type TensorDtype, type TensorInfo } from './safetensors-header.js';

export type { TensorDtype, TensorInfo } from './safetensors-header.js';
export { DTYPE_BYTES, MAX_HEADER_BYTES, MAX_TENSOR_NAME_LENGTH, MAX_TENSORS } from './safetensors-header.js';

/** Half floats (`F16`, `BF16`) are kept as their bits in a Uint16Array; see {@link asFloat32}. */
export type TensorData =
  | Float32Array
  | Float64Array
  | Int32Array
  | Uint32Array
  | BigInt64Array
  | BigUint64Array
  | Int16Array
  | Uint16Array
  | Int8Array
  | Uint8Array;

export interface SafetensorsTensor {
  readonly dtype: TensorDtype;
  readonly shape: readonly number[];
  readonly data: TensorData;
}

export interface Safetensors {
  readonly tensors: Map<string, SafetensorsTensor>;
  readonly metadata: Readonly<Record<string, string>>;
}

export interface WritableTensor {
  readonly shape: readonly number[];
  readonly data: Float32Array | Int32Array | BigInt64Array | Uint8Array | Uint16Array;
  /** What the bits of a Uint16Array are. @defaultValue F32, I32, I64 or U8, by the array */
  readonly dtype?: 'F16' | 'BF16';
}

/** Node reads at most 2^31 - 1 bytes a call. */
const READ_CHUNK_BYTES = 64 * 1024 * 1024;

const ARRAY_TYPES = {
  F64: Float64Array,
  F32: Float32Array,
  F16: Uint16Array,
  BF16: Uint16Array,
  I64: BigInt64Array,
  U64: BigUint64Array,
  I32: Int32Array,
  U32: Uint32Array,
  I16: Int16Array,
  U16: Uint16Array,
  I8: Int8Array,
  U8: Uint8Array,
  BOOL: Uint8Array,
} as const satisfies Record<TensorDtype, unknown>;

/** An open file, whose tensors are read piece by piece into memory of the caller. */
export class SafetensorsFile {
  private constructor(
    readonly path: string,
    /** In the order of the file. */
    readonly tensors: ReadonlyMap<string, TensorInfo>,
    readonly metadata: Readonly<Record<string, string>>,
    private readonly file: FileHandle,
    private readonly dataOffset: number,
  ) {}

  /** The caller closes it. @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_SAFETENSORS, ERR_IO */
  static async open(path: string): Promise<SafetensorsFile> {
    const { file, sizeBytes } = await openRegularFile(path);
    try {
      const { tensors, metadata, dataOffset } = await readHeader(file, sizeBytes, path);
      return new SafetensorsFile(path, tensors, metadata, file, dataOffset);
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /**
   * Fills `bytes` with those of a tensor of this file, from its byte `offset` on.
   *
   * @throws LimbeckError ERR_SAFETENSORS (the file became shorter), ERR_IO
   */
  async read({ begin }: TensorInfo, bytes: Uint8Array, offset = 0): Promise<void> {
    await readFully(this.file, bytes, this.dataOffset + begin + offset, this.path);
  }

  close(): Promise<void> {
    return this.file.close();
  }
}

/**
 * Reads every tensor into memory of its own; files above 2 GB are read piece by piece.
 *
 * @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_SAFETENSORS, ERR_OUT_OF_MEMORY, ERR_IO
 */
export async function readSafetensors(path: string): Promise<Safetensors> {
  const file = await SafetensorsFile.open(path);
  try {
    const tensors = new Map<string, SafetensorsTensor>();
    for (const [name, info] of file.tensors) {
      const buffer = allocate(info.end - info.begin, name, path);
      await file.read(info, new Uint8Array(buffer));
      tensors.set(name, { dtype: info.dtype, shape: info.shape, data: new ARRAY_TYPES[info.dtype](buffer) });
    }
    return { tensors, metadata: file.metadata };
  } finally {
    await file.close();
  }
}

/**
 * Reads the header alone: names, dtypes, shapes and byte ranges, in the order of the file.
 *
 * @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_SAFETENSORS, ERR_IO
 */
export async function listSafetensors(
  path: string,
): Promise<{ tensors: ReadonlyMap<string, TensorInfo>; metadata: Readonly<Record<string, string>> }> {
  const file = await SafetensorsFile.open(path);
  await file.close();
  return { tensors: file.tensors, metadata: file.metadata };
}

/** A file of which parts are read. The caller closes it. */
export interface OpenSafetensors {
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  /** Fills `target` with the bytes from `begin` of the data section on. @throws LimbeckError ERR_SAFETENSORS, ERR_IO */
  read(begin: number, target: Uint8Array): Promise<void>;
  close(): Promise<void>;
}

/**
 * Reads the header and keeps the file open.
 *
 * @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_SAFETENSORS, ERR_IO
 */
export async function openSafetensors(path: string): Promise<OpenSafetensors> {
  const { file, sizeBytes } = await openRegularFile(path);
  try {
    const { tensors, dataOffset } = await readHeader(file, sizeBytes, path);
    return {
      tensors,
      read: (begin, target) => readFully(file, target, dataOffset + begin, path),
      close: () => file.close(),
    };
  } catch (error) {
    await file.close();
    throw error;
  }
}

/**
 * Writes tensors sorted by name; equal tensors give equal bytes. The file is replaced as a whole or not at all.
 *
 * @throws LimbeckError ERR_SAFETENSORS (a name twice), ERR_SHAPE_MISMATCH, ERR_NO_SPACE, ERR_IO
 */
export async function writeSafetensors(
  path: string,
  tensors: Iterable<readonly [string, WritableTensor]>,
  metadata?: Readonly<Record<string, string>>,
): Promise<void> {
  const sorted = sortedByName(tensors);
  const layouts = sorted.map(([name, { shape, data, dtype }]) => {
    if (countOf(shape) !== data.length) {
      throw new LimbeckError(
        'ERR_SHAPE_MISMATCH',
        `Cannot write '${path}': tensor '${name}' of shape [${shape.join(', ')}] has ${data.length} values`,
      );
    }
    return [name, { shape, dtype: dtype ?? dtypeOf(data) }] as const;
  });
  await writeFileAtomic(path, [headOf(path, layouts, metadata), ...sorted.map(([, { data }]) => bytesOf(data))]);
}

export interface TensorLayout {
  readonly dtype: TensorDtype;
  readonly shape: readonly number[];
}

/**
 * Writes the file of {@link writeSafetensors} piece by piece: the values of a tensor in their order, those of several in
 * any order. Nothing is held in memory.
 */
export class SafetensorsWriter {
  readonly #path: string;
  readonly #file: UnfinishedFile;
  /** Places in the file. */
  readonly #tensors: Map<string, { next: number; readonly end: number }>;

  private constructor(path: string, file: UnfinishedFile, tensors: Map<string, { next: number; end: number }>) {
    this.#path = path;
    this.#file = file;
    this.#tensors = tensors;
  }

  /** @throws LimbeckError ERR_SAFETENSORS (a name twice), ERR_NO_SPACE, ERR_IO */
  static async create(path: string, layouts: Iterable<readonly [string, TensorLayout]>): Promise<SafetensorsWriter> {
    const sorted = sortedByName(layouts);
    const head = headOf(path, sorted);
    const tensors = new Map<string, { next: number; end: number }>();
    let offset = head.length;
    for (const [name, { dtype, shape }] of sorted) {
      const end = offset + countOf(shape) * DTYPE_BYTES[dtype];
      tensors.set(name, { next: offset, end });
      offset = end;
    }
    const file = await createFileAtomic(path);
    const writer = new SafetensorsWriter(path, file, tensors);
    try {
      await file.write(head, 0);
    } catch (error) {
      await file.discard();
      throw error;
    }
    return writer;
  }

  /** @throws LimbeckError ERR_SHAPE_MISMATCH (more values than the tensor has), ERR_NO_SPACE, ERR_IO */
  async append(name: string, data: WritableTensor['data']): Promise<void> {
    const tensor = this.#tensors.get(name);
    const bytes = bytesOf(data);
    if (tensor === undefined || tensor.next + bytes.length > tensor.end) {
      throw new LimbeckError('ERR_SHAPE_MISMATCH', `Cannot write '${this.#path}': more values than '${name}' has`);
    }
    const position = tensor.next;
    tensor.next += bytes.length;
    await this.#file.write(bytes, position);
  }

  /** Gives the file its name. @throws LimbeckError ERR_SHAPE_MISMATCH (values are missing), ERR_NO_SPACE, ERR_IO */
  async finish(): Promise<void> {
    for (const [name, { next, end }] of this.#tensors) {
      if (next === end) continue;
      throw new LimbeckError('ERR_SHAPE_MISMATCH', `Cannot write '${this.#path}': '${name}' lacks ${end - next} bytes`);
    }
    await this.#file.finish();
  }

  /** Removes what was written, unless it was finished. */
  discard(): Promise<void> {
    return this.#file.discard();
  }
}

function sortedByName<T>(tensors: Iterable<readonly [string, T]>): (readonly [string, T])[] {
  return [...tensors].sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
}

function countOf(shape: readonly number[]): number {
  return shape.reduce((product, dimension) => product * dimension, 1);
}

/** What stands before the values. @throws LimbeckError ERR_SAFETENSORS (a name twice) */
function headOf(
  path: string,
  layouts: readonly (readonly [string, TensorLayout])[],
  metadata?: Readonly<Record<string, string>>,
): Uint8Array {
  const header: Record<string, unknown> = Object.create(null);
  if (metadata !== undefined) header['__metadata__'] = metadata;
  let offset = 0;
  for (const [name, { dtype, shape }] of layouts) {
    if (name in header || name === '__metadata__') {
      throw new LimbeckError('ERR_SAFETENSORS', `Cannot write '${path}': the tensor name '${name}' is taken`);
    }
    const end = offset + countOf(shape) * DTYPE_BYTES[dtype];
    header[name] = { dtype, shape, data_offsets: [offset, end] };
    offset = end;
  }
  const json = Buffer.from(JSON.stringify(header));
  const headerBytes = Math.ceil(json.length / 8) * 8;
  const head = Buffer.alloc(8 + headerBytes, ' ');
  head.writeBigUInt64LE(BigInt(headerBytes));
  head.set(json, 8);
  return head;
}

/** Dtypes that {@link asFloat32} takes. */
export type FloatDtype = 'F32' | 'F16' | 'BF16' | 'F64';

export function isFloatDtype(dtype: TensorDtype): dtype is FloatDtype {
  return dtype === 'F32' || dtype === 'F16' || dtype === 'BF16' || dtype === 'F64';
}

/**
 * The values as float32: the same array for F32, widened for F16 and BF16, rounded for F64.
 *
 * @throws LimbeckError ERR_CHECKPOINT_MISMATCH for an integer dtype
 */
export function asFloat32(tensor: SafetensorsTensor): Float32Array {
  const { dtype, data } = tensor;
  if (data instanceof Float32Array) return data;
  if (data instanceof Float64Array) return Float32Array.from(data);
  if (dtype === 'BF16') return widenBfloat16(data as Uint16Array);
  if (dtype === 'F16') return widenFloat16(data as Uint16Array);
  throw new LimbeckError('ERR_CHECKPOINT_MISMATCH', `Expected a tensor of F32, F16, BF16 or F64, got ${dtype}`);
}

/** @param path of the file that has the tensor @throws LimbeckError ERR_NOT_FINITE when a value is NaN or infinite */
export function checkFinite(values: Float32Array, name: string, path: string): void {
  // Features may be 10⁸ numbers, of which findIndex() would call a function each.
  for (let i = 0; i < values.length; i++) {
    if (!Number.isFinite(values[i])) throw notFinite(name, path, i);
  }
}

export function notFinite(name: string, path: string, index: number): LimbeckError {
  return new LimbeckError(
    'ERR_NOT_FINITE',
    `'${path}': tensor '${name}' is NaN or infinite at index ${index}; expected finite values in float32. ` +
      'Save or download the file anew.',
  );
}

/**
 * The values as int32: the same array for I32; I64 is checked value by value.
 *
 * @throws LimbeckError ERR_CHECKPOINT_MISMATCH for another dtype or a value outside int32
 */
export function asInt32(tensor: SafetensorsTensor): Int32Array {
  const { dtype, data } = tensor;
  if (data instanceof Int32Array) return data;
  if (!(data instanceof BigInt64Array)) {
    throw new LimbeckError('ERR_CHECKPOINT_MISMATCH', `Expected a tensor of I32 or I64, got ${dtype}`);
  }
  return Int32Array.from(data, (value, index) => {
    if (BigInt.asIntN(32, value) === value) return Number(value);
    throw new LimbeckError('ERR_CHECKPOINT_MISMATCH', `Value ${value} at index ${index} does not fit into int32`);
  });
}

function widenBfloat16(bits: Uint16Array): Float32Array {
  const words = new Uint32Array(bits.length);
  for (let i = 0; i < bits.length; i++) words[i] = (bits[i] as number) << 16;
  return new Float32Array(words.buffer);
}

function widenFloat16(bits: Uint16Array): Float32Array {
  const values = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i++) values[i] = FLOAT16_VALUES[bits[i] as number] as number;
  return values;
}

/** The value of every half float: 5 exponent bits (bias 15), 10 fraction bits; subnormals are fraction · 2^-24. */
const FLOAT16_VALUES = Float32Array.from({ length: 1 << 16 }, (_, half) => {
  const exponent = (half >> 10) & 31;
  const fraction = half & 1023;
  const magnitude =
    exponent === 31
      ? fraction === 0
        ? Number.POSITIVE_INFINITY
        : Number.NaN
      : exponent === 0
        ? fraction * 2 ** -24
        : (1024 + fraction) * 2 ** (exponent - 25);
  return half & 0x8000 ? -magnitude : magnitude;
});

async function readHeader(file: FileHandle, sizeBytes: number, path: string) {
  return parseSafetensorsHeader(path, sizeBytes, async (position, length) => {
    const bytes = new Uint8Array(length);
    await readFully(file, bytes, position, path);
    return bytes;
  });
}

async function readFully(file: FileHandle, bytes: Uint8Array, position: number, path: string): Promise<void> {
  let offset = 0;
  while (offset < bytes.byteLength) {
    const length = Math.min(READ_CHUNK_BYTES, bytes.byteLength - offset);
    const { bytesRead } = await file.read(bytes, offset, length, position + offset).catch((error: Error) => {
      throw new LimbeckError('ERR_IO', `Cannot read '${path}': ${error.message}`, { cause: error });
    });
    if (bytesRead === 0) {
      throw new LimbeckError(
        'ERR_SAFETENSORS',
        `'${path}' became shorter while it was read, at byte ${position + offset}`,
      );
    }
    offset += bytesRead;
  }
}

function allocate(sizeBytes: number, name: string, path: string): ArrayBuffer {
  try {
    return new ArrayBuffer(sizeBytes);
  } catch (error) {
    throw new LimbeckError('ERR_OUT_OF_MEMORY', `No memory for tensor '${name}' of '${path}': ${sizeBytes} bytes`, {
      cause: error,
    });
  }
}

function dtypeOf(data: WritableTensor['data']): TensorDtype {
  if (data instanceof Float32Array) return 'F32';
  if (data instanceof Int32Array) return 'I32';
  if (data instanceof BigInt64Array) return 'I64';
  return data instanceof Uint8Array ? 'U8' : 'U16';
}

function bytesOf(data: WritableTensor['data']): Uint8Array {
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}
