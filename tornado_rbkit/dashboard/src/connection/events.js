// Reads the frequent events straight from the bytes: objects allocated and freed, and CPU samples, in the form in which
// rbkit and the Python profiler write them. Anything else about a message is left to the general decoder.

import { Reader, textAt } from "./msgpack.js";

const HEAD = [0x84, 0, 7, 1]; // a map of four values, the first the type event_collection, the second the time
const LATEST_TIME = 8.64e15; // ms, the latest time of a Date
const LONGEST_TEXT = 128; // bytes; longer ones are left to the general decoder
const LAST_LINE = 2 ** 32 - 1;
const NIL = 0xc0;
const ODD = -1;

// Of threads, in samples of the Python profiler.
export const STATES = new Set(["running", "waiting", "lock", "gc"]);

/**
 * Return the fields and events of an event_collection in the usual form, and the number of unreadable events; null if
 * the message has another form. Throws Unreadable.
 *
 * @param {Uint8Array} bytes
 * @param {(value: any) => any} readEvent Returns the event of a decoded value, null if it has none.
 */
export function readUsual(bytes, readEvent) {
  for (let i = 0; i < HEAD.length; i++) if (bytes[i] !== HEAD[i]) return null;
  const reader = new Reader(bytes, HEAD.length);
  const time = reader.value(1);
  if (bytes[reader.at++] !== 9) return null;
  const counter = reader.value(1);
  if (bytes[reader.at++] !== 2) return null;
  const events = new EventReader(bytes, reader.at);
  const count = events.arrayLength();
  if (count === ODD) return null;
  const known = [];
  let unreadable = 0;
  for (let i = 0; i < count; i++) {
    const start = events.at;
    let event = events.event();
    if (event === null) {
      reader.at = start;
      event = readEvent(reader.value(2));
      events.at = reader.at;
    }
    if (event === null) unreadable++;
    else known.push(event);
  }
  reader.at = events.at;
  reader.end(events.values);
  return { time, counter, known, unreadable };
}

/** @type {{name: string | null, task: string | null, state: string | null}} */
const NO_FACTS = { name: null, task: null, state: null };

/** Reads events in the usual form; its methods return null or ODD for any other, and then `at` has no meaning. */
class EventReader {
  values = 0; // read so far
  #bytes;
  #view;
  #thread = ODD;
  #threadText = "";
  /** @type {(string | null)[]} */
  #facts = [null, null, null]; // of the thread, in the last frame read: its name, task and state
  #first = NO_FACTS;

  /**
   * @param {Uint8Array} bytes
   * @param {number} at
   */
  constructor(bytes, at) {
    this.at = at;
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  }

  event() {
    const bytes = this.#bytes;
    const at = this.at;
    // A map of the type, the time as a float64, and the payload. Comparing beyond the end is false.
    if (bytes[at] !== 0x83 || bytes[at + 1] !== 0 || bytes[at + 3] !== 1 || bytes[at + 4] !== 0xcb || bytes[at + 13] !== 2) return null;
    const type = bytes[at + 2];
    const time = this.#view.getFloat64(at + 5);
    if (!(time >= 0 && time <= LATEST_TIME)) return null;
    this.at = at + 14;
    if (type === 0) return this.#created(type, time);
    if (type === 1) return this.#destroyed(type, time);
    return type === 9 ? this.#sample(type, time) : null;
  }

  /** Return the length of an array. */
  arrayLength() {
    const byte = this.#bytes[this.at++];
    if (byte >= 0x90 && byte < 0xa0) return byte & 0x0f;
    return byte === 0xdc ? this.#bigEndian(2) : byte === 0xdd ? this.#bigEndian(4) : ODD;
  }

