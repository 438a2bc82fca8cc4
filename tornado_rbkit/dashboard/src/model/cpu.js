// @ts-check
// CPU samples as call trees, one for each thread. Each sample counts as 1: rbkit gives no durations.

import { foldedAs, isOneOfMany, isWaiting, kindOf } from "./functions.js";

// Samples whose order is kept for export; for later samples only the count per stack is kept.
const MAX_ORDERED = 2_000_000;

// Most frames of a flame graph, and the smallest frame drawn, as a fraction (1 / SMALLEST) of its width.
const MAX_FRAMES = 2000;
const SMALLEST = 2000;

// Most callers, callees and lines shown of a function.
const DETAILS = 50;

// Threads that are listed, and threads with a call tree of their own: an unlisted one may still become busy.
const LISTED_THREADS = 50;
const KEPT_THREADS = 200;

// A thread without a sample for longer was not sampled, or did not run; ms.
const LONGEST_STEP = 1000;

// The name of the entry for all unlisted threads.
const OTHERS = "(others)";

// Limits of the call trees; samples beyond them are only counted, as omitted.
const MAX_FUNCTIONS = 100_000;
const MAX_NODES = 1_000_000;

class Node {
  self = 0;
  total = 0;
  idle = 0; // the part of `total` in which the thread waited
  /** @type {Map<number, Node> | null} */
  children = null; // by frame index; null until there is a child

  /**
   * `frame` is an index into `frames`, `fn` an index into `functions`, and `shown` the function that stands for it: the
   * one into which it is folded, else itself.
   */
  constructor(frame, fn, shown, parent) {
    this.frame = frame;
    this.fn = fn;
    this.shown = shown;
    this.parent = parent;
  }

  adopt(child) {
    (this.children ??= new Map()).set(child.frame, child);
    child.parent = this;
  }
}

/** A thread's samples. */
class Thread {
  root = new Node(-1, -1, -1, null);
  samples = 0;
  /** @type {Node[]} */
  order = []; // the nodes in which its samples ended, up to MAX_ORDERED in total
  last = 0; // the number of its last sample
  steps = 0; // times from one sample to the next, except pauses
  span = 0; // ms, the sum of them
  #at = -Infinity; // ms

  constructor(id) {
    this.id = id;
  }

  /** Record the time of a sample. */
  step(time) {
    const step = time - this.#at;
    this.#at = time;
    if (step < 0 || step > LONGEST_STEP) return;
    this.steps++;
    this.span += step;
  }

  /** Return how many samples there are, with those in which the thread waited or without. */
  count(idle) {
    return idle ? this.root.total : this.root.total - this.root.idle;
  }
}

/**
 * @typedef {object} Fn A function, or what stands for many that are folded into one.
 * @property {string} label
 * @property {string} file
 * @property {number} line Of its first sample.
 * @property {number} self Samples in the function itself.
 * @property {number} total Samples in it and what it called.
 * @property {number} idleSelf The part of `self` in which the thread waited.
 * @property {number} idleTotal
 * @property {boolean} waits Whether a thread waits while this function is the innermost.
 * @property {boolean} isFold
 * @property {number} shown The index of the function that stands for it.
 * @property {Map<number, number>} frames Frame index by line.
 */

export class CpuProfile {
  /** @type {Fn[]} */
  functions = [];
  frames = []; // {fn, line}: a function at a line
  /** @type {Map<string, Thread>} */
  threads = new Map(); // by id
  samples = 0;
  omitted = 0; // samples beyond the limits
  /** @type {number | null} */
  first = null; // ms
  /** @type {number | null} */
  last = null;
  missing = 0; // messages that may have held samples
  #rest = new Thread(OTHERS); // threads that were merged
  #byName = new Map();
  /** @type {number[]} */
  #seen = []; // by function index: the number of the last sample it was in
  #ordered = 0;
  #nodes = 0;

