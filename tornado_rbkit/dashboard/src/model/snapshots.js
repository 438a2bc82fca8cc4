// Heap snapshots: all objects with class, size and references, stored in columns because there may be millions.

import { NONE, reversed } from "./dominators.js";
import { findHolders } from "./holders.js";

// Of a long path, such as through a linked list, only this many first and last steps are shown.
const PATH_ENDS = 20;

// The longest that computing holds up other requests.
const SLICE_MS = 50;

// Objects sorted at a time to find the largest of a class.
const SORTED = 10_000;

/** @typedef {import("./dominators.js").Graph} Graph */
/** @typedef {import("./holders.js").Holders} Holders */
/** @typedef {import("./idtable.js").IdTable} IdTable */

// Lines of a file, to number the places where objects are made.
const LINES = 2 ** 32;

/** @typedef {{name: string, file: string, line: number, count: number, bytes: number, kind: string}} Site */

/**
 * @typedef {object} Columns What is known of a received snapshot.
 * @property {number} process Its number.
 * @property {number} time In ms.
 * @property {number} expected
 * @property {number} unreadable
 * @property {number} omitted
 * @property {string | null} ending
 * @property {number | null} resident
 * @property {number | null} traced
 * @property {Float64Array} ids
 * @property {IdTable} indexes
 * @property {Graph} graph
 * @property {Uint32Array} names By reference.
 * @property {Uint8Array} positioned
 * @property {Uint32Array} labels
 * @property {string[]} nameTexts
 * @property {string[]} labelTexts
 * @property {Uint32Array} classes
 * @property {Float64Array} sizes
 * @property {Uint32Array} files
 * @property {Uint32Array} lines
 * @property {string[]} classNames
 * @property {string[]} fileNames
 * @property {Blob} file The messages it came in.
 */

/** A received snapshot. Objects are identified by id outside this class, and by index inside. */
export class Snapshot {
  /** Its number in the session. @type {number | undefined} */
  number;
  /** The name of the file it was loaded from. @type {string | undefined} */
  from;
  /** Who holds each object, once it is computed. @type {Holders | null} */
  holders = null;
  /** The progress of computing it, 0 to 1. */
  progress = 0;
  /** @type {Graph | null} */
  #referrers = null;
  /** @type {Promise<Holders> | null} */
  #computing = null;

  /** @param {Columns} columns */
  constructor(columns) {
    this.process = columns.process;
    this.time = columns.time;
    this.expected = columns.expected;
    this.unreadable = columns.unreadable;
    this.omitted = columns.omitted;
    this.ending = columns.ending;
    this.resident = columns.resident;
    this.traced = columns.traced;
    this.ids = columns.ids;
    this.indexes = columns.indexes;
    this.graph = columns.graph;
    this.names = columns.names;
    this.positioned = columns.positioned;
    this.labels = columns.labels;
    this.nameTexts = columns.nameTexts;
    this.labelTexts = columns.labelTexts;
    this.classes = columns.classes;
    this.sizes = columns.sizes;
    this.files = columns.files;
    this.lines = columns.lines;
    this.classNames = columns.classNames;
    this.fileNames = columns.fileNames;
    this.file = columns.file;
    this.objects = this.ids.length;
    this.bytes = this.sizes.reduce((sum, size) => sum + size, 0);
  }

  summary() {
    const { number, process, time, expected, unreadable, omitted, ending, objects, bytes, progress, resident, traced } = this;
    return { number, process, time, expected, unreadable, omitted, ending, objects, bytes, progress, resident, traced };
  }

  /** Compute who holds each object, without pause. */
  hold() {
    for (const progress of this.#steps()) this.progress = progress;
    return /** @type {Holders} */ (this.holders);
  }

  /** Compute who holds each object, in slices between which other requests are answered. */
  holdInSlices() {
    this.#computing ??= this.#compute();
    return this.#computing;
  }

  async #compute() {
    let began = performance.now();
    for (const progress of this.#steps()) {
      this.progress = progress;
      if (performance.now() - began < SLICE_MS) continue;
      await new Promise((resolve) => setTimeout(resolve));
      began = performance.now();
    }
    return /** @type {Holders} */ (this.holders);
  }

