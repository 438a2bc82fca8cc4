// How many samples a thread had in each part of the time, in a bounded number of parts.

// Parts of the time; as many as a wide screen has pixels for.
export const PARTS = 1024;

const FIRST_WIDTH = 10; // ms of a part at first

/** The parts into which the time of a profile is divided: they double when it outgrows them. */
export class Scale {
  width = FIRST_WIDTH; // ms

  /** Make the parts wide enough for a time since the first sample, in ms. */
  reach(elapsed) {
    while (elapsed >= PARTS * this.width) this.width *= 2;
  }
}

/** The samples of one thread by time. */
export class Activity {
  #busy = new Uint32Array(PARTS);
  #idle = new Uint32Array(PARTS);
  #width;
  #scale;

  /** @param {Scale} scale Of the profile; `reach` must have been called with each time added. */
  constructor(scale) {
    this.#scale = scale;
    this.#width = scale.width;
  }

  add(elapsed, idle) {
    this.#follow();
    (idle ? this.#idle : this.#busy)[Math.floor(elapsed / this.#width)]++;
  }

  /** Add another thread's samples. @param {Activity} other */
  merge(other) {
    this.#follow();
    other.#follow();
    for (let i = 0; i < PARTS; i++) {
      this.#busy[i] += other.#busy[i];
      this.#idle[i] += other.#idle[i];
    }
  }

  /** The samples of each part: those of a thread that runs, and those of a thread that waits. */
  get parts() {
    this.#follow();
    return { busy: this.#busy, idle: this.#idle };
  }

  /** Join parts two by two until they are as wide as those of the scale. */
  #follow() {
    for (; this.#width < this.#scale.width; this.#width *= 2) {
      for (const counts of [this.#busy, this.#idle]) {
        for (let i = 0; i < PARTS; i++) counts[i] = 2 * i < PARTS ? counts[2 * i] + counts[2 * i + 1] : 0;
      }
    }
  }
}
