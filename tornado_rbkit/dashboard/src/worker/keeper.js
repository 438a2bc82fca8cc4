// Keeps the sessions of one browser tab over a reload, one for each target: their messages, and what the user did to
// the data. At most as much as a saved session has is kept, for an hour after the tab was last written.

import { KEPT_BYTES } from "./recording.js";

const LIFE_MS = 3600 * 1000;
const ACTION_BYTES = 100; // estimated
const MOST_WAITING = 64 << 20; // bytes, while the database is slow

/**
 * @typedef {[name: string, argument: any]} Action What the user did to the data.
 * @typedef {{target: string, bytes?: Uint8Array<ArrayBuffer>, action?: Action}} Part Whole records, or an action.
 * @typedef {{target: string, record?: Uint8Array<ArrayBuffer>[], action?: Action}} Waiting A record in parts, or an action.
 */

export class Keeper {
  /** Why a reload loses the session; null if it does not. @type {string | null} */
  trouble = null;
  /** @type {Promise<import("./store.js").Store | null>} */
  #store;
  #tab;
  #next = 0;
  #bytes = 0;
  /** @type {{number: number, size: number}[]} */
  #written = []; // oldest first
  /** @type {Waiting[]} */
  #waiting = [];
  #waitingBytes = 0;
  /** @type {Promise<void> | null} */
  #writing = null;

  /**
   * @param {Promise<import("./store.js").Store>} store
   * @param {string} tab
   */
  constructor(store, tab, limit = KEPT_BYTES) {
    this.#tab = tab;
    this.limit = limit;
    this.#store = store.then(async (one) => {
      await one.removeOlder(Date.now() - LIFE_MS);
      for (const [number, part] of await one.read(tab)) this.#count(number, part);
      return one;
    });
    this.#store = this.#store.catch((error) => this.#fail(error));
  }

  /**
   * Return the kept parts of a target's session, oldest first; none if there is no database.
   *
   * @param {string} target
   * @returns {Promise<Part[]>}
   */
  async read(target) {
    await this.#writing;
    await this.flush();
    const store = await this.#store;
    try {
      const parts = (await store?.read(this.#tab)) ?? [];
      return parts.map(([, part]) => part).filter((part) => part.target === target);
    } catch (error) {
      this.#fail(error);
      return [];
    }
  }

  /**
   * Keep a message's record or an action, with the next flush.
   *
   * @param {Waiting} one
   */
  add(one) {
    if (this.trouble !== null) return;
    this.#waiting.push(one);
    this.#waitingBytes += sizeOfWaiting(one);
    while (this.#waitingBytes > MOST_WAITING) this.#waitingBytes -= sizeOfWaiting(/** @type {Waiting} */ (this.#waiting.shift()));
  }

  /** Write what was added; the records of one target together. Does nothing while the last flush is under way. */
  flush() {
    this.#writing ??= this.#write().finally(() => (this.#writing = null));
    return this.#writing;
  }

  async #write() {
    const store = await this.#store;
    if (store === null || !this.#waiting.length) return;
    const parts = joined(this.#waiting);
    this.#waiting = [];
    this.#waitingBytes = 0;
    /** @type {[number, Part][]} */
    const numbered = parts.map((part) => [this.#next, this.#count(this.#next, part)]);
    try {
      await store.write(this.#tab, numbered, this.#dropOldest());
    } catch (error) {
      this.#fail(error);
    }
  }

  /**
   * @param {number} number
   * @param {Part} part
   */
  #count(number, part) {
    this.#next = number + 1;
    this.#written.push({ number, size: sizeOf(part) });
    this.#bytes += sizeOf(part);
    return part;
  }

  /** Return the numbers of the oldest parts, which exceed the limit. */
  #dropOldest() {
    const dropped = [];
    while (this.#bytes > this.limit && this.#written.length > 1) {
      const { number, size } = /** @type {{number: number, size: number}} */ (this.#written.shift());
      this.#bytes -= size;
      dropped.push(number);
    }
    return dropped;
  }

  /**
   * @param {unknown} error
   * @returns {null}
   */
  #fail(error) {
    this.trouble = error instanceof Error || error instanceof DOMException ? error.message : String(error);
    this.#waiting = [];
    return null;
  }
}

/** @param {Part} part */
function sizeOf({ bytes, action }) {
  const file = action?.[1];
  return bytes?.length ?? (file instanceof Blob ? file.size : ACTION_BYTES);
}

/** @param {Waiting} one */
function sizeOfWaiting({ record, action }) {
  return record ? sum(record) : sizeOf({ target: "", action });
}

/** @param {Uint8Array[]} pieces */
function sum(pieces) {
  return pieces.reduce((total, { length }) => total + length, 0);
}

/**
 * Return parts, neighbouring records of one target joined.
 *
 * @param {Waiting[]} waiting
 */
function joined(waiting) {
  /** @type {Part[]} */
  const parts = [];
  for (let from = 0; from < waiting.length; ) {
    const { target, record, action } = waiting[from];
    let to = from + 1;
    while (record && waiting[to]?.record && waiting[to].target === target) to++;
    parts.push(record ? { target, bytes: concatenated(waiting.slice(from, to).flatMap((one) => one.record ?? [])) } : { target, action });
    from = to;
  }
  return parts;
}

/** @param {Uint8Array[]} pieces */
function concatenated(pieces) {
  const all = new Uint8Array(sum(pieces));
  let at = 0;
  for (const piece of pieces) {
    all.set(piece, at);
    at += piece.length;
  }
  return all;
}
