/**
 * Keys of the service: `lmb_ID_SECRET`. The file holds the id, the SHA-256 of the secret and the scopes. A secret is 32
 * random bytes, so that a plain hash of it cannot be searched.
 */
import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';
import { chmod, stat } from 'node:fs/promises';
import { z } from 'zod';
import { LimbeckError } from '../errors.js';
import { checkedJson } from '../formats/checked-json.js';
import { lockFile } from '../formats/file-lock.js';
import { pathExists, readJsonFile, writeFileAtomic } from '../formats/files.js';

export const SCOPES = ['read', 'write'] as const;
export type Scope = (typeof SCOPES)[number];

const fileSchema = z.strictObject({
  keys: z.array(
    z.strictObject({
      id: z.string().regex(/^[a-f0-9]{16}$/),
      sha256: z.string().regex(/^[a-f0-9]{64}$/),
      scopes: z.array(z.enum(SCOPES)).min(1),
      createdAt: z.string(),
    }),
  ),
});

type KeyFile = z.output<typeof fileSchema>;

const KEY = /^lmb_([a-f0-9]{16})_([A-Za-z0-9_-]{43})$/;
const BEARER = /^Bearer +(\S+)$/i;
/** Compared with when no key has the id, so that the time tells nothing. */
const NO_KEY = Buffer.alloc(32);

/** Who asked, and what they may do. */
export interface Caller {
  readonly id: string;
  readonly scopes: readonly Scope[];
}

/** The keys of a file. */
export class ApiKeys {
  readonly #path: string;
  #keys: ReadonlyMap<string, Caller & { readonly sha256: Buffer }> = new Map();
  /** Changes whenever the file does. */
  #version = '';

  /** @throws LimbeckError ERR_FILE_NOT_FOUND, ERR_FILE_FORMAT, ERR_IO */
  static async open(path: string): Promise<ApiKeys> {
    if (!(await pathExists(path))) {
      throw new LimbeckError('ERR_FILE_NOT_FOUND', `There is no file of keys '${path}'; limbeck create-key makes one`);
    }
    const keys = new ApiKeys(path);
    await keys.refresh();
    return keys;
  }

  private constructor(path: string) {
    this.#path = path;
  }

  /**
   * Reads the file again when it is another than before. One that cannot be read, or is no file of keys, changes nothing.
   *
   * @returns whether the keys are others now
   * @throws LimbeckError as {@link open}, once for each state of the file
   */
  async refresh(): Promise<boolean> {
    const version = await fileVersion(this.#path);
    if (version === this.#version) return false;
    this.#version = version;
    const { keys } = await readKeyFile(this.#path);
    this.#keys = new Map(
      keys.map(({ id, sha256, scopes }) => [id, { id, scopes, sha256: Buffer.from(sha256, 'hex') }]),
    );
    return true;
  }

  get size(): number {
    return this.#keys.size;
  }

  /** Whose key the header `Authorization` brings, compared in constant time; undefined when it is none of these. */
  caller(authorization: string | undefined): Caller | undefined {
    const key = KEY.exec(BEARER.exec(authorization ?? '')?.[1] ?? '');
    if (key === null) return undefined;
    const known = this.#keys.get(key[1] ?? '');
    const isEqual = timingSafeEqual(sha256(key[2] ?? ''), known?.sha256 ?? NO_KEY);
    return isEqual ? known : undefined;
  }
}

/**
 * Adds a new key to a file, which is made when it is not there.
 *
 * @returns the key: shown once, and kept nowhere
 * @throws LimbeckError ERR_INVALID_ARGUMENT, ERR_LOCKED while another process adds one, ERR_FILE_FORMAT, ERR_NO_SPACE,
 * ERR_IO
 */
export async function createApiKey(path: string, scopes: readonly Scope[]): Promise<{ id: string; key: string }> {
  if (scopes.length === 0 || scopes.some((scope) => !SCOPES.includes(scope))) {
    throw new LimbeckError('ERR_INVALID_ARGUMENT', `scopes: expected some of ${SCOPES.join(', ')}, got '${scopes}'`);
  }
  if (path === '') throw new LimbeckError('ERR_INVALID_ARGUMENT', 'Expected the path of a file of keys, got none');
  // A call that read the file before another had written it would lose that one's key.
  const lock = await lockFile(`${path}.lock`, `Another process adds a key to '${path}': try again`);
  try {
    return await addKey(path, scopes);
  } finally {
    await lock.close();
  }
}

async function addKey(path: string, scopes: readonly Scope[]): Promise<{ id: string; key: string }> {
  const { keys } = (await pathExists(path)) ? await readKeyFile(path) : { keys: [] };
  const id = randomBytes(8).toString('hex');
  const secret = randomBytes(32).toString('base64url');
  const unique = SCOPES.filter((scope) => scopes.includes(scope));
  const added = { id, sha256: sha256(secret).toString('hex'), scopes: unique, createdAt: new Date().toISOString() };
  await writeFileAtomic(path, `${JSON.stringify({ keys: [...keys, added] }, null, 2)}\n`);
  await chmod(path, 0o600);
  return { id, key: `lmb_${id}_${secret}` };
}

/** Why a file cannot be read is said by who reads it. */
async function fileVersion(path: string): Promise<string> {
  try {
    const { ino, size, mtimeNs } = await stat(path, { bigint: true });
    return `${ino} ${size} ${mtimeNs}`;
  } catch (error) {
    return String((error as NodeJS.ErrnoException).code);
  }
}

async function readKeyFile(path: string): Promise<KeyFile> {
  return checkedJson(fileSchema, await readJsonFile(path), `'${path}' is no file of keys`);
}

function sha256(secret: string): Buffer {
  return createHash('sha256').update(secret).digest();
}
