// The frames of flame graphs: calls (callers above what they call) and callers (what is called above its callers).

import { ROOT } from "./stacks.js";

// Most frames of a graph, and the smallest frame drawn, as a fraction (1 / SMALLEST) of its width.
const MAX_FRAMES = 2000;
const SMALLEST = 2000;

/**
 * @typedef {import("./selection.js").Selection & {before?: import("./selection.js").Selection}} Weights
 *
 * @typedef {{at: number[], of: number[]}} Group What a frame stands for: samples of the stacks `of`, of which the stacks
 *   `at` lead to the next frames.
 *
 * @typedef {object} Direction How frames follow each other.
 * @property {Weights} weights
 * @property {(weights: Weights, group: Group) => number} value Samples in a group.
 * @property {(group: Group, fn: number) => Map<number, Group>} next The groups that follow the frame of a function.
 * @property {(group: Group, matches: Uint8Array) => number} matched Samples whose stack matches, by stack.
 */

/** Callers first, and below them what they call. @implements {Direction} */
export class Calls {
  /** @param {Weights} weights */
  constructor(weights) {
    this.weights = weights;
    this.stacks = weights.stacks;
    /** @type {Group} */
    this.root = { at: [ROOT], of: [] };
  }

  /** Return a graph's beginning at a function, wherever it is called. */
  static within(weights, fn) {
    return Object.assign(new Calls(weights), { root: { at: callsOf(weights, fn), of: [] } });
  }

  value(weights, { at }) {
    return at.reduce((sum, stack) => sum + (weights.total[stack] ?? 0), 0);
  }

  next({ at }, fn) {
    const { shown, firstChild, nextSibling, functions } = this.stacks;
    const { total } = this.weights;
    const isFold = fn >= 0 && functions[fn].isFold; // its calls of itself belong to its frame
    /** @type {Map<number, Group>} */
    const found = new Map();
    const waiting = [...at];
    for (let stack = waiting.pop(); stack !== undefined; stack = waiting.pop()) {
      for (let child = firstChild[stack]; child; child = nextSibling[child]) {
        if (isFold && shown[child] === fn) waiting.push(child);
        else if (total[child]) group(found, shown[child]).at.push(child);
      }
    }
    return found;
  }

  matched({ at }, matches) {
    const { parent } = this.stacks;
    const inside = new Uint8Array(this.weights.self.length);
    for (const stack of at) inside[stack] = 1;
    let matched = 0;
    for (let stack = 0; stack < inside.length; stack++) {
      if (stack) inside[stack] ||= inside[parent[stack]];
      if (inside[stack] && matches[stack]) matched += this.weights.self[stack];
    }
    return matched;
  }
}

/** The innermost functions first, and after them their callers. @implements {Direction} */
export class Callers {
  /** @param {Weights} weights */
  constructor(weights) {
    this.weights = weights;
    this.stacks = weights.stacks;
    this.of = "self";
    const ends = [...weights.self.keys()].filter((stack) => weights.self[stack]);
    /** @type {Group} */
    this.root = { at: ends, of: ends };
  }

  /** Return a graph's beginning at a function, wherever it is called. */
  static of(weights, fn) {
    const calls = callsOf(weights, fn);
    return Object.assign(new Callers(weights), { of: "total", root: { at: calls.map((stack) => weights.stacks.parent[stack]), of: calls } });
  }

  /** @param {Weights} weights @param {{of: number[]}} group */
  value(weights, { of }) {
    return of.reduce((sum, stack) => sum + (weights[this.of][stack] ?? 0), 0);
  }

  next({ at, of }, fn) {
    const { shown, parent, functions } = this.stacks;
    const isFold = fn >= 0 && functions[fn].isFold;
    /** @type {Map<number, Group>} */
    const found = new Map();
    at.forEach((stack, i) => {
      while (isFold && stack !== ROOT && shown[stack] === fn) stack = parent[stack];
      if (stack === ROOT) return;
      const next = group(found, shown[stack]);
      next.at.push(parent[stack]);
      next.of.push(of[i]);
    });
    return found;
  }

  matched({ of }, matches) {
    return this.value(this.weights, { of: of.filter((stack) => matches[stack]) });
  }
}

/** Return the stacks that end in a function, but not in a call of itself. */
function callsOf(weights, fn) {
  const { stacks, total } = weights;
  const calls = [];
  for (let stack = 1; stack < total.length; stack++) {
    if (stacks.shown[stack] === fn && total[stack] && stacks.isOutermost(stack)) calls.push(stack);
  }
  return calls;
}

function group(found, fn) {
  let one = found.get(fn);
  if (one === undefined) found.set(fn, (one = { at: [], of: [] }));
  return one;
}

