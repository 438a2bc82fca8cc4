// The suspended asyncio tasks of a process: where they wait, in the order of time, and the places where most of them do.

import { findBeyond } from "./waits.js";

const KEPT = 2 ** 18; // groups, each with 32 bytes
const MAX_CLASSES = 1000; // of futures

const WINDOW_MS = 10_000;
const LEAST_LOOKS = 5; // with many tasks there are two a second
const LEAST_TASKS = 0.5; // on average
const LEAST_SHARE = 0.05; // of the tasks at the first place
const MOST_PLACES = 3;

/** Of `reasonOf`: a task that waits for work, or for other tasks, is slow only if these are. */
const IDLE = "";

/**
 * @typedef {import("./profile.js").CpuProfile} CpuProfile
 * @typedef {import("./stacks.js").Stacks} Stacks
 * @typedef {{label: string, file: string, line: number}} Place
 *
 * @typedef {object} Entry A group of tasks in one look; an entry of the empty stack is the look itself.
 * @property {number} elapsed Ms since the first sample.
 * @property {number} kind As that of a sample.
 * @property {number} stack
 * @property {string | null} awaits The class of the future that they wait for; null if they are ready to run.
 * @property {number} tasks How many they are.
 * @property {number} weight How many samples of a thread they are worth.
 *
 * @typedef {object} TaskWait A place where tasks wait.
 * @property {number} tasks How many, on average.
 * @property {Place} at The innermost line of the developer's own code.
 * @property {string} reason What for, as the end of a sentence.
 * @property {string | null} awaiter The function of own code that awaits it.
 * @property {Omit<import("./waits.js").Beyond, "threads"> | null} beyond For a lock, another line of the
 *   function, at which a task is meanwhile.
 */

/** The newest groups of tasks, in their order. */
export class TaskLog {
  added = 0;
  #elapsed = new Float64Array(0);
  #kind = new Uint32Array(0);
  #stack = new Uint32Array(0);
  #awaits = new Uint32Array(0);
  #tasks = new Float64Array(0);
  #weight = new Float64Array(0);
  /** @type {(string | null)[]} */
  #classes = [null, "(other)"];

