// The samples of each thread, counted by stack. Threads that are many are merged into one.

import { Activity } from "./activity.js";

// Threads that are listed, and threads with counts of their own: an unlisted one may still become busy.
const LISTED = 50;
const KEPT = 200;

// Threads in a row that the log of samples can tell apart; later ones are among the others.
const MAX_SERIALS = 2 ** 20;

// A thread without a sample for longer was not sampled, or did not run; ms.
export const LONGEST_STEP = 1000;

/** The id of the entry for all unlisted threads. */
export const OTHERS = "(others)";

/** The id of the entry for all suspended asyncio tasks, which are on no thread. */
export const TASKS = "(suspended tasks)";

/** Stacks have numbers below it. */
export const STACKS = 2 ** 20;

const MAIN = "MainThread";

/** A thread's samples. */
export class Thread {
  /** @type {Map<number, number>} Samples by `kind * STACKS + stack`, see `kindOf` in profile.js. */
  counts = new Map();
  samples = 0;
  idle = 0; // the part of `samples` in which it waited
  last = 0; // the number of its last sample
  steps = 0; // times from one sample to the next, except pauses
  span = 0; // ms, the sum of them
  isMerged = false; // holds the samples of several threads
  /** @type {string | null} */
  name = null;
  activity;
  #at = -Infinity; // ms

  constructor(id, serial, scale) {
    this.id = id;
    this.serial = serial;
    this.activity = new Activity(scale);
  }

  /** The name if known, else the id. */
  get title() {
    return this.name ?? this.id;
  }

  get isMain() {
    return this.name === MAIN;
  }

  /** Return how many samples there are, with those in which the thread waited or without. */
  count(idle) {
    return idle ? this.samples : this.samples - this.idle;
  }

  /** Count a sample; `elapsed` is in ms since the first sample, `time` is the time of the process's clock in ms. */
  add(key, idle, elapsed, time) {
    this.counts.set(key, (this.counts.get(key) ?? 0) + 1);
    this.samples++;
    this.idle += idle;
    this.activity.add(elapsed, idle);
    const step = time - this.#at;
    this.#at = time;
    if (step < 0 || step > LONGEST_STEP) return;
    this.steps++;
    this.span += step;
  }

  /** Count suspended tasks that are worth a number of samples. */
  addIdle(key, samples) {
    this.counts.set(key, (this.counts.get(key) ?? 0) + samples);
    this.samples += samples;
    this.idle += samples;
  }

  /** Take over the samples of another thread. @param {Thread} other */
  merge(other) {
    this.isMerged = true;
    this.samples += other.samples;
    this.idle += other.idle;
    for (const [key, count] of other.counts) this.counts.set(key, (this.counts.get(key) ?? 0) + count);
    this.activity.merge(other.activity);
  }
}

export class Threads {
  /** @type {Map<string, Thread>} */
  byId = new Map();
  /** @type {Thread[]} By the number that the log of samples has. */
  bySerial = [];
  tasks;
  #scale;
  #rest; // threads that were merged

  /** @param {import("./activity.js").Scale} scale */
  constructor(scale) {
    this.#scale = scale;
    this.#rest = new Thread(OTHERS, 0, scale);
    this.bySerial.push(this.#rest);
    this.tasks = new Thread(TASKS, 0, scale);
  }

  /** Return the thread with an id, adding it if needed. */
  get(id) {
    let thread = this.byId.get(id);
    if (thread !== undefined) return thread;
    if (this.bySerial.length >= MAX_SERIALS) return this.#rest;
    if (this.byId.size >= KEPT) this.#mergeSome();
    thread = new Thread(id, this.bySerial.length, this.#scale);
    this.bySerial.push(thread);
    this.byId.set(id, thread);
    return thread;
  }

  /** All threads; those that were merged are the last. */
  get all() {
    return this.#rest.samples ? [...this.byId.values(), this.#rest] : [...this.byId.values()];
  }

  /** Return the threads for which a listed id stands, all threads and the suspended tasks for null. */
  named(id) {
    if (id === null) return [...this.all, this.tasks];
    if (id === TASKS) return [this.tasks];
    if (id === OTHERS) return this.#split().others;
    const one = this.byId.get(id);
    return one ? [one] : [];
  }

  /** The thread with the most samples. */
  get busiest() {
    return this.all.reduce((most, one) => (one.steps > most.steps ? one : most), this.#rest);
  }

  /**
   * Return the listed threads, the main thread first, then by samples; then an entry for all unlisted ones, and one for
   * the suspended tasks.
   */
  list(idle) {
    const { listed, others } = this.#split();
    const shown = listed.filter((thread) => thread.count(idle)).map((thread) => ({ id: thread.id, title: thread.title, threads: [thread], samples: thread.count(idle) }));
    const samples = others.reduce((sum, thread) => sum + thread.count(idle), 0);
    if (samples) shown.push({ id: OTHERS, title: OTHERS, threads: others, samples });
    if (this.tasks.count(idle)) shown.push({ id: TASKS, title: TASKS, threads: [this.tasks], samples: this.tasks.count(idle) });
    return shown;
  }

  /** Merge the unlisted threads, except the half sampled most recently, into one. */
  #mergeSome() {
    const { others } = this.#split();
    const kept = others.filter((thread) => thread !== this.#rest).sort((a, b) => b.last - a.last);
    for (const thread of kept.slice(kept.length / 2)) {
      this.byId.delete(thread.id);
      this.bySerial[thread.serial] = this.#rest;
      this.#rest.merge(thread);
    }
  }

  #split() {
    const sorted = [...this.byId.values()].sort((a, b) => Number(b.isMain) - Number(a.isMain) || b.samples - a.samples);
    return { listed: sorted.slice(0, LISTED), others: [...sorted.slice(LISTED), this.#rest] };
  }
}
