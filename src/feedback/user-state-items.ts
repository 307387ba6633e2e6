/** Item ids as small numbers, as long as something refers to them. */
export class ItemNames {
  readonly #indices = new Map<string, number>();
  readonly #names: string[] = [];
  readonly #references: number[] = [];
  readonly #free: number[] = [];

  /** How many have a number. */
  get size(): number {
    return this.#indices.size;
  }

  /** The number of a name, one reference more. */
  acquire(name: string): number {
    let index = this.#indices.get(name);
    if (index === undefined) {
      index = this.#free.pop() ?? this.#names.length;
      this.#indices.set(name, index);
      this.#names[index] = name;
      this.#references[index] = 0;
    }
    this.#references[index] = (this.#references[index] ?? 0) + 1;
    return index;
  }

  /** One reference less; with the last one the number is free for another name. */
  release(index: number): void {
    const left = (this.#references[index] ?? 0) - 1;
    this.#references[index] = left;
    if (left > 0) return;
    this.#indices.delete(this.name(index));
    this.#names[index] = '';
    this.#free.push(index);
  }

  name(index: number): string {
    return this.#names[index] ?? '';
  }
}
