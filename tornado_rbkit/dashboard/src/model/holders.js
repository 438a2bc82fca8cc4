// Who holds an object: the path from a root with the names on it, and equal paths merged into one way of being held.

import { NONE, cycleRoots, dominatorTree, retainedSizes, reversed } from "./dominators.js";

// Classes of objects that the interpreter holds, at which a path to an object may start.
export const ROOT_CLASSES = new Set(["module", "frame", "Module", "Class", "Thread"]);

// asyncio tasks are roots too: the holder of a task changes with the future, timer or event loop that the task waits for,
// and releasing that holder would not free the task. A path starts at a task unless a short one leads there, as from a list of tasks.
export const TASK_CLASSES = new Set(["Task", "_asyncio.Task", "asyncio.tasks.Task"]);

// A path prefers names that a developer knows: cost of a reference, and of starting at a root that is not a module.
const COST = { named: 1, unnamed: 3, internal: 6, otherRoot: 2, unheldRoot: 6, task: 7 };
const MAX_COST = 8;
const INTERNAL = new Set([".__globals__", ".__closure__", ".__builtins__", ".__self__", ".__wrapped__"]);

// Objects whose names on a path say enough: their class is left out.
export const CONTAINERS = new Set(["dict", "list", "tuple", "set", "frozenset", "cell", "module", "type", "frame", ...["OrderedDict", "defaultdict", "deque"].flatMap((name) => [name, `collections.${name}`])]);

// Classes whose names tell a developer less than what they are.
const FAMILIAR = { _lru_cache_wrapper: "lru_cache", _local: "thread-local" };

// The steps of a way that are shown.
const SHOWN_STEPS = 30;

const REPORTED = 2 ** 16;

/**
 * Compute who holds each object of a snapshot. A generator of its progress, 0 to 1.
 *
 * @param {any} snapshot a Snapshot
 * @returns {Generator<number, Holders>}
 */
export function* findHolders(snapshot) {
  const { graph } = snapshot;
  const referrers = snapshot.referrers();
  const others = rootsOf(snapshot, referrers);
  yield 0.1;
  const { cycles, isReached } = cycleRoots(graph, others);
  const isTask = snapshot.classNames.map((name) => TASK_CLASSES.has(name));
  const roots = [...others];
  for (let i = 0; i < snapshot.objects; i++) if (isReached[i] && isTask[snapshot.classes[i]]) roots.push(i);
  yield 0.2;
  let tree;
  for (const steps = dominatorTree(graph, referrers, [...roots, ...cycles]); ; ) {
    const { done, value } = steps.next();
    if (done) {
      tree = /** @type {{ order: Uint32Array, dominators: Uint32Array }} */ (value);
      break;
    }
    yield 0.2 + 0.3 * /** @type {number} */ (value);
  }
  const holders = new Holders(snapshot, tree);
  yield* holders.findPaths(roots, cycles, isTask);
  yield* holders.sumUp();
  return holders;
}

function rootsOf({ graph, classes, classNames }, referrers) {
  const isRoot = classNames.map((name) => ROOT_CLASSES.has(name));
  const isOf = (name) => (i) => classNames[classes[i]] === name;
  const [isFrame, isTraceback] = [isOf("frame"), isOf("traceback")];
  const referrersOf = (i) => referrers.targets.subarray(referrers.starts[i], referrers.starts[i + 1]);
  // A function that an exception has left runs no more: a traceback other than the first, which caught it, has its frame.
  const hasEnded = (i) => isFrame(i) && referrersOf(i).some((from) => isTraceback(from) && referrersOf(from).some(isTraceback));
  const roots = [];
  for (let i = 0; i + 1 < graph.starts.length; i++) {
    if ((isRoot[classes[i]] && !hasEnded(i)) || referrers.starts[i] === referrers.starts[i + 1]) roots.push(i);
  }
  return roots;
}

