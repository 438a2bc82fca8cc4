// CPU samples: counts by stack and thread for the whole time, and the newest samples in their order. Each sample counts
// as 1: rbkit gives no durations.

import { PARTS, Scale } from "./activity.js";
import { Callers, Calls, build } from "./graph.js";
import { KINDS, Samples } from "./samples.js";
import { Selection } from "./selection.js";
import { ROOT, Stacks } from "./stacks.js";
import { functionDetails, functionTable, has } from "./table.js";
import { TaskLog } from "./tasks.js";
import { STACKS, TASKS, Threads } from "./threads.js";
import { columnsOf, timeOrder } from "./timeorder.js";

// A step of the clock forward by more is a clock that was set, as is one back by more: samples of one look may be late.
const LONGEST_PAUSE = 24 * 3600 * 1000; // ms
const LATEST = 1000; // ms

// A look after more than that was not the next one.
const LONGEST_PAUSE_OF_TASKS = 1000; // ms

const MAX_TASKS = KINDS / 2 - 2;
const NO_TASK = "(no task)";
const OTHER_TASKS = "(other tasks)";
const UNNAMED_TASKS = "(unnamed tasks)";

// Threads in the strip of activity; the others are one row.
const STRIP_THREADS = 12;

// Selections kept for the next request.
const KEPT_SELECTIONS = 3;

/**
 * @typedef {object} Query What a view looks at.
 * @property {string | null} [thread] An id of `threadList`; null for all.
 * @property {string | null} [task] A name of `taskList`; null for all.
 * @property {boolean} [idle] Whether the samples of waiting threads are among them.
 * @property {[number, number] | null} [range] In ms since the first sample, the end excluded; null for the whole time.
 * @property {[number, number] | null} [compare] An earlier range to compare with; null for none.
 */

let profiles = 0;

