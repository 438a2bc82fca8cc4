// A map from object ids to numbers in a flat array: a JavaScript Map allocates an object for every id above 2 ** 31
// and is several times slower. Open addressing with linear probing.

const FULLEST = 0.6;

/** A map from integers to numbers; unlike a Map it may have more than 2 ** 24 entries. */
export class IdTable {
  size = 0;
  #bits;
  #mask;
  #entries; // of each slot its key, and its number plus one, 0 for an empty slot: side by side, for the processor's cache

  /** Make a table with room for `count` entries; it grows when needed. */
  constructor(count = 30_000) {
    this.#allocate(Math.ceil(Math.log2(count / FULLEST + 2)));
  }

  /** Return the number of an id, -1 if there is none. */
  get(id) {
    return this.#entries[2 * this.#slot(id) + 1] - 1;
  }

  /** Set the number of an id; it must not be negative. */
  set(id, number) {
    let slot = this.#slot(id);
    if (this.#entries[2 * slot + 1] === 0) {
      if (++this.size > FULLEST * (this.#mask + 1)) {
        this.#grow();
        slot = this.#slot(id);
      }
      this.#entries[2 * slot] = id;
    }
    this.#entries[2 * slot + 1] = number + 1;
  }

  delete(id) {
    const entries = this.#entries;
    let free = this.#slot(id);
    if (entries[2 * free + 1] === 0) return;
    this.size--;
    entries[2 * free + 1] = 0;
    // Move up entries that were displaced because this slot was occupied.
    for (let at = (free + 1) & this.#mask; entries[2 * at + 1] !== 0; at = (at + 1) & this.#mask) {
      const home = this.#home(entries[2 * at]);
      if (((at - home) & this.#mask) < ((at - free) & this.#mask)) continue;
      entries[2 * free] = entries[2 * at];
      entries[2 * free + 1] = entries[2 * at + 1];
      entries[2 * at + 1] = 0;
      free = at;
    }
  }

  #home(id) {
    return Math.imul((id >>> 0) ^ Math.imul(id / 4294967296, 0x85ebca6b), 0x9e3779b1) >>> (32 - this.#bits);
  }

  /** Return the slot of an id, or the slot where it would be stored. */
  #slot(id) {
    const entries = this.#entries;
    let slot = this.#home(id);
    while (entries[2 * slot + 1] !== 0 && entries[2 * slot] !== id) slot = (slot + 1) & this.#mask;
    return slot;
  }

  #allocate(bits) {
    this.#bits = bits;
    this.#mask = 2 ** bits - 1;
    this.#entries = new Float64Array(2 ** (bits + 1));
  }

  #grow() {
    const old = this.#entries;
    this.#allocate(this.#bits + 1);
    for (let i = 0; i < old.length; i += 2) {
      if (old[i + 1] === 0) continue;
      const slot = this.#slot(old[i]);
      this.#entries[2 * slot] = old[i];
      this.#entries[2 * slot + 1] = old[i + 1];
    }
  }
}
