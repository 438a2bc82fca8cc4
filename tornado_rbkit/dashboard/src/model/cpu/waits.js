// What uses the CPU and what waits, by the profiles of both clocks; and where threads wait for one another: a line at
// which several stand, while another is further on in the same function.

const WINDOW_MS = 10_000;
const LEAST_LOOKS = 20; // at a thread
const LEAST_SHARE = 0.3; // of the looks in which a thread is beyond the line

// Threads that wait at the line, on average: where the profiler reports locks, and where only the line is known.
const LEAST_THREADS = { known: 0.5, guessed: 1.2 };

// CPU time of all threads, as a share of one core. Above it they may wait for the interpreter's lock instead.
const MOST_COMPUTING = 0.7;

// A function mostly waits if so many threads stand in it, and so many times as many as compute. On a busy machine a thread
// that wakes up is seen to compute for as long as it waits for a processor.
const STANDING = 0.5;
const TIMES = 8;

/**
 * @typedef {import("./profile.js").CpuProfile} CpuProfile
 * @typedef {{index: number, label: string, file: string, line: number, self: number}} Busy A function and its samples.
 * @typedef {{line: number, threads: number, inner: string, file: string, innerLine: number}} Beyond
 *
 * @typedef {object} Wait
 * @property {string} label The function.
 * @property {string} file
 * @property {number} line
 * @property {number} threads How many wait there, on average.
 * @property {boolean} isKnown Whether the profiler reports that it is a lock.
 * @property {Beyond | null} beyond Another line of the function at which a thread is meanwhile, and its innermost function.
 */

/**
 * Return where most threads wait, null if they do not wait for one another.
 *
 * @param {CpuProfile} wall The profile by the wall clock.
 * @param {CpuProfile | null} cpu The profile by the CPU clock, without which only locks are known that the profiler reports.
 * @param {number | null} interval Milliseconds of a sample of it.
 * @returns {Wait | null}
 */
export function findWait(wall, cpu, interval) {
  const { counts, looks } = wall.recent(WINDOW_MS);
  if (looks < LEAST_LOOKS) return null;
  const { stacks } = wall;
  /** @type {Map<number, {locked: number, all: number}>} By frame. */
  const places = new Map();
  for (const [stack, count] of counts) {
    const frame = innermost(wall, stack);
    const place = places.get(frame) ?? { locked: 0, all: 0 };
    place.all += count / looks;
    if (isLocked(wall, stack)) place.locked += count / looks;
    places.set(frame, place);
  }
  const computing = cpu && interval ? computingAt(cpu, interval) : null;
  /** @type {Wait | null} */
  let most = null;
  for (const [frame, { locked, all }] of places) {
    const { fn, line } = stacks.frames[frame];
    const { label, file, kind } = stacks.functions[fn];
    const isKnown = locked >= LEAST_THREADS.known;
    if (!isKnown && (computing === null || computing.all > MOST_COMPUTING || kind !== "own")) continue;
    const threads = isKnown ? locked : all - (computing?.at.get(key(label, file, line)) ?? 0);
    if (threads < (isKnown ? LEAST_THREADS.known : LEAST_THREADS.guessed) || threads <= (most?.threads ?? 0)) continue;
    const beyond = findBeyond(stacks, counts, looks, { fn, line });
    if (isKnown || beyond) most = { label, file, line, threads, isKnown, beyond };
  }
  return most;
}

/**
 * Return the functions that compute, by their own time, and the functions that mostly wait: their samples by the CPU
 * clock show a thread that begins or ends a wait.
 *
 * @param {CpuProfile} profile
 * @param {CpuProfile | null} wall The profile by the wall clock, if the first is by the CPU clock.
 * @param {number | null} interval Milliseconds of a sample of the first.
 * @returns {{functions: Busy[], waiting: Busy[]}}
 */
