import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import {
  asFloat32,
  asInt32,
  listSafetensors,
  MAX_TENSORS,
  readSafetensors,
  type SafetensorsTensor,
  SafetensorsWriter,
  writeSafetensors,
} from '../../../src/formats/safetensors.js';
import { temporaryDirectory } from './temporary-directory.js';

const directory = temporaryDirectory();
const path = join(directory, 'model.safetensors');

function rawFile(header: string | Uint8Array, dataBytes: number, declaredLength?: bigint): Buffer {
  const json = Buffer.from(header as string);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(declaredLength ?? BigInt(json.length));
  return Buffer.concat([length, json, Buffer.alloc(dataBytes)]);
}

const float = (begin: number, end: number, shape = `[${(end - begin) / 4}]`) =>
  `{"dtype":"F32","shape":${shape},"data_offsets":[${begin},${end}]}`;

describe('readSafetensors refuses', () => {
  test.each<[string, Buffer]>([
    ['an empty file', Buffer.alloc(0)],
    ['1 byte', Buffer.alloc(1)],
    ['7 bytes', Buffer.alloc(7)],
    ['8 bytes and no header', Buffer.alloc(8)],
    ['a header longer than the file', rawFile('{}', 0, 3n)],
    ['a header over the cap', rawFile('{}', 0, 100_000_001n)],
    ['a header length of 2^63', rawFile('{}', 0, 1n << 63n)],
    ['a header length of 2^64 - 1', rawFile('{}', 0, (1n << 64n) - 1n)],
    ['a header that is a list', rawFile('[]', 0)],
    ['a header that begins with a space', rawFile(' {}', 0)],
    ['a byte order mark', rawFile('\ufeff{}', 0)],
    ['a header that is not UTF-8', rawFile(Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d), 0)],
    ['a NUL in a name', rawFile(`{"a\0":${float(0, 4)}}`, 4)],
    ['broken JSON', rawFile('{"a":', 0)],
    ['text after the header', rawFile('{}x', 0)],
    ['a deep header', rawFile(`{"a":${'['.repeat(100_000)}`, 0)],
    ['a tensor twice', rawFile(`{"a":${float(0, 4)},"a":${float(0, 4)}}`, 4)],
    ['metadata twice', rawFile('{"__metadata__":{},"__metadata__":{}}', 0)],
    ['a field twice', rawFile('{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', 4)],
    ['metadata that is a list', rawFile('{"__metadata__":[]}', 0)],
    ['metadata that is not text', rawFile('{"__metadata__":{"a":1}}', 0)],
    ['a tensor that is null', rawFile('{"a":null}', 0)],
    ['an unknown field', rawFile('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"code":"x"}}', 4)],
    ['no dtype', rawFile('{"a":{"shape":[1],"data_offsets":[0,4]}}', 4)],
    ['no shape', rawFile('{"a":{"dtype":"F32","data_offsets":[0,4]}}', 4)],
    ['no offsets', rawFile('{"a":{"dtype":"F32","shape":[1]}}', 4)],
    ['an unknown dtype', rawFile('{"a":{"dtype":"F7","shape":[1],"data_offsets":[0,4]}}', 4)],
    [
      'a dtype that is a property of every object',
      rawFile('{"a":{"dtype":"toString","shape":[1],"data_offsets":[0,4]}}', 4),
    ],
    ['a sub-byte dtype', rawFile('{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}', 1)],
    ['one offset', rawFile('{"a":{"dtype":"F32","shape":[1],"data_offsets":[4]}}', 4)],
    ['three offsets', rawFile('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}', 4)],
    ['a negative offset', rawFile('{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}', 4)],
    ['a fractional offset', rawFile('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4.0]}}', 4)],
    ['a text offset', rawFile('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,"4"]}}', 4)],
    ['an infinite offset', rawFile('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,1e400]}}', 4)],
    ['an offset above 2^53', rawFile('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,9007199254740993]}}', 4)],
    ['reversed offsets', rawFile('{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', 4)],
    ['a negative dimension', rawFile('{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', 4)],
    ['a shape that is a number', rawFile('{"a":{"dtype":"F32","shape":1,"data_offsets":[0,4]}}', 4)],
    ['a shape with a hole', rawFile('{"a":{"dtype":"F32","shape":[null],"data_offsets":[0,4]}}', 4)],
    ['a shape smaller than its bytes', rawFile(`{"a":${float(0, 8, '[1]')}}`, 8)],
    ['a shape larger than its bytes', rawFile(`{"a":${float(0, 8, '[3]')}}`, 8)],
    ['a shape whose product overflows', rawFile(`{"a":${float(0, 0, '[4294967296,4294967296]')}}`, 0)],
    ['an overflow hidden by a zero', rawFile(`{"a":${float(0, 0, '[4294967296,4294967296,0]')}}`, 0)],
    ['overlapping tensors', rawFile(`{"a":${float(0, 8)},"b":${float(4, 12)}}`, 12)],
    ['equal ranges', rawFile(`{"a":${float(0, 4)},"b":${float(0, 4)}}`, 4)],
    ['a gap between tensors', rawFile(`{"a":${float(0, 4)},"b":${float(8, 12)}}`, 12)],
    ['a hole at the start', rawFile(`{"a":${float(4, 8)}}`, 8)],
    ['a tensor out of the file', rawFile(`{"a":${float(0, 8)}}`, 4)],
    ['trailing bytes', rawFile(`{"a":${float(0, 4)}}`, 5)],
    ['a name of 513 characters', rawFile(`{"${'n'.repeat(513)}":${float(0, 4)}}`, 4)],
    ['data without tensors', rawFile('{}', 4)],
  ])('%s', async (_, bytes) => {
    writeFileSync(path, bytes);
    const refusal = { code: 'ERR_SAFETENSORS', message: expect.stringContaining(path) };
    await expect(readSafetensors(path)).rejects.toMatchObject(refusal);
    await expect(listSafetensors(path)).rejects.toMatchObject(refusal);
  });

  test('more tensors than the limit', async () => {
    const entries = Array.from({ length: MAX_TENSORS + 1 }, (_, i) => `"${i}":${float(0, 0)}`);
    writeFileSync(path, rawFile(`{${entries.join()}}`, 0));
    await expect(readSafetensors(path)).rejects.toMatchObject({ code: 'ERR_SAFETENSORS' });
  });

  test('every truncation of a good file', async () => {
    const good = rawFile(`{"a":${float(0, 8)},"b":${float(8, 12)}}`, 12);
    for (let length = 0; length < good.length; length++) {
      writeFileSync(path, good.subarray(0, length));
      await expect(readSafetensors(path), `${length} bytes`).rejects.toMatchObject({ code: 'ERR_SAFETENSORS' });
    }
    writeFileSync(path, good);
    expect((await readSafetensors(path)).tensors.size).toBe(2);
  });

  test('a missing file', async () => {
    await expect(readSafetensors(join(directory, 'absent'))).rejects.toMatchObject({ code: 'ERR_FILE_NOT_FOUND' });
  });
});

