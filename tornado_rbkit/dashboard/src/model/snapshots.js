// @ts-check
// Heap snapshots: all objects with class, size and references, stored in columns because there may be millions.

import { POSITIONS } from "../connection/protocol.js";
import { NONE, reversed } from "./dominators.js";
import { findHolders } from "./holders.js";
import { IdTable } from "./idtable.js";
import { compare } from "./objects.js";

// Of a long path, such as through a linked list, only this many first and last steps are shown.
const PATH_ENDS = 20;

// The longest that computing holds up other requests.
const SLICE_MS = 50;

// Objects sorted at a time to find the largest of a class.
const SORTED = 10_000;

// Limits of one snapshot; an object takes about 70 bytes while received, a reference 12. The rest is only counted.
const LIMITS = { objects: 2 ** 25, references: 2 ** 27 };

// Most names of classes, of files, and of functions; further names share one entry.
const MAX_NAMES = 100_000;
const OTHERS = "(others)";

// Most names of references; further names are unknown.
const MAX_REFERENCE_NAMES = 500_000;

/** @typedef {import("./dominators.js").Graph} Graph */
/** @typedef {import("./holders.js").Holders} Holders */

/**
 * @typedef {object} Received An object of a snapshot as protocol.js reads it.
 * @property {number} id
 * @property {string} name Of its class.
 * @property {number} size
 * @property {string} file
 * @property {number} line
 * @property {number[]} references
 * @property {string[] | string | null} [names] Of the references: texts, POSITIONS, or null.
 * @property {string} [label]
 *
 * @typedef {{expected: number, objects: Received[], unreadable: number, resident?: number | null}} Part Of a snapshot.
 */

/**
 * @typedef {object} Columns What is known of a received snapshot.
 * @property {number} process Its number.
 * @property {number} time In ms.
 * @property {number} expected
 * @property {number} unreadable
 * @property {number} omitted
 * @property {string | null} ending
 * @property {number | null} resident
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

/**
 * A column of numbers that grows.
 *
 * @template {Float64Array | Uint32Array | Uint8Array} Values
 */
class Column {
  length = 0;
  #type;

  /** @param {new (length: number) => Values} type */
  constructor(type) {
    this.#type = type;
    this.values = new type(0);
  }

  /**
   * Make room for `count` more values; throws RangeError if there is no memory.
   *
   * @param {number} count
   */
  reserve(count) {
    if (this.length + count <= this.values.length) return;
    const larger = new this.#type(Math.max(2 * this.values.length, this.length + count));
    larger.set(this.values.subarray(0, this.length));
    this.values = larger;
  }

  /**
   * Add a value; room must have been reserved.
   *
   * @param {number} value
   */
  push(value) {
    this.values[this.length++] = value;
  }

  done() {
    return /** @type {Values} */ (this.values.slice(0, this.length));
  }
}

/** Maps texts to small numbers. */
class Texts {
  /** @type {string[]} */
  list = [];
  /** @type {Map<string, number>} */
  #numbers = new Map();

  constructor(most = MAX_NAMES, others = OTHERS) {
    this.most = most;
    this.others = others;
  }

  /**
   * @param {string} text
   * @returns {number}
   */
  number(text) {
    const known = this.#numbers.get(text);
    if (known !== undefined) return known;
    if (this.list.length >= this.most && text !== this.others) return this.number(this.others);
    const number = this.list.push(text) - 1;
    this.#numbers.set(text, number);
    return number;
  }
}

