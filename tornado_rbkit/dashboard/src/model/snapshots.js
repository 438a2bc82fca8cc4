// Heap snapshots: all objects with class, size and references, stored in columns because there may be millions.

import { IdTable } from "./idtable.js";
import { compare } from "./objects.js";

// Classes of objects that the interpreter holds, at which a path to an object may start.
const ROOT_CLASSES = new Set(["module", "frame", "Module", "Class", "Thread"]);

const NOWHERE = 0xffffffff;

// Of a long path, such as through a linked list, only this many first and last steps are shown.
const PATH_ENDS = 20;

// Objects sorted at a time to find the largest of a class.
const SORTED = 10_000;

// Limits of one snapshot; an object takes about 70 bytes while received, a reference 12. The rest is only counted.
const LIMITS = { objects: 2 ** 25, references: 2 ** 27 };

// Most names of classes, and of files; further names share one entry.
const MAX_NAMES = 100_000;
const OTHERS = "(others)";

/** A column of numbers that grows. */
class Column {
  length = 0;

  constructor(type) {
    this.values = new type(0);
  }

  /** Make room for `count` more values; throws RangeError if there is no memory. */
  reserve(count) {
    if (this.length + count <= this.values.length) return;
    const larger = new this.values.constructor(Math.max(2 * this.values.length, this.length + count));
    larger.set(this.values.subarray(0, this.length));
    this.values = larger;
  }

  /** Add a value; room must have been reserved. */
  push(value) {
    this.values[this.length++] = value;
  }

  done() {
    return this.values.slice(0, this.length);
  }
}

/** Maps texts to small numbers. */
class Texts {
  list = [];
  #numbers = new Map();

