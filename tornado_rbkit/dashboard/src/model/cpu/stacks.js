// The functions, frames and stacks of samples, each stored once. Stacks are a tree in typed arrays: a stack is one frame
// and the stack of its caller. A caller has a smaller number than what it calls.

import { foldedAs, isOneOfMany, isWaiting, kindOf, runnerOf, startLength } from "./functions.js";

/** The empty stack. */
export const ROOT = 0;

// Limits; samples beyond them are only counted, as omitted.
const MAX_FUNCTIONS = 100_000;
const MAX_FRAMES = 1_000_000;
const MAX_STACKS = 1_000_001; // less than 2 ** 20, see `Thread.counts`

// Stacks with the same caller among which one is looked for before the map is asked.
const LOOKED_AT = 8;

const KEPT_DEPTH = 1000; // of the functions of the sample before

const OUTERMOST = 1; // no caller is the same function
const FIRST_AT_LINE = 2; // no caller is the same function at the same line

/** By state of a thread: the innermost frame that stands for what it does then. */
const MARKS = new Map([["gc", "garbage collection"], ["lock", "(waits for a lock)"]]);

/** What stands for the functions that run cells, outside of the user's code. */
const CELL_RUNNER = "(IPython)";

/**
 * @typedef {object} Fn A function, what stands for many that are folded into one, or a mark.
 * @property {string} label
 * @property {string} name The label, with a line if others may have the same label.
 * @property {string} file
 * @property {number} line Of its definition if known, else of its first sample.
 * @property {string} kind Of `KINDS`.
 * @property {boolean} waits Whether a thread waits while this function is the innermost, if its state is not known.
 * @property {"package" | "run" | "loop" | null} runner Its part in running cells, see `startLength`.
 * @property {boolean} isFold
 * @property {boolean} isMark
 * @property {number} shown The index of the function that stands for it.
 * @property {Map<number, number>} frames Frame index by line.
 *
 * @typedef {{fn: number, line: number, shown: number}} Frame A function at a line, and the function that stands for it.
 */

export class Stacks {
  /** @type {Fn[]} */
  functions = [];
  /** @type {Frame[]} */
  frames = [];
  length = 1;
  parent = new Int32Array(1024);
  frame = new Int32Array(1024);
  shown = new Int32Array(1024); // the function that stands for its frame's
  firstChild = new Int32Array(1024); // 0: none
  nextSibling = new Int32Array(1024);
  #flags = new Uint8Array(1024);
  #byName = new Map(); // function index
  #byFrame = new Map(); // stack by caller and frame, for those beyond the first `LOOKED_AT` of a caller
  // By function and by frame: the number of the last sample that had it, to find recursion.
  /** @type {number[]} */
  #functionSeen = [];
  /** @type {number[]} */
  #frameSeen = [];
  #sample = 0;
  /** @type {{label: string, file: string, definition: any, isMany: boolean, fn: number}[]} */
  #before = []; // the functions of the sample before, by depth

  constructor() {
    this.shown[ROOT] = this.frame[ROOT] = -1;
  }

  /**
   * Return the number of the stack that has these frames, innermost first, and the mark of a state within them; null if
   * the stack exceeds the limits.
   *
   * @param {import("../../connection/protocol.js").Frame[]} frames
   * @param {string | null} state
   */
  add(frames, state = null) {
    this.#sample++;
    const functions = [];
    for (let depth = 0; depth < frames.length; depth++) {
      const fn = this.#functionAt(depth, frames[frames.length - 1 - depth]);
      if (fn === null) return null;
      functions.push(fn);
    }
    const started = startLength(functions, this.functions);
    const runner = started ? this.#standIn(CELL_RUNNER, "library") : null;
    let stack = ROOT;
    for (let depth = 0; depth < functions.length; depth++) {
      const shown = depth < started && runner !== null ? runner : this.functions[functions[depth]].shown;
      const next = this.#step(stack, functions[depth], frames[frames.length - 1 - depth].line, shown);
      if (next === null) return null;
      stack = next;
    }
    const named = MARKS.get(state ?? "");
    const mark = named === undefined ? null : this.#standIn(named, state);
    return mark === null ? stack : this.#step(stack, mark, 0, mark);
  }

