import fs from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { LimbeckError } from '../../../src/errors.js';
import { decodeHeader, encodeCommit, encodeHeader, hasLaterCommit } from '../../../src/feedback/event-segment.js';
import { readRecords, recoverLastSegment } from '../../../src/feedback/event-segment-files.js';

const SECTOR_BYTES = 512;
let directory: string;
let path: string;

beforeAll(async () => {
  directory = await fs.mkdtemp(join(tmpdir(), 'limbeck-segment-'));
  path = join(directory, '00000000000000000005.log');
});
afterAll(() => fs.rm(directory, { recursive: true }));

/** Numbers from 0 to n − 1; the seed is in the title of what fails. */
function randomOf(seed: number): (n: number) => number {
  let state = seed * 7919 + 1;
  return (n) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * n);
  };
}

function commitOf(first: number, count: number, textBytes: number): Buffer {
  const records = Array.from({ length: count }, (_, i) => ({
    receivedAt: 1000 + first + i,
    json: JSON.stringify({ n: first + i, text: 'x'.repeat(textBytes) }),
  }));
  return encodeCommit(
    records,
    records.reduce((sum, { json }) => sum + Buffer.byteLength(json), 0),
    first,
  );
}

/** What recovery finds: the sequences, or the code of the error. */
async function recover(bytes: Uint8Array): Promise<{ sequences: number[]; truncatedBytes: number } | string> {
  await fs.writeFile(path, bytes);
  try {
    const { file, segment, nextSequence, truncatedBytes } = await recoverLastSegment(directory, {
      path,
      base: 5,
      sizeBytes: bytes.length,
    });
    await file.close();
    const sequences: number[] = [];
    for await (const records of readRecords(segment, 0)) {
      for (const { sequence, json, receivedAt } of records) {
        expect([JSON.parse(json).n, receivedAt]).toEqual([sequence, 1000 + sequence]);
        sequences.push(sequence);
      }
    }
    expect(nextSequence).toBe(5 + sequences.length);
    expect(segment.sizeBytes).toBe((await fs.stat(path)).size);
    return { sequences, truncatedBytes };
  } catch (error) {
    if (!(error instanceof LimbeckError)) throw error;
    return error.code;
  }
}

function range(from: number, to: number): number[] {
  return Array.from({ length: to - from }, (_, i) => from + i);
}

describe('a power failure', () => {
  it('during a commit leaves all that was durable, whichever sectors of the commit reached the disk', async () => {
    for (let seed = 0; seed < 200; seed++) {
      const random = randomOf(seed);
      const durableCount = random(20);
      const durable = Buffer.concat([encodeHeader(5), commitOf(5, durableCount, random(300))]);
      const count = 1 + random(30);
      const whole = Buffer.concat([durable, commitOf(5 + durableCount, count, random(300))]);
      const found = Buffer.from(whole);
      // Sectors of the commit keep what the disk held before: zeros, or what another file had left there.
      let lost = 0;
      const first = Math.ceil(durable.length / SECTOR_BYTES) * SECTOR_BYTES;
      for (let sector = first; sector < whole.length; sector += SECTOR_BYTES) {
        if (random(2) === 0) continue;
        lost++;
        const isZero = random(2) === 0;
        for (let i = sector; i < Math.min(sector + SECTOR_BYTES, whole.length); i++)
          found[i] = isZero ? 0 : random(256);
      }
      // The sector in which both meet is written as one: as it was, or whole.
      if (random(2) === 0) found.fill(0, durable.length, Math.min(first, whole.length));
      const size = random(3) === 0 ? durable.length + random(whole.length - durable.length) : whole.length;
      const result = await recover(found.subarray(0, size));
      expect(result, `seed ${seed}`).toBeTypeOf('object');
      if (typeof result !== 'object') return;
      expect(result.sequences.length, `seed ${seed}`).toBeGreaterThanOrEqual(durableCount);
      expect(result.sequences, `seed ${seed}`).toEqual(range(5, 5 + result.sequences.length));
      if (lost === 0 && found.equals(whole) && size === whole.length) {
        expect(result).toEqual({ sequences: range(5, 5 + durableCount + count), truncatedBytes: 0 });
      }
    }
  });
});