export class Holders {
  /** Index of the holder on the path to each object, NONE for a root. */
  before;
  /** Index of the reference by which the holder holds it. */
  edges;
  /** 1 for an object that only a cycle refers to, which nothing outside refers to. */
  unreachable;
  /** The way in which each object is held: its number. */
  ways;
  /** By way: the way of the holder (NONE for a root), the name, the kind, and an object. */
  wayParents = [];
  wayNames = [];
  wayKinds = [];
  wayExamples = [];
  /** 1 for a way whose objects have several keys or positions. */
  wayVaries = [];
  /** By way, and by class: the number of objects, their size, and the retained size without counting any object twice. */
  byWay;
  byClass;
  #pairs = []; // by way, a number for its name and kind

  constructor(snapshot, tree) {
    this.snapshot = snapshot;
    this.tree = tree;
    this.retained = retainedSizes(tree, snapshot.sizes);
    const count = snapshot.objects;
    this.before = new Uint32Array(count).fill(NONE);
    this.edges = new Uint32Array(count).fill(NONE);
    this.unreachable = new Uint8Array(count);
    this.ways = new Uint32Array(count);
  }

  /** Find a path of least cost to each object (Dial's algorithm) from a root, and number the ways. */
  *findPaths(roots, cycles, isTask) {
    const { graph, classes, classNames, names } = this.snapshot;
    const { starts, targets } = graph;
    const costs = Uint8Array.from(this.snapshot.nameTexts, (text, i) => (i === 0 ? COST.unnamed : INTERNAL.has(text) ? COST.internal : COST.named));
    const distances = new Float64Array(this.snapshot.objects).fill(Infinity);
    const settled = new Uint8Array(this.snapshot.objects);
    const isModule = classNames.map((name) => name === "module" || name === "Module");
    const isFrame = classNames.map((name) => name === "frame");
    const pairs = new Map();
    const known = new Map();
    let done = 0;
    for (const [some, mark] of [[roots, 0], [cycles, 1]]) {
      const buckets = Array.from({ length: MAX_COST + 1 }, () => /** @type {number[]} */ ([]));
      let waiting = 0;
      for (const root of some) {
        if (settled[root]) continue;
        const cost = isModule[classes[root]] ? 0 : isFrame[classes[root]] ? COST.otherRoot : isTask[classes[root]] ? COST.task : COST.unheldRoot;
        distances[root] = cost;
        buckets[cost].push(root);
        waiting++;
      }
      for (let distance = 0; waiting; distance++) {
        const bucket = buckets[distance % buckets.length];
        while (bucket.length) {
          const from = /** @type {number} */ (bucket.pop());
          waiting--;
          if (settled[from] || distances[from] !== distance) continue;
          settled[from] = 1;
          this.unreachable[from] = mark;
          this.#numberWay(from, pairs, known);
          const isPositioned = this.snapshot.positioned[from];
          for (let at = starts[from]; at < starts[from + 1]; at++) {
            const to = targets[at];
            if (to === NONE || settled[to]) continue;
            const next = distance + (isPositioned ? COST.named : costs[names[at]]);
            if (next >= distances[to]) continue;
            distances[to] = next;
            this.before[to] = from;
            this.edges[to] = at;
            buckets[next % buckets.length].push(to);
            waiting++;
          }
          if (++done % REPORTED === 0) yield 0.5 + (0.3 * done) / settled.length;
        }
      }
    }
  }

