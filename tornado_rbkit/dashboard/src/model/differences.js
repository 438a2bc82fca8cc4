// What two snapshots differ in, by class or by the place where objects are made, and the rows of a table of it.

import { compare } from "./objects.js";

/** @typedef {import("./snapshots.js").Snapshot} Snapshot */

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
 * Compare two snapshots by the place where objects are made: the count and bytes of each row are its growth.
 *
 * @param {Snapshot} before
 * @param {Snapshot} after
 */
export function differenceBySite(before, after) {
  /** @type {Map<string, import("./snapshots.js").Site & {after: number}>} */
  const rows = new Map();
  for (const site of after.bySite()) rows.set(site.name, { ...site, after: site.count });
  for (const site of before.bySite()) {
    const row = rows.get(site.name) ?? { ...site, after: 0, count: 0, bytes: 0 };
    row.count -= site.count;
    row.bytes -= site.bytes;
    rows.set(site.name, row);
  }
  return [...rows.values()].filter(({ count, bytes }) => count || bytes);
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
