// @ts-check
// A map from object ids to numbers in two flat arrays: a JavaScript Map allocates an object for every id above 2 ** 31
// and is several times slower. Open addressing with linear probing.

const FULLEST = 0.6;

/** A map from integers to numbers; unlike a Map it may have more than 2 ** 24 entries. */
export class IdTable {
  size = 0;
  #bits;
  #mask;
  #keys;
  #values; // the number plus one, 0 for an empty slot

  /** Make a table with room for `count` entries; it grows when needed. */
  constructor(count = 30_000) {
    this.#allocate(Math.ceil(Math.log2(count / FULLEST + 2)));
  }

  /** Return the number of an id, -1 if there is none. */
  get(id) {
    return this.#values[this.#slot(id)] - 1;
  }

  /** Set the number of an id; it must not be negative. */
  set(id, number) {
    let slot = this.#slot(id);
    if (this.#values[slot] === 0) {
      if (++this.size > FULLEST * this.#keys.length) {
        this.#grow();
        slot = this.#slot(id);
      }
      this.#keys[slot] = id;
    }
    this.#values[slot] = number + 1;
  }

  delete(id) {
    let free = this.#slot(id);
    if (this.#values[free] === 0) return;
    this.size--;
    this.#values[free] = 0;
    // Move up entries that were displaced because this slot was occupied.
    for (let at = (free + 1) & this.#mask; this.#values[at] !== 0; at = (at + 1) & this.#mask) {
      const home = this.#home(this.#keys[at]);
      if (((at - home) & this.#mask) < ((at - free) & this.#mask)) continue;
      this.#keys[free] = this.#keys[at];
      this.#values[free] = this.#values[at];
      this.#values[at] = 0;
      free = at;
    }
  }

  #home(id) {
    return Math.imul((id >>> 0) ^ Math.imul(id / 4294967296, 0x85ebca6b), 0x9e3779b1) >>> (32 - this.#bits);
  }

  /** Return the slot of an id, or the slot where it would be stored. */
  #slot(id) {
    let slot = this.#home(id);
    while (this.#values[slot] !== 0 && this.#keys[slot] !== id) slot = (slot + 1) & this.#mask;
    return slot;
  }

  #allocate(bits) {
    this.#bits = bits;
    this.#mask = 2 ** bits - 1;
    this.#keys = new Float64Array(2 ** bits);
    this.#values = new Float64Array(2 ** bits);
  }

  #grow() {
    const [keys, values] = [this.#keys, this.#values];
    this.#allocate(this.#bits + 1);
    for (let i = 0; i < keys.length; i++) {
      if (values[i] === 0) continue;
      const slot = this.#slot(keys[i]);
      this.#keys[slot] = keys[i];
      this.#values[slot] = values[i];
    }
  }
}