/** A snapshot that is being received. */
export class IncomingSnapshot {
  expected = 0;
  objects = 0; // number of objects kept
  unreadable = 0; // number of objects that could not be read
  omitted = 0; // number of objects beyond the limits
  /** @type {BlobPart[]} */
  records = []; // of the recording, to save the snapshot
  /** @type {number | null} */
  resident = null; // bytes, of the whole process
  /** @type {string | null} */
  ending = null; // why the rest did not arrive
  #addedAt = 0; // ms
  #ids = new Column(Float64Array);
  #classes = new Column(Uint32Array);
  #sizes = new Column(Float64Array);
  #files = new Column(Uint32Array);
  #lines = new Column(Uint32Array);
  #references = new Column(Float64Array);
  #referenceEnds = new Column(Uint32Array);
  #names = new Column(Uint32Array); // by reference, 0 if it is not known
  #positioned = new Column(Uint8Array); // 1 if references are held by their positions
  #labels = new Column(Uint32Array); // 0 if the object has no name of its own
  #columns = [this.#ids, this.#classes, this.#sizes, this.#files, this.#lines, this.#referenceEnds, this.#positioned, this.#labels]; // by object
  #classNames = new Texts();
  #fileNames = new Texts();
  #nameTexts = new Texts(MAX_REFERENCE_NAMES, "");
  #labelTexts = new Texts(MAX_NAMES, "");

  /**
   * @param {string} correlation
   * @param {number} time
   */
  constructor(correlation, time, limits = LIMITS) {
    this.correlation = correlation;
    this.time = time; // ms
    this.limits = limits;
    this.#nameTexts.number("");
    this.#labelTexts.number("");
  }

  get complete() {
    return this.objects + this.unreadable + this.omitted >= this.expected;
  }