export class CpuProfile {
  number = ++profiles; // functions have other indices in each profile
  stacks = new Stacks();
  samples = 0;
  omitted = 0; // samples beyond the limits
  missing = 0; // messages that may have held samples
  /** @type {number | null} */
  first = null; // ms; it moves with the clock if that is set, so that `elapsed` is right
  elapsed = 0; // ms from the first sample to the last
  #scale = new Scale();
  threads = new Threads(this.#scale);
  taskLog = new TaskLog();
  #log = new Samples();
  #tasks = [NO_TASK, OTHER_TASKS];
  /** @type {Map<string, Selection>} */
  #selections = new Map();

  /** @param {import("../../connection/protocol.js").Sample} sample */
  add({ time, thread: id, frames, name = null, task = null, state = null }) {
    if (!frames.length) return;
    const stack = this.stacks.add(frames, state);
    this.#pass(time);
    if (stack === null) {
      this.omitted++;
      return;
    }
    const thread = this.threads.get(id);
    if (name !== null && !thread.isMerged) thread.name = name;
    const idle = (state === null ? this.stacks.waits(stack) : state === "waiting") ? 1 : 0;
    const kind = 2 * this.#task(task) + idle;
    thread.last = ++this.samples;
    thread.add(kind * STACKS + stack, idle, this.elapsed, time);
    this.#log.add(this.elapsed, thread.serial, kind, stack);
  }

  /**
   * Count the suspended tasks of a look as idle for the time since the look before, which is worth so many samples of a
   * thread. Their time is that of the last sample, because samples may arrive later than looks of the same time.
   *
   * @param {import("../../connection/protocol.js").TaskLook} look
   */
  addTasks({ tasks: all, read, milliseconds, groups }) {
    const { period, elapsed } = this;
    if (period === null) return; // there are hardly any samples
    const worth = (read ? all / read : 1) * (Math.min(milliseconds, LONGEST_PAUSE_OF_TASKS) / period);
    this.taskLog.add({ elapsed, kind: 0, stack: ROOT, awaits: null, tasks: 0, weight: 0 });
    for (const { tasks, names, awaits, frames } of groups) {
      const stack = frames.length ? this.stacks.add(frames) : ROOT;
      if (!stack) continue;
      for (const name of names.length === tasks ? names : [UNNAMED_TASKS]) {
        const count = names.length === tasks ? 1 : tasks;
        const kind = 2 * this.#task(name) + 1;
        this.taskLog.add({ elapsed, kind, stack, awaits, tasks: read ? (count * all) / read : count, weight: count * worth });
        this.threads.tasks.addIdle(kind * STACKS + stack, count * worth);
      }
    }
  }

  get functions() {
    return this.stacks.functions;
  }

  /** The time between two samples of a thread in ms, as far as it was sampled all the time; null if unknown. */
  get period() {
    const { span, steps } = this.threads.busiest;
    return span > 0 ? span / steps : null;
  }

  /** Samples that are counted but not in any range, because newer ones took their place. */
  get merged() {
    return this.#log.dropped;
  }

  /** Return {id, title, samples} of the listed threads, the main thread first, then by samples. */
  threadList(idle = true) {
    return this.threads.list(idle).map(({ id, title, samples }) => ({ id, title, samples }));
  }

  /** Return {name, samples} of the asyncio tasks, by samples; none if there are no tasks. */
  taskList(idle = true) {
    const counts = new Map();
    for (const thread of this.threads.named(null)) {
      for (const [key, count] of thread.counts) {
        const kind = Math.floor(key / STACKS);
        if (idle || kind % 2 === 0) counts.set(kind >> 1, (counts.get(kind >> 1) ?? 0) + count);
      }
    }
    if (![...counts.keys()].some((task) => task)) return [];
    return [...counts].map(([task, samples]) => ({ name: this.#tasks[task], samples })).sort((a, b) => b.samples - a.samples);
  }

  /**
   * Return what the strip of activity shows: the samples of each thread by time, in `count` parts of `width` ms.
   * Samples before `from`, in ms since the first sample, are not in any range.
   */
  strip(idle = true) {
    const listed = this.threads.list(idle).filter(({ id }) => id !== TASKS);
    const count = Math.min(PARTS, Math.floor(this.elapsed / this.#scale.width) + 1);
    const rest = listed.slice(STRIP_THREADS);
    const rows = listed.slice(0, STRIP_THREADS).map(({ title, threads }) => ({ title, threads }));
    if (rest.length) rows.push({ title: "other threads", threads: rest.flatMap(({ threads }) => threads) });
    const sum = (threads, key) => {
      const counts = new Uint32Array(count);
      for (const { activity } of threads) for (let i = 0; i < count; i++) counts[i] += activity.parts[key][i];
      return counts;
    };
    return {
      rows: rows.map(({ title, threads }) => ({ title, busy: sum(threads, "busy"), idle: sum(threads, "idle") })),
      ...{ width: this.#scale.width, count, elapsed: this.elapsed, from: this.#log.dropped ? this.#log.from : 0 },
    };
  }

  /**
   * Return a flame graph: {frames, zoom, total, matched}, as `build` does.
   *
   * @param {Query & {order?: "calls" | "callers" | "time", group?: "thread" | "task" | null, path?: (number | string)[], search?: string}} query
   */
  flame({ order = "calls", group = null, path = [], search = "", ...query }) {
    if (order === "time") return this.#inTime(query);
    const Direction = order === "callers" ? Callers : Calls;
    const one = (id, title, part) => ({ id, title, direction: new Direction(this.#weights({ ...query, ...part })) });
    /** @type {any[]} */
    const groups =
      group === "thread"
        ? this.threads.list(true).filter(({ id }) => !query.thread || id === query.thread).map(({ id, title }) => one(`thread ${id}`, title, { thread: id }))
        : group === "task"
          ? this.#tasks.filter((task) => !query.task || task === query.task).map((task) => one(`task ${task}`, task, { task }))
          : [one(null, "all", {})];
    return build("all", group ? groups.filter(({ direction }) => direction.weights.samples) : groups, path, this.#matches(search));
  }

  /**
   * Return two flame graphs that begin with a function, wherever it is called: `callers` continues with its callers,
   * `callees` with the functions it calls; null if it does not exist.
   *
   * @param {Query & {index: number, search?: string}} query
   */
  sandwich({ index, search = "", ...query }) {
    const fn = this.functions[index];
    if (fn === undefined) return null;
    const weights = this.#weights(query);
    const graph = (direction) => {
      const one = build(fn.name, [{ id: null, title: fn.name, direction }], [], this.#matches(search));
      Object.assign(one.frames[0], { file: fn.file, line: fn.line, kind: fn.kind });
      return { ...one, total: weights.samples };
    };
    return { callers: graph(Callers.of(weights, index)), callees: graph(Calls.within(weights, index)) };
  }

  /**
   * Return the functions, see `functionTable`.
   *
   * @param {Query & {filter?: string, sort?: string, descending?: boolean, limit?: number}} query
   */
  table({ filter, sort, descending, limit, ...query }) {
    return functionTable(this.#select(query), query.compare ? this.#select({ ...query, range: query.compare }) : null, { filter, sort, descending, limit });
  }

  /** Return what is known of a function, see `functionDetails`. @param {number} index @param {Query} query */
  details(index, query = {}) {
    return functionDetails(this.#select(query), index);
  }

  /** Return how many samples are selected. @param {Query} query */
  count(query) {
    return this.#select(query).samples;
  }

  /** Return the samples of the last `ms` by stack, and `looks`, their number in the thread that has most. */
  recent(ms) {
    const counts = new Map();
    const threads = new Map();
    this.#log.each(Math.max(0, this.elapsed - ms), Infinity, (serial, kind, stack) => {
      counts.set(stack, (counts.get(stack) ?? 0) + 1);
      threads.set(serial, (threads.get(serial) ?? 0) + 1);
    });
    return { counts, looks: Math.max(0, ...threads.values()) };
  }

  /** Return the samples of the last `ms` of each thread: {title, isMain, samples, idle, all}, the latter two by stack. */
  recentByThread(ms) {
    const threads = new Map();
    const count = (counts, stack) => counts.set(stack, (counts.get(stack) ?? 0) + 1);
    this.#log.each(Math.max(0, this.elapsed - ms), Infinity, (serial, kind, stack) => {
      const { title, isMain } = this.threads.bySerial[serial];
      if (!threads.has(serial)) threads.set(serial, { title, isMain, samples: 0, idle: new Map(), all: new Map() });
      const thread = threads.get(serial);
      thread.samples++;
      count(thread.all, stack);
      if (kind % 2) count(thread.idle, stack);
    });
    return [...threads.values()];
  }

  /** Return the samples of threads that run, by stack. */
  selfByStack() {
    return this.#select({ idle: false }).self;
  }

  /** Return the index of the function with a name, -1 if there is none. @param {string} name */
  find(name) {
    return this.functions.findIndex((fn) => fn.name === name);
  }

  /** Return the stacks of each thread's samples in their order, as far as they are kept. */
  orders() {
    const orders = new Map();
    this.#log.each(0, Infinity, (serial, kind, stack) => {
      const thread = this.threads.bySerial[serial];
      if (!orders.has(thread)) orders.set(thread, []);
      orders.get(thread).push(stack);
    });
    return orders;
  }

  /**
   * Record the time of a sample; one that is late counts as if it were not. If the clock was set, move `first` too, so
   * that the time continues from there.
   */
  #pass(time) {
    const first = this.first ?? time;
    const step = time - first - this.elapsed;
    const isSet = step < -LATEST || step > LONGEST_PAUSE;
    this.first = isSet ? first + step : first;
    if (!isSet && step > 0) this.elapsed += step;
    this.#scale.reach(this.elapsed);
  }

  /** Return the number of a task. */
  #task(name) {
    if (name === null) return 0;
    const shown = /^Task-\d+$/.test(name) ? UNNAMED_TASKS : name; // the names that asyncio gives
    const known = this.#tasks.indexOf(shown);
    if (known >= 0) return known;
    return this.#tasks.length > MAX_TASKS ? 1 : this.#tasks.push(shown) - 1;
  }

  /** Return the selected samples by stack, together with those that they are compared with. */
  #weights(query) {
    const selection = this.#select(query);
    return query.compare ? selection.beside(this.#select({ ...query, range: query.compare })) : selection;
  }

  /** @param {Query} query */
  #select({ thread = null, task = null, idle = true, range = null }) {
    const key = JSON.stringify([this.samples, this.taskLog.added, thread, task, idle, range]);
    const known = this.#selections.get(key);
    if (known !== undefined) return known;
    if (this.#selections.size >= KEPT_SELECTIONS) this.#selections.clear();
    const selection = new Selection(this.stacks, this.#counted(thread, task, idle, range));
    this.#selections.set(key, selection);
    return selection;
  }

  #counted(thread, task, idle, range) {
    const counts = new Float64Array(this.stacks.length);
    const wanted = Uint8Array.from({ length: KINDS }, (_, kind) => Number((idle || kind % 2 === 0) && (task === null || this.#tasks[kind >> 1] === task)));
    const threads = this.threads.named(thread);
    if (range === null) {
      for (const one of threads) {
        for (const [key, count] of one.counts) if (wanted[Math.floor(key / STACKS)]) counts[key % STACKS] += count;
      }
      return counts;
    }
    const isMeant = this.#areMeant(threads);
    this.#log.each(range[0], range[1], (serial, kind, stack) => {
      if (wanted[kind] && isMeant[serial]) counts[stack]++;
    });
    if (threads.includes(this.threads.tasks)) {
      this.taskLog.each(range[0], range[1], ({ kind, stack, weight }) => {
        if (wanted[kind]) counts[stack] += weight;
      });
    }
    return counts;
  }

  /** Return by serial whether it is that of one of these threads. */
  #areMeant(threads) {
    const meant = new Set(threads);
    return Uint8Array.from(this.threads.bySerial, (thread) => Number(meant.has(thread)));
  }

  /** Return the flame graph of one thread, the busiest by itself, in the order of time. @param {Query} query */
  #inTime({ thread = null, task = null, idle = true, range = null }) {
    const threads = this.threads.named(thread).filter((each) => each !== this.threads.tasks); // these are many at a time
    const one = threads.reduce((most, each) => (each.count(idle) > most.count(idle) ? each : most), threads[0]);
    /** @type {[number, number]} */
    const whole = range ?? [this.#log.from, this.elapsed + (this.period ?? 1)];
    const isMeant = this.#areMeant(one ? [one] : []);
    const isWanted = (kind) => (idle || kind % 2 === 0) && (task === null || this.#tasks[kind >> 1] === task);
    const each = (take) =>
      this.#log.each(...whole, (serial, kind, stack, elapsed) => {
        if (isMeant[serial]) take(isWanted(kind) ? stack : -1, elapsed);
      });
    return { ...timeOrder(this.stacks, columnsOf(each, whole, this.period ?? 1), whole), thread: one?.title ?? "" };
  }

  /** Return by stack whether one of its functions has a text in its name or file; null without a text. */
  #matches(text) {
    if (!text) return null;
    const functions = this.functions.map((fn) => Number(has(fn, text)));
    const matches = new Uint8Array(this.stacks.length);
    for (let stack = 1; stack < matches.length; stack++) matches[stack] = matches[this.stacks.parent[stack]] || functions[this.stacks.shown[stack]];
    return matches;
  }
}