describe('readSafetensors accepts', () => {
  test('a padded header, a scalar, an empty tensor, and any order of the header', async () => {
    writeFileSync(path, rawFile(`{"b":${float(4, 8)},"empty":${float(4, 4, '[0,7]')},"a":${float(0, 4, '[]')}}   `, 8));
    const { tensors } = await readSafetensors(path);
    expect([...tensors.keys()]).toEqual(['a', 'empty', 'b']);
    expect(tensors.get('a')).toEqual({ dtype: 'F32', shape: [], data: new Float32Array(1) });
    expect(tensors.get('empty')?.shape).toEqual([0, 7]);
  });

  test('a file without tensors', async () => {
    writeFileSync(path, rawFile('{"__metadata__":{"format":"pt"}}', 0));
    expect(await readSafetensors(path)).toMatchObject({ tensors: new Map(), metadata: { format: 'pt' } });
  });

  test('a name such as __proto__', async () => {
    writeFileSync(path, rawFile(`{"__proto__":${float(0, 4)}}`, 4));
    expect([...(await readSafetensors(path)).tensors.keys()]).toEqual(['__proto__']);
  });

  test('values at offsets that are not aligned', async () => {
    const file = rawFile(
      '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}',
      5,
    );
    file.writeFloatLE(1.5, file.length - 4);
    writeFileSync(path, file);
    expect((await readSafetensors(path)).tensors.get('b')?.data).toEqual(Float32Array.of(1.5));
  });
});

