import { LimbeckError } from '../errors.js';
import type { EventStore } from './event-store.js';
export interface RedisEventOptions {
  readonly redis: string;
}
export async function openRedisEvents(_o: RedisEventOptions): Promise<EventStore> {
  throw new LimbeckError('ERR_INTERNAL', 'todo');
}
