// The memory profile over time: rates per second, the collector's figures and runs, and gaps in the data. Times are of
// the profiled process's clock, in seconds since the epoch.

import { EventType } from "../connection/protocol.js";

const KEPT_SECONDS = 4 * 3600;
const KEPT_RUNS = 20_000;
const SHOWN_RUNS = 2000;
const KEPT_STATS = 5000;
const KEPT_MARKS = 500; // gaps and restarts

// rbkit's gc_stats arrive every five seconds while memory is profiled; a longer silence means that it was not.
const LONGEST_SILENCE = 7;

// Events may be out of order: a comparison of the embedded profiler reports changes of up to 100 seconds. An event
// further back means that the clock was set back.
const LATE_SECONDS = 120;

export class Timeline {
  seconds = []; // one bin each; in the arrays below null means "unknown", not 0
  created = [];
  destroyed = [];
  collections = [];
  pauses = []; // ms in total
  statTimes = [];
  stats = []; // {heap, memsize, live}: numbers or null
  runs = []; // runs of the collector: [start, pause in ms]
  gaps = []; // [from, to, messages]
  restarts = []; // times
  /** @type {Map<string, number | string | null> | null} */
  lastStats = null; // all figures, by name
  missing = 0;
  setBack = 0; // how often the clock was set back
  /** @type {number | null} */
  #first = null;
  /** @type {number | null} */
  #last = null; // time of the last event
  #isAfterGap = false; // whether messages were lost since the last event
  /** @type {number | null} */
  #started = null;

  /** Add one event of the memory profile. */
  add(event) {
    const time = event.time / 1000;
    const bin = this.#bin(time);
    switch (event.type) {
      case EventType.OBJ_CREATED:
        this.created[bin]++;
        break;
      case EventType.OBJ_DESTROYED:
        this.destroyed[bin]++;
        break;
      case EventType.GC_START:
        this.#started = event.time;
        break;
      case EventType.GC_END_M: // until GC_END_S Ruby sweeps lazily while the program runs
      case EventType.GC_END_S:
        this.#finish(event.time, bin);
        break;
      case EventType.GC_STATS:
        this.#measure(time, event.figures);
        break;
    }
  }

  /** Record that messages were lost between two times, those of the messages before and after them. */
  gap(from, to, messages) {
    this.missing += messages;
    this.gaps.push([Math.min(from, to), to, messages]);
    if (this.gaps.length > 2 * KEPT_MARKS) this.gaps.splice(0, KEPT_MARKS);
    this.#started = null;
    this.#isAfterGap = true;
  }

  /** Record that later events belong to another process. */
  restart(time) {
    this.restarts.push(time);
    if (this.restarts.length > 2 * KEPT_MARKS) this.restarts.splice(0, KEPT_MARKS);
    this.#started = null;
    this.#last = null;
  }

  /** Return the data between `from` and `to` for the charts. */
  range(from, to) {
    const whole = this.seconds.slice(0, -1); // the last second is incomplete and would look like a drop
    const seconds = slice(whole, from, to);
    const stats = slice(this.statTimes, from, to);
    const runs = this.runs.filter(([start]) => start >= from && start <= to);
    return {
      first: this.#first,
      last: this.seconds.length ? Math.max(this.seconds.at(-1) + 1, this.#last ?? 0) : null,
      rates: {
        x: whole.slice(...seconds),
        created: this.created.slice(...seconds),
        destroyed: this.destroyed.slice(...seconds),
        collections: this.collections.slice(...seconds),
        pauses: this.pauses.slice(...seconds),
      },
      stats: this.#statsIn(stats),
      runs: longest(runs, SHOWN_RUNS),
      runCount: runs.length,
      gaps: this.gaps.filter(([begin, end]) => end >= from && begin <= to),
      restarts: this.restarts.filter((time) => time >= from && time <= to),
      missing: this.missing,
      totals: this.#totals(whole, from, to),
      lastStats: this.lastStats,
    };
  }

  /** Return the figures to draw, with a break wherever there was a gap, a restart or a silence. */
  #statsIn([begin, end]) {
    /** @type {Record<string, (number | null)[]>} */
    const points = { x: [], heap: [], memsize: [], live: [] };
    const add = (x, stats) => {
      points.x.push(x);
      points.heap.push(stats?.heap ?? null);
      points.memsize.push(stats?.memsize ?? null);
      points.live.push(stats?.live ?? null);
    };
    for (let i = begin; i < end; i++) {
      const [before, time] = [this.statTimes[i - 1], this.statTimes[i]];
      if (i > begin && this.#isBroken(before, time)) add((before + time) / 2, null);
      add(time, this.stats[i]);
    }
    return points;
  }

  /** Return the figures of exactly this range: the last of each kind, and the total pause in its whole seconds. */
  #totals(whole, from, to) {
    const inside = whole.flatMap((second, i) => (second >= Math.floor(from) && second + 1 <= to && this.created[i] !== null ? [i] : []));
    const at = this.statTimes.findLastIndex((time) => time >= from && time <= to);
    const stats = at < 0 || this.restarts.some((time) => time > this.statTimes[at] && time <= to) ? null : this.stats[at];
    const last = inside.at(-1);
    return {
      heap: stats?.heap ?? null,
      memsize: stats?.memsize ?? null,
      live: stats?.live ?? null,
      created: this.created[last] ?? null,
      destroyed: this.destroyed[last] ?? null,
      pauses: inside.reduce((sum, i) => sum + this.pauses[i], 0), // ms
      seconds: inside.length,
    };
  }