  number(text) {
    const known = this.#numbers.get(text);
    if (known !== undefined) return known;
    if (this.list.length >= MAX_NAMES && text !== OTHERS) return this.number(OTHERS);
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
  records = []; // of the recording, to save the snapshot
  ending = null; // why the rest did not arrive
  #addedAt = 0; // ms
  #ids = new Column(Float64Array);
  #classes = new Column(Uint32Array);
  #sizes = new Column(Float64Array);
  #files = new Column(Uint32Array);
  #lines = new Column(Uint32Array);
  #references = new Column(Float64Array);
  #referenceEnds = new Column(Uint32Array);
  #columns = [this.#ids, this.#classes, this.#sizes, this.#files, this.#lines, this.#referenceEnds]; // by object
  #classNames = new Texts();
  #fileNames = new Texts();

  constructor(correlation, time, limits = LIMITS) {
    this.correlation = correlation;
    this.time = time; // ms
    this.limits = limits;
  }

  get complete() {
    return this.objects + this.unreadable + this.omitted >= this.expected;
  }

  /** Seconds since the last part arrived. */
  get silentSeconds() {
    return (performance.now() - this.#addedAt) / 1000;
  }

  /** Add one part, and the record of the message it arrived in. */
  add({ expected, objects, unreadable }, record) {
    this.#addedAt = performance.now();
    if (this.records.at(-1) !== record) this.records.push(record);
    this.expected = expected;
    this.unreadable += unreadable;
    const kept = objects.slice(0, this.#reserve(objects));
    this.omitted += objects.length - kept.length;
    for (const { id, name, size, file, line, references } of kept) {
      this.#ids.push(id);
      this.#classes.push(this.#classNames.number(name));
      this.#sizes.push(size);
      this.#files.push(this.#fileNames.number(file));
      this.#lines.push(line);
      for (const to of references) this.#references.push(to);
      this.#referenceEnds.push(this.#references.length);
      this.objects++;
    }
  }

  /** Reserve room for objects before adding any, so that all columns stay equally long; return for how many. */
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
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      return 0; // the browser is out of memory
    }
    return count;
  }

  /** Return the received objects as a Snapshot. */
  finish(process) {
    const ids = this.#ids.done();
    const indexes = new IdTable(ids.length);
    for (let i = 0; i < ids.length; i++) indexes.set(ids[i], i);
    const references = new Uint32Array(this.#references.length);
    for (let i = 0; i < references.length; i++) {
      const index = indexes.get(this.#references.values[i]);
      references[i] = index < 0 ? NOWHERE : index;
    }
    return new Snapshot({
      process,
      time: this.time,
      expected: this.expected,
      unreadable: this.unreadable,
      omitted: this.omitted,
      ending: this.ending,
      ids,
      indexes,
      references,
      classes: this.#classes.done(),
      sizes: this.#sizes.done(),
      files: this.#files.done(),
      lines: this.#lines.done(),
      referenceEnds: this.#referenceEnds.done(),
      classNames: this.#classNames.list,
      fileNames: this.#fileNames.list,
      file: new Blob(this.records),
    });
  }
}

/** A received snapshot. Objects are identified by id outside this class, and by index inside. */
export class Snapshot {
  #referrers = null;
  #paths = null;

  constructor(columns) {
    Object.assign(this, columns);
    this.objects = this.ids.length;
    this.bytes = this.sizes.reduce((sum, size) => sum + size, 0);
  }

  summary() {
    const { number, process, time, expected, unreadable, omitted, ending, objects, bytes } = this;
    return { number, process, time, expected, unreadable, omitted, ending, objects, bytes };
  }

  /** Return the number of objects, their total size and the largest size, by class. */
  byClass() {
    const rows = this.classNames.map((name) => ({ name, count: 0, bytes: 0, largest: 0 }));
    for (let i = 0; i < this.objects; i++) {
      const row = rows[this.classes[i]];
      row.count++;
      row.bytes += this.sizes[i];
      if (this.sizes[i] > row.largest) row.largest = this.sizes[i];
    }
    return rows;
  }

  /** Return whether there is an object with this id and class: an address is reused, but rarely by the same class. */
  has(id, className) {
    const index = this.indexes.get(id);
    return index >= 0 && this.classNames[this.classes[index]] === className;
  }

  /** Return the largest objects of a class, at most `limit`; leave out objects in the snapshot `butNotIn`. */
  objectsOf(className, butNotIn, limit) {
    const wanted = this.classNames.indexOf(className);
    const order = (a, b) => this.sizes[b] - this.sizes[a] || this.ids[a] - this.ids[b];
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

  /** Return an object, its references, its referrers and a shortest path to it; null if there is no such object. */
  object(id, limit) {
    const index = this.indexes.get(id);
    if (index < 0) return null;
    const to = this.references.subarray(index ? this.referenceEnds[index - 1] : 0, this.referenceEnds[index]);
    const within = to.filter((i) => i !== NOWHERE);
    const [ends, all] = this.#allReferrers();
    const from = all.subarray(index ? ends[index - 1] : 0, ends[index]);
    return {
      ...this.#object(index),
      references: Array.from(within.subarray(0, limit), (i) => this.#object(i)),
      referenceCount: within.length,
      elsewhere: to.length - within.length,
      referrers: Array.from(from.subarray(0, limit), (i) => this.#object(i)),
      referrerCount: from.length,
      path: this.#path(index),
    };
  }

  #object(index) {
    return {
      id: this.ids[index],
      name: this.classNames[this.classes[index]],
      size: this.sizes[index],
      file: this.fileNames[this.files[index]],
      line: this.lines[index],
    };
  }

  /** Return the referrers of all objects in one array, and for each object where its referrers end. */
  #allReferrers() {
    if (this.#referrers === null) {
      const ends = new Uint32Array(this.objects);
      for (const to of this.references) if (to !== NOWHERE) ends[to]++;
      let sum = 0;
      for (let i = 0; i < ends.length; i++) {
        const count = ends[i];
        ends[i] = sum; // the start; each referrer added below advances it, until it is the end
        sum += count;
      }
      const referrers = new Uint32Array(sum);
      for (let from = 0, at = 0; from < this.objects; from++) {
        for (; at < this.referenceEnds[from]; at++) {
          const to = this.references[at];
          if (to !== NOWHERE) referrers[ends[to]++] = from;
        }
      }
      this.#referrers = [ends, referrers];
    }
    return this.#referrers;
  }

  /**
   * Return the objects on a path from a root to this one, and the number left out in the middle; no objects if only a
   * cycle refers to it that nothing outside refers to.
   */
  #path(index) {
    this.#paths ??= this.#shortestPaths();
    let length = 0;
    for (let i = index; i !== NOWHERE; i = this.#paths[i]) {
      if (this.#paths[i] === UNREACHED) return { steps: [], omitted: 0 };
      length++;
    }
    const steps = [];
    for (let i = index, left = length; i !== NOWHERE; i = this.#paths[i], left--) {
      if (left <= PATH_ENDS || left > length - PATH_ENDS) steps.push(this.#object(i));
    }
    return { steps: steps.reverse(), omitted: length - steps.length };
  }

  /** Return the predecessor of each object on a shortest path from a root, NOWHERE for a root. */
  #shortestPaths() {
    const [ends] = this.#allReferrers();
    const before = new Uint32Array(this.objects).fill(UNREACHED);
    const queue = new Uint32Array(this.objects);
    let last = 0;
    for (let i = 0; i < this.objects; i++) {
      const alone = ends[i] === (i ? ends[i - 1] : 0);
      if (alone || ROOT_CLASSES.has(this.classNames[this.classes[i]])) {
        before[i] = NOWHERE;
        queue[last++] = i;
      }
    }
    for (let first = 0; first < last; first++) {
      const from = queue[first];
      for (let at = from ? this.referenceEnds[from - 1] : 0; at < this.referenceEnds[from]; at++) {
        const to = this.references[at];
        if (to !== NOWHERE && before[to] === UNREACHED) {
          before[to] = from;
          queue[last++] = to;
        }
      }
    }
    return before;
  }
}

const UNREACHED = 0xfffffffe;

/** Compare two snapshots by class, the earlier snapshot first. */
export function difference(before, after) {
  const rows = new Map();
  const row = (name) => {
    if (!rows.has(name)) {
      rows.set(name, { name, before: 0, after: 0, appeared: 0, gone: 0, count: 0, bytes: 0 });
    }
    return rows.get(name);
  };
  for (const { name, count, bytes } of before.byClass()) {
    row(name).before = count;
    row(name).bytes -= bytes;
  }
  for (const { name, count, bytes } of after.byClass()) {
    row(name).after = count;
    row(name).bytes += bytes;
  }
  const countMissing = (of, from, key) => {
    const counted = of.classNames.map(row);
    for (let i = 0; i < of.objects; i++) {
      if (!from.has(of.ids[i], of.classNames[of.classes[i]])) counted[of.classes[i]][key]++;
    }
  };
  countMissing(after, before, "appeared");
  countMissing(before, after, "gone");
  for (const one of rows.values()) one.count = one.after - one.before;
  return [...rows.values()].filter((one) => one.appeared || one.gone || one.bytes);
}

/** Filter, sort and limit the rows of a table. */
export function select(rows, { filter = "", sort, descending = true, limit = 200 }) {
  const wanted = filter.toLowerCase();
  const order = descending ? -1 : 1;
  const matching = rows
    .filter((row) => row.name.toLowerCase().includes(wanted))
    .sort((a, b) => order * compare(a[sort], b[sort]) || b.bytes - a.bytes || compare(a.name, b.name));
  return { rows: matching.slice(0, limit), matching: matching.length };
}