describe('damage to durable records', () => {
  it('is never taken for a torn commit when a later commit follows', async () => {
    for (let seed = 0; seed < 300; seed++) {
      const random = randomOf(seed);
      const commits = [encodeHeader(5)];
      let next = 5;
      for (let commit = 0; commit < 4; commit++) {
        const count = 1 + random(4);
        commits.push(commitOf(next, count, random(100)));
        next += count;
      }
      const whole = Buffer.concat(commits);
      const last = whole.length - (commits.at(-1)?.length ?? 0);
      const damaged = Buffer.from(whole);
      const position = 24 + random(last - 24);
      damaged[position] = (damaged[position] ?? 0) ^ (1 + random(255));
      expect(await recover(damaged), `seed ${seed}`).toBe('ERR_CORRUPT_LOG');
      expect(await fs.readFile(path), 'left as it is').toEqual(damaged);
    }
  });

  it('cut out, doubled or swapped is damage too', async () => {
    const [header, a, b, c] = [encodeHeader(5), commitOf(5, 1, 9), commitOf(6, 1, 9), commitOf(7, 1, 9)];
    expect(await recover(Buffer.concat([header, a, b, c]))).toEqual({ sequences: [5, 6, 7], truncatedBytes: 0 });
    for (const order of [
      [a, c],
      [b, c],
      [a, c, b],
    ]) {
      expect(await recover(Buffer.concat([header, ...order]))).toBe('ERR_CORRUPT_LOG');
    }
    // A record of the past proves nothing about the future.
    expect(await recover(Buffer.concat([header, a, b, a]))).toEqual({ sequences: [5, 6], truncatedBytes: a.length });
  });
});

describe('any bytes', () => {
  it('behind a header are an empty log or an error, quickly, and never records', async () => {
    for (let seed = 0; seed < 150; seed++) {
      const random = randomOf(seed);
      const noise = Buffer.alloc(random(8192)).map(() =>
        seed % 3 === 0 ? random(256) : random(8) === 0 ? random(4) : 0,
      );
      const result = await recover(Buffer.concat([encodeHeader(5), noise]));
      expect(result, `seed ${seed}`).toEqual({ sequences: [], truncatedBytes: noise.length });
    }
  });

  it('within a log, at any place and of any length, lose nothing silently', async () => {
    const whole = Buffer.concat([encodeHeader(5), ...range(5, 25).map((n) => commitOf(n, 1, n))]);
    const lastCommit = whole.length - commitOf(24, 1, 24).length;
    for (let seed = 0; seed < 300; seed++) {
      const random = randomOf(seed);
      const begin = random(lastCommit);
      const end = begin + 1 + random(lastCommit - begin);
      const damaged = Buffer.from(whole);
      for (let i = begin; i < end; i++) damaged[i] = random(256);
      if (damaged.equals(whole)) continue;
      expect(await recover(damaged), `seed ${seed}`).toBe('ERR_CORRUPT_LOG');
    }
  });

  it('of 16 MiB of zeros or of ones are read in seconds', async () => {
    for (const fill of [0, 255]) {
      const start = performance.now();
      const bytes = Buffer.alloc(16 * 2 ** 20, fill);
      encodeHeader(5).copy(bytes);
      expect(await recover(bytes)).toEqual({ sequences: [], truncatedBytes: bytes.length - 24 });
      expect(performance.now() - start).toBeLessThan(20_000);
    }
  });
});

describe('what follows a damaged record', () => {
  it('is looked through whole, wherever a later commit lies', async () => {
    const later = commitOf(9, 1, 16_000);
    for (const before of [2 ** 20 - later.length, 2 ** 20 - 100, 2 ** 20 - 20, 2 ** 20, 2 ** 20 + 1]) {
      const bytes = Buffer.concat([encodeHeader(5), Buffer.alloc(before), later]);
      expect(await recover(bytes), String(before)).toBe('ERR_CORRUPT_LOG');
    }
  });

  it('is never in memory as a whole', async () => {
    const later = commitOf(9, 1, 100);
    const position = 2 ** 32;
    /** A file of 8 GiB, which holds a commit in the middle. */
    const file = {
      async read(bytes: Buffer, offset: number, length: number, at: number) {
        expect(offset + length).toBeLessThanOrEqual(bytes.length);
        expect(bytes.length).toBeLessThanOrEqual(2 ** 20);
        const holds = at <= position && position + later.length <= at + length;
        // What memory held before is no part of the file.
        if (holds) bytes.fill(0, 0, position - at);
        return { bytesRead: holds ? later.copy(bytes, position - at) + position - at : 0, buffer: bytes };
      },
    } as unknown as fs.FileHandle;
    expect(await hasLaterCommit(file, 24, 2 ** 33, 5)).toBe(true);
    expect(await hasLaterCommit(file, 24, 2 ** 33, 9)).toBe(false);
  });
});

describe('a header', () => {
  it('of another version, another number or with any bit changed is refused', async () => {
    const header = encodeHeader(5);
    expect(decodeHeader(header)).toBe(5);
    for (let bit = 0; bit < 8 * header.length; bit++) {
      const changed = Buffer.from(header);
      changed[bit >> 3] = (changed[bit >> 3] ?? 0) ^ (1 << (bit & 7));
      expect(decodeHeader(changed)).toBeUndefined();
    }
    expect(await recover(Buffer.concat([encodeHeader(6), commitOf(6, 1, 1)]))).toBe('ERR_CORRUPT_LOG');
    expect(decodeHeader(encodeHeader(Number.MAX_SAFE_INTEGER))).toBe(Number.MAX_SAFE_INTEGER);
  });
});
