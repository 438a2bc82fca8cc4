// @ts-check
// CPU samples as call trees, one for each thread. Each sample counts as 1: rbkit gives no durations.

// Samples whose order is kept for export; for later samples only the count per stack is kept.
const MAX_ORDERED = 2_000_000;

// Most frames of a flame graph, and the smallest frame drawn, as a fraction (1 / SMALLEST) of its width.
const MAX_FRAMES = 600;
const SMALLEST = 2000;

// Most callers, callees and lines shown of a function.
const DETAILS = 50;

// Threads that are listed, and threads with a call tree of their own: an unlisted one may still become busy.
const LISTED_THREADS = 50;
const KEPT_THREADS = 200;

// The name of the entry for all unlisted threads.
const OTHERS = "(others)";

// Limits of the call trees; samples beyond them are only counted, as omitted.
const MAX_FUNCTIONS = 100_000;
const MAX_NODES = 1_000_000;

class Node {
  self = 0;
  total = 0;
  /** @type {Map<number, Node> | null} */
  children = null; // by frame index; null until there is a child

  /** `frame` is an index into `frames`, `fn` an index into `functions`. */
  constructor(frame, fn, parent) {
    this.frame = frame;
    this.fn = fn;
    this.parent = parent;
  }

  adopt(child) {
    (this.children ??= new Map()).set(child.frame, child);
    child.parent = this;
  }
}

/** A thread's samples. */
class Thread {
  root = new Node(-1, -1, null);
  samples = 0;
  /** @type {Node[]} */
  order = []; // the nodes in which its samples ended, up to MAX_ORDERED in total
  last = 0; // the number of its last sample

  constructor(id) {
    this.id = id;
  }
}

export class CpuProfile {
  functions = []; // {label, file, line, self, total, frames: Map of line to frame index}
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
    thread.root.total++;
    for (const node of path) {
      node.total++;
      if (this.#seen[node.fn] === this.samples) continue;
      this.#seen[node.fn] = this.samples; // once per sample, also if it recurses
      this.functions[node.fn].total++;
    }
    const node = path.at(-1);
    this.functions[node.fn].self++;
    node.self++;
    if (this.#ordered < MAX_ORDERED) {
      this.#ordered++;
      thread.order.push(node);
    }
  }

  /** Return the listed threads, by descending samples; one last entry stands for all unlisted threads. */
  threadList() {
    const { listed, others } = this.#split();
    const list = listed.filter(({ samples }) => samples).map(({ id, samples }) => ({ id, samples }));
    const samples = others.reduce((sum, thread) => sum + thread.samples, 0);
    return samples ? [...list, { id: OTHERS, samples }] : list;
  }

  /**
   * Return the flame graph of one thread or of all threads: frames {name, file, line, fn, value, parent}, where
   * `parent` is an index. The root is first, and callers precede callees. Frames too small or too many are left out.
   * A `path` of functions limits the graph to that path; `zoom` is the number of its levels that exist.
   */
  flame(thread, path = []) {
    let nodes = this.#roots(thread);
    const total = nodes.reduce((sum, root) => sum + root.total, 0);
    const frames = [{ name: "all", value: total, parent: null }];
    for (const fn of path) {
      const same = nodes.flatMap((node) => [...childrenOf(node)].filter((child) => child.fn === fn));
      if (!same.length) break;
      nodes = same;
      frames.push(this.#frameOf(fn, same, frames.length - 1));
    }
    const zoom = frames.length - 1;
    /** @type {any[]} */
    const within = [{ frame: frames.pop(), nodes }];
    const smallest = within[0].frame.value / SMALLEST;
    for (const caller of within) {
      for (const [fn, same] of byFunction(caller.nodes)) {
        const frame = this.#frameOf(fn, same, caller);
        if (frame.value >= smallest) within.push({ frame, nodes: same });
      }
    }
    within.sort((a, b) => b.frame.value - a.frame.value); // no frame is larger than its parent, so callers stay first
    for (const one of within.slice(0, MAX_FRAMES)) {
      one.at = frames.length;
      frames.push(one.at === zoom ? one.frame : { ...one.frame, parent: one.frame.parent.at });
    }
    return { frames, zoom, total };
  }

  /** Return the functions of one thread or of all threads, with their self and total samples. */
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

  /** Return the callers and callees of a function by samples, and its hottest lines; null if it does not exist. */
  details(index, thread = null) {
    if (this.functions[index] === undefined) return null;
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
          const isCall = node.parent?.fn === index && node.fn !== index && !called.has(node.fn);
          if (isCall) {
            add(callees, node.fn, node.total);
            called.add(node.fn);
          }
          if (node.fn === index && !inside++) add(callers, node.parent.fn, node.total);
          if (node.fn === index && node.self) add(lines, this.frames[node.frame].line, node.self);
          return isCall;
        },
        (node, isCall) => {
          if (isCall) called.delete(node.fn);
          if (node.fn === index) inside--;
        },
      );
    }
    const sum = (map) => [...map.values()].reduce((all, samples) => all + samples, 0);
    const most = (map, label) =>
      [...map].sort((a, b) => b[1] - a[1]).slice(0, DETAILS).map(([key, samples]) => ({ index: key < 0 ? null : key, label: label(key), samples }));
    const labelOf = (fn) => (fn < 0 ? "(thread)" : this.functions[fn].label);
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
    const word = (label) => label.replaceAll(";", ":").replace(NOT_PRINTABLE, " ").trim() || "?";
    const counts = new Map();
    for (const { id, root } of this.#all()) {
      for (const [node, count] of leaves(root)) {
        const line = [`thread ${id}`, ...stack(node).map(({ fn }) => word(this.functions[fn].label))].join(";");
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
        child = new Node(frame, fn, node);
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
    const key = `${label}\0${file}`;
    const known = this.#byName.get(key);
    if (known !== undefined) return known;
    if (this.functions.length >= MAX_FUNCTIONS) return null;
    const index = this.functions.push({ label, file, line, self: 0, total: 0, frames: new Map() }) - 1;
    this.#byName.set(key, index);
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

  #frameOf(fn, nodes, parent) {
    const { label, file, line } = this.functions[fn];
    return { name: label, file, line, fn, value: nodes.reduce((sum, node) => sum + node.total, 0), parent };
  }

  #count(thread) {
    const counts = this.functions.map(() => ({ self: 0, total: 0 }));
    const depth = new Map(); // by function: how often it is on the path to the node
    for (const root of this.#roots(thread)) {
      walk(
        root,
        (node) => {
          const inside = depth.get(node.fn) ?? 0;
          counts[node.fn].self += node.self;
          if (!inside) counts[node.fn].total += node.total;
          depth.set(node.fn, inside + 1);
        },
        (node) => depth.set(node.fn, depth.get(node.fn) - 1),
      );
    }
    return counts;
  }
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

function pick({ self, total }) {
  return { self, total };
}

/** Return the children of nodes, grouped by function. */
function byFunction(nodes) {
  const found = new Map();
  for (const node of nodes) {
    for (const child of childrenOf(node)) {
      const same = found.get(child.fn);
      if (same) same.push(child);
      else found.set(child.fn, [child]);
    }
  }
  return found;
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