  /** @returns {Generator<number, void>} */
  *#steps() {
    if (this.holders === null) this.holders = yield* findHolders(this);
  }

  /** Return the graph of the references, reversed. */
  referrers() {
    this.#referrers ??= reversed(this.graph);
    return this.#referrers;
  }

  /** Return the number of objects, their sizes, and how many of them nothing but a cycle holds, by class. */
  byClass() {
    const { byClass } = this.hold();
    return this.classNames.map((name, i) => ({
      name,
      count: byClass.count[i],
      bytes: byClass.bytes[i],
      retained: byClass.retained[i],
      unreachable: byClass.unreachable[i],
    }));
  }

  /** Return the number of objects, their sizes and their most frequent class, by the place where they were made. */
  bySite() {
    /** @type {Map<number, Site & {classes: Map<number, number>}>} */
    const sites = new Map();
    for (let i = 0; i < this.objects; i++) {
      const file = this.fileNames[this.files[i]];
      const line = file ? this.lines[i] : 0; // a line without its file is no place
      const key = this.files[i] * LINES + line;
      let site = sites.get(key);
      if (site === undefined) {
        site = { name: siteName(file, line), file, line, count: 0, bytes: 0, kind: "", classes: new Map() };
        sites.set(key, site);
      }
      site.count++;
      site.bytes += this.sizes[i];
      site.classes.set(this.classes[i], (site.classes.get(this.classes[i]) ?? 0) + 1);
    }
    return Array.from(sites.values(), ({ classes, ...site }) => ({ ...site, kind: this.classNames[mostFrequent(classes)] }));
  }

  /**
   * Return the ways in which the objects of a class are held, those that retain most first.
   *
   * @param {string} className
   * @param {number} limit
   */
  waysOf(className, limit) {
    const holders = this.hold();
    const wanted = this.classNames.indexOf(className);
    /** @type {{ way: number, id: number, count: number, retained: number, unreachable: number }[]} */
    const rows = [];
    holders.wayExamples.forEach((example, way) => {
      if (this.classes[example] !== wanted) return;
      const { count, retained, unreachable } = holders.byWay;
      rows.push({ way, id: this.ids[example], count: count[way], retained: retained[way], unreachable: unreachable[way] });
    });
    rows.sort((a, b) => b.retained - a.retained || b.count - a.count);
    return { matching: rows.length, rows: rows.slice(0, limit).map((row) => ({ ...row, text: holders.wayText(row.way) })) };
  }

  /**
   * Return whether there is an object with this id and class: an address is reused, but rarely by the same class.
   *
   * @param {number} id
   * @param {string} className
   */
  has(id, className) {
    const index = this.indexes.get(id);
    return index >= 0 && this.classNames[this.classes[index]] === className;
  }

  /**
   * Return the largest objects of a class, or made at a place, at most `limit`; leave out objects in the snapshot
   * `butNotIn`.
   *
   * @param {"class" | "site"} by
   * @param {string} name
   * @param {Snapshot | null} butNotIn
   * @param {number} limit
   */
  objectsOf(by, name, butNotIn, limit) {
    const isMeant = by === "class" ? this.#isOfClass(name) : this.#isMadeAt(name);
    const { retained } = this.hold();
    const order = (/** @type {number} */ a, /** @type {number} */ b) => retained[b] - retained[a] || this.ids[a] - this.ids[b];
    /** @type {number[]} */
    let largest = [];
    let matching = 0;
    const cut = () => (largest = largest.sort(order).slice(0, limit));
    for (let i = 0; i < this.objects; i++) {
      if (!isMeant(i) || butNotIn?.has(this.ids[i], this.classNames[this.classes[i]])) continue;
      matching++;
      largest.push(i);
      if (largest.length >= Math.max(SORTED, 2 * limit)) cut();
    }
    return { matching, rows: cut().map((i) => this.#object(i)) };
  }

  /**
   * @param {string} name
   * @returns {(index: number) => boolean}
   */
  #isOfClass(name) {
    const wanted = this.classNames.indexOf(name);
    return (i) => this.classes[i] === wanted;
  }

  /**
   * @param {string} name
   * @returns {(index: number) => boolean}
   */
  #isMadeAt(name) {
    return (i) => name === siteName(this.fileNames[this.files[i]], this.lines[i]);
  }

  /**
   * Return an object, its references, its referrers and a shortest path to it; null if there is no such object.
   *
   * @param {number} id
   * @param {number} limit
   */
  object(id, limit) {
    const index = this.indexes.get(id);
    if (index < 0) return null;
    const holders = this.hold();
    const to = this.graph.targets.subarray(this.graph.starts[index], this.graph.starts[index + 1]);
    const within = to.filter((i) => i !== NONE);
    const { starts, targets } = this.referrers();
    const from = targets.subarray(starts[index], starts[index + 1]);
    return {
      ...this.#object(index),
      references: Array.from(within.subarray(0, limit), (i) => this.#object(i)),
      referenceCount: within.length,
      elsewhere: to.length - within.length,
      referrers: Array.from(from.subarray(0, limit), (i) => this.#object(i)),
      referrerCount: from.length,
      unreachable: holders.unreachable[index] === 1,
      heldAs: holders.pathText(index),
      path: this.#path(holders.path(index)),
    };
  }

  /** @param {number} index */
  #object(index) {
    return {
      id: this.ids[index],
      name: this.labels[index] ? `${this.classNames[this.classes[index]]} ${this.labelTexts[this.labels[index]]}` : this.classNames[this.classes[index]],
      size: this.sizes[index],
      retained: this.hold().retained[index],
      file: this.fileNames[this.files[index]],
      line: this.lines[index],
    };
  }

  /**
   * Return the objects of a path, and the number left out in the middle.
   *
   * @param {number[]} indexes
   */
  #path(indexes) {
    const omitted = Math.max(0, indexes.length - 2 * PATH_ENDS);
    const kept = omitted ? [...indexes.slice(0, PATH_ENDS), ...indexes.slice(-PATH_ENDS)] : indexes;
    return { steps: kept.map((index) => ({ ...this.#object(index), heldBy: this.hold().name(index) })), omitted };
  }
}

/** @param {Map<number, number>} counts */
function mostFrequent(counts) {
  return [...counts].reduce((most, one) => (one[1] > most[1] ? one : most))[0];
}

/**
 * Return the name of a place where objects are made.
 *
 * @param {string} file
 * @param {number} line
 */
function siteName(file, line) {
  return file ? `${file}:${line}` : "(not known)";
}
