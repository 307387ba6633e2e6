/** Ids of the latest events, by which an event that comes again is known. */

/** The window moves in steps, so that no set grows large: growing one blocks the event loop. */
const GENERATIONS = 16;

export class RecentIds {
  readonly #eventsPerGeneration: number;
  /** Newest last. */
  readonly #generations: Set<string>[] = [new Set()];
  #eventsInNewest = 0;

  /** @param window How many events are remembered at least; one sixteenth more at most. */
  constructor(window: number) {
    this.#eventsPerGeneration = Math.ceil(window / GENERATIONS);
  }

  has(id: string): boolean {
    return this.#generations.some((generation) => generation.has(id));
  }

  /** Counts a stored event; many have no id. */
  add(id: string | undefined): void {
    if (this.#eventsInNewest === this.#eventsPerGeneration) {
      this.#generations.push(new Set());
      this.#eventsInNewest = 0;
      if (this.#generations.length > GENERATIONS + 1) this.#generations.shift();
    }
    this.#eventsInNewest++;
    if (id !== undefined) this.#generations.at(-1)?.add(id);
  }
}