  #isBroken(before, after) {
    return (
      after - before > 2 * LONGEST_SILENCE ||
      this.gaps.some(([from, to]) => from < after && to > before) ||
      this.restarts.some((time) => time > before && time <= after)
    );
  }

  #finish(end, bin) {
    if (this.#started === null) return;
    const pause = Math.max(0, end - this.#started);
    this.runs.push([this.#started / 1000, pause]);
    if (this.runs.length > 2 * KEPT_RUNS) this.runs.splice(0, KEPT_RUNS);
    this.collections[bin]++;
    this.pauses[bin] += pause;
    this.#started = null;
  }

  #measure(time, figures) {
    const figure = (name) => (typeof figures.get(name) === "number" ? figures.get(name) : null);
    this.lastStats = figures;
    let at = this.statTimes.length;
    while (at > 0 && this.statTimes[at - 1] > time) at--;
    this.statTimes.splice(at, 0, time);
    this.stats.splice(at, 0, { heap: figure("total_heap_size"), memsize: figure("total_memsize"), live: figure("heap_live_slots") });
    if (this.stats.length > 2 * KEPT_STATS) this.#dropStats(KEPT_STATS);
  }

  /** Return the index of the bin of a time; create that bin and missing bins before it. */
  #bin(time) {
    const second = Math.floor(time);
    if (this.seconds.length && second < this.seconds.at(-1) - LATE_SECONDS) this.#setBack(time);
    this.#first ??= time;
    const last = this.seconds.at(-1);
    if (last === undefined || second > last) this.#advance(second);
    this.#last = Math.max(this.#last ?? time, time);
    // A late event belongs to the bin of its time, or to the nearest earlier bin.
    let index = this.seconds.length - 1;
    while (index > 0 && this.seconds[index] > second) index--;
    return this.#known(index);
  }

  /** Handle a clock that was set back: remove data with times later than it shows now. */
  #setBack(time) {
    this.setBack++;
    const from = (times) => {
      const index = times.findIndex((one) => one > time);
      return index < 0 ? times.length : index;
    };
    const [bins, stats] = [from(this.seconds), from(this.statTimes)];
    for (const list of this.#bins) list.length = bins;
    this.statTimes.length = this.stats.length = stats;
    this.runs = this.runs.filter(([start]) => start <= time);
    this.gaps = this.gaps.filter(([begin]) => begin <= time).map(([begin, end, messages]) => [begin, Math.min(end, time), messages]);
    this.restarts = this.restarts.filter((one) => one <= time);
    if (!bins) this.#first = null;
    this.#last = this.#started = null;
    this.#isAfterGap = false;
  }

  get #bins() {
    return [this.seconds, this.created, this.destroyed, this.collections, this.pauses];
  }

  #dropStats(count) {
    this.statTimes.splice(0, count);
    this.stats.splice(0, count);
  }

  #advance(second) {
    const known = this.#last !== null && second - this.#last < LONGEST_SILENCE && !this.#isAfterGap;
    const from = this.seconds.length ? this.seconds.at(-1) + 1 : second;
    if (second - from < KEPT_SECONDS) {
      for (let t = from; t < second; t++) this.#push(t, known ? 0 : null);
    } else if (this.seconds.length) {
      this.#push(from, null); // one break instead of hours of empty bins
    }
    this.#push(second, 0);
    this.#isAfterGap = false;
    if (this.seconds.length > 2 * KEPT_SECONDS) {
      for (const list of this.#bins) list.splice(0, KEPT_SECONDS);
      const old = this.statTimes.findIndex((time) => time >= this.seconds[0]);
      this.#dropStats(old < 0 ? this.stats.length : old);
    }
  }

  #push(second, value) {
    this.seconds.push(second);
    this.created.push(value);
    this.destroyed.push(value);
    this.collections.push(value);
    this.pauses.push(value);
  }

  #known(index) {
    if (this.created[index] === null) {
      this.created[index] = this.destroyed[index] = this.collections[index] = this.pauses[index] = 0;
    }
    return index;
  }
}

/**
 * Return the indexes of a range in ascending times, with one more on each side for lines that cross its edges.
 *
 * @returns {[number, number]}
 */
function slice(times, from, to) {
  const begin = times.findIndex((time) => time >= from);
  if (begin < 0) return [Math.max(0, times.length - 1), times.length];
  const end = times.findIndex((time) => time > to);
  return [Math.max(0, begin - 1), end < 0 ? times.length : end + 1];
}

/** Return the longest runs in their original order. */
function longest(runs, count) {
  if (runs.length <= count) return runs;
  const shortest = runs.map(([, pause]) => pause).sort((a, b) => b - a)[count - 1];
  return runs.filter(([, pause]) => pause >= shortest).slice(0, count);
}
