/** A map from two integers from 0 to a third: open addressing in one flat array, for hundreds of thousands of entries. */
export class PairTable {
  /** [capacity, 3] (left, right, value); left −1 where there is nothing. */
  #entries: Int32Array;
  #size = 0;

  constructor(expectedSize = 16) {
    let capacity = 32;
    while (capacity < 2 * expectedSize) capacity *= 2;
    this.#entries = new Int32Array(3 * capacity).fill(-1);
  }

  /** −1 when there is none. */
  get(left: number, right: number): number {
    const slot = this.#slot(left, right);
    return this.#entries[slot] === -1 ? -1 : (this.#entries[slot + 2] as number);
  }

  set(left: number, right: number, value: number): void {
    if (6 * this.#size > this.#entries.length) this.#grow();
    const slot = this.#slot(left, right);
    if (this.#entries[slot] === -1) this.#size++;
    this.#entries[slot] = left;
    this.#entries[slot + 1] = right;
    this.#entries[slot + 2] = value;
  }

  #slot(left: number, right: number): number {
    const entries = this.#entries;
    const mask = entries.length / 3 - 1;
    const hash = Math.imul(left, 0x9e3779b1) ^ Math.imul(right, 0x85ebca6b);
    let index = (hash ^ (hash >>> 15)) & mask;
    for (;;) {
      const slot = 3 * index;
      if (entries[slot] === -1 || (entries[slot] === left && entries[slot + 1] === right)) return slot;
      index = (index + 1) & mask;
    }
  }

  #grow(): void {
    const earlier = this.#entries;
    this.#entries = new Int32Array(2 * earlier.length).fill(-1);
    for (let i = 0; i < earlier.length; i += 3) {
      if (earlier[i] !== -1)
        this.#entries.set(earlier.subarray(i, i + 3), this.#slot(earlier[i] as number, earlier[i + 1] as number));
    }
  }
}