export function findBusy(profile, wall, interval) {
  const busy = profile.table({ idle: false, limit: Infinity }).rows.filter(({ index, self }) => self > 0 && profile.functions[index].kind !== "lock");
  const samples = busy.reduce((sum, { self }) => sum + self, 0);
  const cores = interval ? interval / Math.max(1000, profile.elapsed) : 0; // that a sample stands for
  const { counts, looks } = wall?.recent(WINDOW_MS) ?? { counts: new Map(), looks: 0 };
  if (wall === null || looks < LEAST_LOOKS || !cores || cores * samples > MOST_COMPUTING) return { functions: busy, waiting: [] };
  const standing = new Map();
  for (const [stack, count] of counts) {
    const { label, file } = wall.functions[wall.stacks.frames[innermost(wall, stack)].fn];
    standing.set(key(label, file), (standing.get(key(label, file)) ?? 0) + count / looks);
  }
  const waits = (/** @type {Busy} */ { label, file, self }) => {
    const [threads, computing] = [standing.get(key(label, file)) ?? 0, cores * self];
    return threads > STANDING && threads > TIMES * computing;
  };
  return { functions: busy.filter((one) => !waits(one)), waiting: busy.filter(waits) };
}

/**
 * Return the CPU time at each place, and that of all, as a share of one core.
 *
 * @param {CpuProfile} cpu
 * @param {number} interval
 */
function computingAt(cpu, interval) {
  const { counts } = cpu.recent(WINDOW_MS);
  const cores = interval / Math.max(1000, Math.min(WINDOW_MS, cpu.elapsed));
  const { stacks } = cpu;
  const at = new Map();
  let all = 0;
  for (const [stack, count] of counts) {
    const { fn, line } = stacks.frames[stacks.frame[stack]];
    const { label, file } = stacks.functions[fn];
    at.set(key(label, file, line), (at.get(key(label, file, line)) ?? 0) + cores * count);
    all += cores * count;
  }
  return { at, all };
}

/**
 * Return whether a stack ends in the mark of a lock.
 *
 * @param {CpuProfile} profile
 * @param {number} stack
 */
function isLocked({ stacks }, stack) {
  return stacks.functions[stacks.shown[stack]].kind === "lock";
}

/**
 * Return the innermost frame of a stack, its mark aside.
 *
 * @param {CpuProfile} profile
 * @param {number} stack
 */
function innermost(profile, stack) {
  const { frame, parent } = profile.stacks;
  return frame[isLocked(profile, stack) ? parent[stack] : stack];
}

/**
 * Return the other line of a function at which a thread or task is most often, null if that is rare.
 *
 * @param {import("./stacks.js").Stacks} stacks
 * @param {Map<number, number>} counts
 * @param {number} looks
 * @param {{fn: number, line: number}} place
 * @param {(frames: number[]) => number} innermost Returns the frame of a stack that is named.
 * @returns {Beyond | null}
 */
export function findBeyond(stacks, counts, looks, { fn, line }, innermost = (frames) => frames[frames.length - 1]) {
  /** @type {Map<number, {threads: number, inner: Map<number, number>}>} By line. */
  const lines = new Map();
  for (const [stack, count] of counts) {
    const frames = stacks.framesOf(stack);
    const found = frames.findLast((frame) => stacks.frames[frame].fn === fn);
    if (found === undefined || stacks.frames[found].line === line) continue;
    const one = lines.get(stacks.frames[found].line) ?? { threads: 0, inner: new Map() };
    one.threads += count / looks;
    const inner = innermost(frames);
    one.inner.set(inner, (one.inner.get(inner) ?? 0) + count);
    lines.set(stacks.frames[found].line, one);
  }
  const [most] = [...lines].sort((a, b) => b[1].threads - a[1].threads);
  if (most === undefined || most[1].threads < LEAST_SHARE) return null;
  const [[inner]] = [...most[1].inner].sort((a, b) => b[1] - a[1]);
  const { label, file, line: innerLine } = stacks.placeOf(inner);
  return { line: most[0], threads: most[1].threads, inner: label, file, innerLine };
}

/**
 * @param {string} label
 * @param {string} file
 * @param {number} [line]
 */
function key(label, file, line = 0) {
  return `${label}\0${file}\0${line}`;
}