  /** @param {import("../connection/protocol.js").Sample} sample */
  add({ time, thread: id, frames }) {
    if (!frames.length) return;
    const thread = this.#thread(id);
    const path = this.#path(thread.root, frames);
    this.#pass(time);
    if (path === null) {
      this.omitted++;
      return;
    }
    this.samples++;
    thread.samples++;
    thread.last = this.samples;
    thread.step(time);
    const leaf = path[path.length - 1];
    const idle = this.functions[leaf.fn].waits ? 1 : 0;
    thread.root.total++;
    thread.root.idle += idle;
    for (const node of path) {
      node.total++;
      node.idle += idle;
      if (this.#seen[node.shown] === this.samples) continue;
      this.#seen[node.shown] = this.samples; // once per sample, also if it recurses
      this.functions[node.shown].total++;
      this.functions[node.shown].idleTotal += idle;
    }
    this.functions[leaf.shown].self++;
    this.functions[leaf.shown].idleSelf += idle;
    leaf.self++;
    if (this.#ordered < MAX_ORDERED) {
      this.#ordered++;
      thread.order.push(leaf);
    }
  }

  /** The time between two samples of a thread in ms, as far as it was sampled all the time; null if unknown. */
  get period() {
    const { span, steps } = [...this.threads.values()].reduce((most, one) => (one.steps > most.steps ? one : most), this.#rest);
    return span > 0 ? span / steps : null;
  }

  /** Return the listed threads, by descending samples; one last entry stands for all unlisted threads. */
  threadList(idle = true) {
    const { listed, others } = this.#split();
    const list = listed.map((thread) => ({ id: thread.id, samples: thread.count(idle) })).filter(({ samples }) => samples);
    const samples = others.reduce((sum, thread) => sum + thread.count(idle), 0);
    return samples ? [...list, { id: OTHERS, samples }] : list;
  }

  /**
   * Return the flame graph of one thread or of all threads: frames {name, file, line, kind, fn, value, self, parent},
   * where `parent` is an index. The root is first, and callers precede callees. A frame with `cut` stands for that many
   * frames too small to draw, or too many. Without `idle`, samples of waiting threads are left out. A `path` of functions
   * limits the graph to that path; `zoom` is the number of its levels that exist. `matched` is the part of the last
   * level's value in functions with the text `search`.
   */
  flame({ thread = null, path = [], idle = true, search = "" }) {
    const weight = weigh(idle);
    const sum = (nodes) => nodes.reduce((all, node) => all + weight(node), 0);
    let nodes = this.#roots(thread);
    const total = sum(nodes);
    /** @type {any[]} */
    const frames = [{ name: "all", value: total, self: 0, parent: null }];
    for (const fn of path) {
      const same = this.#calls(nodes, frames.at(-1).fn, weight).get(fn);
      if (same === undefined) break;
      nodes = same;
      frames.push(this.#frameOf(fn, sum(same), frames.length - 1));
    }
    const zoom = frames.length - 1;
    /** @type {any[]} */
    const within = [{ frame: frames.pop(), nodes, cut: { count: 0, value: 0 } }];
    const smallest = within[0].frame.value / SMALLEST;
    const cut = (caller, value) => {
      caller.cut.count++;
      caller.cut.value += value;
    };
    for (const caller of within) {
      for (const [fn, same] of this.#calls(caller.nodes, caller.frame.fn, weight)) {
        const frame = this.#frameOf(fn, sum(same), caller);
        caller.frame.self -= frame.value;
        if (frame.value >= smallest) within.push({ frame, nodes: same, cut: { count: 0, value: 0 } });
        else cut(caller, frame.value);
      }
      caller.frame.self += caller.frame.value;
    }
    within.sort((a, b) => b.frame.value - a.frame.value); // no frame is larger than its parent, so callers stay first
    for (const one of within.splice(MAX_FRAMES)) cut(one.frame.parent, one.frame.value);
    for (const one of within) {
      one.at = frames.length;
      frames.push(one.at === zoom ? one.frame : { ...one.frame, parent: one.frame.parent.at });
    }
    for (const { at, cut: { count, value } } of within) {
      if (count) frames.push({ name: `${count} frame${count === 1 ? "" : "s"} too small to draw`, cut: count, value, self: value, parent: at });
    }
    return { frames, zoom, total, matched: search ? this.#matched(nodes, path.slice(0, zoom), search, weight) : 0 };
  }

  /** Return the functions of one thread or of all threads, with their self and total samples. */
  table({ thread = null, filter = "", sort = "self", descending = true, limit = 200, idle = true }) {
    const counts = thread === null ? this.functions.map((fn) => countsOf(fn, idle)) : this.#count(thread, idle);
    const rows = this.functions
      .map((fn, index) => ({ index, label: fn.label, file: fn.file, line: fn.line, ...counts[index] }))
      .filter((row) => row.total > 0 && has(row, filter));
    const order = descending ? -1 : 1;
    rows.sort((a, b) => order * (a[sort] < b[sort] ? -1 : a[sort] > b[sort] ? 1 : 0) || b.total - a.total);
    return { rows: rows.slice(0, limit), matching: rows.length };
  }

  /** Return the callers and callees of a function by samples, and its hottest lines; null if it does not exist. */
  details(index, thread = null, idle = true) {
    if (this.functions[index] === undefined) return null;
    const weight = weigh(idle);
    const callers = new Map();
    const callees = new Map();
    const lines = new Map();
    const add = (map, key, samples) => map.set(key, (map.get(key) ?? 0) + samples);
    // With recursion a sample counts once: for its outermost caller, and for the outermost call of each callee.
    const called = new Set(); // on the way to the node
    let inside = 0;
    for (const root of this.#roots(thread)) {
      walk(
        root,
        (node) => {
          const { parent, shown } = node;
          const isCall = parent?.shown === index && shown !== index && !called.has(shown);
          if (isCall) {
            add(callees, shown, weight(node));
            called.add(shown);
          }
          if (shown === index && !inside++) add(callers, parent?.shown, weight(node));
          if (shown === index) add(lines, this.frames[node.frame].line, this.#selfOf(node, idle));
          return isCall;
        },
        (node, isCall) => {
          if (isCall) called.delete(node.shown);
          if (node.shown === index) inside--;
        },
      );
    }
    const sum = (map) => [...map.values()].reduce((all, samples) => all + samples, 0);
    const most = (map, label) =>
      [...map].filter(([, samples]) => samples).sort((a, b) => b[1] - a[1]).slice(0, DETAILS).map(([key, samples]) => ({ index: key < 0 ? null : key, label: label(key), samples }));
    const labelOf = (fn) => (fn < 0 ? "(thread)" : this.functions[fn].label);
    const { label, file, line, isFold } = this.functions[index];
    return {
      label,
      file,
      line,
      self: sum(lines),
      samples: sum(callers),
      callers: most(callers, labelOf),
      callees: most(callees, labelOf),
      lines: isFold ? [] : most(lines, (number) => `line ${number}`),
    };
  }

  /** Return a speedscope file, the same bytes that `tornado-rbkit export` writes. */
  speedscope(name) {
    const file = {
      $schema: "https://www.speedscope.app/file-format-schema.json",
      exporter: "tornado_rbkit",
      name,
      shared: { frames: this.frames.map(({ fn, line }) => ({ name: this.functions[fn].label, file: this.functions[fn].file, line })) },
      profiles: this.#all().map((thread) => {
        const stacks = thread.order.length === thread.samples ? thread.order.map((node) => [node, 1]) : leaves(thread.root);
        return {
          type: "sampled",
          name: `thread ${thread.id}`,
          unit: "none",
          startValue: 0,
          endValue: thread.samples,
          samples: stacks.map(([node]) => stack(node).map(({ frame }) => frame)),
          weights: stacks.map(([, weight]) => weight),
        };
      }),
    };
    return `${JSON.stringify(file).replace(/[\u007f-\uffff]/g, escaped)}\n`;
  }

  /** Return the sorted stacks that flamegraph.pl and similar tools read, the same bytes that `tornado-rbkit export` writes. */
  collapsed() {
    const place = ({ label, file, line }) => (isOneOfMany(label) ? `${label} (${file}:${line})` : label);
    const word = (label) => label.replaceAll(";", ":").replace(NOT_PRINTABLE, " ").trim() || "?";
    const counts = new Map();
    for (const { id, root } of this.#all()) {
      for (const [node, count] of leaves(root)) {
        const line = [`thread ${id}`, ...stack(node).map(({ fn }) => word(place(this.functions[fn])))].join(";");
        counts.set(line, (counts.get(line) ?? 0) + count);
      }
    }
    return [...counts].sort(([a], [b]) => byCodePoint(a, b)).map(([line, count]) => `${line} ${count}\n`).join("");
  }

  #thread(id) {
    let thread = this.threads.get(id);
    if (thread === undefined) {
      if (this.threads.size >= KEPT_THREADS) this.#mergeThreads();
      thread = new Thread(id);
      this.threads.set(id, thread);
    }
    return thread;
  }

  /** Merge the unlisted threads, except the half sampled most recently, into one. */
  #mergeThreads() {
    const { others } = this.#split();
    const kept = others.filter((thread) => thread !== this.#rest).sort((a, b) => b.last - a.last);
    for (const thread of kept.slice(kept.length / 2)) {
      this.threads.delete(thread.id);
      this.#rest.samples += thread.samples;
      this.#ordered -= thread.order.length;
      this.#nodes -= merge(this.#rest.root, thread.root);
    }
  }

  /** Return the listed threads, by descending samples, and the unlisted threads. */
  #split() {
    const sorted = [...this.threads.values()].sort((a, b) => b.samples - a.samples);
    return { listed: sorted.slice(0, LISTED_THREADS), others: [...sorted.slice(LISTED_THREADS), this.#rest] };
  }

  #all() {
    return this.#rest.samples ? [...this.threads.values(), this.#rest] : [...this.threads.values()];
  }

  /** Return the nodes of a stack, outermost first, creating missing nodes; null if this exceeds the limits. */
  #path(root, frames) {
    const path = [];
    let node = root;
    for (let i = frames.length - 1; i >= 0; i--) {
      const fn = this.#function(frames[i]);
      const frame = fn === null ? null : this.#frame(fn, frames[i].line);
      let child = node.children?.get(frame);
      if (child === undefined) {
        if (frame === null || this.#nodes >= MAX_NODES) return null;
        this.#nodes++;
        child = new Node(frame, fn, this.functions[fn].shown, node);
        node.adopt(child);
      }
      path.push(child);
      node = child;
    }
    return path;
  }

  /** Record the time of a sample. If the clock was set back, move `first` back too, to keep the duration right. */
  #pass(time) {
    if (this.first === null || this.last === null) this.first = time;
    else if (time < this.last) this.first -= this.last - time;
    this.last = time;
  }

  /** Return the index of a function, adding it if needed; null beyond the limit. */
  #function({ label, file, line }) {
    // Of a Python function the wire has no line of the definition.
    const at = isOneOfMany(label) ? line : "";
    const key = `${label}\0${file}\0${at}`;
    const known = this.#byName.get(key);
    if (known !== undefined) return known;
    if (this.functions.length >= MAX_FUNCTIONS) return null;
    const counts = { self: 0, total: 0, idleSelf: 0, idleTotal: 0 };
    const index = this.functions.push({ label, file, line, ...counts, waits: isWaiting(label, file), isFold: false, shown: -1, frames: new Map() }) - 1;
    this.#byName.set(key, index);
    const fold = foldedAs(label, file);
    this.functions[index].shown = fold === null ? index : (this.#fold(fold) ?? index);
    return index;
  }

  /** Return the index of what stands for folded functions; null beyond the limit. */
  #fold(name) {
    const index = this.#function({ label: name, file: "", line: 0 });
    if (index !== null) this.functions[index].isFold = true;
    return index;
  }

