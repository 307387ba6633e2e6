/** Ids of the latest events, by which an event that comes again is known. */
import { shardOf } from './shard.js';

const NUM_SHARDS = 64;

export class RecentIds {
  readonly #window: number;
  #newer = emptyShards();
  #older = emptyShards();
  #eventsInNewer = 0;

  /** @param window How many events are remembered at least; twice as many at most. */
  constructor(window: number) {
    this.#window = window;
  }

  has(id: string): boolean {
    const shard = shardOf(id, NUM_SHARDS);
    return this.#newer[shard]?.has(id) === true || this.#older[shard]?.has(id) === true;
  }

  /** Counts a stored event; many have no id. */
  add(id: string | undefined): void {
    if (this.#eventsInNewer === this.#window) {
      this.#older = this.#newer;
      this.#newer = emptyShards();
      this.#eventsInNewer = 0;
    }
    this.#eventsInNewer++;
    if (id !== undefined) this.#newer[shardOf(id, NUM_SHARDS)]?.add(id);
  }
}

function emptyShards(): Set<string>[] {
  return Array.from({ length: NUM_SHARDS }, () => new Set());
}
