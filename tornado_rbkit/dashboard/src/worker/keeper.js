// @ts-check
// Keeps the sessions of one browser tab over a reload, one for each target: their messages, and what the user did to
// the data. At most as much as a saved session has is kept, for an hour after the tab was last written.

import { KEPT_BYTES } from "./recording.js";

const LIFE_MS = 3600 * 1000;
const ACTION_BYTES = 100; // estimated
const MOST_WAITING = 64 << 20; // bytes, while the database is slow

/**
 * @typedef {[name: string, argument: any]} Action What the user did to the data.
 * @typedef {{target: string, bytes?: Uint8Array<ArrayBuffer>, action?: Action}} Part
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
  /** @type {Part[]} */
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
   * @param {Part} part
   */
  add(part) {
    if (this.trouble !== null) return;
    this.#waiting.push(part);
    this.#waitingBytes += sizeOf(part);
    while (this.#waitingBytes > MOST_WAITING) this.#waitingBytes -= sizeOf(/** @type {Part} */ (this.#waiting.shift()));
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

/**
 * Return the parts with neighbouring records of one target joined.
 *
 * @param {Part[]} parts
 */
function joined(parts) {
  /** @type {Part[]} */
  const result = [];
  for (let from = 0; from < parts.length; ) {
    const { target, bytes } = parts[from];
    let to = from + 1;
    while (bytes && parts[to]?.bytes && parts[to].target === target) to++;
    result.push(bytes ? { target, bytes: concatenated(parts.slice(from, to)) } : parts[from]);
    from = to;
  }
  return result;
}

/** @param {Part[]} parts */
function concatenated(parts) {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + sizeOf(part), 0));
  let at = 0;
  for (const { bytes } of parts) {
    if (bytes === undefined) continue;
    all.set(bytes, at);
    at += bytes.length;
  }
  return all;
}
