// The live objects that were created since the profile started, by class and age.

import { IdTable } from "./idtable.js";
import { EventType } from "../connection/protocol.js";

const HISTORY_SECONDS = 2;
const HISTORY_LENGTH = 6; // for the rate
const TREND_LENGTH = 120; // of the whole profile; beyond it every other point is dropped

// Collections within this time age objects only once: CPython runs small ones many times per second.
const AGING_MS = 5000;

// Ruby considers an object old when it has survived three collections (RGENGC_OLD_AGE).
const MIDDLE_AGES = 3;

// A class (26 bits) and the number of the collection before the object's creation (27 bits), in one double.
const EPOCHS = 2 ** 27;

// Takes half a gigabyte; further objects are counted when created, but not when destroyed.
const MAX_TRACKED = 12_000_000;

// Classes with a row of their own; objects of further classes are counted in one shared row.
const MAX_CLASSES = 20_000;
const OTHERS = "(other classes)";

// Events may be slightly out of order; an event further back means that the clock was set back.
const LATE_MS = 10_000;

class ClassRow {
  live = 0;
  created = 0;
  destroyed = 0;
  baseline = 0;
  /** @type {[number, number][]} */
  history = []; // the last [time in s, live]
  /** @type {number[]} */
  trend = []; // live, at the last of the trend's times

  constructor(name) {
    this.name = name;
    this.ages = new Array(MIDDLE_AGES + 2).fill(0); // from created since the last collection to old
  }
}

export class LiveObjects {
  classes = [];
  tracked = new IdTable(); // id to class and epoch
  strangers = 0; // destroyed objects that are older than the profile
  untracked = 0;
  hasBaseline = false; // whether growth counts from a later moment than the profile
  uncertain = false; // true once messages were lost: some counts are wrong
  #byName = new Map();
  #epoch = 0;
  #aged = 0; // ms
  #sampled = 0;
  /** @type {number[]} */
  #trendTimes = []; // s
  #trendStep = HISTORY_SECONDS;

  add(event) {
    if (event.type === EventType.OBJ_CREATED) this.#create(event.id, event.name);
    else if (event.type === EventType.OBJ_DESTROYED) this.#destroy(event.id);
    else if (event.type === EventType.GC_END_S) this.#age(event.time);
    this.#sample(event.time);
  }

  /** Count growth from now on. */
  setBaseline() {
    this.hasBaseline = true;
    for (const row of this.classes) row.baseline = row.live;
  }

  /** Stop tracking single objects; keep the counts. */
  end() {
    this.tracked = new IdTable();
  }

  /** Return the classes to show in a table. */
  rows({ filter = "", sort = "live", descending = true, limit = 200 }) {
    const wanted = filter.toLowerCase();
    const rows = this.classes.filter((row) => row.live + row.created > 0 && row.name.toLowerCase().includes(wanted));
    const value = VALUES[sort] ?? VALUES.live;
    const order = descending ? -1 : 1;
    rows.sort((a, b) => order * compare(value(a), value(b)) || compare(a.name, b.name));
    return {
      rows: rows.slice(0, limit).map((row) => ({
        name: row.name,
        live: row.live,
        growth: row.live - row.baseline,
        rate: rate(row),
        young: young(row),
        middle: middle(row),
        old: old(row),
        created: row.created,
        destroyed: row.destroyed,
        trend: this.#trend(row),
      })),
      matching: rows.length,
      live: this.classes.reduce((sum, row) => sum + row.live, 0),
      strangers: this.strangers,
      untracked: this.untracked,
      most: MAX_TRACKED,
      uncertain: this.uncertain,
      hasBaseline: this.hasBaseline,
    };
  }