  /** Seconds since the last part arrived. */
  get silentSeconds() {
    return (performance.now() - this.#addedAt) / 1000;
  }

  /**
   * Add one part, and the record of the message it arrived in.
   *
   * @param {Part} part
   * @param {BlobPart} record
   */
  add({ expected, objects, unreadable, resident = null }, record) {
    this.#addedAt = performance.now();
    if (this.records.at(-1) !== record) this.records.push(record);
    this.expected = expected;
    this.resident = resident;
    this.unreadable += unreadable;
    const kept = objects.slice(0, this.#reserve(objects));
    this.omitted += objects.length - kept.length;
    for (const { id, name, size, file, line, references, names = null, label = "" } of kept) {
      this.#ids.push(id);
      this.#classes.push(this.#classNames.number(name));
      this.#sizes.push(size);
      this.#files.push(this.#fileNames.number(file));
      this.#lines.push(line);
      for (let i = 0; i < references.length; i++) {
        this.#references.push(references[i]);
        this.#names.push(Array.isArray(names) && i < names.length ? this.#nameTexts.number(names[i]) : 0);
      }
      this.#positioned.push(names === POSITIONS ? 1 : 0);
      this.#labels.push(this.#labelTexts.number(label));
      this.#referenceEnds.push(this.#references.length);
      this.objects++;
    }
  }

  /**
   * Reserve room for objects before adding any, so that all columns stay equally long; return for how many.
   *
   * @param {Received[]} objects
   */
  #reserve(objects) {
    let count = 0;
    let references = 0;
    while (
      count < objects.length &&
      this.objects + count < this.limits.objects &&
      this.#references.length + references + objects[count].references.length <= this.limits.references
    ) {
      references += objects[count++].references.length;
    }
    try {
      for (const column of this.#columns) column.reserve(count);
      this.#references.reserve(references);
      this.#names.reserve(references);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      return 0; // the browser is out of memory
    }
    return count;
  }

  /**
   * Return the received objects as a Snapshot.
   *
   * @param {number} process
   */
  finish(process) {
    const ids = this.#ids.done();
    const indexes = new IdTable(ids.length);
    for (let i = 0; i < ids.length; i++) indexes.set(ids[i], i);
    const references = new Uint32Array(this.#references.length);
    for (let i = 0; i < references.length; i++) {
      const index = indexes.get(this.#references.values[i]);
      references[i] = index < 0 ? NONE : index;
    }
    const starts = new Uint32Array(ids.length + 1);
    starts.set(this.#referenceEnds.done(), 1);
    return new Snapshot({
      process,
      time: this.time,
      expected: this.expected,
      unreadable: this.unreadable,
      omitted: this.omitted,
      ending: this.ending,
      resident: this.resident,
      ids,
      indexes,
      graph: { starts, targets: references },
      names: this.#names.done(),
      positioned: this.#positioned.done(),
      labels: this.#labels.done(),
      nameTexts: this.#nameTexts.list,
      labelTexts: this.#labelTexts.list,
      classes: this.#classes.done(),
      sizes: this.#sizes.done(),
      files: this.#files.done(),
      lines: this.#lines.done(),
      classNames: this.#classNames.list,
      fileNames: this.#fileNames.list,
      file: new Blob(this.records),
    });
  }
}

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
    const { number, process, time, expected, unreadable, omitted, ending, objects, bytes, progress, resident } = this;
    return { number, process, time, expected, unreadable, omitted, ending, objects, bytes, progress, resident };
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
   * Return the largest objects of a class, at most `limit`; leave out objects in the snapshot `butNotIn`.
   *
   * @param {string} className
   * @param {Snapshot | null} butNotIn
   * @param {number} limit
   */
  objectsOf(className, butNotIn, limit) {
    const wanted = this.classNames.indexOf(className);
    const { retained } = this.hold();
    const order = (/** @type {number} */ a, /** @type {number} */ b) => retained[b] - retained[a] || this.ids[a] - this.ids[b];
    /** @type {number[]} */
    let largest = [];
    let matching = 0;
    const cut = () => (largest = largest.sort(order).slice(0, limit));
    for (let i = 0; i < this.objects; i++) {
      if (this.classes[i] !== wanted || butNotIn?.has(this.ids[i], className)) continue;
      matching++;
      largest.push(i);
      if (largest.length >= SORTED) cut();
    }
    return { matching, rows: cut().map((i) => this.#object(i)) };
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

/**
 * @typedef {{name: string, before: number, after: number, appeared: number, gone: number, count: number, bytes: number,
 *   retained: number, unreachable: number}} Difference Of a class.
 */

/**
 * Compare two snapshots by class, the earlier snapshot first.
 *
 * @param {Snapshot} before
 * @param {Snapshot} after
 */
export function difference(before, after) {
  /** @type {Map<string, Difference>} */
  const rows = new Map();
  const row = (/** @type {string} */ name) => {
    let one = rows.get(name);
    if (one === undefined) {
      one = { name, before: 0, after: 0, appeared: 0, gone: 0, count: 0, bytes: 0, retained: 0, unreachable: 0 };
      rows.set(name, one);
    }
    return one;
  };
  for (const { name, count, bytes, retained } of before.byClass()) {
    row(name).before = count;
    row(name).bytes -= bytes;
    row(name).retained -= retained;
  }
  for (const { name, count, bytes, retained, unreachable } of after.byClass()) {
    row(name).after = count;
    row(name).bytes += bytes;
    row(name).retained += retained;
    row(name).unreachable = unreachable;
  }
  /** @type {(of: Snapshot, from: Snapshot, key: "appeared" | "gone") => void} */
  const countMissing = (of, from, key) => {
    const counted = of.classNames.map(row);
    for (let i = 0; i < of.objects; i++) {
      if (!from.has(of.ids[i], of.classNames[of.classes[i]])) counted[of.classes[i]][key]++;
    }
  };
  countMissing(after, before, "appeared");
  countMissing(before, after, "gone");
  for (const one of rows.values()) one.count = one.after - one.before;
  return [...rows.values()].filter((one) => one.appeared || one.gone || one.bytes || one.retained);
}

/**
 * Filter, sort and limit the rows of a table.
 *
 * @template {{ name: string, bytes: number }} Row
 * @param {Row[]} rows
 * @param {{ filter?: string, sort: keyof Row, descending?: boolean, limit?: number }} order
 */
export function select(rows, { filter = "", sort, descending = true, limit = 200 }) {
  const wanted = filter.toLowerCase();
  const order = descending ? -1 : 1;
  const matching = rows
    .filter((row) => row.name.toLowerCase().includes(wanted))
    .sort((a, b) => order * compare(a[sort], b[sort]) || b.bytes - a.bytes || compare(a.name, b.name));
  return { rows: matching.slice(0, limit), matching: matching.length };
}