describe('writeSafetensors', () => {
  const tensors = new Map([
    ['z', { shape: [2, 2], data: Float32Array.of(1, -0, Number.NaN, Infinity) }],
    ['a', { shape: [3], data: Int32Array.of(-1, 0, 2 ** 31 - 1) }],
    ['m', { shape: [1], data: BigInt64Array.of(-(1n << 62n)) }],
    ['view', { shape: [2], data: Float32Array.of(0, 1, 2, 3).subarray(1, 3) }],
  ]);

  test('comes back bit for bit, with its metadata', async () => {
    await writeSafetensors(path, tensors, { format: 'pt', note: 'café' });
    const { tensors: back, metadata } = await readSafetensors(path);
    expect([...back.keys()]).toEqual(['a', 'm', 'view', 'z']);
    for (const [name, { shape, data }] of tensors) {
      expect(back.get(name)?.shape).toEqual(shape);
      expect(back.get(name)?.data).toEqual(data);
    }
    expect({ ...metadata }).toEqual({ format: 'pt', note: 'café' });
  });

  test('gives the same bytes in any order, with a header of a multiple of 8', async () => {
    await writeSafetensors(path, tensors);
    const first = readFileSync(path);
    await writeSafetensors(path, [...tensors].reverse());
    expect(readFileSync(path).equals(first)).toBe(true);
    expect(first.readBigUInt64LE() % 8n).toBe(0n);
  });

  test('is listed without its values', async () => {
    await writeSafetensors(path, tensors);
    const { tensors: list } = await listSafetensors(path);
    expect(list.get('m')).toEqual({ dtype: 'I64', shape: [1], begin: 12, end: 20 });
  });

  test('refuses a shape that does not fit, and a name that is taken', async () => {
    const tensor = { shape: [3], data: new Float32Array(4) };
    await expect(writeSafetensors(path, [['a', tensor]])).rejects.toMatchObject({ code: 'ERR_SHAPE_MISMATCH' });
    const scalar = { shape: [], data: new Float32Array(1) };
    await expect(
      writeSafetensors(path, [
        ['a', scalar],
        ['a', scalar],
      ]),
    ).rejects.toMatchObject({ code: 'ERR_SAFETENSORS' });
    await expect(writeSafetensors(path, [['__metadata__', scalar]])).rejects.toMatchObject({ code: 'ERR_SAFETENSORS' });
  });
});

