// The lines of a developer's own code that samples are due to: time in a library counts for the line that calls it.

const WINDOW_MS = 10_000;
const LEAST_LOOKS = 20; // at a thread

/** A thread that is at one line for such a part of its time has nothing to do, if others have. */
const PARKED = 0.95;

/** The least part of a thread's time at a line that is named. */
const LEAST_SHARE = 0.1;

/** CPU time of the process, in % of one core, below which a thread that is at a line for longer than that waits there. */
const HARDLY_COMPUTES = 30;

/**
 * @typedef {import("./profile.js").CpuProfile} CpuProfile
 * @typedef {import("./stacks.js").Stacks} Stacks
 * @typedef {{label: string, file: string, line: number}} Place
 *
 * @typedef {object} Cause
 * @property {"own" | "library" | "gc"} kind What it is: own code, library code that an own line calls or that runs by
 *   itself, or garbage collection.
 * @property {string} label
 * @property {string} file
 * @property {number} line
 * @property {number} self Samples.
 * @property {(Place & {isMost: boolean}) | null} inner Of a call of a library the function in it that has most samples; of
 *   garbage collection the own line that has most.
 *
 * @typedef {object} Standing Where a thread that does not compute is.
 * @property {string} thread Its name.
 * @property {(Place & {share: number, inner: Place | null})[]} places Own lines, with the library function that waits.
 */

/**
 * Return what own code the samples of functions are due to, the most first.
 *
 * @param {CpuProfile} profile
 * @param {{index: number}[]} functions Those whose samples count.
 * @returns {Cause[]}
 */
export function findCauses(profile, functions) {
  const { stacks } = profile;
  const counted = new Set(functions.map(({ index }) => index));
  /** @type {Map<string, Cause & {inners: Map<string, Place & {self: number}>}>} */
  const causes = new Map();
  const self = profile.selfByStack();
  for (let stack = 1; stack < self.length; stack++) {
    if (!self[stack] || !counted.has(stacks.shown[stack])) continue;
    const leaf = stacks.functions[stacks.shown[stack]];
    const own = leaf.kind === "own" ? null : ownFrame(stacks, stack);
    const caller = own === null ? null : stacks.placeOf(own);
    const isCollection = leaf.kind === "gc";
    const [at, inner] = caller === null ? [leaf, null] : isCollection ? [leaf, caller] : [caller, leaf];
    const key = `${at.label}\0${at.file}\0${inner === caller ? "" : at.line}`;
    let cause = causes.get(key);
    if (cause === undefined) {
      const kind = isCollection ? "gc" : leaf.kind === "own" ? "own" : "library";
      cause = { kind, label: at.label, file: at.file, line: at.line, self: 0, inner: null, inners: new Map() };
      causes.set(key, cause);
    }
    cause.self += self[stack];
    if (inner === null) continue;
    const name = `${inner.label}\0${inner.file}\0${isCollection ? inner.line : ""}`;
    const one = cause.inners.get(name) ?? { label: inner.label, file: inner.file, line: inner.line, self: 0 };
    one.self += self[stack];
    cause.inners.set(name, one);
  }
  const sorted = [...causes.values()].sort((a, b) => b.self - a.self);
  return sorted.map(({ inners, ...cause }) => ({ ...cause, inner: mostOf(inners, cause.self) }));
}

/**
 * Return where a thread waits that is not at one line all the time, preferably the main thread; null if none is known.
 *
 * @param {CpuProfile} wall The profile by the wall clock.
 * @param {number | null} cpu CPU time of the process, in % of one core; null if it is not known.
 * @returns {Standing | null}
 */
export function findStanding(wall, cpu) {
  if (cpu === null) return null;
  const threads = wall.recentByThread(WINDOW_MS).filter(({ samples }) => samples >= LEAST_LOOKS);
  const counted = cpu < HARDLY_COMPUTES ? "all" : "idle";
  const standing = threads.map((thread) => ({ ...thread, places: placesOf(wall.stacks, thread[counted], thread.idle, thread.samples, cpu / 100) }));
  const isParked = (/** @type {{places: {share: number}[]}} */ { places }) => (places[0]?.share ?? 0) >= PARKED;
  const found = standing.filter(({ places }) => places.length);
  found.sort((a, b) => Number(isParked(a)) - Number(isParked(b)) || Number(b.isMain) - Number(a.isMain) || b.samples - a.samples);
  return found.length ? { thread: found[0].title, places: found[0].places } : null;
}

/**
 * Return where a thread waits: where it is known to wait, or is for longer than the whole process computes.
 *
 * @param {Stacks} stacks
 * @param {Map<number, number>} counts By stack.
 * @param {Map<number, number>} idle Those of them that are known to wait.
 * @param {number} samples
 * @param {number} computing The part of the time for which the process computes.
 */
function placesOf(stacks, counts, idle, samples, computing) {
  /** @type {Map<number, {count: number, idle: number, inners: Map<string, Place & {self: number}>}>} By frame. */
  const places = new Map();
  for (const [stack, count] of counts) {
    const own = ownFrame(stacks, stack);
    if (own === null) continue;
    const place = places.get(own) ?? { count: 0, idle: 0, inners: new Map() };
    place.count += count;
    place.idle += idle.get(stack) ?? 0;
    const inner = stacks.placeOf(stacks.frame[stack]);
    const name = `${inner.label}\0${inner.file}`;
    const one = place.inners.get(name) ?? { ...inner, self: 0 };
    one.self += count;
    place.inners.set(name, one);
    places.set(own, place);
  }
  return [...places]
    .filter(([, { count, idle: waits }]) => Math.max(waits, count - computing * samples) >= LEAST_SHARE * samples)
    .map(([frame, { count, inners }]) => {
      const at = stacks.placeOf(frame);
      const inner = mostOf(inners, count);
      return { ...at, share: count / samples, inner: inner === null || inner.label === at.label ? null : inner };
    })
    .sort((a, b) => b.share - a.share);
}

/**
 * Return the innermost own frame of a stack, null if there is none, or if an event loop calls what is within it.
 *
 * @param {Stacks} stacks
 * @param {number} stack
 */
function ownFrame({ functions, frames, frame, parent, shown }, stack) {
  for (let each = stack; each; each = parent[each]) {
    if (frame[each] < 0) continue;
    const { kind, label, file } = functions[shown[each]];
    if (kind === "own") return frame[each];
    if (isLoop(label, file)) return null;
  }
  return null;
}

/**
 * Return whether a function calls others as events come: what it calls is not due to the line that started it.
 *
 * @param {string} label
 * @param {string} file
 */
function isLoop(label, file) {
  return /(^|\.)(run_forever|_run_once|run_until_complete|Runner\.run|serve_forever|_bootstrap_inner)$/.test(label) && /[\\/](asyncio[\\/]\w+|socketserver|threading)\.py$/.test(file);
}

/**
 * @param {Map<string, Place & {self: number}>} places
 * @param {number} all
 */
function mostOf(places, all) {
  const [most] = [...places.values()].sort((a, b) => b.self - a.self);
  if (most === undefined) return null;
  const { self, ...place } = most;
  return { ...place, isMost: self > all / 2 };
}
