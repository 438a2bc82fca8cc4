// The newest samples in their order, in typed arrays. Older samples are known by their counts only.

// Samples kept, each with 12 bytes: more than an hour of one thread at 1,000 samples/s, in 48 MiB.
const CHUNK = 2 ** 16;
const MAX_CHUNKS = 64;

class Chunk {
  length = 0;
  times = new Float32Array(CHUNK); // ms since `from`
  kinds = new Uint32Array(CHUNK); // serial * KINDS + kind
  stacks = new Uint32Array(CHUNK);

  constructor(from) {
    this.from = from;
  }
}

/** Kinds of samples of one thread. */
export const KINDS = 2 ** 9;

export class Samples {
  dropped = 0; // samples that are not kept any more
  /** @type {Chunk[]} */
  #chunks = [];

  /** Add a sample; its time, in ms since the first sample, is no earlier than that of the sample before. */
  add(elapsed, serial, kind, stack) {
    let chunk = this.#chunks.at(-1);
    if (chunk === undefined || chunk.length === CHUNK) {
      if (this.#chunks.length === MAX_CHUNKS) this.dropped += this.#chunks.shift()?.length ?? 0;
      this.#chunks.push((chunk = new Chunk(elapsed)));
    }
    const at = chunk.length++;
    chunk.times[at] = elapsed - chunk.from;
    chunk.kinds[at] = serial * KINDS + kind;
    chunk.stacks[at] = stack;
  }

  /** The time of the oldest sample kept, in ms since the first sample. */
  get from() {
    return this.#chunks[0]?.from ?? 0;
  }

  /**
   * Call a function with each sample from `from` on and before `to`, in ms since the first sample.
   *
   * @param {number} from
   * @param {number} to
   * @param {(serial: number, kind: number, stack: number, elapsed: number) => void} take
   */
  each(from, to, take) {
    this.#chunks.forEach((chunk, i) => {
      const next = this.#chunks[i + 1]?.from ?? Infinity;
      if (next < from || chunk.from >= to) return;
      const end = firstAt(chunk, to - chunk.from);
      for (let at = firstAt(chunk, from - chunk.from); at < end; at++) {
        take(Math.floor(chunk.kinds[at] / KINDS), chunk.kinds[at] % KINDS, chunk.stacks[at], chunk.from + chunk.times[at]);
      }
    });
  }
}

/** Return the index of a chunk's first sample that is not before a time. */
function firstAt({ times, length }, time) {
  let [low, high] = [0, length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (times[middle] < time) low = middle + 1;
    else high = middle;
  }
  return low;
}