  /** Return the index of a function at a line, adding it if needed; null beyond the limit. */
  #frame(fn, line) {
    const { frames } = this.functions[fn];
    const known = frames.get(line);
    if (known !== undefined) return known;
    if (this.frames.length >= MAX_NODES) return null;
    const index = this.frames.push({ fn, line }) - 1;
    frames.set(line, index);
    return index;
  }

  #roots(thread) {
    if (thread === null) return this.#all().map(({ root }) => root);
    if (thread === OTHERS) return this.#split().others.map(({ root }) => root);
    const one = this.threads.get(thread);
    return one ? [one.root] : [];
  }

  #frameOf(fn, value, parent) {
    const { label, file, line, isFold } = this.functions[fn];
    const name = isOneOfMany(label) ? `${label}:${line}` : label;
    return { name, file, line, kind: isFold ? "standard" : kindOf(file), fn, value, self: 0, parent };
  }

  /** Return what the nodes of a frame call, by function. A folded function's calls of itself belong to its frame. */
  #calls(nodes, fn, weight) {
    const found = new Map();
    const isFold = Boolean(this.functions[fn]?.isFold);
    const waiting = [...nodes];
    for (let node = waiting.pop(); node; node = waiting.pop()) {
      for (const child of childrenOf(node)) {
        if (isFold && child.shown === fn) waiting.push(child);
        else if (weight(child)) {
          const same = found.get(child.shown);
          if (same) same.push(child);
          else found.set(child.shown, [child]);
        }
      }
    }
    return found;
  }

  /** Return how many samples below these nodes have a function with a text in its name or file. */
  #matched(nodes, path, search, weight) {
    const matches = this.functions.map((fn) => has(fn, search));
    if (path.some((fn) => matches[fn])) return nodes.reduce((all, node) => all + weight(node), 0);
    let matched = 0;
    let inside = 0;
    for (const root of nodes) {
      walk(
        root,
        (node) => {
          if (matches[node.shown] && !inside++) matched += weight(node);
        },
        (node) => {
          if (matches[node.shown]) inside--;
        },
      );
    }
    return matched;
  }

  #selfOf(node, idle) {
    return idle || !this.functions[node.fn].waits ? node.self : 0;
  }

  #count(thread, idle) {
    const weight = weigh(idle);
    const counts = this.functions.map(() => ({ self: 0, total: 0 }));
    const depth = new Map(); // by function: how often it is on the path to the node
    for (const root of this.#roots(thread)) {
      walk(
        root,
        (node) => {
          const inside = depth.get(node.shown) ?? 0;
          counts[node.shown].self += this.#selfOf(node, idle);
          if (!inside) counts[node.shown].total += weight(node);
          depth.set(node.shown, inside + 1);
        },
        (node) => depth.set(node.shown, depth.get(node.shown) - 1),
      );
    }
    return counts;
  }
}