describe('SafetensorsWriter', () => {
  const other = join(directory, 'pieces.safetensors');
  const tensors = new Map([
    ['z', { shape: [3, 2], data: Float32Array.of(1, -0, 3, Infinity, 5, 6) }],
    ['a', { shape: [3], data: Int32Array.of(-1, 0, 2 ** 31 - 1) }],
  ]);
  const layouts = [
    ['z', { dtype: 'F32', shape: [3, 2] }],
    ['a', { dtype: 'I32', shape: [3] }],
  ] as const;
  const unfinished = () => readdirSync(directory).filter((name) => name.endsWith('.tmp'));

  test('gives the bytes of a file that was written at once, piece by piece', async () => {
    await writeSafetensors(path, tensors);
    writeFileSync(other, 'earlier');
    const writer = await SafetensorsWriter.create(other, layouts);
    await writer.append('z', Float32Array.of(0, 1, -0).subarray(1));
    await writer.append('a', Int32Array.of(-1, 0, 2 ** 31 - 1));
    await writer.append('z', Float32Array.of(3, Infinity, 5, 6));
    expect(readFileSync(other, 'utf8')).toBe('earlier');
    await writer.finish();
    await writer.discard(); // too late
    expect(readFileSync(other).equals(readFileSync(path))).toBe(true);
    expect(unfinished()).toEqual([]);
  });

  test('refuses values that are too many, missing or of no tensor, and leaves the earlier file', async () => {
    writeFileSync(other, 'earlier');
    const writer = await SafetensorsWriter.create(other, layouts);
    await writer.append('a', Int32Array.of(1, 2));
    await expect(writer.append('a', Int32Array.of(3, 4))).rejects.toMatchObject({ code: 'ERR_SHAPE_MISMATCH' });
    await expect(writer.append('b', Int32Array.of(3))).rejects.toMatchObject({ code: 'ERR_SHAPE_MISMATCH' });
    await expect(writer.finish()).rejects.toMatchObject({
      code: 'ERR_SHAPE_MISMATCH',
      message: expect.stringContaining("'a' lacks 4 bytes"),
    });
    expect(unfinished()).toHaveLength(1);
    await writer.discard();
    expect(unfinished()).toEqual([]);
    expect(readFileSync(other, 'utf8')).toBe('earlier');
    const twice = SafetensorsWriter.create(other, [...layouts, ...layouts]);
    await expect(twice).rejects.toMatchObject({ code: 'ERR_SAFETENSORS' });
    const nowhere = SafetensorsWriter.create(join(other, 'below'), layouts);
    await expect(nowhere).rejects.toMatchObject({ code: 'ERR_IO' });
  });
});

describe('conversions', () => {
  const halves = (dtype: 'F16' | 'BF16', ...bits: number[]): SafetensorsTensor => ({
    dtype,
    shape: [bits.length],
    data: Uint16Array.from(bits),
  });

  test('widen F16, with subnormals, signed zero and infinities', () => {
    expect(
      asFloat32(halves('F16', 0x3c00, 0xc000, 0x7bff, 0x0001, 0x03ff, 0x0400, 0x8000, 0x7c00, 0xfc00, 0x7e00)),
    ).toEqual(Float32Array.of(1, -2, 65504, 2 ** -24, 1023 * 2 ** -24, 2 ** -14, -0, Infinity, -Infinity, Number.NaN));
  });

  test('widen BF16', () => {
    expect(asFloat32(halves('BF16', 0x3f80, 0xc000, 0x0001, 0x8000, 0xff80, 0x7fc0))).toEqual(
      Float32Array.of(1, -2, 2 ** -133, -0, -Infinity, Number.NaN),
    );
  });

  test('round F64, and keep the array of F32', () => {
    expect(asFloat32({ dtype: 'F64', shape: [1], data: Float64Array.of(0.1) })).toEqual(Float32Array.of(0.1));
    const data = Float32Array.of(1);
    expect(asFloat32({ dtype: 'F32', shape: [1], data })).toBe(data);
  });

  test('narrow I64 within int32 only', () => {
    const tensor = (...values: bigint[]): SafetensorsTensor => ({
      dtype: 'I64',
      shape: [1],
      data: BigInt64Array.from(values),
    });
    expect(asInt32(tensor(-(2n ** 31n), 2n ** 31n - 1n))).toEqual(Int32Array.of(-(2 ** 31), 2 ** 31 - 1));
    expect(() => asInt32(tensor(0n, 2n ** 31n))).toThrowError(
      expect.objectContaining({ code: 'ERR_CHECKPOINT_MISMATCH' }),
    );
  });

  test('refuse other dtypes', () => {
    expect(() => asFloat32({ dtype: 'I32', shape: [1], data: Int32Array.of(1) })).toThrowError(/I32/);
    expect(() => asFloat32({ dtype: 'U16', shape: [1], data: Uint16Array.of(1) })).toThrowError(/U16/);
    expect(() => asInt32({ dtype: 'F32', shape: [1], data: Float32Array.of(1) })).toThrowError(/F32/);
  });
});
