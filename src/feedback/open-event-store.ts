/** Where feedback is kept: a log in a directory, or a Redis stream that several servers share. */
import { LimbeckError } from '../errors.js';
import { type EventLogOptions, openEventLog } from './event-log.js';
import { openRedisEvents, type RedisEventOptions } from './event-redis.js';
import type { EventStore } from './event-store.js';

export type EventStoreOptions = EventLogOptions | RedisEventOptions;

/**
 * Opens a store, and makes it where there is none.
 *
 * @throws LimbeckError ERR_LOCKED (another process, or another store of this one, has it open), ERR_CORRUPT_LOG,
 * ERR_NO_SPACE, ERR_IO, ERR_INVALID_ARGUMENT, ERR_MISSING_DEPENDENCY (Redis without the package @redis/client)
 */
export async function openEventStore(options: EventStoreOptions): Promise<EventStore> {
  const isObject = typeof options === 'object' && options !== null;
  if (isObject && 'redis' in options) return openRedisEvents(options);
  if (isObject && 'path' in options) return openEventLog(options);
  throw new LimbeckError('ERR_INVALID_ARGUMENT', 'Expected the options of a store to have a path or redis.');
}