  /**
   * @param {number} type
   * @param {number} time
   */
  #created(type, time) {
    if (this.#bytes[this.at] !== 0x82 || this.#bytes[this.at + 1] !== 3) return null;
    this.at += 2;
    const id = this.#integer();
    if (id === ODD || this.#bytes[this.at++] !== 4) return null;
    const name = this.#text();
    this.values += 11;
    return name === null ? null : { type, time, id, name };
  }

  /**
   * @param {number} type
   * @param {number} time
   */
  #destroyed(type, time) {
    if (this.#bytes[this.at] !== 0x81 || this.#bytes[this.at + 1] !== 3) return null;
    this.at += 2;
    const id = this.#integer();
    this.values += 9;
    return id === ODD ? null : { type, time, id };
  }

  /**
   * @param {number} type
   * @param {number} time
   */
  #sample(type, time) {
    const count = this.arrayLength();
    if (count === ODD) return null;
    const frames = [];
    this.#first = NO_FACTS;
    for (let i = 0; i < count; i++) {
      const frame = this.#frame();
      if (frame === null) return null;
      if (i === 0) this.#first = { name: this.#facts[0], task: this.#facts[1], state: this.#facts[2] };
      frames.push(frame);
    }
    this.values += 7;
    const { name, task, state } = this.#first;
    return { type, time, thread: frames.length ? frames[0].thread : "", name, task, state: STATES.has(state ?? "") ? state : null, frames };
  }

  #frame() {
    const head = this.#bytes[this.at++];
    if (!(head >= 0x80 && head <= 0x8f)) return null;
    let [method, label, file, line, thread, definition] = [null, null, "", 0, "(unknown)", 0];
    this.#facts.fill(null);
    let seen = 0;
    for (let left = head & 0x0f; left > 0; left--) {
      const key = this.#bytes[this.at++];
      if (key > 22 || seen & (1 << key)) return null;
      seen |= 1 << key;
      if (this.#bytes[this.at] === NIL) this.at++;
      else if (key === 12 || key === 13 || key === 6 || (key >= 19 && key <= 21)) {
        const text = this.#text();
        if (text === null) return null;
        if (key >= 19) this.#facts[key - 19] = text || null;
        else if (key === 12) method = text;
        else if (key === 13) label = text;
        else file = text;
      } else if (key === 7 || key === 14 || key === 15 || key === 22) {
        const number = this.#integer();
        if (number === ODD || ((key === 7 || key === 22) && number > LAST_LINE)) return null;
        if (key === 7) line = number;
        else if (key === 22) definition = number;
        else if (key === 15) thread = this.#name(number);
      } else {
        return null;
      }
    }
    this.values += 13;
    return { label: label ?? method ?? "(unknown)", file, line, thread, definition: definition || null };
  }

  /**
   * Return a thread's number as a text; it is the same for all frames of a sample.
   *
   * @param {number} thread
   */
  #name(thread) {
    if (thread !== this.#thread) {
      this.#thread = thread;
      this.#threadText = String(thread);
    }
    return this.#threadText;
  }

  /** Return an integer that is not negative. */
  #integer() {
    const byte = this.#bytes[this.at++];
    if (byte < 0x80) return byte;
    if (byte === 0xcf) {
      const high = this.#bigEndian(4);
      const low = this.#bigEndian(4);
      return high === ODD || low === ODD ? ODD : high * 4294967296 + low;
    }
    return byte === 0xcc ? this.#bigEndian(1) : byte === 0xcd ? this.#bigEndian(2) : byte === 0xce ? this.#bigEndian(4) : ODD;
  }

  /** @param {1 | 2 | 4} size */
  #bigEndian(size) {
    const at = this.at;
    if (at + size > this.#bytes.length) return ODD;
    this.at += size;
    return size === 1 ? this.#bytes[at] : size === 2 ? this.#view.getUint16(at) : this.#view.getUint32(at);
  }

  #text() {
    const byte = this.#bytes[this.at++];
    const length = byte >= 0xa0 && byte < 0xc0 ? byte & 0x1f : byte === 0xd9 ? this.#bigEndian(1) : ODD;
    if (length === ODD || length > LONGEST_TEXT || this.at + length > this.#bytes.length) return null;
    this.at += length;
    return textAt(this.#bytes, this.at - length, length);
  }
}
