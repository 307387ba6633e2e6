/** The stream of events in Redis: entry 0-(n + 1) is the event at offset n. */
import { LimbeckError } from '../errors.js';
import { parseStoredEvent, type StoredEvent } from './event.js';
import { firstWord, type RedisConnection } from './event-redis-client.js';

/**
 * KEYS: the stream, then the key of each event's id. ARGV: seconds to remember ids, a token of this commit, then received
 * and JSON of each event. Returns the place of each event, from 1; negative when it was stored by another commit.
 *
 * The entry is added first: a server that is out of memory refuses the first write of a script and none after it. The id
 * of a duplicate is written again, so that WAIT, and an append-only file that is synced before replies, cover the first
 * write as well.
 */
export const APPEND_SCRIPT = `
local places = {}
for i = 2, #KEYS do
  local known = redis.call('GET', KEYS[i])
  local place
  if known then
    local number, writer = string.match(known, '^(%d+):(.*)$')
    place = tonumber(number)
    if writer ~= ARGV[2] then place = -place end
  else
    local id = redis.call('XADD', KEYS[1], '0-*', 'received', ARGV[2 * i - 1], 'event', ARGV[2 * i])
    local number = string.sub(id, 3)
    known = number .. ':' .. ARGV[2]
    place = tonumber(number)
  end
  redis.call('SET', KEYS[i], known, 'EX', ARGV[1])
  places[i - 1] = place
end
return places`;

export interface StreamEntry {
  readonly offset: bigint;
  /** Fields and values, as they are. */
  readonly fields: readonly string[];
}

/** The entry id of an offset. */
export function entryId(offset: bigint): string {
  return `0-${offset + 1n}`;
}

/** Entries from an offset on, oldest first. */
export async function readRange(
  connection: RedisConnection,
  stream: string,
  from: bigint,
  count: number,
): Promise<StreamEntry[]> {
  return toEntries(await connection.command('XRANGE', stream, entryId(from), '+', 'COUNT', count));
}

/** Entries from an offset on; waits for the first one. None when the time is up. */
export async function waitForEntries(
  connection: RedisConnection,
  stream: string,
  from: bigint,
  count: number,
  blockMs: number,
): Promise<StreamEntry[]> {
  const reply = await connection.command('XREAD', 'COUNT', count, 'BLOCK', blockMs, 'STREAMS', stream, `0-${from}`);
  const [[, entries] = [stream, []]] = (reply ?? []) as [string, unknown][];
  return toEntries(entries);
}

/**
 * The oldest offset that is there, and one past the newest that ever was.
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT when another program writes to the stream
 */
export async function streamBounds(
  connection: RedisConnection,
  stream: string,
): Promise<{ first: bigint; next: bigint }> {
  let reply: unknown[];
  try {
    reply = (await connection.command('XINFO', 'STREAM', stream)) as unknown[];
  } catch (error) {
    if (firstWord(error) === 'ERR' && /no such key/.test((error as Error).message)) return { first: 0n, next: 0n };
    throw error;
  }
  const infoOf = (name: string) => reply[reply.indexOf(name) + 1];
  const [major, minor] = String(infoOf('last-generated-id')).split('-');
  if (major !== '0' || minor === undefined) {
    throw new LimbeckError(
      'ERR_INVALID_ARGUMENT',
      `The Redis stream '${stream}' holds entries of another program; choose another name (store.stream).`,
    );
  }
  const next = BigInt(minor);
  const oldest = infoOf('first-entry');
  return { first: oldest === null ? next : (toEntries([oldest])[0]?.offset ?? next), next };
}

/** The event, or ERR_CORRUPT_LOG when the entry is none. */
export function decodeEntry({ offset, fields }: StreamEntry, stream: string): StoredEvent | LimbeckError {
  const receivedAt = Number(fields[fields.indexOf('received') + 1]);
  const json = fields[fields.indexOf('event') + 1] ?? '';
  const event = Number.isSafeInteger(receivedAt) ? parseStoredEvent(json, receivedAt) : undefined;
  if (event !== undefined) return { offset, receivedAt, event };
  return new LimbeckError(
    'ERR_CORRUPT_LOG',
    `Entry ${entryId(offset)} of the Redis stream '${stream}' is no event; look at it, and remove it with XDEL.`,
  );
}

function toEntries(reply: unknown): StreamEntry[] {
  return (reply as [string, string[]][]).map(([id, fields]) => ({ offset: BigInt(id.slice(2)) - 1n, fields }));
}