  /** Return whether no caller of a stack's frame is the same function, so that a sample counts once if it recurses. */
  isOutermost(stack) {
    return (this.#flags[stack] & OUTERMOST) !== 0;
  }

  /** Return whether no caller of a stack's frame is the same function at the same line. */
  isFirstAtLine(stack) {
    return (this.#flags[stack] & FIRST_AT_LINE) !== 0;
  }

  /** Return whether a thread with this stack waits, by its innermost function. */
  waits(stack) {
    return this.functions[this.frames[this.frame[stack]].fn].waits;
  }

  /** Return the frames of a stack as they were received, outermost first: their indices. */
  framesOf(stack) {
    const frames = [];
    for (let at = stack; at !== ROOT; at = this.parent[at]) {
      const frame = this.frame[at];
      if (!this.functions[this.frames[frame].fn].isMark) frames.push(frame);
    }
    return frames.reverse();
  }

  /** Return where a frame is, by its index. */
  placeOf(frame) {
    const { fn, line } = this.frames[frame];
    const { label, file } = this.functions[fn];
    return { label, file, line };
  }

  /** Add the samples of stacks up to the samples in them and in what they call; return the sums by stack. */
  totals(self) {
    const total = self.slice();
    for (let stack = this.length - 1; stack > ROOT; stack--) total[this.parent[stack]] += total[stack];
    return total;
  }

  #step(caller, fn, line, shown) {
    const frame = this.#frame(fn, line, shown);
    if (frame === null) return null;
    const stack = this.#child(caller, frame) ?? this.#addStack(caller, frame, shown);
    if (stack !== null) this.#functionSeen[shown] = this.#frameSeen[frame] = this.#sample;
    return stack;
  }

  /** Return the stack with this caller and frame; undefined if there is none. */
  #child(caller, frame) {
    let child = this.firstChild[caller];
    for (let n = 0; n < LOOKED_AT && child; n++) {
      if (this.frame[child] === frame) return child;
      child = this.nextSibling[child];
    }
    return child ? this.#byFrame.get(caller * MAX_FRAMES + frame) : undefined;
  }

  /** Put the stack into the map that `#child` does not reach any more, because its caller has a new one. */
  #keepReachable(caller) {
    let child = this.firstChild[caller];
    for (let n = 0; n < LOOKED_AT && child; n++) child = this.nextSibling[child];
    if (child) this.#byFrame.set(caller * MAX_FRAMES + this.frame[child], child);
  }

  /** Return the number of a new stack; null beyond the limit. */
  #addStack(caller, frame, shown) {
    if (this.length >= MAX_STACKS) return null;
    const stack = this.length++;
    if (stack === this.parent.length) this.#grow();
    this.parent[stack] = caller;
    this.frame[stack] = frame;
    this.shown[stack] = shown;
    this.nextSibling[stack] = this.firstChild[caller];
    this.firstChild[caller] = stack;
    this.#flags[stack] = (this.#functionSeen[shown] === this.#sample ? 0 : OUTERMOST) | (this.#frameSeen[frame] === this.#sample ? 0 : FIRST_AT_LINE);
    this.#keepReachable(caller);
    return stack;
  }

  #grow() {
    const size = this.parent.length * 2;
    for (const name of /** @type {const} */ (["parent", "frame", "shown", "firstChild", "nextSibling"])) {
      const grown = new Int32Array(size);
      grown.set(this[name]);
      this[name] = grown;
    }
    const flags = new Uint8Array(size);
    flags.set(this.#flags);
    this.#flags = flags;
  }

  /** Return the same as `#function`, quicker if the sample before had the function at the same depth. */
  #functionAt(depth, place) {
    const before = this.#before[depth];
    const isSame = before?.label === place.label && before.file === place.file && before.definition === place.definition && !before.isMany;
    if (isSame) return before.fn;
    const fn = this.#function(place);
    if (fn !== null && depth < KEPT_DEPTH) this.#before[depth] = { label: place.label, file: place.file, definition: place.definition, isMany: isOneOfMany(place.label), fn };
    return fn;
  }

  /** Return the index of a function, adding it if needed; null beyond the limit. */
  #function({ label, file, line, definition = null }) {
    const isMany = isOneOfMany(label);
    // Without the line of the definition, the line is that of a Ruby block's definition, and a lambda rarely has two.
    const defined = definition ?? (isMany ? line : "");
    const key = `${label}\0${file}\0${defined}`;
    const known = this.#byName.get(key);
    if (known !== undefined) return known;
    const index = this.#addFunction(key, {
      ...{ label, file, line: definition ?? line, name: isMany ? `${label}:${defined}` : label },
      ...{ kind: kindOf(file), waits: isWaiting(label, file), runner: runnerOf(label, file) },
    });
    const fold = foldedAs(label, file);
    if (index !== null && fold !== null) this.functions[index].shown = this.#standIn(fold, "standard") ?? index;
    return index;
  }

  /** Return the index of what stands for folded functions, or of a mark; null beyond the limit. */
  #standIn(name, kind) {
    const key = `\0${name}`; // no received function has it
    const isMark = kind === "gc" || kind === "lock";
    return this.#byName.get(key) ?? this.#addFunction(key, { label: name, name, kind, isFold: !isMark, isMark });
  }

  /** Return the index of a new function; null beyond the limit. */
  #addFunction(key, properties) {
    const index = this.functions.length;
    if (index >= MAX_FUNCTIONS) return null;
    this.#byName.set(key, index);
    this.functions.push({ file: "", line: 0, waits: false, runner: null, isFold: false, isMark: false, shown: index, frames: new Map(), ...properties });
    return index;
  }

  /** Return the index of a function at a line, adding it if needed; null beyond the limit. */
  #frame(fn, line, shown) {
    const { frames, shown: usual } = this.functions[fn];
    const key = 2 * line + (shown === usual ? 0 : 1);
    const known = frames.get(key);
    if (known !== undefined) return known;
    if (this.frames.length >= MAX_FRAMES) return null;
    const index = this.frames.push({ fn, line, shown }) - 1;
    frames.set(key, index);
    return index;
  }
}
