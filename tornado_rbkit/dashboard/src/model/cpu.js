// CPU samples as call trees, one for each thread. A sample counts one: rbkit gives no durations.

import { Field } from "./protocol.js";

// Samples whose order is kept for export; beyond that, how often each stack was seen.
const MAX_ORDERED = 2_000_000;

// Frames of a flame graph at a time, and the part of its width that one has at least.
const MAX_FRAMES = 600;
const SMALLEST = 2000;

// Callers, callees and lines of a function.
const DETAILS = 50;

class Node {
  self = 0;
  total = 0;
  children = new Map(); // by frame index

  /** `frame` is an index, of a `fn` at a line. */
  constructor(frame, fn, parent) {
    this.frame = frame;
    this.fn = fn;
    this.parent = parent;
  }
}

export class CpuProfile {
  functions = []; // {label, file, line, self, total, frames: Map of line to frame index}
  frames = []; // {fn, line}: a function that is at a line
  threads = new Map(); // id to {root, samples, order: leaf nodes}
  samples = 0;
  first = null; // ms
  last = null;
  missing = 0; // messages that may have held samples
  #byName = new Map();
  #seen = []; // by function index: the last sample it was in
  #ordered = 0;

  add(event) {
    const frames = event[Field.PAYLOAD];
    if (!frames.length) return;
    this.first ??= event[Field.TIMESTAMP];
    this.last = event[Field.TIMESTAMP];
    this.samples++;
    const thread = this.#thread(frames[0][Field.THREAD_ID]);
    let node = thread.root;
    node.total++;
    for (let i = frames.length - 1; i >= 0; i--) {
      const index = this.#function(frames[i]);
      const frame = this.#frame(index, frames[i][Field.LINE]);
      let child = node.children.get(frame);
      if (child === undefined) {
        child = new Node(frame, index, node);
        node.children.set(frame, child);
      }
      child.total++;
      if (this.#seen[index] !== this.samples) {
        this.#seen[index] = this.samples; // once a sample, however deep it recurses
        this.functions[index].total++;
      }
      node = child;
    }
    this.functions[node.fn].self++;
    node.self++;
    thread.samples++;
    if (this.#ordered < MAX_ORDERED) {
      this.#ordered++;
      thread.order.push(node);
    }
  }

  /** Return the threads, those with most samples first. */
  threadList() {
    return [...this.threads]
      .map(([id, thread]) => ({ id, samples: thread.samples }))
      .sort((a, b) => b.samples - a.samples);
  }

