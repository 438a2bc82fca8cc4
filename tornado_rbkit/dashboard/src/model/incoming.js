// A heap snapshot while it is received: its objects in columns that grow, because there may be millions.

import { POSITIONS } from "../connection/protocol.js";
import { NONE } from "./dominators.js";
import { IdTable } from "./idtable.js";
import { Snapshot } from "./snapshots.js";

// Limits of one snapshot; an object takes about 70 bytes while received, a reference 12. The rest is only counted.
const LIMITS = { objects: 2 ** 25, references: 2 ** 27 };

// Most names of classes, of files, and of functions; further names share one entry.
const MAX_NAMES = 100_000;
const OTHERS = "(others)";

// Most names of references; further names are unknown.
const MAX_REFERENCE_NAMES = 500_000;

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
 * @typedef {{expected: number, objects: Received[], unreadable: number, resident?: number | null, traced?: number | null}} Part Of a snapshot.
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
  /** @type {BlobPart[][]} */
  records = []; // of the recording, each in parts, to save the snapshot
  /** @type {number | null} */
  resident = null; // bytes, of the whole process
  /** @type {number | null} */
  traced = null; // bytes, by tracemalloc
  /** @type {string | null} */
  ending = null; // why the rest did not arrive
  silentSeconds = 0; // calls of `waitASecond` since the last part
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

  /** Count a second of silence. Where the browser or the machine was paused, the clock would count that time, too. */
  waitASecond() {
    this.silentSeconds++;
  }

  /**
   * Add one part, and the record of the message it arrived in.
   *
   * @param {Part} part
   * @param {BlobPart[]} record
   */
  add({ expected, objects, unreadable, resident = null, traced = null }, record) {
    this.silentSeconds = 0;
    if (this.records.at(-1) !== record) this.records.push(record);
    this.expected = expected;
    this.resident = resident;
    this.traced = traced;
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
      traced: this.traced,
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
      file: new Blob(this.records.flat()),
    });
  }
}