  /** Return [time in s, live] of a class since it was first seen. */
  #trend(row) {
    const times = this.#trendTimes.slice(this.#trendTimes.length - row.trend.length);
    return row.trend.map((live, i) => [times[i], live]);
  }

  #create(id, name) {
    const known = this.tracked.get(id);
    if (known >= 0) this.#forget(known); // its obj_destroyed event was lost
    const index = this.#index(name);
    const row = this.classes[index];
    row.created++;
    if (this.tracked.size >= MAX_TRACKED) {
      this.untracked++;
      return;
    }
    row.live++;
    row.ages[0]++;
    this.tracked.set(id, index * EPOCHS + this.#epoch);
  }

  #destroy(id) {
    const known = this.tracked.get(id);
    if (known < 0) {
      this.strangers++;
      return;
    }
    this.tracked.delete(id);
    this.#forget(known);
  }

  #forget(known) {
    const row = this.classes[Math.floor(known / EPOCHS)];
    const age = this.#epoch - (known % EPOCHS);
    row.destroyed++;
    row.live--;
    row.ages[Math.min(age, MIDDLE_AGES + 1)]--;
  }

  #age(time) {
    if (Math.abs(time - this.#aged) < AGING_MS || this.#epoch === EPOCHS - 1) return;
    this.#aged = time;
    this.#epoch++;
    for (const { ages } of this.classes) {
      ages[MIDDLE_AGES + 1] += ages[MIDDLE_AGES];
      for (let age = MIDDLE_AGES; age > 0; age--) ages[age] = ages[age - 1];
      ages[0] = 0;
    }
  }

  #index(name) {
    const known = this.#byName.get(name);
    if (known !== undefined) return known;
    if (this.classes.length >= MAX_CLASSES && name !== OTHERS) return this.#index(OTHERS);
    const index = this.classes.push(new ClassRow(name)) - 1;
    this.#byName.set(name, index);
    return index;
  }

  /** Record the number of live objects every two seconds. */
  #sample(time) {
    const since = time - this.#sampled;
    if (since < HISTORY_SECONDS * 1000 && since > -LATE_MS) return;
    this.#sampled = time;
    const dropped = this.#trendTimes.filter((one) => one >= time / 1000).length; // the clock was set back
    this.#trendTimes.length -= dropped;
    const last = this.#trendTimes.at(-1) ?? -Infinity;
    const isDue = time / 1000 - last >= this.#trendStep;
    for (const row of this.classes) {
      row.trend.length = Math.max(0, row.trend.length - dropped);
      if (isDue) row.trend.push(row.live);
      if (since < 0) row.history = [];
      row.history.push([time / 1000, row.live]);
      if (row.history.length > HISTORY_LENGTH) row.history.shift();
    }
    if (isDue) this.#trendTimes.push(time / 1000);
    if (this.#trendTimes.length > TREND_LENGTH) this.#thin();
  }

  /** Drop every other point of the trends, and take half as many from now on. */
  #thin() {
    const whole = this.#trendTimes.length;
    for (const row of this.classes) {
      const first = whole - row.trend.length;
      row.trend = row.trend.filter((_, i) => (first + i) % 2 === 0);
    }
    this.#trendTimes = this.#trendTimes.filter((_, i) => i % 2 === 0);
    this.#trendStep *= 2;
  }
}

const VALUES = {
  name: (row) => row.name,
  live: (row) => row.live,
  growth: (row) => row.live - row.baseline,
  rate,
  young,
  middle,
  old,
  created: (row) => row.created,
  destroyed: (row) => row.destroyed,
};

function young(row) {
  return row.ages[0];
}

function middle(row) {
  return row.ages.slice(1, MIDDLE_AGES + 1).reduce((sum, count) => sum + count, 0);
}

function old(row) {
  return row.ages[MIDDLE_AGES + 1];
}

/** Return how fast a class grew over about the last ten seconds, in objects per second. */
function rate(row) {
  const last = row.history.at(-1);
  const before = row.history.at(-6) ?? row.history[0];
  return last && last[0] > before[0] ? (last[1] - before[1]) / (last[0] - before[0]) : 0;
}

export function compare(a, b) {
  return a < b ? -1 : a > b ? 1 : 0;
}