  /**
   * Return the frames of a flame graph of a thread, or of all: {name, file, line, fn, value, parent}, the last an index;
   * the whole is first, and parents come before what they call. What is too small to see is left out, or too much to
   * draw. With a path of functions it has only what is in there, as far as there is such a path: `zoom` levels.
   */
  flame(thread, path = []) {
    let nodes = this.#roots(thread);
    const total = nodes.reduce((sum, root) => sum + root.total, 0);
    const frames = [{ name: "all", value: total, parent: null }];
    for (const fn of path) {
      const same = nodes.flatMap((node) => [...node.children.values()].filter((child) => child.fn === fn));
      if (!same.length) break;
      nodes = same;
      frames.push(this.#frameOf(fn, same, frames.length - 1));
    }
    const zoom = frames.length - 1;
    const within = [{ frame: frames.pop(), nodes }];
    const smallest = within[0].frame.value / SMALLEST;
    for (const caller of within) {
      for (const [fn, same] of byFunction(caller.nodes)) {
        const frame = this.#frameOf(fn, same, caller);
        if (frame.value >= smallest) within.push({ frame, nodes: same });
      }
    }
    within.sort((a, b) => b.frame.value - a.frame.value); // none is larger than its parent, which stays before it
    for (const one of within.slice(0, MAX_FRAMES)) {
      one.at = frames.length;
      frames.push(one.at === zoom ? one.frame : { ...one.frame, parent: one.frame.parent.at });
    }
    return { frames, zoom, total };
  }

  /** Return the functions of a thread, or of all, with the samples they were innermost in and those they were in. */
  table({ thread = null, filter = "", sort = "self", descending = true, limit = 200 }) {
    const counts = thread === null ? this.functions : this.#count(thread);
    const wanted = filter.toLowerCase();
    const rows = this.functions
      .map(({ label, file, line }, index) => ({ index, label, file, line, ...pick(counts[index]) }))
      .filter((row) => row.total > 0 && `${row.label} ${row.file}`.toLowerCase().includes(wanted));
    const order = descending ? -1 : 1;
    rows.sort((a, b) => order * (a[sort] < b[sort] ? -1 : a[sort] > b[sort] ? 1 : 0) || b.total - a.total);
    return { rows: rows.slice(0, limit), matching: rows.length };
  }

  /** Return who calls a function and whom it calls, by samples, and its hottest lines. */
  details(index, thread = null) {
    const callers = new Map();
    const callees = new Map();
    const lines = new Map();
    const add = (map, key, samples) => map.set(key, (map.get(key) ?? 0) + samples);
    // However deep it recurses, a sample counts once: its outermost caller, and each function it calls where that is met first.
    const walk = (node, inside, called) => {
      for (const child of node.children.values()) {
        const calls = node.fn === index && child.fn !== index && !called.has(child.fn);
        if (calls) add(callees, child.fn, child.total);
        if (child.fn === index && !inside) add(callers, node.fn, child.total);
        if (child.fn === index && child.self) add(lines, this.frames[child.frame].line, child.self);
        walk(child, inside || child.fn === index, calls ? new Set(called).add(child.fn) : called);
      }
    };
    for (const root of this.#roots(thread)) walk(root, false, new Set());
    const sum = (map) => [...map.values()].reduce((all, samples) => all + samples, 0);
    const most = (map, label) =>
      [...map].sort((a, b) => b[1] - a[1]).slice(0, DETAILS).map(([key, samples]) => ({ index: key, label: label(key), samples }));
    const labelOf = (fn) => (fn === null ? "(thread)" : this.functions[fn].label);
    const { label, file, line } = this.functions[index];
    return {
      label,
      file,
      line,
      self: sum(lines),
      samples: sum(callers),
      callers: most(callers, labelOf),
      callees: most(callees, labelOf),
      lines: most(lines, (number) => `line ${number}`),
    };
  }

  /** Return a speedscope file, as `tornado-rbkit export` writes it. */
  speedscope(name) {
    return {
      $schema: "https://www.speedscope.app/file-format-schema.json",
      exporter: "tornado_rbkit",
      name,
      shared: { frames: this.frames.map(({ fn, line }) => ({ name: this.functions[fn].label, file: this.functions[fn].file, line })) },
      profiles: [...this.threads].map(([id, thread]) => {
        const stacks = thread.order.length === thread.samples ? thread.order.map((node) => [node, 1]) : leaves(thread.root);
        return {
          type: "sampled",
          name: `thread ${id}`,
          unit: "none",
          startValue: 0,
          endValue: thread.samples,
          samples: stacks.map(([node]) => stack(node).map(({ frame }) => frame)),
          weights: stacks.map(([, weight]) => weight),
        };
      }),
    };
  }

  /** Return the lines that flamegraph.pl and its kin read. */
  collapsed() {
    const word = (label) => label.replaceAll(";", ":").replaceAll("\n", " ");
    const counts = new Map();
    for (const [id, { root }] of this.threads) {
      for (const [node, count] of leaves(root)) {
        const line = [`thread ${id}`, ...stack(node).map(({ fn }) => word(this.functions[fn].label))].join(";");
        counts.set(line, (counts.get(line) ?? 0) + count);
      }
    }
    return [...counts].map(([line, count]) => `${line} ${count}\n`).join("");
  }

  #thread(id) {
    let thread = this.threads.get(id);
    if (thread === undefined) {
      thread = { root: new Node(null, null, null), samples: 0, order: [] };
      this.threads.set(id, thread);
    }
    return thread;
  }

  #function(frame) {
    const label = frame[Field.LABEL] ?? frame[Field.METHOD_NAME] ?? "(unknown)";
    const file = frame[Field.FILE] ?? "";
    const key = `${label}\0${file}`;
    let index = this.#byName.get(key);
    if (index === undefined) {
      index = this.functions.length;
      this.functions.push({ label, file, line: frame[Field.LINE], self: 0, total: 0, frames: new Map() });
      this.#byName.set(key, index);
    }
    return index;
  }

  #frame(fn, line) {
    const { frames } = this.functions[fn];
    let index = frames.get(line);
    if (index === undefined) {
      index = this.frames.push({ fn, line }) - 1;
      frames.set(line, index);
    }
    return index;
  }

  #roots(thread) {
    return thread === null ? [...this.threads.values()].map(({ root }) => root) : [this.threads.get(thread)?.root].filter(Boolean);
  }

  #frameOf(fn, nodes, parent) {
    const { label, file, line } = this.functions[fn];
    return { name: label, file, line, fn, value: nodes.reduce((sum, node) => sum + node.total, 0), parent };
  }

  #count(thread) {
    const counts = this.functions.map(() => ({ self: 0, total: 0 }));
    const depth = new Map();
    const walk = (node) => {
      for (const child of node.children.values()) {
        const inside = depth.get(child.fn) ?? 0;
        counts[child.fn].self += child.self;
        if (!inside) counts[child.fn].total += child.total;
        depth.set(child.fn, inside + 1);
        walk(child);
        depth.set(child.fn, inside);
      }
    };
    for (const root of this.#roots(thread)) walk(root);
    return counts;
  }
}

function pick({ self, total }) {
  return { self, total };
}

/** Return the children of nodes, those of one function together. */
function byFunction(nodes) {
  const found = new Map();
  for (const node of nodes) {
    for (const child of node.children.values()) {
      const same = found.get(child.fn);
      if (same) same.push(child);
      else found.set(child.fn, [child]);
    }
  }
  return found;
}

/** Return the nodes in which samples ended, with how many. */
function leaves(root) {
  const found = [];
  const waiting = [root];
  while (waiting.length) {
    const node = waiting.pop();
    if (node.self) found.push([node, node.self]);
    waiting.push(...node.children.values());
  }
  return found;
}

/** Return the nodes of a stack, outermost first. */
function stack(node) {
  const nodes = [];
  for (; node.parent !== null; node = node.parent) nodes.push(node);
  return nodes.reverse();
}