/**
 * @typedef {object} GraphFrame
 * @property {string} name
 * @property {number | string} [fn] A function, or the id of a thread or task whose frames it has.
 * @property {number} value
 * @property {number} self
 * @property {number} [before] Of a difference: the part of `value` that is the earlier selection's.
 * @property {any} parent An index; null for the first frame.
 * @property {number} [cut] It stands for that many frames too small to draw, or too many.
 * @property {string} [file]
 * @property {number} [line]
 * @property {string} [kind]
 */

/**
 * Return the frames of a graph: the root is first, and a frame is after the one it hangs on. Below the root there is a
 * frame of its own for each of `groups`, if they have names. A `path` of functions (and of a group) limits the graph to
 * that path; `zoom` is the number of its levels that exist. `matched` is the part of the last level's value that
 * `matches` has.
 *
 * @param {string} name Of the root.
 * @param {{id: string | null, title: string, direction: Direction & {root: Group}}[]} groups
 * @param {(number | string)[]} path
 * @param {Uint8Array | null} matches By stack.
 */
export function build(name, groups, path = [], matches = null) {
  const isNamed = groups.some(({ id }) => id !== null);
  const roots = groups.map(({ id, title, direction }) => grow(direction, direction.root, { name: title, fn: id ?? undefined }, null));
  const sum = (key) => roots.reduce((all, { frame }) => all + (frame[key] ?? 0), 0);
  /** @type {GraphFrame} */
  const all = { ...roots[0]?.frame, name, fn: undefined, value: sum("value"), self: 0, parent: null };
  if (all.before !== undefined) all.before = sum("before");
  const frames = [all];
  let within = isNamed ? roots : roots.map((root) => ({ ...root, frame: all }));
  for (const fn of path) {
    const next = (isNamed && frames.length === 1 ? within : within.flatMap((one) => following(one))).filter(({ frame }) => frame.fn === fn);
    if (!next.length) break;
    within = next;
    frames.push({ ...next[0].frame, parent: frames.length - 1 });
  }
  const zoom = frames.length - 1;
  const last = frames[zoom];
  const matched = matches === null ? 0 : within.reduce((all, { direction, group: samples }) => all + direction.matched(samples, matches), 0);
  let grown = within.map((one) => ({ ...one, frame: last }));
  if (isNamed && !zoom) {
    const root = { frame: last, cut: { count: 0, value: 0 } };
    for (const { frame } of within) frame.parent = root;
    grown = /** @type {any[]} */ ([root, ...within]);
  }
  return { frames: [...frames.slice(0, zoom), ...numbered(prune(grown, last.value / SMALLEST), zoom)], zoom, total: all.value, matched };
}

/** Return the frame of a group and what is needed to follow it. */
function grow(direction, samples, frame, parent) {
  const { weights } = direction;
  const value = Math.min(direction.value(weights, samples), parent?.frame.value ?? Infinity); // sums of fractions differ
  /** @type {GraphFrame} */
  const whole = { ...frame, value, self: 0, parent };
  if (weights.before) whole.before = direction.value(weights.before, samples);
  return { frame: whole, direction, group: samples, cut: { count: 0, value: 0 } };
}

/** Return what follows a frame; count what is smaller than `smallest` as cut. */
function following(one, smallest = 0) {
  const { direction, frame } = one;
  const { weights } = direction;
  const found = [];
  for (const [fn, samples] of direction.next(one.group, typeof frame.fn === "number" ? frame.fn : -1)) {
    const value = direction.value(weights, samples);
    if (value < smallest) {
      cut(one, value);
      continue;
    }
    const { name, file, line, kind } = weights.stacks.functions[fn];
    found.push(grow(direction, samples, { name, file, line, kind, fn }, one));
  }
  return found;
}

/** Follow frames as far as they are large enough; count the others as cut from the frame they hang on. */
function prune(within, smallest) {
  for (const one of within) {
    if (!one.direction) continue; // its groups are there
    const before = one.cut.value;
    let inside = 0;
    for (const next of following(one, smallest)) {
      inside += next.frame.value;
      within.push(next);
    }
    one.frame.self = Math.max(0, one.frame.value - inside - one.cut.value + before);
  }
  within.sort((a, b) => b.frame.value - a.frame.value); // no frame is larger than the one it hangs on, which stays before it
  for (const one of within.splice(MAX_FRAMES)) cut(one.frame.parent, one.frame.value);
  return within;
}

function cut(from, value) {
  from.cut.count++;
  from.cut.value += value;
}

/** Return frames with the indices of their parents, and the frames of what was cut. */
function numbered(within, first) {
  const frames = [];
  within.forEach((one, i) => {
    one.at = first + i;
    frames.push(i ? { ...one.frame, parent: one.frame.parent.at } : one.frame);
  });
  for (const { at, cut: { count, value } } of within) {
    if (count) frames.push({ name: `${count} frame${count === 1 ? "" : "s"} too small to draw`, cut: count, value, self: value, parent: at });
  }
  return frames;
}