/** Return a function that counts the samples of a node, with those in which the thread waited or without. */
function weigh(idle) {
  return idle ? (node) => node.total : (node) => node.total - node.idle;
}

function countsOf({ self, total, idleSelf, idleTotal }, idle) {
  return idle ? { self, total } : { self: self - idleSelf, total: total - idleTotal };
}

/** Return whether a function has a text in its name or file. */
function has({ label, file }, text) {
  return `${label} ${file}`.toLowerCase().includes(text.toLowerCase());
}

// Control and format characters, unassigned ones and separators: what Python's str.isprintable() is false for.
const NOT_PRINTABLE = /[\p{C}\p{Z}]/gu;

/** Return a character as JSON escapes it. */
function escaped(character) {
  return `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
}

/** Compare texts by code point, as Python does; `<` compares UTF-16 units, in which surrogates precede U+E000. */
function byCodePoint(a, b) {
  let at = 0;
  while (at < a.length && a[at] === b[at]) at++;
  const unit = (text) => {
    const code = at < text.length ? text.charCodeAt(at) : -1;
    return code >= 0xd800 && code < 0xe000 ? code + 0x10000 : code;
  };
  return unit(a) - unit(b);
}

function childrenOf(node) {
  return node.children === null ? [] : node.children.values();
}

/**
 * Visit each node below a root, callers first: call `enter(node)` before its children, and `leave(node, entered)` with
 * the result of `enter` after them. Not recursive, because profiled stacks may be deep.
 *
 * @param {Node} root
 * @param {(node: Node) => any} enter
 * @param {(node: Node, entered: any) => void} leave
 */
function walk(root, enter, leave = () => {}) {
  const stack = [{ node: root, children: childrenOf(root)[Symbol.iterator](), entered: undefined }];
  while (stack.length) {
    const top = stack[stack.length - 1];
    const { value: node, done } = top.children.next();
    if (!done) {
      stack.push({ node, children: childrenOf(node)[Symbol.iterator](), entered: enter(node) });
    } else {
      stack.pop();
      if (top.node !== root) leave(top.node, top.entered);
    }
  }
}

/**
 * Merge one tree into another; return the number of nodes this freed.
 *
 * @param {Node} into
 * @param {Node} from
 */
function merge(into, from) {
  let left = 0;
  /** @type {[Node, Node][]} */
  const waiting = [[into, from]];
  for (let pair = waiting.pop(); pair; pair = waiting.pop()) {
    const [to, node] = pair;
    to.self += node.self;
    to.total += node.total;
    to.idle += node.idle;
    for (const child of childrenOf(node)) {
      const same = to.children?.get(child.frame);
      if (same === undefined) {
        to.adopt(child);
      } else {
        left++;
        waiting.push([same, child]);
      }
    }
  }
  return left;
}

/** Return the nodes in which samples ended, each with its number of samples. */
function leaves(root) {
  const found = [];
  walk(root, (node) => {
    if (node.self) found.push([node, node.self]);
  });
  return found;
}

/** Return the nodes of a stack, outermost first. @param {Node} node */
function stack(node) {
  const nodes = [];
  for (; node.parent !== null; node = node.parent) nodes.push(node);
  return nodes.reverse();
}
