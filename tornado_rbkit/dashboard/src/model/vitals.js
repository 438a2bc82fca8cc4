// The figures of the whole process over time: memory, CPU time, threads and the collector's pauses. The profiler sends
// them each second in gc_stats, whether or not anything is recorded. Times are in seconds since the epoch.

const KEPT = 4 * 3600;

// The figures arrive each second; a longer silence is a break in the lines.
const LONGEST_SILENCE = 5;

/**
 * @typedef {object} Figures One second of a process; null where the profiler does not send it, or not yet.
 * @property {number | null} rss Resident memory, in bytes.
 * @property {number | null} cpu Per cent of one core, since the figures before.
 * @property {number | null} threads
 * @property {number | null} gc Per cent of the time spent in the collector, since the figures before.
 * @property {number | null} runs Of the collector per second, since the figures before.
 *
 * @typedef {{time: number, rss: number | null, cpuMs: number | null, threads: number | null, gcMs: number | null,
 *   runs: number | null}} Sent
 */

export class Vitals {
  /** @type {number[]} */
  times = [];
  /** @type {Figures[]} */
  figures = [];
  /** @type {Sent | null} */
  #before = null;

  /**
   * Add the figures of a gc_stats event; return whether it has any of the process.
   *
   * @param {number} time
   * @param {Map<string, unknown>} sent
   */
  add(time, sent) {
    const figure = (/** @type {string} */ name) => {
      const value = sent.get(name);
      return typeof value === "number" && value >= 0 ? value : null;
    };
    const now = { time, rss: figure("process_rss"), cpuMs: figure("process_cpu_ms"), threads: figure("process_threads"), gcMs: figure("gc_pause_ms"), runs: figure("count") };
    if (now.rss === null && now.cpuMs === null && now.threads === null) return false;
    this.#dropAfter(time);
    const before = this.#before !== null && time - this.#before.time <= LONGEST_SILENCE ? this.#before : null;
    this.times.push(time);
    const share = (/** @type {"cpuMs" | "gcMs"} */ key) => scaled(perSecond(before, now, key), 0.1); // of ms per second, in per cent
    this.figures.push({ rss: now.rss, cpu: share("cpuMs"), threads: now.threads, gc: share("gcMs"), runs: perSecond(before, now, "runs") });
    this.#before = now;
    if (this.times.length > 2 * KEPT) {
      this.times.splice(0, KEPT);
      this.figures.splice(0, KEPT);
    }
    return true;
  }

  /** Record that later figures belong to another process. */
  restart() {
    this.#before = null;
  }

  /** @returns {Figures | null} The newest figures. */
  get latest() {
    return this.figures.at(-1) ?? null;
  }

  /**
   * Return the figures between two times for the charts, with a break wherever they were silent.
   *
   * @param {number} from
   * @param {number} to
   */
  range(from, to) {
    /** @type {{x: number[], rss: (number | null)[], cpu: (number | null)[], threads: (number | null)[], gc: (number | null)[]}} */
    const points = { x: [], rss: [], cpu: [], threads: [], gc: [] };
    const add = (/** @type {number} */ x, /** @type {Figures | null} */ figures) => {
      points.x.push(x);
      for (const key of KEYS) points[key].push(figures?.[key] ?? null);
    };
    for (let i = 0; i < this.times.length; i++) {
      const time = this.times[i];
      if (time < from || time > to) continue;
      if (points.x.length && time - this.times[i - 1] > LONGEST_SILENCE) add((this.times[i - 1] + time) / 2, null);
      add(time, this.figures[i]);
    }
    return points;
  }

  /**
   * Drop what is not earlier than a time: the clock was set back, or the event is one of two of the same moment.
   *
   * @param {number} time
   */
  #dropAfter(time) {
    while (this.times.length && this.times[this.times.length - 1] >= time) {
      this.times.pop();
      this.figures.pop();
      this.#before = null;
    }
  }
}

const KEYS = /** @type {const} */ (["rss", "cpu", "threads", "gc"]);

/**
 * Return by how much a growing figure grew per second; null if that is not known.
 *
 * @param {Sent | null} before
 * @param {Sent} now
 * @param {"cpuMs" | "gcMs" | "runs"} key
 */
function perSecond(before, now, key) {
  const [one, other] = [before?.[key] ?? null, now[key]];
  if (before === null || one === null || other === null || other < one) return null; // unknown, or another process
  return (other - one) / (now.time - before.time);
}

/**
 * @param {number | null} value
 * @param {number} factor
 */
function scaled(value, factor) {
  return value === null ? null : value * factor;
}
