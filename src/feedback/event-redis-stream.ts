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
  return toEntries(await connection.command('XRANGE', stream, entryId(from), '+', 'COUNT', count), stream);
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
  return toEntries(entries, stream);
}

/**
 * The oldest offset that is there, and one past the newest that ever was.
 *
 * @throws LimbeckError ERR_INVALID_ARGUMENT when another program writes, or wrote, to the stream
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
      `The Redis stream '${stream}' holds, or held, entries of another program. ${WITHOUT_FOREIGN}`,
    );
  }
  const next = BigInt(minor);
  const oldest = infoOf('first-entry');
  return { first: oldest === null ? next : (toEntries([oldest], stream)[0]?.offset ?? next), next };
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

/** Nothing can be appended behind an entry with a higher id, nor once there was one. */
const WITHOUT_FOREIGN =
  "Choose another name (store.stream); or stop that program, remove its entries with XDEL, and set the stream's last id " +
  'back with XSETID to that of the newest entry that is left.';

/** @throws LimbeckError ERR_CORRUPT_LOG for an entry that this store cannot have added */
function toEntries(reply: unknown, stream: string): StreamEntry[] {
  return (reply as [string, string[]][]).map(([id, fields]) => {
    const place = /^0-(\d+)$/.exec(id)?.[1];
    if (place !== undefined) return { offset: BigInt(place) - 1n, fields };
    throw new LimbeckError(
      'ERR_CORRUPT_LOG',
      `Entry ${id} of the Redis stream '${stream}' is another program's; expected ids from 0-1 on. ${WITHOUT_FOREIGN}`,
    );
  });
}