  /** @param {Entry} entry No earlier than the one before. */
  add({ elapsed, kind, stack, awaits, tasks, weight }) {
    if (this.#stack.length < KEPT && this.added === this.#stack.length) this.#grow();
    const at = this.added++ % KEPT;
    this.#elapsed[at] = elapsed;
    this.#kind[at] = kind;
    this.#stack[at] = stack;
    this.#awaits[at] = this.#classOf(awaits);
    this.#tasks[at] = tasks;
    this.#weight[at] = weight;
  }

  /**
   * Call a function with each entry from `from` on and before `to`, in ms since the first sample.
   *
   * @param {number} from
   * @param {number} to
   * @param {(entry: Entry) => void} take
   */
  each(from, to, take) {
    for (let number = Math.max(0, this.added - KEPT); number < this.added; number++) {
      const at = number % KEPT;
      const elapsed = this.#elapsed[at];
      if (elapsed < from || elapsed >= to) continue;
      const awaits = this.#classes[this.#awaits[at]];
      take({ elapsed, kind: this.#kind[at], stack: this.#stack[at], awaits, tasks: this.#tasks[at], weight: this.#weight[at] });
    }
  }

  /** @param {string | null} name */
  #classOf(name) {
    const known = this.#classes.indexOf(name);
    if (known >= 0) return known;
    return this.#classes.length < MAX_CLASSES ? this.#classes.push(name) - 1 : 1;
  }

  #grow() {
    const size = Math.max(1024, 2 * this.#stack.length);
    const grown = (/** @type {any} */ array) => {
      const larger = new array.constructor(size);
      larger.set(array);
      return larger;
    };
    [this.#elapsed, this.#kind, this.#stack] = [this.#elapsed, this.#kind, this.#stack].map(grown);
    [this.#awaits, this.#tasks, this.#weight] = [this.#awaits, this.#tasks, this.#weight].map(grown);
  }
}

/**
 * Return the places in the developer's own code where most tasks wait, how many tasks are ready to run, on average, and
 * the share of the time in which the busiest event loop does not wait.
 *
 * @param {CpuProfile} wall The profile by the wall clock.
 * @returns {{waits: TaskWait[], ready: number, busy: number}}
 */
export function findTaskWaits(wall) {
  const { stacks } = wall;
  /** @type {Map<string, TaskWait & {own: number, isLock: boolean, awaiters: Map<string | null, number>}>} */
  const places = new Map();
  /** @type {Map<number, number>} */
  const counts = new Map();
  let [looks, ready] = [0, 0];
  wall.taskLog.each(wall.elapsed - WINDOW_MS, Infinity, ({ stack, awaits, tasks }) => {
    if (!stack) {
      looks++;
      return;
    }
    if (awaits === null) {
      ready += tasks;
      return;
    }
    counts.set(stack, (counts.get(stack) ?? 0) + tasks);
    const frames = stacks.framesOf(stack);
    const at = frames.findLastIndex((frame) => stacks.functions[stacks.frames[frame].fn].kind === "own");
    if (at < 0) return;
    const { reason, isLock = false } = reasonOf(stacks, frames.slice(at + 1), awaits);
    if (reason === IDLE) return;
    const own = frames[at];
    const key = `${own} ${reason}`;
    const place = places.get(key) ?? { tasks: 0, at: stacks.placeOf(own), reason, isLock, own, awaiter: null, awaiters: new Map(), beyond: null };
    place.tasks += tasks;
    const awaiter = awaiterOf(stacks, frames.slice(0, at), stacks.frames[own].fn);
    place.awaiters.set(awaiter, (place.awaiters.get(awaiter) ?? 0) + tasks);
    places.set(key, place);
  });
  if (looks < LEAST_LOOKS) return { waits: [], ready: 0, busy: 0 };
  const sorted = [...places.values()].sort((a, b) => b.tasks - a.tasks);
  const least = Math.max(LEAST_TASKS * looks, LEAST_SHARE * (sorted[0]?.tasks ?? 0));
  const waits = sorted.filter(({ tasks }) => tasks >= least).slice(0, MOST_PLACES);
  return {
    waits: waits.map(({ tasks, at, reason, isLock, own, awaiters }) => ({
      ...{ tasks: tasks / looks, at, reason },
      awaiter: [...awaiters].sort((a, b) => b[1] - a[1])[0][0],
      beyond: isLock ? findHolder(stacks, counts, looks, own) : null,
    })),
    ready: ready / looks,
    busy: busyShare(wall),
  };
}

/**
 * Return the largest share of its time in which a thread with an event loop does not wait.
 *
 * @param {CpuProfile} wall
 */
function busyShare(wall) {
  const { stacks } = wall;
  const isLoop = stacks.functions.map(({ label, file }) => /(^|\.)run_forever$/.test(label) && /[\\/]asyncio[\\/]/.test(file));
  const hasLoop = (/** @type {number} */ stack) => stacks.framesOf(stack).some((frame) => isLoop[stacks.frames[frame].fn]);
  const sum = (/** @type {Map<number, number>} */ counts) => [...counts.values()].reduce((all, count) => all + count, 0);
  const loops = wall.recentByThread(WINDOW_MS).filter(({ all }) => [...all.keys()].some(hasLoop));
  return Math.max(0, ...loops.map(({ samples, idle }) => 1 - sum(idle) / samples));
}

/**
 * Return what a task waits for, by the frames within the innermost own one, as the end of a sentence; `IDLE` if it waits
 * for work or for other tasks.
 *
 * @param {Stacks} stacks
 * @param {number[]} inner
 * @param {string} awaits
 * @returns {{reason: string, isLock?: boolean}}
 */
function reasonOf({ functions, frames }, inner, awaits) {
  const called = inner.map((frame) => functions[frames[frame].fn]);
  const last = called.at(-1);
  if (awaits === "Task" || awaits === "_GatheringFuture") return { reason: IDLE };
  if (last === undefined) return { reason: "for a future" };
  const [cls, method] = ["", ...last.label.split(".")].slice(-2);
  switch (/[\\/]asyncio[\\/](\w+)\.py$/.exec(last.file)?.[1]) {
    case "locks":
      if (method === "acquire") return { reason: `for a ${cls.replace("Bounded", "").toLowerCase()}`, isLock: true };
      return { reason: IDLE }; // an event, a condition or a barrier
    case "queues":
      return { reason: method === "put" ? "for room in a queue" : IDLE };
    case "tasks":
      return { reason: /sleep/.test(method) ? "in asyncio.sleep" : IDLE };
    case "taskgroups":
    case "base_events":
      if (last.label.includes("TaskGroup") || method === "serve_forever") return { reason: IDLE };
  }
  const entered = called.find(({ label }) => !/(^|\.)__\w+__$/.test(label)) ?? last;
  return { reason: `in ${entered.label}` };
}

/**
 * Return the next function of own code outside of a frame, null if there is none.
 *
 * @param {Stacks} stacks
 * @param {number[]} outer
 * @param {number} fn
 */
function awaiterOf({ functions, frames }, outer, fn) {
  const found = outer.findLast((frame) => functions[frames[frame].fn].kind === "own" && frames[frame].fn !== fn);
  return found === undefined ? null : functions[frames[found].fn].label;
}

/**
 * Return the other line of the function of a frame at which tasks wait most often, null if that is rare.
 *
 * @param {Stacks} stacks
 * @param {Map<number, number>} counts Tasks by stack.
 * @param {number} looks
 * @param {number} own
 * @returns {TaskWait["beyond"]}
 */
function findHolder(stacks, counts, looks, own) {
  const { functions, frames } = stacks;
  const innermost = (/** @type {number[]} */ all) => /** @type {number} */ (all.findLast((frame) => functions[frames[frame].fn].kind === "own"));
  const beyond = findBeyond(stacks, counts, looks, frames[own], innermost);
  if (beyond === null) return null;
  const { threads: _, ...place } = beyond;
  return place;
}