  /** Number the way of an object whose holder has one: ways are equal if holder, name and kind are. */
  #numberWay(index, pairs, known) {
    const parent = this.before[index] === NONE ? NONE : this.ways[this.before[index]];
    const kind = this.kind(index);
    const name = parent === NONE ? 0 : this.#mergedName(index);
    const both = (name + 2) * 2 ** 22 + kind; // a name may be POSITION
    if (!pairs.has(both)) pairs.set(both, pairs.size);
    const pair = pairs.get(both);
    const key = (parent === NONE ? 0 : parent + 1) * 2 ** 24 + pair;
    const repeated = this.#repeated(parent, pair);
    const way = repeated === NONE ? known.get(key) : repeated;
    if (way !== undefined) {
      this.ways[index] = way;
      if (name === KEY && !this.wayVaries[way]) this.wayVaries[way] = this.#isHeldAlike(index, this.wayExamples[way]) ? 0 : 1;
      return;
    }
    this.ways[index] = this.wayParents.push(parent) - 1;
    known.set(key, this.ways[index]);
    this.#pairs.push(pair);
    this.wayNames.push(name);
    this.wayKinds.push(kind);
    this.wayExamples.push(index);
    this.wayVaries.push(0);
  }

  /** Return whether two objects have the same key in their holders. */
  #isHeldAlike(one, other) {
    const { names, positioned } = this.snapshot;
    if (positioned[this.before[one]] || positioned[this.before[other]]) return false;
    return names[this.edges[one]] === names[this.edges[other]];
  }

  /** Return the way that a step repeats, as along a linked list: the last one to three steps come twice. */
  #repeated(parent, pair) {
    const pairs = [pair];
    const ways = [NONE];
    for (let way = parent; way !== NONE && pairs.length < 6; way = this.wayParents[way]) {
      pairs.push(this.#pairs[way]);
      ways.push(way);
    }
    for (let period = 1; period <= 3 && 2 * period <= pairs.length; period++) {
      let isRepeated = true;
      for (let i = 0; i < period; i++) isRepeated &&= pairs[i] === pairs[i + period];
      if (isRepeated) return ways[period];
    }
    return NONE;
  }

  /** Return the name's number, KEY for any key of a dict that is not a namespace, POSITION for any index. */
  #mergedName(index) {
    const holder = this.before[index];
    if (this.snapshot.positioned[holder]) return KEY;
    const name = this.snapshot.names[this.edges[index]];
    return name && this.snapshot.nameTexts[name].startsWith("[") && !this.#isNamespace(holder) ? KEY : name;
  }

  #isNamespace(index) {
    const edge = this.edges[index];
    return edge !== NONE && !this.snapshot.positioned[this.before[index]] && this.snapshot.nameTexts[this.snapshot.names[edge]] === ".__dict__";
  }

  /** Return a number for an object's class, or for its own name. */
  kind(index) {
    const label = this.snapshot.labels[index];
    return label ? this.snapshot.classNames.length + label : this.snapshot.classes[index];
  }

  kindText(kind) {
    const { classNames, labelTexts } = this.snapshot;
    return kind < classNames.length ? classNames[kind] : labelTexts[kind - classNames.length];
  }

  /** Sum up by way and by class; an object within another of the same group adds nothing to what the group retains. */
  *sumUp() {
    const { snapshot, tree, ways } = this;
    const count = snapshot.objects;
    const group = (length) => ({ count: new Uint32Array(length), bytes: new Float64Array(length), retained: new Float64Array(length), unreachable: new Uint32Array(length) });
    this.byWay = group(this.wayParents.length);
    this.byClass = group(snapshot.classNames.length);
    const children = reversed({ starts: Uint32Array.from({ length: count + 2 }, (_, i) => Math.min(i, count)), targets: Uint32Array.from(tree.dominators) });
    yield 0.85;
    const groups = [
      { of: ways, sums: this.byWay, open: new Uint32Array(this.wayParents.length) },
      { of: snapshot.classes, sums: this.byClass, open: new Uint32Array(snapshot.classNames.length) },
    ];
    const next = children.starts.slice();
    const stack = new Uint32Array(count + 1);
    let depth = 0;
    stack[0] = count; // the virtual root
    for (let visited = 0; depth >= 0; ) {
      const node = stack[depth];
      if (next[node] < children.starts[node + 1]) {
        const child = children.targets[next[node]++];
        stack[++depth] = child;
        for (const { of, sums, open } of groups) {
          const key = of[child];
          sums.count[key]++;
          sums.bytes[key] += snapshot.sizes[child];
          sums.unreachable[key] += this.unreachable[child];
          if (open[key]++ === 0) sums.retained[key] += this.retained[child];
        }
        if (++visited % REPORTED === 0) yield 0.85 + (0.15 * visited) / count;
        continue;
      }
      depth--;
      if (node < count) for (const { of, open } of groups) open[of[node]]--;
    }
    this.children = children;
    yield 1;
  }

  /** Return the objects on the path to an object, from its root on. */
  path(index) {
    const found = [];
    for (let i = index; i !== NONE; i = this.before[i]) found.push(i);
    return found.reverse();
  }

  /** Return the name by which an object is held: ".attribute", "['key']", "[3]", or "" if it is not known. */
  name(index) {
    const edge = this.edges[index];
    if (edge === NONE) return "";
    const holder = this.before[index];
    if (this.snapshot.positioned[holder]) return `[${edge - this.snapshot.graph.starts[holder]}]`;
    return this.snapshot.nameTexts[this.snapshot.names[edge]];
  }

  /** Return a path as a developer would write it: `__main__.AUDIT['3f2'] → remember.<locals>.finish → ctx`. */
  pathText(index) {
    return this.#text(this.path(index).map((i) => ({ name: this.name(i), kind: this.kindText(this.kind(i)), cls: this.#className(i) })));
  }

  /** Return a way likewise, with […] where its objects have several keys or positions. */
  wayText(way) {
    const steps = [];
    for (let each = way; each !== NONE; each = this.wayParents[each]) {
      const [name, example] = [this.wayNames[each], this.wayExamples[each]];
      const text = name === KEY ? (this.wayVaries[each] ? "[…]" : this.name(example)) : this.snapshot.nameTexts[name];
      steps.push({ name: text, kind: this.kindText(this.wayKinds[each]), cls: this.#className(example) });
    }
    return this.#text(steps.reverse());
  }

  /** Return a text that is the same for the same way in another snapshot. */
  wayKey(way) {
    const steps = [];
    for (let each = way; each !== NONE; each = this.wayParents[each]) {
      steps.push(`${this.wayNames[each] === KEY ? "[…]" : this.snapshot.nameTexts[this.wayNames[each]]} ${this.kindText(this.wayKinds[each])}`);
    }
    return steps.join("\n");
  }

  #className(index) {
    return this.snapshot.classNames[this.snapshot.classes[index]];
  }

  #text(steps) {
    let text = "";
    const omitted = steps.length - SHOWN_STEPS;
    for (let i = 0; i < steps.length; i++) {
      const { name, kind, cls } = steps[i];
      const holder = steps[i - 1];
      if (omitted > 0 && i === SHOWN_STEPS / 2) text += " → …";
      if (omitted > 0 && i >= SHOWN_STEPS / 2 && i < SHOWN_STEPS / 2 + omitted) continue;
      const isLast = i === steps.length - 1;
      if (!holder) {
        text = cls === "module" ? kind : cls === "frame" ? `${shortName(kind)}()` : TASK_CLASSES.has(cls) ? "task" : `(${shortName(kind)})`;
        continue;
      }
      if (name === ".__dict__" || name === ".cell_contents") {
        // the names within follow their holder
      } else if (holder.name === ".__dict__" && /^\['[^']*'\]$/.test(name)) {
        text += `.${name.slice(2, -2)}`;
      } else if ((holder.cls === "function" && cls === "cell") || holder.cls === "frame") {
        text += ` → ${name.slice(1)}`;
      } else {
        text += name;
      }
      if (cls === "frame" && !isLast) text += ` → ${shortName(kind)}()`;
      const isKnown = name === ".__dict__" || CONTAINERS.has(cls) || text.endsWith(`.${shortName(kind)}`);
      if (!isKnown && !isLast) text += ` → ${FAMILIAR[shortName(kind)] ?? shortName(kind)}`;
    }
    return text;
  }
}

// In place of a name's number: any key or position.
const KEY = -1;

/** Return a class's name without its module, and a function's with the functions it is defined in. */
export function shortName(name) {
  return /(?:[^.\s]+\.<locals>\.)*[^.]+$/.exec(name)?.[0] ?? name;
}
