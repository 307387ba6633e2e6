/** User states that are kept up to date from a store, and the snapshots that let old events go. */
import { checkInstance, checkObject } from '../arguments.js';
import { pathExists } from '../formats/files.js';
import type { EventStore, RetentionOptions } from './event-store.js';
import { type UserStateOptions, UserStates } from './user-states.js';

export interface FollowUserStatesOptions extends UserStateOptions {
  /** A file that checkpointUserStates() wrote; used when it is there. */
  readonly snapshot?: string;
  /** Begin with the oldest event that is still there when earlier ones are missing. @defaultValue false */
  readonly allowMissing?: boolean;
  /** Told when an event cannot be taken up; the others are. */
  readonly onError: (error: unknown) => void;
}

/**
 * User states with every event of the store: when it resolves, all that were stored before; later ones from the moment
 * at which their append() resolves.
 *
 * @throws LimbeckError ERR_CORRUPT_LOG when the store lacks events after the snapshot, unless `allowMissing`; as UserStates.load() and
 * EventStore.follow()
 */
export async function followUserStates(store: EventStore, options: FollowUserStatesOptions): Promise<UserStates> {
  checkObject(store, 'store', 'an event store', ['follow']);
  checkObject(options, 'options', '{ snapshot, onError }');
  const { snapshot, allowMissing = false, onError, ...limits } = options;
  const states =
    snapshot !== undefined && (await pathExists(snapshot))
      ? await UserStates.load(snapshot, limits)
      : new UserStates(limits);
  const isMissing = states.nextOffset < store.firstOffset;
  const from = isMissing && allowMissing ? store.firstOffset : states.nextOffset;
  await store.follow(from, (stored) => states.apply(stored), onError);
  return states;
}

/**
 * Saves the states, then drops events that are over a limit and in the snapshot.
 *
 * @throws as UserStates.save() and EventStore.retain(); after a failed save nothing is dropped
 */
export async function checkpointUserStates(
  states: UserStates,
  store: EventStore,
  options: { readonly path: string } & Omit<RetentionOptions, 'keepFrom'>,
): Promise<void> {
  checkInstance(states, UserStates, 'states');
  checkObject(store, 'store', 'an event store', ['retain']);
  checkObject(options, 'options', '{ path }');
  const { path, ...limits } = options;
  const keepFrom = await states.save(path);
  await store.retain({ ...limits, keepFrom });
}
